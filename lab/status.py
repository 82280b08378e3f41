# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the lab's guests are doing, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import libvirt

from lab.bed import places
from lab.guests import lab_guests
from lab.libvirt_session import connected
from lab.table import table

if TYPE_CHECKING:
    from lab.guests import Guest

STATES = {
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTDOWN: "shutting down",
    libvirt.VIR_DOMAIN_SHUTOFF: "off",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
}


class Row(NamedTuple):
    """What there is to say of one guest."""

    hypervisor: str
    name: str
    state: str
    qemu: str
    drifted: str
    agent: str


HEADER = Row("HYPERVISOR", "GUEST", "STATE", "QEMU PID", "DRIFTED", "AGENT")


def report() -> str:
    """How each of the lab's guests is, as a table."""
    rows = [HEADER]
    for where, place in places().items():
        with connected(place) as connection:
            rows += [_row(where, guest) for guest in lab_guests(connection)]
    return table(rows)


def _row(where: str, guest: Guest) -> Row:
    state = STATES.get(guest.state(), "unknown")
    process = guest.process()
    if process is None:
        return Row(where, guest.name, state, "-", "-", "-")
    drifted = "yes" if process.has_lost_its_executable() else "no"
    return Row(where, guest.name, state, str(process.pid), drifted, "answers" if guest.answers() else "silent")
