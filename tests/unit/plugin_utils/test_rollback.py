# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a guest goes back to, whether somebody wants that, and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.kvm.fleet.plugins.plugin_utils._rollback import (
    make_rollback_plan,
    make_rollback_result,
    rollback_refusal,
    unconfirmed,
)
from ansible_collections.kvm.fleet.plugins.plugin_utils._summary import render_summary

GUEST = {"run": "r", "name": "web1", "hypervisor": "hv1", "uri": "qemu:///system", "domain": "www"}
LOST = {"since": "2026-03-01T02:00:00Z", "seconds": 7380, "written": 73400320}
REHEARSED = {"snapshot": "s1", "lost": LOST, "reverted": True, "started": True}
DONE = {**REHEARSED, "failed_units": [], "clock_set": None}


def domain(way_back: dict[str, Any] | None, *there: str, drift: str = "none") -> dict[str, Any]:
    return {
        "name": "www",
        "run": {"way_back": way_back},
        "snapshots": [{"name": name} for name in there],
        "drift": {"state": drift, "reasons": []},
    }


BACK = {"snapshot": "s1", "failed_units": ["old.service"]}


@pytest.mark.parametrize(
    ("way_back", "named", "plan"),
    [
        (BACK, "", BACK),
        (BACK, "s1", BACK),
        (BACK, "s2", {"snapshot": "s2", "failed_units": None}),
        (None, "s2", {"snapshot": "s2", "failed_units": None}),
        (None, "", {"snapshot": None, "failed_units": None}),
    ],
)
def test_the_one_that_is_named_goes_before_that_of_the_last_run(
    way_back: dict[str, Any] | None, named: str, plan: dict[str, Any]
) -> None:
    assert make_rollback_plan(domain(way_back), named) == plan
    assert bool(rollback_refusal(domain(way_back), named)) is (plan["snapshot"] is None)


def test_where_none_is_known_those_that_are_there_are_named() -> None:
    told = rollback_refusal(domain(None, "s1", "s2"), "")
    assert (told["error_code"], told["evidence"]) == ("snapshot_not_found", {"snapshots": ["s1", "s2"]})
    assert told["remedy"] == "Name one (rollback_snapshot): s1, s2."
    assert rollback_refusal({**domain(None), "run": None}, "")["remedy"] == "This collection has made none of it."


def test_what_would_be_lost_is_said_before_it_is() -> None:
    told = unconfirmed(REHEARSED, confirmed=False)
    assert told["error_code"] == "rollback_unconfirmed"
    assert told["msg"] == (
        "back at snapshot 's1', the guest would lose all that it has written since 2026-03-01T02:00:00Z (2h3m0s), "
        "at least 70 MiB"
    )
    assert "rollback_confirm: true" in told["remedy"]
    unknown = unconfirmed({**REHEARSED, "lost": {**LOST, "written": None}}, confirmed=False)
    assert unknown["msg"].endswith("since 2026-03-01T02:00:00Z (2h3m0s)")


def test_what_was_confirmed_or_is_lost_already_needs_no_word() -> None:
    assert unconfirmed(REHEARSED, confirmed=True) == {}
    assert unconfirmed({**REHEARSED, "reverted": False}, confirmed=False) == {}


def made(failure: dict[str, Any] | None = None, *, check_mode: bool = False, **taken: Any) -> dict[str, Any]:
    return make_rollback_result(GUEST, taken, duration=12.0, check_mode=check_mode, failure=failure)


BEFORE, AFTER = {"domains": [domain(BACK, drift="drifted")]}, {"domains": [domain(BACK)]}


def test_a_guest_that_was_rolled_back() -> None:
    result = made(before=BEFORE, rehearsed=REHEARSED, done=DONE, after=AFTER, intervening=True)
    assert (result["outcome"], result["snapshot"], result["lost"]) == ("rolled_back", "s1", LOST)
    assert (result["restarted"], result["drift"], result["error"]) == (True, "resolved", None)
    assert render_summary("rollback", [result])[1:] == [
        "ROLLBACK SUMMARY: 1 VM(s) processed",
        "═" * 39,
        "✓ web1",
        "  Rolled back to: s1",
        "  Lost: all that it has written since 2026-03-01T02:00:00Z (2h3m0s), at least 70 MiB",
        "  QEMU drift: resolved",
        "  Duration: 12s",
        "",
        "═" * 39,
        "Success: 1  Failed: 0",
        "═" * 39,
    ]


@pytest.mark.parametrize("clock_set", [None, True, False])
def test_a_clock_that_could_not_be_set_is_told(clock_set: bool | None) -> None:
    done = {**DONE, "clock_set": clock_set, "failed_units": ["old.service"]}
    result = made(before=BEFORE, rehearsed=REHEARSED, done=done, after=AFTER, intervening=True)
    assert (result["clock_set"], result["failed_units"]) == (clock_set, ["old.service"])
    line = "  Guest's clock: could not be set, and goes on from when the snapshot was made"
    assert (line in render_summary("rollback", [result])) is (clock_set is False)


def test_check_mode_says_what_would_be_lost() -> None:
    result = made(check_mode=True, before=BEFORE, rehearsed=REHEARSED)
    assert (result["outcome"], result["restarted"], result["drift"]) == ("rolled_back", False, "unknown")
    lines = render_summary("rollback", [result])
    assert "  To be rolled back to: s1" in lines
    assert any(line.startswith("  To be lost: all that it has written") for line in lines)


@pytest.mark.parametrize(("intervening", "outcome"), [(False, "refused"), (True, "rollback_failed")])
def test_a_guest_that_was_not_rolled_back(intervening: bool, outcome: str) -> None:
    told = {"msg": "it broke", "error_code": "libvirt_failed", "remedy": "Mend it."}
    failure = {"task": "Roll the guest back", "result": told}
    result = made(failure, before=BEFORE, rehearsed=REHEARSED, intervening=intervening)
    assert (result["outcome"], result["error"]["msg"]) == (outcome, "it broke")
    lines = render_summary("rollback", [result])
    assert "✗ web1" in lines
    assert any("kvm.fleet.rollback" in line for line in lines) is intervening
