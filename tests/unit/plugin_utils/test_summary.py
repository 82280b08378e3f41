# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a person reads at the end of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.kvm.fleet.plugins.plugin_utils._summary import (
    RULE,
    bytes_text,
    complete,
    duration_text,
    packages_text,
    printable,
    render_plan,
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
        "config_files": [],
        "restarted": True,
        "forced_off": False,
        "reboot_required": False,
        "drift": "resolved",
        "snapshot": SNAPSHOT,
        "duration": 332.4,
        "error": None,
        **facts,
    }


def kept(name: str, reason: str) -> dict[str, str]:
    return {"name": name, "reason": reason}


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
    ("guest", "variables"),
    [
        ("web-1.example", "fleet_guests=web-1.example"),
        ("a b,c", """'{"fleet_guests": ["a b,c"]}'"""),
        ("it's", """'{"fleet_guests": ["it'"'"'s"]}'"""),
    ],
)
def test_rollback(guest: str, variables: str) -> None:
    told = failure(domain="other") | {"guest": guest}
    assert f"  Rollback: ansible-playbook kvm.fleet.rollback -e {variables}" in render_summary("upgrade", [told])


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


def test_several_guests_in_the_form_that_people_know() -> None:
    records = [
        record("centos-stream9"),
        record("vm-1604", packages=[package()] * 15, duration=258),
        record("vm-1613", "refused", packages=[], snapshot=None, drift="unknown", duration=12)
        | {"error": {"msg": "guest agent not responsive", "remedy": "Start it."}},
        record("vm-1236", "unchanged", packages=[], restarted=False, drift="none", snapshot=None, duration=3),
    ]
    assert (
        "\n".join(render_summary("upgrade", records))
        == f"""\
{RULE}
UPGRADE SUMMARY: 4 VM(s) processed
{RULE}
✓ centos-stream9
  Packages upgraded: 23
  Restarted: yes
  QEMU drift: resolved
  Snapshot: {SNAPSHOT}
  Duration: 5m32s

✓ vm-1604
  Packages upgraded: 15
  Restarted: yes
  QEMU drift: resolved
  Snapshot: {SNAPSHOT}
  Duration: 4m18s

✗ vm-1613
  Error: guest agent not responsive (nothing was changed)
  Remedy: Start it.
  Duration: 12s

✓ vm-1236
  Packages upgraded: 0
  Restarted: no
  QEMU drift: none
  Duration: 3s

{RULE}
Success: 3  Failed: 1  Drift Resolved: 2
{RULE}"""
    )


def test_the_last_lines_are_the_totals_even_of_nothing() -> None:
    assert render_summary("restart", []) == [
        RULE,
        "RESTART SUMMARY: 0 VM(s) processed",
        RULE,
        "Success: 0  Failed: 0  Drift Resolved: 0",
        RULE,
    ]


def test_guests_that_were_never_reached_or_lost_are_in_the_summary() -> None:
    lines = render_summary("upgrade", complete(["a", "b", "c"], {"a": record("a")}, ["b"]))
    assert lines[10:17] == [
        "✗ b",
        "  Error: the run lost this guest: its hypervisor could not be reached, or Ansible itself failed",
        "  Remedy: See the messages above, look at the guest's state, and run again.",
        "",
        "- c",
        "  Not attempted: the run ended before its turn",
        "",
    ]
    assert lines[-2] == "Success: 1  Failed: 1  Drift Resolved: 1"


def test_what_is_out_of_the_ordinary_is_shown() -> None:
    kept_back = [kept("linux-image-amd64", "held"), kept("docker", "security_unknown")]
    lines = render_summary(
        "upgrade",
        [
            record(
                forced_off=True, reboot_required=True, kept_back=kept_back, config_files=["/etc/a.dpkg-dist", "/etc/b"]
            )
        ],
    )
    assert {
        "  Restarted: yes, forced off",
        "  Reboot required: yes",
        "  Kept back: linux-image-amd64 (held), docker (security unknown)",
        "  To compare: /etc/a.dpkg-dist, /etc/b",
    } <= {*lines}


