# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One test session's guests: each made within a context, all of them gone at its end."""

from __future__ import annotations

import itertools
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, TypedDict

from lab import daemons, emulator, evidence, fleets, guests, leftovers
from lab.bed import bed, changing_the_lab
from lab.domain_xml import GuestSpec, Machine
from lab.errors import LeftOver
from lab.libvirt_session import connected
from lab.locks import present
from lab.places import SESSIONS
from lab.process import this_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typing_extensions import Unpack

    from lab.bed import Bed
    from lab.fleets import Fleet
    from lab.guests import Guest
    from lab.hypervisor import Hypervisor
    from lab.process import Process


class GuestOptions(TypedDict, total=False):
    """What may be asked of a guest besides its name: see GuestSpec."""

    memory_mib: int
    disk_format: str
    second_disk: str
    firmware: str
    tpm: bool
    own_disk: bool
    agent_channel: bool
    serial_bus: bool
    agent_service: bool
    private_emulator: bool
    private_library: bool
    package_manager: str
    ssh_port: int


class Session:
    """The test bed as one test session uses it, beside others if there are any."""

    def __init__(self, ready: Bed, owner: Process, failures: Path) -> None:
        self.bed = ready
        self.failures = failures
        self._owner = owner
        self._numbers = itertools.count(1)
        self._present: dict[str, Guest] = {}
        self._beds: dict[Hypervisor, Bed] = {}

    @contextmanager
    def fleet(self, count: int) -> Iterator[Fleet]:
        """Make so many hypervisors for as long as the context lasts. Raises LeftOver if a guest is left on one."""
        with changing_the_lab():
            made = fleets.make(count, self._owner)
        try:
            with ExitStack() as stack:
                for hypervisor in made.hypervisors:
                    connection = stack.enter_context(connected(hypervisor.place))
                    machine = Machine(self.bed.machine.accelerator)
                    self._beds[hypervisor] = replace(self.bed, connection=connection, machine=machine)
                yield made
                left = self._left_on(made)
        finally:
            for hypervisor in made.hypervisors:
                self._beds.pop(hypervisor, None)
            with changing_the_lab():
                fleets.remove(made)
        if left:
            raise LeftOver(f"the fleet had left on it: {', '.join(left)}", "see that whoever made it removes it")

    def _left_on(self, fleet: Fleet) -> list[str]:
        beds = {hypervisor.name: self._beds[hypervisor] for hypervisor in fleet.hypervisors}
        domains = [f"domain {guest.name!r} on {name}" for name, bed in beds.items() for guest in bed.guests()]
        return [*domains, *(f"files of {directory.name}" for directory in fleet.guests.iterdir())]

    @contextmanager
    def guest(
        self,
        name: str | None = None,
        *,
        on: Hypervisor | None = None,
        start: bool = True,
        wait: bool = True,
        **options: Unpack[GuestOptions],
    ) -> Iterator[Guest]:
        """Make a guest for as long as the context lasts, on a hypervisor of a fleet or else on this machine.

        With `wait` it is started, answering and settled when the context begins, if its agent can
        answer at all; without `start` it is off.
        """
        chosen = name if name is not None else f"test-{self._owner.pid}-{next(self._numbers)}"
        guest = (self._beds[on] if on else self.bed).define(GuestSpec(chosen, owner=self._owner, **options))
        self._present[guest.uuid] = guest
        try:
            if start:
                self._start(guest, wait=wait)
            yield guest
        finally:
            with changing_the_lab():
                # On a fleet it may have been migrated, and be known to several.
                for connection in {guest.connection, *(bed.connection for bed in self._beds.values() if on)}:
                    guest.seen_by(connection).destroy()
            del self._present[guest.uuid]

    def _start(self, guest: Guest, *, wait: bool) -> None:
        try:
            guest.start()
            if wait and guest.spec.reachable:
                guest.wait_until_ready()
                if guest.spec.ssh_port:
                    guest.admit_by_ssh()
        except Exception:
            # The test fails only after this guest is gone.
            evidence.keep(guest, self.failures / "not-ready" / evidence.file_name(guest.name))
            raise

    def seen_on(self, hypervisor: Hypervisor, guest: Guest) -> Guest:
        """A guest as the hypervisor knows it that it was migrated to."""
        return guest.seen_by(self._beds[hypervisor].connection)

    def keep_evidence(self, what_failed: str) -> None:
        """Save what may explain a failure, of each guest that is there now."""
        for guest in self._present.values():
            evidence.keep(guest, self.failures / evidence.file_name(what_failed) / evidence.file_name(guest.name))

    def left_overs(self) -> list[str]:
        """What this session has left behind, and files or processes of guests that are no more."""
        with changing_the_lab():
            return self._left_overs()

    def _left_overs(self) -> list[str]:
        ours = [guest for guest in self.bed.guests() if guest.spec.owner == self._owner]
        connection = self.bed.connection
        return [
            *(f"domain {guest.name!r}" for guest in ours),
            *(f"QEMU process {pid}" for pid in leftovers.processes_without_domain(connection)),
            *(f"files of {uuid}" for uuid in leftovers.files_without_domain(connection)),
        ]


@contextmanager
def session(*, allow_foreign_guests: bool, failures: Path) -> Iterator[Session]:
    """Bring the bed up for a test session. The last of those that run at once takes it down, unless guests are left.

    Evidence goes below `failures`. Raises LeftOver if something of it outlives it.
    """
    with present(SESSIONS) as last:
        with bed(allow_foreign_guests=allow_foreign_guests) as ready:
            opened = Session(ready, this_process(), failures)
            yield opened
            left = opened.left_overs()
            unused = not ready.guests() and not guests.foreign_names(ready.connection)
        with changing_the_lab():
            if last() and unused:
                emulator.remove_all()
                daemons.stop()
    if left:
        raise LeftOver(f"the test session leaves behind: {', '.join(left)}", "python -m lab down")
