# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which kind of snapshot fits a guest: decided from what is known of it, before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from ansible_collections.kvm.fleet.plugins.module_utils._domain_xml import Disk, Nvram
from ansible_collections.kvm.fleet.plugins.module_utils._errors import SnapshotImpossible


class Way(str, Enum):
    """How a snapshot is made. This is the order in which they are tried."""

    LIVE = "live"
    """Inside the qcow2 files, with the guest's RAM. It stands still until that is stored."""
    EXTERNAL_LIVE = "external_live"
    """The same with a file for the RAM, and layers over the disks."""
    EXTERNAL = "external"
    """Layers over the disks while their file systems are frozen, without RAM."""
    OFFLINE = "offline"
    """While the guest is off, so that its disks are as a shutdown leaves them: inside of them, or else by layers."""


AUTO = "auto"
"""The first way that is open: the guest is shut down only where it has to be."""

ONLINE = "online"
"""The first that is open without shutting the guest down."""

CHOICES = (AUTO, ONLINE, *(way.value for way in Way))

LAYER_FORMATS = ("qcow2", "raw")
"""Formats of images that layers are put over."""

LEAST_ROOM = 1 << 30

ROOM_BYTES = 64 * 1024 * 1024
"""What has to be free beside a disk for a snapshot inside of it, RAM or not: a block that it keeps is written elsewhere
from then on, and a guest that finds no room for that is paused, be it in the middle of its shutdown."""


@dataclass(frozen=True)
class Room:
    """What a disk has for the guest, and the bytes that are free beside its image, None where nobody can tell.

    Disks on the same ``pool`` share what is free there.
    """

    file: str | None
    size: int
    pool: str
    free: int | None


@dataclass(frozen=True)
class SnapshotFacts:
    """What decides.

    ``rooms`` are those of the disks, in their order. ``unsaveable`` are the devices with which a guest's RAM cannot be
    stored. ``internal`` and ``external`` are the names of the snapshots that there are. ``layers_known`` is whether
    this hypervisor's QEMU can put layers over disks, ``qemu_img`` whether there is one to work on them.
    ``quiesce_problem`` is why the guest's file systems cannot be frozen.
    """

    domain: str
    active: bool
    disks: tuple[Disk, ...]
    rooms: tuple[Room, ...]
    pflash_firmware: bool
    unsaveable: tuple[str, ...]
    memory_bytes: int
    tpm: bool = False
    nvram: Nvram | None = None
    internal: tuple[str, ...] = ()
    external: tuple[str, ...] = ()
    layers_known: bool = True
    qemu_img: bool = True
    persistent: bool = True
    managed_save: bool = False
    quiesce_problem: str | None = None


