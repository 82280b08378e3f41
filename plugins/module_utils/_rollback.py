# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Brings a guest back to one of its snapshots, and up, whichever controllers die on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone

from ansible_collections.kvm.fleet.plugins.module_utils import _power_steps, _save, _snapshot
from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._clock import timestamp
from ansible_collections.kvm.fleet.plugins.module_utils._domain import (
    ACTIVE_STATES,
    Domain,
    Hypervisor,
    SnapshotRecord,
    quoted,
    require_running,
)
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    AgentCommandBlocked,
    FleetError,
    InvalidRequest,
    ProofFailed,
    SavedStateRefused,
)
from ansible_collections.kvm.fleet.plugins.module_utils._exec import output_of, shell_script
from ansible_collections.kvm.fleet.plugins.module_utils._lease import Recorder
from ansible_collections.kvm.fleet.plugins.module_utils._observe import Observation
from ansible_collections.kvm.fleet.plugins.module_utils._power import PowerOptions, PowerReport, Step
from ansible_collections.kvm.fleet.plugins.module_utils._record import REVERTED, StepName, StepStatus
from ansible_collections.kvm.fleet.plugins.module_utils._record import Step as RecordedStep

PATIENCE = 60
"""Seconds for which a guest that is busy after its boot may miss questions."""

# Waits until the guest has finished booting, then names the units that have failed. Without systemd there are none.
_FAILED_UNITS = """\
command -v systemctl >/dev/null || exit 0
systemctl is-system-running --wait >/dev/null 2>&1
units=$(systemctl list-units --failed --no-legend --plain) || exit
printf '%s\\n' "$units" | cut -d ' ' -f 1 | sed '/^$/d'
"""


@dataclass(frozen=True)
class RollbackOptions:
    """Where to, and how to see that the guest is well there.

    An ``agent_timeout`` of zero, in seconds, does not wait for the agent. ``failed_units`` had failed before the
    snapshot; where that is not known, None, those that have failed are told and not judged.
    """

    snapshot: str
    agent_timeout: float = 300
    failed_units: tuple[str, ...] | None = None

    def check(self) -> None:
        """Raise InvalidRequest for a number that cannot be meant."""
        if self.agent_timeout < 0:
            raise InvalidRequest(
                f"an agent_timeout of {self.agent_timeout:g} s cannot be meant", remedy="Give zero or more."
            )


@dataclass(frozen=True)
class Loss:
    """What a rollback undoes: all that the guest has written ``since``, for ``seconds``.

    ``written`` are the bytes of it that are known, None where none are: those of a QEMU process that was started since.
    """

    since: str
    seconds: int
    written: int | None


@dataclass(frozen=True)
class Rollback:
    """What was done, or would be. ``reverted`` is False where an earlier run had done that already.

    ``failed_units`` are None where the guest was not asked, ``clock_set`` where its clock did not have to be set.
    """

    snapshot: SnapshotRecord
    loss: Loss
    reverted: bool
    started: bool = False
    failed_units: tuple[str, ...] | None = None
    clock_set: bool | None = None


def rollback(
    hypervisor: Hypervisor,
    domain: Domain,
    observed: Observation,
    options: RollbackOptions,
    recorder: Recorder,
    *,
    check: bool,
) -> Rollback:
    """Revert the domain, start it where it is off then, wait for its agent, and see that it is well.

    Of a rollback to this snapshot that is on record and was cut off, only what is left is done. Raises
    SnapshotNotFound, SnapshotNotOurs, SnapshotBlocked and DomainUnsafe before anything is changed, and
    SavedStateRefused for a guest that is back and up, though not by the RAM in its snapshot.
    """
    options.check()
    snapshot = _snapshot.require_own(observed, options.snapshot)
    lost = loss(hypervisor, domain, observed, snapshot)
    begun = _cut_off(recorder, snapshot)
    reverting = begun is None or not begun.result.get(REVERTED)
    if reverting:
        _snapshot.require_safe_revert(hypervisor, domain, observed, snapshot)
    if check:
        return Rollback(snapshot, lost, reverting, started=not snapshot.has_ram)
    # Reverted to a snapshot of a guest that was off, it is off, and nobody wants it so.
    with hypervisor.uninterrupted():
        refusal = revert(hypervisor, domain, snapshot, recorder, options.failed_units) if reverting else None
        with recorder.failing(StepName.ROLLBACK):
            started = domain.state() not in ACTIVE_STATES
            if started:
                _apply(hypervisor, domain, (Step.START,), options)
    with recorder.failing(StepName.ROLLBACK):
        require_running(domain.name, domain.state())
        found: tuple[str, ...] | None = None
        clock_set: bool | None = None
        if options.agent_timeout:
            _apply(hypervisor, domain, (Step.WAIT_FOR_AGENT,), options)
            agent = GuestAgent(domain, hypervisor.clock, PATIENCE)
            # RAM that was stored knows no other time than that of the snapshot.
            clock_set = None if started else _save.set_clock(agent, hypervisor.clock, None).set
            found = _failed_units(agent, options.agent_timeout)
            _require_no_failed_units(domain, snapshot, found, options.failed_units)
        if refusal:
            raise refusal
    recorder.forget(domain.uuid)
    return Rollback(snapshot, lost, reverting, started, found, clock_set)


