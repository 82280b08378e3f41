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
    calls_for_rollback,
    drift_outcome,
    failure_after,
    make_plan,
    make_result,
    refusal_before,
    refusal_of_migration,
    told_restart,
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


def test_a_guest_that_is_off_and_may_run_elsewhere_is_not_to_be_started() -> None:
    run = {"unfinished": True, "shut_down": False, "went_to": "qemu+tls://there/system"}
    refused = refusal_before(domain("shut_off", "not_running", run=run), restart="never")
    assert (refused["error_code"], refused["evidence"]) == ("domain_unsafe", {"moved_to": run["went_to"]})
    assert "virsh -c qemu+tls://there/system list --all" in refused["remedy"]
    assert refusal_before(domain(drift="drifted", run=run), restart="needed") == {}


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
        {"problems": [problem], "damage": [] if "drift" in problem else [problem]},
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
    ("before", "predicted", "restart", "wanted", "expected"),
    [
        (DRIFTED, NOTHING, "needed", "save_restore", ((BY_DRIFT,), "save_restore")),
        (DRIFTED, EVERYTHING, "needed", "migrate", ((BY_DRIFT,), "migrate")),
        (SETTLED, EVERYTHING, "needed", "migrate", ((), "migrate")),
        (DRIFTED, EVERYTHING, "needed", "save_restore", ((BY_DRIFT,), "save_restore")),
        (SETTLED, EVERYTHING, "needed", "save_restore", ((), "save_restore")),
        (SETTLED, EVERYTHING, "always", "save_restore", (("it is asked for",), "save_restore")),
        (DRIFTED, NOTHING, "needed", "auto", ((BY_DRIFT,), "auto")),
        (DRIFTED, {}, "always", "auto", ((BY_DRIFT,), "auto")),
        (DRIFTED, PACKAGES, "needed", "auto", ((BY_DRIFT, BY_PACKAGES), "power_cycle")),
        (DRIFTED, REBOOT, "needed", "auto", ((BY_DRIFT, BY_REBOOT), "power_cycle")),
        (SETTLED, NOTHING, "always", "auto", (("it is asked for",), "power_cycle")),
    ],
)
def test_only_a_guest_that_just_drifts_is_spared_its_reboot(
    before: dict[str, Any], predicted: dict[str, Any], restart: str, wanted: str, expected: tuple[tuple[str, ...], str]
) -> None:
    made = make_plan(before, predicted, snapshot=False, restart=restart, strategy=wanted)
    assert ((made.reasons, made.strategy), made.restart) == (expected, bool(expected[0]))


def test_a_guest_that_was_resumed_still_asks_for_its_reboot() -> None:
    told = {"restarted": True, "strategy": "save_restore", "pause": {"hypervisor": 6.2}, "closed": {}}
    taken: dict[str, Any] = {
        "before": {"domains": [DRIFTED]},
        "after": {"domains": [SETTLED]},
        "predicted": {"reboot_required": True},
        "power": told,
    }
    record = make_result(GUEST, taken, duration=1, check_mode=False)
    assert (record["outcome"], record["restarted"], record["drift"]) == ("restarted", True, "resolved")
    assert (record["strategy"], record["pause"], record["reboot_required"]) == (
        "save_restore",
        {"hypervisor": 6.2},
        True,
    )
    taken["power"] = {**told, "strategy": "power_cycle", "closed": {"save_restore": "no room"}}
    record = make_result(GUEST, taken, duration=1, check_mode=False)
    assert (record["closed"], record["reboot_required"]) == ({"save_restore": "no room"}, None)


MIGRATED = {"restarted": True, "steps": ["migrate"], "migration": {"destination": "two", "came_back": False}}
NOTHING_LEFT = {"restarted": True, "steps": [], "migration": None}
BROKEN = {"failed": True, "error_code": "start_failed"}


@pytest.mark.parametrize(
    ("resumed", "asked", "told"),
    [
        ({}, {}, {}),
        (MIGRATED, {}, MIGRATED),
        (MIGRATED, NOTHING_LEFT, MIGRATED),
        (MIGRATED, {"skipped": True}, MIGRATED),
        (MIGRATED, BROKEN, BROKEN),
        (BROKEN, {}, BROKEN),
        ({"skipped": True}, NOTHING_LEFT, NOTHING_LEFT),
        ({"skipped": True}, MIGRATED, MIGRATED),
        ({"restarted": True, "steps": ["start"]}, MIGRATED, MIGRATED),
    ],
)
def test_a_restart_that_was_resumed_is_told_where_nothing_was_left_to_do_after_it(
    resumed: dict[str, Any], asked: dict[str, Any], told: dict[str, Any]
) -> None:
    assert told_restart([resumed, asked]) == told


