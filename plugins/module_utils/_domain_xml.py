# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a domain's XML says that the collection needs to know."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from xml.etree import ElementTree

AGENT_CHANNEL = "org.qemu.guest_agent.0"


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


@dataclass(frozen=True)
class Definition:
    """The parts of a domain's XML that decide what can be done with it."""

    emulator: str | None
    channel: ChannelState
    serial_bus: bool
    """Whether there is a virtio-serial controller, which channels are plugged into."""
    writable_disks: tuple[Disk, ...]
    pflash_firmware: bool
    emulated: bool
    """Whether the guest's processors are emulated, rather than run by KVM."""
    restarts_on_poweroff: bool
    """Whether its QEMU process goes on, with a guest that boots again, when the guest powers off."""


def parse_definition(xml: str) -> Definition:
    """Read a domain's XML as libvirt prints it."""
    root = ElementTree.fromstring(xml)
    emulator = root.findtext("./devices/emulator")
    loader = root.find("./os/loader")
    return Definition(
        emulator=emulator.strip() if emulator else None,
        channel=_channel_state(root),
        serial_bus=root.find("./devices/controller[@type='virtio-serial']") is not None,
        writable_disks=tuple(_writable_disks(root)),
        pflash_firmware=loader is not None and loader.get("type") == "pflash",
        emulated=root.get("type") == "qemu",
        restarts_on_poweroff=root.findtext("on_poweroff") == "restart",
    )


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
        if disk.get("device", "disk") not in ("disk", "lun") or disk.find("readonly") is not None:
            continue
        driver, source, target = disk.find("driver"), disk.find("source"), disk.find("target")
        disks.append(
            Disk(
                target="?" if target is None else target.get("dev", "?"),
                # libvirt's own default: a disk without a stated format is raw.
                format="raw" if driver is None else driver.get("type", "raw"),
                file=None if source is None else source.get("file"),
                device=None if source is None else source.get("dev"),
                kind=disk.get("type", "file"),
                encrypted=disk.find("encryption") is not None or disk.find("source/encryption") is not None,
            )
        )
    return disks
