# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whose agent has to be set up, and what is said of it afterwards."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.kvm.fleet.plugins.plugin_utils._agent_policy import make_policy_result, policy_targets
from ansible_collections.kvm.fleet.plugins.plugin_utils._summary import render_summary

GUEST = {
    "name": "web1",
    "hypervisor": "hv1",
    "uri": "qemu:///system",
    "domain": "web1",
    "state": "enabled",
    "rpcs": ["guest-exec"],
}
FILE = {"path": "/etc/qemu/qemu-ga.conf", "backup": "/etc/qemu/qemu-ga.conf.copy", "backup_on": "guest", "lines": []}


def host(name: str, *allowed: bool | None, state: str = "running", **variables: Any) -> dict[str, Any]:
    rpcs = dict(zip(("guest-exec", "guest-exec-status"), ({"allowed": one} for one in allowed), strict=True))
    told = {"guests": [{"state": state, "agent": {"state": "any", "rpcs": rpcs}}]}
    return {"inventory_hostname": name, "fleet_agent": told, **variables}


HOSTS = [
    host("silent", None, None),
    host("allows", True, True),
    {"inventory_hostname": "lost", "fleet_agent": {"unreachable": True}},
    host("half", True, False),
    host("paused", None, None, state="paused"),
    host("off", None, None, state="shut_off", kvm_hypervisor="hv1", kvm_domain="off.example", fleet_left_off=False),
    host("crashed", None, None, state="crashed"),
    host("blocks", False, False),
    host("left off", None, None, state="shut_off", fleet_left_off=True),
]


@pytest.mark.parametrize(
    ("state", "chosen", "content"),
    [
        ("enabled", ["left off", "half", "blocks", "silent", "lost", "paused"], ["allows"]),
        ("disabled", ["left off", "allows", "half", "silent", "lost", "paused"], ["blocks"]),
    ],
)
def test_those_that_a_run_left_off_come_first_then_those_not_as_wanted_then_those_that_nobody_can_tell(
    state: str, chosen: list[str], content: list[str]
) -> None:
    targets = policy_targets(HOSTS, state, [])
    assert (targets.chosen, targets.content) == (chosen, content)
    assert list(targets.off) == ["off", "crashed"]


def test_what_is_off_is_not_attempted_and_the_summary_says_what_to_do() -> None:
    record = policy_targets(HOSTS, "disabled", []).off["off"]
    assert (record["outcome"], record["hypervisor"], record["domain"]) == ("not_attempted", "hv1", "off.example")
    assert record["error"]["error_code"] == "domain_not_running"
    lines = render_summary("disable guest-exec", [record])
    assert lines[1] == "DISABLE GUEST-EXEC SUMMARY: 0 VM(s) processed, 1 not attempted"
    assert lines[3:6] == [
        "- off",
        "  Not attempted: it is off, so that nobody could ask its agent",
        "  Remedy: Start it and run again. Or name it to have its image edited while it is off: -e fleet_guests=off",
    ]


def test_who_is_asked_for_by_name_is_chosen_whatever_is_known() -> None:
    targets = policy_targets(HOSTS, "enabled", "silent,off")
    assert (targets.chosen, targets.content, targets.off) == ([host["inventory_hostname"] for host in HOSTS], [], {})


def result(failure: dict[str, Any] | None = None, **taken: Any) -> dict[str, Any]:
    return make_policy_result(GUEST, taken, duration=12.34, check_mode=False, failure=failure)


def test_a_result_tells_the_way_and_the_files() -> None:
    found = result(done={"changed": True, "way": "files", "files": [FILE], "restarted": True})
    assert (found["outcome"], found["way"], found["files"], found["restarted"]) == ("changed", "files", [FILE], True)
    assert found["policy"] == {"state": "enabled", "rpcs": ["guest-exec"]}
    assert result(done={"changed": False, "way": None, "files": []})["outcome"] == "unchanged"


def test_what_was_done_in_the_guest_itself_is_told_as_such() -> None:
    closed = {"failed": False, "error_code": "no_way_open"}
    found = result(done=closed, local={"changed": True, "files": [FILE], "restarted": True})
    assert (found["outcome"], found["way"], found["files"]) == ("changed", "ssh", [FILE])


def test_why_ssh_was_given_up_for_another_way_is_told_unless_the_error_says_so() -> None:
    lost = {"unreachable": True, "msg": "no route to host"}
    done = {"changed": True, "way": "files", "files": [FILE], "restarted": True}
    found = result(done=done, predicted=lost)
    assert (found["way"], found["closed"]) == ("files", {"ssh": "no route to host"})
    assert "  Not open: ssh: no route to host" in render_summary("enable guest-exec", [found])
    assert result(done=done)["closed"] == {}
    assert result(predicted={"files": [], "changed": False}, local=done)["closed"] == {}

    gave_up = result({"task": "Set up", "result": failed("shutdown_timeout")}, predicted=lost)
    assert gave_up["closed"] == {"ssh": "no route to host"}
    assert "  Not open: ssh: no route to host" in render_summary("enable guest-exec", [gave_up])
    assert result({"task": "Set up", "result": failed("no_way_open")}, predicted=lost)["closed"] == {}


