# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a person reads at the end of a run."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.kvm.fleet.plugins.plugin_utils._summary import (
    RULE,
    complete,
    packages_text,
    render_status,
    render_summary,
)

SNAPSHOT = "pre-upgrade-20251015-143022"
FAILED_LOOK = {"hypervisor": "hv2", "msg": "hv2 could not be looked at: no route", "remedy": "See to it."}


def package(old: str | None = "1", new: str | None = "2") -> dict[str, Any]:
    return {"name": "app", "old": old, "new": new}


def record(name: str = "web1", outcome: str = "upgraded", **facts: Any) -> dict[str, Any]:
    return {
        "guest": name,
        "domain": name,
        "uri": "qemu:///system",
        "outcome": outcome,
        "check_mode": False,
        "packages": [package()] * 23,
        "kept_back": [],
        "restarted": True,
        "forced_off": False,
        "reboot_required": False,
        "drift": "resolved",
        "snapshot": SNAPSHOT,
        "duration": 332.4,
        "error": None,
        **facts,
    }


def failure(**facts: Any) -> dict[str, Any]:
    return record(outcome="failed", packages=[], error={"msg": "agent is silent", "remedy": "Start it."}, **facts)


def test_one_guest() -> None:
    assert render_summary("upgrade", [record("centos-stream9")]) == [
        RULE,
        "UPGRADE SUMMARY: 1 VM(s) processed",
        RULE,
        "✓ centos-stream9",
        "  Packages upgraded: 23",
        "  Restarted: yes",
        "  QEMU drift: resolved",
        f"  Snapshot: {SNAPSHOT}",
        "  Duration: 5m32s",
        "",
        RULE,
        "Success: 1  Failed: 0  Drift Resolved: 1",
        RULE,
    ]


def test_a_hypervisor_that_could_not_be_looked_at_is_named() -> None:
    assert render_summary("upgrade", [], [FAILED_LOOK])[3:6] == [
        "✗ hypervisor hv2",
        "  Error: hv2 could not be looked at: no route",
        "  Remedy: See to it.",
    ]
    assert "✗ hypervisor hv2" in render_status([], [FAILED_LOOK])
    assert render_status([])[1:] == ["", "Guests: 0  Drifted: 0  Unknown: 0"]


@pytest.mark.parametrize(
    ("packages", "text"),
    [
        ([], "0"),
        ([package()], "1"),
        ([package(), package(None)], "1 (1 new)"),
        ([package(None), package(None), package(new=None)], "0 (2 new, 1 removed)"),
        ([package(new=None)], "0 (1 removed)"),
    ],
)
def test_new_and_removed_packages_are_not_upgraded_ones(packages: list[dict[str, Any]], text: str) -> None:
    assert packages_text(packages) == text


@pytest.mark.parametrize(
    ("uri", "command"),
    [
        ("qemu:///system", f"virsh snapshot-revert -- 'a b' {SNAPSHOT}"),
        ("qemu:///session?x=1", f"virsh -c 'qemu:///session?x=1' snapshot-revert -- 'a b' {SNAPSHOT}"),
    ],
)
def test_rollback(uri: str, command: str) -> None:
    assert f"  Rollback: {command}" in render_summary("upgrade", [failure(domain="a b", uri=uri)])


def test_a_failed_guest_without_changes_has_no_packages() -> None:
    assert not [line for line in render_summary("upgrade", [failure()]) if "Packages" in line]


def test_every_target_has_a_record() -> None:
    records = complete(["a", "b", "c"], {"a": record("a")}, ["b"])
    assert [(record["guest"], record["outcome"]) for record in records] == [
        ("a", "upgraded"),
        ("b", "failed"),
        ("c", "not_attempted"),
    ]
    assert render_summary("restart", records)[1] == "RESTART SUMMARY: 2 VM(s) processed, 1 not attempted"
