# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""External snapshots of a real guest that no internal one fits: it has UEFI firmware, a raw disk and a qcow2 one.

The tests use one guest in their order, which boots twice.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lab import inside
from lab.clock import wait_until
from lab.run import run
from tests.integration.background import children
from tests.integration.proof import look, snapshots
from tests.integration.runs import ROOT, module, module_command, module_options, refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.fleets import Fleet
    from lab.guests import Guest
    from lab.hypervisor import Hypervisor
    from lab.session import Session

PATIENCE_S = 60

# A UEFI variable that stays, and is there before and after the system has taken over.
VARIABLE = "/sys/firmware/efi/efivars/Lab{}-6b1c1c3e-7a52-4f0c-9c0e-2f6f6a3c7b11"
ATTRIBUTES = b"\x07\0\0\0"

# Freezes a guest as libvirt does, and neither thaws it nor lets anybody else be told that all is well.
FREEZE_AND_HANG = """\
import json, sys, time
from ansible_collections.kvm.fleet.plugins.module_utils._libvirt import open_hypervisor
with open_hypervisor("qemu:///system") as hypervisor:
    domain = hypervisor.domain(sys.argv[1])
    with hypervisor.watching_freeze(domain):
        domain.exchange(json.dumps({"execute": "guest-fsfreeze-freeze"}), 30)
        print("frozen", flush=True)
        time.sleep(600)
"""


@pytest.fixture(scope="module")
def guest(lab: Session) -> Iterator[Guest]:
    """A running guest, whose second disk is mounted."""
    with lab.guest(firmware="uefi", disk_format="raw", second_disk="qcow2") as made:
        made.output("/sbin/mkfs.ext4", "-q", "/dev/vdb")
        made.output("/bin/mkdir", "/srv/second")
        mount(made)
        yield made


def mount(guest: Guest) -> None:
    guest.output("/bin/mount", "/dev/vdb", "/srv/second")


@pytest.fixture(scope="module")
def frail(fleet: Fleet) -> Hypervisor:
    """A hypervisor whose libvirt may die."""
    return fleet.hypervisors[0]


@pytest.fixture(scope="module")
def frozen_there(lab: Session, frail: Hypervisor) -> Iterator[Guest]:
    with lab.guest(on=frail) as made:
        yield made


def done(which: str, guest: Guest, **options: Any) -> dict[str, Any]:
    result = module(which, name=guest.name, **options)
    assert not result["failed"], result
    return result


def files(guest: Guest) -> set[str]:
    """What is beside the guest's disks."""
    return {path.name for path in guest.disk.parent.iterdir() if path.is_file()} - {"console.log"}


def write(guest: Guest, text: str) -> None:
    for path in ("/root/file", "/srv/second/file"):
        guest.write_file(path, text.encode())
    guest.output("/bin/sync")


def read(guest: Guest) -> set[bytes]:
    return {guest.read_file(path) for path in ("/root/file", "/srv/second/file")}


def set_variable(guest: Guest, name: str) -> None:
    done = guest.run("/bin/sh", "-c", 'cat >"$0"', VARIABLE.format(name), stdin=ATTRIBUTES + b"set")
    assert done.returncode == 0, done


def has_variable(guest: Guest, name: str) -> bool:
    return guest.run("/usr/bin/test", "-e", VARIABLE.format(name)).returncode == 0


def frozen(guest: Guest) -> bool:
    return bool(inside.ask(guest.domain, "guest-fsfreeze-status") == "frozen")


