# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is done for a guest whose agent cannot be reached, and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.kvm.fleet.plugins.plugin_utils._reach import Plan, make_plan, make_result

NOT_ASKED: dict[str, Any] = {"agent": None}
ANSWERING = {"agent": "answering"}
SILENT = {"failed": True, "error_code": "agent_silent", "evidence": {"connected": False}}
HUNG = {
    "failed": True,
    "error_code": "agent_silent",
    "transient": True,
    "msg": "it hangs",
    "remedy": "Restart it.",
    "evidence": {"connected": True},
}

# As the role registers them: it has declared that none of them is a failure.
UNREACHABLE = {"unreachable": True, "msg": "Failed to connect to the host via ssh: no route to host"}
NO_PYTHON = {"failed": False, "rc": 127, "msg": "The module failed to execute correctly, you probably need Python."}
NOT_ROOT = {"failed": False, "rc": 0, "stdout": "1000"}
ROOT = {"failed": False, "rc": 0, "stdout": "0"}
NO_TOOLS = {"failed": False, "error_code": "image_tools_missing", "msg": "no guestfish", "remedy": "Install it."}
IMAGE = {"changed": False, "repairs": []}

GUEST = {"run": "r1", "name": "web1", "hypervisor": "hv1", "uri": "qemu:///system", "domain": "vm1"}


def channel(live: str, persistent: str = "present", **facts: Any) -> dict[str, Any]:
    return {"live": live, "persistent": persistent, "reason": "no bus" if live == "needs_restart" else "", **facts}


@pytest.mark.parametrize(
    ("live", "asked", "ways", "plan"),
    [
        ("present", ANSWERING, ["ssh"], Plan()),
        ("present", ANSWERING, [], Plan()),
        ("present", SILENT, ["ssh", "offline"], Plan(install="ssh")),
        ("present", SILENT, ["offline", "ssh"], Plan(install="offline")),
        # It may have the agent already, which shows once it has the channel.
        ("added", NOT_ASKED, ["ssh"], Plan()),
        ("added", NOT_ASKED, [], Plan()),
        ("added", ANSWERING, ["ssh"], Plan()),
        ("added", SILENT, ["ssh"], Plan(install="ssh")),
        ("needs_restart", NOT_ASKED, [], Plan(restart=True)),
        ("needs_restart", NOT_ASKED, ["ssh"], Plan(install="ssh", restart=True)),
        # It is shut down and started for its image anyway.
        ("needs_restart", NOT_ASKED, ["offline"], Plan(install="offline")),
    ],
)
def test_the_gentlest_way_that_is_open_is_planned(
    live: str, asked: dict[str, Any], ways: list[str], plan: Plan
) -> None:
    assert make_plan("web1", channel(live), asked, ways=ways, restart=True) == plan


@pytest.mark.parametrize(
    ("live", "asked", "ways", "code", "words"),
    [
        ("not_running", NOT_ASKED, ["ssh", "offline"], "domain_not_running", "guest 'web1' is off"),
        ("present", SILENT, [], "no_way_open", "nobody answers on it"),
        ("added", SILENT, [], "no_way_open", "nobody answers on it"),
        ("needs_restart", NOT_ASKED, [], "no_way_open", "may not be restarted"),
        ("needs_restart", NOT_ASKED, ["ssh"], "no_way_open", "may not be restarted"),
    ],
)
def test_a_guest_that_nothing_can_be_done_for_is_refused(
    live: str, asked: dict[str, Any], ways: list[str], code: str, words: str
) -> None:
    plan = make_plan("web1", channel(live), asked, ways=ways, restart=False)
    assert (plan.install, plan.restart, plan.refusal["error_code"]) == ("", False, code)
    assert words in plan.refusal["msg"]
    assert plan.refusal["remedy"]


