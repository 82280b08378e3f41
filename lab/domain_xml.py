# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The domain XML of a lab guest, and how to tell one from another's."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lab.initrd import PACKAGE_MANAGER
from lab.places import METADATA_NAMESPACE, OVMF
from lab.process import Process
from lab.tree import SSH_UNIT

if TYPE_CHECKING:
    from pathlib import Path

    from lab.image import Image
    from lab.places import Place

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
MARK = f"{{{METADATA_NAMESPACE}}}guest"
# Far above those that libvirt gives to the devices it knows.
NETWORK_SLOT = "0x1e"
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
    second_disk: str = ""
    """The format of a small empty disk, vdb: `qcow2` or `raw`; empty: there is none."""
    firmware: str = "bios"
    """`uefi`: OVMF from read-only flash, with variables of its own (NVRAM) in a raw file. It boots the same kernel."""
    tpm: bool = False
    """Whether it has a TPM, which is a process of its own beside QEMU, swtpm."""
    own_disk: bool = False
    """Whether its disk is in a folder that its hypervisor has for itself, beside those of other hypervisors' guests."""
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
    ssh_port: int = 0
    """The port of the host's loopback that leads to its sshd; 0: it has neither sshd nor network. Taints the domain."""
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
        second_disk=mark.get("second-disk", ""),
        firmware=mark.get("firmware", ""),
        tpm=mark.get("tpm") == "yes",
        own_disk=mark.get("own-disk") == "yes",
        agent_channel=mark.get("agent-channel") == "yes",
        serial_bus=mark.get("serial-bus") == "yes",
        agent_service=mark.get("agent-service") == "yes",
        private_emulator=mark.get("private-emulator") == "yes",
        private_library=mark.get("private-library") == "yes",
        package_manager=mark.get("package-manager", ""),
        ssh_port=int(mark.get("ssh-port", "0")),
        owner=Process(int(pid), int(started)) if pid else None,
    )


def render(spec: GuestSpec, uuid: str, image: Image, machine: Machine, place: Place) -> str:
    """The whole domain XML of a guest."""
    domain = ET.Element("domain", type=machine.accelerator)
    _add(domain, "name", spec.name)
    _add(domain, "uuid", uuid)
    _mark(ET.SubElement(domain, "metadata"), spec)
    _add(domain, "memory", str(spec.memory_mib), unit="MiB")
    _add(domain, "vcpu", "1")
    _boot(ET.SubElement(domain, "os"), spec, image, place.nvram(uuid))
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    if machine.accelerator == "kvm":
        ET.SubElement(domain, "cpu", mode="host-passthrough")
    ET.SubElement(domain, "clock", offset="utc")
    _devices(ET.SubElement(domain, "devices"), spec, uuid, place)
    for model in machine.security_models:
        if model in CONFINING_MODELS:
            ET.SubElement(domain, "seclabel", type="none", model=model)
    if spec.ssh_port or spec.private_library:
        libraries = place.library_directory(uuid)
        _pass_to_qemu(ET.SubElement(domain, f"{{{QEMU_NAMESPACE}}}commandline"), spec, libraries)
    return ET.tostring(domain, encoding="unicode")


def _pass_to_qemu(command_line: ET.Element, spec: GuestSpec, libraries: Path) -> None:
    if spec.ssh_port:
        # libvirt itself forwards ports only by passt. Restricted: the guest reaches nobody by this network.
        network = f"user,id=ssh,restrict=on,hostfwd=tcp:127.0.0.1:{spec.ssh_port}-:22"
        device = f"virtio-net-pci,netdev=ssh,romfile=,bus=pci.0,addr={NETWORK_SLOT}"
        for word in ("-netdev", network, "-device", device):
            ET.SubElement(command_line, f"{{{QEMU_NAMESPACE}}}arg", value=word)
    if spec.private_library:
        variable = {"name": "LD_LIBRARY_PATH", "value": str(libraries)}
        ET.SubElement(command_line, f"{{{QEMU_NAMESPACE}}}env", variable)


def _add(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text


def _mark(metadata: ET.Element, spec: GuestSpec) -> None:
    attributes = {
        "memory-mib": str(spec.memory_mib),
        "disk-format": spec.disk_format,
        "second-disk": spec.second_disk,
        "firmware": spec.firmware,
        "tpm": _yes_no(spec.tpm),
        "own-disk": _yes_no(spec.own_disk),
        "agent-channel": _yes_no(spec.agent_channel),
        "serial-bus": _yes_no(spec.serial_bus),
        "agent-service": _yes_no(spec.agent_service),
        "private-emulator": _yes_no(spec.private_emulator),
        "private-library": _yes_no(spec.private_library),
        "package-manager": spec.package_manager,
        "ssh-port": str(spec.ssh_port),
        "owner": f"{spec.owner.pid}:{spec.owner.started}" if spec.owner else "",
    }
    ET.SubElement(metadata, MARK, attributes)


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"


def _boot(os: ET.Element, spec: GuestSpec, image: Image, nvram: Path) -> None:
    _add(os, "type", "hvm", arch="x86_64", machine="pc")
    if spec.firmware == "uefi":
        _add(os, "loader", str(OVMF), readonly="yes", type="pflash")
        _add(os, "nvram", str(nvram))
    _add(os, "kernel", str(image.kernel))
    _add(os, "initrd", str(image.initrd))
    # mitigations=off: they cost an emulated processor much and protect nothing here.
    words = ["console=ttyS0", "quiet", "mitigations=off"]
    if not spec.agent_service:
        words.append("systemd.mask=qemu-guest-agent.service")
    if spec.package_manager != "apt":
        words.append(f"{PACKAGE_MANAGER}={spec.package_manager}")
    if spec.ssh_port:
        words += [f"systemd.wants={SSH_UNIT}", "net.ifnames=0"]
    _add(os, "cmdline", " ".join(words))


def _devices(devices: ET.Element, spec: GuestSpec, uuid: str, place: Place) -> None:
    _add(devices, "emulator", str(place.private_emulator(uuid) if spec.private_emulator else place.emulator))
    disk = place.own_disk_path(uuid) if spec.own_disk else place.disk_path(uuid)
    _disk(devices, "vda", disk, spec.disk_format)
    if spec.second_disk:
        _disk(devices, "vdb", place.second_disk_path(uuid), spec.second_disk)
    serial = ET.SubElement(devices, "serial", type="pty")
    ET.SubElement(serial, "log", file=str(place.console_path(uuid)), append="on")
    if spec.agent_channel:
        channel = ET.SubElement(devices, "channel", type="unix")
        ET.SubElement(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    if spec.serial_bus:
        ET.SubElement(devices, "controller", type="virtio-serial", index="0")
    if spec.tpm:
        tpm = ET.SubElement(devices, "tpm", model="tpm-crb")
        ET.SubElement(tpm, "backend", type="emulator", version="2.0")
    random = ET.SubElement(devices, "rng", model="virtio")
    _add(random, "backend", "/dev/urandom", model="random")
    ET.SubElement(devices, "controller", type="usb", model="none")
    ET.SubElement(devices, "memballoon", model="none")


def _disk(devices: ET.Element, target: str, path: Path, kind: str) -> None:
    disk = ET.SubElement(devices, "disk", type="file", device="disk")
    # unsafe: a guest's disk need not survive its host's power, and flushes cost seconds.
    ET.SubElement(disk, "driver", name="qemu", type=kind, cache="unsafe")
    ET.SubElement(disk, "source", file=str(path))
    ET.SubElement(disk, "target", dev=target, bus="virtio")
