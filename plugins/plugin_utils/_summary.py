# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The summaries that a person reads at the end of a run."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.kvm.fleet.plugins.module_utils._record import GENTLE, HEALTHY, MAY_BE_DOWN

RULE = "═" * 39

Record = Mapping[str, Any]

_PLAIN = re.compile(r"[A-Za-z0-9_.-]+")
"""A guest's name that is the same to a shell, to Ansible and to us."""


def records_of(fleet: Mapping[str, Any], lost: Iterable[str]) -> list[Record]:
    """One record for every guest that a run was about, from what its plays have noted. See complete() for ``lost``."""
    guests, left_out = fleet.get("guests", {}), fleet.get("left_out", [])
    # A playbook of the user's own notes no targets with the role alone, and the last ones only of several selections.
    targets = dict.fromkeys([*fleet.get("targets", []), *guests])
    return complete([target for target in targets if target not in left_out], guests, lost)


def complete(targets: Sequence[str], records: Mapping[str, Record], lost: Iterable[str]) -> list[Record]:
    """One record for every guest that the run was about, in the run's order.

    A guest without a record was never reached, unless Ansible counts it among the ``lost``: its hypervisor went away,
    or a task failed where no rescue could see it.
    """
    gone = set(lost)
    return [records.get(target) or _missing(target, lost=target in gone) for target in targets]


def _missing(guest: str, *, lost: bool) -> Record:
    if not lost:
        return {"guest": guest, "outcome": "not_attempted"}
    return {
        "guest": guest,
        "outcome": "failed",
        "error": {
            "error_code": "run_ended",
            "msg": "the run lost this guest: its hypervisor could not be reached, or Ansible itself failed",
            "remedy": "See the messages above, look at the guest's state, and run again.",
        },
    }


def render_summary(job: str, records: Sequence[Record], failed_looks: Sequence[Record] = ()) -> list[str]:
    """The summary of a job (upgrade, restart, agent, prune, ...), line by line.

    ``failed_looks`` tell which hypervisors could not be looked at; nobody knows what other guests they have.
    """
    reached = [record for record in records if record["outcome"] != "not_attempted"]
    missed = len(records) - len(reached)
    title = f"{job.upper()} SUMMARY: {len(reached)} VM(s) processed"
    if missed:
        title += f", {missed} not attempted"
    if any(record.get("check_mode") for record in reached):
        title += " (check mode: nothing was changed)"
    succeeded = sum(_went_well(record) for record in reached)
    resolved = sum(record.get("drift") == "resolved" for record in reached)
    lines = [RULE, title, RULE]
    for record in records:
        lines += [*_guest_lines(record), ""]
    for failed in failed_looks:
        lines += [*_failed_look_lines(failed), ""]
    totals = f"Success: {succeeded}  Failed: {len(reached) - succeeded}"
    if job not in ("agent", "prune", "rollback") and not any("policy" in record for record in records):
        totals += f"  Drift Resolved: {resolved}"
    return [*lines, RULE, totals, RULE] if records or failed_looks else [*lines[:2], RULE, totals, RULE]


def _guest_lines(record: Record) -> list[str]:
    if record["outcome"] == "not_attempted":
        why = record.get("error") or {"msg": "the run ended before its turn", "remedy": ""}
        return [
            f"- {printable(record['guest'])}",
            *_indented([("Not attempted", why["msg"]), ("Remedy", why["remedy"])]),
        ]
    if not _went_well(record):
        return [f"✗ {printable(record['guest'])}", *_indented(_failure_facts(record))]
    return [f"✓ {printable(record['guest'])}", *_indented(_success_facts(record))]


def _went_well(record: Record) -> bool:
    """Also where a guest was rolled back because somebody wanted that, and not because it had failed."""
    return record["outcome"] in HEALTHY and not record.get("error")


def _failed_look_lines(failed: Record) -> list[str]:
    facts = [("Error", str(failed["msg"])), ("Remedy", str(failed["remedy"]))]
    return [f"✗ hypervisor {printable(failed['hypervisor'])}", *_indented(facts)]


def _indented(facts: Iterable[tuple[str, str]]) -> list[str]:
    return [f"  {label}: {printable(value)}" for label, value in facts if value]


def printable(text: str) -> str:
    """Without what would move the cursor or change the terminal: part of it comes from guests."""
    return "".join(character if character.isprintable() else " " for character in text)


def _success_facts(record: Record) -> list[tuple[str, str]]:
    if "channel" in record:
        return _agent_facts(record)
    if "pruned" in record:
        return _prune_facts(record)
    if record["outcome"] == "rolled_back":
        return _rollback_facts(record)
    return _policy_facts(record) if "policy" in record else _upgrade_facts(record)


