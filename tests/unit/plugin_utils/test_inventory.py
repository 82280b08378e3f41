# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which hosts the guests of hypervisors become: their names, variables and groups."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ansible_collections.kvm.fleet.plugins.plugin_utils._inventory import (
    Entry,
    Look,
    entries,
    failures,
    look,
    reusable,
    state_groups,
    unasked,
    unknown_options,
    worth_keeping,
)

SYSTEM, SESSION = "qemu:///system", "qemu:///session"
REFUSED = {"failed": True, "msg": "no libvirt", "error_code": "libvirt_python_missing", "remedy": "Install it."}


def domain(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "uuid": f"uuid of {name}",
        "state": "running",
        "os": None,
        "drift": {"state": "none", "reasons": []},
        "agent_channel": "connected",
        "hints": {},
        "hints_problem": None,
        "run": None,
        **more,
    }


def guest(name: str, allowed: bool | None) -> dict[str, Any]:
    return {
        "name": name,
        "agent": {"state": "answering", "version": "7.2", "rpcs": {"guest-exec": {"allowed": allowed}}},
        "os": {"id": "debian"},
        "reboot_required": False,
        "problems": [],
    }


def seen(*domains: dict[str, Any], uri: str = SYSTEM, asked: dict[str, Any] | None = None) -> Look:
    return Look(uri, {"domains": list(domains)}, asked)


def only(looks: dict[str, Look], **inventory: dict[str, Any]) -> Entry:
    [entry] = entries(looks, inventory)
    return entry


def names(looks: dict[str, Look], **inventory: dict[str, Any]) -> list[str]:
    return [entry.name for entry in entries(looks, inventory)]


def host(name: str, **variables: Any) -> dict[str, Any]:
    return {"inventory_hostname": name, **variables}


# --- names ---------------------------------------------------------------------------------------


def test_a_guest_goes_by_its_domains_name_as_a_host_can_have_it() -> None:
    looks = {"hv1": seen(domain("web1"), domain("a:80"))}
    assert [(entry.name, entry.variables["kvm_domain"]) for entry in entries(looks, {})] == [
        ("web1", "web1"),
        ("a%3A80", "a:80"),
    ]


def test_guests_of_one_name_on_two_hypervisors_are_both_there() -> None:
    looks = {"hv1": seen(domain("web1"), domain("db1")), "hv2": seen(domain("web1"))}
    assert names(looks) == ["web1@hv1", "db1", "web1@hv2"]


@pytest.mark.parametrize("taken", ["hv1", "printer"])
def test_a_name_that_another_host_has_is_not_taken_from_it(taken: str) -> None:
    assert names({"hv1": seen(domain(taken))}, printer=host("printer")) == [f"{taken}@hv1"]


def test_a_host_that_is_listed_as_the_guest_stays_it() -> None:
    listed = {"www": host("www", kvm_hypervisor="hv1", kvm_domain="web1"), "db1": host("db1", kvm_hypervisor="hv1")}
    looks = {"hv1": seen(domain("web1"), domain("db1"), uri=SESSION)}
    assert [(entry.name, entry.variables["kvm_uuid"]) for entry in entries(looks, listed)] == [
        ("www", "uuid of web1"),
        ("db1", "uuid of db1"),
    ]


def test_a_hypervisor_that_is_a_guest_itself_has_guests() -> None:
    inner = host("hv2", kvm_hypervisor="hv1")
    looks = {"hv1": seen(domain("hv2")), "hv2": seen(domain("web1"))}
    assert names(looks, hv2=inner) == ["hv2", "web1"]


def test_listed_guests_that_were_not_seen_are_left_as_they_are() -> None:
    listed = {"ghost": host("ghost", kvm_hypervisor="hv1"), "far": host("far", kvm_hypervisor="hv9")}
    assert names({"hv1": seen(domain("web1")), "hv2": Look(SYSTEM, REFUSED)}, **listed) == ["web1"]


# --- variables -----------------------------------------------------------------------------------


def test_a_guest_says_where_and_how_it_is() -> None:
    reason = {"kind": "binary_replaced", "path": "/usr/bin/qemu", "detail": "another file has taken its place"}
    drift = {"state": "drifted", "reasons": [reason]}
    system = "http://debian.org/debian/12"
    assert only({"hv1": seen(domain("web1", drift=drift, os=system))}).variables == {
        "kvm_hypervisor": "hv1",
        "kvm_domain": "web1",
        "kvm_uuid": "uuid of web1",
        "kvm_state": "running",
        "kvm_os": system,
        "kvm_drift": "drifted",
        "kvm_drift_reasons": [reason],
        "kvm_agent_channel": "connected",
        "kvm_run": None,
        "kvm_hints_problem": None,
    }


def test_a_connection_is_said_where_it_is_not_the_usual_one() -> None:
    assert only({"hv1": seen(domain("web1"), uri=SESSION)}).variables["kvm_uri"] == SESSION


