# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which guests a playbook is about, and what becomes of those that nobody can look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvm.fleet.plugins.plugin_utils._result import LONGEST_TEXT
from ansible_collections.kvm.fleet.plugins.plugin_utils._selection import (
    Guest,
    SelectionError,
    all_guests,
    check_limit,
    choose_looks,
    default_hosts,
    elsewhere,
    failed_looks,
    host_name,
    known_guests,
    refusal,
    select_guests,
    wanted_names,
)

UNREACHABLE = {"unreachable": True, "msg": "no route to host", "changed": False}
SESSION = "qemu:///session"


def domain(name: str, drift: str = "none") -> dict[str, Any]:
    return {"name": name, "uuid": f"uuid of {name}", "drift": {"state": drift, "reasons": []}}


def host(name: str, look: Mapping[str, Any] | None = None, **variables: Any) -> dict[str, Any]:
    looked = {} if look is None else {"fleet_domains": look}
    return {"inventory_hostname": name, **looked, **variables}


def hypervisor(name: str, *domains: str, **variables: Any) -> dict[str, Any]:
    return host(name, {"domains": [domain(name) for name in domains]}, **variables)


def names(guests: list[Guest]) -> list[str]:
    return [guest.name for guest in guests]


# --- hypervisors ---------------------------------------------------------------------------------


def test_a_fleet_is_its_groups_or_everything() -> None:
    assert default_hosts({"kvm_guests": [], "web": []}) == ["kvm_guests"]
    assert default_hosts({"kvm_guests": [], "kvm_hypervisors": []}) == ["kvm_hypervisors", "kvm_guests"]
    assert default_hosts({"web": []}) == ["all"]


def test_each_hypervisor_is_looked_at_once() -> None:
    hosts = [host("web1", kvm_hypervisor="hv1"), host("web2", kvm_hypervisor="hv1"), host("hv1"), host("hv2")]
    assert choose_looks(hosts, {}) == {"web1": "qemu:///system", "hv2": "qemu:///system"}


def test_each_connection_of_a_hypervisor_is_looked_at() -> None:
    hosts = [host("web1", kvm_hypervisor="hv1"), host("web2", kvm_hypervisor="hv1", kvm_uri=SESSION)]
    assert choose_looks(hosts, {}) == {"web1": "qemu:///system", "web2": SESSION}


def test_a_guest_has_its_own_uri_or_that_of_its_hypervisor() -> None:
    inventory = {"hv1": {"kvm_uri": SESSION}}
    hosts = [
        host("web1", kvm_hypervisor="hv1"),
        host("web2", kvm_hypervisor="hv1", kvm_uri="qemu:///other"),
        host("web3", kvm_hypervisor="hv2"),
    ]
    assert [guest.place.uri for guest in known_guests(hosts, inventory)] == [SESSION, "qemu:///other", "qemu:///system"]


@pytest.mark.parametrize(
    ("look", "error_code"),
    [
        (UNREACHABLE, "hypervisor_unreachable"),
        ({"failed": False, "error_code": "hypervisor_unavailable", "msg": "no socket"}, "hypervisor_unavailable"),
        ({"failed": False, "msg": "MODULE FAILURE"}, "hypervisor_unreachable"),
    ],
)
def test_a_look_without_domains_has_failed(look: dict[str, Any], error_code: str) -> None:
    failed = failed_looks([host("web1", look, kvm_hypervisor="hv1")], {})["web1"]
    assert (failed["hypervisor"], failed["error_code"]) == ("hv1", error_code)
    assert failed["msg"] == f"hv1 could not be looked at: {look['msg']}"
    assert failed["remedy"]


def test_a_look_that_was_left_to_another_host_or_found_nothing_has_not_failed() -> None:
    hosts = [host("web1", {"skipped": True}, kvm_hypervisor="hv1"), host("web2"), hypervisor("hv1")]
    assert failed_looks(hosts, {}) == {}


# --- guests --------------------------------------------------------------------------------------


def test_guests_are_listed_or_found() -> None:
    guests = known_guests([host("web1", kvm_hypervisor="hv1", kvm_domain="www"), hypervisor("hv1", "db", "www")], {})
    assert [(guest.name, guest.domain, guest.listed) for guest in guests] == [
        ("web1", "www", True),
        ("db", "db", False),
    ]
    assert all(guest.observed for guest in guests)