def test_layers_are_put_over_raw_disks_and_committed_with_all_that_was_written(guest: Guest) -> None:
    before = files(guest)
    closed = refusal("domain_snapshot", name=guest.name, way="live")["evidence"]["closed"]
    assert "disk vda" in closed["live"]
    predicted = done("domain_snapshot", guest, snapshot="first", way="external", check=True)
    assert (predicted["way"], files(guest), snapshots(guest)) == ("external", before, ())

    made = done("domain_snapshot", guest, snapshot="first", way="external")
    assert (made["changed"], made["way"], made["snapshot"]["way"]) == (True, "external", "external")
    assert len(made["snapshot"]["files"]) == 2
    assert done("domain_snapshot", guest, snapshot="first", way="external")["changed"] is False
    assert not frozen(guest)
    write(guest, "after")
    [told] = module("domain_info", names=[guest.name])["domains"]
    [listed] = told["snapshots"]
    assert (listed["kind"], listed["files"]) == ("external", made["snapshot"]["files"])
    assert listed["size"] > 0

    assert done("domain_snapshot", guest, snapshot="first", state="absent")["changed"] is True
    assert (files(guest), snapshots(guest)) == (before, ())
    assert read(guest) == {b"after"}


def test_ram_and_disks_are_brought_back_without_a_boot(guest: Guest) -> None:
    before, names = look(guest), files(guest)
    write(guest, "before")
    set_variable(guest, "BeforeRam")
    guest.write_file("/run/in-ram", b"before")
    made = done("domain_snapshot", guest, snapshot="ram")
    assert (made["way"], made["snapshot"]["state"]) == ("external_live", "running")
    assert set(made["closed"]) == {"live"}
    write(guest, "after")
    set_variable(guest, "AfterRam")
    guest.write_file("/run/in-ram", b"after")

    for _again in range(2):  # it stays, and can be gone back to again
        result = done("domain_rollback", guest, snapshot="ram")
        assert (result["reverted"], result["started"], result["clock_set"]) == (True, False, True)
        assert guest.boot_id() == before.boot_id
        assert guest.read_file("/run/in-ram") == b"before"
        assert read(guest) == {b"before"}
        assert (has_variable(guest, "BeforeRam"), b"A\0f\0t\0e\0r\0R" in guest.nvram.read_bytes()) == (True, False)
        write(guest, "again")
    assert done("domain_snapshot", guest, snapshot="ram", state="absent")["changed"] is True
    assert (read(guest), files(guest)) == ({b"again"}, names)


def test_a_guest_whose_freezer_died_is_thawed(guest: Guest) -> None:
    arguments = ["/usr/bin/python3", "-c", FREEZE_AND_HANG, guest.name]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'build' / 'collections'}:{os.pathsep.join(sys.path)}"}
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE) as module_at_work:
        try:
            assert module_at_work.stdout is not None
            assert module_at_work.stdout.readline() == b"frozen\n"
            assert frozen(guest)
            for way in ("external", "live"):
                assert refusal("domain_snapshot", name=guest.name, way=way)["error_code"] in (
                    "guest_frozen",
                    "snapshot_impossible",
                )
            assert refusal("guest_exec", name=guest.name, argv=["/bin/true"])["error_code"] == "guest_frozen"
        finally:
            module_at_work.send_signal(signal.SIGKILL)
    assert wait_until(lambda: guest.answers() and not frozen(guest), PATIENCE_S)
    write(guest, "thawed")


@pytest.mark.parametrize("module_dies", [pytest.param(False, marks=pytest.mark.thorough), True])
def test_a_guest_is_thawed_though_libvirt_dies_while_it_is_frozen(
    frail: Hypervisor, frozen_there: Guest, module_dies: bool
) -> None:
    guest, folder = frozen_there, frozen_there.disk.parent
    qemu, before = guest.process(), set(folder.iterdir())
    assert qemu is not None
    command = module_command("domain_snapshot", frail)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as at_work:
        assert at_work.stdin is not None
        assert at_work.stdout is not None
        options = {"name": guest.name, "way": "external", "snapshot": "frozen"}
        at_work.stdin.write(module_options(options).encode())
        at_work.stdin.close()
        # The guest is frozen by when libvirt has QEMU make the layer. Standing still, QEMU comes no further.
        # It is slowed down, or it may be done with that before a busy machine lets this test go on.
        os.setpriority(os.PRIO_PROCESS, qemu.pid, 19)
        while set(folder.iterdir()) == before:
            assert at_work.poll() is None
            time.sleep(0.0005)
        os.kill(qemu.pid, signal.SIGSTOP)
        os.setpriority(os.PRIO_PROCESS, qemu.pid, 0)
        with frail.without_libvirtd(crashed=True):
            if module_dies:
                # It is below what enters the hypervisor's view. Its own child is who watches.
                [pid] = children(at_work.pid)
                os.kill(pid, signal.SIGKILL)
            os.kill(qemu.pid, signal.SIGCONT)
        answer = at_work.stdout.read()
    assert wait_until(lambda: guest.answers() and not frozen(guest), PATIENCE_S)
    guest.output("/usr/bin/touch", "/root/can-be-written")
    assert snapshots(guest) == ()
    if not module_dies:
        assert json.loads(answer)["error_code"] == "hypervisor_unavailable"
    # An empty layer may be left, where libvirt was away for as long as the module looked. The guest writes to none.
    assert not [left for left in set(folder.iterdir()) - before if str(left) in guest.domain.XMLDesc()]


