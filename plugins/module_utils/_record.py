# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is known of the work on a guest, whoever does it: who may work on it now, and how far the work has come.

A record is kept on the hypervisor (see _store), since a controller may be a container that is gone in a minute. Each
step is written down before it changes anything and again when it is done. What a run leaves unfinished, the next one
finds there and goes on from.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from enum import Enum
from typing import Any, TypeVar

from ansible_collections.kvm.fleet.plugins.module_utils._clock import parse_timestamp
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    DomainUnsafe,
    GuestLeased,
    InvalidRequest,
    LeaseLost,
    RollbackUnfinished,
)
from ansible_collections.kvm.fleet.plugins.module_utils._packages import PackageChange, compose

SCHEMA = 1

Facts = Mapping[str, Any]
"""What JSON can hold."""

_T = TypeVar("_T")


class StepName(str, Enum):
    """What a run changes of a guest."""

    SNAPSHOT = "snapshot"
    UPGRADE = "upgrade"
    RESTART = "restart"
    ROLLBACK = "rollback"


REVERTED = "reverted"
"""In a rollback's result, while it is open: that the guest is back at the snapshot."""

WAY_BACK = "way_back"
"""In a baseline: the snapshot that the work before this one can be rolled back to, see ``way_back``."""

FREEZES = "freezes"
"""In a snapshot's result, until it is made: that the guest's file systems are frozen for it, and nobody has seen them
thawed."""

FILES = "files"
"""In a snapshot's result, until it is made: the files that it was to consist of."""

STARTED = "started"
"""In a restart's result, while it is open: that the guest was started again."""

STRATEGY = "strategy"
"""In a restart's intent: by what the guest comes to a new QEMU."""

GENTLE = ("save_restore", "migrate")
"""The strategies after which a guest still runs what it ran before: no restart as far as its packages go."""

DESTINATION = "destination"
"""In a restart's intent: the URI of the hypervisor that the guest is migrated to."""

MOVED = "moved"
"""In a restart's result: whether the guest runs elsewhere: it has left and has not come back, or is in two places."""


class StepStatus(str, Enum):
    OPEN = "open"
    """It may have changed something, and nobody has told how it ended."""
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class Moment:
    """A point in time on one hypervisor. ``uptime`` never jumps, and means something within one boot only."""

    at: str
    uptime: float
    boot_id: str


@dataclass(frozen=True)
class Lease:
    """Who may work on a guest.

    ``heartbeat`` is when a module of the run last said that it is there, as the uptime of the hypervisor's boot
    ``boot_id``: neither a clock that is set nor a reboot makes a lease younger than it is.
    """

    run: str
    owner: str
    taken: str
    heartbeat: float
    ttl: float
    boot_id: str

    def silence(self, now: Moment) -> float | None:
        """Seconds since the last heartbeat, or None where the hypervisor has been rebooted since."""
        return max(0.0, now.uptime - self.heartbeat) if self.boot_id == now.boot_id else None

    def is_young(self, now: Moment) -> bool:
        """Whether the run may be alive although none of its modules is at work at this moment."""
        silence = self.silence(now)
        return silence is not None and silence < self.ttl


@dataclass(frozen=True)
class Step:
    """One change of a guest: what was intended, by which run, and what came of it."""

    name: StepName
    status: StepStatus
    run: str
    begun: str
    ended: str | None
    intent: Facts
    result: Facts


@dataclass(frozen=True)
class Ending:
    """What a run has told of a guest in the end. ``error`` is why it failed or was refused."""

    run: str
    at: str
    outcome: str
    error: Facts | None