def test_a_guest_of_a_hypervisor_that_could_not_be_looked_at_stays_known() -> None:
    hosts = [host("web1", UNREACHABLE, kvm_hypervisor="hv1"), host("web2", {"skipped": True}, kvm_hypervisor="hv1")]
    guests = known_guests(hosts, {})
    assert [(guest.name, guest.drift) for guest in guests] == [("web1", "unknown"), ("web2", "unknown")]
    assert names(select_guests(guests, None, {})) == ["web1", "web2"]


def test_what_agents_told_goes_with_listed_and_found_guests() -> None:
    def told(name: str, allowed: bool | None) -> dict[str, Any]:
        return {"name": name, "agent": {"rpcs": {"guest-exec": {"allowed": allowed}}}}

    asked = {"guests": [told("a", True), told("b", False), told("c", None)]}
    hosts = [
        hypervisor("hv1", "a", "b", "c", "d", fleet_asked=asked),
        host("web1", kvm_hypervisor="hv1", kvm_domain="b"),
        hypervisor("hv2", "e", fleet_asked={"msg": "no route to host", "unreachable": True}),
    ]
    assert {guest.name: guest.guest_exec for guest in known_guests(hosts, {})} == {
        "web1": "blocked",
        "a": "allowed",
        "c": "unknown",
        "d": "unknown",
        "e": "unknown",
    }


@pytest.mark.parametrize("flag", [True, "true", "yes"])
def test_a_hypervisor_that_keeps_to_listed_guests_shows_no_others(flag: object) -> None:
    looked = hypervisor("hv1", "web1", "web2", kvm_only_listed=flag)
    hosts = [looked, host("web1", kvm_hypervisor="hv1")]
    assert names(known_guests(hosts, {})) == ["web1"]
    assert names(all_guests(hosts, {})) == ["web1", "web2"], "what a guest depends on need not be worked on"


@pytest.mark.parametrize("flag", [False, "false", "no", None])
def test_a_hypervisor_that_does_not_shows_all(flag: object) -> None:
    assert names(known_guests([hypervisor("hv1", "web1", kvm_only_listed=flag)], {})) == ["web1"]


def test_all_guests_are_those_of_the_run_and_whatever_else_anybody_knows() -> None:
    looked = host("web1", {"domains": [domain("www"), domain("db")]}, kvm_hypervisor="hv1", kvm_domain="www")
    inventory = {
        one["inventory_hostname"]: one for one in (looked, host("web2", kvm_hypervisor="hv2"), host("hv1"), host("pc"))
    }
    assert names(known_guests([looked], inventory)) == ["web1"]
    assert names(all_guests([looked], inventory)) == ["web1", "web2", "db"]
    assert names(all_guests([], inventory)) == ["web1", "web2", "db"]


def test_a_guest_is_its_host_of_the_inventory_where_a_run_is_limited_to_its_hypervisor() -> None:
    looked = hypervisor("hv1", "www", "web2", "db1")
    listed = [
        host("web1", kvm_hypervisor="hv1", kvm_domain="www", kvm_group="web"),
        host("web2", kvm_hypervisor="hv2", kvm_domain="www"),
    ]
    inventory = {one["inventory_hostname"]: one for one in [looked, *listed]}
    guests = known_guests([looked], inventory)
    assert [(guest.name, guest.domain, guest.hint("group"), guest.listed) for guest in guests] == [
        ("web1", "www", "web", False),
        ("web2@hv1", "web2", None, False),
        ("db1", "db1", None, False),
    ]
    assert names(all_guests([looked], inventory)) == ["web1", "web2@hv1", "db1", "web2"]


def test_what_a_guest_is_in_the_fleet_is_said_by_the_inventory_or_else_by_its_domain() -> None:
    look = {"domains": [{**domain("web1"), "hints": {"group": "a", "canary": True}}]}
    [guest] = known_guests([host("web1", look, kvm_hypervisor="hv1", kvm_group="b")], {})
    assert [guest.hint(name) for name in ("group", "canary", "depends_on")] == ["b", True, None]


def test_a_name_that_two_hypervisors_have_gets_theirs() -> None:
    guests = known_guests([hypervisor("hv1", "web"), hypervisor("hv2", "web")], {})
    assert names(guests) == ["web@hv1", "web@hv2"]


def test_a_domain_named_like_a_port_is_no_other_host() -> None:
    guests = known_guests([hypervisor("hv1", "web:80", "web%3A80", "web")], {})
    assert names(guests) == ["web%3A80", "web%253A80", "web"]
    assert [guest.domain for guest in guests] == ["web:80", "web%3A80", "web"]
    (chosen,) = select_guests(guests, "web:80", {})
    assert chosen.domain == "web:80"


def test_domains_named_like_a_port_on_two_hypervisors() -> None:
    guests = known_guests([hypervisor("hv1", "web:80"), hypervisor("hv2", "web:80")], {})
    assert names(guests) == ["web%3A80@hv1", "web%3A80@hv2"]


@pytest.mark.parametrize("name", ["web", "100%", "a%20b", "Übung <off>", "{{ 1 }}"])
def test_other_names_stay(name: str) -> None:
    assert host_name(name) == name


@given(st.lists(st.text(alphabet=":%235Aa"), unique=True))
def test_no_two_domains_become_one_host(domains: list[str]) -> None:
    hosts = [host_name(name) for name in domains]
    assert len({*hosts}) == len(domains)
    assert ":" not in "".join(hosts)


# --- selection -----------------------------------------------------------------------------------


def fleet() -> list[Guest]:
    look = {"domains": [domain("web1"), domain("web10", "drifted"), domain("101", "unknown"), domain("off", "off")]}
    return known_guests([host("hv1", look)], {})


def test_by_default_guests_come_in_their_turn() -> None:
    def with_run(name: str, drift: str, **run: Any) -> dict[str, Any]:
        known = {"unfinished": False, "shut_down": False, "live": False, "problem": None, **run}
        return {**domain(name, drift), "run": known}

    found = [
        with_run("busy", "drifted", live=True),
        with_run("busy and fine", "none", live=True),
        domain("nobody knows", "unknown"),
        with_run("damaged", "not_running", problem={"msg": "not JSON"}),
        domain("drifts", "drifted"),
        with_run("fine", "none"),
        with_run("half done", "none", unfinished=True),
        with_run("off by its owner", "not_running", unfinished=True),
        with_run("off by a run", "not_running", unfinished=True, shut_down=True, live=True),
    ]
    guests = known_guests([host("hv1", {"domains": found})], {})
    assert names(select_guests(guests, None, {})) == [
        *("off by a run", "drifts", "half done", "nobody knows", "damaged", "busy")
    ]
    assert names(select_guests(guests, "fine", {})) == ["fine"]


def test_for_an_agent_guests_are_chosen_on_whose_channel_nobody_listens() -> None:
    def with_channel(name: str, channel: str, drift: str = "none", **run: Any) -> dict[str, Any]:
        return {**domain(name, drift), "agent_channel": channel, "run": run or None}

    found = [
        with_channel("busy", "absent", live=True),
        with_channel("well", "connected", "drifted"),
        with_channel("silent", "disconnected"),
        with_channel("without", "absent", "drifted"),
        with_channel("off", "absent", "not_running"),
        with_channel("off by its owner", "unknown", "not_running", unfinished=True, shut_down=False),
        with_channel("off by a run", "unknown", "not_running", unfinished=True, shut_down=True, live=True),
        with_channel("off and fine", "unknown", "not_running"),
    ]
    hosts = [host("hv1", {"domains": found}), host("gone", kvm_hypervisor="hv2")]
    guests = known_guests(hosts, {})
    assert names(select_guests(guests, None, {}, choice="agent")) == [
        *("off by a run", "silent", "without", "gone", "busy")
    ]
    assert names(select_guests(guests, "well", {}, choice="agent")) == ["well"]


def on(name: str, *domains: tuple[str, str, str], **variables: Any) -> dict[str, Any]:
    found = [{**domain(called, drift), "uuid": uuid} for called, uuid, drift in domains]
    return host(name, {"domains": found}, **variables)


def test_what_is_off_while_its_uuid_runs_elsewhere_is_nobodys_to_work_on() -> None:
    hosts = [
        on("hv1", ("web1", "a", "not_running"), ("off", "b", "not_running")),
        on("hv2", ("web1", "a", "none")),
        on("hv3", ("-www 1", "a", "not_running"), kvm_uri=SESSION),
        on("hv4", ("off", "b", "not_running"), ("web1", "c", "not_running")),
    ]
    found = {(place.hypervisor, name): why for (place, name), why in elsewhere(hosts, {}).items()}
    assert set(found) == {("hv1", "web1"), ("hv3", "-www 1")}
    why = found["hv1", "web1"]
    assert (why["error_code"], why["hypervisor"]) == ("runs_elsewhere", "hv1")
    assert why["msg"] == "domain 'web1' is off on hv1, and the guest with its UUID runs on hv2"
    assert why["remedy"].endswith(": virsh undefine -- web1")
    assert found["hv3", "-www 1"]["remedy"].endswith(f": virsh -c {SESSION} undefine -- '-www 1'")


@pytest.mark.parametrize("drift", ["none", "drifted", "unknown"])
def test_it_runs_elsewhere_whatever_its_drift_and_whether_or_not_the_inventory_knows(drift: str) -> None:
    hosts = [
        on("web1", ("web1", "a", "not_running"), kvm_hypervisor="hv1"),
        on("db", ("db", "b", "none"), ("web1", "a", drift), kvm_hypervisor="hv2"),
    ]
    assert [(place.hypervisor, name) for place, name in elsewhere(hosts, {})] == [("hv1", "web1")]


def test_by_default_guests_that_drift_come_before_those_nobody_knows() -> None:
    assert names(select_guests(fleet(), None, {})) == ["web10", "101"]


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("web1", ["web1"]),
        ("web10, web1", ["web10", "web1"]),
        (["web1", "web1"], ["web1"]),
        (101, ["101"]),
        ([101], ["101"]),
        ("all", ["web1", "web10", "101", "off"]),
        ("pool", ["web1", "off"]),
    ],
)
def test_guests_are_chosen(wanted: object, chosen: list[str]) -> None:
    assert names(select_guests(fleet(), wanted, {"pool": ["web1", "off"]})) == chosen


@pytest.mark.parametrize("wanted", [None, "", " , ", [], ["", " "]])
def test_nothing_is_wanted(wanted: object) -> None:
    assert wanted_names(wanted) == []


def test_all_of_nothing_is_nothing() -> None:
    assert select_guests([], "all", {}) == []


def test_what_is_said_at_length_of_guests_that_are_not_touched_is_cut() -> None:
    long = {"error_code": "x", "msg": "m" * 2000, "remedy": "r" * 2000}
    failed = failed_looks([host("hv1", long)], {})["hv1"]
    refused = refusal({"name": "web1", "hypervisor": "hv1", "domain": "web1", "refusal": long})["error"]
    told = (failed["msg"], failed["remedy"], refused["msg"], refused["remedy"])
    assert {len(text) for text in told} == {LONGEST_TEXT}


@pytest.mark.parametrize("wanted", [None, "all", "web2,web1"])
def test_two_hosts_that_are_one_guest_are_refused_together(wanted: str | None) -> None:
    guests = known_guests(
        [
            hypervisor("hv1"),
            host("web1", {"domains": [domain("web1", "drifted")]}, kvm_hypervisor="hv1"),
            host("web2", kvm_hypervisor="hv1", kvm_domain="web1"),
        ],
        {},
    )
    with pytest.raises(SelectionError, match=r"web[12] and web[12] are one guest by the inventory, the domain 'web1'"):
        select_guests(guests, wanted, {})
    assert names(select_guests(guests, "web2", {})) == ["web2"]


def test_a_name_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(SelectionError, match=r"nothing is named 'web', 'x'\. .*: 101, off, web1, web10$"):
        select_guests(fleet(), "web,x,web1", {})


def test_the_error_tells_where_nobody_could_look() -> None:
    with pytest.raises(SelectionError, match=r"none\. Nobody could look at hv1, hv2$"):
        select_guests([], "web", {}, {"hv2", "hv1"})


def test_limit_must_not_leave_out_what_was_found() -> None:
    check_limit(fleet(), None)
    check_limit(fleet(), "hv1,fleet_selected")
    with pytest.raises(SelectionError, match="--limit hv1 leaves out web1, web10"):
        check_limit(fleet(), "hv1")
