# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Restarts a guest once in a run, whichever controllers of it die on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone

from ansible_collections.kvm.fleet.plugins.module_utils import (
    _destination,
    _external,
    _job,
    _migrate,
    _power,
    _power_steps,
    _save,
)
from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._clock import Deadline, ticks, timestamp
from ansible_collections.kvm.fleet.plugins.module_utils._domain import (
    ACTIVE_STATES,
    Domain,
    DomainState,
    Hypervisor,
)
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    FleetError,
    MigrationFailed,
    MigrationImpossible,
    SaveFailed,
    SaveImpossible,
    UpgradeRunning,
)
from ansible_collections.kvm.fleet.plugins.module_utils._exec import boot_id
from ansible_collections.kvm.fleet.plugins.module_utils._job import JobState
from ansible_collections.kvm.fleet.plugins.module_utils._lease import Recorder
from ansible_collections.kvm.fleet.plugins.module_utils._observe import Observation, observe
from ansible_collections.kvm.fleet.plugins.module_utils._power import (
    Begun,
    PowerOptions,
    PowerReport,
    PowerState,
    Step,
    Strategy,
)
from ansible_collections.kvm.fleet.plugins.module_utils._proc import QemuProcess
from ansible_collections.kvm.fleet.plugins.module_utils._record import (
    DESTINATION,
    GENTLE,
    MOVED,
    STARTED,
    STRATEGY,
    Facts,
    Record,
    StepName,
    StepStatus,
)

ASK_AGAIN_SECONDS = 30
"""For how long an agent that is silent is asked after an upgrade: one that upgrades the agent restarts it."""


def restart(
    hypervisor: Hypervisor,
    domain: Domain,
    observed: Observation,
    options: PowerOptions,
    recorder: Recorder,
    *,
    check: bool,
) -> tuple[tuple[Step, ...], PowerReport]:
    """Restart the guest, or do what is left of a restart that is on record. Returns the steps and what came of them.

    Where the gentlest strategy is wanted and turns out not to be open, the guest is restarted by the next one.
    """
    closed: dict[Strategy, str] = {}
    if recorder.record and recorder.record.migration_is_open:
        _migrate.settled(hypervisor, domain.uuid)
        observed = observe(hypervisor, domain)
    *gentler, last = _ways(options)
    for strategy in gentler:
        chosen = replace(options, strategy=strategy)
        try:
            steps, report = _restart(hypervisor, domain, observed, chosen, recorder, check=check)
        except (SaveImpossible, MigrationImpossible) as error:
            closed[strategy] = error.message
        except (SaveFailed, MigrationFailed) as error:
            # One that is paused is somebody's to look at, and the error says so.
            if domain.state() not in (DomainState.RUNNING, DomainState.BLOCKED):
                raise
            closed[strategy] = error.message
            observed = observe(hypervisor, domain)
        else:
            report.closed = closed
            return steps, report
    steps, report = _restart(hypervisor, domain, observed, replace(options, strategy=last), recorder, check=check)
    report.closed = closed
    return steps, report


def _ways(options: PowerOptions) -> tuple[Strategy, ...]:
    """The strategies that may be taken, the gentlest first."""
    if options.strategy is not Strategy.AUTO:
        return (options.strategy,)
    migrations = (Strategy.MIGRATE,) if options.destinations else ()
    return (*migrations, Strategy.SAVE_RESTORE, Strategy.POWER_CYCLE)


def _plan(observed: Observation, begun: Begun | None, options: PowerOptions) -> tuple[Step, ...]:
    if begun is None:
        return _power.plan(observed, PowerState.RESTARTED, options)
    return _power.plan_again(observed, begun, options)


def _require_saveable(hypervisor: Hypervisor, domain: Domain, observed: Observation) -> None:
    _save.require_saveable(observed, domain.memory_bytes(), _save.save_directory(hypervisor.uri))


