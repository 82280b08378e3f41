# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Several hypervisors, each a machine of its own to Ansible and to libvirt: reached by SSH, lost, migrated between."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, NamedTuple

import libvirt
import pytest

from lab.guests import PRISTINE
from tests.integration.proof import make_fresh
from tests.integration.runs import PlaybookRun, command, playbook

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.fleets import Fleet
    from lab.guests import Guest
    from lab.hypervisor import Hypervisor
    from lab.session import Session


class Guests(NamedTuple):
    """One running guest on each hypervisor of the fleet."""

    one: Guest
    two: Guest


@pytest.fixture(scope="module")
def booted(lab: Session, fleet: Fleet) -> Iterator[Guests]:
    first, second = fleet.hypervisors
    with lab.guest(on=first, wait=False) as one, lab.guest(on=second, wait=False) as two:
        for guest in (one, two):
            guest.wait_until_ready()
        for guest in (one, two):
            guest.take_pristine()
        yield Guests(one, two)


@pytest.fixture
def guests(booted: Guests) -> Guests:
    """Both as they first came up."""
    for guest in booted:
        make_fresh(guest)
    return booted


def drift_told(run: PlaybookRun) -> dict[str, tuple[str, str]]:
    """What a status says: of each guest its hypervisor and its drift."""
    return {guest["name"]: (guest["hypervisor"], guest["drift"]) for guest in run.statistics["status"]}


def hostnames(fleet: Fleet) -> str:
    """What each hypervisor says over SSH that it is called."""
    words, environment = command("ansible", inventory=fleet.inventory)
    asked = [*words, "all", "--module-name", "ansible.builtin.command", "--args", "hostname"]
    return subprocess.run(asked, env=environment, capture_output=True, encoding="utf-8", check=True).stdout


def migrate(guest: Guest, source: Hypervisor, target: Hypervisor) -> None:
    # Unsafe: libvirt does not know that both see the same disk through the same cache.
    flags = ("--live", "--persistent", "--undefinesource", "--unsafe")
    source.run("virsh", "migrate", *flags, guest.name, target.uri_among_hypervisors)


def test_each_is_a_machine_of_its_own(fleet: Fleet, guests: Guests) -> None:
    said = hostnames(fleet)
    for hypervisor in fleet.hypervisors:
        assert f"{hypervisor.name} | CHANGED | rc=0 >>\n{hypervisor.name}\n" in said
    for guest, hypervisor, other in zip(guests, fleet.hypervisors, reversed(fleet.hypervisors), strict=True):
        assert guest.uuid in hypervisor.run("ps", "ax")
        assert guest.uuid not in other.run("ps", "ax")


def test_drift_is_made_on_one_alone_and_found_there_over_ssh(fleet: Fleet, guests: Guests) -> None:
    first, second = fleet.hypervisors
    first.drift()
    assert (guests.one.drifted(), guests.two.drifted()) == (True, False)
    run = playbook("status", inventory=fleet.inventory)
    assert run.exit_code == 0, run.output
    assert drift_told(run) == {guests.one.name: (first.name, "drifted"), guests.two.name: (second.name, "none")}


@pytest.mark.thorough
def test_one_that_is_taken_away_is_reported_and_the_other_is_worked_on(fleet: Fleet, guests: Guests) -> None:
    first, _second = fleet.hypervisors
    for hypervisor in fleet.hypervisors:
        hypervisor.drift()
    hostnames(fleet)  # with a connection to each that is kept open
    process, boot = guests.one.process(), guests.two.boot_id()
    first.take_away()
    try:
        run = playbook("restart", inventory=fleet.inventory)
    finally:
        first.bring_back()
    assert run.exit_code != 0
    assert {name: record["outcome"] for name, record in run.records.items()} == {guests.two.name: "restarted"}
    lost = [(look["hypervisor"], look["error_code"]) for look in run.statistics["failed_looks"]]
    assert lost == [(first.name, "hypervisor_unreachable")]
    assert guests.two.boot_id() != boot
    assert not guests.two.drifted()
    assert guests.one.process() == process, "what runs on a hypervisor does not end with its network"
    assert first.name in hostnames(fleet)


def test_one_that_loses_its_power_comes_back_with_its_guests_off(fleet: Fleet, guests: Guests) -> None:
    first, _second = fleet.hypervisors
    other = guests.two.process()
    first.lose_power()
    try:
        assert guests.one.process() is None
    finally:
        first.bring_back()
    assert guests.one.state() == libvirt.VIR_DOMAIN_SHUTOFF
    assert guests.two.process() == other
    run = playbook("status", inventory=fleet.inventory)
    assert run.exit_code == 0, run.output
    assert set(drift_told(run)) == {guests.one.name, guests.two.name}


def test_a_guest_is_migrated_there_and_back_as_it_runs(lab: Session, fleet: Fleet, guests: Guests) -> None:
    first, second = fleet.hypervisors
    guest = guests.one
    guest.domain.snapshotLookupByName(PRISTINE).delete()  # libvirt migrates none with snapshots
    first.drift()
    assert guest.drifted()
    boot = guest.boot_id()
    migrate(guest, first, second)
    there = lab.seen_on(second, guest)
    assert (there.boot_id(), there.drifted()) == (boot, False)
    assert guest.name not in first.run("virsh", "list", "--all", "--name").split()
    migrate(there, second, first)
    assert (guest.boot_id(), guest.drifted()) == (boot, False)
    guest.take_pristine()
