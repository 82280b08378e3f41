# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""domain_channel on real domains: where libvirt and QEMU take a channel, and whether the guest's agent then answers."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any

import libvirt

from tests.integration.proof import wait_until_booted
from tests.integration.runs import difference, module, refusal

if TYPE_CHECKING:
    from lab.fixtures import MakeGuest
    from lab.guests import Guest

CHANNEL = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"


def ensure(guest: Guest, **options: Any) -> dict[str, Any]:
    result = module("domain_channel", name=guest.name, **options)
    assert not result["failed"], result
    return result


def channels(guest: Guest) -> tuple[bool, bool]:
    """Whether the domain has the channel as it runs, and in its definition."""
    running, defined = (
        ET.fromstring(guest.domain.XMLDesc(flags)).find("devices/channel/target[@name='org.qemu.guest_agent.0']")
        for flags in (0, libvirt.VIR_DOMAIN_XML_INACTIVE)
    )
    return running is not None, defined is not None


def test_a_running_guest_gets_the_channel_and_its_agent_answers_without_a_restart(make_guest: MakeGuest) -> None:
    guest = make_guest(wait=False, agent_channel=False, serial_bus=True)
    wait_until_booted(guest)
    process = guest.process()
    assert process is not None

    predicted, printed = difference("domain_channel", name=guest.name, agent_timeout=60)
    assert (predicted["changed"], predicted["live"], predicted["persistent"]) == (True, "added", "added")
    assert printed.count('+  <target type="virtio" name="org.qemu.guest_agent.0"/>') == 2
    assert channels(guest) == (False, False)

    done = ensure(guest, agent_timeout=120)
    assert (done["changed"], done["live"], done["persistent"]) == (True, "added", "added")
    assert (done["restart_required"], done["agent"]) == (False, "answering")
    assert channels(guest) == (True, True)
    assert guest.process() == process
    boot = guest.boot_id()

    again = ensure(guest, agent_timeout=60)
    assert (again["changed"], again["live"], again["persistent"]) == (False, "present", "present")

    # What is in the definition outlives the process.
    assert not module("domain_power", name=guest.name, state="restarted")["failed"]
    assert guest.boot_id() != boot
    assert ensure(guest, agent_timeout=60)["agent"] == "answering"


def test_a_running_guest_without_a_serial_bus_has_it_at_its_next_start(make_guest: MakeGuest) -> None:
    guest = make_guest(wait=False, agent_channel=False)
    for changed, persistent in ((True, "added"), (False, "present")):
        result = ensure(guest, agent_timeout=60)
        assert (result["changed"], result["live"], result["persistent"]) == (changed, "needs_restart", persistent)
        assert (result["restart_required"], result["agent"]) == (True, None)
        assert "does not hot-plug" in result["reason"]
    assert channels(guest) == (False, True)
    guest.domain.destroy()
    guest.start()
    assert channels(guest) == (True, True)
    result = ensure(guest)
    assert (result["changed"], result["live"], result["persistent"]) == (False, "present", "present")


def test_what_only_one_of_the_two_definitions_has_is_completed(make_guest: MakeGuest) -> None:
    guest = make_guest(wait=False, agent_channel=False, serial_bus=True)
    guest.domain.attachDeviceFlags(CHANNEL, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    result = ensure(guest)
    assert (result["live"], result["persistent"], channels(guest)) == ("present", "added", (True, True))

    guest = make_guest(wait=False, agent_channel=False, serial_bus=True)
    guest.domain.attachDeviceFlags(CHANNEL, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    result = ensure(guest)
    assert (result["live"], result["persistent"], channels(guest)) == ("added", "present", (True, True))


def test_a_bus_without_a_free_port_leaves_it_to_the_next_start_in_libvirts_words(make_guest: MakeGuest) -> None:
    guest = make_guest(start=False, agent_channel=False)
    full = "<devices><controller type='virtio-serial' index='0' ports='1'/>"
    guest.connection.live().defineXML(guest.domain.XMLDesc().replace("<devices>", full))
    guest.start()
    result = ensure(guest)
    assert (result["live"], result["persistent"], channels(guest)) == ("needs_restart", "added", (False, True))
    assert result["reason"].startswith("libvirt says: ")
    guest.domain.destroy()
    guest.start()
    assert channels(guest) == (True, True)


def test_a_transient_guest_gets_it_as_it_runs_or_not_at_all(make_guest: MakeGuest) -> None:
    guest = make_guest(wait=False, agent_channel=False, serial_bus=True)
    guest.domain.undefine()
    result = ensure(guest)
    assert (result["live"], result["persistent"], result["restart_required"]) == ("added", "transient", False)
    assert channels(guest)[0]

    guest = make_guest(wait=False, agent_channel=False)
    guest.domain.undefine()
    for check in (True, False):
        result = refusal("domain_channel", check=check, name=guest.name)
        assert result["error_code"] == "channel_impossible"
        assert "transient" in result["msg"]
    assert not channels(guest)[0]


def test_a_guest_that_is_off_gets_it_on_either_machine_type(make_guest: MakeGuest) -> None:
    for machine in ("pc", "q35"):
        guest = make_guest(start=False, agent_channel=False)
        definition = ET.fromstring(guest.domain.XMLDesc())
        devices, kind = definition.find("devices"), definition.find("os/type")
        assert devices is not None
        assert kind is not None
        kind.set("machine", machine)
        for device in list(devices):
            if device.tag == "controller" and device.get("type") == "pci":
                devices.remove(device)
            for address in device.findall("address[@type='pci']"):
                device.remove(address)
        guest.connection.live().defineXML(ET.tostring(definition, encoding="unicode"))
        result = ensure(guest)
        assert (result["live"], result["persistent"], result["restart_required"]) == ("not_running", "added", False)
        assert channels(guest) == (True, True)
        guest.start()  # QEMU takes it, too
        assert ensure(guest)["live"] == "present"


def test_a_saved_image_without_the_channel_is_told_until_it_is_gone(make_guest: MakeGuest) -> None:
    guest = make_guest(wait=False, agent_channel=False)
    guest.domain.managedSave()
    for persistent in ("added", "present"):
        result = ensure(guest)
        assert (result["live"], result["persistent"], result["restart_required"]) == ("not_running", persistent, True)
        assert "managed save image" in result["reason"]
    guest.domain.managedSaveRemove()
    assert ensure(guest)["restart_required"] is False


def test_an_agent_that_does_not_answer_on_its_channel_fails_the_task(make_guest: MakeGuest) -> None:
    guest = make_guest(wait=False, agent_service=False)
    result = refusal("domain_channel", name=guest.name, agent_timeout=3)
    assert (result["error_code"], result["transient"]) == ("agent_silent", True)