def _restart(
    hypervisor: Hypervisor,
    domain: Domain,
    observed: Observation,
    options: PowerOptions,
    recorder: Recorder,
    *,
    check: bool,
) -> tuple[tuple[Step, ...], PowerReport]:
    boot = recorder.now().boot_id
    begun = _begun(hypervisor, domain, observed, recorder)
    steps = _plan(observed, begun, options)
    strategy = _strategy_of(steps, begun)
    try:
        destination = _require_open(hypervisor, domain, observed, steps, options=options, recorder=recorder)
    except FleetError as error:
        # What shuts down has no agent any more. That it had one, the run that has asked it to shut down has seen.
        going_down = begun is not None and _power.is_on_its_way_down(observed, begun)
        if not going_down or isinstance(error, UpgradeRunning):
            raise
        destination = None
    _see_what_is_left(hypervisor, domain, recorder, steps, check=check)
    if begun and begun.ended and not steps:
        return steps, PowerReport(
            forced=begun.forced,
            process_before=begun.process,
            process_after=observed.process,
            boot_id_before=begun.boot_id,
            strategy=begun.strategy,
        )
    if check:
        return steps, PowerReport(
            strategy=strategy, migration=_migrate.foresee(domain, observed, destination, steps, options)
        )

    failed = recorder.last(StepName.RESTART)
    if failed and failed.status is StepStatus.FAILED and _power.DOWN.isdisjoint(steps):
        recorder.begin(StepName.RESTART, {**failed.intent, STRATEGY: strategy.value})
    with recorder.failing(StepName.RESTART):
        if destination:
            report = _migrate.apply(
                hypervisor,
                domain,
                destination,
                steps,
                options,
                intend=_begin_on_record(recorder, boot, strategy, {DESTINATION: destination}),
                moved=lambda: recorder.note(StepName.RESTART, {MOVED: True}),
            )
        else:
            report = _power_steps.apply(
                hypervisor,
                domain,
                steps,
                options,
                begun=begun,
                intend=_begin_on_record(recorder, boot, strategy),
                started=lambda: recorder.note(StepName.RESTART, {STARTED: True}),
            )
    report.strategy = strategy
    _end_on_record(recorder, report, boot)
    return steps, report


def _see_what_is_left(
    hypervisor: Hypervisor, domain: Domain, recorder: Recorder, steps: tuple[Step, ...], *, check: bool
) -> None:
    """See to what a snapshot has left that was not made, before the guest is on another QEMU. Raises DomainUnsafe.

    A layer that libvirt does not know of may have what the guest has written: another QEMU would be without that.
    """
    if not (_power.DOWN | _power.UP).isdisjoint(steps):
        _external.clear_left(hypervisor, domain, recorder, check=check)


def _require_open(
    hypervisor: Hypervisor,
    domain: Domain,
    observed: Observation,
    steps: tuple[Step, ...],
    *,
    options: PowerOptions,
    recorder: Recorder,
) -> str | None:
    """Raise what would make the steps fail, before the first of them. Returns where the guest is to be migrated to."""
    _power_steps.check(hypervisor, domain, steps, options)
    if Step.SHUT_DOWN in steps:
        _require_no_upgrade(hypervisor, domain, recorder)
    if Step.SAVE in steps:
        _require_saveable(hypervisor, domain, observed)
    return _destination.choose(hypervisor, domain, observed, options) if Step.MIGRATE in steps else None


def _begun(hypervisor: Hypervisor, domain: Domain, observed: Observation, recorder: Recorder) -> Begun | None:
    """The restart that is on record, as what it has become.

    A guest that was to be resumed, and that somebody has booted since its failure was told, has been power-cycled.
    """
    begun = restart_on_record(recorder.record, recorder.now().boot_id)
    step = recorder.last(StepName.RESTART)
    told = step is not None and step.status is StepStatus.FAILED
    if begun is None or not told or not _power.may_have_been_booted(observed, begun):
        return begun
    try:
        found = boot_id(GuestAgent(domain, hypervisor.clock))
    except FleetError:
        return begun  # it is waited for, and the proof tells
    return begun if begun.boot_id in (None, found) else replace(begun, strategy=Strategy.POWER_CYCLE)


