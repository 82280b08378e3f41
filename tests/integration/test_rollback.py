# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Real guests are brought back to their snapshots."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from lab.clock import wait_until
from tests.integration.proof import FAILS_AT_BOOT, fail_at_boot, look, make_fresh, snapshots
from tests.integration.runs import module, playbook

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.guests import Guest

CONFIRMED = {"rollback_confirm": True}

SERVICE = b"[Service]\nExecStart=/bin/sleep infinity\n"


@pytest.fixture
def guest(pristine_guest: Guest) -> Iterator[Guest]:
    """The shared guest, of which no run is on record."""
    make_fresh(pristine_guest)
    yield pristine_guest
    make_fresh(pristine_guest)


def done(which: str, guest: Guest, **options: Any) -> dict[str, Any]:
    result = module(which, check=False, name=guest.name, **options)
    assert not result["failed"], result
    return result


def is_active(guest: Guest, unit: str) -> bool:
    return guest.run("/usr/bin/systemctl", "is-active", "--quiet", unit).returncode == 0


def test_a_rollback_brings_back_a_file_a_package_and_a_running_service(guest: Guest) -> None:
    guest.write_file("/root/precious", b"before")
    guest.write_file("/etc/systemd/system/lab-lives.service", SERVICE)
    guest.output("/usr/bin/systemctl", "start", "lab-lives.service")
    done("guest_lease", guest, run="by-a-test", owner="a test", baseline={"failed_units": []})
    guest.output("/bin/date", "--set", "1 hour ago")  # the RAM in the snapshot knows no other time
    name = done("domain_snapshot", guest, run="by-a-test")["snapshot"]["name"]
    done("guest_lease", guest, run="by-a-test", state="absent", outcome="failed")
    before = look(guest)

    guest.output("/bin/rm", "/root/precious")
    guest.output("/usr/bin/dpkg", "--purge", "lab-app")
    guest.output("/usr/bin/systemctl", "stop", "lab-lives.service")
    assert "lab-app" not in guest.package_versions()

    refused = playbook("rollback", guests=[guest.name])
    assert refused.exit_code != 0
    assert refused.records[guest.name]["error"]["error_code"] == "rollback_unconfirmed"
    predicted = playbook("rollback", "--check", guests=[guest.name])
    assert (predicted.exit_code, predicted.records[guest.name]["outcome"]) == (0, "rolled_back")
    assert guest.process() == before.process
    assert not is_active(guest, "lab-lives.service")

    run = playbook("rollback", guests=[guest.name], variables=CONFIRMED)

    assert (run.exit_code, run.records[guest.name]["outcome"]) == (0, "rolled_back")
    assert run.paragraph(guest.name)[:2] == [f"✓ {guest.name}", f"  Rolled back to: {name}"]
    assert guest.read_file("/root/precious") == b"before"
    assert guest.package_versions() == before.packages
    assert is_active(guest, "lab-lives.service")
    after = look(guest)
    assert (after.boot_id, after.snapshots) == (before.boot_id, (name,))
    assert after.process != before.process
    assert abs(float(guest.output("/bin/date", "+%s")) - time.time()) < 60


def test_a_guest_that_does_not_come_back_healthy_is_rolled_back_by_the_upgrade(guest: Guest) -> None:
    fail_at_boot(guest)
    before = look(guest)
    options = {"upgrade_packages": False, "upgrade_restart": "always", "upgrade_rollback": True}

    run = playbook("upgrade", guests=[guest.name], variables=options)

    assert run.exit_code != 0
    record = run.records[guest.name]
    assert (record["outcome"], record["error"]["error_code"]) == ("rolled_back", "guest_unhealthy")
    assert FAILS_AT_BOOT in record["error"]["msg"]
    assert any(line.startswith("  Rolled back: lost is all") for line in run.paragraph(guest.name))
    after = look(guest)
    assert (after.boot_id, after.snapshots) == (before.boot_id, (record["snapshot"],))
    assert after.process != before.process
    [told] = module("domain_info", names=[guest.name])["domains"]
    assert (told["run"]["ended"]["outcome"], told["run"]["unfinished"]) == ("rolled_back", False)


@pytest.mark.thorough
def test_a_guest_that_was_off_in_its_snapshot_is_started(guest: Guest) -> None:
    boot_id = guest.boot_id()
    guest.output("/bin/sync")
    guest.domain.destroy()
    assert wait_until(lambda: not guest.domain.isActive(), 60)
    done("domain_snapshot", guest, snapshot="off")

    result = done("domain_rollback", guest, snapshot="off")

    assert (result["reverted"], result["started"], result["failed_units"]) == (True, True, [])
    assert guest.boot_id() != boot_id
    assert snapshots(guest) == ("off",)


def test_a_snapshot_of_a_guest_that_is_off_is_taken_in_the_restart_and_brings_back_its_disk(guest: Guest) -> None:
    guest.write_file("/root/precious", b"before")
    before = look(guest)
    options = {"upgrade_packages": False, "upgrade_restart": "always", "upgrade_snapshot_way": "offline"}

    run = playbook("upgrade", guests=[guest.name], variables=options)

    assert run.exit_code == 0
    record = run.records[guest.name]
    assert (record["outcome"], record["restarted"]) == ("restarted", True)
    after = look(guest)
    assert after.boot_id != before.boot_id
    assert after.snapshots == (record["snapshot"],)
    [domain] = module("domain_info", names=[guest.name])["domains"]
    assert [snapshot["state"] for snapshot in domain["snapshots"]] == ["shutoff"]
    assert [(step["name"], step["status"]) for step in domain["run"]["steps"]] == [
        ("restart", "done"),
        ("snapshot", "done"),
    ]

    guest.output("/bin/rm", "/root/precious")
    guest.output("/bin/sync")
    result = done("domain_rollback", guest, snapshot=record["snapshot"])
    assert (result["reverted"], result["started"]) == (True, True)
    assert result["lost"]["written"] > 0
    assert guest.read_file("/root/precious") == b"before"
