# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The domain XML of guests, and their mark in it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from lab.domain_xml import GuestSpec, Machine, parse_security_models, parse_spec, render
from lab.image import Image
from lab.places import HERE
from lab.process import Process

IMAGE = Image(Path("/cache/0123456789abcdef"))
UUID = "6b1c1c3e-7a52-4f0c-9c0e-2f6f6a3c7b11"
EMULATED = Machine("qemu", ("none", "dac"))

PLAIN = GuestSpec("plain")
EVERYTHING_ELSE = GuestSpec(
    "other",
    memory_mib=640,
    disk_format="raw",
    second_disk="qcow2",
    firmware="uefi",
    tpm=True,
    own_disk=True,
    agent_channel=False,
    serial_bus=True,
    agent_service=False,
    private_emulator=True,
    private_library=True,
    package_manager="zypper",
    ssh_port=40022,
    owner=Process(12, 3456),
)


def xml(spec: GuestSpec, machine: Machine = EMULATED) -> ET.Element:
    return ET.fromstring(render(spec, UUID, IMAGE, machine, HERE))


@pytest.mark.parametrize("name", ["a b", "it's", '"q"', "<&>", "-rf", "Jürgen 日本", "]]>", "&amp;", "$(id)"])
def test_any_name_comes_back_as_it_was(name: str) -> None:
    spec = replace(PLAIN, name=name)
    assert xml(spec).findtext("name") == name
    assert parse_spec(render(spec, UUID, IMAGE, EMULATED, HERE)) == spec


@pytest.mark.parametrize("spec", [PLAIN, EVERYTHING_ELSE])
def test_what_a_guest_was_asked_to_be_is_read_back_from_its_domain(spec: GuestSpec) -> None:
    assert parse_spec(render(spec, UUID, IMAGE, EMULATED, HERE)) == spec


@pytest.mark.parametrize(
    "metadata",
    [
        "",
        "<metadata/>",
        "<metadata><guest/></metadata>",
        "<metadata><lab:guest xmlns:lab='https://example.org/'/></metadata>",
    ],
)
def test_a_name_makes_no_guest_of_the_lab(metadata: str) -> None:
    assert parse_spec(f"<domain><name>lab1</name>{metadata}</domain>") is None


def test_every_file_of_a_guest_is_named_by_its_uuid_and_none_by_its_name() -> None:
    paths = [element.get("file", "") for element in xml(PLAIN).iter() if element.get("file")]
    assert paths
    assert all(UUID in path for path in paths)


def test_a_uefi_guest_shares_the_firmware_and_has_variables_and_a_boot_of_its_own() -> None:
    assert xml(PLAIN).find("os/loader") is None
    assert xml(PLAIN).find("os/nvram") is None
    firmware = xml(replace(PLAIN, firmware="uefi")).find("os")
    assert firmware is not None
    loader = firmware.find("loader")
    assert loader is not None
    assert (loader.text, loader.get("readonly")) == ("/usr/share/OVMF/OVMF_CODE_4M.fd", "yes")
    assert UUID in firmware.findtext("nvram", "")
    assert firmware.findtext("kernel") == xml(PLAIN).findtext("os/kernel")


def test_a_second_disk_is_another_file_of_the_format_that_was_asked_for() -> None:
    def disks(spec: GuestSpec) -> list[tuple[str, str]]:
        found = [(disk.find("target"), disk.find("driver")) for disk in xml(spec).iter("disk")]
        return [
            (target.get("dev", ""), driver.get("type", ""))
            for target, driver in found
            if target is not None and driver is not None
        ]

    assert disks(PLAIN) == [("vda", "qcow2")]
    assert disks(replace(PLAIN, second_disk="raw")) == [("vda", "qcow2"), ("vdb", "raw")]
    files = [source.get("file") for source in xml(replace(PLAIN, second_disk="raw")).iter("source")]
    assert len(set(files)) == 2


def test_only_a_guest_with_a_tpm_has_one() -> None:
    backend = "devices/tpm/backend[@type='emulator']"
    assert xml(PLAIN).find(backend) is None
    assert xml(replace(PLAIN, tpm=True)).find(backend) is not None


