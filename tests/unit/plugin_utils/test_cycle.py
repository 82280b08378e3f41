# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One guest's way through an upgrade, decided and judged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ansible_collections.kvm.fleet.plugins.plugin_utils._cycle import (
    Plan,
    describe_failure,
    drift_outcome,
    failure_after,
    make_plan,
    make_result,
    refusal_before,
)

PLAN = {"snapshot": True, "upgrade": True, "restart": True, "reasons": []}
GUEST = {"name": "web1", "hypervisor": "hv1", "uri": "qemu:///session", "domain": "www"}


def domain(state: str = "running", drift: str = "none", **facts: Any) -> dict[str, Any]:
    reasons = [{"kind": "unknown", "path": "", "detail": "permission denied"}] if drift == "unknown" else []
    return {
        "name": "www",
        "state": state,
        "drift": {"state": drift, "reasons": reasons},
        "agent_channel": "connected",
        **facts,
    }


@pytest.mark.parametrize("drift", ["none", "drifted"])
@pytest.mark.parametrize("restart", ["needed", "always", "never"])
def test_a_guest_that_runs_is_not_refused(drift: str, restart: str) -> None:
    assert refusal_before(domain(drift=drift), restart=restart) == {}


@pytest.mark.parametrize("restart", ["needed", "always", "never"])
def test_a_guest_that_is_off_is_refused(restart: str) -> None:
    refused = refusal_before(domain("shut_off", "not_running"), restart=restart)
    assert refused["error_code"] == "domain_not_running"
    assert "is shut off" in refused["msg"]
    assert refused["remedy"]


def test_unknown_drift_is_refused_where_it_decides() -> None:
    refused = refusal_before(domain(drift="unknown"), restart="needed")
    assert refused["error_code"] == "drift_unknown"
    assert refused["msg"] == "whether its QEMU is outdated cannot be told: permission denied"
    assert refused["remedy"]
    assert refusal_before(domain(drift="unknown"), restart="never") == {}


def test_a_healthy_guest() -> None:
    assert failure_after(domain(drift="drifted"), domain(), [], PLAN, "snapshot") == {}


@pytest.mark.parametrize(
    ("after", "units", "problem"),
    [
        (domain("paused"), [], "the domain is paused"),
        (domain(agent_channel="disconnected"), [], "the guest agent is gone"),
        (domain(drift="drifted"), [], "QEMU drift is drifted after the restart (no reason is known)"),
        (domain(), ["app.service"], "unit app.service has failed"),
    ],
)
def test_an_unhealthy_guest(after: dict[str, Any], units: list[str], problem: str) -> None:
    failed = failure_after(domain(drift="drifted"), after, units, PLAN, "")
    assert (failed["error_code"], failed["msg"], failed["evidence"]) == (
        "guest_unhealthy",
        problem,
        {"problems": [problem]},
    )
    assert "roll" not in failed["remedy"]


def test_an_unhealthy_guest_with_a_snapshot_can_be_rolled_back() -> None:
    failed = failure_after(domain(), domain("paused"), [], PLAN, "pre-upgrade")
    assert "roll the guest back to its snapshot" in failed["remedy"]


def test_a_run_that_ends_after_the_upgrade_has_told_of_snapshot_and_packages() -> None:
    packages = [{"name": "app", "old": "1", "new": "2"}]
    taken: dict[str, Any] = {
        "intervening": True,
        "before": {"domains": [domain()]},
        "plan": PLAN,
        "snapshot": {"changed": True, "snapshot": {"name": "pre-upgrade"}},
        "upgrade": {"changed": True, "packages": packages},
    }
    ended = {"task": "Intervene", "result": {"error_code": "run_ended", "msg": "the run ended", "remedy": "Look."}}
    record = make_result(GUEST, taken, duration=1, check_mode=False, failure=ended)
    assert (record["outcome"], record["snapshot"], record["packages"]) == ("failed", "pre-upgrade", packages)
    assert (record["uri"], record["error"]["error_code"]) == ("qemu:///session", "run_ended")


