# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The image of a real guest that is off, opened by the real libguestfs."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import libvirt
import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._errors import ImageFailed
from ansible_collections.kvm.fleet.plugins.module_utils._image import Image, open_image
from ansible_collections.kvm.fleet.plugins.module_utils._libvirt import open_hypervisor
from tests.integration.background import PATIENCE_S, wait_for
from tests.integration.runs import module, refusal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lab.fixtures import MakeGuest
    from lab.guests import Guest

URI = "qemu:///system"
NASTY = "/etc/a \"b\" 'c'\n$d\\e: |<_é"
HALF_CONFIGURED = "/^Package: lab-config$/,/^$/s/^Status: .*/Status: install ok half-configured/"


@contextmanager
def image_of(guest: Guest, *, read_only: bool = False) -> Iterator[Image]:
    with open_hypervisor(URI) as hypervisor:
        domain = hypervisor.domain(guest.name)
        with open_image(domain, uri=URI, read_only=read_only) as image:
            yield image


def test_files_are_read_and_written_with_owner_mode_and_label_kept(make_guest: MakeGuest) -> None:
    guest = make_guest(start=False)
    with image_of(guest) as image:
        files = image.files
        assert files.read("/etc/hostname") == b"lab\n"
        assert files.read("/nowhere/at/all") is None
        assert (files.names("/nowhere"), "sources.list.d" in (files.names("/etc/apt") or ())) == ((), True)
        image.run(
            "chown 3:4 /etc/hosts; chmod 2640 /etc/hosts; ln -s hosts /etc/leads-to-hosts\n"
            "python3 -c 'import os\n"
            'os.setxattr("/etc/hosts", "security.selinux", b"system_u:object_r:net_conf_t:s0\\0")\n'
            'os.setxattr("/etc/apt", "security.selinux", b"system_u:object_r:etc_t:s0\\0")\'\n'
        )
        written = bytes(range(256)) * 64
        files.write("/etc/leads-to-hosts", written)
        files.write(f"/etc/apt/new directory/{NASTY[5:]}", b"new\n")
        assert (files.read("/etc/hosts"), files.read("/etc/leads-to-hosts")) == (written, written)
        assert files.names("/etc/apt/new directory") == [NASTY[5:]]
        told = image.run(
            "stat -c '%u %g %a %F' /etc/hosts /etc/leads-to-hosts; cd '/etc/apt/new directory'; stat -c '%u %g %a' *\n"
            "python3 -c 'import os\n"
            'print(os.getxattr("/etc/hosts", "security.selinux"), os.getxattr(".", "security.selinux"))\'\n'
            "find /etc -name '*kvm-fleet*'"
        )
        assert told.splitlines() == [
            "3 4 2640 regular file",
            "0 0 777 symbolic link",
            "0 0 644",
            "b'system_u:object_r:net_conf_t:s0\\x00' b'system_u:object_r:etc_t:s0'",
        ]
        # QEMU's lock is what keeps libvirt from starting the guest meanwhile. It may not yet have read QEMU's words.
        with pytest.raises(libvirt.libvirtError, match=r"lock|unexpectedly closed the monitor"):
            guest.start()
        with pytest.raises(ImageFailed, match="lock") as locked, image_of(guest):
            pass
        assert "something else has the image open" in locked.value.remedy
    guest.start()
    guest.wait_until_ready()
    assert guest.read_file("/etc/hosts") == written


@pytest.mark.thorough
def test_a_script_that_fails_or_hangs_leaves_an_image_that_boots(make_guest: MakeGuest) -> None:
    guest = make_guest(start=False)
    with pytest.raises(ImageFailed) as failed, image_of(guest) as image:
        image.run("echo done so far; touch /etc/touched /run/touched; echo oops >&2; exit 3")
    assert failed.value.evidence == {"rc": "3", "stdout": ["done so far"], "stderr": ["oops"]}
    with pytest.raises(ImageFailed, match="has not ended after"), image_of(guest) as image:
        image.run("sync; sleep 600", timeout=5)
    with image_of(guest, read_only=True) as image:
        assert image.files.read("/etc/touched") == b""
        assert image.run("ls /run") == "kvm-fleet\nlock\n"
        image.files.write("/etc/thrown-away", b"")
    guest.start()
    guest.wait_until_ready()
    assert guest.run("/usr/bin/test", "-e", "/etc/thrown-away").returncode == 1


@contextmanager
def block_device(path: Path) -> Iterator[str]:
    """A file as a block device of this machine."""
    device = subprocess.run(
        ["losetup", "--find", "--show", path], check=True, capture_output=True, encoding="utf-8"
    ).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@pytest.mark.thorough