def test_a_guest_that_did_not_reboot_tells_how_long_it_stood_still() -> None:
    told: dict[str, Any] = {"strategy": "save_restore", "pause": {"hypervisor": 6.2}, "closed": {}}
    lines = render_summary("restart", [record(**told)])
    assert {"  Restarted: yes, without a reboot: its RAM was saved and resumed", "  Pause: 6s"} <= {*lines}
    lines = render_summary(
        "restart", [record(**told | {"strategy": "power_cycle", "closed": {"save_restore": "no room"}})]
    )
    assert {"  Restarted: yes", "  Not open: save_restore: no room"} <= {*lines}
    assert not any("Pause" in line for line in lines)
    lines = render_summary("restart", [record(pause={"hypervisor": 1.0, "guest": 41.3})])
    assert "  Pause: 41s as the guest saw it" in lines


@pytest.mark.parametrize(
    ("migration", "words"),
    [
        ({"destination": "h2", "came_back": True, "left_behind": []}, " to h2 and back"),
        ({"destination": "h2", "came_back": False, "left_behind": ["/a", "/b"]}, " to h2"),
        (None, ""),
    ],
)
def test_a_guest_that_was_migrated_tells_where_it_is(migration: dict[str, Any] | None, words: str) -> None:
    told = record(strategy="migrate", migration=migration, pause={"hypervisor": 0.2, "guest": 0.42})
    lines = render_summary("restart", [told])
    assert f"  Restarted: yes, without a reboot: it was migrated{words}" in lines
    assert "  Pause: 0.4s as the guest saw it" in lines
    left = [line for line in lines if "Left behind" in line]
    assert left == (["  Left behind: /a, /b"] if migration and migration["left_behind"] else [])


def test_a_guest_that_failed_half_way_tells_how_far_it_came() -> None:
    lines = render_summary("upgrade", [failure(forced_off=True, drift="remains") | {"packages": [package()] * 3}])
    assert lines[3:12] == [
        "✗ web1",
        "  Error: agent is silent",
        "  Remedy: Start it.",
        "  Packages upgraded: 3",
        "  Forced off: yes",
        "  QEMU drift: remains",
        f"  Snapshot: {SNAPSHOT}",
        "  Rollback: ansible-playbook kvm.fleet.rollback -e fleet_guests=web1",
        "  Duration: 5m32s",
    ]


def test_a_prediction_says_that_it_is_one() -> None:
    title = render_summary("upgrade", [record(check_mode=True), record("b", check_mode=True)])[1]
    assert title == "UPGRADE SUMMARY: 2 VM(s) processed (check mode: nothing was changed)"


NASTY = "a\x1b[2J\rb\nSuccess: 9\u202ec\x07\u2028d"


def test_a_guest_cannot_move_the_cursor_or_add_lines() -> None:
    told = failure(domain=NASTY, snapshot=NASTY) | {"guest": NASTY, "error": {"msg": NASTY, "remedy": NASTY}}
    other = record("b", kept_back=[kept(NASTY, "held")], config_files=[NASTY])
    lines = render_summary("upgrade", [told, other], [{"hypervisor": NASTY, "msg": NASTY, "remedy": ""}])
    assert all(character.isprintable() for line in lines for character in line)
    assert not [line for line in lines[:-2] if line.startswith("Success")]


