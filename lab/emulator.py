# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guests' own copy of QEMU: replacing it makes drift without touching the host's file."""

from __future__ import annotations

import filecmp
import shutil

from lab.places import EMULATOR, INSTALLED_EMULATOR


def install() -> None:
    """Put the copy in place, or renew it when the host's QEMU was upgraded."""
    if not EMULATOR.exists() or not filecmp.cmp(INSTALLED_EMULATOR, EMULATOR, shallow=False):
        replace()


def replace() -> None:
    """Replace the copy as dpkg replaces a file: written beside it, then renamed over it.

    Every guest that runs it is from then on on a deleted binary: it has drifted.
    """
    new = EMULATOR.with_name(f"{EMULATOR.name}.dpkg-new")
    shutil.copy2(INSTALLED_EMULATOR, new)
    new.rename(EMULATOR)


def remove() -> None:
    """Take the copy away."""
    EMULATOR.unlink(missing_ok=True)
    EMULATOR.with_name(f"{EMULATOR.name}.dpkg-new").unlink(missing_ok=True)
