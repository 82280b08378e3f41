# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The test bed as a whole: brought up, made to drift, taken down."""

from __future__ import annotations

import shutil
import textwrap
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lab import accelerator, daemons, emulator, files, fleets, guests, image, leftovers
from lab.domain_xml import GuestSpec, Machine, parse_security_models
from lab.errors import ForeignGuests, LabError
from lab.libvirt_session import answering, connected
from lab.locks import exclusive, present
from lab.places import EMULATOR, HERE, LOCK, SESSIONS, STATE
from lab.process import command_line, users_of
from lab.progress import say, step

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from lab.fleets import Fleet
    from lab.guests import Guest
    from lab.image import Image
    from lab.libvirt_session import Connection
    from lab.places import Place


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
            fleets.remove_all(fleets.abandoned())
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
    """Have `lab1` … `labN` running and answering on this machine."""
    wanted = _names(count)
    with bed(allow_foreign_guests=allow_foreign_guests) as ready:
        with changing_the_lab():
            taken = set(wanted) & set(guests.foreign_names(ready.connection))
            if taken:
                raise ForeignGuests(f"the lab did not make {', '.join(sorted(taken))}", "rename it: virsh domrename")
            started = _have(ready, wanted)
        _wait_for(started)


def up_fleet(hypervisors: int, guests_each: int) -> Path:
    """Have so many hypervisors on this machine, and so many guests on each; returns their inventory."""
    wanted = _names(hypervisors * guests_each)
    built = image.ensure()
    machine = Machine(accelerator.choose(built))
    with ExitStack() as stack:
        with changing_the_lab():
            fleet = _have_fleet(hypervisors)
            started = []
            for number, hypervisor in enumerate(fleet.hypervisors):
                ready = Bed(stack.enter_context(connected(hypervisor.place)), built, machine)
                started += _have(ready, wanted[number * guests_each :][:guests_each])
        _wait_for(started)
    return fleet.inventory


def _have_fleet(count: int) -> Fleet:
    fleets.remove_all(fleets.abandoned())
    fleet = fleets.standing()
    if fleet is None:
        return fleets.make(count, None)
    if fleet.count != count:
        raise LabError(f"the lab has {fleet.count} hypervisors, and not {count}", "python -m lab down, then up again")
    fleet.start()
    return fleet


def _names(count: int) -> list[str]:
    if count < 1:
        raise LabError(f"cannot bring up {count} guests", "ask for at least one: --guests 1")
    return [f"lab{number}" for number in range(1, count + 1)]


def _have(ready: Bed, names: Sequence[str]) -> list[Guest]:
    with step(f"starting {', '.join(names)}"):
        return [_have_one(ready, name) for name in names]


def _have_one(ready: Bed, name: str) -> Guest:
    known = {guest.name: guest for guest in ready.guests()}
    guest = known.get(name) or guests.define(ready.connection, GuestSpec(name), ready.image, ready.machine)
    files.provide(guest.place, guest.spec, guest.uuid, ready.image)
    guest.start()
    return guest


def _wait_for(started: Sequence[Guest]) -> None:
    began = time.monotonic()
    # They boot at the same time; only the waiting is one after the other.
    for guest in started:
        guest.wait_until_ready()
        say(f"{guest.name} is up: {time.monotonic() - began:.1f} s")


def places() -> Mapping[str, Place]:
    """Where the lab may have guests that are to stay, by the name of the hypervisor."""
    fleet = fleets.standing()
    there = {hypervisor.name: hypervisor.place for hypervisor in fleet.hypervisors} if fleet else {}
    # Without a fleet, that nothing answers here is worth an error.
    return {"this machine": HERE, **there} if answering() or not there else there


def drift() -> None:
    """Replace the QEMU that the lab's guests share, on each hypervisor."""
    drifted = False
    for where, place in places().items():
        with connected(place) as connection:
            running = [guest.name for guest in guests.lab_guests(connection) if guest.process()]
        if running:
            emulator.replace(place.found(place.emulator))
            say(f"replaced QEMU on {where} under {', '.join(running)}")
            drifted = True
    if not drifted:
        raise LabError("no guest of the lab runs, so none can drift", "python -m lab up")


def down(*, purge: bool) -> None:
    """Remove everything that the lab made; of its cache only when asked to purge. Refuses beside a test session."""
    with changing_the_lab(), present(SESSIONS) as alone:
        if not alone():
            raise LabError(f"the lab is in use: {'; '.join(_sessions())}", "wait until these have ended, or end them")
        fleets.remove_all(fleets.existing())
        if answering() or STATE.exists():
            _remove_guests()
        emulator.remove_all()
    if purge:
        image.purge()


def _sessions() -> list[str]:
    """The test sessions that run now, by their processes."""
    users = {user.pid: " ".join(command_line(user.pid)) for user in users_of(SESSIONS)}
    return [f"process {pid} ({textwrap.shorten(command, 100, placeholder=' …')})" for pid, command in users.items()]


def _remove_guests() -> None:
    daemons.start()
    with connected() as connection:
        for guest in guests.lab_guests(connection):
            say(f"removing {guest.name}")
            guest.destroy()
        others = guests.foreign_names(connection)
    if others:
        say(f"leaving libvirt's daemons on: {', '.join(map(repr, others))} may need them")
        shutil.rmtree(HERE.guests, ignore_errors=True)
    else:
        daemons.stop()
        shutil.rmtree(STATE, ignore_errors=True)
