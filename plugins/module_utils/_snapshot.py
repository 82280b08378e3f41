# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Creates, reverts to and deletes internal snapshots, and touches only those that this collection made."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime

from ansible_collections.kvm.fleet.plugins.module_utils._domain import ACTIVE_STATES, Domain, SnapshotRecord
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    ProofFailed,
    SnapshotImpossible,
    SnapshotNotFound,
    SnapshotNotOurs,
)
from ansible_collections.kvm.fleet.plugins.module_utils._observe import Observation
from ansible_collections.kvm.fleet.plugins.module_utils._snapshot_xml import (
    build_snapshot,
    check_snapshot_name,
    is_ours,
)

DEFAULT_DESCRIPTION = "Automatic snapshot before package upgrade"


def default_name(now: datetime) -> str:
    """``pre-upgrade-YYYYMMDD-HHMMSS``, in UTC."""
    return now.strftime("pre-upgrade-%Y%m%d-%H%M%S")


def free_bytes(path: str) -> int | None:
    """Bytes that a file on the hypervisor may still grow by, or None where that cannot be told."""
    try:
        status = os.statvfs(path)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


def creation_needed(
    observed: Observation, name: str, memory_bytes: int, free: Callable[[str], int | None] = free_bytes
) -> bool:
    """Whether a snapshot has to be made for ``name`` to exist.

    Raises InvalidRequest for an impossible name, SnapshotNotOurs when somebody else's snapshot has it, and
    SnapshotImpossible when the domain cannot have an internal snapshot: those live inside the qcow2 files themselves,
    libvirt before 10.9 refuses them for UEFI firmware, and a live one writes the guest's RAM as well.
    """
    check_snapshot_name(name)
    existing = _find(observed, name)
    if existing:
        _require_ours(observed, existing)
        return False
    without_snapshot = "Go without a snapshot on purpose (upgrade_snapshot: false), or "
    if not observed.definition.writable_disks:
        raise SnapshotImpossible(
            f"domain {observed.name!r} has no writable disk that could hold a snapshot",
            remedy=without_snapshot + "give it a qcow2 disk.",
        )
    for disk in observed.definition.writable_disks:
        if disk.format != "qcow2":
            raise SnapshotImpossible(
                f"disk {disk.target} of domain {observed.name!r} is {disk.format}, which cannot hold a snapshot",
                remedy=without_snapshot + "convert the disk with 'qemu-img convert -O qcow2'.",
                evidence={"disk": disk.target, "file": disk.file},
            )
    if observed.definition.pflash_firmware:
        raise SnapshotImpossible(
            f"domain {observed.name!r} boots from UEFI firmware, which internal snapshots do not cover",
            remedy=without_snapshot + "make a backup of it by other means.",
        )
    holder = observed.definition.writable_disks[0]
    if observed.state in ACTIVE_STATES and holder.file is not None:
        available = free(holder.file)
        if available is not None and available < memory_bytes:
            raise SnapshotImpossible(
                f"a live snapshot of domain {observed.name!r} may write {memory_bytes >> 20} MiB of RAM beside "
                f"{holder.file}, where {available >> 20} MiB are free",
                remedy="Free space there, or go without a snapshot on purpose (upgrade_snapshot: false).",
                evidence={"needed_bytes": memory_bytes, "free_bytes": available},
            )
    return True


def find_own(observed: Observation, name: str) -> SnapshotRecord | None:
    """The snapshot of this name, or None. Raises SnapshotNotOurs."""
    existing = _find(observed, name)
    if existing:
        _require_ours(observed, existing)
    return existing


def require_own(observed: Observation, name: str) -> SnapshotRecord:
    """The snapshot of this name. Raises SnapshotNotFound and SnapshotNotOurs."""
    existing = find_own(observed, name)
    if existing is None:
        raise SnapshotNotFound(
            f"domain {observed.name!r} has no snapshot named {name!r}",
            remedy="See 'virsh snapshot-list' for the snapshots that exist.",
            evidence={"snapshots": [snapshot.name for snapshot in observed.own_snapshots]},
        )
    return existing


def create(domain: Domain, name: str, description: str) -> SnapshotRecord:
    """Make the snapshot and prove that it is there. Raises ProofFailed and LibvirtFailed."""
    domain.create_snapshot(build_snapshot(name, description))
    for snapshot in domain.snapshots():
        if snapshot.name == name:
            return snapshot
    raise ProofFailed(
        f"libvirt made snapshot {name!r} of domain {domain.name!r} and does not list it",
        remedy="Look at libvirt's log before anything else is done to this domain.",
    )


def delete(domain: Domain, name: str) -> None:
    """Delete the snapshot and prove that it is gone. Raises ProofFailed and LibvirtFailed."""
    domain.delete_snapshot(name)
    if any(snapshot.name == name for snapshot in domain.snapshots()):
        raise ProofFailed(
            f"libvirt deleted snapshot {name!r} of domain {domain.name!r} and still lists it",
            remedy="Look at libvirt's log before anything else is done to this domain.",
        )


def revert(domain: Domain, name: str) -> None:
    """Bring the domain back to the snapshot and prove that it is current. Raises ProofFailed and LibvirtFailed."""
    domain.revert_to_snapshot(name)
    if not any(snapshot.name == name and snapshot.current for snapshot in domain.snapshots()):
        raise ProofFailed(
            f"libvirt reverted domain {domain.name!r} to snapshot {name!r} and does not call it current",
            remedy="Look at libvirt's log, and at the guest itself, before anything else is done to this domain.",
        )


def _find(observed: Observation, name: str) -> SnapshotRecord | None:
    return next((snapshot for snapshot in observed.snapshots if snapshot.name == name), None)


def _require_ours(observed: Observation, snapshot: SnapshotRecord) -> None:
    if not is_ours(snapshot):
        raise SnapshotNotOurs(
            f"snapshot {snapshot.name!r} of domain {observed.name!r} was not made by kvm.fleet",
            remedy="Choose another name; a snapshot of your own is yours to handle with 'virsh snapshot-revert' and "
            "'virsh snapshot-delete'.",
        )
