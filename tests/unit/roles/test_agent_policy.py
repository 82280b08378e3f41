# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""In which order the role tries the ways to a guest's agent, and what it says where one is not open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.roles.stage import Played, play

if TYPE_CHECKING:
    from pathlib import Path

FILE = {"path": "/etc/qemu/qemu-ga.conf", "backup": "/etc/qemu/qemu-ga.conf.copy", "backup_on": "guest", "lines": []}
DONE = {"files": [FILE], "restarted": True, "proved": True}
NOTHING = {"changed": False, "files": [], "restarted": False, "proved": True, "way": None}


def failed(code: str, msg: str, **evidence: Any) -> dict[str, Any]:
    return {
        "failed": True,
        "error_code": code,
        "msg": msg,
        "remedy": "Do something.",
        "transient": False,
        "evidence": evidence,
    }


CLOSED = failed("no_way_open", "the agent cannot be set up from here: exec: it is blocked", ways={"exec": "blocked"})
ANSWERS: dict[str, list[dict[str, Any]]] = {
    "domain_info": [{"domains": [{"state": "running", "run": None, "drift": {"state": "none", "reasons": []}}]}],
    "guest_lease": [{"record": {"uuid": "u"}, "resumed": None, "taken_over": None}],
    "guest_audit": [{"audit": {"event": "changing"}}],
}
POLICY = ("guest_agent_policy", "agent_policy_local")


def policy(directory: Path, *agent: dict[str, Any], local: dict[str, Any] | None = None, **options: Any) -> Played:
    """The role for a guest that the inventory has an address of; ``agent`` are the answers of guest_agent_policy."""
    answers = {**ANSWERS, "guest_agent_policy": list(agent), "agent_policy_local": [local or {"changed": True, **DONE}]}
    reachable = options.pop("reachable", True)
    flags = options.pop("flags", ())
    return play(
        directory,
        "agent_policy",
        answers,
        *flags,
        reachable=reachable,
        variables={"ansible_host": "192.0.2.1", **options},
    )


def tried(played: Played) -> list[str]:
    """What was tried, in order: whether from the hypervisor, with the guest interrupted or not, or in the guest."""
    words = []
    for call in played.asked(*POLICY):
        if call["module"] == "agent_policy_local":
            words.append("look by ssh" if call["check"] else "ssh")
        elif call["way"] != "exec":
            words.append(f"{call['way']}, {'interrupting' if call['power_cycle'] else 'gently'}")
    return words


def test_a_guest_that_is_reached_by_ssh_is_not_interrupted(tmp_path: Path) -> None:
    played = policy(tmp_path, CLOSED, {"proved": False}, NOTHING)
    assert played.exit_code == 0, played.output
    assert tried(played) == ["auto, gently", "look by ssh", "ssh"]
    told = played.result
    assert (told["outcome"], told["way"], told["closed"], told["files"]) == ("changed", "ssh", {}, [FILE])


def test_what_is_open_without_an_interruption_needs_no_ssh(tmp_path: Path) -> None:
    played = policy(tmp_path, {"changed": True, "way": "exec", **DONE}, reachable=False)
    assert played.exit_code == 0, played.output
    assert tried(played) == ["auto, gently"]


@pytest.mark.parametrize("flags", [(), ("--check",)])
@pytest.mark.parametrize(
    ("reachable", "local", "why"),
    [(False, None, "no route to host"), (True, failed("policy_unsupported", "there is no root"), "there is no root")],
)
def test_a_guest_is_interrupted_where_ansible_cannot_work_in_it(
    tmp_path: Path, flags: tuple[str, ...], reachable: bool, local: dict[str, Any] | None, why: str
) -> None:
    interrupted = {"changed": True, "way": "offline", **DONE}
    played = policy(tmp_path, CLOSED, {}, interrupted, reachable=reachable, local=local, flags=flags)
    assert played.exit_code == 0, played.output
    looks = ["look by ssh"] if reachable else []
    assert tried(played) == ["auto, gently", *looks, "auto, interrupting"]
    told = played.result
    assert (told["outcome"], told["way"]) == ("changed", "offline")
    assert why in told["closed"]["ssh"]
    assert "guest_audit" not in {call["module"] for call in played.calls}


def test_where_no_way_is_open_each_is_named_with_its_reason(tmp_path: Path) -> None:
    last = {**CLOSED, "msg": "the agent cannot be set up from here: offline: there is no guestfish"}
    played = policy(tmp_path, CLOSED, {}, last, reachable=False)
    assert played.exit_code != 0
    told = played.result
    assert (told["outcome"], told["error"]["error_code"], told["closed"]) == ("refused", "no_way_open", {})
    assert "no route to host" in told["error"]["msg"]
    assert told["error"]["msg"].endswith(f"; and {last['msg']}")


def test_a_failure_of_what_interrupts_the_guest_says_that_ssh_was_tried(tmp_path: Path) -> None:
    timeout = failed("shutdown_timeout", "it did not go off", audit={"event": "failed"})
    played = policy(tmp_path, CLOSED, {}, timeout, reachable=False)
    told = played.result
    assert (told["outcome"], told["error"]["error_code"]) == ("failed", "shutdown_timeout")
    assert "no route to host" in told["closed"]["ssh"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"agent_policy_power_cycle": False}, ["auto, gently"]),
        ({"agent_policy_way": "ssh"}, []),
    ],
)
def test_a_guest_that_may_not_be_interrupted_is_refused_where_ssh_is_not_open(
    tmp_path: Path, options: dict[str, Any], expected: list[str]
) -> None:
    played = policy(tmp_path, CLOSED, {}, reachable=False, **options)
    assert tried(played) == expected
    told = played.result
    assert (told["outcome"], told["error"]["error_code"]) == ("refused", "no_way_open")
    assert "no route to host" in told["error"]["msg"]


@pytest.mark.parametrize("options", [{"ansible_host": ""}, {"agent_policy_way": "files"}])
def test_without_ssh_the_first_way_of_the_module_is_taken_at_once(tmp_path: Path, options: dict[str, Any]) -> None:
    played = policy(tmp_path, {"changed": True, "way": "files", **DONE}, **options)
    assert played.exit_code == 0, played.output
    assert tried(played) == [f"{options.get('agent_policy_way', 'auto')}, interrupting"]