def _strategy_of(steps: tuple[Step, ...], begun: Begun | None) -> Strategy:
    """That of the steps, or of the restart that they bring to its end."""
    if begun and _power.DOWN.isdisjoint(steps):
        return begun.strategy
    if Step.MIGRATE in steps:
        return Strategy.MIGRATE
    return Strategy.SAVE_RESTORE if Step.SAVE in steps else Strategy.POWER_CYCLE


def _require_no_upgrade(hypervisor: Hypervisor, domain: Domain, recorder: Recorder) -> None:
    """Raise UpgradeRunning while an upgrade that is on record is at work in the guest.

    A guest that shuts down waits for it, but for no longer than systemd lets it, or whoever loses patience outside.
    """
    if recorder.record is None or not recorder.record.upgrade_is_left:
        return
    found = _job.look(GuestAgent(domain, hypervisor.clock))
    if found.state is JobState.RUNNING:
        raise UpgradeRunning(
            f"an upgrade runs in the guest, started by the run {found.run or 'unknown'}: a restart would cut it off",
            remedy="Run kvm.fleet.upgrade: it follows that upgrade to its end, and restarts the guest then.",
            evidence={"run": found.run, "journal": _job.JOURNAL},
        )


def see_no_upgrade(hypervisor: Hypervisor, domain: Domain, recorder: Recorder) -> list[str]:
    """Likewise for a guest that may be shut down though its agent is gone. Raises UpgradeRunning only.

    A guest that is to be rescued may well be silent. Whether an upgrade runs in there, nobody can know then, and that
    is returned as a warning.
    """
    unknown = ""
    for _tick in ticks(Deadline(hypervisor.clock, ASK_AGAIN_SECONDS), hypervisor.clock):
        try:
            _require_no_upgrade(hypervisor, domain, recorder)
        except UpgradeRunning:
            raise
        except FleetError as error:
            unknown = error.message
            if not error.transient:
                break
        else:
            return []
    warning = (
        f"an upgrade of {domain.name!r} is on record that has not come to its end, and whether it still runs could not "
        f"be seen ({unknown}): the shutdown cuts it off if it does"
    )
    return [warning]


def cycle(
    hypervisor: Hypervisor,
    domain: Domain,
    observed: Observation,
    options: PowerOptions,
    recorder: Recorder,
    *,
    meanwhile: Callable[[], None],
    agent_answers: bool = True,
) -> PowerReport:
    """Restart the guest, whatever restarts are on record, and do something while it is off.

    A guest that is off is started: it has to be one that a run has left so. One that runs has to have an agent that
    answers, unless it is known that it does not, and that what is done meanwhile is to change that. Raises
    UpgradeRunning.
    """
    wanted = PowerState.RESTARTED if observed.state in ACTIVE_STATES else PowerState.STARTED
    steps = _power.plan(observed, wanted, options)
    begun: Begun | None = None
    if agent_answers:
        _power_steps.check(hypervisor, domain, steps, options)
    elif Step.SHUT_DOWN in steps:
        # As of a restart that was cut off: nobody may be able to ask this guest for its boot id any more.
        process = observed.process
        begun = Begun(process, process is not None, boot_id=None, ended=False, process_after=None, forced=False)
    warnings = see_no_upgrade(hypervisor, domain, recorder) if Step.SHUT_DOWN in steps else []
    _see_what_is_left(hypervisor, domain, recorder, steps, check=False)
    boot = recorder.now().boot_id

    def started() -> None:
        if recorder.last(StepName.RESTART):
            recorder.note(StepName.RESTART, {STARTED: True})

    with recorder.failing(StepName.RESTART):
        report = _power_steps.apply(
            hypervisor,
            domain,
            steps,
            options,
            begun=begun,
            intend=_begin_on_record(recorder, boot),
            started=started,
            meanwhile=meanwhile,
        )
    if recorder.last(StepName.RESTART):
        _end_on_record(recorder, report, boot)
    report.warnings = warnings
    return report


def see_that_it_can_be_off(
    hypervisor: Hypervisor, domain: Domain, observed: Observation, options: PowerOptions, recorder: Recorder
) -> None:
    """Raise what ``cycle`` would raise before it asks a guest to shut down. Changes nothing."""
    steps = _power.plan(observed, PowerState.RESTARTED, options)
    _power_steps.check(hypervisor, domain, steps, options)
    _require_no_upgrade(hypervisor, domain, recorder)
    _see_what_is_left(hypervisor, domain, recorder, steps, check=True)


