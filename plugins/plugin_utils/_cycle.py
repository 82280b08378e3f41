# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One guest's way through an upgrade: what to do, whether it went well, and what to say of it afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.kvm.fleet.plugins.module_utils._domain import DomainState, require_running
from ansible_collections.kvm.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.kvm.fleet.plugins.module_utils._packages import PackageChange, compose

Facts = Mapping[str, Any]
"""A module's result, or a domain from domain_info's."""

RESTART_POLICIES = ("needed", "always", "never")


@dataclass(frozen=True)
class Plan:
    """What has to be done to a guest. ``reasons`` says why it has to be restarted."""

    snapshot: bool
    upgrade: bool
    restart: bool
    reasons: tuple[str, ...]


def make_plan(before: Facts, predicted: Facts, *, snapshot: bool, restart: str, resumed: Facts | None = None) -> Plan:
    """Decide from the domain, from what guest_upgrade predicts, and from the role's options.

    ``resumed`` is what an earlier run has begun, and ``before`` the domain as it was before that. What has to be done
    is what that run had to do; the modules know how much of it is done. A restart that was begun is brought to its end.

    An upgrade that an earlier run did not bring to its end is gone on with even where nothing seems to be left of it.
    A restart is needed to get off an outdated QEMU, when the guest asks for one, and to make running programs use
    upgraded packages. A snapshot is made only where something else will be done.
    """
    begun_before = (resumed or {}).get("steps", [])
    upgrades = [step for step in begun_before if step["name"] == "upgrade"]
    changing = bool(predicted.get("packages")) or predicted.get("unfinished", "none") != "none"
    upgrading = changing or ("packages" in predicted and bool(upgrades) and upgrades[-1]["status"] != "done")
    reasons = []
    if before["drift"]["state"] == "drifted":
        reasons += [f"{reason['kind']}: {reason['path']}" for reason in before["drift"]["reasons"]]
    reasons += predicted.get("reboot_reasons") or []
    if changing or (resumed or {}).get("packages"):
        reasons.append("packages are upgraded")
    if any(step["name"] == "restart" for step in begun_before) and not reasons:
        reasons.append("it was begun by an earlier run")
    if restart == "always" and not reasons:
        reasons.append("it is asked for")
    restarting = restart != "never" and bool(reasons)
    return Plan(
        snapshot=snapshot and (restarting or upgrading),
        upgrade=upgrading,
        restart=restarting,
        reasons=tuple(reasons) if restarting else (),
    )


def was_left_off(domain: Facts) -> bool:
    """Whether a domain, as domain_info tells of it, is off because a run has shut it down and not started it again."""
    run = domain.get("run") or {}
    return bool(domain["drift"]["state"] == "not_running" and run.get("unfinished") and run.get("shut_down"))


def refusal_before(before: Facts, *, restart: str) -> dict[str, Any]:
    """Why the role would not begin with this guest, as a module's failure has it; empty when nothing speaks against it.

    What only some of the work needs is for its modules to refuse. A guest that an earlier run has shut down is not one
    that somebody wants off.
    """
    if was_left_off(before):
        return {}
    try:
        require_running(before["name"], DomainState(before["state"]))
    except FleetError as error:
        return _failure(error.error_code, error.message, error.remedy, error.evidence)
    if restart == "never" or before["drift"]["state"] != "unknown":
        return {}
    details = "; ".join(reason["detail"] for reason in before["drift"]["reasons"])
    return _failure(
        "drift_unknown",
        f"whether its QEMU is outdated cannot be told: {details or 'no reason is known'}",
        "See to it that Ansible becomes root on the hypervisor. With upgrade_restart=never, packages are upgraded "
        "without a restart.",
        {"drift": before["drift"]},
    )


