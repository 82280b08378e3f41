# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshots of, and ways off an old QEMU for, guests of the kinds that make these hard."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import libvirt
import pytest

from lab import drift
from tests.integration.background import steps
from tests.integration.packages import UPGRADED, upgraded_names
from tests.integration.proof import snapshots, stop_agent
from tests.integration.runs import listing, module, module_on, playbook, refusal, refusal_on

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lab.fixtures import MakeGuest
    from lab.fleets import Fleet
    from lab.guests import Guest
    from lab.hypervisor import Hypervisor
    from lab.session import Session

SMALL_DISK = "/run/small-disk"
# Room for this guest's RAM, and for all that it writes here.
SMALL_DISK_MIB = 1000


@dataclass(frozen=True)
class Guests:
    """Each of them runs, and the first two drift alone."""

    uefi: Guest
    raw: Guest
    """Its first disk is raw, its second one qcow2."""
    tpm: Guest
    """On a hypervisor whose file system for its disk is small."""
    hypervisor: Hypervisor
    """That one."""

    def on_hypervisor(self, which: str, **options: Any) -> dict[str, Any]:
        """Have a module do something to the guest on the hypervisor, which has to succeed."""
        result = module_on(self.hypervisor, which, name=self.tpm.name, **options)
        assert not result["failed"], result
        return result


@pytest.fixture(scope="module")
def guests(lab: Session, fleet: Fleet) -> Iterator[Guests]:
    hypervisor = fleet.hypervisors[0]
    with (
        lab.guest(wait=False, firmware="uefi", private_emulator=True) as uefi,
        lab.guest(wait=False, disk_format="raw", second_disk="qcow2", private_emulator=True) as raw,
        lab.guest(on=hypervisor, start=False, tpm=True) as tpm,
        small_disk(hypervisor, tpm),
    ):
        for guest in (uefi, raw, tpm):
            guest.wait_until_ready()
            guest.offer_newer_agent(offered=False)
        yield Guests(uefi, raw, tpm, hypervisor)


@contextmanager
def small_disk(hypervisor: Hypervisor, guest: Guest) -> Iterator[None]:
    """Have a guest run on a small file system that only its hypervisor sees, and that has nothing else."""
    folder = guest.place.guest_directory(guest.uuid)
    mount = f"mount -t tmpfs -o size={SMALL_DISK_MIB}m,mode=755 tmpfs {SMALL_DISK}"
    script = f"mkdir {SMALL_DISK}; {mount}; cp -a {folder}/. {SMALL_DISK}; mount --bind {SMALL_DISK} {folder}"
    hypervisor.run("sh", "-ec", script)
    try:
        guest.start()
        yield
    finally:
        guest.domain.destroy()
        hypervisor.run("umount", folder, SMALL_DISK)


@contextmanager
def only_free(hypervisor: Hypervisor, mebibytes: int) -> Iterator[None]:
    """Have no more than so much room left on the small file system."""
    room = f"$(df -k --output=avail {SMALL_DISK} | tail -n 1)"
    hypervisor.run("sh", "-ec", f"fallocate -l $(({room} - {mebibytes} * 1024))K {SMALL_DISK}/filler")
    try:
        yield
    finally:
        hypervisor.run("rm", f"{SMALL_DISK}/filler")


# --- raw disks -----------------------------------------------------------------------------------


def test_a_raw_disk_is_refused_a_live_snapshot_with_what_can_be_done(guests: Guests) -> None:
    guest, before = guests.raw, guests.raw.process()
    result = refusal("domain_snapshot", name=guest.name, way="live")
    assert (result["error_code"], result["evidence"]["disk"]) == ("snapshot_impossible", "vda")
    assert "disk vda" in result["msg"]
    assert "upgrade_snapshot: false" in result["remedy"]
    assert "upgrade_snapshot_way: auto" in result["remedy"]
    assert "qemu-img convert -O qcow2" in result["remedy"]

    assert (guest.process(), snapshots(guest)) == (before, ())


def test_of_two_disks_one_of_which_is_raw_both_get_a_layer(make_guest: MakeGuest) -> None:
    guest = make_guest(start=False, second_disk="raw")
    with pytest.raises(libvirt.libvirtError, match="vdb"):
        guest.domain.snapshotCreateXML("<domainsnapshot/>")
    made = module("domain_snapshot", name=guest.name, snapshot="both")
    assert (made["way"], made["snapshot"]["kind"]) == ("offline", "external")
    assert len(made["snapshot"]["files"]) == 2
    assert module("domain_snapshot", name=guest.name, snapshot="both", state="absent")["changed"] is True
    assert snapshots(guest) == ()


def test_two_disks_of_one_kind_are_both_in_a_snapshot(make_guest: MakeGuest) -> None:
    guest = make_guest(start=False, second_disk="qcow2")
    made = module("domain_snapshot", name=guest.name, snapshot="both")
    assert (made["changed"], made["way"]) == (True, "offline")
    [disks] = [re.findall("<disk name='(\\w+)' snapshot='(\\w+)'", guest.domain.snapshotCurrent().getXMLDesc())]
    assert disks == [("vda", "internal"), ("vdb", "internal")]


