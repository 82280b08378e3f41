# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab's way to the system's libvirt."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import libvirt

from lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterator

URI = "qemu:///system"


def _say_nothing(_context: None, _error: object) -> None:
    """By default libvirt prints every error as well as raising it."""


libvirt.registerErrorHandler(_say_nothing, None)


class Connection:
    """A connection to the system's QEMU driver that outlives a restart of libvirt."""

    def __init__(self) -> None:
        self._opened = _open()

    def live(self) -> libvirt.virConnect:
        """The connection itself, opened anew if it has broken. Raises LabError when nobody answers."""
        try:
            self._opened.getLibVersion()
        except libvirt.libvirtError:
            self.close()
            self._opened = _open()
        return self._opened

    def close(self) -> None:
        """End it."""
        with suppress(libvirt.libvirtError):  # what has broken cannot be closed in order
            self._opened.close()


def _open() -> libvirt.virConnect:
    try:
        return libvirt.open(URI)
    except libvirt.libvirtError as error:
        raise LabError(f"no libvirt answers at {URI}: {error}", "start it: python -m lab up") from error


@contextmanager
def connected() -> Iterator[Connection]:
    """A connection for as long as the context lasts. Raises LabError when nobody answers."""
    connection = Connection()
    try:
        yield connection
    finally:
        connection.close()


def answering() -> bool:
    """Whether the system's libvirt answers."""
    try:
        with connected():
            return True
    except LabError:
        return False
