# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which images are opened and which are refused, and how the files in one are treated."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils import _image
from ansible_collections.kvm.fleet.plugins.module_utils._domain import DomainState
from ansible_collections.kvm.fleet.plugins.module_utils._domain_xml import parse_definition
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    DomainRunning,
    DomainUnsafe,
    FleetError,
    HypervisorUnavailable,
    ImageFailed,
    ImageToolsMissing,
)
from ansible_collections.kvm.fleet.plugins.module_utils._guest_files import MAX_FILE
from ansible_collections.kvm.fleet.plugins.module_utils._image import (
    Drive,
    Relabel,
    check,
    drives_of,
    open_disks,
    open_image,
    selinux_policy,
    virt_rescue,
)
from tests.unit.fake_guestfish import FakeGuestfish
from tests.unit.fake_hypervisor import FakeDomain, FakeHypervisor

URI = "qemu:///system"


@pytest.fixture
def domain(hypervisor: FakeHypervisor) -> FakeDomain:
    return hypervisor.add("web1", DomainState.SHUT_OFF)


# --- which disks ---------------------------------------------------------------------------------

QCOW2 = "<disk type='file'><driver type='qcow2'/><source file='/a &amp; b.qcow2'/><target dev='vda'/></disk>"
RAW = "<disk type='file'><source file='/c,d.img'/><target dev='vdb'/></disk>"
BLOCK = "<disk type='block' device='lun'><driver type='raw'/><source dev='/dev/vg/lv'/><target dev='sda'/></disk>"
CDROM = "<disk type='file' device='cdrom'><source file='/x.iso'/><target dev='sdb'/><readonly/></disk>"


def drives(*disks: str) -> tuple[Drive, ...]:
    return drives_of("web1", parse_definition(f"<domain><devices>{''.join(disks)}</devices></domain>"))


def test_all_disks_are_taken_with_the_formats_of_the_definition() -> None:
    assert drives(QCOW2, CDROM, RAW, BLOCK) == (
        Drive("/a & b.qcow2", "qcow2"),
        Drive("/c,d.img", "raw"),
        Drive("/dev/vg/lv", "raw", block_device=True),
    )


def test_a_device_is_one_whatever_libvirt_calls_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    device = "<disk type='file'><source file='/dev/vg/lv'/><target dev='vdb'/></disk>"
    monkeypatch.setattr(Path, "is_block_device", lambda _path: True)
    assert drives(device) == (Drive("/dev/vg/lv", "raw", block_device=True),)


@pytest.mark.parametrize(
    ("disk", "words"),
    [
        ("<disk type='network'><source protocol='rbd' name='a/b'/><target dev='vdc'/></disk>", "vdc .* type network"),
        ("<disk type='volume'><source pool='p' volume='v'/><target dev='vdc'/></disk>", "vdc .* type volume"),
        ("<disk type='file'><target dev='vdc'/></disk>", "vdc .* type file"),
        (
            "<disk type='file'><source file='/x'><encryption format='luks'/></source><target dev='vdc'/></disk>",
            "vdc .* is encrypted",
        ),
        (
            "<disk type='file'><source file='/x'/><encryption format='luks'/><target dev='vdc'/></disk>",
            "vdc .* is encrypted",
        ),
        ("<disk type='file'><driver type='a:b'/><source file='/x'/><target dev='vdc'/></disk>", "vdc .* format 'a:b'"),
    ],
)
def test_a_disk_that_cannot_be_had_is_named(disk: str, words: str) -> None:
    with pytest.raises(ImageFailed, match=words) as refused:
        drives(QCOW2, disk)
    assert refused.value.evidence["disk"] == "vdc"


def test_a_domain_without_disks_has_no_image() -> None:
    with pytest.raises(ImageFailed, match="no disk"):
        drives(CDROM)


# --- whether it may be opened --------------------------------------------------------------------