@dataclass(frozen=True)
class Record:
    """The work on one guest, from the first change to its end, by one run or by several that took over.

    ``baseline`` is what domain_info said of the domain before the first change. ``earlier`` are the leases of the runs
    that were gone on from, oldest first. ``ended`` is None until a run has brought the work to an end and told of it.
    """

    domain: str
    uuid: str
    lease: Lease | None
    earlier: tuple[Lease, ...]
    baseline: Facts
    steps: tuple[Step, ...]
    ended: Ending | None

    @property
    def unfinished(self) -> bool:
        """Whether the next run has to go on with this work.

        Work that failed was told of, and the next run begins anew. But a guest that was asked to shut down and was
        not started again may be off for this reason alone, and one whose packages were upgraded would not be restarted
        for that by a run that finds nothing left to upgrade. An upgrade that nobody has brought to its end is left
        whatever was told: it may still be at work in the guest, and the snapshot before it is the one to go back to. So
        are a rollback that was cut off, and a migration, as long as nobody knows where the guest is. Files of a
        snapshot that was not made may be what the guest writes to, and one that is frozen can do nothing: both are
        looked at by the next run.
        """
        if self.ended is None:
            return bool(self.steps)
        if self.upgrade_is_left or self.rollback_is_open or self.migration_is_open:
            return True
        if self.files_begun or self.may_be_frozen:
            return True
        return self.ended.outcome in MAY_BE_DOWN and (self.shut_down_by_us or self.restart_is_owed)

    @property
    def upgrade_is_left(self) -> bool:
        """Whether the latest upgrade has not come to its end."""
        step = self.last(StepName.UPGRADE)
        return step is not None and step.status is not StepStatus.DONE

    @property
    def rollback_is_open(self) -> bool:
        """Whether a rollback was cut off, or libvirt failed at it.

        Nobody knows whether the guest is back at the snapshot, and it may be off.
        """
        step = self.last(StepName.ROLLBACK)
        return step is not None and step.status is StepStatus.OPEN

    @property
    def files_begun(self) -> tuple[str, ...]:
        """The files of a snapshot that was not made, as far as anybody has told."""
        step = self.last(StepName.SNAPSHOT)
        return () if step is None or step.status is StepStatus.DONE else tuple(step.result.get(FILES, ()))

    @property
    def may_be_frozen(self) -> bool:
        """Whether the guest's file systems were frozen for a snapshot, and nobody has seen them thawed."""
        step = self.last(StepName.SNAPSHOT)
        return step is not None and step.status is not StepStatus.DONE and step.result.get(FREEZES) is True

    @property
    def restart_is_open(self) -> bool:
        """Whether a restart was cut off: the guest is on its way down, off, or on its way up."""
        step = self.last(StepName.RESTART)
        return step is not None and step.status is StepStatus.OPEN

    @property
    def migration_is_open(self) -> bool:
        """Whether a migration was cut off: the guest is here, or where it was going."""
        step = self.last(StepName.RESTART)
        return step is not None and step.status is StepStatus.OPEN and DESTINATION in step.intent

    @property
    def shut_down_by_us(self) -> bool:
        """Whether the guest, if it is off, is off because a run has shut it down.

        A migration shuts nothing down. What is off after one may run elsewhere, and must not be started here.
        """
        step = self.last(StepName.RESTART)
        if step is None or step.status is StepStatus.DONE:
            return False
        return not step.result.get(STARTED) and DESTINATION not in step.intent

    @property
    def restart_is_owed(self) -> bool:
        """Whether packages were upgraded and the guest was not restarted since."""
        owed = False
        for step in self.steps:
            if step.status is StepStatus.DONE and step.name is StepName.UPGRADE:
                owed = owed or bool(step.result["packages"])
            elif step.status is StepStatus.DONE and step.name is StepName.RESTART:
                owed = owed and step.intent.get(STRATEGY) in GENTLE
        return owed

    @property
    def went_to(self) -> str | None:
        """The URI of the hypervisor that the guest was migrated to, or by way of which it was when that was cut off."""
        step = self.last(StepName.RESTART)
        if step is None or not (step.status is StepStatus.OPEN or step.result.get(MOVED)):
            return None
        return None if DESTINATION not in step.intent else str(step.intent[DESTINATION])

    def last(self, name: StepName) -> Step | None:
        """The latest step of this name."""
        return next((step for step in reversed(self.steps) if step.name is name), None)

    def upgrades_since(self, step: Step) -> tuple[Step, ...]:
        """The upgrades that were begun after this step."""
        later = self.steps[self.steps.index(step) + 1 :]
        return tuple(other for other in later if other.name is StepName.UPGRADE)