def test_what_fails_before_anything_is_changed_is_refused() -> None:
    failed = {"task": "Assess", "result": refusal_before(domain("shut_off"), restart="needed")}
    record = make_result(
        GUEST, {"before": {"domains": [domain("shut_off")]}}, duration=1, check_mode=False, failure=failed
    )
    assert (record["outcome"], record["error"]["error_code"]) == ("refused", "domain_not_running")
    assert record["error"]["evidence"] == {"state": "shut_off"}


# --- the plan ------------------------------------------------------------------------------------

REPLACED = {"kind": "binary_replaced", "path": "/usr/bin/qemu", "detail": "another file has taken its place"}
DRIFTED = domain(drift="drifted") | {"drift": {"state": "drifted", "reasons": [REPLACED]}}
SETTLED = domain()
PACKAGES = {"packages": [{"name": "bash", "old": "1", "new": "2"}], "reboot_reasons": []}
REBOOT = {"packages": [], "reboot_reasons": ["/run/reboot-required"]}
EVERYTHING = {**PACKAGES, "reboot_reasons": ["/run/reboot-required"]}
NOTHING = {"packages": [], "reboot_reasons": [], "unfinished": "none"}
LEFT_BEHIND = {"packages": [], "reboot_reasons": [], "unfinished": "cut_off"}
BY_DRIFT, BY_PACKAGES, BY_REBOOT = "binary_replaced: /usr/bin/qemu", "packages are upgraded", "/run/reboot-required"


@pytest.mark.parametrize(
    ("before", "predicted", "restart", "expected"),
    [
        (SETTLED, NOTHING, "needed", Plan(False, False, False, ())),
        (SETTLED, {}, "needed", Plan(False, False, False, ())),
        (SETTLED, NOTHING, "always", Plan(True, False, True, ("it is asked for",))),
        (SETTLED, NOTHING, "never", Plan(False, False, False, ())),
        (DRIFTED, NOTHING, "needed", Plan(True, False, True, (BY_DRIFT,))),
        (DRIFTED, {}, "needed", Plan(True, False, True, (BY_DRIFT,))),
        (DRIFTED, NOTHING, "never", Plan(False, False, False, ())),
        (SETTLED, PACKAGES, "needed", Plan(True, True, True, (BY_PACKAGES,))),
        (SETTLED, PACKAGES, "never", Plan(True, True, False, ())),
        (SETTLED, LEFT_BEHIND, "needed", Plan(True, True, True, (BY_PACKAGES,))),
        (SETTLED, REBOOT, "needed", Plan(True, False, True, (BY_REBOOT,))),
        (SETTLED, REBOOT, "never", Plan(False, False, False, ())),
        (
            DRIFTED,
            {**PACKAGES, **REBOOT, "packages": [{}]},
            "always",
            Plan(True, True, True, (BY_DRIFT, BY_REBOOT, BY_PACKAGES)),
        ),
    ],
)
def test_the_plan_follows_from_drift_prediction_and_policy(
    before: dict[str, Any], predicted: dict[str, Any], restart: str, expected: Plan
) -> None:
    assert make_plan(before, predicted, snapshot=True, restart=restart) == expected
    without = make_plan(before, predicted, snapshot=False, restart=restart)
    assert without == replace(expected, snapshot=False)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("none", "none", "none"),
        ("drifted", "none", "resolved"),
        ("drifted", "drifted", "remains"),
        ("none", "drifted", "remains"),
        ("drifted", "unknown", "unknown"),
        ("unknown", "none", "unknown"),
        ("drifted", "not_running", "unknown"),
        ("not_running", "none", "unknown"),
    ],
)
def test_what_became_of_the_drift_is_measured_and_never_assumed(before: str, after: str, expected: str) -> None:
    assert drift_outcome(domain(drift=before), domain(drift=after)) == expected


