# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""External snapshots: layers over a guest's disks, which are made empty again to revert, and committed to delete.

libvirt makes them. It reverts to them only since 9.9, and what it deletes it does not look into; so both are done here,
by steps each of which can be the last one of a module that is killed: whatever the next one finds, it does all of them
that are left, and the guest's disks are whole at each.
"""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ansible_collections.kvm.fleet.plugins.module_utils import _quiesce
from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._clock import Clock, Deadline
from ansible_collections.kvm.fleet.plugins.module_utils._domain import (
    ACTIVE_STATES,
    Domain,
    Hypervisor,
    Image,
    Layer,
    LayerUse,
    SnapshotRecord,
)
from ansible_collections.kvm.fleet.plugins.module_utils._domain_xml import (
    Definition,
    Disk,
    Nvram,
    disk_on,
    disks_on_layers,
    files_of_disks,
    parse_definition,
)
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    DiskImageFailed,
    DomainBusy,
    DomainUnsafe,
    FleetError,
    LibvirtFailed,
    ProofFailed,
    RecordUnavailable,
    SavedStateRefused,
    SnapshotBlocked,
)
from ansible_collections.kvm.fleet.plugins.module_utils._lease import Recorder
from ansible_collections.kvm.fleet.plugins.module_utils._qemu_img import allocated_bytes, free_bytes
from ansible_collections.kvm.fleet.plugins.module_utils._record import FILES, FREEZES, Facts, StepName
from ansible_collections.kvm.fleet.plugins.module_utils._snapshot_xml import (
    build_external_snapshot,
    definitions_in,
    is_being_deleted,
    is_ours,
    marked_as_being_deleted,
    on_other_images,
)

_MARK = re.compile(r"\.kvm-fleet-\d{8}-\d{6}(?:-\d+)?\Z")
"""Ends the name of a layer, and of what goes with it."""

RAM_SUFFIX = ".ram"
"""Ends the name of the file with a guest's RAM, behind that of its first layer."""

NVRAM_SUFFIX = ".nvram"
"""Ends the name of the copy of a guest's UEFI variables."""

LONGEST_STEM = 180
"""Bytes of a disk's name that a layer's begins with. A file's name has at most 255."""

STALLED = 600
"""Seconds without progress after which a commit is not waited for any longer."""

COPIES = 5
"""How often UEFI variables are copied that the guest writes to just then."""


# --- making one ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Making:
    """What a snapshot consists of. ``nvram`` is the file of the guest's UEFI variables, and where its copy goes."""

    layers: tuple[Layer, ...]
    others: tuple[str, ...]
    memory_file: str | None
    nvram: tuple[str, str] | None


@dataclass(frozen=True)
class Wanted:
    """A snapshot that is to be made, with the guest's RAM or without.

    ``nvram`` is where the guest's UEFI variables are: the definition of a guest that is off may not tell.
    """

    name: str
    description: str
    ram: bool
    nvram: Nvram | None = None


def plan(definition: Definition, nvram: Nvram | None, now: datetime, *, ram: bool) -> Making:
    """Name the files of a new snapshot, all by one mark, and none that is there."""
    stamp = now.strftime(".kvm-fleet-%Y%m%d-%H%M%S")
    number = 1
    while True:
        mark = stamp if number == 1 else f"{stamp}-{number}"
        layers = tuple(Layer(target, stem + mark) for target, stem in _stems(definition))
        memory_file = layers[0].file + RAM_SUFFIX if ram else None
        copy = (nvram.file, nvram.file + mark + NVRAM_SUFFIX) if nvram else None
        names = [layer.file for layer in layers] + [memory_file or ""] + [copy[1] if copy else ""]
        if not any(name and os.path.lexists(name) for name in names):
            return Making(layers, definition.other_disks, memory_file, copy)
        number += 1


def _stems(definition: Definition) -> list[tuple[str, str]]:
    """What the names of the disks' layers begin with. Disks whose names are long and alike are told apart."""
    stems = [(disk.target, _stem(disk.file)) for disk in definition.writable_disks if disk.file]
    if len({stem for _target, stem in stems}) < len(stems):
        stems = [(target, f"{stem}-{target}") for target, stem in stems]
    return stems


