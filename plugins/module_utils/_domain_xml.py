# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a domain's XML says that the collection needs to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any
from xml.etree import ElementTree

AGENT_CHANNEL = "org.qemu.guest_agent.0"
_LIBOSINFO = "{http://libosinfo.org/xmlns/libvirt/domain/1.0}"


class ChannelState(str, Enum):
    """What the hypervisor sees of the guest agent's channel, without asking the agent anything."""

    ABSENT = "absent"
    """The domain has no such channel."""
    DISCONNECTED = "disconnected"
    """Nobody in the guest has opened the channel."""
    CONNECTED = "connected"
    """A process in the guest holds the channel open."""
    UNKNOWN = "unknown"
    """The domain is not running, or its hypervisor does not say."""


@dataclass(frozen=True)
class Disk:
    """A disk that the guest can write to.

    ``file`` is the image on the hypervisor, ``device`` the block device there, None where it is none. ``kind`` is what
    libvirt calls its type: file, block, network, volume, ... ``encrypted`` is by QEMU, not by the guest.
    """

    target: str
    format: str
    file: str | None
    device: str | None = None
    kind: str = "file"
    encrypted: bool = False
    shared: bool = False
    """Whether other guests write to it, too."""


@dataclass(frozen=True)
class Nvram:
    """The file that has a guest's UEFI variables."""

    file: str
    format: str


@dataclass(frozen=True)
class Definition:
    """The parts of a domain's XML that decide what can be done with it."""

    emulator: str | None
    channel: ChannelState
    serial_bus: bool
    """Whether there is a virtio-serial controller, which channels are plugged into."""
    writable_disks: tuple[Disk, ...]
    pflash_firmware: bool
    """Whether it boots from UEFI firmware in flash, beside whose code there is a file of variables, the NVRAM."""
    emulated: bool
    """Whether the guest's processors are emulated, rather than run by KVM."""
    restarts_on_poweroff: bool
    """Whether its QEMU process goes on, with a guest that boots again, when the guest powers off."""
    os: str | None = None
    """The operating system that whoever defined the domain has noted in its metadata for libosinfo."""
    unsaveable: tuple[str, ...] = ()
    """The devices with which a guest's RAM cannot be saved, such as ``hostdev pci``."""
    tpm: bool = False
    """Whether it has a TPM. An emulated one's state is saved with the RAM, and is in none of the disks."""
    other_disks: tuple[str, ...] = ()
    """The targets of the disks that the guest cannot write to, or not as to a disk."""
    nvram: Nvram | None = None
    """The file of its UEFI variables, where it has one and that is told."""


def parse_definition(xml: str) -> Definition:
    """Read a domain's XML as libvirt prints it."""
    root = ElementTree.fromstring(xml)
    emulator = root.findtext("./devices/emulator")
    chosen_efi, loader = root.find("./os[@firmware='efi']"), root.find("./os/loader")
    system = root.find(f"./metadata/{_LIBOSINFO}libosinfo/{_LIBOSINFO}os")
    return Definition(
        emulator=emulator.strip() if emulator else None,
        channel=_channel_state(root),
        serial_bus=root.find("./devices/controller[@type='virtio-serial']") is not None,
        writable_disks=tuple(_writable_disks(root)),
        # Where libvirt is to choose the firmware, a domain that is off may have no loader (as in libvirt 9.0).
        pflash_firmware=chosen_efi is not None or (loader is not None and loader.get("type") == "pflash"),
        emulated=root.get("type") == "qemu",
        restarts_on_poweroff=root.findtext("on_poweroff") == "restart",
        os=None if system is None else system.get("id"),
        unsaveable=tuple(_unsaveable(root)),
        tpm=root.find("./devices/tpm") is not None,
        other_disks=tuple(_target(disk) for disk in root.findall("./devices/disk") if not _is_writable(disk)),
        nvram=_nvram(root),
    )


def _nvram(root: ElementTree.Element) -> Nvram | None:
    nvram = root.find("./os/nvram")
    if nvram is None:
        return None
    source = nvram.find("source")
    file = (nvram.text or "").strip() if source is None else source.get("file")
    return Nvram(file, nvram.get("format", "raw")) if file else None


def _unsaveable(root: ElementTree.Element) -> list[str]:
    """What has a state outside of QEMU. libvirt lets a USB device go, and takes it up again."""
    found = [f"hostdev {device.get('type', '?')}" for device in root.findall("./devices/hostdev")]
    found = [name for name in found if name != "hostdev usb"]
    found += [f"interface {device.get('type')}" for device in root.findall("./devices/interface[@type='hostdev']")]
    found += [f"interface {device.get('type')}" for device in root.findall("./devices/interface[@type='vdpa']")]
    found += ["tpm passthrough" for _device in root.findall("./devices/tpm/backend[@type='passthrough']")]
    found += [f"shmem {device.get('name', '?')}" for device in root.findall("./devices/shmem")]
    for device in root.findall("./devices/filesystem"):
        driver, target = device.find("driver"), device.find("target")
        kind = "path" if driver is None else driver.get("type", "path")
        found.append(f"filesystem {kind} {'?' if target is None else target.get('dir', '?')}")
    return found


_PROCESSOR_PARTS = ("model", "vendor", "maxphysaddr", "feature")
"""What a processor is, and not how many of them there are."""


