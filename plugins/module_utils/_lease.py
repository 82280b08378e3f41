# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Lets one module at a time change a guest, of the run that has its lease, and keeps the record of what it does."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from ansible_collections.kvm.fleet.plugins.module_utils import _kept, _record
from ansible_collections.kvm.fleet.plugins.module_utils._domain import ACTIVE_STATES, Domain, Hypervisor
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    DomainNotFound,
    FleetError,
    RecordUnavailable,
    SnapshotBlocked,
)
from ansible_collections.kvm.fleet.plugins.module_utils._record import (
    Claim,
    Facts,
    Lease,
    Moment,
    Record,
    Step,
    StepName,
    StepStatus,
)
from ansible_collections.kvm.fleet.plugins.module_utils._store import (
    LOCK_PATIENCE,
    LockHeld,
    Store,
    moment,
    records_directory,
)

TAKE_OVER_PATIENCE = 60
"""Seconds for the last task of a dead run to end: a worker that outlives its controller repeats one for a while."""


class Named(Protocol):
    """What a record is kept by. The domain itself may have left."""

    @property
    def name(self) -> str: ...

    @property
    def uuid(self) -> str: ...


@dataclass(frozen=True)
class Departed:
    """A domain that is not on this hypervisor any more."""

    name: str
    uuid: str


@dataclass(frozen=True)
class Taken:
    """A lease that was taken, or would be in check mode. ``before`` is what was on record until then."""

    record: Record
    before: Record | None

    @property
    def is_news(self) -> bool:
        """Whether the run did not have it already."""
        ours, held = self.record.lease, self.before.lease if self.before else None
        return held is None or ours is None or held.run != ours.run

    @property
    def taken_over(self) -> Lease | None:
        """The lease of another run, which was found dead."""
        return self.before.lease if self.before and self.is_news else None


def take(
    hypervisor: Hypervisor,
    domain: Domain,
    claim: Claim,
    baseline: Callable[[], Facts],
    more: Facts | None = None,
    *,
    brought: Record | None = None,
    check: bool,
) -> Taken:
    """Take the lease of a guest, or renew it. ``more`` is kept with the baseline. Raises GuestLeased.

    ``brought`` is what was on record of it on the hypervisor that it has come from. What is on record here of a guest
    that had left before is out of date then, with the lease in it.
    """
    claim.check()
    store = Store(records_directory(hypervisor.uri))
    patience = TAKE_OVER_PATIENCE if claim.take_over else LOCK_PATIENCE
    with _alone(hypervisor, domain, store, check=check, patience=patience, take_over_setting=claim.take_over_setting):
        before = store.read(domain.uuid)
        known = None if brought and before and before.went_to else before
        record = _record.keep(_record.take(known, claim, baseline, moment(hypervisor.clock)), more or {})
        record = _record.brought(record, brought) if brought else record
        if not check:
            store.write(record)
    return Taken(record, before)


def release(
    hypervisor: Hypervisor, domain: Named, run: str, outcome: str, error: Facts | None, *, check: bool
) -> tuple[Record | None, bool]:
    """Bring the run's work to its end. Returns the record, and whether there was a lease to release.

    Raises LeaseLost when another run has the lease.
    """
    store = Store(records_directory(hypervisor.uri))
    with _alone(hypervisor, domain, store, check=check):
        record = store.read(domain.uuid)
        if record is None or record.lease is None:
            return record, False
        now = moment(hypervisor.clock)
        _record.renew(record, domain.name, run, now)
        record = _record.release(record, record.lease, outcome, error, now)
        if not check:
            store.write(record)
    return record, True


def look(hypervisor: Hypervisor, domain_uuid: str) -> tuple[Record | None, bool, Moment]:
    """What is on record of a guest, and whether a module works on it at this moment. Changes nothing."""
    store = Store(records_directory(hypervisor.uri))
    return store.read(domain_uuid), store.is_locked(domain_uuid), moment(hypervisor.clock)


def tell_where_it_went(hypervisor: Hypervisor, names: Collection[str], error: DomainNotFound) -> None:
    """Have an error say where a domain is that a run has migrated."""
    for record in Store(records_directory(hypervisor.uri)).named(names):
        if record.went_to:
            error.evidence["moved_to"] = record.went_to
            error.remedy = (
                f"A run has migrated {record.domain!r} to {record.went_to}, or was cut off while it did: look for it "
                "there, and have the inventory name the hypervisor that it is on."
            )