def _stem(file: str) -> str:
    """The name of a disk's first image, as far as it fits."""
    first = Path(_MARK.sub("", file))
    return str(first.with_name(os.fsencode(first.name)[:LONGEST_STEM].decode("utf-8", "ignore")))


def create(
    hypervisor: Hypervisor,
    domain: Domain,
    wanted: Wanted,
    note: Callable[[Facts], None],
) -> SnapshotRecord:
    """Make the snapshot and prove that the guest writes to its layers.

    ``note`` is told the names of its files before they are made, and as long as something may be left of them. The file
    systems of a guest that runs are frozen meanwhile, unless its RAM is stored as well; that is noted likewise. Raises
    ProofFailed, DiskImageFailed, DomainUnsafe, DomainBusy, LibvirtFailed and GuestFrozen.
    """
    name = wanted.name
    making = plan(parse_definition(domain.xml()), wanted.nvram, hypervisor.clock.now(), ram=wanted.ram)
    xml = build_external_snapshot(name, wanted.description, making.layers, making.others, making.memory_file)
    others = [making.memory_file, making.nvram[1] if making.nvram else None]
    files = [*(layer.file for layer in making.layers), *(file for file in others if file)]
    note({FILES: files})
    try:
        if making.nvram:
            _copy_unchanged(*making.nvram)
        if wanted.ram or domain.state() not in ACTIVE_STATES:
            domain.create_external_snapshot(xml, disk_only=not wanted.ram, quiesce=False)
        else:
            _create_quiesced(hypervisor, domain, name, xml, note)
    except FleetError:
        # libvirt may have done it all the same, and only its answer got lost.
        if not any(snapshot.name == name for snapshot in domain.snapshots()):
            clear(hypervisor, domain, files)
            _note_if_possible(note, {FILES: []})
        raise
    found = next((snapshot for snapshot in domain.snapshots() if snapshot.name == name), None)
    top = {disk.target: disk.file for disk in parse_definition(domain.xml()).writable_disks}
    if found is None or any(top.get(layer.target) != layer.file for layer in making.layers):
        raise ProofFailed(
            f"libvirt made snapshot {name!r} of domain {domain.name!r} and does not list it, or its disks are not on "
            "the layers of it",
            remedy="Look at libvirt's log before anything else is done to this domain.",
            evidence={"disks": top, "layers": {layer.target: layer.file for layer in making.layers}},
        )
    return found


def clear(hypervisor: Hypervisor, domain: Domain, files: Sequence[str]) -> None:
    """Remove the files of a snapshot that was not made, as where libvirt died meanwhile.

    What a snapshot needs that libvirt lists stays: it may have made that after whoever asked for it was gone. Raises
    DomainBusy while it still does, and DomainUnsafe for a layer that is used after all, and of which it does not know.
    """
    for file in _left(hypervisor, domain, files):
        with _failing(file):
            Path(file).unlink()


def clear_left(hypervisor: Hypervisor, domain: Domain, recorder: Recorder, *, check: bool) -> None:
    """Likewise those that are on record. In check mode it is only seen that this can be."""
    files = recorder.record.files_begun if recorder.record else ()
    if check:
        _left(hypervisor, domain, files)
    elif files:
        clear(hypervisor, domain, files)
        recorder.note(StepName.SNAPSHOT, {FILES: []})


