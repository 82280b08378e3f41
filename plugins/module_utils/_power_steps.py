# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Carries out the steps that _power has decided on, by a power cycle or with the RAM saved, and proves them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from ansible_collections.kvm.fleet.plugins.module_utils import _heartbeat, _save
from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._clock import Deadline, ticks
from ansible_collections.kvm.fleet.plugins.module_utils._domain import (
    ACTIVE_STATES,
    Domain,
    DomainState,
    Hypervisor,
    ShutdownMethod,
    quoted,
    require_running,
)
from ansible_collections.kvm.fleet.plugins.module_utils._domain_xml import pending_edits
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    AgentSilent,
    CommandKilled,
    CommandResultLost,
    CommandTimeout,
    DomainNotRunning,
    FleetError,
    HypervisorUnavailable,
    LibvirtFailed,
    ProofFailed,
    SavedStateRefused,
    SaveFailed,
    ShutdownTimeout,
    StartFailed,
)
from ansible_collections.kvm.fleet.plugins.module_utils._exec import boot_id_if_told
from ansible_collections.kvm.fleet.plugins.module_utils._observe import observe
from ansible_collections.kvm.fleet.plugins.module_utils._power import (
    DOWN,
    UP,
    Begun,
    PowerOptions,
    PowerReport,
    Step,
    Strategy,
)

RESEND_SECONDS = 30
"""How long to wait before the power button is pressed again. A guest that is still booting misses the first press."""

PING_SECONDS = 5

SETTLE_SECONDS = 60
"""How long libvirt may take to have a guest run on whose RAM it did not save."""