@pytest.mark.parametrize(
    ("live", "tried", "install", "closed"),
    [
        ("present", {}, "ssh", {}),
        ("present", {"ssh": ROOT}, "ssh", {}),
        ("present", {"ssh": UNREACHABLE}, "offline", {"ssh": "cannot log in: Failed to connect"}),
        ("needs_restart", {"ssh": UNREACHABLE}, "offline", {"ssh": "cannot log in: Failed to connect"}),
        ("present", {"ssh": NO_PYTHON}, "offline", {"ssh": "cannot work there: The module failed"}),
        ("present", {"ssh": NOT_ROOT}, "offline", {"ssh": "is not root there"}),
        ("present", {"ssh": NOT_ROOT, "offline": IMAGE}, "offline", {"ssh": "is not root there"}),
    ],
)
def test_a_way_that_is_not_open_makes_place_for_the_next_one(
    live: str, tried: dict[str, Any], install: str, closed: dict[str, str]
) -> None:
    plan = make_plan("web1", channel(live), SILENT, ways=["ssh", "offline"], restart=True, tried=tried)
    assert (plan.install, plan.restart, plan.refusal) == (install, False, {})
    assert set(plan.closed) == set(closed)
    assert all(words in plan.closed[way] for way, words in closed.items())


def test_the_preferred_way_may_be_the_image_and_it_may_be_closed() -> None:
    plan = make_plan(
        "web1", channel("present"), SILENT, ways=["offline", "ssh"], restart=True, tried={"offline": NO_TOOLS}
    )
    assert (plan.install, plan.closed) == ("ssh", {"offline": "no guestfish"})


@pytest.mark.parametrize("live", ["present", "needs_restart"])
def test_a_guest_none_of_whose_ways_is_open_is_refused_with_each_reason_and_not_restarted_in_hope(live: str) -> None:
    tried = {"ssh": UNREACHABLE, "offline": NO_TOOLS}
    plan = make_plan("web1", channel(live), SILENT, ways=["ssh", "offline"], restart=True, tried=tried)
    assert (plan.install, plan.restart, plan.refusal["error_code"]) == ("", False, "no_way_open")
    assert "; ssh: Ansible cannot log in: " in plan.refusal["msg"]
    assert plan.refusal["msg"].endswith("; offline: no guestfish")
    assert plan.refusal["remedy"].endswith("Install it.")
    assert plan.refusal["evidence"] == plan.closed


def test_an_image_is_not_edited_of_a_guest_that_may_not_be_shut_down() -> None:
    plan = make_plan("web1", channel("present"), SILENT, ways=["offline"], restart=False)
    assert (plan.install, plan.refusal["error_code"]) == ("", "no_way_open")
    assert "agent_restart is false" in plan.refusal["evidence"]["offline"]
    assert "agent_restart: true" in plan.refusal["remedy"]
    assert make_plan("web1", channel("present"), SILENT, ways=["offline", "ssh"], restart=False).install == "ssh"


def test_an_agent_that_hangs_is_not_missing() -> None:
    plan = make_plan("web1", channel("present"), HUNG, ways=[], restart=True)
    assert (plan.install, plan.restart) == ("", False)
    assert plan.refusal == {key: HUNG[key] for key in ("msg", "error_code", "transient", "remedy", "evidence")}
    # What installs it starts it anew as well.
    assert make_plan("web1", channel("present"), HUNG, ways=["offline"], restart=True).install == "offline"


def test_a_refusal_says_of_each_way_why_it_is_closed() -> None:
    plan = make_plan("web1", channel("present"), SILENT, ways=[], restart=True)
    assert set(plan.refusal["evidence"]) == {"ssh", "offline"}


def result(taken: dict[str, Any], failed: dict[str, Any] | None = None, *, check_mode: bool = False) -> dict[str, Any]:
    return make_result(GUEST, taken, duration=12.34, check_mode=check_mode, failure=failed)


RESTARTED = {"restarted": True, "forced": False, "steps": ["shut_down", "start"]}