def _policy_facts(record: Record) -> list[tuple[str, str]]:
    policy, files = record["policy"], record["files"]
    does = "allows" if policy["state"] == "enabled" else "blocks"
    copies = [f"{file['backup']} on the {file['backup_on']}" for file in files if file["backup"]]
    return [
        ("Agent", f"{does} {', '.join(policy['rpcs'])}{'' if record['outcome'] == 'changed' else ' already'}"),
        ("Way", record["way"] or ""),
        ("Not open", _closed_text(record)),
        ("Changed", ", ".join(file["path"] for file in files)),
        ("Copies", ", ".join(copies)),
        *_history(record),
        ("Duration", duration_text(record["duration"])),
    ]


def _upgrade_facts(record: Record) -> list[tuple[str, str]]:
    return [
        ("Packages upgraded", packages_text(record["packages"]) if "repairs" not in record else ""),
        ("Repaired", repairs_text(record.get("repairs") or [])),
        ("Restarted", restart_text(record)),
        ("Not open", _closed_text(record)),
        ("Pause", pause_text(record)),
        ("Left behind", ", ".join((record.get("migration") or {}).get("left_behind", []))),
        ("QEMU drift", str(record["drift"])),
        ("Reboot required", "yes" if record["reboot_required"] else ""),
        ("Kept back", kept_back_text(record["kept_back"])),
        ("To compare", ", ".join(record["config_files"])),
        ("Snapshot", record["snapshot"] or ""),
        *_history(record),
        ("Duration", duration_text(record["duration"])),
    ]


def _failure_facts(record: Record) -> list[tuple[str, str]]:
    error = record["error"]
    refused = " (nothing was changed)" if record["outcome"] == "refused" and not record.get("resumed") else ""
    packages = record.get("packages")
    return [
        ("Error", f"{error['msg']}{refused}"),
        ("Remedy", error.get("remedy") or ""),
        ("Not open", _closed_text(record) if "policy" in record else ""),
        ("Agent's channel", _channel_text(record.get("channel"))),
        ("Packages upgraded", packages_text(packages) if packages else ""),
        ("Repaired", repairs_text(record.get("repairs") or [])),
        ("Deleted", _sized(record.get("pruned") or [])),
        ("Forced off", "yes" if record.get("forced_off") else ""),
        ("QEMU drift", record["drift"] if record.get("drift") in ("remains", "resolved") else ""),
        ("Snapshot", record.get("snapshot") or ""),
        ("Rolled back", f"lost is {loss_text(record['lost'])}" if record["outcome"] == "rolled_back" else ""),
        ("Guest's clock", clock_text(record)),
        ("Rollback", _rollback(record) if record.get("snapshot") and record["outcome"] in MAY_BE_DOWN else ""),
        *_history(record),
        ("Duration", duration_text(record["duration"]) if "duration" in record else ""),
    ]


def _agent_facts(record: Record) -> list[tuple[str, str]]:
    return [
        ("Agent's channel", _channel_text(record["channel"])),
        ("Agent installed", record["installed"]),
        ("Not open", _closed_text(record)),
        ("Restarted", restart_text(record)),
        ("Agent", record["agent"] or ""),
        *_history(record),
        ("Duration", duration_text(record["duration"])),
    ]


def _rollback_facts(record: Record) -> list[tuple[str, str]]:
    checked = record["check_mode"]
    return [
        ("To be rolled back to" if checked else "Rolled back to", str(record["snapshot"])),
        ("To be lost" if checked else "Lost", loss_text(record["lost"])),
        ("Guest's clock", clock_text(record)),
        ("QEMU drift", record["drift"] if record["drift"] in ("remains", "resolved") else ""),
        *_history(record),
        ("Duration", duration_text(record["duration"])),
    ]


def _prune_facts(record: Record) -> list[tuple[str, str]]:
    freed, checked = record["freed"], record["check_mode"]
    amount = "" if freed is None or not record["pruned"] else bytes_text(freed)
    return [
        ("To be deleted" if checked else "Deleted", _sized(record["pruned"])),
        ("To be freed, at least" if checked else "Freed", amount),
        ("Kept", ", ".join(f"{snapshot['name']} ({snapshot['reason']})" for snapshot in record["kept"])),
        ("Duration", duration_text(record["duration"])),
    ]


def _sized(snapshots: Iterable[Mapping[str, Any]]) -> str:
    """``pre-upgrade-1 (165 MiB), pre-upgrade-2``: a size where it is known."""
    return ", ".join(
        f"{snapshot['name']} ({bytes_text(snapshot['size'])})" if snapshot["size"] else str(snapshot["name"])
        for snapshot in snapshots
    )


def loss_text(lost: Mapping[str, Any]) -> str:
    """``all that it has written since 2026-11-24T00:30:12Z (2h3m0s), at least 70 MiB``."""
    known = "" if lost["written"] is None else f", at least {bytes_text(lost['written'])}"
    return f"all that it has written since {lost['since']} ({duration_text(lost['seconds'])}){known}"