@pytest.mark.parametrize("state", [state for state in DomainState if state is not DomainState.SHUT_OFF])
def test_only_a_domain_that_is_off_is_opened(
    domain: FakeDomain, fake_guestfish: FakeGuestfish, state: DomainState
) -> None:
    fake_guestfish.ready()
    domain.be(state)
    with pytest.raises(DomainRunning) as refused, open_image(domain, uri="qemu:///session"):
        pass
    assert refused.value.evidence == {"state": state.value}
    verb = "destroy" if state is DomainState.CRASHED else "shutdown"
    assert f"virsh -c qemu:///session {verb} -- web1" in refused.value.remedy
    assert fake_guestfish.calls() == []
    assert check(domain, uri=URI, shut_off=False)


def test_a_saved_ram_that_knows_the_disks_is_refused(domain: FakeDomain, fake_guestfish: FakeGuestfish) -> None:
    fake_guestfish.ready()
    domain.managed_save = True
    with pytest.raises(DomainUnsafe, match="managed save"):
        check(domain, uri=URI)


def test_a_block_device_which_no_lock_protects_is_opened_only_where_somebody_has_said_so(
    domain: FakeDomain, fake_guestfish: FakeGuestfish
) -> None:
    fake_guestfish.ready()
    domain.on_block_devices = True
    for read_only in (True, False):
        with (
            pytest.raises(DomainUnsafe, match="block devices") as refused,
            open_image(domain, uri=URI, read_only=read_only),
        ):
            pass
    assert refused.value.evidence["block_devices"] == [drives_of("web1", parse_definition(domain.xml()))[0].path]
    assert fake_guestfish.calls() == []
    with open_image(domain, uri=URI, block_devices=True) as image:
        assert image.package_format == "deb"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (None, "was started while its image was worked on, and is paused"),
        (HypervisorUnavailable("libvirt is gone", remedy="Start it."), "libvirt is gone"),
    ],
)
def test_a_guest_that_may_have_been_started_meanwhile_has_its_block_devices_for_itself(
    domain: FakeDomain, fake_guestfish: FakeGuestfish, fault: FleetError | None, words: str
) -> None:
    fake_guestfish.ready()
    domain.on_block_devices = True

    def write() -> None:
        with open_image(domain, uri=URI, block_devices=True) as image:
            domain.be(DomainState.PAUSED)  # as libvirt has a domain that it is about to start
            if fault:
                domain.faults["state"] = fault
            image.files.write("/etc/new", b"")

    with pytest.raises((DomainRunning, HypervisorUnavailable), match=words):
        write()
    assert not (fake_guestfish.root / "etc/new").exists()
    assert "umount-all" not in [call[0] for call in fake_guestfish.calls()]


@pytest.mark.parametrize(("on_block_devices", "read_only"), [(False, False), (True, True)])
def test_a_start_is_nothing_to_a_file_that_is_locked_or_a_copy(
    domain: FakeDomain, fake_guestfish: FakeGuestfish, on_block_devices: bool, read_only: bool
) -> None:
    fake_guestfish.ready()
    domain.on_block_devices = on_block_devices
    with open_image(domain, uri=URI, read_only=read_only, block_devices=True) as image:
        domain.be(DomainState.PAUSED)
        image.files.write("/etc/new", b"")


def test_without_guestfish_it_is_said_before_anything(
    domain: FakeDomain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImageToolsMissing):
        check(domain, uri=URI, shut_off=False)


@pytest.mark.parametrize("read_only", [True, False])
def test_every_disk_is_added_by_its_format(
    domain: FakeDomain, hypervisor: FakeHypervisor, fake_guestfish: FakeGuestfish, read_only: bool
) -> None:
    fake_guestfish.ready()
    domain.disk_formats = ("qcow2", "raw")
    with open_image(domain, uri=URI, read_only=read_only):
        pass
    mode = {"readonly": "true"} if read_only else {}
    assert fake_guestfish.calls("add") == [
        ["add", str(hypervisor.image_directory / f"web1.{kind}"), {"format": kind, **mode}] for kind in ("qcow2", "raw")
    ]
    assert [call[0] for call in fake_guestfish.calls()][-2:] == ["umount-all", "shutdown"]