def test_a_guest_that_was_migrated_is_told_by_the_name_of_where_it_went() -> None:
    migration = {"destination": "qemu+tls://h2/system", "came_back": False, "left_behind": ["/a"]}
    taken: dict[str, Any] = {
        "before": {"domains": [DRIFTED]},
        "after": {"domains": [SETTLED]},
        "predicted": {"reboot_required": True},
        "power": {"restarted": True, "strategy": "migrate", "migration": migration},
        "destinations": {"h1": "qemu+tls://h1/system", "h2": "qemu+tls://h2/system"},
    }
    record = make_result(GUEST, taken, duration=1, check_mode=False)
    assert (record["strategy"], record["reboot_required"]) == ("migrate", True)
    assert record["migration"] == {**migration, "destination": "h2"}
    assert make_result(GUEST, {}, duration=1, check_mode=False)["migration"] is None


@pytest.mark.parametrize(
    ("foreseen", "storage", "words"),
    [
        ({"skipped": True}, "copy", ""),
        ({}, "shared", ""),
        ({"way": "live", "snapshot": {"name": "a"}}, "shared", ""),
        ({"way": "live", "snapshot": {"name": "a"}}, "copy", "snapshots are not copied"),
        ({"way": "external_live", "snapshot": {"name": "a"}}, "shared", "would be made external live"),
        ({"way": "external"}, "trusted", "would be made external"),
        ({"way": "offline"}, "shared", "would be made offline"),
        ({"way": None, "snapshot": {"name": "a", "way": "external"}}, "shared", "would be made external"),
        ({"way": None, "snapshot": {"name": "a", "way": "live"}}, "shared", ""),
    ],
)
def test_a_guest_whose_snapshot_would_stay_behind_is_not_migrated(
    foreseen: dict[str, Any], storage: str, words: str
) -> None:
    refused = refusal_of_migration(foreseen, storage)
    assert bool(refused) is bool(words)
    if words:
        assert (refused["error_code"], words in refused["msg"]) == ("migration_impossible", True)
        assert "upgrade_snapshot: false" in refused["remedy"]


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


@pytest.mark.parametrize("check_mode", [False, True])
def test_a_power_cycle_for_the_snapshot_alone_is_told(check_mode: bool) -> None:
    offline = {**SNAPSHOT, "restarted": True, "forced": True}
    taken: dict[str, Any] = {"before": info(SETTLED), "snapshot": offline, "upgrade": UPGRADED}
    record = make_result(GUEST, taken, duration=0, check_mode=check_mode)
    assert (record["restarted"], record["strategy"], record["forced_off"]) == (True, "power_cycle", True)
    assert record["reboot_required"] is True, "the upgrade came after it"
    taken["power"] = {"failed": True}
    assert make_result(GUEST, taken, duration=0, check_mode=check_mode)["restarted"] is True


def test_a_plug_that_was_pulled_for_a_snapshot_that_failed_is_told() -> None:
    failed = {"snapshot": {"failed": True, "evidence": {"forced": True}}}
    assert make_result(GUEST, failed, duration=0, check_mode=False)["forced_off"] is True


def test_what_a_failed_upgrade_had_changed_is_in_the_record() -> None:
    changes = [{"name": "bash", "old": "1", "new": "2"}]
    taken: dict[str, Any] = {"intervening": True, "upgrade": {"failed": True, "evidence": {"changes": changes}}}
    record = make_result(GUEST, taken, duration=0, check_mode=False, failure=FAILURE)
    assert (record["outcome"], record["packages"]) == ("failed", changes)


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


# --- rollback ------------------------------------------------------------------------------------

LOST = {"since": "2026-03-01T02:00:00Z", "seconds": 60, "written": None}
FOUND = {"changed": False, "snapshot": {"name": "pre-upgrade"}}


def unhealthy(after: dict[str, Any], *failed_units: str) -> dict[str, Any]:
    return failure_after(DRIFTED, after, failed_units, PLAN, "pre-upgrade")


VERDICT = unhealthy(SETTLED, "app.service")


