# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab's way to the libvirt of this machine, or of a hypervisor of its own."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import libvirt

from lab.errors import LabError
from lab.places import HERE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.places import Place


def _say_nothing(_context: None, _error: object) -> None:
    """By default libvirt prints every error as well as raising it."""


libvirt.registerErrorHandler(_say_nothing, None)


class Connection:
    """A connection to the QEMU driver of a place that outlives a restart of libvirt."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._opened = _open(place)

    def live(self) -> libvirt.virConnect:
        """The connection itself, opened anew if it has broken. Raises LabError when nobody answers."""
        try:
            self._opened.getLibVersion()
        except libvirt.libvirtError:
            self.close()
            self._opened = _open(self.place)
        return self._opened

    def close(self) -> None:
        """End it."""
        with suppress(libvirt.libvirtError):  # what has broken cannot be closed in order
            self._opened.close()


def _open(place: Place) -> libvirt.virConnect:
    try:
        return libvirt.open(place.uri)
    except libvirt.libvirtError as error:
        raise LabError(f"no libvirt answers at {place.uri}: {error}", "start it: python -m lab up") from error


@contextmanager
def connected(place: Place = HERE) -> Iterator[Connection]:
    """A connection for as long as the context lasts. Raises LabError when nobody answers."""
    connection = Connection(place)
    try:
        yield connection
    finally:
        connection.close()


def answering(place: Place = HERE) -> bool:
    """Whether the libvirt of a place answers."""
    try:
        with connected(place):
            return True
    except LabError:
        return False
