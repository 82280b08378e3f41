# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filters, as the playbooks call them."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.kvm.fleet.plugins.filter import agent_plan, agent_result
from ansible_collections.kvm.fleet.plugins.filter.batch_sizes import batch_sizes
from ansible_collections.kvm.fleet.plugins.filter.choose_looks import choose
from ansible_collections.kvm.fleet.plugins.filter.failed_looks import failed
from ansible_collections.kvm.fleet.plugins.filter.fleet_hosts import FilterModule
from ansible_collections.kvm.fleet.plugins.filter.held_back import held
from ansible_collections.kvm.fleet.plugins.filter.named_guests import named
from ansible_collections.kvm.fleet.plugins.filter.plan_batches import plan_batches
from ansible_collections.kvm.fleet.plugins.filter.planned_sizes import sizes as planned_sizes
from ansible_collections.kvm.fleet.plugins.filter.refused_guests import refused
from ansible_collections.kvm.fleet.plugins.filter.rescue_result import result as rescue_result
from ansible_collections.kvm.fleet.plugins.filter.select_guests import select
from ansible_collections.kvm.fleet.plugins.filter.upgrade_failure import failure
from ansible_collections.kvm.fleet.plugins.filter.upgrade_plan import plan
from ansible_collections.kvm.fleet.plugins.filter.upgrade_refusal import refusal
from ansible_collections.kvm.fleet.plugins.filter.upgrade_result import result
from ansible_collections.kvm.fleet.plugins.plugin_utils._selection import default_hosts
from ansible_collections.kvm.fleet.plugins.plugin_utils._summary import render_summary
from tests.unit.plugin_utils.test_cycle import GUEST, PLAN, domain
from tests.unit.plugin_utils.test_selection import SESSION, UNREACHABLE, host, hypervisor


def fleet() -> list[dict[str, Any]]:
    """Two guests of a hypervisor that is gone, and one that is there."""
    return [
        host("web1", UNREACHABLE, kvm_hypervisor="hv1"),
        host("web2", {"skipped": True}, kvm_hypervisor="hv1"),
        hypervisor("hv2", "db"),
    ]


def test_guests_of_a_hypervisor_that_is_gone_are_chosen_and_refused() -> None:
    chosen = select(fleet(), {}, "all")
    assert [(guest["name"], bool(guest["refusal"])) for guest in chosen] == [
        ("web1", True),
        ("web2", True),
        ("db", False),
    ]
    records = refused(chosen)
    assert [(name, record["outcome"]) for name, record in records.items()] == [("web1", "refused"), ("web2", "refused")]
    assert records["web2"]["error"]["error_code"] == "hypervisor_unreachable"
    summary = render_summary("upgrade", list(records.values()))
    assert "  Error: hv1 could not be looked at: no route to host (nothing was changed)" in summary


def test_a_domain_that_runs_elsewhere_is_refused_and_the_one_that_runs_is_not() -> None:
    looks = {
        name: {"domains": [{"name": "web1", "uuid": "u", "drift": {"state": drift}}]}
        for name, drift in (("hv1", "not_running"), ("hv2", "none"))
    }
    chosen = select([host(name, look) for name, look in looks.items()], {}, "web1")
    assert [(guest["name"], bool(guest["refusal"])) for guest in chosen] == [("web1@hv1", True), ("web1@hv2", False)]
    records = refused(chosen)
    assert (list(records), records["web1@hv1"]["error"]["error_code"]) == (["web1@hv1"], "runs_elsewhere")
    assert "  Error: domain 'web1' is off on hv1, and the guest with its UUID runs on hv2 (nothing was changed)" in (
        render_summary("rescue", list(records.values()))
    )


def test_a_guest_whose_metadata_cannot_be_read_is_refused_and_no_other() -> None:
    problem = {"error_code": "hints_malformed", "msg": "it says <depend-on>", "remedy": "Mend it."}
    domains: list[dict[str, Any]] = [
        {"name": name, "uuid": name, "drift": {"state": "none"}, "hints_problem": told}
        for name, told in (("web1", problem), ("web2", None))
    ]
    chosen = select([host("hv1", {"domains": domains})], {}, "all")
    assert {name: record["error"] for name, record in refused(chosen).items()} == {"web1": problem}