def check(hypervisor: Hypervisor, domain: Domain, steps: tuple[Step, ...], options: PowerOptions) -> None:
    """Raise what would make the steps fail, before the first of them. Changes nothing.

    A guest whose agent is silent now would be silent after a restart as well, and nothing would prove that it came up.
    """
    agent_is_needed = not DOWN.isdisjoint(steps) and (
        Step.WAIT_FOR_AGENT in steps or options.method is ShutdownMethod.AGENT
    )
    if agent_is_needed:
        agent = GuestAgent(domain, hypervisor.clock)
        agent.ping()
        if options.method is ShutdownMethod.AGENT and Step.SHUT_DOWN in steps:
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

    ``intend`` is told what runs before the domain is first asked to shut down, or saved; ``started`` is called as soon
    as it is up again. ``meanwhile`` is done just before the domain is started; where it fails, the domain is started
    all the same, and its error is raised after that. From the request to shut down until it is started, nothing that
    can wait interrupts this.
    Errors carry the transitions seen so far, and say in which state the domain is left.
    """
    cycle = _Cycle(hypervisor, domain, steps, options, begun=begun, intend=intend, started=started)
    try:
        if begun and DOWN.isdisjoint(steps):
            cycle.go_on(begun)
        returning = [number for number, step in enumerate(steps) if step in UP]
        if returning:
            [start] = returning
            with ExitStack() as until_started:
                until_started.enter_context(hypervisor.uninterrupted())
                cycle.run(*steps[:start])
                try:
                    meanwhile()
                finally:
                    cycle.run(steps[start])
                    until_started.close()
                    cycle.run(*steps[start + 1 :])
        else:
            cycle.run(*steps)
        cycle.take_pulse()
        cycle.prove()
    except FleetError as met:
        error = cycle.first_cause(met)
        if isinstance(error.__context__, FleetError) and error.__cause__ is None:
            error.evidence["while_off"] = error.__context__.message
        error.evidence["transitions"] = [transition.facts() for transition in cycle.report.transitions]
        error.evidence["forced"] = cycle.report.forced
        told = isinstance(error, (StartFailed, SavedStateRefused))
        if cycle.report.transitions[-1].state not in ACTIVE_STATES and not told:
            error.remedy += f" The guest is off: 'virsh start {cycle.quoted}' brings it back."
        if error is met:
            raise
        raise error from met
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
        self._to_prove = not UP.isdisjoint(steps)
        self._saved = Step.RESTORE in steps
        self._boots = not self._saved
        self._refusal: SavedStateRefused | None = None
        self._left_at: float | None = None
        self._clock_offset: float | None = None
        # A restart that was cut off may have left its heartbeat in the guest.
        self._beats = begun is not None and Step.WAIT_FOR_AGENT in steps
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
        self._saved = begun.strategy is Strategy.SAVE_RESTORE
        self._boots = begun.strategy is Strategy.POWER_CYCLE
        if self.report.transitions[-1].state in ACTIVE_STATES:
            self._started()

    def run(self, *steps: Step) -> None:
        acts = {
            Step.SHUT_DOWN: self._shut_down,
            Step.SAVE: self._save,
            Step.START: self._start,
            Step.RESTORE: self._restore,
            Step.WAIT_FOR_AGENT: self._wait_for_agent,
            Step.SET_CLOCK: self._set_clock,
        }
        for step in steps:
            acts[step]()

    def _look(self) -> DomainState:
        return self.report.saw(self._domain.state(), self._clock)

    def _prepare(self) -> None:
        self.report.process_before = observe(self._hypervisor, self._domain).process
        if Step.WAIT_FOR_AGENT in self._steps:
            self.report.boot_id_before = self._boot_id_before()
        self._intend(self.report)
        # Who has told its boot id lets commands be run.
        self._beats = self.report.boot_id_before is not None and _heartbeat.start(self._agent)

    def take_pulse(self) -> None:
        """Note for how long the guest was away, by its own clock, which is of use only where that goes right again."""
        if not self._beats:
            return
        gap = _heartbeat.stop(self._agent)
        goes_right = not self._saved or (self.report.clock is not None and self.report.clock.set)
        self.report.longest_gap = gap if goes_right else None

    def _shut_down(self) -> None:
        self._prepare()
        deadline = Deadline(self._clock, self._options.shutdown_timeout)
        asked_at: float | None = None
        for _tick in ticks(deadline, self._clock):
            state = self._look()
            if state not in ACTIVE_STATES:
                self._left_at = self._clock.monotonic()
                return
            if asked_at is None or self._may_ask_again(deadline.elapsed - asked_at):
                if state is DomainState.PAUSED:
                    # QEMU pauses a guest whose disk has no room to grow, and libvirt does not shut down a paused one.
                    require_running(self._domain.name, state)
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
        self._left_at = self._clock.monotonic()
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
        self._has_started()

    def _has_started(self) -> None:
        if self._left_at is not None:
            self.report.off_for = self._clock.monotonic() - self._left_at
        self._look()
        self._started()

    def _try_to_start(self) -> None:
        try:
            self._domain.start()
        except (HypervisorUnavailable, LibvirtFailed) as error:
            if self._look() not in ACTIVE_STATES:  # or libvirt was restarted once it had started the domain
                raise self._not_started(error) from error

    def _not_started(self, error: FleetError) -> StartFailed:
        return StartFailed(
            f"domain {self._domain.name!r} is off and cannot be started: {error.message}",
            remedy=f"Mend what libvirt complains about, then 'virsh start {self.quoted}' brings it back.",
            evidence=error.evidence,
        )

    # --- with its RAM saved -------------------------------------------------------------------------

    def _save(self) -> None:
        self.report.pending = pending_edits(self._domain.xml(), self._domain.persistent_xml())
        if Step.SET_CLOCK in self._steps:
            self._clock_offset = _save.clock_offset(self._agent, self._clock)
        self._prepare()
        self._left_at = self._clock.monotonic()
        try:
            self._domain.save(self._options.save_timeout)
        except FleetError as error:
            if self._settled() in ACTIVE_STATES:
                raise self._not_saved(error) from error
        self._look()

    def _settled(self) -> DomainState:
        """The domain's state once libvirt has brought a save to its end, or back."""
        for _tick in ticks(Deadline(self._clock, SETTLE_SECONDS), self._clock):
            if self._look() is not DomainState.PAUSED:
                break
        return self._look()

    def _not_saved(self, error: FleetError) -> SaveFailed:
        # libvirt removes what it has not written to the end, unless it was itself ended meanwhile.
        if self._domain.has_managed_save():
            self._domain.remove_managed_save()
        self.take_pulse()
        state = self._look()
        if state in ACTIVE_STATES:  # as good as started: who shuts it down from now on wants it off
            self._started()
        return SaveFailed(
            f"the RAM of domain {self._domain.name!r} was not saved, and the domain is "
            f"{state.value.replace('_', ' ')} as before: {error.message}",
            remedy=f"'virsh resume {self.quoted}' has it go on."
            if state is DomainState.PAUSED
            else "Mend what libvirt complains about, or give it a longer save_timeout if it was called off, or "
            "power-cycle the guest, which saves nothing.",
            evidence=error.evidence,
        )

    def _restore(self) -> None:
        if not self._domain.has_managed_save():
            self._start()  # somebody has removed the image, and the proof tells what that comes to
            return
        problem = self._resume()
        if problem is None:
            self._has_started()
        else:
            self._start_anew(problem)

    def _resume(self) -> FleetError | None:
        """Start the domain from its image. Returns why that is not to be done, when it was tried twice."""
        problem: FleetError | None = None
        for _try in range(2):
            try:
                self._domain.start()
            except (HypervisorUnavailable, LibvirtFailed) as error:
                if self._look() in ACTIVE_STATES:  # libvirt was restarted, or somebody else has started it
                    return None
                problem = error
            else:
                return None
        return problem

    def _start_anew(self, problem: FleetError) -> None:
        """Bring a guest back whose image is refused, as after a power loss.

        Its RAM is kept until the guest runs without it. So it is lost only where nothing but the image was to blame.
        """
        refused = f"domain {self._domain.name!r} is not resumed from its saved RAM by the installed QEMU"
        keeps = (
            f"Put the QEMU back that it was saved by: 'virsh start {self.quoted}' resumes it then. Or start it anew, "
            f"as after a power loss: 'virsh start --force-boot {self.quoted}' discards its RAM."
        )
        evidence = {**problem.evidence, "qemu": problem.message}
        if self._options.keep_image:
            raise SavedStateRefused(
                f"{refused}: {problem.message}. It is off, and its RAM was kept",
                remedy=keeps,
                evidence={**evidence, "started_anew": False},
            )
        try:
            with _save.set_aside(_save.save_directory(self._hypervisor.uri) / f"{self._domain.name}.save"):
                self._try_to_start()
        except (StartFailed, OSError) as error:
            why = error.message if isinstance(error, StartFailed) else str(error)
            raise SavedStateRefused(
                f"{refused}: {problem.message}. Without it, it is not started either, so its RAM was kept: {why}",
                remedy=keeps,
                evidence={**evidence, "started_anew": False},
            ) from error
        self._refusal = SavedStateRefused(
            f"{refused}: {problem.message}. Its RAM was discarded and it was started anew, as after a power loss: what "
            "it had not written to its disks is lost",
            remedy="See that what the guest does came up again. Power-cycle other guests on this hypervisor instead of "
            "saving them.",
            evidence={**evidence, "started_anew": True},
        )
        # Before all else that may fail: with the image, its next start would bring back old RAM on newer disks.
        try:
            self._domain.remove_managed_save()
        except FleetError as error:
            self._refusal.evidence["image_left"] = error.message
            self._refusal.remedy += (
                f" And first 'virsh managedsave-remove {self.quoted}', which failed ({error.message}): its next start "
                "would bring back the old RAM, and damage its disks."
            )
        self._has_started()

    def first_cause(self, error: FleetError) -> FleetError:
        """What has to be told: that RAM was lost comes before anything that was found afterwards."""
        if self._refusal is None or error is self._refusal:
            return error
        self._refusal.evidence["afterwards"] = error.message
        self._refusal.evidence["afterwards_code"] = error.error_code
        self._refusal.remedy += f" And: {error.message}. {error.remedy}"
        return self._refusal

    def _set_clock(self) -> None:
        if self._refusal is None:  # what boots sets its clock by itself
            self.report.clock = _save.set_clock(self._agent, self._clock, self._clock_offset)

    # --- the agent, and the proof -------------------------------------------------------------------

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
                self.report.boot_id_after = boot_id_if_told(self._agent)
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
            return boot_id_if_told(self._agent)
        except FleetError:
            if self._begun is None or self._begun.ended:
                raise
            return self._begun.boot_id

    def prove(self) -> None:
        """Raise ProofFailed unless a started domain has a QEMU process, which is new, as its guest's boot is.

        One whose RAM was saved, or sent to where it is, still has the old boot. Raises SavedStateRefused where that was
        not to be had.
        """
        if self._refusal is not None:
            raise self._refusal
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
        if not self._boots:
            self._prove_the_same_boot()
        elif report.boot_id_before is not None and report.boot_id_before == report.boot_id_after:
            raise ProofFailed(
                f"domain {self._domain.name!r} has a new QEMU process and its guest still has the old boot id",
                remedy="See whether libvirt restored a saved image of it ('virsh dominfo': managed save).",
            )

    def _prove_the_same_boot(self) -> None:
        before, after = self.report.boot_id_before, self.report.boot_id_after
        same = before == after if before and after else self._domain.was_restored()
        if not same:
            raise ProofFailed(
                f"domain {self._domain.name!r} runs, and was not resumed from its saved RAM: its guest has booted, as "
                "after a power loss"
                if self._saved
                else f"domain {self._domain.name!r} was being migrated, and its guest has booted since",
                remedy="See that what the guest does came up again, and in libvirt's log why the image was not used: "
                "it may have been removed, or not been written to its end."
                if self._saved
                else "See that what the guest does came up again, and in libvirt's log who has started it.",
            )

    @property
    def quoted(self) -> str:
        """The domain's name for a shell, after a virsh command."""
        return quoted(self._domain.name)
