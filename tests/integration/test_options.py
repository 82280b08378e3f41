# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the role's options do, each seen on a guest. One run serves two guests with settings of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.proof import Look, look, make_fresh
from tests.integration.runs import PlaybookRun, listing, playbook

if TYPE_CHECKING:
    from tests.integration.conftest import Pair

CAUTIOUS, THOROUGH = "cautious", "thorough"
"""The guests' names in the inventory, which are not those of their domains."""

SETTINGS: dict[str, dict[str, object]] = {
    # As -e upgrade_snapshot=false and surveys of AWX say it: as text.
    CAUTIOUS: {"upgrade_security_only": "true", "upgrade_restart": "never", "upgrade_snapshot": "false"},
    THOROUGH: {
        "upgrade_delete_snapshot": "true",
        "upgrade_autoremove": True,
        "upgrade_clean": True,
        "upgrade_shutdown_method": "agent",
    },
}


@dataclass(frozen=True)
class Ran:
    """A run, and each guest before and after it."""

    run: PlaybookRun
    before: dict[str, Look]
    after: dict[str, Look]

    def change(self, guest: str) -> dict[str, tuple[str | None, str | None]]:
        """The packages that changed, with their versions before and after."""
        old, new = self.before[guest].packages, self.after[guest].packages
        return {name: (old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)}

    def record(self, guest: str) -> dict[str, Any]:
        return self.run.records[guest]


@pytest.fixture(scope="module")
def ran(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    guests = dict(zip(SETTINGS, pair, strict=True))
    for guest in pair:
        make_fresh(guest, drifted=True)
    inventory = listing(
        tmp_path_factory.mktemp("inventory"),
        {name: {"kvm_domain": guest.name, **SETTINGS[name]} for name, guest in guests.items()},
    )
    before = {name: look(guest) for name, guest in guests.items()}
    run = playbook("upgrade", inventory=inventory, variables={"fleet_batch": "100%"})
    return Ran(run, before, {name: look(guest) for name, guest in guests.items()})


def test_listed_guests_that_drift_are_chosen_without_being_named(ran: Ran) -> None:
    assert ran.run.exit_code == 0, ran.run.output
    assert set(ran.run.records) == {CAUTIOUS, THOROUGH}


def test_security_only_upgrades_what_comes_from_the_security_archive(ran: Ran) -> None:
    assert ran.change(CAUTIOUS) == {"lab-library": ("1.0", "1.1")}
    assert ran.record(CAUTIOUS)["outcome"] == "upgraded"


def test_restart_never_leaves_the_guest_running(ran: Ran) -> None:
    assert ran.after[CAUTIOUS].process == ran.before[CAUTIOUS].process
    assert ran.after[CAUTIOUS].boot_id == ran.before[CAUTIOUS].boot_id
    assert (ran.record(CAUTIOUS)["restarted"], ran.record(CAUTIOUS)["drift"]) == (False, "remains")


def test_without_a_snapshot_none_is_taken(ran: Ran) -> None:
    assert ran.after[CAUTIOUS].snapshots == ()
    assert ran.record(CAUTIOUS)["snapshot"] is None


def test_the_snapshot_of_a_healthy_guest_is_deleted(ran: Ran) -> None:
    assert ran.after[THOROUGH].snapshots == ()
    assert ran.record(THOROUGH)["snapshot"] is None
    assert "TASK [kvm.fleet.upgrade : Delete the snapshot of a healthy guest]" in ran.run.output


def test_autoremove_removes_what_nothing_depends_on(ran: Ran) -> None:
    assert ran.change(THOROUGH)["lab-obsolete"] == ("1.0", None)


def test_the_thorough_guest_is_restarted(ran: Ran) -> None:
    assert ran.after[THOROUGH].boot_id != ran.before[THOROUGH].boot_id
    assert ran.after[THOROUGH].drifted is False
    assert (ran.record(THOROUGH)["restarted"], ran.record(THOROUGH)["drift"]) == (True, "resolved")


def test_the_summary_counts_drift_that_remains_as_not_resolved(ran: Ran) -> None:
    assert ran.run.summary[-2] == "Success: 2  Failed: 0  Drift Resolved: 1"
    assert "  QEMU drift: remains" in ran.run.paragraph(CAUTIOUS)


def test_tags_choose_what_is_done(pair: Pair) -> None:
    guest = pair.plain
    make_fresh(guest, drifted=True)
    before = look(guest)

    mistyped = playbook("upgrade", "--tags", "package", guests=[guest.name])
    assert mistyped.exit_code != 0
    assert mistyped.records[guest.name]["error"]["error_code"] == "nothing_chosen"
    assert look(guest) == before

    run = playbook("upgrade", "--tags", "packages", guests=[guest.name])
    assert run.exit_code == 0, run.output
    after = look(guest)
    assert (after.process, after.boot_id, after.snapshots) == (before.process, before.boot_id, ())
    assert after.packages != before.packages
    assert (run.records[guest.name]["outcome"], run.records[guest.name]["drift"]) == ("upgraded", "remains")


def test_restart_playbook_leaves_packages_alone(pair: Pair) -> None:
    guest = pair.plain
    make_fresh(guest, drifted=True)
    before = look(guest)
    run = playbook("restart", "--tags", "restart", guests=[guest.name])
    after = look(guest)
    assert run.exit_code == 0, run.output
    assert after.process != before.process
    assert after.boot_id != before.boot_id
    assert after.drifted is False
    assert after.packages == before.packages
    assert after.snapshots == ()
    assert run.records[guest.name]["outcome"] == "restarted"
    assert run.summary[1] == "RESTART SUMMARY: 1 VM(s) processed"
    assert run.summary[-2] == "Success: 1  Failed: 0  Drift Resolved: 1"