def clock_text(record: Record) -> str:
    """That a guest goes by a time of long ago since its rollback; empty where its clock was set, or goes right."""
    return "could not be set, and goes on from when the snapshot was made" if record.get("clock_set") is False else ""


def bytes_text(amount: int) -> str:
    """``173015040`` becomes ``165 MiB``, ``2147483648`` becomes ``2.0 GiB``."""
    if amount < 1 << 30:
        return f"{amount >> 10} KiB" if amount < 1 << 20 else f"{amount >> 20} MiB"
    return f"{amount / (1 << 30):.1f} GiB"


def restart_text(record: Record) -> str:
    """Whether the guest was restarted, and how, where that is not by an ordinary power cycle."""
    if not record["restarted"]:
        return "no"
    if record.get("strategy") == "save_restore":
        return "yes, without a reboot: its RAM was saved and resumed"
    if record.get("strategy") == "migrate":
        return f"yes, without a reboot: it was migrated{_way_text(record.get('migration'))}"
    return "yes, forced off" if record["forced_off"] else "yes"


def _way_text(migration: Mapping[str, Any] | None) -> str:
    """Where it is after that. A run that was gone on with has told no more of it than that it was done."""
    if not migration:
        return ""
    return f" to {migration['destination']} and back" if migration["came_back"] else f" to {migration['destination']}"


def pause_text(record: Record) -> str:
    """For how long a guest was away; empty where nobody has measured it.

    What the hypervisor saw lacks the time that a boot takes.
    """
    pause = record.get("pause") or {}
    if pause.get("guest") is not None:
        return f"{_short_text(pause['guest'])} as the guest saw it"
    off_for = pause.get("hypervisor")
    return "" if off_for is None or record.get("strategy") not in GENTLE else _short_text(off_for)


def _short_text(seconds: float) -> str:
    """As duration_text, with tenths of what is less than a second."""
    return f"{seconds:.1f}s" if seconds < 1 else duration_text(seconds)


def _closed_text(record: Record) -> str:
    """The ways, or strategies, that were not open, with the reasons."""
    return "; ".join(f"{what}: {why}" for what, why in (record.get("closed") or {}).items())


def _channel_text(channel: Mapping[str, str] | None) -> str:
    """What became of the channel in both definitions: ``present``, or ``added (running domain: needs restart)``.

    Empty where nobody has looked, as where a guest is off that has to be brought back first.
    """
    if not channel:
        return ""
    persistent, live = (channel[part].replace("_", " ") for part in ("persistent", "live"))
    return persistent if live == persistent else f"{persistent} (running domain: {live})"


def _history(record: Record) -> list[tuple[str, str]]:
    """Which run was gone on with, and whose lease was taken over for that."""
    resumed, dead = record.get("resumed"), record.get("taken_over")
    return [
        ("Resumed", f"run {resumed['run']}, which was cut off {resumed['cut_off']}" if resumed else ""),
        ("Lease", f"taken over from run {dead['run']} of {dead['owner']}, {silence_text(dead)}" if dead else ""),
    ]


def silence_text(lease: Mapping[str, Any]) -> str:
    """How long ago the run of a lease was last heard of."""
    silence = lease["silence"]
    return (
        "silent since the hypervisor was rebooted" if silence is None else f"last heard of {duration_text(silence)} ago"
    )


def packages_text(packages: Sequence[Mapping[str, Any]]) -> str:
    """How many packages were upgraded, and how many were new or removed, if any: ``23 (2 new, 1 removed)``."""
    new = sum(not package["old"] for package in packages)
    removed = sum(not package["new"] for package in packages)
    others = [f"{count} {what}" for count, what in ((new, "new"), (removed, "removed")) if count]
    return f"{len(packages) - new - removed}" + (f" ({', '.join(others)})" if others else "")


def repairs_text(repairs: Iterable[Mapping[str, Any]]) -> str:
    """What was done on the image of a guest: ``fsck (nothing to repair), packages``."""
    return ", ".join(one["name"] if one["changed"] else f"{one['name']} (nothing to repair)" for one in repairs)


def kept_back_text(kept_back: Iterable[Mapping[str, str]]) -> str:
    """Packages by why they were kept back: ``linux-image-amd64 (held), docker-ce (dependencies)``."""
    return ", ".join(f"{kept['name']} ({kept['reason'].replace('_', ' ')})" for kept in kept_back)


def _rollback(record: Record) -> str:
    """The command that brings the guest back to its snapshot, for a shell on the controller."""
    name = record["guest"]
    # Ansible splits what is no JSON at spaces, and this collection at commas.
    guests = f"fleet_guests={name}" if _PLAIN.fullmatch(name) else json.dumps({"fleet_guests": [name]})
    return f"ansible-playbook kvm.fleet.rollback -e {shlex.quote(guests)}"


