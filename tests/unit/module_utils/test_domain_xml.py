# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is read from a domain's XML."""

from __future__ import annotations

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._domain_xml import (
    ChannelState,
    Disk,
    parse_definition,
    pending_edits,
)


def domain(devices: str = "", os: str = "") -> str:
    return f"<domain type='kvm'><os><type>hvm</type>{os}</os><devices>{devices}</devices></domain>"


def channel(name: str, state: str = "") -> str:
    return f"<channel type='unix'><target type='virtio' name='{name}'{state}/></channel>"


AGENT = "org.qemu.guest_agent.0"


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ("", ChannelState.ABSENT),
        (channel("com.redhat.spice.0", " state='connected'"), ChannelState.ABSENT),
        ("<channel type='pty'/>", ChannelState.ABSENT),
        (channel(AGENT), ChannelState.UNKNOWN),
        (channel(AGENT, " state='connected'"), ChannelState.CONNECTED),
        (channel(AGENT, " state='disconnected'"), ChannelState.DISCONNECTED),
        (channel(AGENT, " state='something-new'"), ChannelState.UNKNOWN),
        (channel("com.redhat.spice.0") + channel(AGENT, " state='connected'"), ChannelState.CONNECTED),
    ],
)
def test_the_agents_channel_is_found_among_others(devices: str, expected: ChannelState) -> None:
    assert parse_definition(domain(devices)).channel is expected


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ("", False),
        ("<controller type='pci' index='0' model='pci-root'/>", False),
        ("<controller type='pci' index='0' model='pci-root'/><controller type='virtio-serial' index='0'/>", True),
        (channel(AGENT), False),
    ],
)
def test_what_channels_are_plugged_into_is_read(devices: str, expected: bool) -> None:
    assert parse_definition(domain(devices)).serial_bus is expected


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ("", None),
        ("<emulator>/usr/bin/qemu-system-x86_64</emulator>", "/usr/bin/qemu-system-x86_64"),
        ("<emulator>\n  /usr/bin/kvm\n</emulator>", "/usr/bin/kvm"),
        ("<emulator/>", None),
    ],
)
def test_the_emulator_is_read(devices: str, expected: str | None) -> None:
    assert parse_definition(domain(devices)).emulator == expected


@pytest.mark.parametrize(("kind", "expected"), [("kvm", False), ("qemu", True)])
def test_a_guest_that_is_emulated_is_told_from_one_of_kvm(kind: str, expected: bool) -> None:
    assert parse_definition(f"<domain type='{kind}'/>").emulated is expected


@pytest.mark.parametrize(
    ("os", "expected"),
    [
        ("", False),
        ("<loader>/usr/lib/xen/boot/hvmloader</loader>", False),
        ("<loader type='rom'>/usr/share/seabios/bios.bin</loader>", False),
        ("<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>", True),
    ],
)
def test_uefi_firmware_is_told_from_others(os: str, expected: bool) -> None:
    assert parse_definition(domain(os=os)).pflash_firmware is expected


def test_uefi_firmware_that_libvirt_is_yet_to_choose_is_no_less() -> None:
    assert parse_definition("<domain><os firmware='efi'><type>hvm</type></os></domain>").pflash_firmware
    assert not parse_definition("<domain><os firmware='bios'><type>hvm</type></os></domain>").pflash_firmware


def test_a_tpm_is_read_and_one_of_the_hypervisors_own_cannot_be_saved() -> None:
    def tpm(backend: str) -> tuple[bool, tuple[str, ...]]:
        found = parse_definition(domain(f"<tpm model='tpm-crb'><backend type='{backend}'/></tpm>"))
        return found.tpm, found.unsaveable

    assert tpm("emulator") == (True, ())
    assert tpm("passthrough") == (True, ("tpm passthrough",))
    assert not parse_definition(domain()).tpm


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (
            (
                "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/a &amp; b.qcow2'/>"
                "<target dev='vda'/></disk>"
            ),
            [Disk("vda", "qcow2", "/a & b.qcow2")],
        ),
        (
            (
                "<disk type='block' device='lun'><driver name='qemu' type='raw'/><source dev='/dev/vg/lv'/>"
                "<target dev='sda'/></disk>"
            ),
            [Disk("sda", "raw", None, device="/dev/vg/lv", kind="block")],
        ),
        (
            "<disk type='network'><driver type='raw'/><source protocol='rbd' name='pool/x'/><target dev='vdb'/></disk>",
            [Disk("vdb", "raw", None, kind="network")],
        ),
        ("<disk type='file'><target dev='vdc'/></disk>", [Disk("vdc", "raw", None)]),
        (
            "<disk type='file'><source file='/x'><encryption format='luks'/></source><target dev='vdc'/></disk>",
            [Disk("vdc", "raw", "/x", encrypted=True)],
        ),
        ("<disk type='file'><driver name='qemu'/><source file='/x'/></disk>", [Disk("?", "raw", "/x")]),
        ("<disk type='file' device='cdrom'><source file='/x.iso'/><target dev='sdb'/><readonly/></disk>", []),
        ("<disk type='file' device='floppy'><source file='/x'/><target dev='fda'/></disk>", []),
        ("<disk type='file' device='disk'><source file='/x'/><target dev='vdd'/><readonly/></disk>", []),
    ],
    ids=["qcow2", "lun", "network", "no format", "encrypted", "no target", "cdrom", "floppy", "read-only"],
)
def test_writable_disks_are_listed_and_others_are_not(device: str, expected: list[Disk]) -> None:
    assert parse_definition(domain(device)).writable_disks == tuple(expected)


