# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is kept of a guest when a test fails."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import libvirt

from lab.errors import LabError

if TYPE_CHECKING:
    from pathlib import Path

    from lab.guests import Guest

JOURNAL_LINES = "2000"
JOURNAL_WITHIN_S = 30


def file_name(text: str) -> str:
    """A name for a file, from a test's or a guest's, which may be anything."""
    return re.sub(r"[^\w.\[\]-]+", "_", text)[:150].lstrip(".-") or "_"


def keep(guest: Guest, directory: Path) -> None:
    """Save all that may explain what a guest did into `directory`. What is not there is skipped."""
    directory.mkdir(parents=True, exist_ok=True)
    for source, name in (
        (guest.console, "console.log"),
        (guest.place.qemu_logs() / f"{guest.name}.log", "qemu.log"),
        (guest.place.tpm_log(guest.name), "swtpm.log"),
    ):
        if source.exists():
            shutil.copyfile(source, directory / name)
    (directory / "domain.xml").write_text(_xml(guest), encoding="utf-8")
    (directory / "journal.log").write_text(_journal(guest), encoding="utf-8")


def _xml(guest: Guest) -> str:
    try:
        return guest.domain.XMLDesc()
    except (libvirt.libvirtError, LabError) as error:
        return f"<!-- {error} -->\n"


def _journal(guest: Guest) -> str:
    try:
        if not guest.answers():
            return "The guest's agent does not answer.\n"
        command = ("/bin/journalctl", "--no-pager", "--lines", JOURNAL_LINES)
        return guest.run(*command, deadline_s=JOURNAL_WITHIN_S).stdout
    except (libvirt.libvirtError, LabError) as error:
        return f"{error}\n"
