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
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from enum import Enum
from typing import Any, TypeVar

from ansible_collections.kvm.fleet.plugins.module_utils._clock import parse_timestamp
from ansible_collections.kvm.fleet.plugins.module_utils._errors import GuestLeased, InvalidRequest, LeaseLost
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


STARTED = "started"
"""In a restart's result, while it is open: that the guest was started again."""


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
        whatever was told: it may still be at work in the guest, and the snapshot before it is the one to go back to.
        """
        if self.ended is None:
            return bool(self.steps)
        if self.upgrade_is_left:
            return True
        return self.ended.outcome == "failed" and (self.shut_down_by_us or self.restart_is_owed)

    @property
    def upgrade_is_left(self) -> bool:
        """Whether the latest upgrade has not come to its end."""
        step = self.last(StepName.UPGRADE)
        return step is not None and step.status is not StepStatus.DONE

    @property
    def restart_is_open(self) -> bool:
        """Whether a restart was cut off: the guest is on its way down, off, or on its way up."""
        step = self.last(StepName.RESTART)
        return step is not None and step.status is StepStatus.OPEN

    @property
    def shut_down_by_us(self) -> bool:
        """Whether the guest, if it is off, is off because a run has shut it down."""
        step = self.last(StepName.RESTART)
        return step is not None and step.status is not StepStatus.DONE and not step.result.get(STARTED)

    @property
    def restart_is_owed(self) -> bool:
        """Whether packages were upgraded and the guest was not restarted since."""
        owed = False
        for step in self.steps:
            if step.status is StepStatus.DONE and step.name is StepName.UPGRADE:
                owed = owed or bool(step.result["packages"])
            elif step.status is StepStatus.DONE and step.name is StepName.RESTART:
                owed = False
        return owed

    def last(self, name: StepName) -> Step | None:
        """The latest step of this name."""
        return next((step for step in reversed(self.steps) if step.name is name), None)

    def upgrades_since(self, step: Step) -> tuple[Step, ...]:
        """The upgrades that were begun after this step."""
        later = self.steps[self.steps.index(step) + 1 :]
        return tuple(other for other in later if other.name is StepName.UPGRADE)


@dataclass(frozen=True)
class Claim:
    """Who wants to work on which guest. ``take_over`` names runs whose lease is to be taken although it is young."""

    domain: str
    uuid: str
    run: str
    owner: str
    ttl: float
    take_over: tuple[str, ...] = ()

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

    To be called while no other module works on the guest. What an earlier run has left unfinished stays, to be gone on
    with; what has come to an end makes place for a new record, whose ``baseline`` is looked at now.
    """
    lease = Lease(claim.run, claim.owner, now.at, now.uptime, claim.ttl, now.boot_id)
    held = record.lease if record else None
    if held and held.run == claim.run:
        lease = replace(lease, taken=held.taken)
    elif held and held.is_young(now) and held.run not in claim.take_over:
        raise leased(claim.domain, held, now)
    if record is None or not record.unfinished:
        return Record(claim.domain, claim.uuid, lease, (), baseline(), (), None)
    others = (held,) if held and held.run != claim.run else ()
    return replace(record, domain=claim.domain, lease=lease, earlier=(*record.earlier, *others), ended=None)


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


def leased(domain: str, lease: Lease | None, now: Moment, *, at_work: bool = False) -> GuestLeased:
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
        + f"; who knows for sure can take it over before (upgrade_take_over={lease.run}).",
        evidence=evidence,
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
    """The record of a guest that was brought back to before all steps."""
    return replace(record, steps=())


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
    return json.dumps({"schema": SCHEMA, **facts(record)}, indent=1) + "\n"


def facts(record: Record) -> dict[str, Any]:
    """The record as plain values."""
    return asdict(record)


def parse(text: str) -> Record:
    """The record in a text. Raises Malformed for whatever ``serialise`` does not write."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise Malformed(f"it is not JSON: {error}") from error
    schema = found.get("schema") if isinstance(found, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise Malformed(f"it was written by a newer version of this collection (schema {schema}, known is {SCHEMA})")
    fields = _fields(found, "schema", *Record.__dataclass_fields__)
    if _is(int, fields["schema"]) != SCHEMA:
        raise Malformed(f"its schema is {schema!r}")
    return Record(
        domain=_is(str, fields["domain"]),
        uuid=_is(str, fields["uuid"]),
        lease=None if fields["lease"] is None else _lease(fields["lease"]),
        earlier=tuple(_lease(lease) for lease in _is(list, fields["earlier"])),
        baseline=_is(dict, fields["baseline"]),
        steps=tuple(_step(step) for step in _is(list, fields["steps"])),
        ended=None if fields["ended"] is None else _ending(fields["ended"]),
    )


def _fields(found: object, *names: str) -> dict[str, Any]:
    fields: dict[str, Any] = _is(dict, found)
    if set(fields) != set(names):
        raise Malformed(f"its fields are {sorted(fields)}")
    return fields


def _is(kind: type[_T], value: object) -> _T:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise Malformed(f"{value!r} is no {kind.__name__}")
    return value


def _number(value: object) -> float:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else _is(float, value)


def _lease(found: object) -> Lease:
    fields = _fields(found, *Lease.__dataclass_fields__)
    texts = {name: _is(str, fields[name]) for name in ("run", "owner", "taken", "boot_id")}
    return Lease(**texts, heartbeat=_number(fields["heartbeat"]), ttl=_number(fields["ttl"]))


def _ending(found: object) -> Ending:
    fields = _fields(found, *Ending.__dataclass_fields__)
    texts = {name: _is(str, fields[name]) for name in ("run", "at", "outcome")}
    return Ending(**texts, error=None if fields["error"] is None else _is(dict, fields["error"]))


def _step(found: object) -> Step:
    fields = _fields(found, *Step.__dataclass_fields__)
    try:
        name, status = StepName(fields["name"]), StepStatus(fields["status"])
    except ValueError as error:
        raise Malformed(str(error)) from error
    return Step(
        name=name,
        status=status,
        run=_is(str, fields["run"]),
        begun=_is(str, fields["begun"]),
        ended=None if fields["ended"] is None else _is(str, fields["ended"]),
        intent=_is(dict, fields["intent"]),
        result=_is(dict, fields["result"]),
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
    }