OUTCOMES = (
    *("unchanged", "changed", "upgraded", "restarted", "repaired", "rolled_back"),
    *("rollback_failed", "failed", "refused"),
)
"""What may become of a guest that a run has worked on."""

HEALTHY = frozenset({"unchanged", "changed", "upgraded", "restarted", "repaired", "rolled_back"})
"""Those of them that a guest has proved to be well by."""

MAY_BE_DOWN = frozenset({"failed", "rollback_failed"})
"""Those of them after which nobody knows how the guest is."""

TAKE_OVER = "take_over of kvm.fleet.guest_lease"


@dataclass(frozen=True)
class Claim:
    """Who wants to work on which guest. ``take_over`` names runs whose lease is to be taken although it is young.

    ``take_over_setting`` is where whoever wants it names them. ``rolls_back`` tells whether it is to be rolled back.
    """

    domain: str
    uuid: str
    run: str
    owner: str
    ttl: float
    take_over: tuple[str, ...] = ()
    take_over_setting: str = TAKE_OVER
    rolls_back: bool = False

    def check(self) -> None:
        """Raise InvalidRequest for what cannot be meant."""
        for what, text in (("run", self.run), ("owner", self.owner)):
            if not text or not text.isascii() or not text.isprintable():
                raise InvalidRequest(
                    f"{text!r} cannot be the name of a {what}", remedy="Use letters, digits and dashes of ASCII."
                )
        if self.ttl <= 0:
            raise InvalidRequest(f"a lease of {self.ttl:g} s cannot be meant", remedy="Give a ttl above zero.")


# --- the lease -----------------------------------------------------------------------------------


def take(record: Record | None, claim: Claim, baseline: Callable[[], Facts], now: Moment) -> Record:
    """The record under the lease of the claim. Raises GuestLeased while another run's lease is young.

    Raises RollbackUnfinished where a rollback was cut off and the claim is for something else.

    To be called while no other module works on the guest. What an earlier run has left unfinished stays, to be gone on
    with; what has come to an end makes place for a new record, whose ``baseline`` is looked at now.
    """
    lease = Lease(claim.run, claim.owner, now.at, now.uptime, claim.ttl, now.boot_id)
    held = record.lease if record else None
    if held and held.run == claim.run:
        lease = replace(lease, taken=held.taken)
    elif held and held.is_young(now) and held.run not in claim.take_over:
        raise leased(claim.domain, held, now, take_over_setting=claim.take_over_setting)
    elif record and record.rollback_is_open and not claim.rolls_back:
        raise _rollback_unfinished(claim.domain, record)
    if record is None or not record.unfinished:
        earlier = way_back(record) if record else None
        found = {**baseline(), WAY_BACK: earlier} if earlier else baseline()
        return Record(claim.domain, claim.uuid, lease, (), found, (), None)
    others = (held,) if held and held.run != claim.run else ()
    return replace(record, domain=claim.domain, lease=lease, earlier=(*record.earlier, *others), ended=None)


def _rollback_unfinished(domain: str, record: Record) -> RollbackUnfinished:
    back = way_back(record) or {}
    return RollbackUnfinished(
        f"a rollback of guest {domain!r} to snapshot {back['snapshot']!r} has not come to its end",
        remedy="Run kvm.fleet.rollback on it by its name, confirmed (rollback_confirm: true): it goes on from there.",
        evidence={"snapshot": back["snapshot"]},
    )


def brought(record: Record, other: Record) -> Record:
    """The record of a guest that has come from another hypervisor, by what was on record there.

    Work that is on record here, and not only the lease of the run, goes before it.
    """
    if record.steps:
        return record
    return replace(
        other, domain=record.domain, lease=record.lease, earlier=(*other.earlier, *record.earlier), ended=None
    )


