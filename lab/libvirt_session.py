# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one place that imports libvirt, and the part of it that the lab uses, typed.

libvirt-python has no types, and the lab has to be importable before it is installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol

from lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Sequence

URI = "qemu:///system"

# libvirt's own numbers (virDomainState, virDomainUndefineFlagsValues, virErrorNumber, …).
STATE_RUNNING = 1
STATE_SHUT_OFF = 5
UNDEFINE_EVERYTHING_OF_IT = 1 | 2 | 4  # managed save, snapshots' metadata, NVRAM
SNAPSHOT_REVERT_RUNNING = 1
NO_SUCH_DOMAIN = 42
NO_SUCH_SNAPSHOT = 72


class Snapshot(Protocol):
    """A virDomainSnapshot."""

    def delete(self, flags: int = 0) -> int: ...


class Domain(Protocol):
    """A virDomain."""

    def name(self) -> str: ...
    def UUIDString(self) -> str: ...
    def XMLDesc(self, flags: int = 0) -> str: ...
    def state(self, flags: int = 0) -> Sequence[int]: ...
    def isActive(self) -> int: ...
    def create(self) -> int: ...
    def resume(self) -> int: ...
    def destroy(self) -> int: ...
    def undefineFlags(self, flags: int = 0) -> int: ...
    def snapshotCreateXML(self, xml: str, flags: int = 0) -> Snapshot: ...
    def snapshotLookupByName(self, name: str, flags: int = 0) -> Snapshot: ...
    def revertToSnapshot(self, snapshot: Snapshot, flags: int = 0) -> int: ...


class Connection(Protocol):
    """A virConnect."""

    def close(self) -> int: ...
    def getCapabilities(self) -> str: ...
    def listAllDomains(self, flags: int = 0) -> list[Domain]: ...
    def defineXML(self, xml: str) -> Domain: ...


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise LabError(
            f"this Python cannot import {name}: {error}",
            "install libvirt-python into it, or use the project's virtual environment",
        ) from error


def libvirt_error() -> type[Exception]:
    """The exception class of libvirt, for except clauses."""
    error: type[Exception] = _module("libvirt").libvirtError
    return error


def error_code(error: Any) -> int:
    """The libvirt error number of an exception of `libvirt_error()`."""
    return int(error.get_error_code())


def connect() -> Connection:
    """Open the system's QEMU driver. Raises libvirt's error when nobody answers."""
    libvirt = _module("libvirt")
    # By default every error is printed as well as raised.
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    connection: Connection = libvirt.open(URI)
    return connection


def agent_command(domain: Domain, command: str, deadline_s: int) -> str:
    """Send one JSON command to a guest's agent and return its JSON reply."""
    reply: str = _module("libvirt_qemu").qemuAgentCommand(domain, command, deadline_s, 0)
    return reply
