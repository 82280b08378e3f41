# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The whole job: two drifted guests are found, checked, upgraded, restarted, looked at again and brought back."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.proof import Look, look, make_fresh
from tests.integration.runs import RULE, PlaybookRun, module, playbook

if TYPE_CHECKING:
    from pathlib import Path

    from lab.guests import Guest
    from tests.integration.conftest import Pair

OLD = {"lab-app": "1.0", "lab-config": "1.0", "lab-kernel": "1.0", "lab-library": "1.0", "lab-plugin": None}
NEW = {"lab-app": "2.0", "lab-config": "1.1", "lab-kernel": "1.1", "lab-library": "1.1", "lab-plugin": "1.0"}
STEPS = ["begin", "assess", "snapshot", "upgrade", "restart", "evaluate"]
SNAPSHOT = re.compile(r"pre-upgrade-\d{8}-\d{6}")


@dataclass(frozen=True)
class Ran:
    """A playbook's run, and how each guest was found after it."""

    run: PlaybookRun
    after: dict[str, Look]


def names(pair: Pair) -> list[str]:
    return [guest.name for guest in pair]


def looks(pair: Pair) -> dict[str, Look]:
    return {guest.name: look(guest) for guest in pair}


@pytest.fixture(scope="module")
def before(pair: Pair) -> dict[str, Look]:
    for guest in pair:
        make_fresh(guest, drifted=True)
        guest.offer_newer_agent()
    return looks(pair)


@pytest.fixture(scope="module")
def status_before(pair: Pair, before: dict[str, Look]) -> PlaybookRun:
    assert all(guest.drifted for guest in before.values())
    return playbook("status", guests=names(pair))


@pytest.fixture(scope="module")
def checked(pair: Pair, status_before: PlaybookRun) -> Ran:
    assert status_before.exit_code == 0, status_before.output
    return Ran(playbook("upgrade", "--check", "--diff", guests=names(pair)), looks(pair))


