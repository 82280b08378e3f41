# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What outlives its purpose: guests of dead test sessions, files and processes of no guest.

Whoever looks for these holds the lab's lock, or takes a guest in the making for one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lab import emulator, files
from lab.guests import lab_guests
from lab.process import executable, option_of, running_with
from lab.progress import say

if TYPE_CHECKING:
    from lab.libvirt_session import Connection


def remove(connection: Connection) -> None:
    """Remove guests whose test session has died, and files of none."""
    for guest in lab_guests(connection):
        if guest.spec.owner is not None and not guest.spec.owner.alive():
            say(f"removing {guest.name}: its test session has died")
            guest.destroy()
    for uuid in files_without_domain(connection):
        files.remove(connection.place, uuid)


def files_without_domain(connection: Connection) -> list[str]:
    """UUIDs that name files and no domain."""
    guests, own = connection.place.guests, connection.place.emulator
    directories = [entry.name for entry in guests.iterdir()] if guests.exists() else []
    copies = [
        copy.name.removeprefix(f"{own.name}-").removesuffix(emulator.NEW) for copy in own.parent.glob(f"{own.name}-*")
    ]
    return sorted({*directories, *copies} - _known_uuids(connection))


def processes_without_domain(connection: Connection) -> list[int]:
    """QEMU processes of guests that are no domain (any more)."""
    running = {process.pid: option_of(process.pid, "-uuid") for process in running_with("-uuid")}
    known = _known_uuids(connection)
    ours = str(connection.place.emulator)
    return [pid for pid, uuid in running.items() if uuid not in known and executable(pid).startswith(ours)]


def _known_uuids(connection: Connection) -> set[str]:
    return {domain.UUIDString() for domain in connection.live().listAllDomains()}
