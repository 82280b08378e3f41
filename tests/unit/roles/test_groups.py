# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every role that takes guests off minds their groups, and in the same way."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.roles.walk import ROLES, tasks

POWERS = (
    *("kvm.fleet.domain_power", "kvm.fleet.domain_rollback"),
    *("kvm.fleet.guest_agent_policy", "kvm.fleet.guest_repair"),
)


def with_module(found: list[dict[str, Any]], *modules: str) -> list[int]:
    return [number for number, task in enumerate(found) if any(module in task for module in modules)]


def takes_off(task: dict[str, Any]) -> bool:
    """Whether a task may shut its guest down, rather than see that it could be, or try its repair on a copy."""
    repair = task.get("kvm.fleet.guest_repair", {})
    return not (task.get("check_mode") or repair.get("before_shutdown") or repair.get("rehearse"))


@pytest.mark.parametrize("role", sorted(path.name for path in ROLES.iterdir()))
def test_a_place_is_taken_after_the_guest_and_before_it_is_taken_off(role: str) -> None:
    found = list(tasks(ROLES / role / "tasks" / "main.yml"))
    taken_off = [number for number in with_module(found, *POWERS) if takes_off(found[number])]
    if not taken_off:
        assert role in ("prune", "selinux_runner")
        return
    [lease, *_later] = with_module(found, "kvm.fleet.guest_lease")
    [place, *others] = with_module(found, "kvm.fleet.group_lease")
    assert lease < place < min(taken_off)
    asked = {name: text.replace(role, "ROLE") for name, text in found[place]["kvm.fleet.group_lease"].items()}
    assert asked == {
        "group": "{{ kvm_group }}",
        "at_once": "{{ kvm_group_at_once | default(1) }}",
        "member": "{{ inventory_hostname }}",
        "uuid": "{{ ROLE_lease.record.uuid }}",
        "uri": "{{ ROLE_uri }}",
        "run": "{{ ROLE_this_run.run }}",
        "owner": "{{ ROLE_this_run.owner }}",
        "ttl": "{{ ROLE_lease_timeout }}",
    }
    for number in others:
        left = found[number]["kvm.fleet.group_lease"]
        if left.get("state") == "absent":
            assert {**asked, "state": "absent", "outcome": "{{ ROLE_result.outcome }}"} == {
                "at_once": asked["at_once"],
                **{name: text.replace(role, "ROLE") for name, text in left.items()},
            }
    where = {found[number]["delegate_to"] for number in (place, *others)}
    assert where == {f"{{{{ fleet_locks_on | default({role}_hypervisor) }}}}"}