def _left(hypervisor: Hypervisor, domain: Domain, files: Sequence[str]) -> list[str]:
    """Those of the files that nobody needs. Raises what ``clear`` does."""
    if files and domain.is_making_snapshot():
        raise DomainBusy(
            f"libvirt still makes a snapshot of domain {domain.name!r} that a run before this one has asked for",
            remedy="Wait until that has ended ('virsh domjobinfo'), and run again.",
        )
    there = [file for file in files if Path(file).exists()]
    known = _known(hypervisor, domain) if there else frozenset()
    left = [file for file in there if file not in known and not _is_copy_with_a_snapshot(domain, file)]
    for file in left:
        use = None if file.endswith((RAM_SUFFIX, NVRAM_SUFFIX)) else hypervisor.images.use_of(file)
        if use in (LayerUse.OPEN, LayerUse.WRITTEN):
            raise DomainUnsafe(
                f"{file} may have what domain {domain.name!r} has written since libvirt failed while it made a "
                "snapshot, and libvirt does not know of it",
                remedy="Shut the guest down from within, and do not start it before 'qemu-img commit' has written that "
                "file into the disk below it.",
                evidence={"file": file},
            )
    return left


def _known(hypervisor: Hypervisor, domain: Domain) -> frozenset[str]:
    """The files that the guest's definitions and snapshots name, and the images that its disks are on.

    The definition of a guest that is off names only the uppermost of these.
    """
    found = {file for snapshot in domain.snapshots() for file in files_with(snapshot)}
    for xml in (domain.xml(), domain.persistent_xml()):
        found |= files_of_disks(xml)
        for disk in parse_definition(xml).writable_disks:
            found |= {image.file for image in _chain_of(hypervisor, disk)}
    return frozenset(found)


def _is_copy_with_a_snapshot(domain: Domain, file: str) -> bool:
    """Whether it is a copy of UEFI variables that goes with a snapshot, which does not name it."""
    mark = _MARK.search(file[: -len(NVRAM_SUFFIX)]) if file.endswith(NVRAM_SUFFIX) else None
    layers = [layer.file for snapshot in domain.snapshots() for layer in snapshot.layers]
    return mark is not None and any(layer.endswith(mark.group()) for layer in layers)


def _note_if_possible(note: Callable[[Facts], None], facts: Facts) -> None:
    """Note what has come to its end. Where even that fails, the next run looks, and there is a first cause to tell."""
    with suppress(RecordUnavailable):
        note(facts)


def _create_quiesced(
    hypervisor: Hypervisor, domain: Domain, name: str, xml: str, note: Callable[[Facts], None]
) -> None:
    agent = GuestAgent(domain, hypervisor.clock)
    _quiesce.require_thawed(agent)  # what somebody else has frozen is not ours to thaw
    with hypervisor.uninterrupted(), hypervisor.watching_freeze(domain) as watch:
        note({FREEZES: True})
        try:
            domain.create_external_snapshot(xml, disk_only=True, quiesce=True)
        finally:
            # libvirt has thawed it, unless it could not.
            if domain.state() in ACTIVE_STATES:
                _quiesce.thaw(agent, hypervisor.clock)
            _note_if_possible(note, {FREEZES: False})
    if watch.lost_patience:
        for made in domain.snapshots():
            if made.name == name:
                delete(hypervisor, domain, made)
        raise ProofFailed(
            f"snapshot {name!r} of domain {domain.name!r} took so long that the guest was thawed meanwhile: nobody "
            "knows whether its disks are as they were frozen, and it was deleted",
            remedy="Look at what keeps the hypervisor busy, and run again.",
        )


def _copy_unchanged(file: str, copy: str) -> None:
    """Copy a file that somebody may write to, until nobody has."""
    try:
        for _try in range(COPIES):
            shutil.copyfile(file, copy)
            Path(copy).chmod(0o600)
            _sync(Path(copy))
            if filecmp.cmp(file, copy, shallow=False):
                return
    except OSError as error:
        raise _copy_failed(file, str(error)) from error
    raise _copy_failed(file, "the guest writes to it all the time")


def _copy_failed(file: str, why: str) -> DiskImageFailed:
    return DiskImageFailed(
        f"the guest's UEFI variables in {file} could not be copied: {why}",
        remedy="See that there is room beside that file, and run again.",
        evidence={"file": file},
    )


# --- reverting -----------------------------------------------------------------------------------


