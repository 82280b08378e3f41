# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a run does when guests are broken: it stops where it was told to, and tells the truth about every guest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.integration.proof import Look, break_package, look, make_fresh, stop_agent
from tests.integration.runs import PlaybookRun, playbook

if TYPE_CHECKING:
    from lab.guests import Guest
    from tests.integration.conftest import Pair


@dataclass(frozen=True)
class Ran:
    """A run with a broken guest and a sound one, and how each was before and after."""

    run: PlaybookRun
    broken: Guest
    broken_before: Look
    sound: Guest
    sound_before: Look
    sound_after: Look


# --- one batch after the other -------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_by_one(pair: Pair) -> Ran:
    """The first guest's agent is silent; each guest is a batch of its own."""
    for guest in pair:
        make_fresh(guest, drifted=True)
    broken, sound = pair
    broken_before, sound_before = look(broken), look(sound)
    stop_agent(broken)
    run = playbook("upgrade", guests=[broken.name, sound.name])
    return Ran(run, broken, broken_before, sound, sound_before, look(sound))


def test_a_broken_guest_fails_the_run(one_by_one: Ran) -> None:
    assert one_by_one.run.exit_code != 0
    assert one_by_one.run.summary[-2] == "Success: 0  Failed: 1  Drift Resolved: 0"
    assert one_by_one.run.summary[1] == "UPGRADE SUMMARY: 1 VM(s) processed, 1 not attempted"


def test_a_broken_guest_is_refused_with_its_error_and_remedy(one_by_one: Ran) -> None:
    record = one_by_one.run.records[one_by_one.broken.name]
    assert (record["outcome"], record["error"]["error_code"]) == ("refused", "agent_silent")
    title, error, remedy, *_rest = one_by_one.run.paragraph(one_by_one.broken.name)
    assert title == f"✗ {one_by_one.broken.name}"
    assert error.startswith("  Error: ")
    assert error.endswith(" (nothing was changed)")
    assert remedy.startswith("  Remedy: ")
    assert "qemu-guest-agent" in remedy


def test_a_broken_guest_is_left_as_it_was(one_by_one: Ran) -> None:
    assert one_by_one.broken.process() == one_by_one.broken_before.process
    assert one_by_one.broken.drifted() is True


def test_the_next_batch_is_not_attempted(one_by_one: Ran) -> None:
    assert one_by_one.sound.name not in one_by_one.run.records
    assert one_by_one.run.paragraph(one_by_one.sound.name) == [
        f"- {one_by_one.sound.name}",
        "  Not attempted: the run ended before its turn",
    ]


def test_the_next_batch_is_untouched(one_by_one: Ran) -> None:
    assert one_by_one.sound_after == one_by_one.sound_before


# --- in the same batch ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def together(pair: Pair) -> Ran:
    """A package of the first guest cannot be upgraded; both guests are one batch."""
    for guest in pair:
        make_fresh(guest, drifted=True)
    broken, sound = pair
    break_package(broken, "lab-config")
    broken_before, sound_before = look(broken), look(sound)
    run = playbook("upgrade", guests=[broken.name, sound.name], variables={"fleet_batch": 2})
    return Ran(run, broken, broken_before, sound, sound_before, look(sound))


def test_a_failed_upgrade_fails_the_run(together: Ran) -> None:
    assert together.run.exit_code != 0
    assert together.run.summary[-2] == "Success: 1  Failed: 1  Drift Resolved: 1"


def test_a_failed_upgrade_names_the_package_and_the_way_back(together: Ran) -> None:
    record = together.run.records[together.broken.name]
    assert (record["outcome"], record["error"]["error_code"]) == ("failed", "maintainer_script_failed")
    assert record["error"]["task"] == "Upgrade the packages"
    paragraph = "\n".join(together.run.paragraph(together.broken.name))
    assert paragraph.startswith(f"✗ {together.broken.name}\n  Error: ")
    assert "lab-config" in paragraph
    assert f"  Rollback: ansible-playbook kvm.fleet.rollback -e fleet_guests={together.broken.name}" in paragraph


def test_a_failed_upgrade_keeps_its_snapshot_and_is_not_restarted(together: Ran) -> None:
    after = look(together.broken)
    assert after.snapshots == (together.run.records[together.broken.name]["snapshot"],)
    assert after.process == together.broken_before.process
    assert after.boot_id == together.broken_before.boot_id


def test_a_failed_upgrade_tells_what_it_has_changed(together: Ran) -> None:
    # Versions whatever their state: dpkg has unpacked some of these packages and configured none.
    query = ("/usr/bin/dpkg-query", "--show", "--showformat=${Package} ${Version}\n")
    new = dict(line.split(" ", 1) for line in together.broken.output(*query).splitlines())
    old = together.broken_before.packages
    changed = {(name, new[name]) for name in new if new[name] and new[name] != old.get(name)}
    assert changed
    record = together.run.records[together.broken.name]
    assert {(change["name"], change["new"]) for change in record["packages"]} == changed


def test_the_other_guest_of_the_batch_is_completed(together: Ran) -> None:
    record = together.run.records[together.sound.name]
    assert (record["outcome"], record["drift"], record["error"]) == ("upgraded", "resolved", None)
    assert together.sound_after.packages["lab-app"] == "2.0"
    assert together.sound_after.boot_id != together.sound_before.boot_id
    assert together.sound_after.drifted is False


# --- in the middle of a restart ------------------------------------------------------------------


def test_a_guest_that_does_not_shut_down_is_left_running(pair: Pair) -> None:
    guest = pair.nasty
    make_fresh(guest, drifted=True)
    guest.output("/bin/mkdir", "-p", "/etc/systemd/logind.conf.d")
    guest.write_file("/etc/systemd/logind.conf.d/deaf.conf", b"[Login]\nHandlePowerKey=ignore\n")
    guest.output("/usr/bin/systemctl", "restart", "systemd-logind.service")
    before = guest.process()
    run = playbook("restart", guests=[guest.name], variables={"upgrade_shutdown_timeout": 6})
    assert run.exit_code != 0
    record = run.records[guest.name]
    assert (record["outcome"], record["error"]["error_code"]) == ("failed", "shutdown_timeout")
    assert (record["drift"], record["restarted"], record["forced_off"]) == ("remains", False, False)
    assert guest.process() == before
    assert run.summary[-2] == "Success: 0  Failed: 1  Drift Resolved: 0"