def test_drift_that_nobody_looked_at_is_unknown() -> None:
    assert drift_outcome({}, domain()) == drift_outcome(domain(), {}) == drift_outcome({}, {}) == "unknown"


# --- the record ----------------------------------------------------------------------------------

SNAPSHOT = {"changed": True, "snapshot": {"name": "pre-upgrade"}}
UPGRADED = {"changed": True, "packages": PACKAGES["packages"], "reboot_required": True}
RESTARTED = {"changed": True, "restarted": True, "forced": False}
FAILED_RESULT = {"msg": "no", "error_code": "agent_silent", "remedy": "Start it.", "transient": True}
FAILURE = {"task": "Do it", "result": FAILED_RESULT}


def info(found: dict[str, Any]) -> dict[str, Any]:
    return {"domains": [found]}


ALL_STEPS = {
    "before": info(DRIFTED),
    "snapshot": SNAPSHOT,
    "upgrade": UPGRADED,
    "power": RESTARTED,
    "after": info(SETTLED),
}


@pytest.mark.parametrize(
    ("taken", "failure", "expected"),
    [
        ({"before": info(SETTLED), "after": info(SETTLED)}, None, ("unchanged", False, "none", None)),
        (
            {"before": info(DRIFTED), "power": RESTARTED, "after": info(SETTLED)},
            None,
            ("restarted", True, "resolved", None),
        ),
        (
            {
                "before": info(DRIFTED),
                "snapshot": SNAPSHOT,
                "upgrade": UPGRADED,
                "power": RESTARTED,
                "after": info(SETTLED),
            },
            None,
            ("upgraded", True, "resolved", "pre-upgrade"),
        ),
        (
            {"before": info(DRIFTED), "upgrade": UPGRADED, "after": info(DRIFTED)},
            None,
            ("upgraded", False, "remains", None),
        ),
        (
            {
                "before": info(SETTLED),
                "snapshot": SNAPSHOT,
                "snapshot_kept": False,
                "power": RESTARTED,
                "after": info(SETTLED),
            },
            None,
            ("restarted", True, "none", None),
        ),
        ({}, FAILURE, ("refused", False, "unknown", None)),
        ({"before": info(DRIFTED)}, FAILURE, ("refused", False, "remains", None)),
        ({"before": info(DRIFTED), "intervening": True}, FAILURE, ("failed", False, "unknown", None)),
        (
            {
                "before": info(DRIFTED),
                "intervening": True,
                "snapshot": SNAPSHOT,
                "power": {"changed": True, "failed": True},
                "after": info(DRIFTED),
            },
            FAILURE,
            ("failed", False, "remains", "pre-upgrade"),
        ),
    ],
)
def test_a_record_tells_what_became_of_the_guest(
    taken: dict[str, Any], failure: dict[str, Any] | None, expected: tuple[str, bool, str, str | None]
) -> None:
    record = make_result(GUEST, taken, duration=12.345, check_mode=False, failure=failure)
    assert tuple(record[key] for key in ("outcome", "restarted", "drift", "snapshot")) == expected
    assert (record["guest"], record["hypervisor"], record["domain"]) == ("web1", "hv1", "www")
    assert record["duration"] == 12.3
    assert (record["error"] is None) == (failure is None)


@pytest.mark.parametrize(
    ("taken", "outcome", "drift"),
    [
        ({"before": info(DRIFTED), "power": RESTARTED, "snapshot": SNAPSHOT}, "restarted", "resolved"),
        ({"before": info(DRIFTED), "upgrade": UPGRADED}, "upgraded", "remains"),
        ({"before": info(SETTLED)}, "unchanged", "none"),
    ],
)
def test_a_record_of_check_mode_tells_what_a_run_would_come_to(taken: dict[str, Any], outcome: str, drift: str) -> None:
    record = make_result(GUEST, taken, duration=1, check_mode=True)
    assert (record["outcome"], record["drift"]) == (outcome, drift)
    assert (record["check_mode"], record["snapshot"]) == (True, None)


