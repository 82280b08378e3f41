# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Off an old QEMU by way of another hypervisor, on real guests."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import libvirt
import pytest

from lab.clock import wait_until
from lab.guests import PRISTINE
from lab.places import IMAGES
from tests.integration.background import kill
from tests.integration.runs import module_command, module_on, module_options, playbook, refusal_on

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.fleets import Fleet
    from lab.guests import Guest
    from lab.hypervisor import Hypervisor
    from lab.session import Session

SLOW_MIB_PER_S = 3
POOL = f"<pool type='dir'><name>images</name><target><path>{IMAGES}</path></target></pool>"


@pytest.fixture(scope="module")
def guest(lab: Session, fleet: Fleet) -> Iterator[Guest]:
    """A guest of the first hypervisor with a snapshot."""
    with lab.guest(on=fleet.hypervisors[0]) as guest:
        guest.take_pristine()
        yield guest


def away(guest: Guest, to: Hypervisor, **options: Any) -> dict[str, Any]:
    """What has a guest migrated. libvirt does not know that the folder of the lab's guests is shared."""
    migrates = {"state": "restarted", "strategy": "migrate", "destinations": [to.uri_among_hypervisors]}
    return {"name": guest.name, **migrates, "storage": "trusted", **options}


def restart(on: Hypervisor, options: dict[str, Any]) -> dict[str, Any]:
    result = module_on(on, "domain_power", **options)
    assert not result["failed"], result
    return result


def names(hypervisor: Hypervisor) -> list[str]:
    return hypervisor.run("virsh", "list", "--all", "--name").split()


def snapshots(guest: Guest) -> list[str]:
    return sorted(guest.domain.snapshotListNames())


def uptime(guest: Guest) -> float:
    return float(guest.output("/bin/cat", "/proc/uptime").split()[0])


def test_a_guest_comes_back_to_the_new_qemu_as_it_runs_however_long_that_takes(fleet: Fleet, guest: Guest) -> None:
    first, second = fleet.hypervisors
    first.drift()
    before, boot_id, up = guest.process(), guest.boot_id(), uptime(guest)
    assert before is not None
    assert guest.drifted()
    guest.domain.setAutostart(1)
    options = away(guest, second, come_back=True)
    predicted = module_on(first, "domain_power", check=True, **options)
    assert (predicted["changed"], predicted["strategy"], guest.process()) == (True, "migrate", before)

    # Longer than libvirt waits for a client that leaves its keepalive unanswered, which is 30 s.
    guest.domain.migrateSetMaxSpeed(SLOW_MIB_PER_S)
    result = restart(first, options)

    after = guest.process()
    assert after is not None
    assert result["steps"] == predicted["steps"] == ["migrate", "migrate_back", "wait_for_agent"]
    assert result["migration"] == {
        "destination": second.uri_among_hypervisors,
        "came_back": True,
        "left_behind": [],
    }
    assert result["before"]["pid"] != result["after"]["pid"]
    assert after.pid != before.pid
    assert after.started > before.started
    assert guest.drifted() is False
    assert guest.boot_id() == boot_id == result["after"]["boot_id"]
    # The heartbeat saw a pause. What is emulated has stood still meanwhile, and its clock with it.
    assert result["pause"]["guest"] > 0
    assert result["pause"]["hypervisor"] > 0
    assert result["clock"] is None or result["clock"]["set"]
    assert uptime(guest) > up
    assert guest.run("/bin/ls", "/var/lib/kvm-fleet/heartbeat").returncode != 0
    assert snapshots(guest) == [PRISTINE]
    assert guest.domain.autostart() == 1
    assert guest.name not in names(second)
    guest.reset()
    assert guest.boot_id() == boot_id


def test_a_guest_whose_migration_is_killed_runs_on_and_keeps_its_snapshots(fleet: Fleet, guest: Guest) -> None:
    first, second = fleet.hypervisors
    process, boot_id = guest.process(), guest.boot_id()
    guest.domain.migrateSetMaxSpeed(SLOW_MIB_PER_S)
    with killed_while_it_arrives(first, away(guest, second), second, guest):
        assert snapshots(guest) == []
    assert wait_until(lambda: guest.name not in names(second), 60)
    assert (guest.process(), guest.boot_id()) == (process, boot_id)
    assert wait_until(lambda: int(guest.domain.jobInfo()[0]) == libvirt.VIR_DOMAIN_JOB_NONE, 60)

    # What takes too long is called off, and made up for by the next way.
    told = restart(first, away(guest, second, strategy="auto", migrate_timeout=2))
    assert (told["strategy"], list(told["closed"])) == ("save_restore", ["migrate"])
    assert "was not migrated" in told["closed"]["migrate"]
    assert snapshots(guest) == [PRISTINE]
    assert (guest.boot_id(), guest.process() != process, names(second)) == (boot_id, True, [])
    guest.domain.migrateSetMaxSpeed(0)


