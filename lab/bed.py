# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The test bed as a whole: brought up, made to drift, taken down."""

from __future__ import annotations

import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lab import accelerator, daemons, emulator, files, guests, image, leftovers
from lab.domain_xml import GuestSpec, Machine, parse_security_models
from lab.errors import ForeignGuests, LabError
from lab.libvirt_session import answering, connected
from lab.locks import exclusive
from lab.places import EMULATOR, GUESTS, LOCK, STATE
from lab.progress import say, step

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.guests import Guest
    from lab.image import Image
    from lab.libvirt_session import Connection


@dataclass(frozen=True)
class Bed:
    """A test bed that is up: what guests are made on."""

    connection: Connection
    image: Image
    machine: Machine

    def define(self, spec: GuestSpec) -> Guest:
        """Make a guest, not started; whoever made it destroys it."""
        with changing_the_lab():
            return guests.define(self.connection, spec, self.image, self.machine)

    def guests(self) -> list[Guest]:
        """Every guest of the lab, by name."""
        return guests.lab_guests(self.connection)


@contextmanager
def changing_the_lab() -> Iterator[None]:
    """Keep every other process from changing what the lab consists of. Must not be nested."""
    with exclusive(LOCK, "another process that changes the lab"):
        yield


@contextmanager
def bed(*, allow_foreign_guests: bool) -> Iterator[Bed]:
    """Have all that guests are made on: daemons, emulator, image. It stays: see `down`."""
    with changing_the_lab():
        _have_libvirt(allow_foreign_guests=allow_foreign_guests)
        emulator.install(EMULATOR)
    with connected() as connection:
        built = image.ensure()
        models = parse_security_models(connection.live().getCapabilities())
        with changing_the_lab():
            leftovers.remove(connection)
        yield Bed(connection, built, Machine(accelerator.choose(built), models))


def _have_libvirt(*, allow_foreign_guests: bool) -> None:
    started = daemons.start()
    with connected() as connection:
        foreign = [] if allow_foreign_guests else guests.foreign_names(connection)
    if not foreign:
        return
    if started:
        daemons.stop()
    raise ForeignGuests(
        f"this machine has guests that the lab did not make: {', '.join(map(repr, foreign))}",
        "use another machine, or add --allow-foreign-guests: the lab leaves them alone",
    )


def up(count: int, *, allow_foreign_guests: bool) -> None:
    """Have `lab1` … `labN` running and answering."""
    if count < 1:
        raise LabError(f"cannot bring up {count} guests", "ask for at least one: --guests 1")
    with bed(allow_foreign_guests=allow_foreign_guests) as ready:
        wanted = [f"lab{number}" for number in range(1, count + 1)]
        with changing_the_lab(), step(f"starting {', '.join(wanted)}"):
            taken = set(wanted) & set(guests.foreign_names(ready.connection))
            if taken:
                raise ForeignGuests(f"the lab did not make {', '.join(sorted(taken))}", "rename it: virsh domrename")
            started = [_have(ready, name) for name in wanted]
        began = time.monotonic()
        # They boot at the same time; only the waiting is one after the other.
        for guest in started:
            guest.wait_until_ready()
            say(f"{guest.name} is up: {time.monotonic() - began:.1f} s")


def _have(ready: Bed, name: str) -> Guest:
    known = {guest.name: guest for guest in ready.guests()}
    guest = known.get(name) or guests.define(ready.connection, GuestSpec(name), ready.image, ready.machine)
    files.provide(guest.spec, guest.uuid, ready.image)
    guest.start()
    return guest


def drift() -> None:
    """Replace the QEMU that the lab's guests share."""
    with connected() as connection:
        running = [guest.name for guest in guests.lab_guests(connection) if guest.process()]
        if not running:
            raise LabError("no guest of the lab runs, so none can drift", "python -m lab up")
        emulator.replace(EMULATOR)
        say(f"replaced QEMU under {', '.join(running)}")


def down(*, purge: bool) -> None:
    """Remove everything that the lab made; of its cache only when asked to purge."""
    with changing_the_lab():
        if answering() or STATE.exists():
            _remove_guests()
        emulator.remove_all()
    if purge:
        image.purge()


def _remove_guests() -> None:
    daemons.start()
    with connected() as connection:
        for guest in guests.lab_guests(connection):
            say(f"removing {guest.name}")
            guest.destroy()
        others = guests.foreign_names(connection)
    if others:
        say(f"leaving libvirt's daemons on: {', '.join(map(repr, others))} may need them")
        shutil.rmtree(GUESTS, ignore_errors=True)
    else:
        daemons.stop()
        shutil.rmtree(STATE, ignore_errors=True)
