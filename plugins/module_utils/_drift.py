# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Decides whether a QEMU process still runs what is installed on the hypervisor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True)
class FileId:
    """What makes a file this very file: device and inode."""

    device: int
    inode: int


@dataclass(frozen=True)
class RunningFile:
    """A file whose code a process runs, beside the file that its path leads to now.

    ``running`` is None when it could not be looked at, ``installed`` is None when there is no file at the path any
    more; ``problem`` says why something could not be looked at.
    """

    path: str
    running: FileId | None
    installed: FileId | None
    problem: str | None = None


class DriftState(str, Enum):
    NONE = "none"
    DRIFTED = "drifted"
    UNKNOWN = "unknown"
    NOT_RUNNING = "not_running"


class DriftKind(str, Enum):
    BINARY_REPLACED = "binary_replaced"
    LIBRARY_REPLACED = "library_replaced"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class DriftReason:
    """Why a guest counts as drifted, or why that cannot be told. ``path`` is empty where no file is to blame."""

    kind: DriftKind
    path: str
    detail: str


@dataclass(frozen=True)
class Drift:
    state: DriftState
    reasons: tuple[DriftReason, ...] = ()


def judge(binary: RunningFile, libraries: Sequence[RunningFile]) -> Drift:
    """Compare what a process runs with what is installed.

    A replaced file is drift, whatever else could not be looked at. Without one, a single file that could not be looked
    at makes the answer unknown. A library counts because a new libspice or glibc is in use only after the process was
    replaced (needrestart's rule for executable mappings).
    """
    reasons = [reason for reason in (_reason(binary, DriftKind.BINARY_REPLACED),) if reason]
    reasons += [reason for reason in (_reason(library, DriftKind.LIBRARY_REPLACED) for library in libraries) if reason]
    if any(reason.kind is not DriftKind.UNKNOWN for reason in reasons):
        return Drift(DriftState.DRIFTED, tuple(reasons))
    return Drift(DriftState.UNKNOWN if reasons else DriftState.NONE, tuple(reasons))


def unknown(detail: str) -> Drift:
    """Drift that could not be measured at all, and why."""
    return Drift(DriftState.UNKNOWN, (DriftReason(DriftKind.UNKNOWN, "", detail),))


def _reason(file: RunningFile, kind: DriftKind) -> DriftReason | None:
    if file.problem:
        return DriftReason(DriftKind.UNKNOWN, file.path, file.problem)
    if file.installed is None:
        return DriftReason(kind, file.path, "the running file has been removed")
    if file.installed != file.running:
        return DriftReason(kind, file.path, "another file has taken its place")
    return None