def require_revertible(hypervisor: Hypervisor, domain: Domain, snapshot: SnapshotRecord) -> None:
    """Raise SnapshotBlocked unless the guest's disks are on the layers of this very snapshot, and all else is there."""
    if is_being_deleted(snapshot):
        raise SnapshotBlocked(
            f"the deletion of snapshot {snapshot.name!r} of domain {domain.name!r} was begun: its disks are no more "
            "what they were",
            remedy="Delete it (state: absent): that brings the deletion to its end, and loses nothing.",
        )
    newer = [other.name for other in domain.snapshots() if other.parent == snapshot.name]
    if newer:
        raise SnapshotBlocked(
            f"snapshot {newer[0]!r} of domain {domain.name!r} stands on the layers of {snapshot.name!r}, which a "
            "revert makes empty",
            remedy="Delete the newer ones first (state: absent), which loses nothing that was written.",
            evidence={"snapshots": newer},
        )
    if not domain.is_persistent():
        raise SnapshotBlocked(
            f"domain {domain.name!r} is transient, and would be gone once it is off",
            remedy="Define it ('virsh define').",
        )
    _require_files(domain, snapshot)
    for xml in (domain.xml(), domain.persistent_xml()):
        top = {disk.target: disk.file for disk in parse_definition(xml).writable_disks}
        for layer in snapshot.layers:
            if top.get(layer.target) != layer.file:
                raise SnapshotBlocked(
                    f"disk {layer.target} of domain {domain.name!r} is not on the layer of snapshot {snapshot.name!r}",
                    remedy="Somebody has changed the domain's disks since. See 'virsh domblklist' and "
                    "'virsh snapshot-dumpxml'.",
                    evidence={"disk": layer.target, "file": top.get(layer.target), "layer": layer.file},
                )
    for layer in snapshot.layers:
        held = hypervisor.images.chain(layer.file, "qcow2")[0].snapshots
        if held:
            raise SnapshotBlocked(
                f"the internal snapshot {held[0]!r} of domain {domain.name!r} is in the layers of {snapshot.name!r}, "
                "which a revert makes empty",
                remedy="Delete it first ('virsh snapshot-delete'), if nobody needs it.",
                evidence={"snapshots": list(held)},
            )


def _require_files(domain: Domain, snapshot: SnapshotRecord) -> None:
    """Raise SnapshotBlocked unless what goes with the layers is there: the copy of the UEFI variables, and the RAM."""
    nvram = _nvram_copy(domain, snapshot)
    if nvram and not Path(nvram[1]).exists():
        raise SnapshotBlocked(
            f"the copy of the UEFI variables of domain {domain.name!r} is gone that goes with snapshot "
            f"{snapshot.name!r}",
            remedy=f"Bring {nvram[1]} back from a backup, or copy the present ones there, if they are to stay.",
            evidence={"file": nvram[1]},
        )
    if snapshot.memory_file:
        if not Path(snapshot.memory_file).exists():
            raise SnapshotBlocked(
                f"the file with the RAM of domain {domain.name!r} is gone that goes with snapshot {snapshot.name!r}",
                remedy=f"Bring {snapshot.memory_file} back from a backup. To delete the snapshot (state: absent) loses "
                "nothing that was written.",
                evidence={"file": snapshot.memory_file},
            )
        domain.image_xml(snapshot.memory_file)  # it can be read