@pytest.mark.parametrize(
    ("power", "forced"),
    [
        ({}, False),
        ({"changed": True, "forced": True}, True),
        ({"failed": True, "evidence": {"forced": True}}, True),
        ({"failed": True, "evidence": {"forced": False}}, False),
    ],
)
def test_a_plug_that_was_pulled_is_told_even_when_the_rest_failed(power: dict[str, Any], forced: bool) -> None:
    assert make_result(GUEST, {"power": power}, duration=0, check_mode=False)["forced_off"] is forced


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        ({}, None),
        ({"predicted": {"reboot_required": True}}, True),
        ({"predicted": {"reboot_required": True}, "power": RESTARTED}, None),
        ({"predicted": {"reboot_required": False}, "upgrade": UPGRADED}, True),
        ({"upgrade": UPGRADED, "power": RESTARTED}, None),
        ({"upgrade": UPGRADED, "power": {**RESTARTED, "failed": True}}, True),
    ],
)
def test_a_reboot_is_required_as_told_last_and_nobody_asks_after_a_restart(
    taken: dict[str, Any], expected: bool | None
) -> None:
    assert make_result(GUEST, taken, duration=0, check_mode=False)["reboot_required"] is expected


def test_what_a_failed_upgrade_had_changed_is_in_the_record() -> None:
    changes = [{"name": "bash", "old": "1", "new": "2"}]
    taken: dict[str, Any] = {"intervening": True, "upgrade": {"failed": True, "evidence": {"changes": changes}}}
    record = make_result(GUEST, taken, duration=0, check_mode=False, failure=FAILURE)
    assert (record["outcome"], record["packages"]) == ("failed", changes)


def test_a_failure_of_the_collection_is_described_whole_and_another_as_far_as_it_goes() -> None:
    assert describe_failure(FAILURE) == {
        "task": "Do it",
        "error_code": "agent_silent",
        "msg": "no",
        "remedy": "Start it.",
        "transient": True,
        "evidence": {},
    }
    assert describe_failure({**FAILURE, "start": {"failed": False}}) == describe_failure(FAILURE)
    assert describe_failure({"task": "Do it", "result": {}}) == {
        "task": "Do it",
        "error_code": "task_failed",
        "msg": "the task gave no message",
        "remedy": "",
        "transient": False,
        "evidence": {},
    }


# --- going on ------------------------------------------------------------------------------------

APP = {"name": "app", "arch": "all", "old": "1", "new": "2", "security": False}
RESUMED: dict[str, Any] = {
    "run": "run-a",
    "owner": "root@a",
    "cut_off": "after the upgrade",
    "steps": [{"name": "snapshot", "status": "done", "run": "run-a"}],
    "packages": [],
    "config_files": [],
    "snapshot": "pre-upgrade",
    "restarted": False,
    "forced": False,
}


def off_by(unfinished: bool, shut_down: bool) -> dict[str, Any]:
    return domain("shut_off", "not_running", run={"unfinished": unfinished, "shut_down": shut_down})


def test_a_guest_that_is_off_by_an_earlier_run_is_not_refused() -> None:
    assert refusal_before(off_by(True, True), restart="needed") == {}
    for wanted_off in (off_by(True, False), off_by(False, False), domain("shut_off", "not_running", run=None)):
        assert refusal_before(wanted_off, restart="needed")["error_code"] == "domain_not_running"


def test_what_an_earlier_run_has_upgraded_is_restarted_for() -> None:
    plan = make_plan(SETTLED, {}, snapshot=True, restart="needed", resumed={**RESUMED, "packages": [APP]})
    assert plan == Plan(snapshot=True, upgrade=False, restart=True, reasons=("packages are upgraded",))