@pytest.mark.parametrize("text", ["web1", "größe 日本 🐧", "<&>'\""])
def test_letters_of_every_script_are_printed(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (12, "12s"),
        (59.6, "1m0s"),
        (60, "1m0s"),
        (332, "5m32s"),
        (3600, "1h0m0s"),
        (3700, "1h1m40s"),
        (90061, "25h1m1s"),
    ],
)
def test_a_duration_is_told_as_people_do(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


# --- the table of a status -----------------------------------------------------------------------


def guest(name: str, drift: str, *kinds: str, **facts: Any) -> dict[str, Any]:
    return {
        "name": name,
        "hypervisor": "hv1",
        "state": "running",
        "drift": drift,
        "drift_reasons": [{"kind": kind, "path": "/x", "detail": "y"} for kind in kinds],
        "agent_channel": "connected",
        "guest_exec": "allowed",
        "reboot_required": None,
        "snapshots": [],
        **facts,
    }


def test_a_status_is_a_table_with_the_totals_below() -> None:
    guests = [
        guest("web1", "drifted", "binary_replaced", "library_replaced", "library_replaced", snapshots=["a", "b"]),
        guest("db", "none", reboot_required=True),
        guest("a long name", "not_running", state="shut_off", agent_channel="unknown", guest_exec="unknown"),
        guest("lost", "unknown", "unknown", guest_exec="blocked", reboot_required=False),
    ]
    drift = "drifted (binary replaced, library replaced)"
    assert render_status(guests) == [
        f"GUEST        HYPERVISOR  STATE     {'QEMU DRIFT':{len(drift)}}  AGENT      GUEST-EXEC  REBOOT    SNAPSHOTS",
        f"web1         hv1         running   {drift}  connected  allowed     unknown   2",
        f"db           hv1         running   {'none':{len(drift)}}  connected  allowed     required  0",
        f"a long name  hv1         shut off  {'not running':{len(drift)}}  unknown    unknown     unknown   0",
        f"lost         hv1         running   {'unknown':{len(drift)}}  connected  blocked     no        0",
        "",
        "Guests: 4  Drifted: 1  Unknown: 1",
    ]


def test_a_guests_name_cannot_break_the_table() -> None:
    assert all(character.isprintable() for line in render_status([guest(NASTY, "none")]) for character in line)


# --- runs that went on from others ---------------------------------------------------------------

DEAD = {"run": "run-a", "owner": "root@a", "taken": "2026-03-01T02:00:00Z", "silence": 3700.0}
RESUMED = {"run": "run-a", "cut_off": "during the restart"}


@pytest.mark.parametrize("made", [record, failure])
def test_a_guest_that_was_gone_on_with_says_so(made: Callable[..., dict[str, Any]]) -> None:
    lines = render_summary("upgrade", [made(resumed=RESUMED, taken_over=DEAD)])
    assert "  Resumed: run run-a, which was cut off during the restart" in lines
    assert "  Lease: taken over from run run-a of root@a, last heard of 1h1m40s ago" in lines
    rebooted = render_summary("upgrade", [made(resumed=None, taken_over={**DEAD, "silence": None})])
    assert "  Lease: taken over from run run-a of root@a, silent since the hypervisor was rebooted" in rebooted
    assert not [line for line in rebooted if "Resumed" in line]


def test_a_refusal_does_not_say_that_nothing_was_changed_where_an_earlier_run_has() -> None:
    refused = record(outcome="refused", error={"msg": "agent is silent", "remedy": ""}, resumed=RESUMED)
    assert "  Error: agent is silent" in render_summary("upgrade", [refused])


ENDED = {"run": "run-a", "at": "2026-03-01T02:00:00Z", "outcome": "failed"}


def work(**facts: Any) -> dict[str, Any]:
    nothing = {"shut_down": False, "steps": [], "ended": None, "problem": None}
    return {"lease": DEAD, "live": True, "unfinished": True, **nothing, **facts}


@pytest.mark.parametrize(
    ("run", "lines"),
    [
        (work(), ["a: run run-a of root@a has it, last heard of 1h1m40s ago"]),
        (
            work(live=False),
            [
                "a: run run-a of root@a is taken for dead, last heard of 1h1m40s ago",
                "a: left unfinished: the next upgrade goes on with it",
            ],
        ),
        (work(lease=None, live=False), ["a: left unfinished: the next upgrade goes on with it"]),
        (
            work(lease=None, live=False, steps=[{"name": "rollback", "status": "open"}]),
            ["a: a rollback has not come to its end: kvm.fleet.rollback goes on with it"],
        ),
        (
            work(lease=None, live=False, unfinished=False, problem={"msg": "the record is damaged"}),
            ["a: the record is damaged"],
        ),
        (
            work(lease=None, live=False, unfinished=False, ended={**ENDED, "error": {"msg": "the disk is full"}}),
            ["a: run run-a failed at 2026-03-01T02:00:00Z: the disk is full"],
        ),
        (work(lease=None, live=False, unfinished=False, ended={**ENDED, "outcome": "upgraded", "error": None}), []),
    ],
)
def test_a_status_tells_who_works_on_a_guest(run: dict[str, Any], lines: list[str]) -> None:
    told = render_status([{**guest("a", "none"), "run": run}, guest("b", "none")])
    assert told[3:] == [*([""] if lines else []), *lines, "", "Guests: 2  Drifted: 0  Unknown: 0"]


def test_a_status_tells_of_a_guest_that_is_off_by_a_run() -> None:
    off = {**guest("a", "not_running"), "run": work(live=False, shut_down=True, lease=None)}
    assert "a: off because a run has shut it down: the next upgrade starts it" in render_status([off])
    off["run"]["steps"] = [{"name": "restart", "status": "failed"}, {"name": "rollback", "status": "open"}]
    told = render_status([off])
    assert "a: a rollback has not come to its end: kvm.fleet.rollback goes on with it" in told
    assert not any("next upgrade" in line for line in told)


# --- agents --------------------------------------------------------------------------------------


def reached(name: str, outcome: str = "changed", **facts: Any) -> dict[str, Any]:
    return {
        "guest": name,
        "domain": name,
        "uri": "qemu:///system",
        "outcome": outcome,
        "check_mode": False,
        "channel": {"persistent": "added", "live": "added"},
        "installed": "",
        "closed": {},
        "restarted": False,
        "forced_off": False,
        "agent": "answering",
        "resumed": None,
        "taken_over": None,
        "duration": 12.3,
        "error": None,
        **facts,
    }


def test_guests_that_got_an_agent_are_told_with_how() -> None:
    records = [
        reached("web1"),
        reached("web2", "restarted", channel={"persistent": "added", "live": "needs_restart"}, restarted=True),
        reached("web5", installed="offline", closed={"ssh": "Ansible is not root there"}, resumed=RESUMED),
        reached("web3", "failed", installed="ssh", error={"msg": "it is silent", "remedy": "Look at it."}),
        {"guest": "web4", "outcome": "refused", "error": {"msg": "it is off", "remedy": "Start it."}, "channel": {}},
    ]
    assert render_summary("agent", records) == [
        RULE,
        "AGENT SUMMARY: 5 VM(s) processed",
        RULE,
        "✓ web1",
        "  Agent's channel: added",
        "  Restarted: no",
        "  Agent: answering",
        "  Duration: 12s",
        "",
        "✓ web2",
        "  Agent's channel: added (running domain: needs restart)",
        "  Restarted: yes",
        "  Agent: answering",
        "  Duration: 12s",
        "",
        "✓ web5",
        "  Agent's channel: added",
        "  Agent installed: offline",
        "  Not open: ssh: Ansible is not root there",
        "  Restarted: no",
        "  Agent: answering",
        f"  Resumed: run {RESUMED['run']}, which was cut off {RESUMED['cut_off']}",
        "  Duration: 12s",
        "",
        "✗ web3",
        "  Error: it is silent",
        "  Remedy: Look at it.",
        "  Agent's channel: added",
        "  Duration: 12s",
        "",
        "✗ web4",
        "  Error: it is off (nothing was changed)",
        "  Remedy: Start it.",
        "",
        RULE,
        "Success: 3  Failed: 2",
        RULE,
    ]


def test_of_a_guest_that_is_to_be_brought_back_first_check_mode_tells_that() -> None:
    brought_back = reached("web1", "restarted", check_mode=True, channel={}, restarted=True, agent=None)
    lines = render_summary("agent", [brought_back])
    assert lines[3:6] == ["✓ web1", "  Restarted: yes", "  Duration: 12s"]


# --- plans ---------------------------------------------------------------------------------------


def turn(name: str, batch: int, *after: str, canary: bool = False) -> dict[str, Any]:
    return {"name": name, "hypervisor": "hv1", "batch": batch, "canary": canary, "after": list(after)}


def test_a_plan_is_told_batch_by_batch_with_what_is_refused() -> None:
    refusal = record("web9", "refused", error={"msg": "it runs elsewhere", "remedy": "Undefine it."})
    turns = [turn("db", 1), turn("web1", 2, "db", canary=True), turn("web2", 3, "cache", "db"), turn("a\x1b[2J", 3)]
    assert render_plan(turns, [{"guest": "web9", "outcome": "refused", "error": refusal["error"]}]) == [
        RULE,
        "PLAN: 4 VM(s) in 3 batch(es); nothing was changed",
        RULE,
        "Batch 1",
        "  db on hv1",
        "",
        "Batch 2",
        "  web1 on hv1, canary, after db",
        "",
        "Batch 3",
        "  web2 on hv1, after cache, db",
        "  a [2J on hv1",
        "",
        "✗ web9",
        "  Error: it runs elsewhere (nothing was changed)",
        "  Remedy: Undefine it.",
        "",
        RULE,
        "Guests: 4  Batches: 3  Refused: 1",
        RULE,
    ]


def test_a_status_tells_of_a_guest_whose_metadata_cannot_be_read() -> None:
    refusal = {"msg": "it says <depend-on>", "remedy": "Mend it."}
    lines = render_status(
        [guest("web1", "none", refusal=refusal), guest("web2", "unknown", refusal=refusal, state="unknown")]
    )
    assert "web1: it says <depend-on>. Mend it." in lines
    assert not [line for line in lines if line.startswith("web2: ")]


# --- snapshots that have had their time -----------------------------------------------------------


def pruned(**facts: Any) -> dict[str, Any]:
    told = {"pruned": [], "kept": [], "freed": 0, "check_mode": False, "duration": 2.0}
    return {"guest": "web1", "outcome": "changed", **told, **facts}


GONE = [{"name": "b", "size": 173015040, "reason": "over the budget"}, {"name": "a", "size": 0, "reason": "x"}]
STAYS = [{"name": "c", "size": None, "reason": "younger than 7 days"}]


def test_what_was_pruned_is_told_with_what_stays_and_why() -> None:
    assert render_summary("prune", [pruned(pruned=GONE, kept=STAYS, freed=2 << 30)])[1:] == [
        "PRUNE SUMMARY: 1 VM(s) processed",
        RULE,
        "✓ web1",
        "  Deleted: b (165 MiB), a",
        "  Freed: 2.0 GiB",
        "  Kept: c (younger than 7 days)",
        "  Duration: 2s",
        "",
        RULE,
        "Success: 1  Failed: 0",
        RULE,
    ]


def test_check_mode_tells_what_would_go_and_how_much_at_least() -> None:
    lines = render_summary("prune", [pruned(pruned=GONE, freed=173015040, check_mode=True)])
    assert lines[4:6] == ["  To be deleted: b (165 MiB), a", "  To be freed, at least: 165 MiB"]


def test_nothing_that_nobody_knows_is_told_of_what_was_freed() -> None:
    for facts in ({"pruned": GONE, "freed": None}, {"freed": 0}):
        assert not any("reed" in line for line in render_summary("prune", [pruned(**facts)]))


def test_a_prune_that_failed_tells_what_it_had_deleted() -> None:
    failed = pruned(
        outcome="failed", pruned=[{"name": "a", "size": None}], error={"msg": "it broke", "remedy": "Mend."}
    )
    assert "  Deleted: a" in render_summary("prune", [failed])


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "0 KiB"), (2048, "2 KiB"), (1 << 20, "1 MiB"), (3 << 29, "1.5 GiB"), (1 << 40, "1024.0 GiB")],
)
def test_an_amount_is_told_as_people_do(amount: int, text: str) -> None:
    assert bytes_text(amount) == text


# --- rollbacks -----------------------------------------------------------------------------------

LOST = {"since": "2026-03-01T02:00:00Z", "seconds": 60, "written": None}


def test_a_guest_that_failed_and_was_rolled_back_says_so_instead_of_how_to_do_it() -> None:
    failed = failure(lost=LOST) | {"outcome": "rolled_back"}
    lines = render_summary("upgrade", [failed])
    assert "✗ web1" in lines
    assert "  Rolled back: lost is all that it has written since 2026-03-01T02:00:00Z (1m0s)" in lines
    assert not any(line.startswith(("  Rollback:", "  Guest's clock:")) for line in lines)
    assert lines[-2].startswith("Success: 0  Failed: 1")
    behind = render_summary("upgrade", [failed | {"clock_set": False}])
    assert any(line.startswith("  Guest's clock: could not be set") for line in behind)