def revert(
    hypervisor: Hypervisor, domain: Domain, snapshot: SnapshotRecord, begin: Callable[[], None]
) -> SavedStateRefused | None:
    """Bring the guest back. One without RAM in its snapshot is off then.

    Empty layers are made beside those that there are while the guest still runs. ``begin`` is called then: what fails
    before has changed nothing. Once the guest is off, each takes the place of the old one in a single step; so the
    domain's definition and the snapshot stay as they are, and it can be reverted to again. Raises SnapshotBlocked,
    DiskImageFailed, ProofFailed and LibvirtFailed.

    Where only the RAM is refused, the guest is off, and its disks are those of the snapshot. It is to be started, and
    what is returned is to be told.
    """
    require_revertible(hypervisor, domain, snapshot)
    ram = None
    if snapshot.memory_file:
        ram = disks_on_layers(
            domain.image_xml(snapshot.memory_file), {layer.target: layer.file for layer in snapshot.layers}
        )
    nvram = _nvram_copy(domain, snapshot)
    fresh = _fresh_layers(hypervisor, snapshot)
    try:
        if domain.state() not in ACTIVE_STATES:
            _require_closed(hypervisor, domain, snapshot)
        begin()
    except FleetError:
        _remove([new for new, _old in fresh])
        raise
    if domain.state() in ACTIVE_STATES:
        domain.destroy()
    _require_closed(hypervisor, domain, snapshot)
    if nvram:
        _put_back(nvram[1], nvram[0])
    for new, old in fresh:
        with _failing(str(old)):
            _give_away(new, old)
            _sync(new)
            new.replace(old)
            _sync(old.parent)
    if domain.state() in ACTIVE_STATES:
        raise ProofFailed(
            f"domain {domain.name!r} was started by somebody else while it was reverted, on disks that are gone",
            remedy="Shut it off at once ('virsh destroy'), and revert it again.",
        )
    return _restore(domain, snapshot, snapshot.memory_file, ram) if snapshot.memory_file and ram else None


def _require_closed(hypervisor: Hypervisor, domain: Domain, snapshot: SnapshotRecord) -> None:
    """Raise DomainUnsafe for layers that a QEMU still has: one that has crashed may have been kept, or is not ours."""
    for layer in snapshot.layers:
        if hypervisor.images.is_open(layer.file):
            raise DomainUnsafe(
                f"{layer.file} is open in a QEMU, though domain {domain.name!r} is "
                f"{domain.state().value.replace('_', ' ')}",
                remedy="See what has it ('fuser'). A domain that has crashed is ended by 'virsh destroy'. Nothing was "
                "put in its place.",
                evidence={"file": layer.file},
            )


def _restore(domain: Domain, snapshot: SnapshotRecord, file: str, xml: str) -> SavedStateRefused | None:
    try:
        domain.restore(file, xml)
    except LibvirtFailed as error:
        if domain.state() in ACTIVE_STATES:
            raise
        return SavedStateRefused(
            f"domain {domain.name!r} does not go on from the RAM in snapshot {snapshot.name!r} by the installed QEMU: "
            f"{error.message}. Its disks are those of the snapshot, and it was started anew from them, as after a "
            "power loss",
            remedy="See that what the guest does came up again. The RAM is kept with the snapshot, for the QEMU that "
            "it was stored by.",
            evidence={**error.evidence, "qemu": error.message, "started_anew": True},
        )
    return None


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _fresh_layers(hypervisor: Hypervisor, snapshot: SnapshotRecord) -> list[tuple[Path, Path]]:
    """Empty layers beside those of a snapshot. All of them, or none."""
    made: list[tuple[Path, Path]] = []
    try:
        for layer in snapshot.layers:
            base = _below(hypervisor, layer.file, layer.file, "qcow2")
            made.append((Path(f"{layer.file}.new"), Path(layer.file)))
            hypervisor.images.create_layer(f"{layer.file}.new", base)
    except FleetError:
        _remove([new for new, _old in made])
        raise
    return made


def _put_back(copy: str, file: str) -> None:
    """Have a file be as its copy, in a single step."""
    new = Path(f"{file}.new")
    with _failing(file):
        shutil.copyfile(copy, new)
        _give_away(new, Path(file) if Path(file).exists() else Path(copy))
        _sync(new)
        new.replace(file)
        _sync(new.parent)


def _give_away(new: Path, old: Path) -> None:
    """Give a file the mode and the owner of another."""
    was, now = old.stat(), new.stat()
    new.chmod(was.st_mode & 0o7777)
    if (now.st_uid, now.st_gid) != (was.st_uid, was.st_gid):
        os.chown(new, was.st_uid, was.st_gid)