def failure_after(
    before: Facts, after: Facts, failed_units: Iterable[str], plan: Facts, snapshot: str | None
) -> dict[str, Any]:
    """Why the guest cannot be called healthy, as a module's failure has it; empty when it can.

    ``failed_units`` are those that had not failed before, ``snapshot`` is the one that was made, if any.
    """
    problems = problems_after(before, after, failed_units, plan)
    if not problems:
        return {}
    rollback = ", or roll the guest back to its snapshot" if snapshot else ""
    return _failure(
        "guest_unhealthy",
        "; ".join(problems),
        f"Look at what is named here, in the guest ('systemctl status') and on its hypervisor, and mend it{rollback}.",
        {"problems": problems},
    )


def _failure(error_code: str, msg: str, remedy: str, evidence: Facts) -> dict[str, Any]:
    return {"error_code": error_code, "msg": msg, "remedy": remedy, "transient": False, "evidence": dict(evidence)}


def problems_after(before: Facts, after: Facts, failed_units: Iterable[str], plan: Facts) -> list[str]:
    """What speaks against calling the guest healthy. ``failed_units`` are those that had not failed before."""
    found = []
    if after["state"] != "running":
        found.append(f"the domain is {after['state'].replace('_', ' ')}")
    if before["agent_channel"] == "connected" and after["agent_channel"] != "connected":
        found.append("the guest agent is gone")
    if plan["restart"] and after["drift"]["state"] != "none":
        details = "; ".join(f"{reason['path']} {reason['detail']}".strip() for reason in after["drift"]["reasons"])
        found.append(f"QEMU drift is {after['drift']['state']} after the restart ({details or 'no reason is known'})")
    found += [f"unit {unit} has failed" for unit in failed_units]
    return found


def drift_outcome(before: Facts, after: Facts) -> str:
    """What became of the drift: none, resolved, remains or unknown."""
    states = before.get("drift", {}).get("state", "unknown"), after.get("drift", {}).get("state", "unknown")
    if "unknown" in states or "not_running" in states:
        return "unknown"
    if states[1] == "drifted":
        return "remains"
    return "resolved" if states[0] == "drifted" else "none"


@dataclass(frozen=True)
class Result:
    """What became of one guest; the summary, the statistics and AWX's artifacts show it.

    ``outcome`` is one of unchanged, upgraded, restarted, failed, refused. In check mode it is what a run would come to.
    ``resumed`` names the run that was gone on with, and where that was cut off, ``taken_over`` the one that was found
    dead. What the earlier run has done is part of the result. ``duration`` is in seconds.
    """

    run: str
    guest: str
    hypervisor: str
    uri: str
    domain: str
    outcome: str
    check_mode: bool
    packages: list[Mapping[str, Any]]
    kept_back: list[Mapping[str, str]]
    config_files: list[str]
    restarted: bool
    restart_reasons: list[str]
    forced_off: bool
    reboot_required: bool | None
    drift: str
    snapshot: str | None
    resumed: Mapping[str, Any] | None
    taken_over: Mapping[str, Any] | None
    duration: float
    error: Mapping[str, Any] | None


def gone_on_with(lease: Facts) -> dict[str, Any] | None:
    """The run that was gone on with, and where it was cut off, by what guest_lease returned."""
    resumed = lease.get("resumed")
    return {key: resumed[key] for key in ("run", "cut_off")} if resumed else None


def was_forced(power: Facts) -> bool:
    """Whether domain_power has ended the guest by force, be it before it failed."""
    return True in (power.get("forced"), (power.get("evidence") or {}).get("forced"))


