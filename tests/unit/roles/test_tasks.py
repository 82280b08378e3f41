# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the tasks of all roles hold to."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.unit.roles.walk import ROLES, tasks

# Those of the collection's modules that change nothing of a guest.
LOOKS = {f"kvm.fleet.{name}" for name in ("domain_info", "group_lease", "guest_exec", "guest_info", "guest_lease")}


def changes_a_guest(task: dict[str, Any]) -> bool:
    modules = {key for key in task if key.startswith("kvm.fleet.")} - LOOKS
    only_looks = task.get("check_mode") is True or any(task[module].get("before_shutdown") for module in modules)
    return bool(modules) and not only_looks


@pytest.mark.parametrize("role", ["agent", "agent_policy", "rescue", "upgrade"])
def test_a_report_that_the_run_ended_is_written_ahead_of_the_first_change(role: str) -> None:
    """A run that is cut off leaves it as its last word on the guest."""
    reports, changes = [], []
    for number, task in enumerate(tasks(ROLES / role / "tasks" / "main.yml")):
        if any("run_ended" in str(value) for value in task.get("report", {}).values()):
            reports.append(number)
        elif changes_a_guest(task):
            changes.append((number, task["name"]))
    assert changes, "no task of the role was recognised"
    assert reports[0] < changes[0][0], changes[0]


@pytest.mark.parametrize("role", ["agent", "rescue"])
def test_a_guest_that_check_mode_has_not_shut_down_is_not_asked_whether_it_can_be_restarted(role: str) -> None:
    """It still runs, and would be asked what nobody asks of one that is off."""
    stopped = False
    for task in tasks(ROLES / role / "tasks" / "main.yml"):
        asked = task.get("kvm.fleet.domain_power", {})
        stopped = stopped or (asked.get("state") == "stopped" and not task.get("check_mode"))
        if stopped and asked.get("state") == "restarted":
            assert "not ansible_check_mode" in task["when"] or asked["agent_timeout"] == 0, task["name"]
            return
    pytest.fail("no start was recognised")


@pytest.mark.parametrize("role", ["agent", "agent_policy", "rescue", "upgrade"])
def test_a_guest_of_another_run_is_refused_with_the_roles_own_variable_to_take_it_over(role: str) -> None:
    given = [task["kvm.fleet.guest_lease"] for task in tasks(ROLES / role / "tasks" / "main.yml") if _takes(task)]
    options = yaml.safe_load((ROLES / role / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))
    assert given[0]["take_over_setting"] in options["argument_specs"]["main"]["options"]
    assert given[0]["take_over_setting"] in given[0]["take_over"]


def _takes(task: dict[str, Any]) -> bool:
    return "take_over" in task.get("kvm.fleet.guest_lease", {})