def test_a_plan_of_batches_is_plain_data() -> None:
    hosts = [host("web1", kvm_hypervisor="hv1", kvm_depends_on=["db"]), hypervisor("hv2", "db", "canary")]
    turns = plan_batches(["web1", "db", "canary"], hosts, {}, sizes="2", canaries="1", refused=["db"], prefix="b_")
    assert turns[0] == {
        "name": "db",
        "hypervisor": "hv2",
        "batch": 1,
        "group": "b_001",
        "canary": False,
        "after": [],
        "canaries": [],
        "member_of": "",
        "at_once": 1,
    }
    assert [(turn["name"], turn["after"], turn["canaries"]) for turn in turns[1:]] == [
        ("web1", ["db"], []),
        ("canary", [], ["web1"]),
    ]
    assert planned_sizes({"b_001": ["db"], "b_002": ["web1"]}, "b_") == [1, 1]
    assert (
        held("web1", {"web1": {"fleet_turn": turns[1], "fleet_parts": ["packages"]}})["error"]["error_code"]
        == "provider_failed"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": "101%"}, "fleet_batch: '101%' is no batch size"),
        ({"canaries": -1}, "fleet_canary: '-1' is no number of guests; it can be 0 or more"),
        ({"per_hypervisor": "0"}, "fleet_per_hypervisor: '0' is no number of guests; it can be 1 or more"),
        ({}, r"kvm_depends_on: web1 depends on 'db', and no guest has that name"),
    ],
)
def test_what_cannot_be_planned_is_an_error_of_the_filter(options: dict[str, Any], message: str) -> None:
    hosts = [hypervisor("hv1", "web1"), host("web1", {"skipped": True}, kvm_hypervisor="hv1", kvm_depends_on=["db"])]
    with pytest.raises(AnsibleFilterError, match=message):
        plan_batches(["web1"], hosts, {}, **options)


SLICE = {"awx_workflow_job_name": "restart", "awx_job_template_name": "restart"}


@pytest.mark.parametrize(
    ("outside", "variables", "where"),
    [
        (["hv2"], {}, "on any of hv1, hv2"),
        ([], SLICE, "in another slice of this job"),
        (["hv2"], SLICE, "in another slice of this job"),
        ([], {}, None),
        ([], {**SLICE, "awx_workflow_job_name": "nightly"}, None),
    ],
)
def test_members_of_a_group_may_live_where_the_run_does_not_look(
    outside: list[str], variables: dict[str, str], where: str | None
) -> None:
    inventory = {name: {"inventory_hostname": name, **variables} for name in ("hv1", *outside)}
    web = {"kvm_hypervisor": "hv1", "kvm_group": "web", **variables}
    hosts = [host(name, {"skipped": True}, **web) for name in ("web1", "web2")]

    def planned(*names: str, locks_on: str | None = None) -> list[str]:
        turns = plan_batches(
            names, [*hosts, host("app", {}, kvm_hypervisor="hv1")], inventory, fleet=list(inventory), locks_on=locks_on
        )
        return [turn["name"] for turn in turns]

    assert planned("web1", "web2", locks_on="hv2") == ["web1", "web2"]
    assert planned("app") == ["app"]
    if where is None:
        assert planned("web1", "web2") == ["web1", "web2"]
        return
    with pytest.raises(AnsibleFilterError, match=rf"\Afleet_locks_on: .* \(web: web1, web2\), .* {where}\. Set it in"):
        planned("web1", "web2", "app")


def test_what_depends_on_a_guest_that_may_be_where_nobody_could_look_is_left_for_its_turn() -> None:
    hosts = [host("web1", UNREACHABLE, kvm_hypervisor="hv1", kvm_depends_on=["db"])]
    assert [turn["after"] for turn in plan_batches(["web1"], hosts, {})] == [["db"]]


