# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Keeps the records of the work on guests in files of the hypervisor.

Two files a guest, named after its domain's UUID: the record, which is replaced as a whole, so that whoever dies leaves
the old one or the new one; and a lock that a module holds (flock) for as long as it works on the guest. The kernel
releases it, however the module ends. The lock's file is never removed, or two modules could each hold one.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from ansible_collections.kvm.fleet.plugins.module_utils import _record
from ansible_collections.kvm.fleet.plugins.module_utils._clock import Clock, Deadline, ticks, timestamp
from ansible_collections.kvm.fleet.plugins.module_utils._errors import RecordDamaged, RecordUnavailable
from ansible_collections.kvm.fleet.plugins.module_utils._record import Malformed, Moment, Record

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


LOCK_PATIENCE = 5
"""Seconds to wait for a guest's lock. Whoever only takes or looks at a lease has it for much less."""


class LockHeld(Exception):
    """Another module works on the guest."""


def records_directory(uri: str) -> Path:
    """Where the records of the domains of a connection are: in the user's own place for a session's."""
    if urlsplit(uri).path == "/session":
        return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state", "kvm-fleet", "runs")
    return Path("/var/lib/kvm-fleet/runs")


def moment(clock: Clock) -> Moment:
    """Now, on this machine."""
    return Moment(timestamp(clock.now()), clock.monotonic(), BOOT_ID.read_text(encoding="ascii").strip())


class Store:
    """The records in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, uuid: str) -> Path:
        """Where the record of a domain is."""
        return self.directory / f"{uuid}.json"

    def read(self, uuid: str) -> Record | None:
        """The record of a domain, if it has one. Raises RecordDamaged and RecordUnavailable."""
        path = self.path(uuid)
        try:
            found = _record.parse(path.read_bytes().decode("utf-8"))
            if found.uuid != uuid:
                raise Malformed(f"it is about the domain {found.uuid}")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unavailable(error, path) from error
        except ValueError as error:
            raise RecordDamaged(
                f"the record of a guest in {path} cannot be read: {error}",
                remedy="Use the version of this collection that wrote it. Or look at the guest (is it up, is a "
                f"snapshot left, is an upgrade at work in it?), put it in order by hand, and remove {path}.",
                evidence={"file": str(path)},
            ) from error
        return found

    def write(self, record: Record) -> None:
        """Replace the record of a domain, on the disk itself. Raises RecordUnavailable.

        A record that cannot be read was refused by then: whoever writes has read it first.
        """
        path = self.path(record.uuid)
        new = path.with_suffix(".new")  # one name is enough: whoever writes holds the lock
        try:
            self._make_directory()
            with open(new, "w", encoding="utf-8", opener=_private) as file:
                file.write(_record.serialise(record))
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
            _sync_directory(self.directory)
        except OSError as error:
            raise _unavailable(error, path) from error

    @contextmanager
    def locked(self, uuid: str, clock: Clock, patience: float = LOCK_PATIENCE) -> Iterator[None]:
        """Hold a domain's lock for as long as the context lasts.

        A child that is given our files holds it as well, and for longer where it outlives us: see guestfish.
        Raises LockHeld after ``patience`` in seconds, and RecordUnavailable.
        """
        path = self._lock_path(uuid)
        try:
            self._make_directory()
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.set_inheritable(handle, True)
        except OSError as error:
            raise _unavailable(error, path) from error
        try:
            for _tick in ticks(Deadline(clock, patience), clock):
                if _lock(handle, fcntl.LOCK_EX):
                    break
            else:
                raise LockHeld
            yield
        finally:
            os.close(handle)

    def is_locked(self, uuid: str) -> bool:
        """Whether some module works on the domain at this moment. Changes nothing. Raises RecordUnavailable."""
        path = self._lock_path(uuid)
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _unavailable(error, path) from error
        try:
            return not _lock(handle, fcntl.LOCK_SH)
        finally:
            os.close(handle)

    def wait_until_free(self, uuid: str, clock: Clock, patience: float = LOCK_PATIENCE) -> None:
        """Return as soon as no module works on the domain. Changes nothing.

        Raises LockHeld after ``patience`` in seconds, and RecordUnavailable.
        """
        for _tick in ticks(Deadline(clock, patience), clock):
            if not self.is_locked(uuid):
                return
        raise LockHeld

    def _lock_path(self, uuid: str) -> Path:
        return self.directory / f"{uuid}.lock"

    def _make_directory(self) -> None:
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        self.directory.mkdir(mode=0o700, exist_ok=True)


def _lock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unavailable(error: OSError, path: Path) -> RecordUnavailable:
    return RecordUnavailable(
        f"the record of a guest in {path} cannot be used: {error}",
        remedy="See that the task runs as root on the hypervisor (ansible_become), and that this file system has room "
        "and can be written to.",
        evidence={"file": str(path)},
    )
