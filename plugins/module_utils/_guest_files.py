# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The files of one guest, whichever way they are reached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

MAX_FILE = 1024 * 1024
"""Bytes that a file may have to be read. What the collection reads are settings, and a guest may be hostile."""


class GuestFiles(Protocol):
    """A way to a guest's files. Paths are absolute."""

    def read(self, path: str) -> bytes | None:
        """All of a file, or None where there is none. A file above MAX_FILE is refused."""

    def write(self, path: str, content: bytes) -> None:
        """Give a file this content. One that exists keeps its owner, mode and label; directories above are made."""

    def names(self, directory: str) -> Sequence[str] | None:
        """The names in a directory, sorted; none where there is no such directory. None where this way cannot tell."""


class RootFiles(GuestFiles, Protocol):
    """A way on which files can be made that only root may change, and removed."""

    def write(self, path: str, content: bytes, *, like: str | None = None) -> None:
        """Likewise. A file that is made gets the owner, mode and label of the one that it is to be ``like``."""

    def remove(self, path: str) -> None:
        """Remove a file."""