def test_guests_carry_the_uri_of_their_hypervisor() -> None:
    (chosen,) = select([host("web1", kvm_hypervisor="hv1")], {"hv1": {"kvm_uri": SESSION}}, "web1")
    assert (chosen["uri"], chosen["drift"]) == (SESSION, "unknown")


def test_what_cannot_be_selected_is_an_error_of_the_filter() -> None:
    with pytest.raises(AnsibleFilterError, match=r"nothing is named 'x'.*Nobody could look at hv1"):
        select(fleet(), {}, "x")


def test_what_to_select_for_has_to_be_known() -> None:
    with pytest.raises(AnsibleFilterError, match=r"choice is 'x'; it can be upgrade, agent"):
        select(fleet(), {}, "all", choice="x")


def test_a_plan_for_an_agent_is_plain_data() -> None:
    channel = {"live": "needs_restart", "persistent": "added", "reason": "no bus"}
    assert agent_plan.plan(channel, "web1") == {"install": "", "restart": True, "closed": {}, "refusal": {}}
    assert agent_plan.plan(channel, "web1", restart=False)["refusal"]["error_code"] == "no_way_open"
    with pytest.raises(AnsibleFilterError, match=r"there is no way 'telnet'; there are ssh, offline"):
        agent_plan.plan(channel, "web1", ways=["telnet"])


def test_a_result_of_an_agent_measures_from_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1012.34)
    channel = {"live": "added", "persistent": "added", "changed": True}
    record = agent_result.result({"channel": channel}, GUEST, 1000)
    assert (record["duration"], record["outcome"], record["check_mode"]) == (12.3, "changed", False)


def test_looks() -> None:
    assert choose(fleet()) == {"web1": "qemu:///system", "hv2": "qemu:///system"}
    assert list(failed(fleet())) == ["web1"]


def test_verdicts() -> None:
    assert refusal(domain()) == {}
    assert refusal(domain(drift="unknown"))["error_code"] == "drift_unknown"
    assert failure(domain(), domain(), PLAN) == {}
    assert failure(domain(), domain(), PLAN, ["a.service"], "pre-upgrade")["error_code"] == "guest_unhealthy"


def test_batch_sizes_and_errors_of_them() -> None:
    assert batch_sizes("1,50%") == ["1", "50%"]
    with pytest.raises(AnsibleFilterError, match=r"fleet_batch: '0' is no batch size"):
        batch_sizes(0)


def test_a_plan_is_plain_data() -> None:
    assert plan(domain(), {"packages": [{}]}) == {
        "snapshot": True,
        "upgrade": True,
        "restart": True,
        "reasons": ("packages are upgraded",),
        "strategy": "power_cycle",
    }
    assert plan(domain())["upgrade"] is False
    with pytest.raises(AnsibleFilterError, match=r"restart is 'maybe'; it can be needed, always, never"):
        plan(domain(), restart="maybe")


def test_a_result_measures_from_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1012.34)
    record = result({"before": {"domains": [domain()]}}, GUEST, 1000)
    assert (record["duration"], record["outcome"], record["check_mode"]) == (12.3, "unchanged", False)


def test_every_filter_is_offered_by_its_name() -> None:
    assert FilterModule().filters() == {"fleet_hosts": default_hosts}


@pytest.mark.parametrize("wanted", [None, "", " , ", []])
def test_where_guests_have_to_be_named_nothing_is_no_name(wanted: object) -> None:
    assert named(wanted, required=False) is wanted
    with pytest.raises(AnsibleFilterError, match="name the guests"):
        named(wanted)


@pytest.mark.parametrize("wanted", ["web1", ["web1"], 101, "all"])
def test_guests_that_are_named_are_passed_on(wanted: object) -> None:
    assert named(wanted) is wanted


def test_a_rescue_has_its_result_with_the_time_that_it_took() -> None:
    told = rescue_result({"intervening": False}, GUEST, 0.0, failure={"task": "Look", "result": {"msg": "gone"}})
    assert (told["outcome"], told["repairs"], told["duration"] > 0) == ("refused", [], True)