def make_result(
    guest: Facts, taken: Mapping[str, Facts], *, duration: float, check_mode: bool, failure: Facts | None = None
) -> dict[str, Any]:
    """Put together what the steps returned.

    ``guest`` has run, name, hypervisor, uri and domain; ``taken`` has what the steps registered under lease, before,
    predicted, plan, snapshot, upgrade, power and after, as far as they came. ``failure`` is the failed task's name and
    result, if one failed.
    """
    before, after = _domain(taken.get("before")), _domain(taken.get("after"))
    plan = taken.get("plan") or {}
    upgrade, power, snapshot = (taken.get(step) or {} for step in ("upgrade", "power", "snapshot"))
    lease = taken.get("lease") or {}
    earlier = lease.get("resumed") or {}
    # A failed upgrade tells what it had changed by then as evidence.
    packages = upgrade.get("packages") or (upgrade.get("evidence") or {}).get("changes") or []
    packages = together(earlier.get("packages") or [], packages)
    # A restart that failed half-way has not restarted anything as far as anybody can prove.
    restarted = (power.get("restarted") or earlier.get("restarted")) is True and not power.get("failed")
    if failure:
        outcome = "failed" if taken.get("intervening") else "refused"
    elif packages:
        outcome = "upgraded"
    else:
        outcome = "restarted" if restarted else "unchanged"
    if not after and check_mode and restarted:
        after = {"drift": {"state": "none"}}
    elif not after and (check_mode or outcome == "refused"):
        after = before
    made = snapshot.get("snapshot") or {}
    # Not asdict(): it copies, which the lazy containers that Ansible hands to filters do not allow.
    return vars(
        Result(
            run=guest.get("run", ""),
            guest=guest["name"],
            hypervisor=guest["hypervisor"],
            uri=guest["uri"],
            domain=guest["domain"],
            outcome=outcome,
            check_mode=check_mode,
            packages=packages,
            kept_back=list((taken.get("predicted") or {}).get("kept_back") or []),
            config_files=list(
                dict.fromkeys([*(earlier.get("config_files") or []), *(upgrade.get("config_files") or [])])
            ),
            restarted=restarted,
            restart_reasons=list(plan.get("reasons") or []),
            forced_off=earlier.get("forced") is True or was_forced(power),
            reboot_required=_reboot_required(upgrade, taken.get("predicted") or {}, restarted),
            drift=drift_outcome(before, after),
            snapshot=_snapshot_kept(made, earlier) if taken.get("snapshot_kept", True) and not check_mode else None,
            resumed=gone_on_with(lease),
            taken_over=lease.get("taken_over"),
            duration=round(duration, 1),
            error=describe_failure(failure) if failure else None,
        )
    )


def together(first: Sequence[Facts], second: Sequence[Facts]) -> list[Facts]:
    """Package changes of two upgrades, one after the other, as those of one."""
    if not first:
        return list(second)
    lists = [[PackageChange(**{key: change[key] for key in _CHANGE}) for change in one] for one in (first, second)]
    return [vars(change) for change in compose(*lists)]


_CHANGE = tuple(PackageChange.__dataclass_fields__)


def _snapshot_kept(made: Facts, earlier: Facts) -> str | None:
    name = made.get("name") or earlier.get("snapshot")
    return None if name is None else str(name)


def _domain(info: Facts | None) -> Facts:
    """The one domain in a result of domain_info, or nothing when that was skipped or failed."""
    domains = (info or {}).get("domains") or [{}]
    first: Facts = domains[0]
    return first


def _reboot_required(upgrade: Facts, predicted: Facts, restarted: bool) -> bool | None:
    """Whether the guest asks for a reboot; None where nobody has asked it, as nobody does after a restart."""
    told = upgrade.get("reboot_required", predicted.get("reboot_required"))
    return None if told is None or restarted else bool(told)


def describe_failure(failure: Facts) -> dict[str, Any]:
    """The first cause, from a failed task of any kind: only the collection's own modules bring a code and a remedy.

    Under 'start', ``failure`` may have what came of the guest's start after it. Where that failed as well, it goes with
    the evidence, and its remedy with the other, since it says in which state the guest is.
    """
    told = _told(failure["result"])
    start = failure.get("start") or {}
    if start.get("failed"):
        after = _told(start)
        told["remedy"] = f"{told['remedy']} After that, its start failed: {after['msg']}. {after['remedy']}".strip()
        told["evidence"] = {**told["evidence"], "start": after}
    return {"task": failure["task"], **told}


def _told(result: Facts) -> dict[str, Any]:
    return {
        "error_code": result.get("error_code", "task_failed"),
        "msg": str(result.get("msg", "the task gave no message")),
        "remedy": result.get("remedy", ""),
        "transient": result.get("transient", False),
        "evidence": result.get("evidence", {}),
    }