def renew(record: Record | None, domain: str, run: str, now: Moment) -> Record:
    """The record with a fresh heartbeat. Raises LeaseLost unless the run has the lease."""
    held = record.lease if record else None
    if record is None or held is None or held.run != run:
        holder = f"run {held.run} of {held.owner} has it" if held else "nobody has one"
        raise LeaseLost(
            f"run {run} has no lease of guest {domain!r} any more: {holder}",
            remedy="Another run may have taken it over, taking this one for dead. See with kvm.fleet.status what works "
            "on the guest now, and run again.",
            evidence={"run": run, "holder": held.run if held else None},
        )
    return replace(record, lease=replace(held, heartbeat=now.uptime, boot_id=now.boot_id))


def release(record: Record, lease: Lease, outcome: str, error: Facts | None, now: Moment) -> Record:
    """The record of work that has come to its end, by the run that has this lease.

    What it has taken over is still to be gone on with, from the run before it, where it was refused and has done
    nothing, or where it came for something else than an upgrade and has left the restart after one to the next run.
    """
    upgraded = any(step.name is StepName.UPGRADE and step.run == lease.run for step in record.steps)
    left = record.restart_is_owed and not upgraded and outcome in ("unchanged", "changed")
    if left or (outcome == "refused" and record.unfinished):
        return replace(record, lease=None)
    released = replace(record, lease=None, ended=Ending(lease.run, now.at, outcome, error))
    return replace(released, earlier=(*record.earlier, lease)) if released.unfinished else released


def leased(
    domain: str, lease: Lease | None, now: Moment, *, at_work: bool = False, take_over_setting: str = TAKE_OVER
) -> GuestLeased:
    """The refusal of a guest that another run works on."""
    evidence: dict[str, object] = {"at_work": at_work}
    busy = "a task of this collection works on it at this moment"
    if lease is None:
        return GuestLeased(
            f"guest {domain!r} is busy: {busy}", remedy="Run again when it has ended.", evidence=evidence
        )
    silence = lease.silence(now)
    heard = busy if at_work or silence is None else f"it was last heard of {silence:.0f} s ago"
    left = 0 if silence is None else max(0.0, lease.ttl - silence)
    evidence.update(run=lease.run, owner=lease.owner, taken=lease.taken, silence=silence, ttl=lease.ttl)
    return GuestLeased(
        f"guest {domain!r} is under the lease of run {lease.run}, which {lease.owner} took at {lease.taken}; {heard}",
        remedy="Wait for that run to end. If it is dead, its lease ends "
        + (f"{left:.0f} s from now" if left else "with its task")
        + f"; who knows for sure can have it taken over before ({take_over_setting}: {lease.run}).",
        evidence=evidence,
    )


def may_run_elsewhere(domain: str, destination: str) -> DomainUnsafe:
    """The refusal of a guest that is off here, and was migrated to this destination, or on its way there.

    What is off here then has the disks of a guest that may run.
    """
    return DomainUnsafe(
        f"domain {domain!r} is off, and a run has migrated it to {destination}, or was cut off while it did: it may "
        "run there on the same disks",
        remedy=f"Look for it there: virsh -c {shlex.quote(destination)} list --all. If it runs there, undefine it "
        "here, which leaves its disks alone. If nothing there has it, start it here first: virsh start -- "
        f"{shlex.quote(domain)}",
        evidence={"moved_to": destination},
    )


# --- the steps -----------------------------------------------------------------------------------


def begin(record: Record, name: StepName, run: str, intent: Facts, now: Moment) -> Record:
    """The record with a step that is about to change the guest."""
    return replace(record, steps=(*record.steps, Step(name, StepStatus.OPEN, run, now.at, None, intent, {})))


def note(record: Record, name: StepName, facts: Facts) -> Record:
    """The record with something that is known of the latest step of this name before it has ended."""
    return _changed(record, name, lambda step: replace(step, result={**step.result, **facts}))


def end(record: Record, name: StepName, status: StepStatus, result: Facts, now: Moment) -> Record:
    """The record with what came of the latest step of this name, be it an earlier run's."""
    return _changed(record, name, lambda step: replace(step, status=status, ended=now.at, result=result))


