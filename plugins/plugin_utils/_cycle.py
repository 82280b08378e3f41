# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One guest's way through an upgrade: what to do, whether it went well, and what to say of it afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.kvm.fleet.plugins.module_utils._domain import ACTIVE_STATES, DomainState, require_running
from ansible_collections.kvm.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.kvm.fleet.plugins.module_utils._packages import PackageChange, compose
from ansible_collections.kvm.fleet.plugins.module_utils._record import GENTLE, may_run_elsewhere
from ansible_collections.kvm.fleet.plugins.plugin_utils._migration import named
from ansible_collections.kvm.fleet.plugins.plugin_utils._result import Facts, Result, told_of_any, was_forced

RESTART_POLICIES = ("needed", "always", "never")

STRATEGIES = ("power_cycle", "save_restore", "migrate", "auto")


@dataclass(frozen=True)
class Plan:
    """What has to be done to a guest. ``reasons`` says why it has to be restarted, ``strategy`` how."""

    snapshot: bool
    upgrade: bool
    restart: bool
    reasons: tuple[str, ...]
    strategy: str = "power_cycle"


def make_plan(
    before: Facts,
    predicted: Facts,
    *,
    snapshot: bool,
    restart: str,
    resumed: Facts | None = None,
    strategy: str = "power_cycle",
) -> Plan:
    """Decide from the domain, from what guest_upgrade predicts, and from the role's options.

    ``resumed`` is what an earlier run has begun, and ``before`` the domain as it was before that. What has to be done
    is what that run had to do; the modules know how much of it is done. A restart that was begun is brought to its end.

    An upgrade that an earlier run did not bring to its end is gone on with even where nothing seems to be left of it.
    A restart is needed to get off an outdated QEMU, when the guest asks for one, and to make running programs use
    upgraded packages. A snapshot is made only where something else will be done.

    A guest that is saved and restored, or migrated, does not boot. So these restart it for its drift alone, and leave
    what else asks for a restart; auto leaves the choice to the module where there is nothing else, and else
    power-cycles it.
    """
    begun_before = (resumed or {}).get("steps", [])
    upgrades = [step for step in begun_before if step["name"] == "upgrade"]
    changing = bool(predicted.get("packages")) or predicted.get("unfinished", "none") != "none"
    upgrading = changing or ("packages" in predicted and bool(upgrades) and upgrades[-1]["status"] != "done")
    reasons = []
    if before["drift"]["state"] == "drifted":
        reasons += [f"{reason['kind']}: {reason['path']}" for reason in before["drift"]["reasons"]]
    drifts = bool(reasons)
    boots = list(predicted.get("reboot_reasons") or [])
    if changing or (resumed or {}).get("packages"):
        boots.append("packages are upgraded")
    if strategy not in GENTLE:
        reasons += boots
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
        strategy="power_cycle" if strategy == "auto" and (boots or not drifts) else strategy,
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
    went_to = (before.get("run") or {}).get("went_to")
    try:
        if went_to and DomainState(before["state"]) not in ACTIVE_STATES:
            raise may_run_elsewhere(before["name"], went_to)
        require_running(before["name"], DomainState(before["state"]))
    except FleetError as error:
        return failure_facts(error.error_code, error.message, error.remedy, error.evidence)
    if restart == "never" or before["drift"]["state"] != "unknown":
        return {}
    details = "; ".join(reason["detail"] for reason in before["drift"]["reasons"])
    return failure_facts(
        "drift_unknown",
        f"whether its QEMU is outdated cannot be told: {details or 'no reason is known'}",
        "See to it that Ansible becomes root on the hypervisor. With upgrade_restart=never, packages are upgraded "
        "without a restart.",
        {"drift": before["drift"]},
    )


def refusal_of_migration(foreseen: Facts, storage: str) -> dict[str, Any]:
    """Why a guest would not be migrated after its snapshot, as a module's failure has it; empty where it would be.

    ``foreseen`` is what domain_snapshot has returned in check mode. The module that migrates cannot know it before the
    snapshot is there, and then it is too late: the guest may be upgraded by then.
    """
    way = foreseen.get("way") or (foreseen.get("snapshot") or {}).get("way")
    if way is None or (way == "live" and storage != "copy"):
        return {}
    why = (
        "its disks would be copied to another hypervisor after a snapshot was taken, and snapshots are not copied"
        if storage == "copy"
        else f"its snapshot would be made {way.replace('_', ' ')}, and only one that is made live goes along to "
        "another hypervisor"
    )
    return failure_facts(
        "migration_impossible",
        f"it would not be migrated: {why}",
        "Take no snapshot (upgrade_snapshot: false), "
        + ("have its storage shared, " if storage == "copy" else "leave its way to upgrade_snapshot_way: auto, ")
        + "or choose another upgrade_strategy.",
        {"way": way},
    )


