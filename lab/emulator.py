# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guests' own copies of QEMU: replacing one makes drift without touching the host's file."""

from __future__ import annotations

import filecmp
import shutil
from typing import TYPE_CHECKING

from lab.places import EMULATOR, INSTALLED_EMULATOR

if TYPE_CHECKING:
    from pathlib import Path


NEW = ".dpkg-new"
"""How the name of a copy that is being written ends."""


def install(copy: Path) -> None:
    """Put a copy in place, or renew it when the host's QEMU was upgraded."""
    if not copy.exists() or not filecmp.cmp(INSTALLED_EMULATOR, copy, shallow=False):
        replace(copy)


def replace(copy: Path) -> None:
    """Replace a copy as dpkg replaces a file: written beside it, then renamed over it.

    Every guest that runs it is from then on on a deleted binary: it has drifted.
    """
    new = copy.with_name(f"{copy.name}{NEW}")
    shutil.copy2(INSTALLED_EMULATOR, new)
    new.rename(copy)


def remove(copy: Path) -> None:
    """Take a copy away, with one that was being written when somebody died."""
    for path in (copy, copy.with_name(f"{copy.name}{NEW}")):
        path.unlink(missing_ok=True)


def remove_all() -> None:
    """Take every copy away."""
    for copy in EMULATOR.parent.glob(f"{EMULATOR.name}*"):
        copy.unlink()