# --- UEFI firmware -------------------------------------------------------------------------------

VARIABLE = "/sys/firmware/efi/efivars/LabTest-6b1c1c3e-7a52-4f0c-9c0e-2f6f6a3c7b11"
# Kept over a reboot, and there before and after the system has taken over.
ATTRIBUTES = b"\x07\0\0\0"


def test_a_uefi_guest_gets_no_internal_snapshot(guests: Guests) -> None:
    guest, before = guests.uefi, guests.uefi.process()
    result = refusal("domain_snapshot", name=guest.name, way="live")
    assert result["error_code"] == "snapshot_impossible"
    assert "UEFI firmware" in result["msg"]
    assert module("domain_snapshot", name=guest.name, way="auto", check=True)["way"] == "external_live"
    assert (guest.process(), snapshots(guest)) == (before, ())
    with pytest.raises(libvirt.libvirtError, match="pflash"):
        guest.domain.snapshotCreateXML("<domainsnapshot/>")


def test_nor_does_one_that_is_off_whose_firmware_libvirt_is_to_choose(make_guest: MakeGuest) -> None:
    guest = make_guest(start=False, firmware="uefi")
    chosen = re.compile("<os>(.*)<loader .*</nvram>", re.DOTALL)
    definition, count = chosen.subn("<os firmware='efi'>\\1", guest.domain.XMLDesc())
    assert count == 1
    guest.connection.live().defineXML(definition)
    result = refusal("domain_snapshot", name=guest.name)
    assert result["error_code"] == "snapshot_impossible"
    assert snapshots(guest) == ()


def test_a_uefi_guest_comes_off_its_qemu_in_either_way_with_its_variables(guests: Guests) -> None:
    guest = guests.uefi
    file, boot_id = guest.nvram.stat().st_ino, guest.boot_id()
    as_shipped = guest.nvram.read_bytes()
    # In one write: the first one makes the variable.
    assert guest.run("/bin/sh", "-c", f"cat >{VARIABLE}", stdin=ATTRIBUTES + b"kept").returncode == 0
    as_written = guest.nvram.read_bytes()
    assert as_written != as_shipped

    drift.replace_emulator(guest)
    assert guest.drifted()
    saved = module("domain_power", name=guest.name, state="restarted", strategy="auto")
    assert (saved["failed"], saved["strategy"], guest.drifted()) == (False, "save_restore", False), saved
    assert guest.boot_id() == boot_id
    assert (guest.nvram.stat().st_ino, guest.nvram.read_bytes()) == (file, as_written)

    drift.replace_emulator(guest)
    cycled = module("domain_power", name=guest.name, state="restarted")
    assert (cycled["failed"], cycled["strategy"], guest.drifted()) == (False, "power_cycle", False), cycled
    assert guest.boot_id() != boot_id
    # The firmware itself writes there as it boots.
    assert guest.nvram.stat().st_ino == file
    assert guest.read_file(VARIABLE) == ATTRIBUTES + b"kept"


def test_the_role_refuses_such_guests_unless_they_are_to_be_upgraded_without_a_snapshot(
    guests: Guests, tmp_path: Path
) -> None:
    hosts: dict[str, dict[str, object]] = {
        "uefi": {"kvm_domain": guests.uefi.name, "upgrade_snapshot_way": "live"},
        "raw": {"kvm_domain": guests.raw.name, "upgrade_snapshot": False},
    }
    before = [guest.process() for guest in (guests.uefi, guests.raw)]
    run = playbook(
        "upgrade", "--check", guests=["uefi", "raw"], variables={"fleet_batch": 2}, inventory=listing(tmp_path, hosts)
    )
    assert run.exit_code != 0
    refused, told = run.records["uefi"], run.records["raw"]
    assert (refused["outcome"], refused["error"]["error_code"]) == ("refused", "snapshot_impossible")
    assert "UEFI firmware" in refused["error"]["msg"]
    assert told["error"] is None
    assert {package["name"] for package in told["packages"]} == UPGRADED
    assert [guest.process() for guest in (guests.uefi, guests.raw)] == before


# --- a TPM ---------------------------------------------------------------------------------------

# TPM2_PCR_Extend of register 16, which is there for trying things out, by a SHA-256 digest.
EXTEND = bytes.fromhex(f"8002 00000041 00000182 00000010 00000009 40000009 0000 00 0000 00000001 000b {'ab' * 32}")


def knows(guest: Guest) -> str:
    """What a guest's TPM has in a register that is in its RAM alone."""
    return guest.output("/bin/cat", "/sys/class/tpm/tpm0/pcr-sha256/16").strip()


def teach(guest: Guest) -> str:
    """Have a guest's TPM know something else."""
    before = knows(guest)
    done = guest.run("/bin/sh", "-c", "exec 3<>/dev/tpm0; cat >&3; od -An -tx1 <&3", stdin=EXTEND)
    assert done.returncode == 0, done
    after = knows(guest)
    assert after != before
    return after