def _changed(record: Record, name: StepName, change: Callable[[Step], Step]) -> Record:
    step = record.last(name)
    if step is None:
        raise ValueError(f"no {name.value} was begun")
    return replace(record, steps=tuple(change(other) if other is step else other for other in record.steps))


def keep(record: Record, facts: Facts) -> Record:
    """The record with more of the guest as it was before the first change; what is kept of that already stays."""
    return record if record.steps else replace(record, baseline={**facts, **record.baseline})


def forget(record: Record) -> Record:
    """The record of a guest that was brought back to before all steps. The way back there stays known."""
    return replace(record, steps=(), baseline={**record.baseline, WAY_BACK: way_back(record)})


def reverted(record: Record) -> Record:
    """The record in the middle of a rollback, once the guest is back at the snapshot: what came before is undone."""
    undone = tuple(step for step in record.steps if step is record.last(StepName.ROLLBACK))
    return note(replace(forget(record), steps=undone), StepName.ROLLBACK, {REVERTED: True})


def way_back(record: Record) -> Facts | None:
    """What a rollback goes back to, if no other is named: the ``snapshot``, and the ``failed_units`` before it.

    The latter are None where nobody has asked. That of a rollback that was begun; else what the work on record has
    made; else what the work before it had.
    """
    rollback, snapshot = record.last(StepName.ROLLBACK), record.last(StepName.SNAPSHOT)
    if rollback and rollback.status is StepStatus.OPEN:
        return {"snapshot": rollback.intent["snapshot"], "failed_units": rollback.intent["failed_units"]}
    if snapshot and snapshot.status is StepStatus.DONE:
        return {"snapshot": snapshot.intent["name"], "failed_units": record.baseline.get("failed_units")}
    earlier: Facts | None = record.baseline.get(WAY_BACK)
    return earlier


KEEP_SECONDS = 24 * 3600
"""For how long a snapshot that nothing was changed after is as good as a new one."""


def snapshot_to_keep(record: Record, there: Collection[str], now: datetime) -> str | None:
    """The name of the snapshot on record that this work can be rolled back to, or that is still to be made.

    Where nothing was changed after it, what the guest has written since would be lost with it for no reason: once it is
    old, a new one is better. Where something was, and it is no more ``there``, its name has had its time: a snapshot
    that were made under it now would not be what its name says.
    """
    step = record.last(StepName.SNAPSHOT)
    if step is None:
        return None
    name = str(step.intent["name"])
    if step is record.steps[-1]:
        is_old = (now - parse_timestamp(step.begun)).total_seconds() > KEEP_SECONDS
        return None if is_old else name
    return name if name in there else None


# --- as text -------------------------------------------------------------------------------------


class Malformed(ValueError):
    """A text is no record; the message says why."""


def serialise(record: Record) -> str:
    """The record as JSON for ``parse``."""
    return dump(facts(record))


def facts(record: Record) -> dict[str, Any]:
    """The record as plain values."""
    return asdict(record)


def parse(text: str) -> Record:
    """The record in a text. Raises Malformed for whatever ``serialise`` does not write."""
    fields = load(text, *Record.__dataclass_fields__)
    return Record(
        domain=typed(str, fields["domain"]),
        uuid=typed(str, fields["uuid"]),
        lease=None if fields["lease"] is None else lease_from(fields["lease"]),
        earlier=tuple(lease_from(lease) for lease in typed(list, fields["earlier"])),
        baseline=typed(dict, fields["baseline"]),
        steps=tuple(_step(step) for step in typed(list, fields["steps"])),
        ended=None if fields["ended"] is None else _ending(fields["ended"]),
    )


