# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The callback that prints the summary, given the statistics of a run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.kvm.fleet.playbooks.callback_plugins import fleet_summary
from ansible_collections.kvm.fleet.plugins.callback.summary import CallbackModule
from tests.unit.plugin_utils.test_summary import FAILED_LOOK, record


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(CallbackModule, "_speaker", None)
    monkeypatch.setattr(CallbackModule, "_print", lambda _self, more: lines.extend(more))
    return lines


def finish(fleet: dict[str, Any] | None) -> None:
    custom = {} if fleet is None else {"_run": {"kvm_fleet": fleet}}
    CallbackModule().v2_playbook_on_stats(SimpleNamespace(custom=custom, dark={}, failures={}))


@pytest.mark.parametrize("fleet", [None, {}])
def test_other_playbooks_get_no_summary(printed: list[str], fleet: dict[str, Any] | None) -> None:
    finish(fleet)
    assert printed == []


def test_a_playbook_with_the_role_alone_gets_its_guests(printed: list[str]) -> None:
    finish({"guests": {"web1": record("web1")}})
    assert printed[1] == "UPGRADE SUMMARY: 1 VM(s) processed"
    assert "✓ web1" in printed


def test_a_run_that_had_nothing_to_do_says_so(printed: list[str]) -> None:
    finish({"job": "restart", "targets": [], "guests": {}, "failed_looks": []})
    assert printed[1] == "RESTART SUMMARY: 0 VM(s) processed"


def test_targets_that_were_not_reached_are_named(printed: list[str]) -> None:
    finish({"job": "upgrade", "targets": ["web1", "web2"], "guests": {"web1": record("web1")}})
    assert printed[1] == "UPGRADE SUMMARY: 1 VM(s) processed, 1 not attempted"


def test_status_names_the_hypervisors_that_could_not_be_looked_at(printed: list[str]) -> None:
    finish({"status": [], "failed_looks": [FAILED_LOOK]})
    assert "✗ hypervisor hv2" in printed
    assert not [line for line in printed if "SUMMARY" in line]


def test_a_plan_is_no_summary_of_guests_that_were_not_reached(printed: list[str]) -> None:
    turn = {"name": "web1", "hypervisor": "hv1", "batch": 1, "canary": False, "after": []}
    finish({"plan": [turn], "targets": ["web1"], "guests": {}, "failed_looks": [FAILED_LOOK]})
    assert "PLAN: 1 VM(s) in 1 batch(es); nothing was changed" in printed
    assert "✗ hypervisor hv2" in printed
    assert not [line for line in printed if "SUMMARY" in line]


def test_only_one_of_two_callbacks_speaks(printed: list[str]) -> None:
    fleet = {"guests": {"web1": record("web1")}}
    finish(fleet)
    once = list(printed)
    finish(fleet)
    assert printed == once


def test_enabled_by_the_user_and_brought_along_by_a_playbook_it_speaks_once(printed: list[str]) -> None:
    stats = SimpleNamespace(custom={"_run": {"kvm_fleet": {"targets": ["web1"]}}}, dark={}, failures={})
    for callback in (CallbackModule(), fleet_summary.CallbackModule()):
        callback.v2_playbook_on_stats(stats)
    assert len([line for line in printed if "SUMMARY" in line]) == 1


def test_a_guest_that_turned_out_not_to_be_concerned_is_left_out(printed: list[str]) -> None:
    finish({"targets": ["web1", "web2"], "left_out": ["web2"], "guests": {"web1": record("web1")}})
    assert "✓ web1" in printed
    assert not [line for line in printed if "web2" in line]


@pytest.mark.parametrize("counted_in", ["dark", "failures"])
def test_a_guest_that_ansible_lost_is_a_failure(printed: list[str], counted_in: str) -> None:
    custom = {"_run": {"kvm_fleet": {"targets": ["web1", "web2"]}}}
    CallbackModule().v2_playbook_on_stats(
        SimpleNamespace(**{"custom": custom, "dark": {}, "failures": {}, counted_in: {"web1": 1}})
    )
    assert {"✗ web1", "- web2", "Success: 0  Failed: 1  Drift Resolved: 0"} <= {*printed}


def test_the_lines_go_to_ansibles_display(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(CallbackModule, "_speaker", None)
    callback = CallbackModule()
    monkeypatch.setattr(callback._display, "display", shown.append)
    callback.v2_playbook_on_stats(
        SimpleNamespace(custom={"_run": {"kvm_fleet": {"targets": []}}}, dark={}, failures={})
    )
    [text] = shown
    assert text.splitlines()[-2] == "Success: 0  Failed: 0  Drift Resolved: 0"