def power_failed(code: str, *states: str, **evidence: str) -> dict[str, Any]:
    transitions = [{"state": state, "at": "2026-03-01T02:00:00Z"} for state in states]
    return {"failed": True, "error_code": code, "evidence": {"transitions": transitions, **evidence}}


CYCLED = ("running", "shut_off", "running")


@pytest.mark.parametrize(
    ("taken", "verdict", "expected"),
    [
        ({"snapshot": SNAPSHOT}, VERDICT, True),
        ({"snapshot": SNAPSHOT}, unhealthy(domain("paused")), True),
        ({"snapshot": SNAPSHOT}, unhealthy(domain(agent_channel="disconnected")), True),
        ({"snapshot": SNAPSHOT}, unhealthy(domain(drift="unknown")), False),
        ({"snapshot": SNAPSHOT}, unhealthy(DRIFTED), False),
        ({"snapshot": SNAPSHOT}, {}, False),
        ({"snapshot": FOUND}, VERDICT, False),
        ({"snapshot": {}}, VERDICT, False),
        ({"snapshot": {"skipped": True, "changed": False}}, VERDICT, False),
        ({"snapshot": SNAPSHOT, "power": power_failed("agent_silent", *CYCLED)}, {}, True),
        ({"snapshot": SNAPSHOT, "power": power_failed("start_failed", "running", "shut_off")}, {}, True),
        ({"snapshot": SNAPSHOT, "power": power_failed("proof_failed", *CYCLED)}, {}, True),
        ({"snapshot": FOUND, "power": power_failed("agent_silent", *CYCLED)}, {}, False),
        ({"snapshot": SNAPSHOT, "power": power_failed("agent_silent", "running")}, {}, False),
        ({"snapshot": SNAPSHOT, "power": {"failed": True, "error_code": "agent_silent", "evidence": {}}}, {}, False),
        ({"snapshot": SNAPSHOT, "power": power_failed("shutdown_timeout", "running")}, {}, False),
        ({"snapshot": SNAPSHOT, "power": power_failed("hypervisor_unavailable", *CYCLED)}, {}, False),
        ({"snapshot": SNAPSHOT, "power": power_failed("saved_state_refused", *CYCLED)}, {}, False),
        (
            {
                "snapshot": SNAPSHOT,
                "power": power_failed("saved_state_refused", *CYCLED, afterwards_code="agent_silent"),
            },
            {},
            True,
        ),
        ({"snapshot": SNAPSHOT, "power": RESTARTED}, {}, False),
    ],
)
def test_a_guest_that_did_not_come_back_as_it_was_calls_for_a_rollback(
    taken: dict[str, Any], verdict: dict[str, Any], expected: bool
) -> None:
    assert calls_for_rollback(taken, verdict) is expected


def failed_result(rollback: dict[str, Any]) -> dict[str, Any]:
    taken: dict[str, Any] = {**ALL_STEPS, "intervening": True, "rollback": rollback}
    return make_result(GUEST, taken, duration=1, check_mode=False, failure=FAILURE)


def test_a_guest_that_was_rolled_back_has_failed_and_is_as_it_was() -> None:
    result = failed_result({"lost": LOST, "reverted": True, "failed": False})
    assert (result["outcome"], result["packages"], result["restarted"]) == ("rolled_back", [], False)
    assert (result["error"]["msg"], result["lost"], result["snapshot"]) == ("no", LOST, "pre-upgrade")


def test_how_a_guest_is_after_its_rollback_is_told() -> None:
    result = failed_result({"lost": LOST, "clock_set": False, "failed_units": ["old.service"], "failed": False})
    assert (result["clock_set"], result["failed_units"]) == (False, ["old.service"])
    without = failed_result({})
    assert (without["clock_set"], without["failed_units"]) == (None, None)


def test_a_rollback_that_failed_is_told_after_the_first_cause() -> None:
    result = failed_result({"msg": "it is in use", "remedy": "See.", "error_code": "libvirt_failed", "failed": False})
    assert (result["outcome"], result["lost"], result["packages"]) == ("rollback_failed", None, PACKAGES["packages"])
    assert result["error"]["msg"] == "no"
    assert result["error"]["remedy"] == "Start it. After that, its rollback failed: it is in use. See."
    assert result["error"]["evidence"]["rollback"]["error_code"] == "libvirt_failed"


def test_no_rollback_is_no_outcome() -> None:
    for rollback in ({}, {"skipped": True, "changed": False}):
        assert (failed_result(rollback)["outcome"], failed_result(rollback)["lost"]) == ("failed", None)