def failure_after(
    before: Facts, after: Facts, failed_units: Iterable[str], plan: Facts, snapshot: str | None
) -> dict[str, Any]:
    """Why the guest cannot be called healthy, as a module's failure has it; empty when it can.

    ``failed_units`` are those that had not failed before, ``snapshot`` is the one that was made, if any.
    """
    damage = damage_after(before, after, failed_units)
    problems = damage + drift_after(after, plan)
    if not problems:
        return {}
    rollback = ", or roll the guest back to its snapshot (kvm.fleet.rollback)" if snapshot else ""
    return failure_facts(
        "guest_unhealthy",
        "; ".join(problems),
        f"Look at what is named here, in the guest ('systemctl status') and on its hypervisor, and mend it{rollback}.",
        {"problems": problems, "damage": damage},
    )


def failure_facts(error_code: str, msg: str, remedy: str, evidence: Facts) -> dict[str, Any]:
    """A failure that a filter has found, as a module's has it."""
    return {"error_code": error_code, "msg": msg, "remedy": remedy, "transient": False, "evidence": dict(evidence)}


def damage_after(before: Facts, after: Facts, failed_units: Iterable[str]) -> list[str]:
    """In what the guest is not as it was. ``failed_units`` are those that had not failed before."""
    found = []
    if after["state"] != "running":
        found.append(f"the domain is {after['state'].replace('_', ' ')}")
    if before["agent_channel"] == "connected" and after["agent_channel"] != "connected":
        found.append("the guest agent is gone")
    return found + [f"unit {unit} has failed" for unit in failed_units]


def drift_after(after: Facts, plan: Facts) -> list[str]:
    """In what a restart has missed its aim. That speaks against the hypervisor, and not against the guest."""
    if not plan["restart"] or after["drift"]["state"] == "none":
        return []
    details = "; ".join(f"{reason['path']} {reason['detail']}".strip() for reason in after["drift"]["reasons"])
    return [f"QEMU drift is {after['drift']['state']} after the restart ({details or 'no reason is known'})"]


def told_restart(restarts: Sequence[Facts]) -> Facts:
    """The last restart that has failed or done something, or else the last, by what domain_power returned of each.

    One that is asked for after another has nothing left to do, and knows no more of what that has found out.
    """
    telling = [found for found in restarts if found.get("failed") or found.get("steps")]
    return (telling or restarts)[-1]


NOT_UP = ("start_failed", "agent_silent", "proof_failed")
"""Failures of a restart that leave nobody who could tell that the guest came up, if they come after it was off."""


def calls_for_rollback(taken: Facts, verdict: Facts) -> bool:
    """Whether a guest that has failed did not come back as it was, though it had been upgraded or restarted.

    That is so where it was found damaged in the end, and where it went off and did not come up. An upgrade that has
    failed is not: the next run repairs it, and nothing of the guest's data is lost for that. Nor is one whose snapshot
    an earlier run has made: what it has written since may be the work of days.
    """
    snapshot = taken.get("snapshot") or {}
    made = bool(snapshot.get("changed") and snapshot.get("snapshot"))
    damaged = bool((verdict.get("evidence") or {}).get("damage"))
    return made and (damaged or _did_not_come_up(taken.get("power") or {}))


def _did_not_come_up(power: Facts) -> bool:
    """Whether a restart has failed after the guest was off, by how domain_power tells it.

    Of a guest whose saved RAM was refused, that comes first, and what was met after it was started anew goes with it.
    """
    evidence = power.get("evidence") or {}
    was_off = any(DomainState(seen["state"]) not in ACTIVE_STATES for seen in evidence.get("transitions", []))
    codes = power.get("error_code"), evidence.get("afterwards_code")
    return bool(power.get("failed")) and was_off and any(code in NOT_UP for code in codes)


def drift_outcome(before: Facts, after: Facts) -> str:
    """What became of the drift: none, resolved, remains or unknown."""
    states = before.get("drift", {}).get("state", "unknown"), after.get("drift", {}).get("state", "unknown")
    if "unknown" in states or "not_running" in states:
        return "unknown"
    if states[1] == "drifted":
        return "remains"
    return "resolved" if states[0] == "drifted" else "none"