def _nvram_copy(domain: Domain, snapshot: SnapshotRecord) -> tuple[str, str] | None:
    """The file of the guest's UEFI variables, and that of their copy. None for a guest without.

    Raises SnapshotBlocked where nobody tells: libvirt may choose that file only when it starts the guest.
    """
    definitions = [parse_definition(xml) for xml in (domain.xml(), domain.persistent_xml())]
    definitions += [parse_definition(xml) for xml in definitions_in(domain.snapshot_xml(snapshot.name))]
    mark = _MARK.search(snapshot.layers[0].file) if snapshot.layers else None
    found = next((definition.nvram for definition in definitions if definition.nvram), None)
    if found and mark:
        return found.file, found.file + mark.group() + NVRAM_SUFFIX
    if any(definition.pflash_firmware for definition in definitions):
        active = domain.state() in ACTIVE_STATES
        raise SnapshotBlocked(
            f"where the UEFI variables of domain {domain.name!r} are, which go with snapshot {snapshot.name!r}, its "
            f"definition does not tell{'' if active else ' while it is off'}",
            remedy=f"{'Name' if active else 'Start it, or name'} the file in its definition (nvram), and run again.",
        )
    return None


# --- deleting ------------------------------------------------------------------------------------


def delete(hypervisor: Hypervisor, domain: Domain, snapshot: SnapshotRecord) -> None:
    """Write the snapshot's layers into what is below them, and remove them. Nothing is lost that the guest has written.

    That it was begun is noted in the snapshot's description: from then on nobody can revert to it. Raises
    SnapshotBlocked before that, DomainBusy, DiskImageFailed and LibvirtFailed.
    """
    chains = require_deletable(hypervisor, domain, snapshot)
    domain.redefine_snapshot(marked_as_being_deleted(domain.snapshot_xml(snapshot.name)), current=snapshot.current)
    below: dict[str, tuple[str, str]] = {}
    for layer, chain in chains:
        at = _position(chain, layer.file)
        if at is None:
            # A module that was killed has done this one, and may not have come to what libvirt has of the others.
            if Path(layer.file).exists():
                base = _below(hypervisor, layer.file, layer.file, "qcow2")
                below[layer.file] = (base.file, base.format)
            continue
        below[layer.file] = (chain[at + 1].file, chain[at + 1].format)
        if domain.state() in ACTIVE_STATES:
            _commit_running(domain, hypervisor.clock, layer, chain, at)
        else:
            _commit_off(hypervisor, layer, chain, at)
        _settle(hypervisor, domain, layer, chain[at + 1])
    for other in domain.snapshots():
        if other.parent == snapshot.name and other.external:
            xml = on_other_images(domain.snapshot_xml(other.name), below)
            domain.redefine_snapshot(xml, current=other.current)
    for file in files_of(domain, snapshot):
        with _failing(file):
            Path(file).unlink(missing_ok=True)
    domain.forget_snapshot(snapshot.name)


def files_of(domain: Domain, snapshot: SnapshotRecord) -> tuple[str, ...]:
    """The files that are the snapshot's alone, once its layers are committed."""
    nvram = _nvram_copy(domain, snapshot)
    return (*files_with(snapshot), *((nvram[1],) if nvram else ()))


def size_of(snapshot: SnapshotRecord) -> int | None:
    """Bytes that the files of an external snapshot take up, as far as anybody can tell."""
    sizes = [size for size in (allocated_bytes(file) for file in files_with(snapshot)) if size is not None]
    return sum(sizes) if sizes else None


def files_with(snapshot: SnapshotRecord) -> tuple[str, ...]:
    """The files of a snapshot that libvirt names."""
    return (*(layer.file for layer in snapshot.layers), *((snapshot.memory_file,) if snapshot.memory_file else ()))


Chain = Sequence[Image]