def test_the_command_for_a_person_opens_the_same_disks(domain: FakeDomain, hypervisor: FakeHypervisor) -> None:
    hypervisor.image_directory.rename(hypervisor.image_directory.with_name("im ages"))
    hypervisor.image_directory = hypervisor.image_directory.with_name("im ages")
    words = shlex.split(virt_rescue(domain, drives_of("web1", parse_definition(domain.xml()))))
    assert words[:4] == ["env", "LIBGUESTFS_BACKEND=direct", "LIBGUESTFS_BACKEND_SETTINGS=force_tcg", "virt-rescue"]
    assert words[4:] == ["--format=qcow2", "-a", str(hypervisor.image_directory / "web1.qcow2"), "-i"]


@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("kind", ["swsuspend", "tuxonice"])
def test_a_hibernated_guest_is_refused_before_anything_is_mounted(
    domain: FakeDomain, fake_guestfish: FakeGuestfish, kind: str, read_only: bool
) -> None:
    fake_guestfish.file_systems = f"/dev/sda1: ext4\n/dev/sda2: {kind}\n"
    fake_guestfish.ready()
    refused = pytest.raises(DomainUnsafe, match="is hibernated: its RAM is on /dev/sda2")
    with refused as raised, open_disks(domain, uri=URI, read_only=read_only):
        pass
    assert "shut it down properly" in raised.value.remedy
    asked = {call[0] for call in fake_guestfish.calls()}
    assert asked == {"add", "run", "list-devices", "list-partitions", "feature-available", "lvs", "vfs-type"}


def test_an_appliance_without_lvm_is_not_asked_for_it(domain: FakeDomain, fake_guestfish: FakeGuestfish) -> None:
    fake_guestfish.answers = {"feature-available": "false\n"}
    fake_guestfish.fails = {"lvs": "feature 'lvm2' is not available in this build of libguestfs"}
    fake_guestfish.ready()
    with open_disks(domain, uri=URI):
        pass


def test_only_a_look_is_had_at_a_domain_that_runs(domain: FakeDomain, fake_guestfish: FakeGuestfish) -> None:
    fake_guestfish.ready()
    domain.be(DomainState.RUNNING)
    with open_image(domain, uri=URI, read_only=True, shut_off=False) as image:
        assert image.files.read("/etc/conf") is None
    with pytest.raises(DomainRunning), open_image(domain, uri=URI, shut_off=False):
        pass


# --- opening it ----------------------------------------------------------------------------------


def test_an_appliance_that_does_not_come_up_is_asked_once_more_to_say_why(
    domain: FakeDomain, fake_guestfish: FakeGuestfish
) -> None:
    fake_guestfish.launch_fails, fake_guestfish.launch_says = 2, 'qemu-system-x86_64: Failed to get "write" lock'
    fake_guestfish.ready()
    why = r"domain 'web1' cannot be opened: .*: Failed to get \"write\" lock"
    with pytest.raises(ImageFailed, match=why), open_image(domain, uri=URI):
        pass
    assert [call[0] for call in fake_guestfish.calls()] == ["add", "run", "verbose", "add", "run"]


def test_an_appliance_that_comes_up_the_second_time_is_good(domain: FakeDomain, fake_guestfish: FakeGuestfish) -> None:
    fake_guestfish.launch_fails = 1
    fake_guestfish.ready()
    with open_image(domain, uri=URI) as image:
        assert image.package_format == "deb"


def set_up(**facts: object) -> Callable[[FakeGuestfish], None]:
    def arrange(fake: FakeGuestfish) -> None:
        for name, value in facts.items():
            setattr(fake, name, value)

    return arrange


@pytest.mark.parametrize(
    ("arrange", "words"),
    [
        (set_up(roots=""), "no system was found"),
        (set_up(roots="", file_systems="/dev/sda1: crypto_LUKS\n"), "no system was found .*: /dev/sda1 is encrypted"),
        (set_up(roots="/dev/sda1\n/dev/sdb1\n"), "has 2 systems"),
        (set_up(system="windows"), "is windows, not Linux"),
        (set_up(mount_points="/: rm -rf\n"), "which is not understood"),
        (set_up(unmountable=["/"]), "cannot be mounted: /$"),
        (
            set_up(
                mount_points="/: /dev/sda1\n/usr: /dev/sda2\n/var/lib: /dev/sda3\n/srv: /dev/sda4\n",
                unmountable=["/usr", "/var/lib", "/srv"],
            ),
            "cannot be mounted: /usr, /var/lib$",
        ),
        (set_up(fails={"inspect-os": "the disks are gone"}), "the disks are gone"),
    ],
)
def test_an_image_without_a_system_to_work_on_is_refused(
    domain: FakeDomain, fake_guestfish: FakeGuestfish, arrange: Callable[[FakeGuestfish], None], words: str
) -> None:
    arrange(fake_guestfish)
    fake_guestfish.ready()
    with pytest.raises(ImageFailed, match=words) as refused, open_image(domain, uri=URI):
        pass
    assert refused.value.remedy