@pytest.mark.parametrize(
    ("taken", "outcome"),
    [
        ({"channel": channel("present", changed=False)}, "unchanged"),
        ({"channel": channel("added", "added", changed=True)}, "changed"),
        ({"channel": channel("present", changed=False), "installed": True, "plan": {"install": "ssh"}}, "changed"),
        # The package was there.
        ({"channel": channel("present", changed=False), "installed": False, "plan": {"install": "ssh"}}, "unchanged"),
        ({"channel": channel("needs_restart", "added", changed=True), "power": RESTARTED}, "restarted"),
        ({"channel": channel("present"), "power": {"restarted": False, "steps": ["start"]}}, "restarted"),
        ({"channel": channel("present", changed=False), "power": {"skipped": True}}, "unchanged"),
    ],
)
def test_the_outcome_says_what_was_done(taken: dict[str, Any], outcome: str) -> None:
    assert result(taken)["outcome"] == outcome


def test_a_result_tells_everything_that_was_taken() -> None:
    taken = {
        "lease": {"taken_over": None},
        "channel": channel("needs_restart", "added", changed=True),
        "plan": {"install": "ssh"},
        "installed": True,
        "power": {**RESTARTED, "forced": True},
        "proof": {"agent": "answering"},
    }
    told = result(taken)
    assert (told["channel"], told["installed"]) == ({"persistent": "added", "live": "needs_restart"}, "ssh")
    assert (told["restarted"], told["forced_off"], told["agent"]) == (True, True, "answering")
    assert (told["guest"], told["domain"], told["duration"], told["error"]) == ("web1", "vm1", 12.3, None)


@pytest.mark.parametrize(("intervening", "outcome"), [(True, "failed"), (False, "refused")])
def test_a_failure_is_a_refusal_until_something_may_have_changed(intervening: bool, outcome: str) -> None:
    failed = {"task": "Prove", "result": {"error_code": "agent_silent", "msg": "silence", "remedy": "Look."}}
    told = result({"intervening": intervening}, failed)
    assert (told["outcome"], told["error"]["error_code"], told["channel"]) == (outcome, "agent_silent", {})


def test_a_restart_that_failed_half_way_has_restarted_nothing() -> None:
    power = {"failed": True, "error_code": "shutdown_timeout", "evidence": {"forced": False}}
    told = result({"intervening": True, "power": power}, {"task": "Restart", "result": power})
    assert (told["restarted"], told["forced_off"], told["outcome"]) == (False, False, "failed")


def test_a_guest_that_an_earlier_run_had_left_off_was_restarted() -> None:
    resumed = {"run": "r0", "cut_off": "during the restart", "steps": []}
    taken = {
        "lease": {"taken_over": None, "resumed": resumed},
        "channel": channel("present", changed=False),
        "brought_back": {"restarted": True, "steps": ["start"], "forced": False},
        "stopped": {"skipped": True},
        "power": {"skipped": True},
    }
    told = result(taken)
    assert (told["outcome"], told["restarted"]) == ("restarted", True)
    assert told["resumed"] == {"run": "r0", "cut_off": "during the restart"}


def test_check_mode_predicts_the_start_of_what_it_would_shut_down() -> None:
    for step in ({"power": RESTARTED}, {"repair": {"repairs": [], "power": RESTARTED}}):
        told = result({"channel": channel("needs_restart"), **step}, check_mode=True)
        assert (told["outcome"], told["restarted"]) == ("restarted", True)


def test_a_guest_that_was_started_again_after_a_failed_install_is_told_to_be_restarted() -> None:
    failed = {"failed": True, "evidence": {"restarted": True, "forced": True}}
    told = result({"intervening": True, "repair": failed}, {"task": "Install", "result": failed})
    assert (told["outcome"], told["restarted"], told["forced_off"]) == ("failed", True, True)


def test_a_guest_that_was_ended_by_force_is_told() -> None:
    taken = {"channel": channel("present", changed=False), "stopped": {"forced": True}, "power": RESTARTED}
    assert result(taken)["forced_off"] is True


def test_a_result_tells_which_way_was_not_open() -> None:
    plan = {"install": "offline", "closed": {"ssh": "no route"}}
    told = result({"channel": channel("present", changed=False), "plan": plan, "installed": True, "power": RESTARTED})
    assert (told["installed"], told["closed"]) == ("offline", {"ssh": "no route"})
