# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One guest's way through an upgrade, decided and judged."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.kvm.fleet.plugins.plugin_utils._cycle import failure_after, make_result, refusal_before

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
