# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Gets a guest off its QEMU process by a live migration to another hypervisor, and back if that is wanted.

The process that migrates holds a connection to either libvirt. While it does, a guest is in one of two places, and runs
in one: whenever this process dies, libvirt calls the migration off, or it has brought it to its end.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import ExitStack, suppress

from ansible_collections.kvm.fleet.plugins.module_utils import _heartbeat, _kept, _save
from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._clock import Deadline, ticks
from ansible_collections.kvm.fleet.plugins.module_utils._destination import files
from ansible_collections.kvm.fleet.plugins.module_utils._domain import (
    ACTIVE_STATES,
    Domain,
    DomainState,
    Hypervisor,
    Storage,
    quoted,
)
from ansible_collections.kvm.fleet.plugins.module_utils._drift import DriftState
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    AgentSilent,
    DomainNotRunning,
    FleetError,
    HypervisorUnavailable,
    MigratedAway,
    MigrationFailed,
    ProofFailed,
)
from ansible_collections.kvm.fleet.plugins.module_utils._exec import boot_id_if_told
from ansible_collections.kvm.fleet.plugins.module_utils._observe import Observation, observe
from ansible_collections.kvm.fleet.plugins.module_utils._power import (
    Migration,
    PowerOptions,
    PowerReport,
    Step,
    Strategy,
)
from ansible_collections.kvm.fleet.plugins.module_utils._power_steps import PING_SECONDS

SETTLE_SECONDS = 60
"""How long libvirt may take to have a guest run on where it was."""


def apply(
    hypervisor: Hypervisor,
    domain: Domain,
    destination: str,
    steps: tuple[Step, ...],
    options: PowerOptions,
    *,
    intend: Callable[[PowerReport], None] = lambda _report: None,
    moved: Callable[[], None] = lambda: None,
) -> PowerReport:
    """Migrate the guest, bring it back if that is among the steps, and prove it.

    ``intend`` is told what runs before anything is done, ``moved`` is called when the guest has arrived to stay.
    Nothing that can wait interrupts this until it is where it is to be. Errors say where it is.
    """
    with ExitStack() as connections:
        journey = _Journey(hypervisor, domain, destination, steps, options=options, connections=connections)
        try:
            journey.begin(intend)
            with hypervisor.uninterrupted():
                journey.go(moved)
            journey.see_that_it_answers()
            journey.take_pulse()
            journey.prove()
        except FleetError as error:
            journey.tell_where(error)
            raise
    return journey.report


def foresee(
    domain: Domain, observed: Observation, destination: str | None, steps: tuple[Step, ...], options: PowerOptions
) -> Migration | None:
    """Where ``apply`` would bring the guest, None without a destination."""
    if destination is None:
        return None
    back = Step.MIGRATE_BACK in steps
    copied = options.storage is Storage.COPY and not back
    left = tuple(files(domain, observed.definition.writable_disks).values()) if copied else ()
    return Migration(destination, came_back=back, left_behind=left)


def settled(hypervisor: Hypervisor, uuid: str) -> Domain | None:
    """The domain, once libvirt has brought a migration of it to its end, or back. None where it is gone from there."""
    found = None
    for _tick in ticks(Deadline(hypervisor.clock, SETTLE_SECONDS), hypervisor.clock):
        found = _known(hypervisor, uuid)
        if found is None or not found.is_migrating():
            break
    return found


def _known(hypervisor: Hypervisor, uuid: str) -> Domain | None:
    return next((domain for domain in hypervisor.domains() if domain.uuid == uuid), None)


