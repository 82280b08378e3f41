# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Keeps the records of the work on guests, and who works on members of a group, in files of the hypervisor.

Two files a guest, named after its domain's UUID: the record, which is replaced as a whole, so that whoever dies leaves
the old one or the new one; and a lock that a module holds (flock) for as long as it works on the guest. The kernel
releases it, however the module ends. The lock's file is never removed, or two modules could each hold one. Likewise two
files a group, whose lock is held for as long as one of its places is taken or let go of.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from ansible_collections.kvm.fleet.plugins.module_utils import _group, _record
from ansible_collections.kvm.fleet.plugins.module_utils._clock import Clock, Deadline, ticks, timestamp
from ansible_collections.kvm.fleet.plugins.module_utils._errors import RecordDamaged, RecordUnavailable
from ansible_collections.kvm.fleet.plugins.module_utils._group import Group
from ansible_collections.kvm.fleet.plugins.module_utils._record import Malformed, Moment, Record

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


LOCK_PATIENCE = 5
"""Seconds to wait for a guest's lock. Whoever only takes or looks at a lease has it for much less."""


class LockHeld(Exception):
    """Another module works on the guest, or on its group's places."""


def records_directory(uri: str) -> Path:
    """Where the records of the domains of a connection are: in the user's own place for a session's."""
    if urlsplit(uri).path == "/session":
        return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state", "kvm-fleet", "runs")
    return Path("/var/lib/kvm-fleet/runs")


def groups_directory(uri: str) -> Path:
    """Where the places of groups are, likewise."""
    return records_directory(uri).parent / "groups"


def moment(clock: Clock) -> Moment:
    """Now, on this machine."""
    return Moment(timestamp(clock.now()), clock.monotonic(), BOOT_ID.read_text(encoding="ascii").strip())


class _Files:
    """Texts in one directory by key, each with a lock beside it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, key: str) -> Path:
        """Where the text of a key is."""
        return self.directory / f"{key}.json"

    def _read(self, key: str) -> str | None:
        """Raises RecordUnavailable, and ValueError for what is no text."""
        path = self.path(key)
        try:
            return path.read_bytes().decode("utf-8")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unavailable(error, path) from error

    def _write(self, key: str, text: str) -> None:
        """Replace a text, on the disk itself. Raises RecordUnavailable."""
        path = self.path(key)
        new = self.directory / f"{key}.new"  # one name is enough: whoever writes holds the lock
        try:
            self._make_directory()
            with open(new, "w", encoding="utf-8", opener=_private) as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
            _sync_directory(self.directory)
        except OSError as error:
            raise _unavailable(error, path) from error

    @contextmanager
    def locked(self, key: str, clock: Clock, patience: float = LOCK_PATIENCE) -> Iterator[None]:
        """Hold a lock for as long as the context lasts.

        A child that is given our files holds it as well, and for longer where it outlives us: see guestfish.
        Raises LockHeld after ``patience`` in seconds, and RecordUnavailable.
        """
        path = self._lock_path(key)
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

    def is_locked(self, key: str) -> bool:
        """Whether some module holds a lock at this moment. Changes nothing. Raises RecordUnavailable."""
        path = self._lock_path(key)
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

    def wait_until_free(self, key: str, clock: Clock, patience: float = LOCK_PATIENCE) -> None:
        """Return as soon as no module holds a lock. Changes nothing.

        Raises LockHeld after ``patience`` in seconds, and RecordUnavailable.
        """
        for _tick in ticks(Deadline(clock, patience), clock):
            if not self.is_locked(key):
                return
        raise LockHeld

    @contextmanager
    def alone(self, key: str, clock: Clock, patience: float = LOCK_PATIENCE, *, check: bool) -> Iterator[None]:
        """Hold a lock; in check mode, which must leave nothing behind, only see that nobody else does.

        Raises LockHeld after ``patience`` in seconds, and RecordUnavailable.
        """
        if check:
            self.wait_until_free(key, clock, patience)
            yield
        else:
            with self.locked(key, clock, patience):
                yield

    def _lock_path(self, key: str) -> Path:
        return self.directory / f"{key}.lock"

    def _make_directory(self) -> None:
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        self.directory.mkdir(mode=0o700, exist_ok=True)


class Store(_Files):
    """The records in one directory, by their domains' UUIDs."""

    def read(self, uuid: str) -> Record | None:
        """The record of a domain, if it has one. Raises RecordDamaged and RecordUnavailable."""
        path = self.path(uuid)
        try:
            text = self._read(uuid)
            found = None if text is None else _record.parse(text)
            if found and found.uuid != uuid:
                raise Malformed(f"it is about the domain {found.uuid}")
        except ValueError as error:
            raise RecordDamaged(
                f"the record of a guest in {path} cannot be read: {error}",
                remedy="Use the version of this collection that wrote it. Or look at the guest (is it up, is a "
                f"snapshot left, is an upgrade at work in it?), put it in order by hand, and remove {path}.",
                evidence={"file": str(path)},
            ) from error
        return found

    def named(self, names: Collection[str]) -> list[Record]:
        """The records of domains of these names that can be read, by whatever UUIDs."""
        found = []
        for path in sorted(self.directory.glob("*.json")):
            with suppress(RecordDamaged, RecordUnavailable):  # one that cannot be read tells nothing of a name
                found.append(self.read(path.stem))
        return [record for record in found if record and record.domain in names]

    def write(self, record: Record) -> None:
        """Replace the record of a domain. Raises RecordUnavailable.

        A record that cannot be read was refused by then: whoever writes has read it first.
        """
        self._write(record.uuid, _record.serialise(record))


class GroupStore(_Files):
    """The groups in one directory, by ``_group.key_of`` their names."""

    def read(self, name: str) -> Group:
        """Who works on members of a group. Raises RecordDamaged and RecordUnavailable."""
        path = self.path(_group.key_of(name))
        try:
            text = self._read(_group.key_of(name))
            found = Group(name, ()) if text is None else _group.parse(text)
            if found.name != name:
                raise Malformed(f"it is about the group {found.name}")
        except ValueError as error:
            raise RecordDamaged(
                f"who works on members of the group {name!r} is kept in {path}, which cannot be read: {error}",
                remedy=f"Use the version of this collection that wrote it. Or see that no run is at work, and all of "
                f"the group's members are up, and remove {path}.",
                evidence={"file": str(path)},
            ) from error
        return found

    def write(self, group: Group) -> None:
        """Replace what is kept of a group. Raises RecordUnavailable."""
        self._write(_group.key_of(group.name), _group.serialise(group))


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
        f"what is on record in {path} cannot be used: {error}",
        remedy="See that the task runs as root on the hypervisor (ansible_become), and that this file system has room "
        "and can be written to.",
        evidence={"file": str(path)},
    )
