# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How many members of a group are worked on at once, and who has to wait."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvm.fleet.plugins.module_utils._errors import GroupBusy, GroupMemberFailed, InvalidRequest
from ansible_collections.kvm.fleet.plugins.module_utils._group import (
    Group,
    check,
    key_of,
    leave,
    parse,
    serialise,
    take,
)
from ansible_collections.kvm.fleet.plugins.module_utils._record import Claim, Malformed, Moment

NOW = Moment("2026-03-01T02:00:00Z", 1000.0, "boot-1")
EMPTY = Group("database", ())


def claim(member: str, run: str = "run-a", ttl: float = 3600) -> Claim:
    return Claim(member, f"uuid of {member}", run, f"owner of {run}", ttl)


def later(seconds: float, boot_id: str = "boot-1") -> Moment:
    return Moment("2026-03-01T03:00:00Z", NOW.uptime + seconds, boot_id)


def members(group: Group) -> list[str]:
    return [place.member for place in group.places]


DB1 = take(EMPTY, claim("db1"), 1, NOW)


def test_others_wait_until_a_place_is_free() -> None:
    with pytest.raises(GroupBusy) as busy:
        take(DB1, claim("db2", "run-b"), 1, later(60))
    assert busy.value.message == (
        "guest 'db2' is of the group 'database', of which no more than 1 may be down at once: 'db1' is worked on in "
        "run run-a of owner of run-a, which took it at 2026-03-01T02:00:00Z and was last heard of 60 s ago, and keeps "
        "its place for another 3540 s"
    )
    free = leave(DB1, claim("db1"), "upgraded", later(60))
    assert members(take(free, claim("db2", "run-b"), 1, later(61))) == ["db2"]


def test_members_of_one_run_wait_for_each_other_too() -> None:
    with pytest.raises(GroupBusy):
        take(DB1, claim("db2"), 1, NOW)
    assert members(take(DB1, claim("db2"), 2, NOW)) == ["db1", "db2"]


def test_a_place_is_renewed_by_its_run() -> None:
    again = take(DB1, claim("db1"), 1, later(1800))
    assert again.places[0].lease == replace(DB1.places[0].lease, heartbeat=later(1800).uptime)
    with pytest.raises(GroupBusy):
        take(again, claim("db2", "run-b"), 1, later(4000))


@pytest.mark.parametrize("now", [later(3600), later(60, "boot-2")])
def test_a_stale_place_is_free(now: Moment) -> None:
    assert members(take(DB1, claim("db2", "run-b"), 1, now)) == ["db2"]


def test_a_member_that_has_failed_keeps_its_place_and_nobody_waits_for_it() -> None:
    failed = leave(DB1, claim("db1"), "failed", later(1800))
    with pytest.raises(GroupMemberFailed, match="'db1' has failed in run run-a") as refused:
        take(failed, claim("db2", "run-b"), 1, later(4000))
    assert not refused.value.transient
    assert members(take(failed, claim("db2", "run-b"), 1, later(1800 + 3600))) == ["db2"]


def test_a_later_run_on_the_same_guest_takes_its_place_over_and_lets_go_of_it() -> None:
    failed = leave(DB1, claim("db1"), "failed", later(60))
    again = take(failed, claim("db1", "run-b"), 1, later(120))
    assert [(place.lease.run, place.lease.taken, place.failed) for place in again.places] == [
        ("run-b", later(120).at, False)
    ]
    assert leave(again, claim("db1"), "failed", later(120)) == again
    assert leave(again, claim("db1", "run-b"), "upgraded", later(120)) == EMPTY


def test_a_run_that_is_refused_leaves_a_guest_that_has_failed_as_it_was() -> None:
    failed = leave(DB1, claim("db1"), "failed", later(60))
    refused = leave(take(failed, claim("db1", "run-b"), 1, later(120)), claim("db1", "run-b"), "refused", later(121))
    assert [(place.member, place.failed) for place in refused.places] == [("db1", True)]
    assert leave(DB1, claim("db1"), "refused", later(60)) == EMPTY
    assert leave(EMPTY, claim("db1"), "refused", NOW) == EMPTY


def test_a_guest_that_fails_has_a_place_from_then_on_though_it_had_none() -> None:
    failed = leave(EMPTY, claim("db1"), "failed", NOW)
    with pytest.raises(GroupMemberFailed):
        take(failed, claim("db2", "run-b"), 1, later(60))
    # A rescue of a guest that is off takes no place.
    assert leave(failed, claim("db1", "run-c"), "repaired", later(60)) == EMPTY


def test_who_is_worked_on_is_waited_for_beside_one_that_has_failed() -> None:
    both = take(DB1, claim("db2", "run-b"), 2, NOW)
    with pytest.raises(GroupBusy):
        take(leave(both, claim("db1"), "failed", NOW), claim("db3", "run-c"), 2, NOW)


@pytest.mark.parametrize(("name", "at_once"), [("", 1), ("x" * 201, 1), ("ü" * 40, 1), ("a\nb", 1), ("database", 0)])
def test_what_cannot_be_meant_is_refused(name: str, at_once: int) -> None:
    with pytest.raises(InvalidRequest):
        check(name, at_once)


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)


@given(NAMES, NAMES)
def test_each_name_of_a_group_is_that_of_one_file(one: str, other: str) -> None:
    assert not {"/", "\0"} & {*key_of(one)}
    assert (key_of(one) == key_of(other)) is (one == other)


def test_a_group_is_read_as_it_was_written() -> None:
    group = leave(take(DB1, claim("db2"), 2, NOW), claim("db2"), "failed", NOW)
    assert parse(serialise(group)) == group


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"schema": "1"},
        {"name": None},
        {"places": {}},
        {"places": [{}]},
        {"places": [{"member": "db1", "uuid": "u", "lease": {}, "failed": False}]},
        {"places": [{**json.loads(serialise(DB1))["places"][0], "failed": 1}]},
        {"places": [{**json.loads(serialise(DB1))["places"][0], "had_failed": None}]},
        {"more": 1},
    ],
)
def test_what_is_no_group_is_told(change: dict[str, object]) -> None:
    with pytest.raises(Malformed):
        parse(json.dumps({**json.loads(serialise(DB1)), **change}))