def test_a_domain_tells_its_system_as_virt_install_has_noted_it() -> None:
    xml = (
        "<domain type='kvm'><metadata><libosinfo:libosinfo "
        "xmlns:libosinfo='http://libosinfo.org/xmlns/libvirt/domain/1.0'>"
        "<libosinfo:os id='http://debian.org/debian/12'/></libosinfo:libosinfo></metadata></domain>"
    )
    assert parse_definition(xml).os == "http://debian.org/debian/12"
    assert parse_definition("<domain type='kvm'><metadata/></domain>").os is None


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ("<disk type='file'><target dev='vda'/></disk><hostdev mode='subsystem' type='usb'/>", ()),
        ("<hostdev mode='subsystem' type='pci'/><hostdev type='mdev'/>", ("hostdev pci", "hostdev mdev")),
        ("<interface type='hostdev'/><interface type='bridge'/>", ("interface hostdev",)),
        ("<interface type='vdpa'/><shmem name='s'/>", ("interface vdpa", "shmem s")),
        ("<filesystem><driver type='virtiofs'/><target dir='t'/></filesystem>", ("filesystem virtiofs t",)),
        ("<filesystem type='mount'><source dir='/s'/></filesystem>", ("filesystem path ?",)),
    ],
)
def test_devices_whose_state_is_outside_of_qemu_are_named(devices: str, expected: tuple[str, ...]) -> None:
    assert parse_definition(domain(devices)).unsaveable == expected


LIVE = """\
<domain type='qemu' id='7'><memory unit='KiB'>524288</memory><currentMemory unit='KiB'>262144</currentMemory>
<vcpu placement='static'>1</vcpu><resource><partition>/machine</partition></resource>
<os><type machine='pc-i440fx-7.2'>hvm</type></os><cpu mode='custom' match='exact' check='full'/>
<devices><disk type='file'><source file='/d' index='1'/><target dev='vda'/><alias name='virtio-disk0'/></disk>
<interface type='network'><mac address='52:54:00:00:00:01'/><target dev='vnet3'/></interface>
<channel type='unix'><source mode='bind' path='/run/x'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
</devices></domain>"""
PERSISTENT = """\
<domain type='qemu'><memory unit='KiB'>524288</memory><currentMemory unit='KiB'>524288</currentMemory>
<vcpu placement='static'>1</vcpu><os><type machine='pc-i440fx-7.2'>hvm</type></os><cpu mode='host-model'/>
<devices><disk type='file'><source file='/d'/><target dev='vda'/></disk>
<interface type='network'><mac address='52:54:00:00:00:01'/></interface>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel></devices></domain>"""


@pytest.mark.parametrize(
    ("edit", "to", "expected"),
    [
        ("", "", ()),
        (">1</vcpu>", ">2</vcpu>", ("vcpu",)),
        (">524288</memory>", ">1048576</memory>", ("memory",)),
        ("pc-i440fx-7.2", "pc-i440fx-8.0", ("machine",)),
        ("dev='vda'", "dev='vdb'", ("disk vda", "disk vdb")),
        ("00:01'/>", "00:02'/>", ("interface 52:54:00:00:00:01", "interface 52:54:00:00:00:02")),
        ("</devices>", "<hostdev type='pci'/></devices>", ("hostdev 0",)),
    ],
)
def test_edits_that_wait_for_a_cold_start_are_named(edit: str, to: str, expected: tuple[str, ...]) -> None:
    assert pending_edits(LIVE, PERSISTENT.replace(edit, to) if edit else PERSISTENT) == expected
