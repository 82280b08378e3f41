# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where the lab keeps things. All of it is the lab's own, so that all of it may be removed."""

from __future__ import annotations

from pathlib import Path

STATE = Path("/var/lib/kvm-fleet-lab")
GUESTS = STATE / "guests"
LOCK = Path("/run/lock/kvm-fleet-lab")
SESSIONS = Path("/run/lock/kvm-fleet-lab-sessions")
CACHE = Path("/var/cache/kvm-fleet-lab")

# Where the collection keeps what it knows of guests. Only what is named by the UUID of a guest of the lab is the lab's.
RUN_RECORDS = Path("/var/lib/kvm-fleet/runs")

INSTALLED_EMULATOR = Path("/usr/bin/qemu-system-x86_64")
# QEMU finds its firmware relative to its own directory, so the copy lives beside the original.
EMULATOR = Path("/usr/bin/qemu-system-x86_64-kvm-fleet-lab")

# A guest that is to drift alone has one of its own, named by the guest's UUID.
PRIVATE_EMULATOR = f"{EMULATOR.name}-"

METADATA_NAMESPACE = "https://kvm.fleet/xmlns/lab/1"


def guest_directory(uuid: str) -> Path:
    """All files of a guest but its own QEMU. Named by UUID: a guest's name may be anything."""
    return GUESTS / uuid


def disk_path(uuid: str) -> Path:
    """A guest's disk."""
    return guest_directory(uuid) / "disk"


def run_record(uuid: str) -> Path:
    """What the collection has noted of its runs on a guest."""
    return RUN_RECORDS / f"{uuid}.json"


def console_path(uuid: str) -> Path:
    """What a guest said on its serial console."""
    return guest_directory(uuid) / "console.log"


def library_directory(uuid: str) -> Path:
    """Where the QEMU of a guest with a private library looks for libraries first."""
    return guest_directory(uuid) / "lib"


def private_emulator(uuid: str) -> Path:
    """The copy of QEMU that only this guest runs, if it has one."""
    return EMULATOR.with_name(f"{PRIVATE_EMULATOR}{uuid}")