def test_the_hosts_own_qemu_is_never_run() -> None:
    assert xml(PLAIN).findtext("devices/emulator") == "/usr/bin/qemu-system-x86_64-kvm-fleet-lab"
    assert xml(EVERYTHING_ELSE).findtext("devices/emulator") == f"/usr/bin/qemu-system-x86_64-kvm-fleet-lab-{UUID}"


def arguments(spec: GuestSpec) -> list[str]:
    return [word.get("value", "") for word in xml(spec).iter("{http://libvirt.org/schemas/domain/qemu/1.0}arg")]


def test_a_guest_has_no_network_and_with_ssh_one_that_leads_nowhere_but_in() -> None:
    assert xml(PLAIN).find("devices/interface") is None
    assert arguments(PLAIN) == []
    assert "lab-ssh.service" not in xml(PLAIN).findtext("os/cmdline", "")
    reached = replace(PLAIN, ssh_port=40022)
    assert "user,id=ssh,restrict=on,hostfwd=tcp:127.0.0.1:40022-:22" in arguments(reached)
    assert "systemd.wants=lab-ssh.service" in xml(reached).findtext("os/cmdline", "").split()


def test_the_agents_channel_and_service_go_separately() -> None:
    def has(spec: GuestSpec) -> tuple[bool, bool]:
        root = xml(spec)
        masked = "systemd.mask=qemu-guest-agent.service" in root.findtext("os/cmdline", "").split()
        return root.find("devices/channel") is not None, not masked

    assert has(PLAIN) == (True, True)
    assert has(replace(PLAIN, agent_channel=False)) == (False, True)
    assert has(replace(PLAIN, agent_service=False)) == (True, False)


def test_a_guest_without_a_channel_has_nothing_to_plug_one_into_unless_asked_for() -> None:
    bus = "devices/controller[@type='virtio-serial']"
    assert xml(replace(PLAIN, agent_channel=False)).find(bus) is None
    assert xml(replace(PLAIN, agent_channel=False, serial_bus=True)).find(bus) is not None


def test_only_a_guest_that_is_to_be_another_system_hears_of_it_when_it_boots() -> None:
    words = xml(EVERYTHING_ELSE).findtext("os/cmdline", "").split()
    assert "lab_package_manager=zypper" in words
    assert "lab_package_manager" not in xml(PLAIN).findtext("os/cmdline", "")


@pytest.mark.parametrize(
    ("spec", "reachable"),
    [
        (PLAIN, True),
        (replace(PLAIN, agent_channel=False), False),
        (replace(PLAIN, agent_service=False), False),
    ],
)
def test_an_agent_answers_only_with_both(spec: GuestSpec, reachable: bool) -> None:
    assert spec.reachable is reachable


def test_confinement_is_lifted_where_a_second_emulator_would_not_start() -> None:
    capabilities = """
        <capabilities><host>
          <secmodel><model>apparmor</model><doi>0</doi></secmodel>
          <secmodel><model>dac</model><doi>0</doi></secmodel>
        </host></capabilities>"""
    models = parse_security_models(capabilities)
    assert models == ("apparmor", "dac")
    labels = [label.attrib for label in xml(PLAIN, Machine("kvm", models)).iter("seclabel")]
    assert labels == [{"type": "none", "model": "apparmor"}]
    assert list(xml(PLAIN).iter("seclabel")) == []


def test_only_a_guest_with_a_private_library_taints_its_domain() -> None:
    command_line = "{http://libvirt.org/schemas/domain/qemu/1.0}commandline"
    assert xml(PLAIN).find(command_line) is None
    assert xml(EVERYTHING_ELSE).find(command_line) is not None


def test_the_hosts_processor_is_shown_only_where_kvm_runs_it() -> None:
    assert xml(PLAIN).find("cpu") is None
    kvm = xml(PLAIN, Machine("kvm"))
    assert kvm.get("type") == "kvm"
    assert kvm.find("cpu[@mode='host-passthrough']") is not None
