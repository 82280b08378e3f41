# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What happens in a run, in objects that a machine reads."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.kvm.fleet.plugins.plugin_utils._events import Event, Events, code_of

DONE: dict[str, Any] = {"guest": "web1", "hypervisor": "hv1", "outcome": "upgraded", "duration": 61.23, "error": None}
AHEAD: dict[str, Any] = {**DONE, "outcome": "failed", "error": {"error_code": "run_ended"}}


@pytest.fixture
def events() -> Events:
    """Of a run that is at the first step of a guest."""
    events = Events("run-a", 0.0)
    events.begin("web1", None, "begin", 1.0)
    events.result("web1", "ok", 2.0)
    return events


def short(told: list[Event]) -> list[tuple[Any, ...]]:
    names = ("event", "guest", "step", "duration", "result", "error_code")
    return [tuple(event[name] for name in names if event[name] is not None) for event in told]


def test_the_run_is_started_once_and_before_all_others() -> None:
    events = Events("run-a", 0.0, check_mode=True)
    events.begin("web1", None, "begin", 1.0)
    assert short(events.result("web1", "ok", 2.0)) == [("run_started", "check_mode"), ("step_started", "web1", "begin")]
    events.begin("web2", None, "begin", 1.0)
    assert short(events.result("web2", "ok", 2.0)) == [("step_started", "web2", "begin")]


def test_each_playbook_with_events_has_an_end(events: Events) -> None:
    events.note("web1", DONE, 3.0)
    told = [events.end_run([DONE], 4.0, failed=False)[-1:], events.end_run([DONE], 5.0, failed=False)]
    events.begin("web1", None, "begin", 6.0)
    events.result("web1", "ok", 7.0)
    told.append(events.end_run([DONE], 8.0, failed=False))
    assert list(map(short, told)) == [
        [("run_ended", 4.0, "ok")],
        [],
        [("step_ended", "web1", "begin", 2.0, "ok"), ("run_ended", 8.0, "ok")],
    ]


def test_a_step_lasts_until_the_next_one_and_counts_its_changes(events: Events) -> None:
    events.begin("web1", None, "begin", 3.0)
    assert events.result("web1", "changed", 4.0) == []
    assert events.result("web1", "ok", 5.0) == []
    events.begin("web1", None, "assess", 6.04)
    assert short(events.result("web1", "ok", 7.0)) == [
        ("step_ended", "web1", "begin", 5.0, "changed"),
        ("step_started", "web1", "assess"),
    ]


def test_a_step_that_is_skipped_has_no_events_and_what_was_before_goes_on(events: Events) -> None:
    events.begin("web1", None, "wait", 3.0)
    assert events.settle(3.9) == []
    events.skip("web1")
    assert events.settle(9.0) == []
    assert short(events.end_batch(10.0)) == [("step_ended", "web1", "begin", 9.0, "ok")]


def test_a_step_that_is_not_skipped_at_once_is_told_before_its_result(events: Events) -> None:
    events.begin("web1", None, "restart", 3.0)
    assert short(events.settle(4.0)) == [
        ("step_ended", "web1", "begin", 2.0, "ok"),
        ("step_started", "web1", "restart"),
    ]
    assert events.settle(5.0) == []


@pytest.mark.parametrize(("result", "code"), [("failed", "disk_full"), ("unreachable", None)])
def test_a_failure_ends_the_step(events: Events, result: str, code: str | None) -> None:
    told = events.result("web1", result, 5.0, code)
    assert short(told) == [("step_ended", "web1", "begin", 4.0, result, *([code] if code else []))]
    assert told[0]["level"] == "error"
    assert events.result("web1", "ok", 6.0) == []


def test_a_guest_ends_with_its_batch_by_the_last_word_on_it(events: Events) -> None:
    assert events.note("web1", AHEAD, 3.0) == []
    assert short(events.note("web1", DONE, 9.0)) == [("step_ended", "web1", "begin", 8.0, "ok")]
    [ended] = events.end_batch(11.0)
    assert short([ended]) == [("guest_ended", "web1", 61.2, "upgraded")]
    assert (ended["hypervisor"], ended["level"]) == ("hv1", "info")
    assert short(events.end_run([DONE], 12.0, failed=False)) == [("run_ended", 12.0, "ok")]


def test_a_guest_that_the_run_has_lost_ends_as_was_written_ahead(events: Events) -> None:
    events.note("web1", AHEAD, 3.0)
    assert short(events.end_batch(9.0)) == [
        ("step_ended", "web1", "begin", 8.0, "ok"),
        ("guest_ended", "web1", 61.2, "failed", "run_ended"),
    ]


def test_guests_that_were_never_reached_end_with_the_run(events: Events) -> None:
    missed = {"guest": "web2", "outcome": "not_attempted"}
    ended, over = events.end_run([missed], 9.0, failed=True)[-2:]
    assert short([ended, over]) == [("guest_ended", "web2", "not_attempted"), ("run_ended", 9.0, "failed")]
    assert (ended["level"], over["level"]) == ("warning", "error")


def test_a_run_that_did_nothing_with_guests_has_no_events() -> None:
    events = Events("run-a", 0.0)
    events.begin("web1", None, "wait", 1.0)
    events.skip("web1")
    assert events.result("web9", "ok", 2.0) == []
    assert events.end_run([], 9.0, failed=True) == []


def test_the_hypervisor_is_that_of_the_inventory_until_a_record_names_it() -> None:
    events = Events("run-a", 0.0)
    events.begin("web1", "hv7", "begin", 1.0)
    assert [event["hypervisor"] for event in events.result("web1", "ok", 2.0)] == [None, "hv7"]
    events.note("web1", {**DONE, "hypervisor": None}, 3.0)
    assert [event["hypervisor"] for event in events.end_batch(4.0)] == ["hv7"]


@pytest.mark.parametrize(
    ("result", "code"),
    [
        ({"error_code": "disk_full"}, "disk_full"),
        ({"error_code": "No space left on /dev/vda"}, "task_failed"),
        ({"error_code": 28}, "task_failed"),
        ({"censored": "the output has been hidden"}, "task_failed"),
    ],
)
def test_a_code_is_a_word_and_nothing_else(result: dict[str, Any], code: str) -> None:
    assert code_of(result) == code