def require_deletable(hypervisor: Hypervisor, domain: Domain, snapshot: SnapshotRecord) -> list[tuple[Layer, Chain]]:
    """The chains of images that the snapshot's disks are on. Raises SnapshotBlocked, and DomainBusy."""
    active = domain.state() in ACTIVE_STATES
    if not active and domain.has_managed_save():
        raise SnapshotBlocked(
            f"domain {domain.name!r} has a managed save image, which knows of the layers of snapshot {snapshot.name!r}",
            remedy="Start it, or remove the image with 'virsh managedsave-remove' if nobody needs it.",
        )
    theirs = [
        other.name
        for other in domain.snapshots()
        if other.parent == snapshot.name and other.external and not is_ours(other)
    ]
    if theirs:
        raise SnapshotBlocked(
            f"snapshot {theirs[0]!r} of domain {domain.name!r}, which kvm.fleet has not made, stands on the layers of "
            f"{snapshot.name!r}",
            remedy="Delete it first ('virsh snapshot-delete'), if nobody needs it.",
            evidence={"snapshots": theirs},
        )
    _nvram_copy(domain, snapshot)
    disks = {disk.target: disk for disk in parse_definition(domain.xml()).writable_disks}
    chains = []
    for layer in snapshot.layers:
        disk = disks.get(layer.target)
        chain = _chain_of(hypervisor, disk)
        at = _position(chain, layer.file)
        if at is None and not is_being_deleted(snapshot):
            raise SnapshotBlocked(
                f"disk {layer.target} of domain {domain.name!r} is not on the layer of snapshot {snapshot.name!r}",
                remedy="Somebody has changed the domain's disks since. See 'virsh domblklist', 'virsh "
                "snapshot-dumpxml' and 'qemu-img info --backing-chain'. 'virsh snapshot-delete --metadata' forgets it "
                "and touches no file.",
                evidence={"disk": layer.target, "file": disk.file if disk else None, "layer": layer.file},
            )
        if at is not None:
            _require_free_layer(domain, snapshot, layer, chain[at])
            _require_room(domain, layer, chain[at], chain[at + 1])
            if active and not is_being_deleted(snapshot) and domain.commit_job(layer.target):
                raise _busy(domain, layer)
        chains.append((layer, chain))
    return chains


def _require_free_layer(domain: Domain, snapshot: SnapshotRecord, layer: Layer, image: Image) -> None:
    if image.snapshots:
        raise SnapshotBlocked(
            f"the internal snapshot {image.snapshots[0]!r} of domain {domain.name!r} is in the layer of "
            f"{snapshot.name!r} over disk {layer.target}, and would be lost",
            remedy="Delete it first ('virsh snapshot-delete'), if nobody needs it.",
            evidence={"snapshots": list(image.snapshots)},
        )


def _require_room(domain: Domain, layer: Layer, top: Image, base: Image) -> None:
    """A base grows by what is in the layer, and to no more than the disk."""
    needed, free = min(top.allocated, max(0, base.size - base.allocated)), free_bytes(base.file)
    if free is not None and free < needed:
        raise SnapshotBlocked(
            f"the layer over disk {layer.target} of domain {domain.name!r} may need {needed >> 20} MiB more in "
            f"{base.file}, where {free >> 20} MiB are free",
            remedy="Free space there, and delete the snapshot then.",
            evidence={"needed_bytes": needed, "free_bytes": free},
        )


def _busy(domain: Domain, layer: Layer) -> DomainBusy:
    return DomainBusy(
        f"layers of disk {layer.target} of domain {domain.name!r} are being committed by somebody else",
        remedy=f"See what does it ('virsh blockjob' for {layer.target}), and run again when that has ended.",
        evidence={"disk": layer.target},
    )


def _commit_running(domain: Domain, clock: Clock, layer: Layer, chain: Chain, at: int) -> None:
    """Begin to commit a layer, or go on with what a module that was killed has begun, to its end."""
    if domain.commit_job(layer.target) is None:
        domain.commit(layer.target, chain[at + 1].file, None if at == 0 else layer.file)
    done, stalled = -1, Deadline(clock, STALLED)
    while True:
        job = domain.commit_job(layer.target)
        if job is None:
            return
        if job.ready:
            domain.pivot(layer.target)
        elif job.done != done:
            done, stalled = job.done, Deadline(clock, STALLED)
        if stalled.passed:
            raise SnapshotBlocked(
                f"the layer over disk {layer.target} of domain {domain.name!r} is being committed, without progress "
                f"for {STALLED} s",
                remedy=f"See 'virsh blockjob' for {layer.target}, and the hypervisor's disks. Delete the snapshot "
                "again then.",
            )
        clock.wait(0.2)


