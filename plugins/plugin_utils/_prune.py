# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What became of a guest whose snapshots were to be pruned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._result import Facts, Result, told_of_any


@dataclass(frozen=True)
class PruneResult(Result):
    """``outcome`` is one of unchanged, changed, failed, refused. ``freed`` is in bytes, None where nobody can tell."""

    pruned: list[Facts]
    kept: list[Facts]
    freed: int | None


def make_prune_result(
    guest: Facts, done: Facts, *, duration: float, check_mode: bool, failure: Facts | None = None
) -> dict[str, Any]:
    """Put together from what domain_snapshot_prune returned. ``failure`` is the failed task's name and result, if any.

    One that has failed tells as evidence which snapshots it had deleted by then.
    """
    deleted = ((failure or {}).get("result", {}).get("evidence") or {}).get("pruned")
    if failure:
        outcome = "refused" if deleted is None else "failed"
    else:
        outcome = "changed" if done.get("pruned") else "unchanged"
    return PruneResult(
        **told_of_any(guest, {}, duration=duration, check_mode=check_mode, failure=failure),
        outcome=outcome,
        restarted=False,
        pruned=list(done.get("pruned") or [{"name": name, "size": None} for name in deleted or []]),
        kept=list(done.get("kept") or []),
        freed=done.get("freed"),
    ).record()
