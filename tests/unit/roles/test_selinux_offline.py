# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""When the role selinux_runner shuts a guest down to install the runner in its image, and when it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.roles.stage import Played, play

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

REFUSED = {
    "failed": True,
    "error_code": "image_failed",
    "msg": "the script returned 1: the guest has no semanage",
    "remedy": "See what it printed.",
    "transient": False,
    "evidence": {},
}


def looked(state: str, **run: Any) -> dict[str, Any]:
    drift: dict[str, Any] = {"state": "not_running" if state == "shut_off" else "none", "reasons": []}
    return {"domains": [{"state": state, "run": run or None, "drift": drift}]}


def said(output: str) -> dict[str, Any]:
    return {"changed": True, "repairs": [{"name": "script", "changed": True, "output": f"{output}\n"}]}


def offline(directory: Path, script: dict[str, Any], *flags: str, look: dict[str, Any], **options: Any) -> Played:
    """The role, offline. ``script`` is what comes of the script on the copy; it does the same in the image."""
    lease = {"record": {"uuid": "u"}, "resumed": None, "taken_over": None}
    answers = {
        "domain_info": [look],
        "guest_lease": [lease],
        "guest_exec": [{"rc": 0, "stdout": options.pop("context", "system_u:system_r:unconfined_t:s0")}],
        "guest_repair": [script, {"virt_rescue": None, "repairs": []}, script],
    }
    variables = {"selinux_runner_way": "offline", **options}
    return play(directory, "selinux_runner", answers, *flags, variables=variables, reachable=False)


def repairs(played: Played) -> list[str]:
    """What was done with its image, in order, and whether the guest was shut down for that and started again."""
    return [_kind(call) for call in played.asked("guest_repair")]


def _kind(call: Mapping[str, Any]) -> str:
    if call.get("rehearse"):
        return "on a copy"
    if call.get("before_shutdown"):
        return "looked at"
    if call["check"]:
        return "foreseen"
    return "between shutdown and start" if call["power_cycle"] else "while it is off"


RUNS = looked("running")
INSTALLED = said("the runner was installed")
THERE = said("the runner is there")


def test_a_guest_is_shut_down_for_what_the_copy_lacked_and_started_again(tmp_path: Path) -> None:
    played = offline(tmp_path, INSTALLED, look=RUNS)
    assert played.exit_code == 0, played.output
    assert repairs(played) == ["on a copy", "looked at", "between shutdown and start"]
    scripts = {call["script"] for call in played.asked("guest_repair")}
    [script] = scripts
    assert "path=/usr/libexec/kvm-fleet/run\n" in script
    assert 'exec "$@"' in script
    assert [call["check"] for call in played.asked("guest_exec")] == [True, False]


@pytest.mark.parametrize("output", ["the runner is there", "SELinux is off"])
def test_a_guest_that_needs_nothing_is_not_shut_down(tmp_path: Path, output: str) -> None:
    played = offline(tmp_path, said(output), look=RUNS)
    assert played.exit_code == 0, played.output
    assert repairs(played) == ["on a copy"]
    proofs = [call for call in played.asked("guest_exec") if not call["check"]]
    assert len(proofs) == (output == "the runner is there")
    assert played.asked("guest_lease") == []


def test_what_the_copy_refuses_leaves_the_guest_running(tmp_path: Path) -> None:
    played = offline(tmp_path, REFUSED, look=RUNS)
    assert played.exit_code != 0
    assert "the guest has no semanage" in played.output
    assert (repairs(played), played.asked("guest_lease")) == (["on a copy"], [])


def test_what_check_mode_would_install_it_only_tells(tmp_path: Path) -> None:
    played = offline(tmp_path, INSTALLED, "--check", look=RUNS)
    assert played.exit_code == 0, played.output
    assert repairs(played) == ["on a copy", "looked at", "foreseen"]
    assert "changed=0" not in played.output.partition("PLAY RECAP")[2]


@pytest.mark.parametrize(
    ("run", "script", "done"),
    [
        ({}, INSTALLED, ["looked at", "while it is off"]),
        ({}, THERE, []),
        (
            {"shut_down": True, "unfinished": True, "lease": None, "live": False},
            THERE,
            ["looked at", "between shutdown and start"],
        ),
    ],
)
def test_a_guest_that_is_off_stays_off_unless_a_run_has_left_it_so(
    tmp_path: Path, run: dict[str, Any], script: dict[str, Any], done: list[str]
) -> None:
    played = offline(tmp_path, script, look=looked("shut_off", **run))
    assert played.exit_code == 0, played.output
    assert repairs(played) == ["on a copy", *done]
    assert len(played.asked("guest_exec")) == bool(run)


def test_an_agent_that_is_still_confined_fails_the_guest(tmp_path: Path) -> None:
    played = offline(tmp_path, THERE, look=RUNS, context="system_u:system_r:virt_qemu_ga_t:s0")
    assert played.exit_code != 0
    assert "still run as system_u:system_r:virt_qemu_ga_t:s0" in played.output


@pytest.mark.parametrize(
    ("way", "address", "by_ssh"), [("auto", True, True), ("auto", False, False), ("ssh", False, True)]
)
def test_a_guest_is_shut_down_only_where_that_was_asked_for(
    tmp_path: Path, way: str, address: bool, by_ssh: bool
) -> None:
    given = {"ansible_host": "192.0.2.1"} if address else {}
    played = offline(tmp_path, INSTALLED, look=RUNS, selinux_runner_way=way, **given)
    assert (played.exit_code != 0) is by_ssh  # nobody is reached there
    assert ("between shutdown and start" in repairs(played)) is not by_ssh