def failed(code: str, **evidence: Any) -> dict[str, Any]:
    return {"failed": True, "error_code": code, "msg": "no", "remedy": "Do.", "evidence": evidence}


AUDITED = {"audit": {"event": "failed"}}
CHANGED = {"changed": True, "files": [FILE]}


@pytest.mark.parametrize(
    ("outcome", "error", "taken"),
    [
        ("refused", failed("no_way_open"), {}),
        ("refused", failed("agent_silent"), {}),
        ("failed", failed("policy_unsupported", **AUDITED), {}),
        ("failed", failed("shutdown_timeout", put_back=True, **AUDITED), {}),
        ("failed", failed("proof_failed"), {"audited": AUDITED, "local": CHANGED}),
        ("failed", failed("no_way_open"), {"audited": AUDITED, "local": {"unreachable": True}}),
        ("failed", failed("guest_unsupported"), {"audited": AUDITED, "local": {"failed": True}}),
        ("refused", failed("no_way_open"), {"audited": {"skipped": True}, "local": {"changed": False, "files": []}}),
        ("failed", failed("record_unavailable"), {"done": CHANGED}),
        ("failed", failed("start_failed"), {"power": {"failed": True}}),
        ("failed", failed("no_way_open"), {"power": {"changed": True, "restarted": True}}),
        ("failed", failed("no_way_open"), {"power": {"failed": False, "error_code": "agent_silent"}}),
        ("failed", {"error_code": "run_ended", "msg": "the run ended"}, {}),
        ("failed", {"msg": "MODULE FAILURE"}, {}),
    ],
)
def test_a_refusal_has_changed_and_restarted_nothing(
    outcome: str, error: dict[str, Any], taken: dict[str, Any]
) -> None:
    found = result({"task": "Set up", "result": error}, **{"done": error, "intervening": True, **taken})
    assert (found["outcome"], found["error"]["msg"]) == (outcome, error["msg"])


@pytest.mark.parametrize(("put_back", "files"), [(True, []), (False, [FILE])])
def test_what_was_put_back_is_not_told_as_changed(put_back: bool, files: list[dict[str, Any]]) -> None:
    error = failed("proof_failed", put_back=put_back, files=[FILE])
    found = result({"task": "Set up", "result": error}, audited=AUDITED, local=CHANGED, intervening=True)
    assert (found["outcome"], found["files"], found["error"]["evidence"]["files"]) == ("failed", files, [FILE])


def test_before_anything_is_begun_every_error_is_a_refusal() -> None:
    found = result({"task": "Look", "result": {"msg": "MODULE FAILURE"}}, intervening=False)
    assert (found["outcome"], found["error"]["error_code"]) == ("refused", "task_failed")


def test_a_guest_that_a_dead_run_left_off_is_told_as_resumed() -> None:
    dead = {"run": "run-a", "owner": "root@elsewhere", "silence": 3}
    lease = {"resumed": {**dead, "cut_off": "during the restart", "steps": []}, "taken_over": dead}
    found = result(lease=lease, power={"restarted": True, "changed": True}, done={"changed": False, "files": []})
    assert (found["outcome"], found["restarted"], found["taken_over"]) == ("restarted", True, dead)
    assert found["resumed"] == {"run": "run-a", "cut_off": "during the restart"}
    lines = render_summary("enable guest-exec", [found])
    assert "  Resumed: run run-a, which was cut off during the restart" in lines
    assert lines[-2] == "Success: 1  Failed: 0"


def test_the_summary_tells_what_the_agent_does_now() -> None:
    changed = result(done={"changed": True, "way": "exec", "files": [FILE], "restarted": True})
    same = {**result(done={"changed": False, "files": []}), "guest": "web2"}
    failed = {"failed": True, "error_code": "no_way_open", "msg": "no way", "remedy": "Open one."}
    refused = {**result({"task": "Set up", "result": failed}, done=failed), "guest": "web3"}
    lines = render_summary("enable guest-exec", [changed, same, refused])
    assert lines[1] == "ENABLE GUEST-EXEC SUMMARY: 3 VM(s) processed"
    assert lines[3:-3] == [
        "✓ web1",
        "  Agent: allows guest-exec",
        "  Way: exec",
        "  Changed: /etc/qemu/qemu-ga.conf",
        "  Copies: /etc/qemu/qemu-ga.conf.copy on the guest",
        "  Duration: 12s",
        "",
        "✓ web2",
        "  Agent: allows guest-exec already",
        "  Duration: 12s",
        "",
        "✗ web3",
        "  Error: no way (nothing was changed)",
        "  Remedy: Open one.",
        "  Duration: 12s",
        "",
    ]
    assert lines[-2] == "Success: 2  Failed: 1"
