# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Shuts domains down, starts them, and puts them on a new QEMU process."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._clock import Deadline, ticks, timestamp
from ansible_collections.kvm.fleet.plugins.module_utils._domain import (
    ACTIVE_STATES,
    Domain,
    DomainState,
    Hypervisor,
    ShutdownMethod,
    require_running,
)
from ansible_collections.kvm.fleet.plugins.module_utils._drift import DriftState
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    AgentCommandBlocked,
    AgentSilent,
    CommandKilled,
    CommandResultLost,
    CommandTimeout,
    DomainNotRunning,
    DomainUnsafe,
    FleetError,
    HypervisorUnavailable,
    InvalidRequest,
    LibvirtFailed,
    ProofFailed,
    ShutdownTimeout,
    StartFailed,
)
from ansible_collections.kvm.fleet.plugins.module_utils._exec import boot_id
from ansible_collections.kvm.fleet.plugins.module_utils._observe import Observation, observe
from ansible_collections.kvm.fleet.plugins.module_utils._proc import QemuProcess

RESEND_SECONDS = 30
"""How long to wait before the power button is pressed again. A guest that is still booting misses the first press."""

PING_SECONDS = 5


class PowerState(str, Enum):
    """What a domain is wanted to be."""

    STARTED = "started"
    STOPPED = "stopped"
    RESTARTED = "restarted"


class Step(str, Enum):
    SHUT_DOWN = "shut_down"
    START = "start"
    WAIT_FOR_AGENT = "wait_for_agent"


@dataclass(frozen=True)
class PowerOptions:
    """How to get there. Timeouts are in seconds; an ``agent_timeout`` of zero means not to wait for the agent."""

    method: ShutdownMethod = ShutdownMethod.ACPI
    shutdown_timeout: float = 300
    force: bool = False
    agent_timeout: float = 300

    def check(self) -> None:
        """Raise InvalidRequest for numbers that cannot be meant."""
        if self.shutdown_timeout <= 0 or self.agent_timeout < 0:
            raise InvalidRequest(
                f"a shutdown_timeout of {self.shutdown_timeout:g} s or an agent_timeout of {self.agent_timeout:g} s "
                "cannot be meant",
                remedy="Give a shutdown_timeout above zero, and an agent_timeout of zero or more.",
            )


@dataclass(frozen=True)
class Transition:
    """A state of the domain, and when it was first seen in it."""

    state: DomainState
    at: str

    def facts(self) -> dict[str, str]:
        """As results and evidence have it."""
        return {"state": self.state.value, "at": self.at}


@dataclass
class PowerReport:
    """What happened. Fields stay None where something was not looked at or could not be told."""

    transitions: list[Transition] = field(default_factory=list)
    forced: bool = False
    process_before: QemuProcess | None = None
    process_after: QemuProcess | None = None
    boot_id_before: str | None = None
    boot_id_after: str | None = None
    warnings: list[str] = field(default_factory=list)
    """What somebody should know who wanted it done."""


@dataclass(frozen=True)
class Begun:
    """A restart that is on record: what ran before it, and what ran after it if it came to its end.

    A process of an earlier boot of the hypervisor is None, since it is gone; ``process_known`` tells that from one that
    nobody could look at.
    """

    process: QemuProcess | None
    process_known: bool
    boot_id: str | None
    ended: bool
    process_after: QemuProcess | None
    forced: bool


def plan_again(observed: Observation, begun: Begun, options: PowerOptions) -> tuple[Step, ...]:
    """The steps that are left of a restart that is on record. Raises what ``plan`` raises.

    A domain that is off was shut down by that restart. One that is on another process was started by it, or by
    somebody else since; either way there is only the proof left. What still runs on the old process, or is outdated
    again, is restarted.
    """
    if begun.ended:
        process, after = observed.process, begun.process_after
        still = process is not None and after is not None and process.is_same(after)
        current = observed.drift.state is not DriftState.DRIFTED
        return () if still and current else plan(observed, PowerState.RESTARTED, options)
    if observed.state not in ACTIVE_STATES:
        return plan(observed, PowerState.STARTED, options)
    unknown = observed.process is None or not begun.process_known
    outdated = observed.drift.state is DriftState.DRIFTED
    if unknown or outdated or is_on_its_way_down(observed, begun):
        return plan(observed, PowerState.RESTARTED, options)
    return (Step.WAIT_FOR_AGENT,) if options.agent_timeout else ()