@contextmanager
def killed_while_it_arrives(on: Hypervisor, options: dict[str, Any], to: Hypervisor, guest: Guest) -> Iterator[None]:
    """The module is killed at the end of the context, when the guest is on its way."""
    with subprocess.Popen(
        module_command("domain_power", on), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as begun:
        try:
            assert begun.stdin is not None
            begun.stdin.write(module_options(options).encode())
            begun.stdin.close()
            assert wait_until(lambda: guest.name in names(to), 60)
            yield
        finally:
            kill(begun)


def test_a_destination_that_is_not_open_says_why(fleet: Fleet, guest: Guest) -> None:
    first, second = fleet.hypervisors
    process = guest.process()
    shared = refusal_on(first, "domain_power", **away(guest, second, storage="shared"))
    assert (shared["error_code"], "that no other machine has" in shared["msg"]) == ("migration_impossible", True)
    itself, nobody = first.uri_among_hypervisors, "qemu+tcp://nobody.invalid/system"
    refused = refusal_on(first, "domain_power", **away(guest, second, destinations=[itself, nobody]))
    assert refused["error_code"] == "migration_impossible"
    assert refused["evidence"]["closed"][itself] == "it is this very hypervisor"
    assert "does not answer" in refused["evidence"]["closed"][nobody]
    assert (guest.process(), snapshots(guest)) == (process, [PRISTINE])


# Holds all ports that libvirt has QEMU's data arrive at, until its stdin ends.
HOLD_PORTS = """\
import socket, sys
held = [socket.create_server(("", port)) for port in range(49152, 49216)]
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.thorough
def test_a_guest_that_cannot_come_back_stays_where_it_is_and_can_be_fetched(
    lab: Session, fleet: Fleet, guest: Guest
) -> None:
    first, second = fleet.hypervisors
    there, boot_id = lab.seen_on(second, guest), guest.boot_id()
    words = [*first.view.within(), "/usr/bin/python3", "-c", HOLD_PORTS]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        refused = refusal_on(first, "domain_power", **away(guest, second, come_back=True))
    assert (refused["error_code"], refused["evidence"]["moved_to"]) == ("migrated_away", second.uri_among_hypervisors)
    assert "Unable to find an unused port" in refused["msg"]
    assert (there.boot_id(), snapshots(there), names(first)) == (boot_id, [PRISTINE], [])
    assert there.run("/bin/ls", "/var/lib/kvm-fleet/heartbeat").returncode != 0

    back = restart(second, away(guest, first))
    assert (back["migration"]["came_back"], guest.boot_id(), snapshots(guest)) == (False, boot_id, [PRISTINE])
    assert names(second) == []


def test_the_playbook_goes_on_with_a_guest_where_it_was_migrated_to(lab: Session, fleet: Fleet, guest: Guest) -> None:
    first, second = fleet.hypervisors
    first.drift()
    there, boot_id = lab.seen_on(second, guest), guest.boot_id()
    variables = {"upgrade_strategy": "auto", "upgrade_migrate_storage": "trusted", "fleet_try_qemu": False}
    run = playbook("restart", guests=[guest.name], variables=variables, inventory=fleet.inventory)
    assert run.exit_code == 0, run.output
    told = run.records[guest.name]
    assert (told["outcome"], told["strategy"], told["drift"]) == ("restarted", "migrate", "resolved")
    assert (told["hypervisor"], told["migration"]["came_back"]) == (second.name, False)
    assert f"  Restarted: yes, without a reboot: it was migrated to {second.name}" in run.paragraph(guest.name)
    assert (there.boot_id(), there.drifted(), snapshots(there)) == (boot_id, False, [PRISTINE])
    assert there.domain.autostart() == 1
    assert guest.name not in names(first)

    [domain] = module_on(second, "domain_info", names=[guest.name])["domains"]
    assert (domain["run"]["lease"], domain["run"]["ended"]["outcome"]) == (None, "restarted")
    missing = refusal_on(first, "domain_info", names=[guest.name])
    assert missing["evidence"]["moved_to"] == second.uri_among_hypervisors


def test_disks_are_copied_where_they_are_not_shared(lab: Session, fleet: Fleet) -> None:
    first, second = fleet.hypervisors
    with lab.guest(on=first, own_disk=True) as guest:
        there = lab.seen_on(second, guest)
        boot_id = guest.boot_id()
        guest.write_file("/root/mark", b"here")
        guest.output("/bin/sync")
        options = away(guest, second, storage="copy")
        refused = refusal_on(first, "domain_power", **options)
        assert (refused["error_code"], "storage pools" in refused["msg"]) == ("migration_impossible", True)

        second.run("mkdir", "--parents", IMAGES)
        pool = there.connection.live().storagePoolCreateXML(POOL)
        guest.domain.migrateSetMaxSpeed(SLOW_MIB_PER_S)
        failed = refusal_on(first, "domain_power", **options, migrate_timeout=2)
        assert (failed["error_code"], guest.boot_id()) == ("migration_failed", boot_id)
        pool.refresh()
        assert list(pool.listVolumes()) == []

        guest.domain.migrateSetMaxSpeed(0)
        result = restart(first, options)
        assert result["migration"]["left_behind"] == [str(IMAGES / guest.uuid)]
        assert (there.boot_id(), there.read_file("/root/mark")) == (boot_id, b"here")
        assert guest.disk.exists()
        assert there.disk.exists()
        # Onto what it has left, over there too: an image that is there is nobody's to write over.
        refused = refusal_on(second, "domain_power", **away(guest, first, storage="copy"))
        assert refused["error_code"] == "migration_impossible"
