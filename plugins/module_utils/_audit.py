# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What was changed of guests' agents is written down on their hypervisor, for whoever has to answer for it later.

One file for all guests, to which lines of JSON are only ever added: one before a change begins, so that none can be
missing, and one with what became of it.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ansible_collections.kvm.fleet.plugins.module_utils._clock import Clock, timestamp
from ansible_collections.kvm.fleet.plugins.module_utils._errors import RecordUnavailable
from ansible_collections.kvm.fleet.plugins.module_utils._store import records_directory

FILE = "audit.jsonl"
BACKUPS = "backups"


class Audit:
    """The audit of a libvirt connection's guests."""

    def __init__(self, uri: str, clock: Clock) -> None:
        self._uri = uri
        self._clock = clock
        self._directory = records_directory(uri).parent
        self.path = self._directory / FILE

    def add(self, event: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Add a line, on the disk itself, and return what it says. Raises RecordUnavailable."""
        entry = {"at": timestamp(self._clock.now()), "event": event, **facts, "uri": self._uri}
        line = f"{json.dumps(entry)}\n".encode("ascii")
        try:
            _append(self.path, line)
        except OSError as error:
            raise _unavailable(error, self.path) from error
        return entry

    def last(self, uuid: str) -> Mapping[str, Any] | None:
        """The latest line about a guest. Raises RecordUnavailable."""
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unavailable(error, self.path) from error
        for line in reversed(lines):
            with suppress(ValueError):  # one that was cut off says nothing
                entry: dict[str, Any] = json.loads(line)
                if entry["uuid"] == uuid:
                    return entry
        return None

    def keep(self, uuid: str, guests_path: str, content: bytes) -> str:
        """Keep the old content of a guest's file here, and return where. What was kept before is never replaced."""
        directory = self._directory / BACKUPS / uuid
        # The path is from the guest's own units, so that it must not become one of this machine.
        name = "".join(character if character.isalnum() or character in "-." else "_" for character in guests_path)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for number in range(1000):
                kept = directory / (f"{name}.{number}"[-200:] if number else name[-200:])
                if not kept.exists():
                    _append(kept, content)
                    return str(kept)
                if kept.read_bytes() == content:
                    return str(kept)
        except OSError as error:
            raise _unavailable(error, directory) from error
        raise _unavailable(OSError("it is full of backups"), directory)


def who(owner: str | None) -> dict[str, str | None]:
    """Who changes something: as the task says, as this process runs, and whoever that was before sudo."""
    user, before_sudo = getpass.getuser(), os.environ.get("SUDO_USER")
    return {"owner": owner or before_sudo or user, "user": user, "sudo_user": before_sudo}


def _append(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        while data:
            data = data[os.write(handle, data) :]
        os.fsync(handle)
    finally:
        os.close(handle)
    if is_new:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _unavailable(error: OSError, path: Path) -> RecordUnavailable:
    return RecordUnavailable(
        f"{path} cannot be used: {error}",
        remedy="See that the task runs as root on the hypervisor (ansible_become), and that this file system has room.",
        evidence={"file": str(path)},
    )