def is_on_its_way_down(observed: Observation, begun: Begun) -> bool:
    """Whether the domain may have been asked to shut down by a restart that was cut off, and still runs."""
    process = observed.process
    return not begun.ended and process is not None and begun.process is not None and process.is_same(begun.process)


def plan(observed: Observation, wanted: PowerState, options: PowerOptions) -> tuple[Step, ...]:
    """The steps from what was observed to what is wanted. Raises DomainNotRunning and DomainUnsafe.

    A domain that is off is not restarted: somebody wanted it off.
    """
    wait = (Step.WAIT_FOR_AGENT,) if options.agent_timeout else ()
    off = observed.state not in ACTIVE_STATES
    if wanted is PowerState.STARTED and off:
        return (Step.START, *wait)
    if wanted is PowerState.STOPPED and off:
        return ()
    require_running(observed.name, observed.state)
    if wanted is PowerState.STARTED:
        return ()
    _require_safe_shutdown(observed)
    return (Step.SHUT_DOWN,) if wanted is PowerState.STOPPED else (Step.SHUT_DOWN, Step.START, *wait)


def _require_safe_shutdown(observed: Observation) -> None:
    if not observed.persistent:
        raise DomainUnsafe(
            f"domain {observed.name!r} is transient: shut down, it would be gone for good",
            remedy="Make it persistent first: 'virsh dumpxml' it to a file and 'virsh define' that file.",
        )
    if observed.managed_save:
        raise DomainUnsafe(
            f"domain {observed.name!r} runs and also has a managed save image: its next start would bring back old RAM",
            remedy="Remove the image with 'virsh managedsave-remove' if nobody needs it.",
        )
    if observed.definition.restarts_on_poweroff:
        raise DomainUnsafe(
            f"domain {observed.name!r} is defined to restart when its guest powers off: it would never be off, and "
            "keep its QEMU process",
            remedy="Have it go off: "
            f"virsh set-lifecycle-action {shlex.quote(observed.name)} poweroff destroy --live --config",
        )


def check(hypervisor: Hypervisor, domain: Domain, steps: tuple[Step, ...], options: PowerOptions) -> None:
    """Raise what would make the steps fail, before the first of them. Changes nothing.

    A guest whose agent is silent now would be silent after a restart as well, and nothing would prove that it came up.
    """
    agent_is_needed = Step.SHUT_DOWN in steps and (
        Step.WAIT_FOR_AGENT in steps or options.method is ShutdownMethod.AGENT
    )
    if agent_is_needed:
        agent = GuestAgent(domain, hypervisor.clock)
        agent.ping()
        if options.method is ShutdownMethod.AGENT:
            agent.require("guest-shutdown")


def apply(
    hypervisor: Hypervisor,
    domain: Domain,
    steps: tuple[Step, ...],
    options: PowerOptions,
    *,
    begun: Begun | None = None,
    intend: Callable[[PowerReport], None] = lambda _report: None,
    started: Callable[[], None] = lambda: None,
    meanwhile: Callable[[], None] = lambda: None,
) -> PowerReport:
    """Carry the steps out and prove them; those of a restart that was ``begun`` by what was known before it.

    ``intend`` is told what runs before the domain is first asked to shut down, ``started`` is called as soon as it is
    up again. ``meanwhile`` is done just before the domain is started; where it fails, the domain is started all the
    same, and its error is raised after that.
    Errors carry the transitions seen so far, and say in which state the domain is left.
    """
    cycle = _Cycle(hypervisor, domain, steps, options, begun=begun, intend=intend, started=started)
    try:
        if begun and Step.SHUT_DOWN not in steps:
            cycle.go_on(begun)
        if Step.START in steps:
            start = steps.index(Step.START)
            cycle.run(*steps[:start])
            try:
                meanwhile()
            finally:
                cycle.run(*steps[start:])
        else:
            cycle.run(*steps)
        cycle.prove()
    except FleetError as error:
        if isinstance(error.__context__, FleetError) and error.__cause__ is None:
            error.evidence["while_off"] = error.__context__.message
        error.evidence["transitions"] = [transition.facts() for transition in cycle.report.transitions]
        error.evidence["forced"] = cycle.report.forced
        if cycle.report.transitions[-1].state not in ACTIVE_STATES and not isinstance(error, StartFailed):
            error.remedy += f" The guest is off: 'virsh start {cycle.quoted}' brings it back."
        raise
    return cycle.report