def test_a_restart_that_was_begun_is_brought_to_its_end_unless_none_is_wanted() -> None:
    resumed = {**RESUMED, "steps": [{"name": "restart", "status": "open", "run": "run-a"}]}
    plan = make_plan(SETTLED, {}, snapshot=False, restart="needed", resumed=resumed)
    assert (plan.restart, plan.reasons) == (True, ("it was begun by an earlier run",))
    assert make_plan(SETTLED, {}, snapshot=False, restart="never", resumed=resumed).restart is False


def test_an_earlier_run_that_has_left_nothing_to_do_makes_no_work() -> None:
    assert make_plan(SETTLED, {}, snapshot=True, restart="needed", resumed=RESUMED) == Plan(False, False, False, ())


@pytest.mark.parametrize(("status", "again"), [("open", True), ("failed", True), ("done", False)])
def test_an_upgrade_that_did_not_come_to_its_end_is_gone_on_with(status: str, again: bool) -> None:
    """Even if nothing seems to be left of it: whoever goes on with it then puts its end on record."""
    resumed = {**RESUMED, "steps": [{"name": "upgrade", "status": status, "run": "run-a"}]}
    nothing = {"packages": [], "unfinished": "none"}
    plan = make_plan(SETTLED, nothing, snapshot=True, restart="needed", resumed=resumed)
    assert (plan.upgrade, plan.restart) == (again, False)
    assert make_plan(SETTLED, {}, snapshot=True, restart="needed", resumed=resumed).upgrade is False


def resumed_result(earlier: dict[str, Any], **taken: Any) -> dict[str, Any]:
    everything = {"lease": {"resumed": {**RESUMED, **earlier}, "taken_over": None}, "before": info(SETTLED), **taken}
    return make_result(GUEST, everything, duration=1, check_mode=False)


def test_a_result_has_what_all_runs_have_changed() -> None:
    later = {**APP, "old": "2", "new": "3"}
    upgrade = {"packages": [later], "config_files": ["/b"]}
    result = resumed_result({"packages": [APP], "config_files": ["/a", "/b"]}, upgrade=upgrade)
    assert result["packages"] == [{**APP, "new": "3"}]
    assert (result["config_files"], result["outcome"]) == (["/a", "/b"], "upgraded")
    assert (result["snapshot"], result["resumed"]) == ("pre-upgrade", {"run": "run-a", "cut_off": "after the upgrade"})


def test_a_result_has_what_only_the_earlier_run_has_changed() -> None:
    result = resumed_result({"packages": [APP], "restarted": True, "forced": True}, after=info(SETTLED))
    assert (result["packages"], result["restarted"], result["forced_off"]) == ([APP], True, True)


def test_a_failed_upgrade_adds_what_it_had_changed_by_then() -> None:
    evidence = {"changes": [{**APP, "name": "other"}]}
    result = resumed_result({"packages": [APP]}, upgrade={"failed": True, "evidence": evidence})
    assert [package["name"] for package in result["packages"]] == ["app", "other"]


def test_a_result_names_the_run_that_was_found_dead() -> None:
    dead = {"run": "run-a", "owner": "root@a", "taken": "2026-03-01T02:00:00Z", "silence": 12.0}
    result = make_result(GUEST, {"lease": {"resumed": None, "taken_over": dead}}, duration=1, check_mode=False)
    assert (result["resumed"], result["taken_over"]) == (None, dead)


def test_a_start_that_failed_after_something_else_is_told_with_the_first_cause() -> None:
    start = {"failed": True, "error_code": "start_failed", "msg": "it is off", "remedy": "Start it.", "evidence": {}}
    first = describe_failure(FAILURE)
    told = describe_failure({**FAILURE, "start": start})
    assert [told[key] for key in ("task", "error_code", "msg")] == [first[key] for key in ("task", "error_code", "msg")]
    assert told["remedy"] == f"{first['remedy']} After that, its start failed: it is off. Start it."
    assert told["evidence"]["start"]["error_code"] == "start_failed"
    assert {**told["evidence"], **first["evidence"]} == told["evidence"]
