# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The domain XML of a lab guest, and how to tell one from another's."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lab.initrd import PACKAGE_MANAGER
from lab.places import EMULATOR, METADATA_NAMESPACE, console_path, disk_path, library_directory, private_emulator
from lab.process import Process

if TYPE_CHECKING:
    from lab.image import Image

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
MARK = f"{{{METADATA_NAMESPACE}}}guest"
# Security drivers that confine QEMU by profiles or types in which a second emulator is unknown.
CONFINING_MODELS = ("apparmor", "selinux")

ET.register_namespace("lab", METADATA_NAMESPACE)
ET.register_namespace("qemu", QEMU_NAMESPACE)


@dataclass(frozen=True)
class GuestSpec:
    """What a guest is to be. The defaults are an ordinary guest with a working agent."""

    name: str
    memory_mib: int = 512
    disk_format: str = "qcow2"
    """`qcow2`: an overlay on the image; `raw`: a full copy, which takes no internal snapshot."""
    agent_channel: bool = True
    """Whether there is a virtio channel for the agent at all."""
    serial_bus: bool = False
    """Whether there is a virtio-serial controller even without a channel, so that one can be plugged in."""
    agent_service: bool = True
    """Whether the agent is started inside the guest."""
    private_emulator: bool = False
    """Whether it runs a copy of QEMU that no other guest runs: then it can drift alone."""
    private_library: bool = False
    """Whether QEMU maps a copy of a library that no other guest's maps. Taints the domain."""
    package_manager: str = "apt"
    """Whose system its os-release says that it is: `apt`: the host's distribution; `dnf`: Fedora; `zypper`: openSUSE.

    In every guest all three have packages to upgrade, each its own."""
    owner: Process | None = None
    """The process, a test session, without which the guest is abandoned; none: it is to stay."""

    @property
    def reachable(self) -> bool:
        """Whether its agent can ever answer."""
        return self.agent_channel and self.agent_service


@dataclass(frozen=True)
class Machine:
    """What the host gives every guest."""

    accelerator: str
    """`kvm`, or `qemu` for emulation: the domain's type."""
    security_models: tuple[str, ...] = ()
    """libvirt's active security drivers."""


def parse_security_models(capabilities: str) -> tuple[str, ...]:
    """The active security drivers in a host's capabilities XML."""
    return tuple(model.text or "" for model in ET.fromstring(capabilities).findall("./host/secmodel/model"))


def parse_spec(xml: str) -> GuestSpec | None:
    """What a domain was asked to be, from the lab's mark; None if the lab did not make it.

    The mark alone counts: a domain named like one of the lab's is somebody else's without it.
    """
    root = ET.fromstring(xml)
    mark = root.find(f"./metadata/{MARK}")
    if mark is None:
        return None
    pid, _colon, started = mark.get("owner", "").partition(":")
    return GuestSpec(
        name=root.findtext("name", ""),
        memory_mib=int(mark.get("memory-mib", "0")),
        disk_format=mark.get("disk-format", ""),
        agent_channel=mark.get("agent-channel") == "yes",
        serial_bus=mark.get("serial-bus") == "yes",
        agent_service=mark.get("agent-service") == "yes",
        private_emulator=mark.get("private-emulator") == "yes",
        private_library=mark.get("private-library") == "yes",
        package_manager=mark.get("package-manager", ""),
        owner=Process(int(pid), int(started)) if pid else None,
    )


def render(spec: GuestSpec, uuid: str, image: Image, machine: Machine) -> str:
    """The whole domain XML of a guest."""
    domain = ET.Element("domain", type=machine.accelerator)
    _add(domain, "name", spec.name)
    _add(domain, "uuid", uuid)
    _mark(ET.SubElement(domain, "metadata"), spec)
    _add(domain, "memory", str(spec.memory_mib), unit="MiB")
    _add(domain, "vcpu", "1")
    _boot(ET.SubElement(domain, "os"), spec, image)
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    if machine.accelerator == "kvm":
        ET.SubElement(domain, "cpu", mode="host-passthrough")
    ET.SubElement(domain, "clock", offset="utc")
    _devices(ET.SubElement(domain, "devices"), spec, uuid)
    for model in machine.security_models:
        if model in CONFINING_MODELS:
            ET.SubElement(domain, "seclabel", type="none", model=model)
    if spec.private_library:
        variable = {"name": "LD_LIBRARY_PATH", "value": str(library_directory(uuid))}
        ET.SubElement(ET.SubElement(domain, f"{{{QEMU_NAMESPACE}}}commandline"), f"{{{QEMU_NAMESPACE}}}env", variable)
    return ET.tostring(domain, encoding="unicode")


def _add(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text


def _mark(metadata: ET.Element, spec: GuestSpec) -> None:
    attributes = {
        "memory-mib": str(spec.memory_mib),
        "disk-format": spec.disk_format,
        "agent-channel": _yes_no(spec.agent_channel),
        "serial-bus": _yes_no(spec.serial_bus),
        "agent-service": _yes_no(spec.agent_service),
        "private-emulator": _yes_no(spec.private_emulator),
        "private-library": _yes_no(spec.private_library),
        "package-manager": spec.package_manager,
        "owner": f"{spec.owner.pid}:{spec.owner.started}" if spec.owner else "",
    }
    ET.SubElement(metadata, MARK, attributes)


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"


def _boot(os: ET.Element, spec: GuestSpec, image: Image) -> None:
    _add(os, "type", "hvm", arch="x86_64", machine="pc")
    _add(os, "kernel", str(image.kernel))
    _add(os, "initrd", str(image.initrd))
    # mitigations=off: they cost an emulated processor much and protect nothing here.
    words = ["console=ttyS0", "quiet", "mitigations=off"]
    if not spec.agent_service:
        words.append("systemd.mask=qemu-guest-agent.service")
    if spec.package_manager != "apt":
        words.append(f"{PACKAGE_MANAGER}={spec.package_manager}")
    _add(os, "cmdline", " ".join(words))


def _devices(devices: ET.Element, spec: GuestSpec, uuid: str) -> None:
    _add(devices, "emulator", str(private_emulator(uuid) if spec.private_emulator else EMULATOR))
    disk = ET.SubElement(devices, "disk", type="file", device="disk")
    # unsafe: a guest's disk need not survive its host's power, and flushes cost seconds.
    ET.SubElement(disk, "driver", name="qemu", type=spec.disk_format, cache="unsafe")
    ET.SubElement(disk, "source", file=str(disk_path(uuid)))
    ET.SubElement(disk, "target", dev="vda", bus="virtio")
    serial = ET.SubElement(devices, "serial", type="pty")
    ET.SubElement(serial, "log", file=str(console_path(uuid)), append="on")
    if spec.agent_channel:
        channel = ET.SubElement(devices, "channel", type="unix")
        ET.SubElement(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    if spec.serial_bus:
        ET.SubElement(devices, "controller", type="virtio-serial", index="0")
    random = ET.SubElement(devices, "rng", model="virtio")
    _add(random, "backend", "/dev/urandom", model="random")
    ET.SubElement(devices, "controller", type="usb", model="none")
    ET.SubElement(devices, "memballoon", model="none")