def test_a_guest_that_a_run_has_left_frozen_is_thawed_by_the_next_one(guest: Guest) -> None:
    done("guest_lease", guest, run="run-a", owner="a test")
    done("domain_snapshot", guest, snapshot="cut-off", way="external", run="run-a")
    record = json.loads(guest.run_record.read_text("utf-8"))
    record["steps"][-1].update(status="open", result={"freezes": True})
    guest.run_record.write_text(json.dumps(record), encoding="utf-8")
    inside.ask(guest.domain, "guest-fsfreeze-freeze")
    taken = done("guest_lease", guest, run="run-b", owner="a test", take_over=["run-a"])
    assert taken["taken_over"]["run"] == "run-a"
    assert not frozen(guest)
    done("guest_lease", guest, run="run-b", state="absent", outcome="unchanged")
    assert done("domain_snapshot", guest, snapshot="cut-off", state="absent")["changed"] is True


def test_a_rollback_brings_back_files_and_packages_and_deletions_lose_nothing(guest: Guest, tmp_path: Path) -> None:
    names = files(guest)
    write(guest, "before")
    set_variable(guest, "Before")
    before = look(guest)
    done("domain_snapshot", guest, snapshot="older", way="external")
    guest.output("/usr/bin/dpkg", "--purge", "lab-app")
    write(guest, "after")
    set_variable(guest, "After")

    result = done("domain_rollback", guest, snapshot="older")
    assert (result["reverted"], result["started"], result["failed_units"]) == (True, True, [])
    after = look(guest)
    assert after.boot_id != before.boot_id
    mount(guest)
    assert (after.packages, after.snapshots) == (before.packages, ("older",))
    assert read(guest) == {b"before"}
    assert (has_variable(guest, "Before"), has_variable(guest, "After")) == (True, False)

    write(guest, "newer")
    done("domain_snapshot", guest, snapshot="newer", way="external")
    blocked = refusal("domain_rollback", name=guest.name, snapshot="older")
    assert (blocked["error_code"], blocked["evidence"]["snapshots"]) == ("snapshot_blocked", ["newer"])
    write(guest, "newest")
    # The layer of the older one is between the disk and that of the newer one.
    done("domain_snapshot", guest, snapshot="older", state="absent")
    assert (snapshots(guest), read(guest)) == (("newer",), {b"newest"})

    guest.domain.destroy()
    done("domain_snapshot", guest, snapshot="newest")  # of a guest that is off
    done("domain_snapshot", guest, snapshot="newer", state="absent")
    [told] = module("domain_info", names=[guest.name])["domains"]
    [kept] = told["snapshots"]
    assert (kept["name"], kept["way"], kept["kind"], kept["state"]) == ("newest", "offline", "external", "shutoff")
    run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", kept["files"][0], tmp_path / "disk.raw"])
    done("domain_snapshot", guest, snapshot="newest", state="absent")
    assert (snapshots(guest), files(guest)) == ((), names)
    run(["qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", guest.disk, tmp_path / "disk.raw"])