class _Cycle:
    """One domain on its way through the steps."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        domain: Domain,
        steps: tuple[Step, ...],
        options: PowerOptions,
        *,
        begun: Begun | None,
        intend: Callable[[PowerReport], None],
        started: Callable[[], None],
    ) -> None:
        self.report = PowerReport()
        self._steps = steps
        self._begun = begun
        self._intend = intend
        self._started = started
        self._to_prove = Step.START in steps
        self._hypervisor = hypervisor
        self._clock = hypervisor.clock
        self._domain = domain
        self._options = options
        self._agent = GuestAgent(domain, hypervisor.clock)
        self._look()

    def go_on(self, begun: Begun) -> None:
        """The domain has been shut down by then, and what ran before was noted."""
        self.report.process_before, self.report.boot_id_before = begun.process, begun.boot_id
        self._to_prove = True
        if self.report.transitions[-1].state in ACTIVE_STATES:
            self._started()

    def run(self, *steps: Step) -> None:
        acts = {Step.SHUT_DOWN: self._shut_down, Step.START: self._start, Step.WAIT_FOR_AGENT: self._wait_for_agent}
        for step in steps:
            acts[step]()

    def _look(self) -> DomainState:
        """The domain's state, noted when it is another than before."""
        state = self._domain.state()
        if not self.report.transitions or self.report.transitions[-1].state is not state:
            self.report.transitions.append(Transition(state, timestamp(self._clock.now())))
        return state

    def _shut_down(self) -> None:
        self.report.process_before = observe(self._hypervisor, self._domain).process
        if Step.WAIT_FOR_AGENT in self._steps:
            self.report.boot_id_before = self._boot_id_before()
        self._intend(self.report)
        deadline = Deadline(self._clock, self._options.shutdown_timeout)
        asked_at: float | None = None
        for _tick in ticks(deadline, self._clock):
            if self._look() not in ACTIVE_STATES:
                return
            if asked_at is None or self._may_ask_again(deadline.elapsed - asked_at):
                asked_at = deadline.elapsed
                self._ask_to_shut_down()
        if not self._options.force:
            raise ShutdownTimeout(
                f"domain {self._domain.name!r} was asked to shut down {self._options.shutdown_timeout:g} s ago and is "
                f"still {self._look().value.replace('_', ' ')}; it was left so, and may yet go off",
                remedy=f"Look at its console (virsh console {self.quoted}). 'virsh destroy {self.quoted}' ends it at "
                "once, as 'force' does, and what it has not written to disk is then lost.",
            )
        self._unless_off(self._domain.destroy)
        self.report.forced = True
        self._look()

    def _may_ask_again(self, since: float) -> bool:
        # A shutdown stops the agent early on: whoever asks it a second time hears nothing and learns nothing.
        return self._options.method is ShutdownMethod.ACPI and since >= RESEND_SECONDS

    def _ask_to_shut_down(self) -> None:
        try:
            self._unless_off(lambda: self._domain.shutdown(self._options.method))
        except AgentSilent:
            # It answered a moment ago (see check). libvirt waits for the shutdown itself and calls a slow one silence.
            if self._options.method is not ShutdownMethod.AGENT:
                raise
        except HypervisorUnavailable:
            pass  # libvirt was restarted: whether the guest was asked shows at the next look, and it is asked again

    def _unless_off(self, act: Callable[[], None]) -> None:
        """Do something to a running domain, which may have gone off since it was looked at: that is as well."""
        try:
            act()
        except FleetError:
            if self._look() in ACTIVE_STATES:
                raise

    def _start(self) -> None:
        try:
            self._domain.start()
        except HypervisorUnavailable:
            if self._look() not in ACTIVE_STATES:  # libvirt was restarted before it had started the domain
                self._try_to_start()
        except LibvirtFailed as error:
            if self._look() not in ACTIVE_STATES:  # or somebody else has started it meanwhile
                raise self._not_started(error) from error
        self._look()
        self._started()

    def _try_to_start(self) -> None:
        try:
            self._domain.start()
        except (HypervisorUnavailable, LibvirtFailed) as error:
            raise self._not_started(error) from error

    def _not_started(self, error: FleetError) -> StartFailed:
        return StartFailed(
            f"domain {self._domain.name!r} is off and cannot be started: {error.message}",
            remedy=f"Mend what libvirt complains about, then 'virsh start {self.quoted}' brings it back.",
            evidence=error.evidence,
        )

    def _wait_for_agent(self) -> None:
        deadline = Deadline(self._clock, self._options.agent_timeout)
        for _tick in ticks(deadline, self._clock):
            if self._look() not in ACTIVE_STATES:
                raise StartFailed(
                    f"domain {self._domain.name!r} was started and went off again",
                    remedy="Look at its log in /var/log/libvirt/qemu, "
                    f"then 'virsh start {self.quoted}' brings it back.",
                )
            if self._agent_is_up():
                return
        raise AgentSilent(
            f"domain {self._domain.name!r} is {self._look().value} and its guest agent has not answered within "
            f"{self._options.agent_timeout:g} s of its start",
            remedy=f"Look at its console (virsh console {self.quoted}): it may still be booting, wait at an emergency "
            "shell, or have lost qemu-guest-agent.",
        )

    def _agent_is_up(self) -> bool:
        """Whether the agent answers and, where it did before, also tells the boot id. It may falter while booting."""
        try:
            self._agent.ping(PING_SECONDS)
            if self.report.boot_id_before is not None:
                self.report.boot_id_after = self._boot_id()
        except (CommandKilled, CommandResultLost, CommandTimeout, DomainNotRunning):
            return False
        except FleetError as error:
            if not error.transient:
                raise
            return False
        return True

    def _boot_id_before(self) -> str | None:
        """Of a guest that an earlier run has asked to shut down, the agent may be gone: that run has noted it."""
        try:
            return self._boot_id()
        except FleetError:
            if self._begun is None or self._begun.ended:
                raise
            return self._begun.boot_id

    def _boot_id(self) -> str | None:
        try:
            return boot_id(self._agent)
        except AgentCommandBlocked:
            return None  # a guest that only answers pings is restarted all the same; the QEMU process is proof enough

    def prove(self) -> None:
        """Raise ProofFailed unless a started domain has a QEMU process, which is new, as its guest's boot is."""
        if not self._to_prove:
            return
        report = self.report
        found = observe(self._hypervisor, self._domain)
        report.process_after = found.process
        if report.process_after is None:
            reasons = "; ".join(reason.detail for reason in found.drift.reasons)
            raise ProofFailed(
                f"domain {self._domain.name!r} was started, and its QEMU process cannot be looked at: {reasons}",
                remedy="See that the task runs as root on the hypervisor; the guest itself may be well.",
            )
        if report.process_before is not None and report.process_before.is_same(report.process_after):
            raise ProofFailed(
                f"domain {self._domain.name!r} was restarted and still has QEMU process {report.process_after.pid}",
                remedy="Look at libvirt's log: the shutdown may have been turned into a reboot.",
            )
        if report.boot_id_before is not None and report.boot_id_before == report.boot_id_after:
            raise ProofFailed(
                f"domain {self._domain.name!r} has a new QEMU process and its guest still has the old boot id",
                remedy="See whether libvirt restored a saved image of it ('virsh dominfo': managed save).",
            )

    @property
    def quoted(self) -> str:
        """The domain's name for a shell, after a virsh command; '--' keeps a leading dash from being an option."""
        return ("-- " if self._domain.name.startswith("-") else "") + shlex.quote(self._domain.name)
