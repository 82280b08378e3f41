# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Creates, reverts to and deletes snapshots, and touches only those that this collection made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from ansible_collections.kvm.fleet.plugins.module_utils import _external, _quiesce
from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._domain import (
    ACTIVE_STATES,
    Domain,
    Hypervisor,
    SnapshotRecord,
)
from ansible_collections.kvm.fleet.plugins.module_utils._domain_xml import Disk
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    DomainUnsafe,
    ProofFailed,
    SavedStateRefused,
    SnapshotBlocked,
    SnapshotNotFound,
    SnapshotNotOurs,
)
from ansible_collections.kvm.fleet.plugins.module_utils._external import Wanted
from ansible_collections.kvm.fleet.plugins.module_utils._observe import Observation
from ansible_collections.kvm.fleet.plugins.module_utils._qemu_img import free_bytes
from ansible_collections.kvm.fleet.plugins.module_utils._record import Facts
from ansible_collections.kvm.fleet.plugins.module_utils._snapshot_policy import (
    Choice,
    Room,
    SnapshotFacts,
    Way,
    choose,
)
from ansible_collections.kvm.fleet.plugins.module_utils._snapshot_xml import (
    build_snapshot,
    check_snapshot_name,
    is_being_deleted,
    is_ours,
)

DEFAULT_DESCRIPTION = "Automatic snapshot before package upgrade"


def default_name(now: datetime) -> str:
    """``pre-upgrade-YYYYMMDD-HHMMSS``, in UTC."""
    return now.strftime("pre-upgrade-%Y%m%d-%H%M%S")


def creation_needed(observed: Observation, name: str) -> bool:
    """Whether a snapshot has to be made for ``name`` to exist.

    Raises InvalidRequest for an impossible name, SnapshotNotOurs when somebody else's snapshot has it, and
    SnapshotBlocked when it is the name of one whose deletion was begun.
    """
    check_snapshot_name(name)
    existing = find_own(observed, name)
    if existing and is_being_deleted(existing):
        raise SnapshotBlocked(
            f"the deletion of snapshot {name!r} of domain {observed.name!r} was begun and has not come to its end",
            remedy="Delete it (state: absent), or choose another name.",
        )
    return existing is None


def choose_way(
    hypervisor: Hypervisor,
    domain: Domain,
    observed: Observation,
    asked: str,
    free: Callable[[str], int | None] = free_bytes,
) -> Choice:
    """How to make a snapshot of the domain. Raises SnapshotImpossible, see ``_snapshot_policy``, and GuestFrozen."""
    definition = observed.definition
    facts = SnapshotFacts(
        domain=observed.name,
        active=observed.state in ACTIVE_STATES,
        disks=definition.writable_disks,
        rooms=tuple(_room(domain, disk, free) for disk in definition.writable_disks),
        pflash_firmware=definition.pflash_firmware,
        unsaveable=definition.unsaveable,
        memory_bytes=domain.memory_bytes(),
        nvram=definition.nvram,
        tpm=definition.tpm,
        internal=tuple(snapshot.name for snapshot in observed.snapshots if not snapshot.external),
        external=tuple(snapshot.name for snapshot in observed.snapshots if snapshot.external),
        layers_known=hypervisor.has_disk_snapshots(),
        qemu_img=hypervisor.images.installed(),
        persistent=observed.persistent,
        managed_save=observed.managed_save,
    )
    choice = choose(facts, asked)
    if choice.way is Way.EXTERNAL:
        # The agent is asked only where it matters.
        problem = _quiesce.problem(GuestAgent(domain, hypervisor.clock))
        if problem:
            choice = choose(replace(facts, quiesce_problem=problem), asked)
    return choice


def _room(domain: Domain, disk: Disk, free: Callable[[str], int | None]) -> Room:
    if disk.file is None:
        return Room(None, 0, "", None)
    try:
        pool = str(Path(disk.file).stat().st_dev)
    except OSError:
        pool = disk.file
    return Room(disk.file, domain.disk_size(disk.target), pool, free(disk.file))


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


def create(
    hypervisor: Hypervisor, domain: Domain, wanted: Wanted, choice: Choice, note: Callable[[Facts], None]
) -> SnapshotRecord:
    """Make the snapshot and prove that it is there. Raises ProofFailed and LibvirtFailed.

    ``note`` is told what the next run has to know should this one die: see ``_external.create``.
    """
    name, description = wanted.name, wanted.description
    if choice.layers:
        return _external.create(hypervisor, domain, wanted, note)
    domain.create_snapshot(build_snapshot(name, description))
    for snapshot in domain.snapshots():
        if snapshot.name == name:
            return snapshot
    raise ProofFailed(
        f"libvirt made snapshot {name!r} of domain {domain.name!r} and does not list it",
        remedy="Look at libvirt's log before anything else is done to this domain.",
    )


def require_safe_deletion(hypervisor: Hypervisor, domain: Domain, snapshot: SnapshotRecord) -> None:
    """Raise what ``delete`` would raise before it changes anything."""
    if snapshot.external:
        _external.require_deletable(hypervisor, domain, snapshot)


def delete(hypervisor: Hypervisor, domain: Domain, snapshot: SnapshotRecord) -> None:
    """Delete the snapshot and prove that it is gone. Raises ProofFailed and LibvirtFailed."""
    name = snapshot.name
    if snapshot.external:
        _external.delete(hypervisor, domain, snapshot)
    else:
        domain.delete_snapshot(name)
    if any(snapshot.name == name for snapshot in domain.snapshots()):
        raise ProofFailed(
            f"libvirt deleted snapshot {name!r} of domain {domain.name!r} and still lists it",
            remedy="Look at libvirt's log before anything else is done to this domain.",
        )


def revert(
    hypervisor: Hypervisor, domain: Domain, snapshot: SnapshotRecord, begin: Callable[[], None]
) -> SavedStateRefused | None:
    """Bring the domain back to the snapshot and prove that it is current. Raises ProofFailed and LibvirtFailed.

    ``begin`` is called before anything of the guest is changed. What is returned is to be told, see
    ``_external.revert``.
    """
    if snapshot.external:
        return _external.revert(hypervisor, domain, snapshot, begin)
    begin()
    domain.revert_to_snapshot(snapshot.name)
    if not any(other.name == snapshot.name and other.current for other in domain.snapshots()):
        raise ProofFailed(
            f"libvirt reverted domain {domain.name!r} to snapshot {snapshot.name!r} and does not call it current",
            remedy="Look at libvirt's log, and at the guest itself, before anything else is done to this domain.",
        )
    return None


def way_of(snapshot: SnapshotRecord) -> Way:
    """How it was made, as libvirt tells."""
    if snapshot.external and snapshot.has_ram:
        return Way.EXTERNAL_LIVE
    if snapshot.external and snapshot.state == "disk-snapshot":
        return Way.EXTERNAL
    return Way.LIVE if snapshot.has_ram else Way.OFFLINE


def require_safe_revert(
    hypervisor: Hypervisor, domain: Domain, observed: Observation, snapshot: SnapshotRecord
) -> None:
    """Raise DomainUnsafe for a domain with a managed save image: a revert leaves that where it is.

    Raises SnapshotBlocked for an external snapshot that cannot be reverted to as things are.
    """
    if snapshot.external:
        _external.require_revertible(hypervisor, domain, snapshot)
    if observed.managed_save:
        raise DomainUnsafe(
            f"domain {observed.name!r} has a managed save image: its next start would bring back that RAM, which does "
            "not go with the disks of the snapshot",
            remedy="Remove the image with 'virsh managedsave-remove' if nobody needs it.",
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