@dataclass(frozen=True)
class Kind:
    """What QEMU has to start for a guest. ``cpu`` is XML, empty where the domain leaves that to libvirt."""

    virtualization: str
    emulator: str | None
    architecture: str
    machine: str
    cpu: str

    @property
    def processor(self) -> str:
        """The processor's name: its model, or how it follows from the hypervisor's."""
        root = ElementTree.fromstring(self.cpu or "<cpu/>")
        return str(root.findtext("model") or root.get("mode", ""))

    def facts(self) -> dict[str, Any]:
        """As results and evidence have it."""
        return {
            "virtualization": self.virtualization,
            "emulator": self.emulator,
            "architecture": self.architecture,
            "machine": self.machine,
            "processor": self.processor,
        }


def kind_of(xml: str) -> Kind:
    """What a domain's definition asks of QEMU."""
    root = ElementTree.fromstring(xml)
    kind, cpu = root.find("./os/type"), root.find("cpu")
    attributes = {} if kind is None else kind.attrib
    emulator = root.findtext("./devices/emulator")
    return Kind(
        virtualization=root.get("type", ""),
        emulator=emulator.strip() if emulator else None,
        architecture=attributes.get("arch", ""),
        machine=attributes.get("machine", ""),
        cpu="" if cpu is None else _processor(cpu),
    )


def _processor(cpu: ElementTree.Element) -> str:
    bare = ElementTree.Element("cpu", cpu.attrib)
    bare.extend(part for part in cpu if part.tag in _PROCESSOR_PARTS)
    for part in bare.iter():
        part.tail = None
    return ElementTree.tostring(bare, encoding="unicode") if bare.attrib or len(bare) else ""


def pending_edits(live: str, persistent: str) -> tuple[str, ...]:
    """What the next cold start would change: parts of the two definitions that tell a guest's size and its devices.

    The others differ without anybody's doing, as the processor does once libvirt has written out what it stands for.
    """
    one, other = (_size_and_devices(ElementTree.fromstring(xml)) for xml in (live, persistent))
    return tuple(sorted({part.partition("=")[0] for part in one ^ other}))


def _size_and_devices(root: ElementTree.Element) -> set[str]:
    kind = root.find("./os/type")
    found = {
        f"memory={root.findtext('memory', '')}",
        f"vcpu={root.findtext('vcpu', '')}",
        f"machine={'' if kind is None else kind.get('machine', '')}",
    }
    for tag in ("disk", "interface", "hostdev", "filesystem", "channel", "tpm", "graphics", "video", "watchdog"):
        for number, device in enumerate(root.findall(f"./devices/{tag}")):
            target, mac = device.find("target"), device.find("mac")
            names = [] if target is None or tag == "interface" else [target.get(key) for key in ("dev", "name", "dir")]
            names += [] if mac is None else [mac.get("address")]
            found.add(f"{tag} {next((name for name in names if name), number)}")
    return found


def _channel_state(root: ElementTree.Element) -> ChannelState:
    for target in root.findall("./devices/channel/target"):
        if target.get("name") == AGENT_CHANNEL:
            try:
                return ChannelState(target.get("state", ChannelState.UNKNOWN.value))
            except ValueError:
                return ChannelState.UNKNOWN
    return ChannelState.ABSENT


def _writable_disks(root: ElementTree.Element) -> list[Disk]:
    disks = []
    for disk in root.findall("./devices/disk"):
        if not _is_writable(disk):
            continue
        driver, source = disk.find("driver"), disk.find("source")
        disks.append(
            Disk(
                target=_target(disk),
                # libvirt's own default: a disk without a stated format is raw.
                format="raw" if driver is None else driver.get("type", "raw"),
                file=None if source is None else source.get("file"),
                device=None if source is None else source.get("dev"),
                kind=disk.get("type", "file"),
                encrypted=disk.find("encryption") is not None or disk.find("source/encryption") is not None,
                shared=disk.find("shareable") is not None,
            )
        )
    return disks


def _is_writable(disk: ElementTree.Element) -> bool:
    return disk.get("device", "disk") in ("disk", "lun") and disk.find("readonly") is None


def _target(disk: ElementTree.Element) -> str:
    target = disk.find("target")
    return "?" if target is None else target.get("dev", "?")


def files_of_disks(xml: str) -> frozenset[str]:
    """The files that the disks of a definition name, those that it names below them included."""
    sources = (
        source for disk in ElementTree.fromstring(xml).findall("./devices/disk") for source in disk.iter("source")
    )
    return frozenset(file for file in (source.get("file") for source in sources) if file)


def disk_on(xml: str, target: str, file: str, image_format: str) -> str:
    """The disk of this target, as the definition has it but for its image. What is below that, libvirt finds out."""
    disk = next(disk for disk in ElementTree.fromstring(xml).findall("./devices/disk") if _target(disk) == target)
    put_on(disk, file, image_format)
    return ElementTree.tostring(disk, encoding="unicode")


def disks_on_layers(xml: str, layers: Mapping[str, str]) -> str:
    """The definition with these disks, by their targets, on these qcow2 files."""
    root = ElementTree.fromstring(xml)
    for disk in root.findall("./devices/disk"):
        if _target(disk) in layers:
            put_on(disk, layers[_target(disk)], "qcow2")
    return ElementTree.tostring(root, encoding="unicode")


def put_on(disk: ElementTree.Element, file: str, image_format: str) -> None:
    """Have a disk be on another image; what is below that, libvirt finds out."""
    source, driver, below = disk.find("source"), disk.find("driver"), disk.find("backingStore")
    if source is None:
        source = ElementTree.SubElement(disk, "source")
    if driver is None:
        driver = ElementTree.SubElement(disk, "driver", name="qemu")
    source.attrib.pop("index", None)
    source.set("file", file)
    driver.set("type", image_format)
    if below is not None:
        disk.remove(below)
