# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One guest's way through a rescue."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.kvm.fleet.plugins.plugin_utils._rescue import make_rescue_plan, make_rescue_result
from ansible_collections.kvm.fleet.plugins.plugin_utils._summary import render_summary
from tests.unit.plugin_utils.test_cycle import GUEST, domain

FSCK = {"name": "fsck", "changed": False, "output": "/dev/sda1 (ext4): clean\n"}
PACKAGES = {"name": "packages", "changed": True, "output": "Setting up x\n"}
POWER = {"restarted": True, "forced": False}
FAILED = {"error_code": "image_failed", "msg": "the script returned 3", "remedy": "See it.", "transient": False}


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (domain(), (True, True)),
        (domain("paused", "unknown"), (True, True)),
        (domain("shut_off", "not_running"), (False, False)),
        (domain("shut_off", "not_running", run={"unfinished": False, "shut_down": True}), (False, False)),
        (domain("shut_off", "not_running", run={"unfinished": True, "shut_down": True}), (False, True)),
    ],
)
def test_what_is_off_stays_off_unless_a_run_has_shut_it_down(
    before: dict[str, Any], expected: tuple[bool, bool]
) -> None:
    plan = make_rescue_plan(before)
    assert (plan["stop"], plan["start"]) == expected


def result(check_mode: bool = False, failure: dict[str, Any] | None = None, **taken: Any) -> dict[str, Any]:
    return make_rescue_result(GUEST, taken, duration=60, check_mode=check_mode, failure=failure)


def test_a_guest_that_was_repaired_says_so() -> None:
    told = result(
        intervening=True,
        before={"domains": [domain(drift="drifted")]},
        after={"domains": [domain()]},
        repair={"repairs": [FSCK, PACKAGES]},
        power=POWER,
    )
    assert (told["outcome"], told["restarted"], told["drift"]) == ("repaired", True, "resolved")
    assert told["repairs"] == [FSCK, PACKAGES]
    lines = render_summary("rescue", [told])
    assert lines[3:7] == [
        "✓ web1",
        "  Repaired: fsck (nothing to repair), packages",
        "  Restarted: yes",
        "  QEMU drift: resolved",
    ]
    assert "Success: 1  Failed: 0  Drift Resolved: 1" in lines


@pytest.mark.parametrize(
    ("taken", "outcome"),
    [
        ({"repair": {"repairs": [FSCK]}, "power": POWER}, "restarted"),
        ({"repair": {"repairs": [FSCK]}}, "unchanged"),
        ({"repair": {"repairs": [PACKAGES]}}, "repaired"),
    ],
)
def test_what_has_changed_decides_the_outcome(taken: dict[str, Any], outcome: str) -> None:
    assert result(**taken)["outcome"] == outcome


@pytest.mark.parametrize(("start", "outcome"), [(True, "restarted"), (False, "unchanged")])
def test_check_mode_predicts_the_start(start: bool, outcome: str) -> None:
    told = result(check_mode=True, plan={"stop": start, "start": start}, before={"domains": [domain()]})
    assert (told["outcome"], told["check_mode"]) == (outcome, True)


def test_a_repair_that_failed_tells_what_was_done_before_it() -> None:
    failed = {**FAILED, "failed": True, "evidence": {"repair": "script", "repairs": [FSCK]}}
    told = result(failure={"task": "Repair the image", "result": failed}, intervening=True, repair=failed, power=POWER)
    assert (told["outcome"], told["restarted"], told["repairs"]) == ("failed", True, [FSCK])
    assert told["error"]["error_code"] == "image_failed"
    assert "  Repaired: fsck (nothing to repair)" in render_summary("rescue", [told])


@pytest.mark.parametrize("stopped", [{"forced": True}, {"failed": True, "evidence": {"forced": True}}])
def test_a_guest_that_was_forced_off_says_so(stopped: dict[str, Any]) -> None:
    assert result(stopped=stopped, power=POWER)["forced_off"] is True


def test_what_an_earlier_run_has_upgraded_is_its_own() -> None:
    resumed = {"run": "run-a", "cut_off": "during the restart", "packages": [{"name": "x"}], "steps": []}
    told = result(lease={"resumed": resumed, "taken_over": None}, repair={"repairs": [FSCK]}, power=POWER)
    assert (told["packages"], told["outcome"]) == ([], "restarted")
    assert told["resumed"] == {"run": "run-a", "cut_off": "during the restart"}
