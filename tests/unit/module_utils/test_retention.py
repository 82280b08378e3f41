# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which snapshots go, and for what reason the others stay."""

from __future__ import annotations

from datetime import timedelta

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._clock import parse_timestamp, timestamp
from ansible_collections.kvm.fleet.plugins.module_utils._domain import DomainState, SnapshotRecord
from ansible_collections.kvm.fleet.plugins.module_utils._errors import InvalidRequest
from ansible_collections.kvm.fleet.plugins.module_utils._record import (
    OUTCOMES,
    Ending,
    Record,
    Step,
    StepName,
    StepStatus,
)
from ansible_collections.kvm.fleet.plugins.module_utils._retention import DAY, Limits, doubts, judge

START = parse_timestamp("2026-03-01T02:00:00Z")
NOW = START.timestamp()
AGES = (1, 8, 20)


def a_day_ago(days: float) -> SnapshotRecord:
    return SnapshotRecord(f"{days:g}d", "[kvm.fleet] x", int(NOW - days * DAY), "running", current=False)


def record(outcome: str | None = "upgraded", days_ago: float = 0.5, *steps: Step) -> Record:
    at = timestamp(START - timedelta(days=days_ago))
    return Record("web1", "u", None, (), {}, steps, Ending("r", at, outcome, None) if outcome else None)


def goes(limits: Limits, sizes: tuple[int | None, ...] = (100, 100, 100), days_ago: float = 0.5) -> dict[str, str]:
    """What goes of snapshots of these ages, and why."""
    snapshots = [(a_day_ago(days), size) for days, size in zip(AGES, sizes, strict=True)]
    judged = judge(snapshots, DomainState.RUNNING, record(days_ago=days_ago), limits, NOW)
    return {one.snapshot.name: one.reason for one in judged if one.goes}


OLD = "older than 7 days"
OVER = "over the budget"


@pytest.mark.parametrize(
    ("limits", "gone"),
    [
        (Limits(0, 7, None), {"8d": OLD, "20d": OLD}),
        (Limits(0, 30, None), {}),
        (Limits(0, 0, None), dict.fromkeys(("1d", "8d", "20d"), "not to be kept")),
        (Limits(1, 0, None), {"8d": "not to be kept", "20d": "not to be kept"}),
        (Limits(2, 7, None), {"20d": OLD}),
        (Limits(9, 0, None), {}),
        (Limits(0, 30, 200), {"20d": OVER}),
        (Limits(3, 7, 100), {"8d": OVER, "20d": OVER}),
        (Limits(0, 7, 100), {"8d": OLD, "20d": OLD}),
        (Limits(3, 30, 0), {"8d": OVER, "20d": OVER}),
        (Limits(0, 0, 0), dict.fromkeys(("1d", "8d", "20d"), "not to be kept")),
    ],
)
def test_what_neither_count_nor_age_keeps_goes_and_what_does_not_fit(limits: Limits, gone: dict[str, str]) -> None:
    assert goes(limits) == gone


def test_what_has_no_known_size_counts_as_nothing_in_a_budget() -> None:
    assert goes(Limits(0, 30, 100), (100, None, 100)) == {"20d": OVER}


def test_what_is_older_than_one_that_does_not_fit_goes_as_well() -> None:
    assert goes(Limits(0, 30, 150), (100, 100, 50)) == {"8d": OVER, "20d": OVER}


def test_the_newest_is_the_way_back_and_stays_whatever_its_size() -> None:
    assert goes(Limits(2, 30, 1000), (2000, 100, 0)) == {"8d": OVER, "20d": OVER}


def test_a_snapshot_stays_since_which_no_run_has_gone_well() -> None:
    assert goes(Limits(0, 0, 0), days_ago=10) == {"20d": "not to be kept"}


def test_the_newest_comes_first_whatever_the_order_they_are_found_in() -> None:
    snapshots = [(a_day_ago(days), 1) for days in (8, 1, 20)]
    judged = judge(snapshots, DomainState.RUNNING, record(), Limits(1, 7, None), NOW)
    assert [(one.snapshot.name, one.reason) for one in judged] == [
        ("1d", "one of the newest 1"),
        ("8d", OLD),
        ("20d", OLD),
    ]


# --- guests that are not known to be well ----------------------------------------------------------

UNFINISHED = Step(StepName.UPGRADE, StepStatus.OPEN, "r", "2026-02-28T00:00:00Z", None, {}, {})
WELL = ("unchanged", "changed", "upgraded", "restarted", "repaired", "rolled_back")


@pytest.mark.parametrize(
    ("state", "known", "doubt"),
    [
        (DomainState.RUNNING, None, "no run has gone well on the guest"),
        (DomainState.RUNNING, record(None), "a run on the guest was left unfinished"),
        (DomainState.RUNNING, record("upgraded", 0.5, UNFINISHED), "a run on the guest was left unfinished"),
        (DomainState.CRASHED, record(), "the domain is crashed"),
        (DomainState.PAUSED, record(), "the domain is paused"),
        (DomainState.SHUT_OFF, record(), ""),
    ],
)
def test_all_snapshots_stay_of_a_guest_that_is_not_known_to_be_well(
    state: DomainState, known: Record | None, doubt: str
) -> None:
    assert doubts(state, known) == doubt
    judged = judge([(a_day_ago(days), 1) for days in AGES], state, known, Limits(0, 0, 0), NOW)
    assert {one.goes for one in judged} == {not doubt}
    assert not doubt or {one.reason for one in judged} == {doubt}


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_how_the_last_run_ended_tells_whether_the_guest_is_well(outcome: str) -> None:
    doubt = "" if outcome in WELL else f"the last run on the guest ended as {outcome}"
    assert doubts(DomainState.RUNNING, record(outcome)) == doubt


@pytest.mark.parametrize("limits", [Limits(-1, 7, None), Limits(0, -0.1, None), Limits(0, 7, -1)])
def test_numbers_that_cannot_be_meant_are_refused(limits: Limits) -> None:
    with pytest.raises(InvalidRequest):
        limits.check()
