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


def host(name: str, *allowed: bool | None, state: str = "answering") -> dict[str, Any]:
    rpcs = dict(zip(("guest-exec", "guest-exec-status"), ({"allowed": one} for one in allowed), strict=True))
    return {"inventory_hostname": name, "fleet_agent": {"guests": [{"agent": {"state": state, "rpcs": rpcs}}]}}


HOSTS = [
    host("silent", None, None, state="silent"),
    host("allows", True, True),
    {"inventory_hostname": "lost", "fleet_agent": {"unreachable": True}},
    host("half", True, False),
    host("off", None, None, state="not_running"),
    host("blocks", False, False),
]


@pytest.mark.parametrize(
    ("state", "targets"),
    [("enabled", ["half", "blocks", "silent", "lost"]), ("disabled", ["allows", "half", "silent", "lost"])],
)
def test_those_that_are_not_as_wanted_come_first_then_those_that_nobody_can_tell(
    state: str, targets: list[str]
) -> None:
    assert policy_targets(HOSTS, state, []) == targets


def test_who_is_asked_for_by_name_is_chosen_whatever_is_known() -> None:
    assert policy_targets(HOSTS, "enabled", "silent,off") == [host["inventory_hostname"] for host in HOSTS]


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


@pytest.mark.parametrize(("code", "outcome"), [("no_way_open", "refused"), ("shutdown_timeout", "failed")])
def test_a_refusal_is_told_from_a_failure(code: str, outcome: str) -> None:
    failed = {"failed": True, "error_code": code, "msg": "no", "remedy": "Do."}
    found = result({"task": "Set up", "result": failed}, done=failed)
    assert (found["outcome"], found["error"]["error_code"]) == (outcome, code)


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
