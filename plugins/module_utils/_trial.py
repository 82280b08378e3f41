# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether the installed QEMU starts machines like those of the guests, found out on one that nobody misses.

The machine has no disk and no network, 64 MiB, and runs for a moment. It is transient, and libvirt ends it with the
connection that has started it, so that one whose module is killed does not stay. Were libvirt itself ended then, it
would: such ones are known by their names, and the next trial ends them once they are old.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from xml.etree import ElementTree

from ansible_collections.kvm.fleet.plugins.module_utils._clock import pause
from ansible_collections.kvm.fleet.plugins.module_utils._domain import Domain, DomainState, Hypervisor
from ansible_collections.kvm.fleet.plugins.module_utils._domain_xml import Kind, kind_of
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    DomainNotFound,
    LibvirtFailed,
    QemuTrialFailed,
)

MEMORY_MIB = 64

RUNS_SECONDS = 1.0
"""For how long it has to run."""

OLD = timedelta(minutes=10)
"""After this, a machine that is still there was left by somebody."""


def kinds_of(domains: Iterable[Domain]) -> dict[Kind, list[str]]:
    """Each kind once, with the names of the domains that are of it, as they will be started next."""
    kinds: dict[Kind, list[str]] = {}
    for domain in domains:
        try:
            kinds.setdefault(kind_of(domain.persistent_xml()), []).append(domain.name)
        except DomainNotFound:
            continue  # undefined since it was listed
    return kinds


def trial_name(now: datetime) -> str:
    """A name that says when it was begun, and is nobody else's."""
    return f"kvm-fleet-trial-{now.astimezone(timezone.utc):%Y%m%d%H%M%S}-{secrets.token_hex(4)}"


def trial_xml(kind: Kind, name: str) -> str:
    """The domain to be tried: what QEMU needs of a guest of this kind, and nothing that is the guest's."""
    domain = ElementTree.Element("domain", type=kind.virtualization)
    ElementTree.SubElement(domain, "name").text = name
    ElementTree.SubElement(domain, "memory", unit="MiB").text = str(MEMORY_MIB)
    ElementTree.SubElement(domain, "vcpu").text = "1"
    told = {"arch": kind.architecture, "machine": kind.machine}
    system = ElementTree.SubElement(domain, "os")
    ElementTree.SubElement(system, "type", {key: value for key, value in told.items() if value}).text = "hvm"
    if kind.cpu:
        domain.append(ElementTree.fromstring(kind.cpu))
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        ElementTree.SubElement(domain, event).text = "destroy"
    devices = ElementTree.SubElement(domain, "devices")
    if kind.emulator:
        ElementTree.SubElement(devices, "emulator").text = kind.emulator
    ElementTree.SubElement(devices, "memballoon", model="none")
    return ElementTree.tostring(domain, encoding="unicode")


def try_kind(hypervisor: Hypervisor, kind: Kind, guests: list[str]) -> None:
    """Start a machine of a kind, see it run, and end it. Raises QemuTrialFailed."""
    try:
        machine = hypervisor.start_for_now(trial_xml(kind, trial_name(hypervisor.clock.now())))
    except LibvirtFailed as error:
        raise _failed(kind, guests, error.message, error.evidence) from error
    try:
        pause(hypervisor.clock, RUNS_SECONDS)
        state = machine.state()
    except DomainNotFound:
        raise _failed(kind, guests, "it was started and went off at once", {}) from None
    finally:
        end(machine)
    if state is not DomainState.RUNNING:
        raise _failed(kind, guests, f"it was started and is {state.value.replace('_', ' ')}", {})


def end(machine: Domain) -> None:
    """End a machine, which may have ended by itself: a transient one is gone then."""
    try:
        machine.destroy()
    except DomainNotFound:
        return


def old(hypervisor: Hypervisor) -> list[Domain]:
    """The machines that were left behind. Another run's trial may be going on just now."""
    now = hypervisor.clock.now()
    return [machine for machine in hypervisor.trials() if now - _begun(machine.name) > OLD]


def _begun(name: str) -> datetime:
    return datetime.strptime(name.split("-")[3], "%Y%m%d%H%M%S").replace(tzinfo=timezone.utc)


def _failed(kind: Kind, guests: list[str], words: str, evidence: dict[str, object]) -> QemuTrialFailed:
    return QemuTrialFailed(
        f"the installed QEMU does not start a machine like that of {', '.join(guests)} ({kind.machine}"
        f"{', ' + kind.processor if kind.processor else ''}): {words}",
        remedy="No guest was touched. See libvirt's log and /var/log/libvirt/qemu on the hypervisor, and mend its "
        "QEMU, or the machine or processor that these guests are defined with, before any of them is restarted.",
        evidence={**evidence, "kind": kind.facts(), "guests": guests},
    )
