# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who may work on a guest, and what the next run finds of the last one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvm.fleet.plugins.module_utils._errors import GuestLeased, InvalidRequest, LeaseLost
from ansible_collections.kvm.fleet.plugins.module_utils._record import (
    FILES,
    FREEZES,
    Claim,
    Ending,
    Lease,
    Malformed,
    Moment,
    Record,
    Step,
    StepName,
    StepStatus,
    begin,
    end,
    keep,
    note,
    packages,
    parse,
    release,
    renew,
    resumed,
    serialise,
    take,
)

T0 = Moment("2026-03-01T02:00:00Z", 1000.0, "boot-1")
CLAIM = Claim("web1", "0b1d3a7d-2f8a-4a0e-9d0b-6c8e58b40c55", "run-a", "root@a", 3600)
OTHER = replace(CLAIM, run="run-b", owner="root@b")
DONE: dict[str, list[str]] = {"packages": [], "config_files": []}
SNAPSHOT, UPGRADE, RESTART = StepName.SNAPSHOT, StepName.UPGRADE, StepName.RESTART


def later(seconds: float, boot_id: str = "boot-1") -> Moment:
    return Moment("2026-03-01T03:00:00Z", T0.uptime + seconds, boot_id)


def taken(claim: Claim = CLAIM, record: Record | None = None, now: Moment = T0) -> Record:
    return take(record, claim, lambda: {"drift": {"state": "drifted"}}, now)


def let_go(record: Record, outcome: str, error: dict[str, Any] | None = None) -> Record:
    assert record.lease
    return release(record, record.lease, outcome, error, T0)


def cut_off(*names: StepName) -> Record:
    """The record of run-a, dead in the middle of the last of these steps."""
    record = taken()
    for name in names[:-1]:
        record = end(begin(record, name, "run-a", {"name": "s"}, T0), name, StepStatus.DONE, DONE, T0)
    return begin(record, names[-1], "run-a", {"name": "s"}, T0)


# --- the lease -----------------------------------------------------------------------------------


def test_a_free_guest_is_taken_and_its_baseline_kept() -> None:
    record = taken()
    assert record.lease == Lease("run-a", "root@a", T0.at, 1000.0, 3600, "boot-1")
    assert (record.baseline, record.steps, record.ended) == ({"drift": {"state": "drifted"}}, (), None)
    assert resumed(record) is None


def test_a_live_lease_is_refused_by_run_owner_and_age() -> None:
    with pytest.raises(GuestLeased) as refused:
        taken(OTHER, taken(), later(12.4))
    assert refused.value.message == (
        "guest 'web1' is under the lease of run run-a, which root@a took at 2026-03-01T02:00:00Z; it was last heard of "
        "12 s ago"
    )
    assert "3588 s from now" in refused.value.remedy
    assert "before (take_over of kvm.fleet.guest_lease: run-a)" in refused.value.remedy
    assert refused.value.evidence["run"] == "run-a"
    assert refused.value.transient


@pytest.mark.parametrize(
    ("now", "live"),
    [
        (later(0), True),
        (later(3599), True),
        (later(3600), False),
        (later(0, "boot-2"), False),
        (later(-500), True),  # another clock is no reason to take a lease from anybody
    ],
)
def test_a_lease_is_live_for_its_time_and_within_one_boot(now: Moment, live: bool) -> None:
    record = cut_off(SNAPSHOT)
    if live:
        with pytest.raises(GuestLeased):
            taken(OTHER, record, now)
    else:
        assert taken(OTHER, record, now).earlier == (record.lease,)


def test_a_young_lease_is_taken_over_only_from_the_run_that_is_named() -> None:
    record = cut_off(SNAPSHOT)
    with pytest.raises(GuestLeased):
        taken(replace(OTHER, take_over=("run-z",)), record, later(1))
    assert taken(replace(OTHER, take_over=("run-y", "run-a")), record, later(1)).lease == Lease(
        "run-b", "root@b", "2026-03-01T03:00:00Z", 1001.0, 3600, "boot-1"
    )


def test_a_run_that_takes_its_own_lease_renews_it() -> None:
    record = taken(record=cut_off(SNAPSHOT), now=later(60))
    assert record.lease == Lease("run-a", "root@a", T0.at, 1060.0, 3600, "boot-1")
    assert (len(record.steps), record.earlier, resumed(record)) == (1, (), None)


def test_a_heartbeat_makes_a_lease_young_again() -> None:
    record = renew(taken(), "web1", "run-a", later(3000))
    with pytest.raises(GuestLeased):
        taken(OTHER, record, later(6000))
    assert taken(OTHER, record, later(6600)).lease


