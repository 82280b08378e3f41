# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which snapshots have had their time: only of guests that are known to be well, and by what is to be kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ansible_collections.kvm.fleet.plugins.module_utils._clock import parse_timestamp
from ansible_collections.kvm.fleet.plugins.module_utils._domain import DomainState, SnapshotRecord
from ansible_collections.kvm.fleet.plugins.module_utils._errors import InvalidRequest
from ansible_collections.kvm.fleet.plugins.module_utils._record import HEALTHY, Record
from ansible_collections.kvm.fleet.plugins.module_utils._snapshot_xml import is_being_deleted

DAY = 24 * 3600

SOUND_STATES = frozenset({DomainState.RUNNING, DomainState.BLOCKED, DomainState.SHUT_OFF})
"""States that a guest that is well may be in. One that was shut down since is as it was."""


@dataclass(frozen=True)
class Limits:
    """What to keep of a guest: its newest snapshots, by count and by age, and of those what fits into ``budget`` bytes.

    A snapshot stays that ``keep`` or ``days`` would keep. A budget goes before both, from the oldest on: what is older
    than one that does not fit goes as well, and the newest, which is the way back, stays whatever its size.
    """

    keep: int
    days: float
    budget: int | None

    def check(self) -> None:
        """Raise InvalidRequest for numbers that cannot be meant."""
        for name, value in (("keep", self.keep), ("days", self.days), ("budget", self.budget or 0)):
            if value < 0:
                raise InvalidRequest(f"{name} is {value:g}, which cannot be meant", remedy="Give zero or more.")


@dataclass(frozen=True)
class Judged:
    """A snapshot, the bytes that it is known to hold (None where nobody can tell), and why it stays or goes."""

    snapshot: SnapshotRecord
    size: int | None
    goes: bool
    reason: str


def doubts(state: DomainState, record: Record | None) -> str:
    """Why the guest is not known to be well, so that all of its snapshots stay; empty where it is."""
    if record is None:
        return "no run has gone well on the guest"
    if record.unfinished or record.ended is None:
        return "a run on the guest was left unfinished"
    if record.ended.outcome not in HEALTHY:
        return f"the last run on the guest ended as {record.ended.outcome}"
    if state not in SOUND_STATES:
        return f"the domain is {state.value.replace('_', ' ')}"
    return ""


def judge(
    snapshots: Sequence[tuple[SnapshotRecord, int | None]],
    state: DomainState,
    record: Record | None,
    limits: Limits,
    now: float,
) -> tuple[Judged, ...]:
    """What becomes of the snapshots that this collection has made of a guest, each with its size, newest first.

    ``now`` is in seconds since the epoch.
    """
    newest_first = sorted(snapshots, key=lambda one: (one[0].created, one[0].name), reverse=True)
    doubt = doubts(state, record)
    if doubt or record is None or record.ended is None:
        return tuple(Judged(snapshot, size, False, doubt) for snapshot, size in newest_first)
    proved = parse_timestamp(record.ended.at).timestamp()
    judged, kept, full, position = [], 0, False, 0
    for snapshot, size in newest_first:
        if is_being_deleted(snapshot):
            # It is no way back, and takes nobody's place.
            judged.append(Judged(snapshot, size, True, "its deletion was begun"))
            continue
        goes, reason = _judge_one(snapshot, position, limits, proved, now)
        if not goes and limits.budget is not None and position and snapshot.created <= proved:
            full = full or kept + (size or 0) > limits.budget
            goes, reason = (True, "over the budget") if full else (False, reason)
        kept += 0 if goes else size or 0
        position += 1
        judged.append(Judged(snapshot, size, goes, reason))
    return tuple(judged)


def _judge_one(snapshot: SnapshotRecord, position: int, limits: Limits, proved: float, now: float) -> tuple[bool, str]:
    if snapshot.created > proved:
        return False, "no run has gone well on the guest since"
    if position < limits.keep:
        return False, f"one of the newest {limits.keep}"
    if now - snapshot.created < limits.days * DAY:
        return False, f"younger than {limits.days:g} days"
    return True, f"older than {limits.days:g} days" if limits.days else "not to be kept"
