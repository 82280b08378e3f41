# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Deletes the snapshots of a guest that have had their time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ansible_collections.kvm.fleet.plugins.module_utils import _external, _lease, _snapshot
from ansible_collections.kvm.fleet.plugins.module_utils._domain import Domain, Hypervisor
from ansible_collections.kvm.fleet.plugins.module_utils._errors import DiskImageFailed, FleetError
from ansible_collections.kvm.fleet.plugins.module_utils._observe import Observation, observe
from ansible_collections.kvm.fleet.plugins.module_utils._qemu_img import allocated_bytes, snapshot_sizes
from ansible_collections.kvm.fleet.plugins.module_utils._retention import Judged, Limits, judge
from ansible_collections.kvm.fleet.plugins.module_utils._snapshot_xml import is_being_deleted


def prune(hypervisor: Hypervisor, domain: Domain, limits: Limits, *, check: bool) -> dict[str, Any]:
    """Delete what has to go, what was begun first and then the oldest, and return what a module returns.

    To be called while no other module works on the guest. An error tells as evidence what was deleted by then.
    """
    observed = observe(hypervisor, domain)
    record, _at_work, _now = _lease.look(hypervisor, domain.uuid)
    sizes = sizes_of(observed)
    judged = judge(
        [(snapshot, sizes.get(snapshot.name)) for snapshot in observed.own_snapshots],
        observed.state,
        record,
        limits,
        hypervisor.clock.now().timestamp(),
    )
    going = [one for one in judged if one.goes]
    freed: int | None = sum(one.size or 0 for one in going)
    if going and not check:
        before = _allocated(hypervisor, observed)
        _delete(hypervisor, domain, going)
        freed = None if before is None else max(0, sum(before.values()) - sum(_allocated_by(before).values()))
    names = [snapshot.name for snapshot in observed.own_snapshots]
    gone = {one.snapshot.name for one in going}
    return {
        "changed": bool(going),
        "pruned": [_facts(one) for one in going],
        "kept": [_facts(one) for one in judged if not one.goes],
        "freed": freed,
        "diff": {
            "before": "".join(f"{name}\n" for name in names),
            "after": "".join(f"{name}\n" for name in names if name not in gone),
        },
    }


def sizes_of(observed: Observation) -> dict[str, int | None]:
    """Bytes that the domain's snapshots hold, as far as anybody can tell."""
    found = {snapshot.name: _external.size_of(snapshot) for snapshot in observed.snapshots if snapshot.external}
    for disk in observed.definition.writable_disks:
        image = disk.file or disk.device
        if disk.format != "qcow2" or image is None:
            continue
        for name, size in (snapshot_sizes(image) or {}).items():
            found[name] = (found.get(name) or 0) + size
    return found


def _delete(hypervisor: Hypervisor, domain: Domain, going: Sequence[Judged]) -> None:
    deleted: list[str] = []
    oldest_first = list(reversed(going))
    # The job of a deletion that was begun is in the way of every other.
    for one in sorted(oldest_first, key=lambda one: not is_being_deleted(one.snapshot)):
        try:
            # What the deletion of another has changed of it is looked at anew.
            _snapshot.delete(hypervisor, domain, _snapshot.require_own(observe(hypervisor, domain), one.snapshot.name))
        except FleetError as error:
            error.evidence["pruned"] = deleted
            raise
        deleted.append(one.snapshot.name)


def _allocated(hypervisor: Hypervisor, observed: Observation) -> dict[str, int] | None:
    """Bytes that each image of the domain and each file of its snapshots takes up; None where a disk is on no file."""
    files = [file for snapshot in observed.snapshots for file in _external.files_with(snapshot)]
    for disk in observed.definition.writable_disks:
        if disk.file is None or allocated_bytes(disk.file) is None:
            return None
        try:
            files += [image.file for image in hypervisor.images.chain(disk.file, disk.format)]
        except DiskImageFailed:
            files.append(disk.file)
    return _allocated_by(files)


def _allocated_by(files: Iterable[str]) -> dict[str, int]:
    return {file: allocated_bytes(file) or 0 for file in files}


def _facts(one: Judged) -> dict[str, Any]:
    return {
        "name": one.snapshot.name,
        "created": one.snapshot.created,
        "size": one.size,
        "reason": one.reason,
    }
