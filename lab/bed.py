# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The whole test bed: up, drift, status, down."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lab import accelerator, daemons, emulator, guests, image
from lab.domain_xml import GuestSpec, Machine, parse_security_models
from lab.errors import ForeignGuests, LabError
from lab.host import install_packages, require_a_suitable_machine
from lab.libvirt_session import connect
from lab.places import STATE
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

    def make(self, spec: GuestSpec, *, started: bool = True) -> Guest:
        """Make a guest, and start it; the caller waits for it and destroys it."""
        guest = guests.define(self.connection, spec, self.image, self.machine)
        if started:
            guest.start()
        return guest

    def guests(self) -> list[Guest]:
        """Every guest of the lab."""
        return guests.lab_guests(self.connection)


@contextmanager
def connected() -> Iterator[Connection]:
    """A connection to the system's libvirt, closed at the end."""
    connection = connect()
    try:
        yield connection
    finally:
        connection.close()


def refuse_foreign_guests(connection: Connection) -> None:
    """Raise ForeignGuests if the machine has guests that the lab did not make."""
    foreign = guests.foreign_names(connection)
    if foreign:
        raise ForeignGuests(
            f"this machine has guests that the lab did not make: {', '.join(map(repr, foreign))}",
            "use another machine, or add --allow-foreign-guests: the lab leaves them alone",
        )


@contextmanager
def bed(*, allow_foreign_guests: bool = False) -> Iterator[Bed]:
    """Bring up all that guests need: packages, daemons, emulator, image."""
    require_a_suitable_machine()
    install_packages()
    daemons.start()
    with connected() as connection:
        if not allow_foreign_guests:
            refuse_foreign_guests(connection)
        emulator.install()
        built = image.ensure()
        models = parse_security_models(connection.getCapabilities())
        guests.remove_left_over_files(connection)
        yield Bed(connection, built, Machine(accelerator.choose(built), models))


def up(count: int, *, allow_foreign_guests: bool) -> None:
    """Have `lab1` … `labN` running and answering."""
    if count < 1:
        raise LabError(f"cannot bring up {count} guests", "ask for at least one: --guests 1")
    with bed(allow_foreign_guests=allow_foreign_guests) as ready:
        known = {guest.name: guest for guest in ready.guests()}
        names = [f"lab{number}" for number in range(1, count + 1)]
        with step(f"starting {', '.join(names)}"):
            wanted = [known.get(name) or ready.make(GuestSpec(name), started=False) for name in names]
            for guest in wanted:
                guests.provide_files(guest, ready.image)
                guest.start()
        wait_for_all(wanted)


def wait_for_all(wanted: list[Guest]) -> None:
    """Wait until every guest is ready, saying so as each gets there."""
    began = time.monotonic()

    def wait(guest: Guest) -> None:
        guest.wait_until_ready()
        say(f"{guest.name} is up: {time.monotonic() - began:.1f} s")

    with ThreadPoolExecutor(max_workers=len(wanted)) as threads:
        list(threads.map(wait, wanted))


def drift() -> None:
    """Replace the QEMU that the lab's guests run."""
    with connected() as connection:
        running = [guest for guest in guests.lab_guests(connection) if guest.process()]
        emulator.replace()
        say(f"replaced QEMU under {len(running)} running guests")


def down(*, purge: bool) -> None:
    """Remove everything that the lab made; of its cache only when asked to purge."""
    require_a_suitable_machine()
    others = False
    if daemons.answering() or STATE.exists():
        daemons.start()
        with connected() as connection:
            for guest in guests.lab_guests(connection):
                say(f"removing {guest.name}")
                guest.destroy()
            others = bool(connection.listAllDomains())
    emulator.remove()
    if others and daemons.started_by_the_lab():
        say("other guests need libvirt's daemons: leaving them on")
        shutil.rmtree(guests.GUESTS, ignore_errors=True)
    else:
        daemons.stop()
        shutil.rmtree(STATE, ignore_errors=True)
    if purge:
        image.purge()


@dataclass(frozen=True)
class Row:
    """What there is to say of one guest."""

    name: str
    state: str
    qemu: str
    drifted: str
    agent: str


HEADER = Row("GUEST", "STATE", "QEMU PID", "DRIFTED", "AGENT")


def status() -> list[Row]:
    """How each of the lab's guests is."""
    with connected() as connection:
        return [_row(guest) for guest in guests.lab_guests(connection)]


def _row(guest: Guest) -> Row:
    process = guest.process()
    if process is None:
        return Row(guest.name, "off", "-", "-", "-")
    return Row(
        guest.name,
        "running",
        str(process.pid),
        "yes" if guest.drifted() else "no",
        "answers" if guest.answers() else "silent",
    )


def table(rows: list[Row]) -> str:
    """Rows as aligned text."""
    cells = [(row.name, row.state, row.qemu, row.drifted, row.agent) for row in (HEADER, *rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )
