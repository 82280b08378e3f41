# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""QEMU is tried once at each place, and a run goes no further where it fails."""

from __future__ import annotations

from typing import Any

from ansible_collections.kvm.fleet.plugins.filter.plan_trials import trials
from ansible_collections.kvm.fleet.plugins.filter.untouched_guests import guests
from ansible_collections.kvm.fleet.plugins.plugin_utils._result import LONGEST_TEXT


def guest(name: str, hypervisor: str, **variables: Any) -> dict[str, Any]:
    return {"inventory_hostname": name, "kvm_hypervisor": hypervisor, "kvm_domain": f"{name}.example", **variables}


FAILED = {"error_code": "qemu_trial_failed", "msg": "no such machine", "remedy": "Mend it.", "evidence": {"a": 1}}
AWAY = {"error_code": "hypervisor_unavailable", "msg": "libvirt is away", "remedy": "Start it.", "evidence": {}}


def test_each_place_is_tried_once_for_all_of_its_guests() -> None:
    hosts = [guest("a", "hv1"), guest("b", "hv2"), guest("c", "hv1"), guest("d", "hv1", kvm_uri="qemu:///session")]
    assert trials(hosts, {"hv2": {"kvm_uri": "qemu:///session"}}) == {
        "a": {"uri": "qemu:///system", "names": ["a.example", "c.example"]},
        "b": {"uri": "qemu:///session", "names": ["b.example"]},
        "d": {"uri": "qemu:///session", "names": ["d.example"]},
    }


def test_a_trial_that_fails_leaves_all_guests_untouched() -> None:
    records = guests(
        [
            guest("a", "hv1", fleet_trial={"trials": []}),
            guest("b", "hv2", fleet_trial=FAILED),
            guest("c", "hv1", fleet_trial={"skipped": True}),
        ]
    )
    assert list(records) == ["a", "b", "c"]
    assert {record["outcome"] for record in records.values()} == {"not_attempted"}
    assert records["a"]["error"] == {**FAILED, "msg": "on hv2, no such machine", "transient": False}


def test_a_guest_without_a_domain_is_its_own_namesake() -> None:
    assert trials([guest("a", "hv1", kvm_domain=None), guest("b", "hv1", kvm_domain="")], {}) == {
        "a": {"uri": "qemu:///system", "names": ["a", "b"]}
    }


def test_what_a_trial_says_at_length_is_cut() -> None:
    said = {**FAILED, "msg": "m" * 2000, "remedy": "r" * 2000, "evidence": {"log": ["e" * 2000]}}
    error = guests([guest("a", "hv1", fleet_trial=said)])["a"]["error"]
    assert {len(text) for text in (error["msg"], error["remedy"], *error["evidence"]["log"])} == {LONGEST_TEXT}


def test_a_trial_that_could_not_be_done_is_for_the_guests_to_meet() -> None:
    assert guests([guest("a", "hv1", fleet_trial=AWAY), guest("b", "hv2", fleet_trial={"unreachable": True})]) == {}
    assert guests([guest("a", "hv1")]) == {}