@pytest.mark.parametrize("record", [None, taken(OTHER), let_go(taken(), "upgraded")])
def test_a_run_without_the_lease_is_told_so(record: Record | None) -> None:
    with pytest.raises(LeaseLost) as lost:
        renew(record, "web1", "run-a", T0)
    assert ("run-b of root@b has it" in lost.value.message) == (record == taken(OTHER))


@pytest.mark.parametrize("fault", [{"run": ""}, {"run": "a\nb"}, {"owner": ""}, {"owner": "Zoë"}, {"ttl": 0}])
def test_what_cannot_be_meant_is_refused(fault: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        replace(CLAIM, **fault).check()
    CLAIM.check()


# --- going on ------------------------------------------------------------------------------------


def test_the_next_run_goes_on_with_the_first_ones_baseline_and_steps() -> None:
    record = cut_off(SNAPSHOT, UPGRADE)
    gone_on = take(record, OTHER, lambda: {"drift": {"state": "none"}}, later(4000))
    assert (gone_on.baseline, gone_on.steps) == (record.baseline, record.steps)
    told = resumed(gone_on)
    assert told is not None
    assert (told["run"], told["owner"], told["cut_off"]) == ("run-a", "root@a", "during the upgrade")
    assert (told["snapshot"], told["packages"], told["restarted"], told["forced"]) == ("s", [], False, False)
    assert told["steps"] == [
        {"name": "snapshot", "status": "done", "run": "run-a"},
        {"name": "upgrade", "status": "open", "run": "run-a"},
    ]


def test_a_run_that_dies_as_well_is_gone_on_from_too() -> None:
    second = begin(taken(OTHER, cut_off(SNAPSHOT, UPGRADE), later(4000)), UPGRADE, "run-b", {}, later(4001))
    third = taken(replace(CLAIM, run="run-c", owner="root@c"), second, later(9000))
    assert [lease.run for lease in third.earlier] == ["run-a", "run-b"]
    told = resumed(third)
    assert told is not None
    assert (told["run"], told["owner"], len(told["steps"])) == ("run-b", "root@b", 3)


def test_a_run_that_died_before_it_changed_anything_leaves_nothing_to_go_on_with() -> None:
    record = taken(OTHER, taken(), later(4000))
    assert (record.earlier, resumed(record)) == ((), None)


@pytest.mark.parametrize(
    ("outcome", "goes_on"), [("upgraded", False), ("unchanged", False), ("failed", False), ("refused", True)]
)
def test_work_that_was_brought_to_an_end_is_not_gone_on_with(outcome: str, goes_on: bool) -> None:
    ended = let_go(cut_off(SNAPSHOT), outcome, {"msg": "x"})
    assert ended.ended == (None if goes_on else Ending("run-a", T0.at, outcome, {"msg": "x"}))
    assert (ended.lease, ended.unfinished) == (None, goes_on)
    assert bool(taken(OTHER, ended).steps) == goes_on


@pytest.mark.parametrize("outcome", ["restarted", "unchanged", "failed"])
def test_an_upgrade_that_nobody_has_ended_is_left_whatever_was_told(outcome: str) -> None:
    record = cut_off(SNAPSHOT, UPGRADE)
    assert let_go(record, outcome, {"msg": "x"}).unfinished
    failed = end(record, UPGRADE, StepStatus.FAILED, {"msg": "the time was over"}, T0)
    gone_on = taken(OTHER, let_go(failed, outcome, {"msg": "x"}))
    told = resumed(gone_on)
    assert told is not None
    assert (told["snapshot"], len(gone_on.steps)) == ("s", 2)
    done = end(gone_on, UPGRADE, StepStatus.DONE, {"packages": [], "config_files": []}, T0)
    assert not let_go(done, "unchanged").unfinished


def test_what_was_before_is_kept_once_and_not_after_the_first_step() -> None:
    record = keep(taken(), {"failed_units": ["a.service"]})
    assert keep(record, {"failed_units": []}).baseline["failed_units"] == ["a.service"]
    begun = begin(taken(), SNAPSHOT, "run-a", {"name": "s"}, T0)
    assert "failed_units" not in keep(begun, {"failed_units": ["a.service"]}).baseline


def test_a_guest_that_a_failed_run_may_have_left_off_is_gone_on_with() -> None:
    ended = let_go(cut_off(SNAPSHOT, RESTART), "failed", {"msg": "the shutdown took too long"})
    assert (ended.unfinished, ended.shut_down_by_us) == (True, True)
    gone_on = taken(OTHER, ended)
    assert (gone_on.ended, len(gone_on.steps)) == (None, 2)
    told = resumed(gone_on)
    assert told is not None
    assert (told["run"], told["owner"], told["cut_off"]) == ("run-a", "root@a", "during the restart")


def test_a_guest_that_was_started_again_is_not_off_by_a_run() -> None:
    started = note(cut_off(SNAPSHOT, RESTART), RESTART, {"started": True})
    assert (started.unfinished, started.shut_down_by_us) == (True, False)
    failed = end(started, RESTART, StepStatus.FAILED, {"started": True, "msg": "the agent is silent"}, T0)
    assert (let_go(failed, "failed").unfinished, failed.shut_down_by_us) == (False, False)


def test_a_run_that_failed_before_the_restart_for_its_packages_is_gone_on_with() -> None:
    change = {"name": "app", "arch": "amd64", "old": "1", "new": "2", "security": False}

    def upgraded(*changes: object) -> Record:
        begun = begin(taken(), UPGRADE, "run-a", {}, T0)
        return end(begun, UPGRADE, StepStatus.DONE, {"packages": list(changes), "config_files": []}, T0)

    assert not let_go(upgraded(), "failed").unfinished
    assert let_go(upgraded(change), "failed").unfinished
    assert not let_go(upgraded(change), "upgraded").unfinished
    restarted = end(begin(upgraded(change), RESTART, "run-a", {}, T0), RESTART, StepStatus.DONE, {}, T0)
    assert not let_go(restarted, "failed").unfinished


@pytest.mark.parametrize("outcome", ["unchanged", "changed"])
def test_a_restart_for_packages_is_left_by_a_run_that_has_come_for_something_else(outcome: str) -> None:
    change = {"name": "app", "arch": "amd64", "old": "1", "new": "2", "security": False}
    packages = {"packages": [change], "config_files": []}
    cut_off_before = end(begin(taken(), UPGRADE, "run-a", {}, T0), UPGRADE, StepStatus.DONE, packages, T0)
    other = let_go(taken(OTHER, cut_off_before, later(4000)), outcome)
    assert (other.lease, other.ended, other.unfinished) == (None, None, True)
    told = resumed(taken(replace(CLAIM, run="run-c", owner="root@c"), other, later(4010)))
    assert told is not None
    assert (told["run"], told["cut_off"]) == ("run-a", "after the upgrade")
    own = end(begin(other, UPGRADE, OTHER.run, {}, T0), UPGRADE, StepStatus.DONE, {**packages, "packages": []}, T0)
    assert not let_go(taken(OTHER, own, later(4020)), outcome).unfinished


def test_a_run_that_was_refused_is_not_the_one_that_was_cut_off() -> None:
    refused = let_go(taken(OTHER, cut_off(RESTART), later(4000)), "refused", {"msg": "the agent is silent"})
    told = resumed(taken(replace(CLAIM, run="run-c", owner="root@c"), refused, later(4010)))
    assert told is not None
    assert (told["run"], told["cut_off"]) == ("run-a", "during the restart")


def test_a_failed_run_that_tries_again_goes_on_from_itself() -> None:
    told = resumed(taken(record=let_go(cut_off(RESTART), "failed")))
    assert told is not None
    assert (told["run"], told["cut_off"]) == ("run-a", "during the restart")


def test_the_last_run_is_told_even_if_it_only_ended_what_another_had_begun() -> None:
    second = taken(OTHER, cut_off(RESTART), later(4000))
    second = end(second, RESTART, StepStatus.DONE, {}, later(4001))
    told = resumed(taken(replace(CLAIM, run="run-c", owner="root@c"), second, later(9000)))
    assert told is not None
    assert (told["run"], told["cut_off"]) == ("run-b", "after the restart")


def test_packages_of_several_runs_are_put_together() -> None:
    def upgraded(record: Record, old: str, new: str) -> Record:
        change = {"name": "app", "arch": "amd64", "old": old, "new": new, "security": False}
        begun = begin(record, UPGRADE, "run-a", {}, T0)
        return end(begun, UPGRADE, StepStatus.DONE, {"packages": [change], "config_files": []}, T0)

    record = upgraded(upgraded(taken(), "1", "2"), "2", "3")
    failed = end(begin(record, UPGRADE, "run-a", {}, T0), UPGRADE, StepStatus.FAILED, {"msg": "x"}, T0)
    [change] = packages(failed)
    assert (change.old, change.new) == ("1", "3")


def test_a_step_that_was_not_begun_does_not_end() -> None:
    with pytest.raises(ValueError, match="no restart was begun"):
        end(taken(), RESTART, StepStatus.DONE, {}, T0)


# --- as text -------------------------------------------------------------------------------------

TEXTS = st.text(max_size=8)
JSON = st.dictionaries(TEXTS, st.one_of(st.none(), st.booleans(), st.integers(), TEXTS, st.lists(TEXTS)), max_size=3)
LEASES = st.builds(Lease, TEXTS, TEXTS, TEXTS, st.floats(0, 1e9), st.floats(0, 1e6).map(float), TEXTS)
STEPS = st.builds(
    Step, st.sampled_from(StepName), st.sampled_from(StepStatus), TEXTS, TEXTS, st.none() | TEXTS, JSON, JSON
)
RECORDS = st.builds(
    Record,
    domain=TEXTS,
    uuid=TEXTS,
    lease=st.none() | LEASES,
    earlier=st.lists(LEASES, max_size=2).map(tuple),
    baseline=JSON,
    steps=st.lists(STEPS, max_size=3).map(tuple),
    ended=st.none() | st.builds(Ending, TEXTS, TEXTS, TEXTS, st.none() | JSON),
)


@given(RECORDS)
def test_what_is_written_is_read(record: Record) -> None:
    assert parse(serialise(record)) == record


@given(st.recursive(st.none() | st.booleans() | st.integers() | TEXTS, lambda inner: st.lists(inner) | JSON))
def test_what_is_no_record_is_malformed_and_nothing_worse(found: Any) -> None:
    with pytest.raises(Malformed):
        parse(json.dumps(found))


def mutilated(change: dict[str, Any]) -> str:
    return json.dumps({**json.loads(serialise(cut_off(SNAPSHOT))), **change})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        (serialise(taken())[:-9], "not JSON"),
        (mutilated({"schema": 2}), "newer version"),
        (mutilated({"schema": 0}), "its schema is 0"),
        (mutilated({"schema": True}), "True is no int"),
        (mutilated({"surprise": 1}), "its fields are"),
        (mutilated({"domain": None}), "None is no str"),
        (mutilated({"lease": {"run": "a"}}), "its fields are"),
        (mutilated({"lease": {**vars(taken().lease or T0), "ttl": True}}), "True is no float"),
        (mutilated({"steps": [1]}), "1 is no dict"),
        (mutilated({"steps": [{**vars(cut_off(SNAPSHOT).steps[0]), "status": "half"}]}), "half"),
    ],
)
def test_a_damaged_text_is_told_by_what_is_wrong(text: str, reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        parse(text)


@pytest.mark.parametrize(
    ("strategy", "owed"),
    [
        ({}, False),
        ({"strategy": "power_cycle"}, False),
        ({"strategy": "save_restore"}, True),
        ({"strategy": "migrate"}, True),
    ],
)
def test_a_guest_whose_ram_was_saved_still_runs_what_was_upgraded(strategy: dict[str, str], owed: bool) -> None:
    upgraded = {**DONE, "packages": [{"name": "app", "arch": "all", "old": "1", "new": "2"}]}
    record = end(begin(taken(), UPGRADE, "run-a", {}, T0), UPGRADE, StepStatus.DONE, upgraded, T0)
    assert record.restart_is_owed
    record = end(begin(record, RESTART, "run-a", strategy, T0), RESTART, StepStatus.DONE, {}, T0)
    assert record.restart_is_owed is owed


@pytest.mark.parametrize(
    ("left", "nothing"), [({FILES: ["/i/layer"]}, {FILES: []}), ({FREEZES: True}, {FREEZES: False})]
)
def test_what_a_snapshot_has_left_is_looked_at_by_the_next_run_whatever_was_told(
    left: dict[str, Any], nothing: dict[str, Any]
) -> None:
    begun = note(begin(taken(), SNAPSHOT, CLAIM.run, {"name": "s"}, T0), SNAPSHOT, left)
    failed = end(begun, SNAPSHOT, StepStatus.FAILED, {**left, "msg": "libvirt died"}, T0)
    for record in (begun, failed):
        next_one = taken(OTHER, let_go(record, "failed"), later(1))
        assert next_one.steps == record.steps
        assert not let_go(note(next_one, SNAPSHOT, nothing), "failed").unfinished
    assert not let_go(end(begun, SNAPSHOT, StepStatus.DONE, {}, T0), "failed").unfinished