def revert(
    hypervisor: Hypervisor,
    domain: Domain,
    snapshot: SnapshotRecord,
    recorder: Recorder,
    failed_units: Sequence[str] | None = None,
) -> SavedStateRefused | None:
    """Revert the domain, and note it. What is returned is to be told once the guest, which is off then, was started.

    The step begins where something of the guest is changed, and where that fails it stays open: how far that came,
    nobody knows. The QEMU process is ended first, and the snapshot loaded then.
    """
    begun = _cut_off(recorder, snapshot)

    def begin() -> None:
        if begun is None:
            units = None if failed_units is None else list(failed_units)
            recorder.begin(StepName.ROLLBACK, {"snapshot": snapshot.name, "failed_units": units})

    with telling_how_it_is_left(domain):
        refusal = _snapshot.revert(hypervisor, domain, snapshot, begin)
        recorder.reverted()
    return refusal


@contextmanager
def telling_how_it_is_left(domain: Domain) -> Iterator[None]:
    """Have an error say how the guest is."""
    try:
        yield
    except FleetError as error:
        error.remedy += f" {_how_it_is_left(domain)}"
        raise


def _how_it_is_left(domain: Domain) -> str:
    name = quoted(domain.name)
    again = "Run kvm.fleet.rollback again to bring it to the snapshot."
    try:
        state = domain.state()
    except FleetError:
        return f"Nobody can tell how the guest was left: see 'virsh domstate {name}'. {again}"
    if state in ACTIVE_STATES:
        return f"The guest is {state.value.replace('_', ' ')}. {again}"
    return (
        f"The guest is off, and its disks may or may not be those of the snapshot. {again} 'virsh start {name}' "
        "starts it as it is."
    )


def _cut_off(recorder: Recorder, snapshot: SnapshotRecord) -> RecordedStep | None:
    """A rollback to this snapshot that was begun, and of which nobody has told the end."""
    step = recorder.last(StepName.ROLLBACK)
    is_it = step is not None and step.status is StepStatus.OPEN and step.intent["snapshot"] == snapshot.name
    return step if is_it else None


def loss(hypervisor: Hypervisor, domain: Domain, observed: Observation, snapshot: SnapshotRecord) -> Loss:
    """What a rollback to this snapshot would undo."""
    made = datetime.fromtimestamp(snapshot.created, timezone.utc)
    seconds = max(0, int((hypervisor.clock.now() - made).total_seconds()))
    process = observed.process
    # The kernel tells its own start in whole seconds, and so libvirt the snapshot's: the two times say nothing of a
    # guest that was started in the second after it.
    counted = process is not None and (snapshot.was_off or process.started > made)
    return Loss(timestamp(made), seconds, domain.written_bytes() if counted else None)


def _apply(hypervisor: Hypervisor, domain: Domain, steps: tuple[Step, ...], options: RollbackOptions) -> PowerReport:
    return _power_steps.apply(hypervisor, domain, steps, PowerOptions(agent_timeout=options.agent_timeout))


def _failed_units(agent: GuestAgent, timeout: float) -> tuple[str, ...] | None:
    try:
        return tuple(output_of(agent, shell_script(_FAILED_UNITS, timeout=timeout)).split())
    except AgentCommandBlocked:
        return None


def _require_no_failed_units(
    domain: Domain, snapshot: SnapshotRecord, found: Sequence[str] | None, before: Sequence[str] | None
) -> None:
    """Raise ProofFailed for units that have failed and had not before the snapshot, as far as both are known."""
    if found is None or before is None:
        return
    failed = [unit for unit in found if unit not in before]
    if failed:
        raise ProofFailed(
            f"guest {domain.name!r} is back at snapshot {snapshot.name!r}, and there {', '.join(failed)} failed",
            remedy="Look at it in the guest ('systemctl status'): the snapshot itself may have been made too late.",
            evidence={"failed_units": failed},
        )