def duration_text(seconds: float) -> str:
    """``332`` becomes ``5m32s``, ``12`` becomes ``12s``, ``3700`` becomes ``1h1m40s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{rest}s"


def render_plan(
    turns: Sequence[Record], refused: Sequence[Record] = (), failed_looks: Sequence[Record] = ()
) -> list[str]:
    """The batches in which a run would work on guests, and what it would refuse."""
    batches: dict[int, list[Record]] = {}
    for turn in turns:
        batches.setdefault(turn["batch"], []).append(turn)
    totals = f"Guests: {len(turns)}  Batches: {len(batches)}  Refused: {len(refused)}"
    lines = [RULE, f"PLAN: {len(turns)} VM(s) in {len(batches)} batch(es); nothing was changed", RULE]
    for number, batch in batches.items():
        lines += [f"Batch {number}", *(f"  {_turn_text(turn)}" for turn in batch), ""]
    for record in refused:
        lines += [*_guest_lines(record), ""]
    for failed in failed_looks:
        lines += [*_failed_look_lines(failed), ""]
    return [*lines, RULE, totals, RULE]


def _turn_text(turn: Record) -> str:
    """``web1 on hypervisor1, canary, after db1``."""
    notes = ["canary"] if turn["canary"] else []
    notes += [f"after {', '.join(turn['after'])}"] if turn["after"] else []
    return printable(", ".join([f"{turn['name']} on {turn['hypervisor']}", *notes]))


_STATUS_COLUMNS = ("GUEST", "HYPERVISOR", "STATE", "QEMU DRIFT", "AGENT", "GUEST-EXEC", "REBOOT", "SNAPSHOTS")


def render_status(guests: Sequence[Record], failed_looks: Sequence[Record] = ()) -> list[str]:
    """A table of the guests, what drifts in them, and which hypervisors could not be looked at."""
    rows = [_STATUS_COLUMNS, *(_status_row(guest) for guest in guests)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_STATUS_COLUMNS))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    drifted = sum(guest["drift"] == "drifted" for guest in guests)
    unknown = sum(guest["drift"] == "unknown" for guest in guests)
    runs = [
        line
        for guest in guests
        if guest.get("run")
        for line in _run_lines(guest["name"], guest["run"], off=guest["drift"] == "not_running")
    ]
    # Why a guest is unknown whose hypervisor could not be looked at is told once for all of them.
    refused = [
        printable(f"{guest['name']}: {guest['refusal']['msg']}. {guest['refusal']['remedy']}")
        for guest in guests
        if guest.get("refusal") and guest["state"] != "unknown"
    ]
    failures = [line for failed in failed_looks for line in ["", *_failed_look_lines(failed)]]
    totals = f"Guests: {len(guests)}  Drifted: {drifted}  Unknown: {unknown}"
    return [*table, *([""] if runs or refused else []), *runs, *refused, *failures, "", totals]


def _run_lines(guest: str, run: Mapping[str, Any], *, off: bool) -> list[str]:
    """Who works on a guest, what was left unfinished, and why the last run failed."""
    lease, problem = run["lease"], run["problem"]
    lines = [str(problem["msg"])] if problem else []
    if lease:
        state = "has it" if run["live"] else "is taken for dead"
        lines.append(f"run {lease['run']} of {lease['owner']} {state}, {silence_text(lease)}")
    if not run["live"] and ("rollback", "open") in [(step["name"], step["status"]) for step in run["steps"]]:
        lines.append("a rollback has not come to its end: kvm.fleet.rollback goes on with it")
    elif run["unfinished"] and run["shut_down"] and off:
        lines.append("off because a run has shut it down: the next upgrade starts it")
    elif run["unfinished"] and not run["live"]:
        lines.append("left unfinished: the next upgrade goes on with it")
    if run["ended"] and run["ended"]["error"]:
        ended = run["ended"]
        lines.append(f"run {ended['run']} {ended['outcome']} at {ended['at']}: {ended['error']['msg']}")
    return [printable(f"{guest}: {line}") for line in lines]


def _status_row(guest: Record) -> tuple[str, ...]:
    kinds = dict.fromkeys(reason["kind"] for reason in guest["drift_reasons"] if reason["kind"] != guest["drift"])
    drift = guest["drift"].replace("_", " ")
    reasons = f" ({', '.join(kind.replace('_', ' ') for kind in kinds)})" if kinds else ""
    return (
        printable(guest["name"]),
        printable(guest["hypervisor"]),
        guest["state"].replace("_", " "),
        drift + reasons,
        guest["agent_channel"],
        guest["guest_exec"],
        {True: "required", False: "no", None: "unknown"}[guest["reboot_required"]],
        str(len(guest["snapshots"])),
    )
