# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guest of a molecule scenario: guest.py create|drift|destroy NAME. Prints `changed` when it changed anything."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from lab import bed, host  # noqa: E402
from lab import drift as lab_drift  # noqa: E402
from lab.domain_xml import GuestSpec  # noqa: E402
from lab.guests import Guest, lab_guests  # noqa: E402
from lab.libvirt_session import answering, connected  # noqa: E402


def create(name: str) -> bool:
    """Have the guest running and answering, on a QEMU of its own."""
    host.prepare()
    with bed.bed(allow_foreign_guests=False) as ready:
        known = _find(ready.guests(), name)
        guest = known or ready.define(GuestSpec(name, private_emulator=True))
        guest.start()
        guest.wait_until_ready()
    return known is None


def drift(name: str) -> bool:
    """Replace the guest's QEMU under it."""
    with connected() as connection:
        guest = _find(lab_guests(connection), name)
        if guest is None or guest.drifted():
            return False
        lab_drift.replace_emulator(guest)
    return True


def destroy(name: str) -> bool:
    """Remove the guest. The bed goes with the last of the lab's guests."""
    if not answering():
        return False
    with connected() as connection:
        guest = _find(lab_guests(connection), name)
        if guest is not None:
            guest.destroy()
        others = lab_guests(connection)
    if guest is not None and not others:
        bed.down(purge=False)
    return guest is not None


def _find(guests: list[Guest], name: str) -> Guest | None:
    return next((guest for guest in guests if guest.name == name), None)


VERBS: dict[str, Callable[[str], bool]] = {"create": create, "drift": drift, "destroy": destroy}

if __name__ == "__main__":
    _program, verb, guest_name = sys.argv
    print("changed" if VERBS[verb](guest_name) else "unchanged")