@dataclass(frozen=True)
class Choice:
    """The way that is taken, whether by ``layers``, and why those that come before it are closed."""

    way: Way
    layers: bool
    closed: Mapping[Way, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Obstacle:
    """Why a way is closed, and what opens it."""

    why: str
    remedy: str
    evidence: Mapping[str, object] = field(default_factory=dict)


WITHOUT = "Go without a snapshot on purpose (upgrade_snapshot: false), or "


def choose(facts: SnapshotFacts, asked: str) -> Choice:
    """The way that was ``asked`` for, or the first of several that is open. A guest that is off has one only.

    Raises SnapshotImpossible, which names the disk or device in each way, and what can be done.
    """
    closed: dict[Way, Obstacle] = {}
    for way in _asked(facts, asked):
        inside, layers = _inside(facts, way), _by_layers(facts, way)
        if inside is None or layers is None:
            whys = {other: obstacle.why for other, obstacle in closed.items()}
            return Choice(way, layers=inside is not None, closed=whys)
        closed[way] = _both(inside, layers) if way is Way.OFFLINE else layers if _is_external(way) else inside
    raise _impossible(facts, closed, asked)


def _asked(facts: SnapshotFacts, asked: str) -> Sequence[Way]:
    if not facts.active:
        return (Way.OFFLINE,)
    if asked == AUTO:
        return tuple(Way)
    if asked == ONLINE:
        return tuple(way for way in Way if way is not Way.OFFLINE)
    return (Way(asked),)


def _is_external(way: Way) -> bool:
    return way in (Way.EXTERNAL_LIVE, Way.EXTERNAL)


_NOT_THIS = Obstacle("", "")
"""Of a way that is about the other kind of snapshot."""


def _inside(facts: SnapshotFacts, way: Way) -> Obstacle | None:
    """What keeps it from being made inside the images."""
    if _is_external(way):
        return _NOT_THIS
    found = _no_disk(facts) or _no_holders(facts)
    if way is Way.LIVE:
        return found or _no_ram(facts) or _no_room_inside(facts, facts.memory_bytes)
    return found or _not_on_disks(facts) or _no_room_inside(facts, 0)


def _by_layers(facts: SnapshotFacts, way: Way) -> Obstacle | None:
    """What keeps it from being made by layers."""
    if way is Way.LIVE:
        return _NOT_THIS
    found = _no_disk(facts) or _no_base(facts) or _no_place_for_layers(facts) or _no_variables(facts)
    if way is Way.EXTERNAL_LIVE:
        return found or _no_ram(facts) or _nvram_in_use(facts) or _no_room_beside(facts, facts.memory_bytes)
    found = found or _not_on_disks(facts)
    if way is Way.EXTERNAL:
        found = found or _nvram_in_use(facts) or _not_quiet(facts)
    return found or _no_room_beside(facts, 0)


def _both(one: Obstacle, other: Obstacle) -> Obstacle:
    if one.why == other.why:
        return one
    return Obstacle(f"{one.why}; {other.why}", other.remedy, {**one.evidence, **other.evidence})


def _impossible(facts: SnapshotFacts, closed: Mapping[Way, Obstacle], asked: str) -> SnapshotImpossible:
    """One cause is told as it is; of several, each with the ways that it closes."""
    ways: dict[str, list[str]] = {}
    for way, obstacle in closed.items():
        ways.setdefault(obstacle.why, []).append(way.value)
    message = next(iter(ways))
    if len(ways) > 1:
        told = "; ".join(f"{', '.join(names)}: {why}" for why, names in ways.items())
        message = f"no way is open to make a snapshot of domain {facts.domain!r}. {told}"
    remedies = list(dict.fromkeys(obstacle.remedy for obstacle in closed.values()))
    if facts.active and asked != AUTO:
        remedies.append(
            "have it made in another way (upgrade_snapshot_way: auto, with an upgrade_restart and an upgrade_strategy "
            "that leave it a choice)"
        )
    evidence: dict[str, object] = {}
    for obstacle in reversed(list(closed.values())):
        evidence.update(obstacle.evidence)
    evidence["closed"] = {way.value: obstacle.why for way, obstacle in closed.items()}
    return SnapshotImpossible(message, remedy=f"{WITHOUT}{', or '.join(remedies)}.", evidence=evidence)


# --- what is in the way ----------------------------------------------------------------------------


def _no_disk(facts: SnapshotFacts) -> Obstacle | None:
    if facts.disks:
        return None
    return Obstacle(f"domain {facts.domain!r} has no writable disk that could hold a snapshot", "give it a qcow2 disk")


def _no_holders(facts: SnapshotFacts) -> Obstacle | None:
    for disk in facts.disks:
        if disk.format != "qcow2":
            return Obstacle(
                f"disk {disk.target} of domain {facts.domain!r} is {disk.format}, which cannot hold a snapshot",
                "convert the disk with 'qemu-img convert -O qcow2'",
                {"disk": disk.target, "file": disk.file},
            )
    if facts.pflash_firmware:
        return Obstacle(
            f"domain {facts.domain!r} boots from UEFI firmware, which internal snapshots do not cover",
            "make a backup of it by other means",
        )
    if facts.external:
        return Obstacle(
            f"domain {facts.domain!r} has the external snapshot {facts.external[-1]!r}, in whose layers an internal "
            "one would be lost",
            "delete the external ones first",
            {"snapshots": list(facts.external)},
        )
    return None


def _no_base(facts: SnapshotFacts) -> Obstacle | None:
    for disk in facts.disks:
        problem = (
            f"on {disk.kind}, beside which no layer can be put"
            if disk.file is None
            else "encrypted by QEMU, which layers are not made for"
            if disk.encrypted
            else "shared with other guests"
            if disk.shared
            else f"{disk.format}, which no layer is put over"
            if disk.format not in LAYER_FORMATS
            else None
        )
        if problem:
            return Obstacle(
                f"disk {disk.target} of domain {facts.domain!r} is {problem}",
                "make a backup of it by other means",
                {"disk": disk.target, "file": disk.file or disk.device},
            )
    return None


def _no_place_for_layers(facts: SnapshotFacts) -> Obstacle | None:
    if not facts.layers_known:
        return Obstacle(
            f"the QEMU of domain {facts.domain!r} cannot put layers over disks, as libvirt's capabilities say",
            "upgrade the hypervisor first",
        )
    if not facts.qemu_img:
        return Obstacle(
            f"qemu-img is not installed on the hypervisor of domain {facts.domain!r}, without which layers can be "
            "neither made empty nor committed",
            "install it there (qemu-utils, qemu-img)",
        )
    if not facts.persistent:
        return Obstacle(f"domain {facts.domain!r} is transient", "define it ('virsh define')")
    if facts.internal:
        return Obstacle(
            f"domain {facts.domain!r} has the internal snapshot {facts.internal[-1]!r}: a revert to that changes what "
            "an external one stands on",
            "delete the internal ones first",
            {"snapshots": list(facts.internal)},
        )
    if facts.managed_save and not facts.active:
        return Obstacle(
            f"domain {facts.domain!r} has a managed save image, which does not know of layers",
            "start it, or remove the image with 'virsh managedsave-remove' if nobody needs it",
        )
    return None


def _no_ram(facts: SnapshotFacts) -> Obstacle | None:
    if not facts.unsaveable:
        return None
    return Obstacle(
        f"domain {facts.domain!r} has {', '.join(facts.unsaveable)}, with which its RAM cannot be stored",
        "take that from the domain",
        {"devices": list(facts.unsaveable)},
    )


def _not_on_disks(facts: SnapshotFacts) -> Obstacle | None:
    """What a TPM knows is stored with RAM alone. Gone back to, the disks of then would meet the TPM of later."""
    if not facts.tpm:
        return None
    return Obstacle(
        f"domain {facts.domain!r} has a TPM, whose state no snapshot holds that is without RAM",
        "do away with what is in the way of one that is made with RAM (upgrade_snapshot_way: live)",
    )


def _no_variables(facts: SnapshotFacts) -> Obstacle | None:
    if not facts.pflash_firmware or facts.nvram is not None:
        return None
    if facts.active:
        return Obstacle(
            f"domain {facts.domain!r} boots from UEFI firmware, and its definition names no file of its variables",
            "name that file in its definition (nvram), or make a backup of it by other means",
        )
    return Obstacle(
        f"where the UEFI variables of domain {facts.domain!r} are, its definition does not tell while it is off",
        "start it, or name the file in its definition (nvram)",
    )


def _nvram_in_use(facts: SnapshotFacts) -> Obstacle | None:
    if facts.nvram is None or facts.nvram.format == "raw":
        return None
    return Obstacle(
        f"the UEFI variables of domain {facts.domain!r} are in a {facts.nvram.format} file, which cannot be copied "
        "while QEMU has it open",
        "make a backup of it by other means",
        {"file": facts.nvram.file},
    )


def _not_quiet(facts: SnapshotFacts) -> Obstacle | None:
    if facts.quiesce_problem is None:
        return None
    return Obstacle(
        f"the file systems of domain {facts.domain!r} cannot be frozen: {facts.quiesce_problem}",
        "see to it that its agent answers and allows guest-fsfreeze-*",
    )


def _no_room_inside(facts: SnapshotFacts, ram: int) -> Obstacle | None:
    free, needed = facts.rooms[0].free, ram + ROOM_BYTES
    if free is None or free >= needed:
        return None
    what_for = f"{ram >> 20} MiB of these for its RAM" if ram else "for what the guest writes after it"
    return Obstacle(
        f"a {'live ' if ram else ''}snapshot of domain {facts.domain!r} needs {needed >> 20} MiB beside "
        f"{facts.rooms[0].file}, {what_for}, where {free >> 20} MiB are free",
        "free space there",
        {"needed_bytes": needed, "free_bytes": free},
    )


def growth(size: int) -> int:
    """The room that a disk's layer has to have: a tenth of the disk, and no less than 1 GiB, unless that is all of it.

    It may grow to all of the disk. How far, whoever writes in the guest decides, and how long it is kept. A guest
    whose layer finds no room is paused by QEMU, and goes on once there is some.
    """
    return min(size, max(LEAST_ROOM, size // 10))


def _no_room_beside(facts: SnapshotFacts, ram: int) -> Obstacle | None:
    """The RAM comes beside the first disk."""
    needed: dict[str, int] = {}
    for number, room in enumerate(facts.rooms):
        needed[room.pool] = needed.get(room.pool, 0) + growth(room.size) + (0 if number else ram)
    for room in facts.rooms:
        if room.free is not None and room.free < needed[room.pool]:
            return Obstacle(
                f"the layers of an external snapshot of domain {facts.domain!r} need {needed[room.pool] >> 20} MiB "
                f"beside {room.file}, where {room.free >> 20} MiB are free",
                "free space there",
                {"needed_bytes": needed[room.pool], "free_bytes": room.free},
            )
    return None