class _Journey:
    """One domain on its way. ``_domain`` is the domain where it is now, ``_there`` tells whether that is away."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        domain: Domain,
        destination: str,
        steps: tuple[Step, ...],
        *,
        options: PowerOptions,
        connections: ExitStack,
    ) -> None:
        self.report = PowerReport(strategy=Strategy.MIGRATE)
        self._hypervisor = hypervisor
        self._clock = hypervisor.clock
        self._domain = domain
        self._uri = destination
        self._steps = steps
        self._options = options
        self._connections = connections
        self._there = False
        self._may_be_there = False
        self._beats = False
        self._copied: tuple[str, ...] = ()
        self._emulated = False
        self._stood_still = False
        self._clock_offset: float | None = None
        self._look()

    @property
    def _agent(self) -> GuestAgent:
        return GuestAgent(self._domain, self._clock)

    def _look(self) -> DomainState:
        return self.report.saw(self._domain.state(), self._clock)

    def begin(self, intend: Callable[[PowerReport], None]) -> None:
        """Note what runs."""
        observed = observe(self._hypervisor, self._domain)
        self.report.process_before = observed.process
        self._emulated = observed.definition.emulated
        if self._options.storage is Storage.COPY:
            self._copied = tuple(files(self._domain, observed.definition.writable_disks).values())
        if Step.WAIT_FOR_AGENT in self._steps:
            self.report.boot_id_before = boot_id_if_told(self._agent)
        intend(self.report)
        if self._emulated and Step.WAIT_FOR_AGENT in self._steps:
            self._clock_offset = _save.clock_offset(self._agent, self._clock)
        self._beats = self.report.boot_id_before is not None and _heartbeat.start(self._agent)

    def go(self, moved: Callable[[], None]) -> None:
        """Bring the guest to where it is to be."""
        try:
            self._leave(self._ready_to_leave())
            if Step.MIGRATE_BACK in self._steps:
                self._return()
        except FleetError:
            if self._there or self._may_be_there:
                with suppress(FleetError):  # the first cause is the one to tell
                    moved()
            raise
        finally:
            self._tell_snapshots_again()
        if self._there:
            moved()
        left = () if Step.MIGRATE_BACK in self._steps else self._copied
        self.report.migration = Migration(self._uri, came_back=not self._there, left_behind=left)
        self._look()

    def _ready_to_leave(self) -> Hypervisor:
        """The destination, where the guest can be sent to at once."""
        try:
            there = self._connections.enter_context(self._hypervisor.other(self._uri))
            _kept.put_away(self._domain)
        except FleetError as error:
            raise self._not_migrated(error) from error
        return there

    def _tell_snapshots_again(self) -> None:
        try:
            _kept.tell_again(self._domain)
        except FleetError as error:
            self.report.warnings.append(
                f"libvirt was not told again of the snapshots and the autostart of {self._domain.name!r} "
                f"({error.message}): what it needs for that is kept in the domain's metadata, and the next task that "
                "changes the guest tries again"
            )

    def _leave(self, there: Hypervisor) -> None:
        try:
            arrived = self._migrate(there)
        except FleetError as error:
            still = settled(self._hypervisor, self._domain.uuid)
            if still is not None:
                nowhere_else = self._is_here_alone(still, error)
                failure = self._not_migrated(error)
                self._clear_up(failure, nowhere_else=nowhere_else)
                raise failure from error
            arrived = self._arrived(error)
        self._arrive(arrived, there=True)

    def _is_here_alone(self, here: Domain, error: FleetError) -> bool:
        """Whether the other side is known to have no such domain. Raises ProofFailed where one is active there, too.

        libvirt may have lost the answer of a side on which the guest has gone on.
        """
        try:
            with self._hypervisor.other(self._uri) as there:
                found = settled(there, here.uuid)
                state = found.state() if found else None
        except FleetError:
            return False
        if state in ACTIVE_STATES:
            self._may_be_there = True
            here_state = here.state()
            end = "End the one that is paused, or else one of them, at once with 'virsh destroy', before both have "
            raise ProofFailed(
                f"domain {here.name!r} is in two places, {here_state.value.replace('_', ' ')} here and "
                f"{state.value.replace('_', ' ')} at {self._uri}, since its migration has failed: {error.message}",
                remedy=f"{end}written to the same disks, and undefine it in that place, which leaves its disks alone. "
                "Of two that have run, look at the guest's file systems."
                if here_state in ACTIVE_STATES
                else "Undefine it here, which leaves its disks alone: virsh undefine -- "
                f"{shlex.quote(here.name)}. It can stay there, and is worked on there as any other guest.",
                evidence=error.evidence,
            ) from error
        return state is None

    def _migrate(self, to: Hypervisor) -> Domain:
        """A QEMU that emulates a guest loses some of what that writes meanwhile, so such a guest stands still."""
        self._stood_still = self._emulated
        options = self._options
        return self._domain.migrate(to, options.migrate_timeout, options.storage, live=not self._emulated)

    def _arrived(self, error: FleetError) -> Domain:
        """The guest at the destination, which it has been handed over to though libvirt told of an error."""
        self._there = True
        try:
            there = self._connections.enter_context(self._hypervisor.other(self._uri))
            arrived = settled(there, self._domain.uuid)
        except HypervisorUnavailable as unavailable:
            raise ProofFailed(
                f"domain {self._domain.name!r} has left this hypervisor for {self._uri}, which cannot be asked for it: "
                f"{unavailable.message}",
                remedy=f"See that it runs there: virsh -c {shlex.quote(self._uri)} list --all",
                evidence=error.evidence,
            ) from error
        if arrived is None:
            raise ProofFailed(
                f"domain {self._domain.name!r} has left this hypervisor, and is not known at {self._uri} either: "
                f"{error.message}",
                remedy="Look at libvirt's logs of both hypervisors. Its disks are where they were.",
                evidence=error.evidence,
            ) from error
        return arrived

    def _arrive(self, arrived: Domain, *, there: bool) -> None:
        self._domain, self._there = arrived, there
        stood_still = arrived.arrived_after()
        if stood_still is not None:
            self.report.off_for = (self.report.off_for or 0.0) + stood_still

    def _not_migrated(self, error: FleetError) -> MigrationFailed:
        state = self._look()
        failure = MigrationFailed(
            f"domain {self._domain.name!r} was not migrated to {self._uri}, and is {state.value.replace('_', ' ')} "
            f"where it was: {error.message}",
            remedy="See that it does not run there "
            f"(virsh -c {shlex.quote(self._uri)} list --all). If it does not, 'virsh resume "
            f"{quoted(self._domain.name)}' has it go on."
            if state is DomainState.PAUSED
            else "Mend what libvirt complains about, or give it a longer migrate_timeout if it was called off, or take "
            "another way to the installed QEMU: strategy auto, save_restore or power_cycle.",
            evidence=error.evidence,
        )
        if state in (DomainState.RUNNING, DomainState.BLOCKED):
            self._set_clock()
            self.take_pulse()
        return failure

    def _clear_up(self, failure: FleetError | None = None, *, nowhere_else: bool = True) -> None:
        """Remove the images that libvirt has made at the destination for this guest, which runs here.

        They were not there when the destination was looked at. Where it is not known that the guest is ``nowhere_else``
        they stay, and that is told.
        """
        told = []
        if not nowhere_else:
            told.append(f"see that it is not at {self._uri}, too (virsh -c {shlex.quote(self._uri)} list --all)")
        problem = self._remove_copies() if nowhere_else else "it may be there"
        if self._copied and problem:
            told.append(f"copies of its disks may be left at {self._uri} ({problem}): {', '.join(self._copied)}")
        if failure:
            failure.remedy += "".join(f" And {words}." for words in told)
        else:
            self.report.warnings += told

    def _remove_copies(self) -> str | None:
        """Returns why there may be some left."""
        if not self._copied:
            return None
        try:
            if self._domain.state() not in (DomainState.RUNNING, DomainState.BLOCKED):
                return "it does not run here"
            with self._hypervisor.other(self._uri) as there:
                for path in self._copied:
                    there.remove_image(path)
        except FleetError as error:
            return error.message
        return None

    def _return(self) -> None:
        nowhere_else = True
        try:
            arrived = self._migrate(self._hypervisor)
        except FleetError as error:
            # A connection that broke may have been the one to there, and what is here is known at any rate.
            here = settled(self._hypervisor, self._domain.uuid)
            if here is None or here.state() is not DomainState.RUNNING:
                raise self._not_back(error) from error
            nowhere_else = self._is_here_alone(here, error)
            arrived = here
        self._arrive(arrived, there=False)
        self._clear_up(nowhere_else=nowhere_else)

    def _not_back(self, error: FleetError) -> MigratedAway:
        self._set_clock()
        self.take_pulse()
        return MigratedAway(
            f"domain {self._domain.name!r} was migrated to {self._uri}, runs there on another QEMU, and could not be "
            f"brought back: {error.message}",
            remedy="It can stay there, and is worked on there as any other guest of that hypervisor. To bring it back, "
            "mend what libvirt complains about, then have it migrated from there (kvm.fleet.restart, upgrade_strategy: "
            "migrate).",
            evidence=error.evidence,
        )

    # --- the proof ----------------------------------------------------------------------------------

    def take_pulse(self) -> None:
        """Note for how long the guest was away, by its own clock, which is of use only where that goes right again."""
        if self._beats:
            self._beats = False
            gap = _heartbeat.stop(self._agent)
            goes_right = not self._stood_still or (self.report.clock is not None and self.report.clock.set)
            self.report.longest_gap = gap if goes_right else None

    def see_that_it_answers(self) -> None:
        """Wait for the agent, and set the clock of a guest that has stood still. Raises AgentSilent."""
        if Step.WAIT_FOR_AGENT in self._steps and self._look() in ACTIVE_STATES:
            self._wait_for_agent()
            self._set_clock()

    def _set_clock(self) -> None:
        if self._stood_still and Step.WAIT_FOR_AGENT in self._steps:
            self.report.clock = _save.set_clock(self._agent, self._clock, self._clock_offset)

    def prove(self) -> None:
        """Raise ProofFailed unless the guest runs on another process, and has not booted."""
        state = self._look()
        if state not in ACTIVE_STATES:
            raise DomainNotRunning(
                f"domain {self._domain.name!r} was migrated and is {state.value.replace('_', ' ')}",
                remedy="Look at its log in /var/log/libvirt/qemu there, then start it there with 'virsh start "
                f"{quoted(self._domain.name)}'.",
            )
        before, after = self.report.boot_id_before, self.report.boot_id_after
        if before and after and before != after:
            raise ProofFailed(
                f"domain {self._domain.name!r} was migrated, and its guest has booted meanwhile",
                remedy="See that what the guest does came up again, and in libvirt's log who has restarted it.",
            )
        if self._there:
            self._prove_that_it_left()
        else:
            self._prove_another_process()

    def _wait_for_agent(self) -> None:
        problem = "it has not been asked"
        for _tick in ticks(Deadline(self._clock, self._options.agent_timeout), self._clock):
            try:
                self._agent.ping(PING_SECONDS)
                if self.report.boot_id_before is not None:
                    self.report.boot_id_after = boot_id_if_told(self._agent)
            except FleetError as error:
                if not error.transient:
                    raise
                problem = error.message
            else:
                return
        raise AgentSilent(
            f"domain {self._domain.name!r} was migrated, and its guest agent has not answered within "
            f"{self._options.agent_timeout:g} s since then: {problem}",
            remedy="Look at its console: it may hang, or have lost qemu-guest-agent.",
        )

    def _prove_that_it_left(self) -> None:
        if _known(self._hypervisor, self._domain.uuid) is not None:
            raise ProofFailed(
                f"domain {self._domain.name!r} runs at {self._uri} and is still defined here",
                remedy=f"Undefine it here, which leaves its disks alone: virsh undefine {quoted(self._domain.name)}",
            )

    def _prove_another_process(self) -> None:
        found = observe(self._hypervisor, self._domain)
        self.report.process_after = found.process
        before = self.report.process_before
        if found.process is None or (before is not None and before.is_same(found.process)):
            raise ProofFailed(
                f"domain {self._domain.name!r} came back from {self._uri}, and no other QEMU process is seen here",
                remedy="See that the task runs as root on the hypervisor; the guest itself may be well.",
            )
        if found.drift.state is DriftState.DRIFTED:
            reasons = "; ".join(f"{reason.path} {reason.detail}" for reason in found.drift.reasons)
            raise ProofFailed(
                f"domain {self._domain.name!r} came back from {self._uri} to a QEMU that is outdated again: {reasons}",
                remedy="QEMU was upgraded meanwhile: restart the guest once more.",
            )

    def tell_where(self, error: FleetError) -> None:
        """Have an error say what was seen, and where the guest is if it is not here."""
        error.evidence["transitions"] = [transition.facts() for transition in self.report.transitions]
        error.evidence["forced"] = False
        if self._there:
            error.evidence["moved_to"] = self._uri
            error.evidence["left_behind"] = list(self._copied)
            if not isinstance(error, (MigratedAway, ProofFailed)):
                error.remedy += f" The guest is at {self._uri}."
        if self.report.warnings:
            error.remedy += f" And: {'; '.join(self.report.warnings)}."
