# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a guest has room for an upgrade."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._errors import DiskFull
from ansible_collections.kvm.fleet.plugins.module_utils._exec import output_of, shell_script
from ansible_collections.kvm.fleet.plugins.module_utils._packages import Prediction

# Free KiB where packages are downloaded to, unpacked and booted from, each behind the name of its file system; and the
# KiB that the running kernel takes up in /boot.
_LOOK = """\
for place in /var /usr /boot; do
  [ -d "$place" ] || place=/
  df -P -k "$place" | awk 'NR == 2 { print "free", $4, $NF }'
done
du -ck /boot/*-"$(uname -r)" 2>/dev/null | awk 'END { print "kernel", $1 + 0 }'
exit 0
"""

RESERVE_KIB = 16 * 1024
"""What is left over on each file system: for logs, for the package database, for the guest's own work meanwhile."""

_KERNEL = re.compile(r"linux-image-\d.*|kernel(-core|-default|-uek)?")


@dataclass(frozen=True)
class FreeSpace:
    """What a guest has free. Each place is a mount point and its free KiB; ``kernel`` is in KiB."""

    download: tuple[str, int]
    unpack: tuple[str, int]
    boot: tuple[str, int]
    kernel: int


def require_room(agent: GuestAgent, prediction: Prediction) -> None:
    """Raise DiskFull unless the guest has room for what is predicted."""
    if prediction.changes:
        check_room(free_space(agent), prediction)


def free_space(agent: GuestAgent) -> FreeSpace | None:
    """Ask the guest; None when its answer is none, as where df or awk are missing."""
    return parse_free_space(output_of(agent, shell_script(_LOOK, timeout=60)).splitlines())


def parse_free_space(lines: Iterable[str]) -> FreeSpace | None:
    """Read what the guest tells."""
    places, kernel = [], 0
    for line in lines:
        place, size = re.fullmatch(r"free (\d{1,15}) (/.*)", line), re.fullmatch(r"kernel (\d{1,12})", line)
        if place:
            places.append((place.group(2), int(place.group(1))))
        elif size:
            kernel = int(size.group(1))
    return FreeSpace(places[0], places[1], places[2], kernel) if len(places) == 3 else None


def check_room(free: FreeSpace | None, prediction: Prediction) -> None:
    """Raise DiskFull for the first file system that has too little room; one that is not told is not judged."""
    if free is None:
        return
    kernels = sum(bool(change.new and _KERNEL.fullmatch(change.name)) for change in prediction.changes)
    needed: dict[str, int] = {}
    left: dict[str, int] = {}
    for (mount, available), kib in (
        (free.download, prediction.room.download // 1024),
        (free.unpack, prediction.room.unpacked // 1024),
        (free.boot, kernels * free.kernel),
    ):
        needed[mount] = needed.get(mount, 0) + kib
        left[mount] = min(available, left.get(mount, available))
    for mount, kib in needed.items():
        available = left[mount]
        if kib and available < kib + RESERVE_KIB:
            raise DiskFull(
                f"{mount} in the guest has {available // 1024} MiB free, and the upgrade needs "
                f"{(kib + RESERVE_KIB) // 1024} MiB there",
                remedy="Make room in the guest (the package cache, old kernels, logs), then run again.",
                evidence={"mount": mount, "free_kib": available, "needed_kib": kib + RESERVE_KIB},
            )