def test_a_live_snapshot_and_saved_ram_bring_back_what_the_tpm_knew(guests: Guests) -> None:
    guest, boot_id = guests.tpm, guests.tpm.boot_id()
    known = teach(guest)
    made = guests.on_hypervisor("domain_snapshot", snapshot="tpm", way="auto")
    assert made["way"] == "live"
    later = teach(guest)

    before = guest.process()
    saved = guests.on_hypervisor("domain_power", state="restarted", strategy="save_restore")
    assert saved["after"]["boot_id"] == boot_id
    assert guest.process() != before
    assert knows(guest) == later

    guests.on_hypervisor("domain_snapshot", snapshot="tpm", state="reverted")
    guest.wait_until_ready()
    assert (guest.boot_id(), knows(guest)) == (boot_id, known)
    guests.on_hypervisor("domain_snapshot", snapshot="tpm", state="absent")


def test_a_guest_with_a_tpm_is_not_shut_down_for_a_snapshot_that_would_lack_it(guests: Guests) -> None:
    guest, before = guests.tpm, guests.tpm.process()
    refused = refusal_on(guests.hypervisor, "domain_snapshot", name=guest.name, way="offline")
    assert refused["error_code"] == "snapshot_impossible"
    assert "has a TPM" in refused["msg"]
    with only_free(guests.hypervisor, 300):
        neither = refusal_on(guests.hypervisor, "domain_snapshot", name=guest.name, way="auto")
    assert "has a TPM" in neither["msg"]
    assert "512 MiB of these for its RAM" in neither["msg"]
    assert (guest.process(), snapshots(guest)) == (before, ())


# --- a file system that is nearly full -----------------------------------------------------------


def test_too_little_room_is_told_in_numbers_before_anything_is_changed(guests: Guests) -> None:
    guest, before, needed_mib = guests.tpm, guests.tpm.process(), 512 + 64
    free_mib = needed_mib - 40
    with only_free(guests.hypervisor, free_mib):
        refused = refusal_on(guests.hypervisor, "domain_snapshot", name=guest.name, way="live")
    assert refused["error_code"] == "snapshot_impossible"
    assert refused["evidence"]["needed_bytes"] == needed_mib << 20
    # The guest goes on writing meanwhile.
    assert (free_mib - 20) << 20 < refused["evidence"]["free_bytes"] <= free_mib << 20
    assert f"{needed_mib} MiB beside {guest.disk}" in refused["msg"]
    assert (guest.process(), snapshots(guest)) == (before, ())


# --- a libvirt that is restarted -----------------------------------------------------------------


@pytest.mark.thorough
def test_libvirt_may_be_restarted_between_the_snapshot_and_the_upgrade(guests: Guests) -> None:
    guest, hypervisor, run = guests.tpm, guests.hypervisor, "libvirt-restarted"
    guests.on_hypervisor("guest_lease", state="present", run=run, owner="a test")
    made = guests.on_hypervisor("domain_snapshot", run=run, way="auto")
    before = guest.process()
    assert steps(guest)[-1:] == [("snapshot", "done")]

    with ThreadPoolExecutor(1) as pool:
        with hypervisor.without_libvirtd():
            upgrading = pool.submit(guests.on_hypervisor, "guest_upgrade", run=run)
            # Whoever is in no run is told at once, by when the other has long found nobody either.
            away = refusal_on(hypervisor, "domain_info")
            assert (away["error_code"], away["transient"]) == ("hypervisor_unavailable", True)
            assert not upgrading.done()
        result = upgrading.result()

    assert upgraded_names(result) == UPGRADED
    assert guest.process() == before
    assert snapshots(guest) == (made["snapshot"]["name"],)
    found = guests.on_hypervisor("domain_snapshot", run=run, way="auto")
    assert (found["changed"], found["snapshot"]["name"]) == (False, made["snapshot"]["name"])
    guests.on_hypervisor("guest_lease", state="absent", run=run, outcome="upgraded")


# --- no agent, and what that leaves: the last that is done to this guest -------------------------


def test_a_guest_without_an_agent_comes_off_its_qemu_only_where_nobody_waits_for_that(guests: Guests) -> None:
    guest = guests.raw
    stop_agent(guest)
    drift.replace_emulator(guest)
    before, said = guest.process(), guest.console.read_bytes()
    for strategy in ("auto", "save_restore", "power_cycle"):
        refused = refusal("domain_power", name=guest.name, state="restarted", strategy=strategy)
        assert refused["error_code"] == "agent_silent"
    assert (guest.process(), guest.drifted()) == (before, True)

    saved = module("domain_power", name=guest.name, state="restarted", strategy="save_restore", agent_timeout=0)
    assert (saved["failed"], saved["steps"], guest.drifted()) == (False, ["save", "restore"], False), saved
    # It has not booted, of which its console would tell.
    assert guest.console.read_bytes() == said

    drift.replace_emulator(guest)
    cycled = module("domain_power", name=guest.name, state="restarted", agent_timeout=0)
    assert (cycled["failed"], cycled["steps"], guest.drifted()) == (False, ["shut_down", "start"], False), cycled
    guest.wait_until_ready()