def test_what_a_guest_says_of_itself_has_names_of_its_own() -> None:
    usual = set(only({"hv1": seen(domain("web1"))}).variables)
    asked = only({"hv1": seen(domain("web1"), asked={"guests": [guest("web1", True)]})}).variables
    assert {name: value for name, value in asked.items() if name not in usual} == {
        "kvm_guest_agent": "answering",
        "kvm_guest_agent_version": "7.2",
        "kvm_guest_exec": True,
        "kvm_guest_os": {"id": "debian"},
        "kvm_guest_reboot_required": False,
        "kvm_guest_problems": [],
    }


def test_hints_are_apart_and_tags_are_always_there() -> None:
    assert only({"hv1": seen(domain("web1"))}).hints == {"kvm_tags": []}
    hints = {"tags": ["web"], "depends_on": ["db1"], "group": "web", "group_at_once": 2, "canary": True}
    assert only({"hv1": seen(domain("web1", hints=hints))}).hints == {
        "kvm_tags": ["web"],
        "kvm_depends_on": ["db1"],
        "kvm_group": "web",
        "kvm_group_at_once": 2,
        "kvm_canary": True,
    }


# --- groups --------------------------------------------------------------------------------------

OFF = {"state": "shut_off", "drift": {"state": "not_running", "reasons": []}, "agent_channel": "unknown"}


@pytest.mark.parametrize(
    ("facts", "groups"),
    [
        ({}, {"running"}),
        ({"state": "blocked"}, {"running"}),
        ({"state": "paused"}, set()),
        (OFF, {"off"}),
        ({"drift": {"state": "drifted", "reasons": []}}, {"running", "drifted"}),
        ({"drift": {"state": "unknown", "reasons": []}}, {"running", "drift_unknown"}),
        ({"agent_channel": "absent"}, {"running", "agent_missing"}),
        ({"agent_channel": "disconnected"}, {"running", "agent_missing"}),
        ({"agent_channel": "unknown"}, {"running"}),
        ({**OFF, "agent_channel": "absent"}, {"off"}),
    ],
)
def test_a_guest_is_in_the_groups_that_are_true_of_it(facts: dict[str, Any], groups: set[str]) -> None:
    assert set(only({"hv1": seen(domain("web1", **facts))}).groups) == {"kvm_guests", *groups}
    assert groups <= set(state_groups(asked=False))


@pytest.mark.parametrize(("allowed", "blocked"), [(True, False), (False, True), (None, False)])
def test_blocked_is_only_what_an_agent_has_said_to_be(allowed: bool | None, blocked: bool) -> None:
    asked = {"guests": [guest("web1", allowed)]}
    assert ("guest_exec_blocked" in only({"hv1": seen(domain("web1"), asked=asked)}).groups) is blocked
    assert "guest_exec_blocked" in state_groups(asked=True)
    assert "guest_exec_blocked" not in state_groups(asked=False)


# --- looks ---------------------------------------------------------------------------------------


def test_the_connection_is_the_one_that_the_module_was_given() -> None:
    assert look({"domains": [], "invocation": {"module_args": {"uri": SESSION}}}, None).uri == SESSION
    assert look({"unreachable": True, "msg": "no route"}, None).uri == SYSTEM


def test_a_failure_is_told_with_its_cause_and_remedy() -> None:
    looks = {"hv1": seen(), "hv2": Look(SYSTEM, REFUSED), "hv3": Look(SYSTEM, {"unreachable": True, "msg": "no route"})}
    told = failures(looks)
    assert {name: (failure["error_code"], failure["msg"]) for name, failure in told.items()} == {
        "hv2": ("libvirt_python_missing", "hv2 could not be looked at: no libvirt"),
        "hv3": ("hypervisor_unreachable", "hv3 could not be looked at: no route"),
    }
    assert all(failure["remedy"] for failure in told.values())


def test_guests_that_could_not_be_asked_are_there_all_the_same() -> None:
    looks = {"hv1": seen(domain("web1"), asked={"failed": True, "msg": "too slow"}), "hv2": seen(asked={"guests": []})}
    assert unasked(looks) == {"hv1": "too slow"}
    assert names(looks) == ["web1"]


def test_a_cache_keeps_what_was_seen_and_no_failure() -> None:
    looks = {"hv1": seen(domain("web1"), uri=SESSION), "hv2": Look(SYSTEM, REFUSED)}
    kept = json.loads(json.dumps(worth_keeping(looks)))
    assert reusable(kept, ["hv1", "hv2", "hv3"], ask=False) == {"hv1": looks["hv1"]}
    assert reusable(kept, ["hv3"], ask=False) == {}


def test_guests_that_were_not_asked_are_looked_at_again_when_they_are_to_be() -> None:
    looks = {
        "hv1": seen(),
        "hv2": seen(asked={"guests": []}),
        "hv3": seen(asked={"failed": True, "msg": "too slow"}),
    }
    assert set(reusable(worth_keeping(looks), looks, ask=True)) == {"hv2"}
    assert reusable(worth_keeping(looks), looks, ask=False) == dict.fromkeys(["hv1", "hv2", "hv3"], seen())


def test_options_are_known_by_name() -> None:
    assert unknown_options(["plugin", "hypervisor", "filters"], ["hypervisors", "filters"]) == ["hypervisor"]
