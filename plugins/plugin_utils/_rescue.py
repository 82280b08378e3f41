# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One guest's way through a rescue: whether to begin, what becomes of it, and what to say of it afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._cycle import make_result, was_left_off
from ansible_collections.kvm.fleet.plugins.plugin_utils._result import (
    Facts,
    bounded,
    gone_on_with,
    power_of,
    was_forced,
)

OFF = "not_running"


def make_rescue_plan(before: Facts) -> dict[str, bool]:
    """What to do with a guest, by its domain: whether to shut it down first, and whether to start it in the end.

    One that is off stays off, unless it was a run that has shut it down.
    """
    off = before["drift"]["state"] == OFF
    return {"stop": not off, "start": not off or was_left_off(before)}


def make_rescue_result(
    guest: Facts, taken: Mapping[str, Facts], *, duration: float, check_mode: bool, failure: Facts | None = None
) -> dict[str, Any]:
    """Put together what the steps returned, as for an upgrade, and besides under 'repairs' what was repaired.

    ``taken`` has what the steps registered under lease, before, plan, stopped, repair, power and after, as far as they
    came. A repair that failed tells as evidence what was done before it.
    """
    repair = taken.get("repair") or {}
    repairs = [dict(one) for one in repair.get("repairs") or (repair.get("evidence") or {}).get("repairs") or []]
    lease = taken.get("lease") or {}
    # What an earlier run has upgraded is its own: this one only brings the guest back.
    power = {**(power_of(repair) or taken.get("power") or {})}
    if check_mode:
        power["restarted"] = bool((taken.get("plan") or {}).get("start"))
    power["forced"] = was_forced(power) or was_forced(taken.get("stopped") or {})
    steps = {**taken, "plan": {}, "lease": {**lease, "resumed": gone_on_with(lease)}, "power": power}
    result = make_result(guest, steps, duration=duration, check_mode=check_mode, failure=failure)
    if not failure and any(one["changed"] for one in repairs):
        result["outcome"] = "repaired"
    return {**result, "repairs": bounded(repairs)}