def test_file_systems_are_mounted_from_the_root_on_and_what_the_system_does_without_may_miss(
    domain: FakeDomain, fake_guestfish: FakeGuestfish
) -> None:
    fake_guestfish.mount_points = "/var/log: /dev/sda3\n/srv: /dev/gone\n/: /dev/sda1\n/var: btrfsvol:/dev/sda2/@var\n"
    fake_guestfish.unmountable = ["/srv"]
    fake_guestfish.ready()
    with open_image(domain, uri=URI):
        pass
    assert [call[2] for call in fake_guestfish.calls("mount")] == ["/", "/srv", "/var", "/var/log"]


def test_what_cannot_be_written_out_fails(domain: FakeDomain, fake_guestfish: FakeGuestfish) -> None:
    fake_guestfish.fails = {"umount-all": "target is busy"}
    fake_guestfish.ready()
    with pytest.raises(ImageFailed, match="target is busy"), open_image(domain, uri=URI):
        pass


# --- its files -----------------------------------------------------------------------------------


def test_a_file_is_replaced_as_a_whole_with_its_attributes(domain: FakeDomain, fake_guestfish: FakeGuestfish) -> None:
    fake_guestfish.ready()
    old = fake_guestfish.root / "etc" / "conf"
    old.write_bytes(b"old")
    old.chmod(0o640)
    (fake_guestfish.root / "etc" / "link").symlink_to("/etc/conf")
    with open_image(domain, uri=URI) as image:
        image.files.write("/etc/link", b"new\0\xff")
        assert image.files.read("/etc/link") == b"new\0\xff"
    assert (old.read_bytes(), old.stat().st_mode & 0o777) == (b"new\0\xff", 0o640)
    assert sorted(path.name for path in old.parent.iterdir()) == ["conf", "link"]
    assert (fake_guestfish.root / "etc" / "link").is_symlink()
    written = [call[0] for call in fake_guestfish.calls()]
    start = written.index("rm-f")
    assert written[start : start + 6] == ["rm-f", "upload", "copy-attributes", "sync", "mv", "sync"]


def test_a_file_that_is_new_may_be_like_another_one(domain: FakeDomain, fake_guestfish: FakeGuestfish) -> None:
    fake_guestfish.ready()
    old = fake_guestfish.root / "etc" / "conf"
    old.write_bytes(b"old")
    old.chmod(0o640)
    (fake_guestfish.root / "etc" / "link").symlink_to("/etc/conf")
    with open_image(domain, uri=URI) as image:
        image.files.write("/etc/copy", b"kept", like="/etc/link")
    copy = fake_guestfish.root / "etc" / "copy"
    assert (copy.read_bytes(), copy.stat().st_mode & 0o777) == (b"kept", 0o640)
    assert [call[1] for call in fake_guestfish.calls("copy-attributes")] == ["/etc/conf"]


def test_a_file_is_removed(domain: FakeDomain, fake_guestfish: FakeGuestfish) -> None:
    fake_guestfish.ready()
    (fake_guestfish.root / "etc" / "conf").touch()
    with open_image(domain, uri=URI) as image:
        image.files.remove("/etc/conf")
        assert image.files.read("/etc/conf") is None


def test_a_file_that_is_new_is_labelled_like_its_directory(domain: FakeDomain, fake_guestfish: FakeGuestfish) -> None:
    fake_guestfish.labels = {"/etc": "system_u:object_r:etc_t:s0"}
    fake_guestfish.ready()
    with open_image(domain, uri=URI) as image:
        image.files.write("/etc/qemu/more/qemu-ga.conf", b"[general]\n")
    assert (fake_guestfish.root / "etc/qemu/more/qemu-ga.conf").read_bytes() == b"[general]\n"
    assert (fake_guestfish.root / "etc/qemu/more/qemu-ga.conf").stat().st_mode & 0o777 == 0o644
    for path in ("/etc/qemu", "/etc/qemu/more", "/etc/qemu/more/.qemu-ga.conf.kvm-fleet-new"):
        assert fake_guestfish.label_of(path) == "system_u:object_r:etc_t:s0"


