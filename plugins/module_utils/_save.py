# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest's RAM in a file, by which it goes on on a new QEMU process without noticing more than a pause.

libvirt's managed save is used, and no image at a path of one's own: whoever starts the guest meanwhile, be it a person
or the hypervisor's boot, resumes it from there. An image that only we knew of would be overlooked by them; the guest
would boot, and the image would no longer fit its disks. So where the image lies, and in which format
(``save_image_format`` of qemu.conf), is the hypervisor's own setting.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._clock import Clock
from ansible_collections.kvm.fleet.plugins.module_utils._errors import FleetError, SaveImpossible
from ansible_collections.kvm.fleet.plugins.module_utils._observe import Observation
from ansible_collections.kvm.fleet.plugins.module_utils._qemu_img import free_bytes

RESERVE_BYTES = 64 * 1024 * 1024
"""For the state of the guest's devices, beside its RAM, and for the hypervisor itself."""


def save_directory(uri: str) -> Path:
    """Where libvirt's QEMU driver keeps the images of managed saves."""
    if urlsplit(uri).path == "/session":
        return Path(os.environ.get("XDG_CONFIG_HOME", Path.home() / ".config"), "libvirt/qemu/save")
    return Path("/var/lib/libvirt/qemu/save")


def require_saveable(
    observed: Observation, memory_bytes: int, directory: Path, free: Callable[[str], int | None] = free_bytes
) -> None:
    """Raise SaveImpossible for what can be known before. An image may be as large as the guest's RAM."""
    if observed.definition.unsaveable:
        devices = ", ".join(observed.definition.unsaveable)
        raise SaveImpossible(
            f"the RAM of domain {observed.name!r} cannot be saved with its {devices}: what these know is not in RAM",
            remedy="Power-cycle it, which needs no saved RAM, or take that from the domain first.",
            evidence={"devices": list(observed.definition.unsaveable)},
        )
    available, needed = free(str(directory)), memory_bytes + RESERVE_BYTES
    if available is not None and available < needed:
        raise SaveImpossible(
            f"the saved RAM of domain {observed.name!r} may need {needed >> 20} MiB in {directory}, where "
            f"{available >> 20} MiB are free",
            remedy=f"Free space in {directory}, or power-cycle the guest, which needs none.",
            evidence={"needed_bytes": needed, "free_bytes": available},
        )


@contextmanager
def set_aside(image: Path) -> Iterator[None]:
    """Keep a saved image from being used, and from being lost, as long as this lasts."""
    aside = image.with_name(f"{image.name}.set-aside")
    image.rename(aside)
    try:
        yield
    finally:
        aside.rename(image)


# --- the guest's clock ---------------------------------------------------------------------------


@dataclass(frozen=True)
class ClockReport:
    """What was done about a guest's clock, which stands still while the guest does.

    ``behind`` is how many seconds it had lost, None where the agent may not tell the time. ``problem`` is why it was
    not set.
    """

    behind: float | None
    set: bool
    problem: str | None = None

    def facts(self) -> dict[str, object]:
        """As results have it."""
        return {"behind": self.behind, "set": self.set, "problem": self.problem}


def clock_offset(agent: GuestAgent, clock: Clock) -> float | None:
    """By how many seconds the guest's clock is ahead of the hypervisor's, or None where the agent does not tell."""
    try:
        return agent.time() - clock.now().timestamp()
    except FleetError:
        return None


def set_clock(agent: GuestAgent, clock: Clock, offset: float | None) -> ClockReport:
    """Put a guest's clock to where it would be without the pause: as far from the hypervisor's as it was before.

    A guest whose clock cannot be set is none the worse otherwise, so this fails for nothing.
    """
    before = clock_offset(agent, clock)
    behind = None if before is None else round((offset or 0.0) - before, 1)
    try:
        agent.set_time(clock.now().timestamp() + (offset or 0.0))
    except FleetError as error:
        return ClockReport(behind, set=False, problem=error.message)
    return ClockReport(behind, set=True)
