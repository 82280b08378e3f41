# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A library of a guest's own, so that library drift is made without touching the host's files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from lab.errors import Unsupported
from lab.places import INSTALLED_EMULATOR
from lab.run import run

if TYPE_CHECKING:
    from lab.places import Place

# Small, linked by QEMU, and used by nothing that a guest here does.
LIBRARY = "libslirp.so.0"


def parse_ldd(text: str, name: str) -> Path | None:
    """Where ldd(1) says a library is."""
    for line in text.splitlines():
        words = line.split()
        if words[:2] == [name, "=>"]:
            return Path(words[2])
    return None


def provide(place: Place, uuid: str) -> None:
    """Give a guest its copy, or replace the one it has as dpkg does: it drifts if it runs."""
    original = parse_ldd(run(["ldd", INSTALLED_EMULATOR]), LIBRARY)
    if original is None:
        raise Unsupported(
            f"{INSTALLED_EMULATOR} does not use {LIBRARY}",
            "name a library that it does use, in lab/libraries.py",
        )
    directory = place.library_directory(uuid)
    directory.mkdir(mode=0o755, exist_ok=True)
    new = directory / f"{LIBRARY}.dpkg-new"
    shutil.copyfile(original, new)
    new.chmod(0o644)
    new.rename(directory / LIBRARY)
