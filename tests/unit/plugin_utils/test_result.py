# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What every result says in the same way."""

from __future__ import annotations

import pytest

from ansible_collections.kvm.fleet.plugins.plugin_utils._cycle import make_result
from ansible_collections.kvm.fleet.plugins.plugin_utils._result import LONGEST_TEXT, bounded, describe_failure
from tests.unit.plugin_utils.test_cycle import FAILURE


def test_a_failure_of_the_collection_is_described_whole_and_another_as_far_as_it_goes() -> None:
    assert describe_failure(FAILURE) == {
        "task": "Do it",
        "error_code": "agent_silent",
        "msg": "no",
        "remedy": "Start it.",
        "transient": True,
        "evidence": {},
    }
    assert describe_failure({**FAILURE, "start": {"failed": False}}) == describe_failure(FAILURE)
    assert describe_failure({"task": "Do it", "result": {}}) == {
        "task": "Do it",
        "error_code": "task_failed",
        "msg": "the task gave no message",
        "remedy": "",
        "transient": False,
        "evidence": {},
    }


def test_a_start_that_failed_after_something_else_is_told_with_the_first_cause() -> None:
    start = {"failed": True, "error_code": "start_failed", "msg": "it is off", "remedy": "Start it.", "evidence": {}}
    first = describe_failure(FAILURE)
    told = describe_failure({**FAILURE, "start": start})
    assert [told[key] for key in ("task", "error_code", "msg")] == [first[key] for key in ("task", "error_code", "msg")]
    assert told["remedy"] == f"{first['remedy']} After that, its start failed: it is off. Start it."
    assert told["evidence"]["start"]["error_code"] == "start_failed"
    assert {**told["evidence"], **first["evidence"]} == told["evidence"]


def test_no_text_of_a_record_is_longer_than_its_bound() -> None:
    long = "a" * 400 + "b" * LONGEST_TEXT + "c" * 400
    kept = bounded({long: [long, ("short", 7, None)]})
    ((key, (text, rest)),) = kept.items()
    assert (len(text), text[:3], text[-3:], key) == (LONGEST_TEXT, "aaa", "ccc", text)
    assert rest == ["short", 7, None]


@pytest.mark.parametrize("length", [0, LONGEST_TEXT])
def test_a_text_within_the_bound_is_kept(length: int) -> None:
    assert bounded("x" * length) == "x" * length


def test_a_record_has_no_more_of_what_a_guest_said() -> None:
    guest = {"run": "run-a", "name": "web1", "hypervisor": "hv1", "uri": "qemu:///system", "domain": "web1"}
    failure = {"task": "Do it", "result": {"msg": "x" * 5000, "evidence": {"output": ["y" * 5000]}}}
    error = make_result(guest, {}, duration=1.0, check_mode=False, failure=failure)["error"]
    assert (len(error["msg"]), len(error["evidence"]["output"][0])) == (LONGEST_TEXT, LONGEST_TEXT)


def test_what_a_task_hides_is_not_told() -> None:
    result = {"failed": True, "msg": "secret", "error_code": "disk_full", "evidence": {"output": "secret"}}
    told = describe_failure({"task": "Do it", "result": result, "start": result, "hidden": True})
    assert told["error_code"] == "disk_full"
    assert "secret" not in str(told)
