# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a guest has room for an upgrade."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._errors import DiskFull
from ansible_collections.kvm.fleet.plugins.module_utils._exec import output_of, shell_script
from ansible_collections.kvm.fleet.plugins.module_utils._packages import Prediction

# Free KiB where packages are downloaded to, unpacked and booted from, with the device and the mount point of each; and
# the KiB that the running kernel takes up in /boot, which may be in the middle of a name (initramfs-VERSION.img).
_LOOK = """\
for place in /var /usr /boot; do
  [ -d "$place" ] || place=/
  df -P -k "$place" | awk 'NR == 2 { print "free", $4, $1, $NF }'
done
du -ck /boot/*-"$(uname -r)"* 2>/dev/null | awk 'END { print "kernel", $1 + 0 }'
exit 0
"""

RESERVE_KIB = 16 * 1024
"""What is left over on each file system: for logs, for the package database, for the guest's own work meanwhile."""

_KERNEL = re.compile(
    r"linux-image-\d.*(?<!-dbg)(?<!-dbgsym)|kernel(-(?!modules-)[a-z0-9]+)*-core|kernel(-default|-uek)?"
)


@dataclass(frozen=True)
class Place:
    """A file system, with its free KiB."""

    device: str
    mount: str
    free: int

    @property
    def pool(self) -> str:
        """Tells whether two places share their free space, as the subvolumes of one btrfs do."""
        return self.device if self.device.startswith("/") else self.mount


@dataclass(frozen=True)
class FreeSpace:
    """What a guest has free; ``kernel`` is in KiB."""

    download: Place
    unpack: Place
    boot: Place
    kernel: int


def require_room(agent: GuestAgent, prediction: Prediction) -> None:
    """Raise DiskFull unless the guest has room for what is predicted."""
    if prediction.changes:
        check_room(free_space(agent), prediction)


def free_space(agent: GuestAgent) -> FreeSpace | None:
    """Ask the guest; None when its answer is none, as where df or awk are missing."""
    return parse_free_space(output_of(agent, shell_script(_LOOK, timeout=60, terse=True)).splitlines())


def parse_free_space(lines: Iterable[str]) -> FreeSpace | None:
    """Read what the guest tells."""
    places, kernel = [], 0
    for line in lines:
        place, size = re.fullmatch(r"free (\d{1,15}) (\S+) (/.*)", line), re.fullmatch(r"kernel (\d{1,12})", line)
        if place:
            places.append(Place(place.group(2), place.group(3), int(place.group(1))))
        elif size:
            kernel = int(size.group(1))
    return FreeSpace(places[0], places[1], places[2], kernel) if len(places) == 3 else None


def check_room(free: FreeSpace | None, prediction: Prediction) -> None:
    """Raise DiskFull for the first file system that has too little room; one that is not told is not judged."""
    if free is None:
        return
    kernels = _kernels({change.name for change in prediction.changes if change.new})
    needed: dict[str, int] = {}
    tightest: dict[str, Place] = {}
    for place, kib in (
        (free.download, prediction.room.download // 1024),
        (free.unpack, prediction.room.unpacked // 1024),
        (free.boot, kernels * free.kernel),
    ):
        needed[place.pool] = needed.get(place.pool, 0) + kib
        known = tightest.setdefault(place.pool, place)
        tightest[place.pool] = min(known, place, key=lambda one: one.free)
    for pool, kib in needed.items():
        mount, available = tightest[pool].mount, tightest[pool].free
        if kib and available < kib + RESERVE_KIB:
            raise DiskFull(
                f"{mount} in the guest has {available // 1024} MiB free, and the upgrade needs "
                f"{(kib + RESERVE_KIB) // 1024} MiB there",
                remedy="Make room in the guest (the package cache, old kernels, logs), then run again.",
                evidence={"mount": mount, "free_kib": available, "needed_kib": kib + RESERVE_KIB},
            )


def _kernels(names: Collection[str]) -> int:
    """How many of these packages put a kernel into /boot; the others of a kernel's may have the shorter name."""
    return sum(bool(_KERNEL.fullmatch(name)) and f"{name}-core" not in names for name in names)