@pytest.fixture(scope="module")
def events_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the upgrade writes its events."""
    return tmp_path_factory.mktemp("log") / "fleet" / "events.jsonl"


@pytest.fixture(scope="module")
def upgraded(pair: Pair, checked: Ran, events_file: Path) -> Ran:
    assert checked.run.exit_code == 0, checked.run.output
    variables = {"upgrade_progress_interval": 2, "fleet_events": str(events_file)}
    return Ran(playbook("upgrade", guests=names(pair), variables=variables), looks(pair))


@pytest.fixture(scope="module")
def informed(pair: Pair, upgraded: Ran) -> dict[str, dict[str, Any]]:
    """What domain_info says of the guests after the upgrade."""
    assert upgraded.run.exit_code == 0, upgraded.run.output
    return {domain["name"]: domain for domain in module("domain_info", names=names(pair))["domains"]}


@pytest.fixture(scope="module")
def status_after(pair: Pair, informed: dict[str, dict[str, Any]]) -> PlaybookRun:
    assert informed
    return playbook("status", guests=names(pair))


@pytest.fixture(scope="module")
def again(pair: Pair, status_after: PlaybookRun) -> Ran:
    """A second run on the same guests."""
    assert status_after.exit_code == 0, status_after.output
    return Ran(playbook("upgrade", guests=names(pair)), looks(pair))


@pytest.fixture(scope="module")
def reverted(pair: Pair, again: Ran, upgraded: Ran) -> Look:
    """The first guest, brought back to the snapshot that the upgrade took of it."""
    assert again.run.exit_code == 0, again.run.output
    guest = pair.plain
    snapshot = upgraded.run.records[guest.name]["snapshot"]
    result = module("domain_snapshot", name=guest.name, snapshot=snapshot, state="reverted")
    assert result["changed"], result
    guest.wait_until_ready()
    return look(guest)


# --- before --------------------------------------------------------------------------------------


def test_status_tells_who_drifts_and_why(pair: Pair, status_before: PlaybookRun) -> None:
    assert status_before.exit_code == 0, status_before.output
    lines = status_before.output.splitlines()
    for guest in pair:
        (row,) = [line for line in lines if line.startswith(f"{guest.name} ")]
        assert row.removeprefix(guest.name).split("  ") != []
        assert re.search(r"localhost +running +drifted \(binary replaced\) +connected +allowed +unknown +0$", row), row
    assert "Guests: 2  Drifted: 2  Unknown: 0" in lines


# --- check mode ----------------------------------------------------------------------------------


def test_check_mode_changes_nothing(pair: Pair, before: dict[str, Look], checked: Ran) -> None:
    assert checked.run.exit_code == 0, checked.run.output
    for guest in pair:
        assert checked.after[guest.name] == before[guest.name]


def test_check_mode_leaves_nothing_in_a_guest(pair: Pair, checked: Ran) -> None:
    assert [checked.after[guest.name].left for guest in pair] == [(), ()]


def test_check_mode_predicts_the_packages_that_the_run_upgrades(pair: Pair, checked: Ran, upgraded: Ran) -> None:
    def changes(run: PlaybookRun, guest: Guest) -> list[tuple[str, ...]]:
        packages = run.records[guest.name]["packages"]
        return sorted((change["name"], change["old"] or "", change["new"], change["security"]) for change in packages)

    for guest in pair:
        assert changes(checked.run, guest) == changes(upgraded.run, guest)
        assert len(changes(checked.run, guest)) == 6


def test_check_mode_predicts_the_outcome(pair: Pair, checked: Ran, upgraded: Ran) -> None:
    for guest in pair:
        predicted, real = checked.run.records[guest.name], upgraded.run.records[guest.name]
        for key in ("outcome", "restarted", "restart_reasons", "drift", "kept_back"):
            assert predicted[key] == real[key], key
        assert predicted["check_mode"] is True
        assert predicted["snapshot"] is None


def test_check_mode_says_so_in_the_summary(checked: Ran) -> None:
    assert checked.run.summary[1] == "UPGRADE SUMMARY: 2 VM(s) processed (check mode: nothing was changed)"
    assert checked.run.summary[-2] == "Success: 2  Failed: 0  Drift Resolved: 2"


def test_diff_shows_the_packages(checked: Ran) -> None:
    assert "-lab-app 1.0\n" in checked.run.output
    assert "+lab-app 2.0\n" in checked.run.output
    assert "+running on a new QEMU process\n" in checked.run.output


# --- the upgrade ---------------------------------------------------------------------------------


def test_upgrade_succeeds(pair: Pair, upgraded: Ran) -> None:
    assert upgraded.run.exit_code == 0, upgraded.run.output
    assert [upgraded.run.records[guest.name]["outcome"] for guest in pair] == ["upgraded", "upgraded"]


def test_upgrade_puts_guests_on_a_new_qemu(pair: Pair, before: dict[str, Look], upgraded: Ran) -> None:
    for guest in pair:
        old, new = before[guest.name], upgraded.after[guest.name]
        assert new.process.pid != old.process.pid
        assert new.process.started > old.process.started


def test_upgrade_boots_guests_anew(pair: Pair, before: dict[str, Look], upgraded: Ran) -> None:
    for guest in pair:
        assert upgraded.after[guest.name].boot_id != before[guest.name].boot_id


def test_drift_is_gone_after_the_upgrade(pair: Pair, upgraded: Ran, informed: dict[str, dict[str, Any]]) -> None:
    for guest in pair:
        assert upgraded.after[guest.name].drifted is False
        assert informed[guest.name]["drift"] == {"state": "none", "reasons": []}
        assert informed[guest.name]["qemu"]["pid"] == upgraded.after[guest.name].process.pid


def test_packages_are_upgraded_inside(pair: Pair, before: dict[str, Look], upgraded: Ran) -> None:
    for guest in pair:
        old, new = before[guest.name].packages, upgraded.after[guest.name].packages
        assert {name: old.get(name) for name in OLD} == OLD
        assert {name: new.get(name) for name in NEW} == NEW
        assert new["qemu-guest-agent"] == f"{old['qemu-guest-agent']}+lab1"


def test_no_other_package_is_touched(pair: Pair, before: dict[str, Look], upgraded: Ran) -> None:
    expected = {*NEW, "qemu-guest-agent"}
    for guest in pair:
        old, new = before[guest.name].packages, upgraded.after[guest.name].packages
        assert {name for name in {**old, **new} if old.get(name) != new.get(name)} == expected


def test_upgraded_packages_are_really_unpacked(pair: Pair, again: Ran) -> None:
    assert again.run.exit_code == 0, again.run.output
    assert pair.nasty.read_file("/usr/share/lab-app/version") == b"2.0\n"


def test_an_edited_configuration_file_is_kept(pair: Pair, again: Ran) -> None:
    assert again.run.exit_code == 0, again.run.output
    assert b"edited-by-the-administrator" in pair.nasty.read_file("/etc/lab-config.conf")
    assert b"lab-config 1.1" in pair.nasty.read_file("/etc/lab-config.conf.dpkg-dist")


def test_upgrade_leaves_nothing_in_a_guest(pair: Pair, upgraded: Ran) -> None:
    assert [upgraded.after[guest.name].left for guest in pair] == [(), ()]


def test_upgrade_takes_a_stamped_snapshot(pair: Pair, upgraded: Ran, informed: dict[str, dict[str, Any]]) -> None:
    for guest in pair:
        (name,) = upgraded.after[guest.name].snapshots
        assert SNAPSHOT.fullmatch(name)
        assert name == upgraded.run.records[guest.name]["snapshot"]
        (snapshot,) = informed[guest.name]["snapshots"]
        assert snapshot["name"] == name
        assert snapshot["description"] == "[kvm.fleet] Automatic snapshot before package upgrade"
        assert snapshot["state"] == "running"


def test_guests_are_upgraded_one_at_a_time(pair: Pair, upgraded: Ran) -> None:
    task = "TASK [kvm.fleet.upgrade : Upgrade the packages]"
    assert upgraded.run.output.count(task) == len(pair)


def test_the_play_tells_how_far_each_guest_is(pair: Pair, upgraded: Ran) -> None:
    for guest in pair:
        line = rf"^{re.escape(guest.name)}: (\w+).*, after (?:\d+m)?\d+s$"
        steps = list(dict.fromkeys(re.findall(line, upgraded.run.output, re.MULTILINE)))
        assert steps == [*STEPS, "upgraded"], upgraded.run.output
        percent = rf"^{re.escape(guest.name)}: upgrade, \d+ %, \S.*, after (?:\d+m)?\d+s$"
        assert re.search(percent, upgraded.run.output, re.MULTILINE), upgraded.run.output


def test_the_upgrade_writes_each_guests_steps_and_outcome(pair: Pair, upgraded: Ran, events_file: Path) -> None:
    events = [json.loads(line) for line in events_file.read_text("utf-8").splitlines()]
    assert {event["run"] for event in events} == {upgraded.run.records[guest.name]["run"] for guest in pair}
    for guest in pair:
        of_guest = [event for event in events if event["guest"] == guest.name]
        assert {event["hypervisor"] for event in of_guest} == {"localhost"}
        assert [event["step"] for event in of_guest if event["event"] == "step_ended"] == STEPS
        assert [(event["event"], event["result"]) for event in of_guest[-1:]] == [("guest_ended", "upgraded")]


def test_summary_of_the_upgrade(pair: Pair, upgraded: Ran) -> None:
    expected = [re.escape(RULE), r"UPGRADE SUMMARY: 2 VM\(s\) processed", re.escape(RULE)]
    for guest in pair:
        expected += [
            re.escape(f"✓ {guest.name}"),
            r"  Packages upgraded: 5 \(1 new\)",
            "  Restarted: yes",
            r"  Pause: (\d+m)?\d+s as the guest saw it",
            "  QEMU drift: resolved",
            "  To compare: /etc/lab-config.conf.dpkg-dist",
            f"  Snapshot: {SNAPSHOT.pattern}",
            r"  Duration: (\d+m)?\d+s",
            "",
        ]
    expected += [re.escape(RULE), "Success: 2  Failed: 0  Drift Resolved: 2", re.escape(RULE)]
    assert len(upgraded.run.summary) == len(expected), upgraded.run.summary
    for line, pattern in zip(upgraded.run.summary, expected, strict=True):
        assert re.fullmatch(pattern, line), (line, pattern)


# --- afterwards ----------------------------------------------------------------------------------


def test_status_after_the_upgrade_shows_no_drift(pair: Pair, status_after: PlaybookRun) -> None:
    for guest in pair:
        (row,) = [line for line in status_after.output.splitlines() if line.startswith(f"{guest.name} ")]
        assert re.search(r"localhost +running +none +connected +allowed +unknown +1$", row), row
    assert "Guests: 2  Drifted: 0  Unknown: 0" in status_after.output


def test_a_second_run_changes_nothing(pair: Pair, upgraded: Ran, again: Ran) -> None:
    assert again.run.exit_code == 0, again.run.output
    assert {host: counts["changed"] for host, counts in again.run.recap.items()} == {
        "localhost": 0,
        **{guest.name: 0 for guest in pair},
    }
    for guest in pair:
        assert again.after[guest.name].boot_id == upgraded.after[guest.name].boot_id
        assert again.after[guest.name].process == upgraded.after[guest.name].process
        assert again.after[guest.name].snapshots == upgraded.after[guest.name].snapshots


def test_a_second_run_calls_the_guests_unchanged(pair: Pair, again: Ran) -> None:
    assert [again.run.records[guest.name]["outcome"] for guest in pair] == ["unchanged", "unchanged"]
    assert again.run.summary[-2] == "Success: 2  Failed: 0  Drift Resolved: 0"


def test_the_snapshot_brings_the_old_packages_back(pair: Pair, before: dict[str, Look], reverted: Look) -> None:
    assert reverted.packages == before[pair.plain.name].packages
    assert reverted.boot_id == before[pair.plain.name].boot_id


def test_a_reverted_guest_runs_on_the_installed_qemu(upgraded: Ran, reverted: Look, pair: Pair) -> None:
    assert reverted.drifted is False
    assert reverted.process != upgraded.after[pair.plain.name].process