@pytest.mark.parametrize("label", ["a b", "$(x)", 'x"\\x00'])
def test_what_is_no_label_is_not_copied(domain: FakeDomain, fake_guestfish: FakeGuestfish, label: str) -> None:
    fake_guestfish.labels = {"/etc": label}
    fake_guestfish.ready()
    with open_image(domain, uri=URI) as image:
        image.files.write("/etc/new", b"")
    assert fake_guestfish.calls("lsetxattr") == []


def too_long(root: Path) -> None:
    with (root / "etc" / "x").open("wb") as file:
        file.truncate(MAX_FILE + 1)


def a_directory(root: Path) -> None:
    (root / "etc" / "x").mkdir()


def a_fifo(root: Path) -> None:
    os.mkfifo(root / "etc" / "x")


@pytest.mark.parametrize(
    ("arrange", "words"), [(too_long, "more than"), (a_directory, "not a file"), (a_fifo, "not a file")]
)
def test_what_is_no_file_of_settings_is_not_read(
    domain: FakeDomain, fake_guestfish: FakeGuestfish, arrange: Callable[[Path], None], words: str
) -> None:
    fake_guestfish.ready()
    arrange(fake_guestfish.root)
    with pytest.raises(ImageFailed, match=words), open_image(domain, uri=URI) as image:
        image.files.read("/etc/x")
    assert fake_guestfish.calls("download") == []


def test_a_link_to_nothing_is_not_written_to(domain: FakeDomain, fake_guestfish: FakeGuestfish) -> None:
    fake_guestfish.ready()
    (fake_guestfish.root / "etc" / "x").symlink_to("/nowhere")
    with open_image(domain, uri=URI) as image:
        assert image.files.read("/etc/x") is None
        with pytest.raises(ImageFailed, match="symbolic link to nothing"):
            image.files.write("/etc/x", b"")


def test_names_are_told_whatever_they_are(domain: FakeDomain, fake_guestfish: FakeGuestfish) -> None:
    fake_guestfish.ready()
    nasty = ["$(reboot)", 'a "b"', "new\nline\n", os.fsdecode(b"\xff\xfe")]
    for name in nasty:
        (fake_guestfish.root / "etc" / name).write_bytes(os.fsencode(name))
    with open_image(domain, uri=URI) as image:
        assert image.files.names("/etc") == sorted(nasty)
        assert image.files.names("/nowhere") == ()
        for name in nasty:
            assert image.files.read(f"/etc/{name}") == os.fsencode(name)
            image.files.write(f"/etc/{name}", b"new")
    assert {path.read_bytes() for path in (fake_guestfish.root / "etc").iterdir()} == {b"new"}
    assert len(list((fake_guestfish.root / "etc").iterdir())) == len(nasty)


# --- scripts -------------------------------------------------------------------------------------


def test_a_script_is_run_by_its_file_and_returns_what_it_prints(
    domain: FakeDomain, fake_guestfish: FakeGuestfish
) -> None:
    fake_guestfish.ready()
    script = "echo \"a  b\" 'c'\n" + "# long\n" * 5000 + "echo oops >&2"
    with open_image(domain, uri=URI) as image:
        assert [image.run(script), image.run("cat")] == ["a  b c\n", ""]
    assert len([call for call in fake_guestfish.calls("sh") if call[1].startswith("mount -t tmpfs")]) == 1


def test_a_script_that_fails_tells_the_end_of_what_it_printed(
    domain: FakeDomain, fake_guestfish: FakeGuestfish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_image, "MAX_OUTPUT", 10)
    fake_guestfish.ready()
    with open_image(domain, uri=URI) as image:
        with pytest.raises(ImageFailed, match="the script returned 3: oops") as failed:
            image.run("echo 12345678901234; echo oops >&2; exit 3")
        assert image.run("seq 10").endswith("9\n10\n")
    assert failed.value.evidence == {"rc": "3", "stdout": ["678901234"], "stderr": ["oops"]}


