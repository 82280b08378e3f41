# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One guest's way back to a snapshot: to which, whether somebody wants that, and what to say of it afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._cycle import domain_of, drift_outcome, failure_facts
from ansible_collections.kvm.fleet.plugins.plugin_utils._result import Facts, Result, told_of_any
from ansible_collections.kvm.fleet.plugins.plugin_utils._summary import loss_text


def make_rollback_plan(before: Facts, named: str) -> dict[str, Any]:
    """Where to go back to, by the guest's domain: the snapshot that is ``named``, or that of the last run.

    The units that had failed before it are known of the latter only, None otherwise.
    """
    back = (before.get("run") or {}).get("way_back") or {}
    if named and named != back.get("snapshot"):
        return {"snapshot": named, "failed_units": None}
    return {"snapshot": back.get("snapshot"), "failed_units": back.get("failed_units")}


def rollback_refusal(before: Facts, named: str) -> dict[str, Any]:
    """Why nobody knows where to go back to, as a module's failure has it; empty where somebody does."""
    if make_rollback_plan(before, named)["snapshot"]:
        return {}
    there = [snapshot["name"] for snapshot in before["snapshots"]]
    return failure_facts(
        "snapshot_not_found",
        f"no run is on record that has made a snapshot of {before['name']!r}",
        f"Name one (rollback_snapshot): {', '.join(there)}." if there else "This collection has made none of it.",
        {"snapshots": there},
    )


def unconfirmed(rehearsed: Facts, confirmed: bool) -> dict[str, Any]:
    """Why the guest is not rolled back yet, as a module's failure has it; empty where it may be.

    ``rehearsed`` is what domain_rollback returned in check mode. One that goes on after the loss needs no word.
    """
    if confirmed or not rehearsed["reverted"]:
        return {}
    return failure_facts(
        "rollback_unconfirmed",
        f"back at snapshot {rehearsed['snapshot']!r}, the guest would lose {loss_text(rehearsed['lost'])}",
        "If that may be lost, say so: rollback_confirm: true.",
        {"snapshot": rehearsed["snapshot"], "lost": rehearsed["lost"]},
    )


@dataclass(frozen=True)
class RollbackResult(Result):
    """``outcome`` is one of rolled_back, rollback_failed, refused.

    ``lost``, ``failed_units`` and ``clock_set`` are as domain_rollback tells them.
    """

    snapshot: str | None
    lost: Facts | None
    failed_units: Sequence[str] | None
    clock_set: bool | None
    drift: str


def make_rollback_result(
    guest: Facts, taken: Facts, *, duration: float, check_mode: bool, failure: Facts | None = None
) -> dict[str, Any]:
    """Put together what the steps returned.

    ``taken`` has what the steps registered under lease, before, rehearsed, done and after, as far as they came.
    ``failure`` is the failed task's name and result, if one failed.
    """
    told = {**(taken.get("rehearsed") or {}), **(taken.get("done") or {})}
    before = domain_of(taken.get("before"))
    after = domain_of(taken.get("after"))
    outcome = "rolled_back" if not failure else "rollback_failed" if taken.get("intervening") else "refused"
    return RollbackResult(
        **told_of_any(guest, taken.get("lease") or {}, duration=duration, check_mode=check_mode, failure=failure),
        outcome=outcome,
        restarted=told.get("started") is True and outcome == "rolled_back" and not check_mode,
        snapshot=told.get("snapshot"),
        lost=told.get("lost"),
        failed_units=told.get("failed_units"),
        clock_set=told.get("clock_set"),
        drift=drift_outcome(before, after) if after else "unknown",
    ).record()
