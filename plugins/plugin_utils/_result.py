# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is said of a guest afterwards, whatever was done to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Facts = Mapping[str, Any]
"""A module's result, or a domain from domain_info's."""

LONGEST_TEXT = 1000
"""Characters. What a guest says at more length stays in the output of the task that it was said to."""


@dataclass(frozen=True)
class Result:
    """What became of one guest; the summary, the statistics and AWX's artifacts show it.

    ``outcome`` is one word for it, in check mode for what a run would come to. ``resumed`` names the run that was gone
    on with, and where that was cut off, ``taken_over`` the one that was found dead. ``duration`` is in seconds.
    """

    run: str
    guest: str
    hypervisor: str
    uri: str
    domain: str
    outcome: str
    check_mode: bool
    restarted: bool
    resumed: Mapping[str, Any] | None
    taken_over: Mapping[str, Any] | None
    duration: float
    error: Mapping[str, Any] | None

    def record(self) -> dict[str, Any]:
        """It as plain values. Part of it comes from guests, and AWX keeps it, so no text is longer than a record's."""
        # Not asdict(): it copies, which the lazy containers that Ansible hands to filters do not allow.
        return {name: bounded(value) for name, value in vars(self).items()}


def told_of_any(
    guest: Facts, lease: Facts, *, duration: float, check_mode: bool, failure: Facts | None
) -> dict[str, Any]:
    """What each result has, but for ``outcome`` and ``restarted``, which what was done to the guest tells.

    ``guest`` has run, name, hypervisor, uri and domain, ``lease`` is what guest_lease returned.
    """
    return {
        "run": guest.get("run", ""),
        "guest": guest["name"],
        "hypervisor": guest["hypervisor"],
        "uri": guest["uri"],
        "domain": guest["domain"],
        "check_mode": check_mode,
        "resumed": gone_on_with(lease),
        "taken_over": lease.get("taken_over"),
        "duration": round(duration, 1),
        "error": describe_failure(failure) if failure else None,
    }


def result_filter(make: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """The filter by which a role has its result made. Work on the guest has ``started`` in seconds since the epoch."""

    def result(
        taken: Facts, guest: Facts, started: str | float, check_mode: bool = False, failure: Facts | None = None
    ) -> dict[str, Any]:
        return make(guest, taken, duration=time.time() - float(started), check_mode=check_mode, failure=failure)

    return result


def gone_on_with(lease: Facts) -> dict[str, Any] | None:
    """The run that was gone on with, and where it was cut off, by what guest_lease returned."""
    resumed = lease.get("resumed")
    return {key: resumed[key] for key in ("run", "cut_off")} if resumed else None


def was_forced(done: Facts) -> bool:
    """Whether a module that power-cycles a guest has ended it by force, be it before it failed."""
    return True in (done.get("forced"), (done.get("evidence") or {}).get("forced"))


def power_of(repair: Facts) -> Facts:
    """What came of a guest's way down and up for a repair, by what guest_repair returned, or failed with after that."""
    return repair.get("power") or {
        key: found for key, found in (repair.get("evidence") or {}).items() if key in ("restarted", "forced")
    }


def bounded(value: Any) -> Any:
    """A copy in which no text is longer than LONGEST_TEXT; what lies between the ends of a longer one is left out."""
    if isinstance(value, str):
        half = LONGEST_TEXT // 2
        return value if len(value) <= LONGEST_TEXT else f"{value[: half - 1]}…{value[-half:]}"
    if isinstance(value, Mapping):
        return {bounded(key): bounded(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [bounded(one) for one in value]
    return value


def describe_failure(failure: Facts) -> dict[str, Any]:
    """The first cause, from a failed task of any kind: only the collection's own modules bring a code and a remedy.

    Where ``hidden`` is true, the task had no_log, and what its result says is not told.
    Under 'start', ``failure`` may have what came of the guest's start after it, under 'rollback' how its rollback
    failed. Such a failure goes with the evidence, and its remedy with the other, since it says in which state the guest
    is.
    """
    hidden = failure.get("hidden") is True
    told = _told(failure["result"], hidden=hidden)
    start = failure.get("start") or {}
    if start.get("failed"):
        after = _told(start, hidden=hidden)
        told["remedy"] = f"{told['remedy']} After that, its start failed: {after['msg']}. {after['remedy']}".strip()
        told["evidence"] = {**told["evidence"], "start": after}
    if "rollback" in failure:
        after = _told(failure["rollback"], hidden=hidden)
        told["remedy"] = f"{told['remedy']} After that, its rollback failed: {after['msg']}. {after['remedy']}".strip()
        told["evidence"] = {**told["evidence"], "rollback": after}
    return {"task": failure["task"], **told}


def _told(result: Facts, *, hidden: bool) -> dict[str, Any]:
    msg = "its message is hidden (no_log)" if hidden else str(result.get("msg", "the task gave no message"))
    return {
        "error_code": result.get("error_code", "task_failed"),
        "msg": msg,
        "remedy": result.get("remedy", ""),
        "transient": result.get("transient", False),
        "evidence": {} if hidden else result.get("evidence", {}),
    }