def load(text: str, *names: str) -> dict[str, Any]:
    """The fields of a JSON text of the schema that is known. Raises Malformed."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise Malformed(f"it is not JSON: {error}") from error
    schema = found.get("schema") if isinstance(found, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise Malformed(f"it was written by a newer version of this collection (schema {schema}, known is {SCHEMA})")
    fields = fields_of(found, "schema", *names)
    if typed(int, fields["schema"]) != SCHEMA:
        raise Malformed(f"its schema is {schema!r}")
    return fields


def dump(facts: Facts) -> str:
    """A JSON text for ``load``."""
    return json.dumps({"schema": SCHEMA, **facts}, indent=1) + "\n"


def fields_of(found: object, *names: str) -> dict[str, Any]:
    """The fields of a JSON object that has to have these. Raises Malformed."""
    fields: dict[str, Any] = typed(dict, found)
    if set(fields) != set(names):
        raise Malformed(f"its fields are {sorted(fields)}")
    return fields


def typed(kind: type[_T], value: object) -> _T:
    """The value, which has to be of this kind. Raises Malformed."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise Malformed(f"{value!r} is no {kind.__name__}")
    return value


def _number(value: object) -> float:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else typed(float, value)


def lease_from(found: object) -> Lease:
    """A lease in JSON. Raises Malformed."""
    fields = fields_of(found, *Lease.__dataclass_fields__)
    texts = {name: typed(str, fields[name]) for name in ("run", "owner", "taken", "boot_id")}
    return Lease(**texts, heartbeat=_number(fields["heartbeat"]), ttl=_number(fields["ttl"]))


def _ending(found: object) -> Ending:
    fields = fields_of(found, *Ending.__dataclass_fields__)
    texts = {name: typed(str, fields[name]) for name in ("run", "at", "outcome")}
    return Ending(**texts, error=None if fields["error"] is None else typed(dict, fields["error"]))


def _step(found: object) -> Step:
    fields = fields_of(found, *Step.__dataclass_fields__)
    try:
        name, status = StepName(fields["name"]), StepStatus(fields["status"])
    except ValueError as error:
        raise Malformed(str(error)) from error
    return Step(
        name=name,
        status=status,
        run=typed(str, fields["run"]),
        begun=typed(str, fields["begun"]),
        ended=None if fields["ended"] is None else typed(str, fields["ended"]),
        intent=typed(dict, fields["intent"]),
        result=typed(dict, fields["result"]),
    )


# --- what the next run is told -------------------------------------------------------------------


def packages(record: Record) -> tuple[PackageChange, ...]:
    """What the upgrades on record have changed together, of those that have told it."""
    found: tuple[PackageChange, ...] = ()
    for step in record.steps:
        if step.name is StepName.UPGRADE and step.status is StepStatus.DONE:
            found = compose(found, (PackageChange(**change) for change in step.result["packages"]))
    return found


def config_files(record: Record) -> list[str]:
    """The configuration files that those upgrades have left for a person to compare, each once."""
    upgrades = [step for step in record.steps if step.name is StepName.UPGRADE and step.status is StepStatus.DONE]
    return list(dict.fromkeys(path for step in upgrades for path in step.result["config_files"]))


def resumed(record: Record) -> dict[str, Any] | None:
    """What the run that has the lease goes on with, as a module returns it: None where it has begun by itself."""
    if not record.lease or not record.earlier:
        return None
    run, before = record.lease.run, record.earlier[-1]
    theirs = [step for step in record.steps if step.run != run or before.run == run]
    if not theirs:
        return None
    last = theirs[-1]
    snapshot, restart = record.last(StepName.SNAPSHOT), record.last(StepName.RESTART)
    return {
        "run": before.run,
        "owner": before.owner,
        "cut_off": f"{'after' if last.status is StepStatus.DONE else 'during'} the {last.name.value}",
        "steps": [{"name": step.name.value, "status": step.status.value, "run": step.run} for step in theirs],
        "packages": [vars(change) for change in packages(record)],
        "config_files": config_files(record),
        "snapshot": snapshot.intent["name"] if snapshot and snapshot.status is StepStatus.DONE else None,
        "restarted": restart is not None and restart.status is StepStatus.DONE,
        "restarting": record.restart_is_open,
        "forced": restart is not None and restart.result.get("forced") is True,
        "strategy": restart.intent.get(STRATEGY) if restart else None,
    }