def _commit_off(hypervisor: Hypervisor, layer: Layer, chain: Chain, at: int) -> None:
    """Commit a layer of a guest that is off: its disk has the same content at each step."""
    base = chain[at + 1]
    hypervisor.images.commit(layer.file, base)
    if at:
        hypervisor.images.rebase(chain[at - 1].file, base)


def _settle(hypervisor: Hypervisor, domain: Domain, layer: Layer, base: Image) -> None:
    """See that nothing is left that needs the layer: neither the guest nor its next start. Raises ProofFailed.

    The guest comes first: as long as it writes to the layer, its next start has to go by that, too.
    """
    if domain.state() in ACTIVE_STATES:
        _require_unused(hypervisor, domain, layer, domain.xml())
    persistent = domain.persistent_xml()
    if layer.file in files_of_disks(persistent):
        disk = next(disk for disk in parse_definition(persistent).writable_disks if disk.target == layer.target)
        on = (base.file, base.format) if disk.file == layer.file else (disk.file or "", disk.format)
        domain.update_disk(disk_on(persistent, layer.target, *on))
        _require_not_started(domain, layer, persistent)
    _require_unused(hypervisor, domain, layer, domain.persistent_xml())


def _require_not_started(domain: Domain, layer: Layer, before: str) -> None:
    """Raise ProofFailed for a guest that somebody has started by its definition from ``before``, on the layer."""
    if domain.state() not in ACTIVE_STATES or layer.file not in files_of_disks(domain.xml()):
        return
    disk = next(disk for disk in parse_definition(before).writable_disks if disk.target == layer.target)
    domain.update_disk(disk_on(before, layer.target, disk.file or "", disk.format))
    raise ProofFailed(
        f"domain {domain.name!r} was started by somebody else while the layer {layer.file} over its disk "
        f"{layer.target} was committed, and writes to it",
        remedy="Nothing was removed. Delete the snapshot again (state: absent): what it writes is committed as well.",
        evidence={"disk": layer.target, "layer": layer.file},
    )


def _require_unused(hypervisor: Hypervisor, domain: Domain, layer: Layer, xml: str) -> None:
    disks = {disk.target: disk for disk in parse_definition(xml).writable_disks}
    chain = _chain_of(hypervisor, disks.get(layer.target))
    if layer.file in files_of_disks(xml) or _position(chain, layer.file) is not None:
        raise ProofFailed(
            f"the layer {layer.file} over disk {layer.target} of domain {domain.name!r} is still in use, though it was "
            "to be committed",
            remedy="Nothing was removed. See libvirt's log and the domain's own in /var/log/libvirt/qemu, and delete "
            "the snapshot again.",
            evidence={"disk": layer.target, "layer": layer.file},
        )


def _chain_of(hypervisor: Hypervisor, disk: Disk | None) -> Chain:
    return hypervisor.images.chain(disk.file, disk.format) if disk and disk.file else ()


def _position(chain: Chain, file: str) -> int | None:
    """Where a layer is in a chain, from the top. What has nothing below it is none."""
    return next((at for at, image in enumerate(chain[:-1]) if image.file == file), None)


def _below(hypervisor: Hypervisor, layer: str, top: str, image_format: str) -> Image:
    chain = hypervisor.images.chain(top, image_format)
    at = _position(chain, layer)
    if at is None:
        raise DiskImageFailed(
            f"{layer} is not a layer over another image any more",
            remedy="Somebody has changed it. See 'qemu-img info' for it; nothing was done.",
            evidence={"image": layer},
        )
    return chain[at + 1]


# --- files ---------------------------------------------------------------------------------------


@contextmanager
def _failing(file: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DiskImageFailed(
            f"{file} could not be written or removed: {error}",
            remedy="See that the task runs as root on the hypervisor (ansible_become), and that this file system can "
            "be written to.",
            evidence={"file": file},
        ) from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