@pytest.mark.parametrize("network", [True, False])
def test_the_appliance_has_a_network_only_where_one_is_asked_for(
    domain: FakeDomain, fake_guestfish: FakeGuestfish, network: bool
) -> None:
    fake_guestfish.launch_fails = 1
    fake_guestfish.ready()
    with open_disks(domain, uri=URI, network=network) as disks:
        disks.mount()
    assert fake_guestfish.calls("set-network") == [["set-network", "true", {}]] * (2 if network else 0)


# --- labels --------------------------------------------------------------------------------------

ENFORCING = "# comment\nSELINUX=enforcing\n#SELINUXTYPE=mls\nSELINUXTYPE = minimum\n"


@pytest.mark.parametrize(
    ("config", "policy"),
    [
        (ENFORCING, "minimum"),
        ("SELINUX=permissive\n", "targeted"),
        ("SELINUX=disabled\nSELINUXTYPE=targeted\n", ""),
        ("SELINUX=Disabled\n", ""),
        ("#SELINUX=enforcing\n", ""),
        ("SELINUX=enforcing\nSELINUXTYPE=../../etc/passwd\n", "targeted"),
        ("", ""),
    ],
)
def test_the_policy_is_what_the_system_is_set_to(config: str, policy: str) -> None:
    assert selinux_policy(config.encode()) == policy


def enforcing(fake: FakeGuestfish) -> Path:
    """Give the image SELinux. Returns the file by which its system is told to label everything when it boots."""
    config = fake.root / "etc" / "selinux" / "config"
    config.parent.mkdir(parents=True)
    config.write_text(ENFORCING, encoding="ascii")
    return fake.root / ".autorelabel"


def test_what_programs_write_into_a_system_with_selinux_is_labelled_at_the_end(
    domain: FakeDomain, fake_guestfish: FakeGuestfish
) -> None:
    fake_guestfish.ready()
    at_boot = enforcing(fake_guestfish)
    with open_image(domain, uri=URI) as image:
        image.run(f"test -e {at_boot} && rm {fake_guestfish.root}/etc/selinux/config")
        image.run("true")
        assert (image.selinux_relabel, at_boot.exists()) == (Relabel.AT_BOOT, True)
    assert (image.selinux_relabel, at_boot.exists()) == (Relabel.DONE, False)
    contexts = "/etc/selinux/minimum/contexts/files/file_contexts"
    assert fake_guestfish.calls("selinux-relabel") == [["selinux-relabel", contexts, "/", {}]]


def test_what_cannot_be_labelled_here_is_by_the_guest_when_it_boots(
    domain: FakeDomain, fake_guestfish: FakeGuestfish
) -> None:
    fake_guestfish.fails = {"selinux-relabel": "feature 'selinuxrelabel' is not available in this"}
    fake_guestfish.ready()
    at_boot = enforcing(fake_guestfish)
    with open_image(domain, uri=URI) as image:
        image.run("true")
    assert (image.selinux_relabel, at_boot.exists()) == (Relabel.AT_BOOT, True)


def test_what_a_script_leaves_that_fails_is_labelled_when_the_guest_boots(
    domain: FakeDomain, fake_guestfish: FakeGuestfish
) -> None:
    fake_guestfish.ready()
    at_boot = enforcing(fake_guestfish)
    with pytest.raises(ImageFailed), open_image(domain, uri=URI) as image:
        image.run("exit 3")
    assert at_boot.exists()
    assert fake_guestfish.calls("selinux-relabel") == []


def test_labels_are_left_alone_where_nothing_ran_or_selinux_is_off(
    domain: FakeDomain, fake_guestfish: FakeGuestfish
) -> None:
    fake_guestfish.ready()
    with open_image(domain, uri=URI) as image:
        image.run("true")
    at_boot = enforcing(fake_guestfish)
    with open_image(domain, uri=URI) as image:
        image.files.write("/etc/new", b"")
    assert (image.selinux_relabel, at_boot.exists()) == (None, False)
    assert fake_guestfish.calls("touch", "selinux-relabel") == []
