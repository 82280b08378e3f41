# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Drift of one guest alone: of its own copy of QEMU, or of a library that only it maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lab import emulator, libraries
from lab.errors import LabError

if TYPE_CHECKING:
    from lab.guests import Guest


def replace_emulator(guest: Guest) -> None:
    """Replace the QEMU under a guest that was made with `private_emulator`."""
    if not guest.spec.private_emulator:
        raise LabError(f"{guest.name!r} shares its QEMU with others", "make it with private_emulator=True")
    emulator.replace(guest.place.found(guest.place.private_emulator(guest.uuid)))


def replace_library(guest: Guest) -> None:
    """Replace the library under a guest that was made with `private_library`."""
    if not guest.spec.private_library:
        raise LabError(f"{guest.name!r} has no library of its own", "make it with private_library=True")
    libraries.provide(guest.place, guest.uuid)