class Recorder:
    """What a module tells of its steps; nothing is kept of them where it works outside of any run."""

    def __init__(self, hypervisor: Hypervisor, store: Store, record: Record | None, run: str, *, check: bool) -> None:
        self.record = record
        self._hypervisor = hypervisor
        self._store = store
        self._run = run
        self._check = check

    def last(self, name: StepName) -> Step | None:
        """The latest step of this name that is on record, be it an earlier run's."""
        return self.record.last(name) if self.record else None

    def runs(self, name: StepName) -> frozenset[str]:
        """The runs that have begun a step of this name."""
        return frozenset(step.run for step in self.record.steps if step.name is name) if self.record else frozenset()

    def begin(self, name: StepName, intent: Facts) -> None:
        """Write down what is about to be done. To be called before anything is changed."""
        if self.record:
            self._write(_record.begin(self.record, name, self._run, intent, self.now()))

    def note(self, name: StepName, facts: Facts) -> None:
        """Write down what is known before a step has ended."""
        if self.record:
            self._write(_record.note(self.record, name, facts))

    def end(self, name: StepName, result: Facts) -> None:
        """Write down what was done."""
        if self.record:
            self._write(_record.end(self.record, name, StepStatus.DONE, result, self.now()))

    def reverted(self) -> None:
        """Write down that the guest is back at the snapshot of the rollback that was begun."""
        if self.record:
            self._write(_record.reverted(self.record))

    def forget(self, uuid: str) -> None:
        """The guest is back to where it was before any step, whichever run that was of."""
        record = self._store.read(uuid)
        if record and record.unfinished and not self._check:
            self._store.write(_record.forget(record))

    @contextmanager
    def failing(self, name: StepName) -> Iterator[None]:
        """Write down an error that ends a step, if that has begun.

        Where even that fails, as on a disk that is full, the step stays open: the first cause is the one to tell.
        """
        try:
            yield
        except FleetError as error:
            step = self.last(name)
            if self.record and step and step.status is StepStatus.OPEN:
                told = {**step.result, "error_code": error.error_code, "msg": error.message}
                with suppress(RecordUnavailable):
                    self._write(_record.end(self.record, name, StepStatus.FAILED, told, self.now()))
            raise

    def renew(self, domain: Domain) -> None:
        """Give the lease a fresh heartbeat. Raises LeaseLost."""
        self._write(_record.renew(self.record, domain.name, self._run, self.now()))

    def now(self) -> Moment:
        """This moment, on the hypervisor."""
        return moment(self._hypervisor.clock)

    def _write(self, record: Record) -> None:
        """Whoever writes is there: each write is a heartbeat, too."""
        self.record = record
        if record.lease:
            self.record = _record.renew(record, record.domain, record.lease.run, self.now())
        if not self._check:
            self._store.write(self.record)


@contextmanager
def working(
    hypervisor: Hypervisor,
    domain: Domain,
    run: str | None,
    *,
    check: bool,
    lease_required: bool = True,
    warn: Callable[[str], None] | None = None,
) -> Iterator[Recorder]:
    """Be the only module at work on a guest for as long as the context lasts.

    With ``run``, its lease is needed, and renewed. Where it is not ``lease_required``, a guest that knows nothing of
    the run is worked on outside of any. In check mode the lease need not be there, since another module in check mode
    cannot have taken it; what an earlier run has left unfinished counts as taken over.

    Without ``run``, or without a lease, a guest under another run's lease is refused.
    Snapshots that a migration which was cut off has put away are told to libvirt again first. Where libvirt refuses
    that, whoever does not need them has a way to ``warn`` of it, and goes on; for others this raises SnapshotBlocked.
    Raises GuestLeased and LeaseLost, and DomainUnsafe for a guest that is off and may run where it was migrated to.
    """
    store = Store(records_directory(hypervisor.uri))
    with _alone(hypervisor, domain, store, check=check):
        record = store.read(domain.uuid)
        if record and record.went_to and domain.state() not in ACTIVE_STATES:
            raise _record.may_run_elsewhere(domain.name, record.went_to)
        recorder = Recorder(hypervisor, store, None, run or "", check=check)
        known = record is not None and run in [lease.run for lease in (record.lease, *record.earlier) if lease]
        if check and run:
            recorder.record = record if known or (record and record.unfinished) else None
        elif run and (known or lease_required):
            recorder.record = record
            recorder.renew(domain)
        else:
            now = moment(hypervisor.clock)
            if record and record.lease and record.lease.is_young(now):
                raise _record.leased(domain.name, record.lease, now)
        if not check:
            _tell_again(domain, warn)
        yield recorder


def _tell_again(domain: Domain, warn: Callable[[str], None] | None) -> None:
    try:
        _kept.tell_again(domain)
    except SnapshotBlocked as error:
        if warn is None:
            raise
        warn(f"{error.message}. {error.remedy}")


@contextmanager
def _alone(
    hypervisor: Hypervisor,
    domain: Named,
    store: Store,
    *,
    check: bool,
    patience: float = LOCK_PATIENCE,
    take_over_setting: str = _record.TAKE_OVER,
) -> Iterator[None]:
    """Hold the guest's lock. Raises GuestLeased where another module does."""
    try:
        with store.alone(domain.uuid, hypervisor.clock, patience, check=check):
            yield
    except LockHeld:
        record = store.read(domain.uuid)
        lease = record.lease if record else None
        now = moment(hypervisor.clock)
        raise _record.leased(domain.name, lease, now, at_work=True, take_over_setting=take_over_setting) from None
