# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The judgement of drift."""

from __future__ import annotations

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._drift import (
    Drift,
    DriftKind,
    DriftReason,
    DriftState,
    FileId,
    RunningFile,
    judge,
    unknown,
)

OLD, NEW, OTHER_DEVICE = FileId(8, 100), FileId(8, 200), FileId(9, 100)
QEMU, SPICE, GLIBC = "/usr/bin/qemu-system-x86_64", "/usr/lib/libspice.so.1", "/usr/lib/libc.so.6"


def same(path: str) -> RunningFile:
    return RunningFile(path, OLD, OLD)


def replaced(path: str) -> RunningFile:
    return RunningFile(path, OLD, NEW)


def unreadable(path: str) -> RunningFile:
    return RunningFile(path, None, None, "the running file cannot be looked at: no")


BINARY_REPLACED = DriftReason(DriftKind.BINARY_REPLACED, QEMU, "another file has taken its place")
LIBRARY_REPLACED = DriftReason(DriftKind.LIBRARY_REPLACED, SPICE, "another file has taken its place")
LIBRARY_UNREADABLE = DriftReason(DriftKind.UNKNOWN, SPICE, "the running file cannot be looked at: no")


@pytest.mark.parametrize(
    ("binary", "libraries", "expected"),
    [
        (same(QEMU), [same(SPICE)], Drift(DriftState.NONE)),
        (same(QEMU), [], Drift(DriftState.NONE)),
        (replaced(QEMU), [same(SPICE)], Drift(DriftState.DRIFTED, (BINARY_REPLACED,))),
        (same(QEMU), [replaced(SPICE), same(GLIBC)], Drift(DriftState.DRIFTED, (LIBRARY_REPLACED,))),
        (replaced(QEMU), [replaced(SPICE)], Drift(DriftState.DRIFTED, (BINARY_REPLACED, LIBRARY_REPLACED))),
        (
            RunningFile(QEMU, OLD, None),
            [],
            Drift(
                DriftState.DRIFTED,
                (DriftReason(DriftKind.BINARY_REPLACED, QEMU, "the running file has been removed"),),
            ),
        ),
        (RunningFile(QEMU, OLD, OTHER_DEVICE), [], Drift(DriftState.DRIFTED, (BINARY_REPLACED,))),
        (same(QEMU), [unreadable(SPICE)], Drift(DriftState.UNKNOWN, (LIBRARY_UNREADABLE,))),
        (replaced(QEMU), [unreadable(SPICE)], Drift(DriftState.DRIFTED, (BINARY_REPLACED, LIBRARY_UNREADABLE))),
    ],
    ids=[
        "nothing replaced",
        "no libraries",
        "binary replaced",
        "library replaced",
        "both replaced",
        "binary removed",
        "same inode on another device",
        "library unreadable",
        "binary replaced and library unreadable",
    ],
)
def test_drift_is_judged_file_by_file(binary: RunningFile, libraries: list[RunningFile], expected: Drift) -> None:
    assert judge(binary, libraries) == expected


def test_what_cannot_be_measured_is_unknown_and_says_why() -> None:
    assert unknown("no process") == Drift(DriftState.UNKNOWN, (DriftReason(DriftKind.UNKNOWN, "", "no process"),))