def stop(
    hypervisor: Hypervisor,
    domain: Domain,
    observed: Observation,
    options: PowerOptions,
    recorder: Recorder,
    *,
    check: bool,
) -> tuple[tuple[Step, ...], PowerReport]:
    """Shut the guest down. In a run, this is on record as the beginning of a restart.

    ``restart`` then brings it to its end, of this run or of the next one: a run that dies while the guest is off leaves
    it to be started again. Raises UpgradeRunning.
    """
    steps = _power.plan(observed, PowerState.STOPPED, options)
    _power_steps.check(hypervisor, domain, steps, options)
    warnings = see_no_upgrade(hypervisor, domain, recorder) if steps else []
    _see_what_is_left(hypervisor, domain, recorder, steps, check=check)
    if check:
        return steps, PowerReport(warnings=warnings)
    boot = recorder.now().boot_id

    with recorder.failing(StepName.RESTART):
        report = _power_steps.apply(hypervisor, domain, steps, options, intend=_begin_on_record(recorder, boot))
    report.warnings = warnings
    return steps, report


def _begin_on_record(
    recorder: Recorder, boot: str, strategy: Strategy = Strategy.POWER_CYCLE, more: Facts | None = None
) -> Callable[[PowerReport], None]:
    """What notes, before the guest is shut down, saved or migrated, what runs by then, and ``more``.

    ``boot`` is the hypervisor's own.
    """

    def begin(report: PowerReport) -> None:
        running = _facts(report.process_before, report.boot_id_before, boot)
        recorder.begin(StepName.RESTART, {**running, STRATEGY: strategy.value, **(more or {})})

    return begin


def _end_on_record(recorder: Recorder, report: PowerReport, boot: str) -> None:
    result = {**_facts(report.process_after, report.boot_id_after, boot), "forced": report.forced}
    if report.migration:
        result[MOVED] = not report.migration.came_back
    recorder.end(StepName.RESTART, result)


def restart_on_record(record: Record | None, boot: str) -> Begun | None:
    """The latest restart that was begun, in whichever boot of the hypervisor; ``boot`` is the present one.

    A power cycle that came to its end does not count for what was upgraded after it. What a guest goes on running after
    any other is the same before and after an upgrade, so that one counts for as much as it did.
    """
    step = record.last(StepName.RESTART) if record else None
    if record is None or step is None:
        return None
    ended = step.status is StepStatus.DONE
    upgrades = record.upgrades_since(step)
    gentle = step.intent.get(STRATEGY) in GENTLE
    if (
        ended
        and not gentle
        and any(later.status is not StepStatus.DONE or later.result["packages"] for later in upgrades)
    ):
        return None
    return Begun(
        process=_process(step.intent, boot),
        process_known=step.intent["pid"] is not None,
        boot_id=step.intent["boot_id"],
        ended=ended,
        process_after=_process(step.result, boot) if ended else None,
        forced=step.result.get("forced") is True,
        strategy=Strategy(step.intent.get(STRATEGY, Strategy.POWER_CYCLE.value)),
        moved=step.result.get(MOVED) is True,
    )


def _facts(process: QemuProcess | None, boot_id: str | None, boot: str) -> Facts:
    """A QEMU process and its guest's boot, for the record. ``boot`` is the hypervisor's own."""
    return {
        "pid": process.pid if process else None,
        "start_ticks": process.start_ticks if process else None,
        "started": timestamp(process.started) if process else None,
        "boot_id": boot_id,
        "hypervisor_boot_id": boot,
    }


def _process(facts: Facts, boot: str) -> QemuProcess | None:
    """The process in the record, or None where it was not known, or the hypervisor has been rebooted since."""
    if facts["pid"] is None or facts["hypervisor_boot_id"] != boot:
        return None
    started = datetime.strptime(facts["started"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
    return QemuProcess(facts["pid"], facts["start_ticks"], started)