def test_a_block_device_is_let_go_of_as_soon_as_its_guest_is_started(make_guest: MakeGuest) -> None:
    guest = make_guest(start=False, disk_format="raw")
    with block_device(guest.disk) as device:
        definition = ET.fromstring(guest.domain.XMLDesc())
        disk, source = definition.find("devices/disk"), definition.find("devices/disk/source")
        assert disk is not None
        assert source is not None
        disk.set("type", "block")
        source.attrib.clear()
        source.set("dev", device)
        guest.connection.live().defineXML(ET.tostring(definition, encoding="unicode"))
        try:
            asked: dict[str, Any] = {"name": guest.name, "script": "touch /etc/begun; sync; sleep 900"}
            for check in (True, False):
                result = refusal("guest_repair", check=check, **asked)
                assert (result["error_code"], result["evidence"]["block_devices"]) == ("domain_unsafe", [device])
            with ThreadPoolExecutor() as pool:
                repair = pool.submit(refusal, "guest_repair", **asked, block_devices=True)
                wait_for(lambda: holds(device), "the appliance")
                # As of the image of a file, libvirt would say that it is locked.
                guest.start()
                result = repair.result(PATIENCE_S)
            assert result["error_code"] == "domain_running"
            assert "was started while its image was worked on" in result["msg"]
            guest.wait_until_ready()
        finally:
            if guest.domain.isActive():
                guest.domain.destroy()


def holds(path: str) -> bool:
    """Whether an appliance of libguestfs's has this device open."""
    users = subprocess.run(["fuser", path], check=False, capture_output=True, encoding="ascii").stdout.split()
    return any("guestfs" in Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace") for pid in users)


def test_a_guest_that_runs_is_refused(shared_guest: Guest) -> None:
    for check in (True, False):
        result = refusal("guest_repair", check=check, name=shared_guest.name, repairs=["fsck"])
        assert (result["error_code"], result["evidence"]["state"]) == ("domain_running", "running")
    told = module("guest_repair", name=shared_guest.name, virt_rescue=True, before_shutdown=True)
    assert (told["failed"], told["changed"]) == (False, False)
    assert str(shared_guest.disk) in told["virt_rescue"]


def test_a_guest_with_a_managed_save_image_is_refused(pristine_guest: Guest) -> None:
    pristine_guest.domain.managedSave()
    try:
        result = refusal("guest_repair", name=pristine_guest.name, repairs=["fsck"])
        assert result["error_code"] == "domain_unsafe"
        assert "managedsave-remove" in result["remedy"]
    finally:
        pristine_guest.domain.managedSaveRemove()


@pytest.mark.thorough
def test_a_guest_that_is_hibernated_is_refused(make_guest: MakeGuest, tmp_path: Path) -> None:
    guest, swap = make_guest(start=False), tmp_path / "swap"
    swap.write_bytes(bytes(1024 * 1024))
    subprocess.run(["mkswap", swap], check=True, capture_output=True)
    guest.domain.attachDeviceFlags(
        f"<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{swap}'/>"
        "<target dev='vdz' bus='virtio'/></disk>",
        libvirt.VIR_DOMAIN_AFFECT_CONFIG,
    )
    # What the kernel does to it as the last thing before it powers the machine off.
    with swap.open("r+b") as device:
        device.seek(4096 - 10)
        assert device.read(10) == b"SWAPSPACE2"
        device.seek(4096 - 10)
        device.write(b"S1SUSPEND\0")
    before = guest.disk.read_bytes()
    result = refusal("guest_repair", name=guest.name, repairs=["fsck"])
    assert (result["error_code"], len(result["evidence"]["devices"])) == ("domain_unsafe", 1)
    assert "is hibernated" in refusal("guest_agent_policy", name=guest.name, state="disabled")["msg"]
    assert guest.disk.read_bytes() == before
    subprocess.run(["mkswap", swap], check=True, capture_output=True)
    assert not module("guest_repair", name=guest.name, repairs=["fsck"])["failed"]


@pytest.mark.thorough
def test_packages_and_file_systems_are_repaired_and_the_guest_boots(make_guest: MakeGuest) -> None:
    guest = make_guest(start=False, disk_format="raw")
    with image_of(guest) as image:
        image.run(f"sed -i '{HALF_CONFIGURED}' /var/lib/dpkg/status; touch /etc/lost; sync")
    # As a crash of the hypervisor may leave it: a name without its file.
    subprocess.run(["debugfs", "-w", "-R", "clri /etc/lost", guest.disk], check=True, capture_output=True)
    before = guest.disk.read_bytes()

    asked: dict[str, Any] = {"name": guest.name, "repairs": ["packages", "fsck"], "script": "dpkg --audit; ls /etc"}
    predicted = module("guest_repair", check=True, **asked)
    assert not predicted["failed"], predicted
    assert guest.disk.read_bytes() == before

    done = module("guest_repair", **asked)
    assert not done["failed"], done
    assert predicted["repairs"] == done["repairs"]
    assert [(one["name"], one["changed"]) for one in done["repairs"]] == [
        ("fsck", True),
        ("packages", True),
        ("script", True),
    ]
    assert done["repairs"][0]["output"] == "/dev/sda (ext4): errors were corrected\n"
    assert "Setting up lab-config" in done["repairs"][1]["output"]
    assert "lost" not in done["repairs"][2]["output"].split()

    again = module("guest_repair", name=guest.name, repairs=["packages", "fsck"])
    assert (again["changed"], [one["changed"] for one in again["repairs"]]) == (False, [False, False])
    guest.start()
    guest.wait_until_ready()
    assert guest.output("/usr/bin/dpkg", "--audit") == ""
