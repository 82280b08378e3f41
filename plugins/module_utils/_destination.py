# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a guest can be migrated to. What libvirt refuses beyond this, it refuses before the guest has left."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.kvm.fleet.plugins.module_utils import _kept
from ansible_collections.kvm.fleet.plugins.module_utils._domain import Domain, Hypervisor, Storage
from ansible_collections.kvm.fleet.plugins.module_utils._domain_xml import Disk, Kind, kind_of
from ansible_collections.kvm.fleet.plugins.module_utils._errors import DomainNotFound, FleetError, MigrationImpossible
from ansible_collections.kvm.fleet.plugins.module_utils._observe import Observation
from ansible_collections.kvm.fleet.plugins.module_utils._power import PowerOptions

RESERVE_BYTES = 512 * 1024 * 1024
"""For QEMU itself, beside the guest's RAM, and for what else the other hypervisor has to do."""

MOUNTS = Path("/proc/self/mountinfo")

NOT_SHARED = frozenset(
    {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "ramfs", "reiserfs", "tmpfs", "xfs", "zfs"}
)
"""File systems that one machine has for itself."""

AS_IT_IS = ("host-passthrough", "maximum")
"""The modes in which a guest's processor is the hypervisor's own, so that another one has to be like it."""

Version = tuple[int, int, int]


@dataclass(frozen=True)
class Need:
    """What a guest asks of the hypervisor that it is to be migrated to.

    ``installed`` is the QEMU here, ``running`` the one that the guest runs, None where it does not tell.
    """

    name: str
    uuid: str
    host: str
    memory_bytes: int
    installed: Version
    running: Version | None
    come_back: bool


@dataclass(frozen=True)
class Destination:
    """Another hypervisor. ``names`` and ``uuids`` are those of its domains, ``refusals`` why libvirt there refuses."""

    uri: str
    host: str
    names: frozenset[str]
    uuids: frozenset[str]
    version: Version
    available_bytes: int
    refusals: tuple[str, ...]


def refusal(need: Need, found: Destination) -> str | None:
    """Why the guest cannot be migrated there; None where it can."""
    return next(_refusals(need, found), None)


def _refusals(need: Need, found: Destination) -> Iterator[str]:
    """QEMU takes over from an older QEMU, and does not promise to hand over to one."""
    if found.host == need.host:
        yield "it is this very hypervisor"
    if need.name in found.names or need.uuid in found.uuids:
        yield "a domain of that name or UUID is there already"
    theirs, ours = dotted(found.version), dotted(need.installed)
    if need.come_back and found.version > need.installed:
        yield f"its QEMU {theirs} is newer than {ours} here, which could not take the guest back"
    if need.come_back and need.running is not None and found.version < need.running:
        yield f"its QEMU {theirs} is older than {dotted(need.running)}, which the guest runs"
    if not need.come_back and found.version < need.installed:
        yield f"its QEMU {theirs} is older than {ours} here"
    needed = need.memory_bytes + RESERVE_BYTES
    if found.available_bytes < needed:
        yield f"the guest needs {needed >> 20} MiB of RAM there, and {found.available_bytes >> 20} MiB are free"
    yield from found.refusals


def dotted(version: Version) -> str:
    """A version as QEMU writes it."""
    return ".".join(map(str, version))


def parse_version(text: str | None) -> Version | None:
    """``7.2.22 (Debian 1:7.2+dfsg-7)`` becomes (7, 2, 22)."""
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", text or "")
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def choose(hypervisor: Hypervisor, domain: Domain, observed: Observation, options: PowerOptions) -> str:
    """The URI of the destination that is open and has the most free RAM. Raises MigrationImpossible.

    Looks at the guest and at each destination, and changes nothing.
    """
    _require_migratable(domain, observed, options.storage)
    xml = domain.xml()
    kind, processor = kind_of(xml), None
    if any(f"mode='{mode}'" in kind.cpu.replace('"', "'") for mode in AS_IT_IS):
        processor = hypervisor.processor()
    need = Need(
        name=domain.name,
        uuid=domain.uuid,
        host=hypervisor.host_uuid(),
        memory_bytes=domain.memory_bytes(),
        installed=hypervisor.qemu_version(),
        running=parse_version(observed.version_running),
        come_back=options.come_back,
    )
    sizes = _sizes(domain, observed) if options.storage is Storage.COPY else {}
    closed: dict[str, str] = {}
    free: dict[str, int] = {}
    for uri in options.destinations:
        try:
            with hypervisor.other(uri) as there:
                found = look(there, uri, kind, processor, sizes)
        except FleetError as error:
            closed[uri] = error.message
            continue
        why = refusal(need, found)
        if why is None:
            free[uri] = found.available_bytes
        else:
            closed[uri] = why
    if not free:
        reasons = "; ".join(f"{uri}: {why}" for uri, why in closed.items()) or "no destination is given"
        raise MigrationImpossible(
            f"domain {domain.name!r} cannot be migrated: {reasons}",
            remedy="Give a destination that is open, or take another way to the installed QEMU: strategy auto, "
            "save_restore or power_cycle.",
            evidence={"closed": closed},
        )
    return max(free, key=free.__getitem__)