@dataclass(frozen=True)
class UpgradeResult(Result):
    """What became of a guest that was to be upgraded, or restarted. What an earlier run has done is part of it.

    ``outcome`` is one of unchanged, upgraded, restarted, failed, rolled_back, rollback_failed, refused. ``lost`` is
    what a rollback after a failure has undone, ``failed_units`` and ``clock_set`` how the guest is after it, as
    domain_rollback tells them. ``packages`` are then as they were.
    ``strategy`` is how it was restarted, ``closed`` are the gentler strategies that were not open, and ``pause`` tells
    for how many seconds it was away. ``migration`` names the hypervisor that it was migrated to.
    """

    packages: list[Mapping[str, Any]]
    kept_back: list[Mapping[str, str]]
    config_files: list[str]
    restart_reasons: list[str]
    strategy: str | None
    closed: Mapping[str, str]
    pause: Mapping[str, float | None] | None
    migration: Facts | None
    forced_off: bool
    reboot_required: bool | None
    drift: str
    snapshot: str | None
    lost: Facts | None
    failed_units: Sequence[str] | None
    clock_set: bool | None


def make_result(
    guest: Facts, taken: Mapping[str, Facts], *, duration: float, check_mode: bool, failure: Facts | None = None
) -> dict[str, Any]:
    """Put together what the steps returned.

    ``guest`` has run, name, hypervisor, uri and domain; ``taken`` has what the steps registered under lease, before,
    predicted, plan, snapshot, upgrade, power, rollback and after, as far as they came. ``failure`` is the failed task's
    name and result, if one failed.
    """
    before, after = domain_of(taken.get("before")), domain_of(taken.get("after"))
    plan = taken.get("plan") or {}
    upgrade, power, snapshot = (taken.get(step) or {} for step in ("upgrade", "power", "snapshot"))
    lease = taken.get("lease") or {}
    earlier = lease.get("resumed") or {}
    # A failed upgrade tells what it had changed by then as evidence.
    packages = upgrade.get("packages") or (upgrade.get("evidence") or {}).get("changes") or []
    packages = together(earlier.get("packages") or [], packages)
    # A restart that failed half-way has not restarted anything as far as anybody can prove.
    by_itself = (power.get("restarted") or earlier.get("restarted")) is True and not power.get("failed")
    restarted = by_itself or snapshot.get("restarted") is True
    rollback = taken.get("rollback") or {}
    rolled_back = "lost" in rollback
    if rolled_back:
        outcome, packages, restarted = "rolled_back", [], False
    elif rollback and not rollback.get("skipped"):
        outcome = "rollback_failed"
    elif failure:
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
    if outcome == "rollback_failed" and failure:
        failure = {**failure, "rollback": rollback}
    # What was power-cycled for its snapshot was so before its upgrade, which may still ask for a reboot.
    strategy = (power.get("strategy") or earlier.get("strategy")) if by_itself else "power_cycle" if restarted else None
    return UpgradeResult(
        **told_of_any(guest, lease, duration=duration, check_mode=check_mode, failure=failure),
        outcome=outcome,
        packages=packages,
        kept_back=list((taken.get("predicted") or {}).get("kept_back") or []),
        config_files=list(dict.fromkeys([*(earlier.get("config_files") or []), *(upgrade.get("config_files") or [])])),
        restarted=restarted,
        restart_reasons=list(plan.get("reasons") or []),
        strategy=strategy,
        closed=dict(power.get("closed") or {}),
        pause=power.get("pause") if by_itself else None,
        migration=_migration_of(power, taken.get("destinations") or {}),
        forced_off=earlier.get("forced") is True or was_forced(power) or was_forced(snapshot),
        reboot_required=_reboot_required(upgrade, taken.get("predicted") or {}, by_itself and strategy not in GENTLE),
        drift=drift_outcome(before, after),
        snapshot=_snapshot_kept(made, earlier) if taken.get("snapshot_kept", True) and not check_mode else None,
        lost=rollback.get("lost") if rolled_back else None,
        failed_units=rollback.get("failed_units") if rolled_back else None,
        clock_set=rollback.get("clock_set") if rolled_back else None,
    ).record()


def _migration_of(power: Facts, destinations: Mapping[str, Any]) -> dict[str, Any] | None:
    """What domain_power tells of a migration, with the inventory's name of the hypervisor."""
    told = power.get("migration")
    return {**told, "destination": named(told["destination"], destinations)} if told else None


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


def domain_of(info: Facts | None) -> Facts:
    """The one domain in a result of domain_info, or nothing when that was skipped or failed."""
    domains = (info or {}).get("domains") or [{}]
    first: Facts = domains[0]
    return first


def _reboot_required(upgrade: Facts, predicted: Facts, rebooted: bool) -> bool | None:
    """Whether the guest asks for a reboot; None where nobody has asked it, as nobody does after one."""
    told = upgrade.get("reboot_required", predicted.get("reboot_required"))
    return None if told is None or rebooted else bool(told)