def look(
    there: Hypervisor, uri: str, kind: Kind, processor: str | None, sizes: Mapping[str, int] | None = None
) -> Destination:
    """What a destination is like. ``sizes`` are those of the images that are to be made there, by their paths.

    Of a guest that is on its way there, some of the RAM counts as free until it has arrived, so all of it is taken off.
    """
    domains = there.domains()
    coming = sum(map(_memory_to_come, domains))
    refusals = [there.machine_refusal(kind, processor)]
    refusals += [there.image_refusal(path, size) for path, size in (sizes or {}).items()]
    return Destination(
        uri=uri,
        host=there.host_uuid(),
        names=frozenset(domain.name for domain in domains),
        uuids=frozenset(domain.uuid for domain in domains),
        version=there.qemu_version(),
        available_bytes=max(0, there.available_bytes() - coming),
        refusals=tuple(why for why in refusals if why),
    )


def _memory_to_come(domain: Domain) -> int:
    """The RAM of a domain that is on its way. One that is gone meanwhile needs none."""
    try:
        return domain.memory_bytes() if domain.is_migrating() else 0
    except DomainNotFound:
        return 0


def _require_migratable(domain: Domain, observed: Observation, storage: Storage) -> None:
    """Raise MigrationImpossible for what speaks against any destination."""
    definition = observed.definition
    if definition.unsaveable:
        raise _impossible(
            domain, f"with its {', '.join(definition.unsaveable)}: what these know is not in QEMU", "Power-cycle it."
        )
    definitions = domain.snapshot_definitions()
    left = _kept.in_files_of_their_own(definitions)
    if left:
        raise _impossible(domain, f"with {', '.join(left)}: such snapshots stay behind", "Delete them, or merge them.")
    if storage is Storage.COPY:
        if definitions:
            names = ", ".join(found.name for found in definitions)
            raise _impossible(
                domain,
                f"with its disks: snapshots are not copied, and it has {names}",
                "Delete them, and upgrade without a snapshot (upgrade_snapshot: false).",
            )
        files(domain, definition.writable_disks)
    if storage is Storage.SHARED:
        mounts = MOUNTS.read_text(encoding="utf-8", errors="replace")
        for disk in definition.writable_disks:
            kind = file_system(os.path.realpath(disk.file), mounts) if disk.file else None
            if kind in NOT_SHARED:
                raise _impossible(
                    domain,
                    f"without its disk {disk.target}: {disk.file} is on a file system ({kind}) that no other machine "
                    "has",
                    "Have its disks copied (storage: copy), or, if the other hypervisors do have that file system, "
                    "say so (storage: trusted).",
                )


def _impossible(domain: Domain, why: str, remedy: str) -> MigrationImpossible:
    return MigrationImpossible(f"domain {domain.name!r} cannot be migrated {why}", remedy=remedy)


def files(domain: Domain, disks: tuple[Disk, ...]) -> dict[str, str]:
    """The images of the disks, by the disks' names. Raises MigrationImpossible."""
    others = [disk.target for disk in disks if not disk.file]
    if others:
        raise _impossible(
            domain, f"by copying {', '.join(others)}: libvirt copies disks that are files", "Have its storage shared."
        )
    return {disk.target: disk.file for disk in disks if disk.file}


def _sizes(domain: Domain, observed: Observation) -> dict[str, int]:
    """How large the images are to be that are copied, by their paths."""
    found = files(domain, observed.definition.writable_disks)
    return {path: domain.disk_size(target) for target, path in found.items()}


def file_system(path: str, mounts: str) -> str | None:
    """The type of the file system that a path leads to, by the kernel's list of what is mounted where."""
    best, kind = -1, None
    for line in mounts.splitlines():
        words, _dash, more = line.partition(" - ")
        where = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), words.split(" ")[4])
        inside = where in ("/", path) or path.startswith(f"{where}/")
        if inside and len(where) >= best:  # of two at the same place, the later one is on top
            best, kind = len(where), more.split(" ")[0]
    return kind
