# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where the lab keeps things, on which hypervisor. All of it is the lab's own, so that all of it may be removed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

STATE = Path("/var/lib/kvm-fleet-lab")
FLEETS = STATE / "fleets"
LOCK = Path("/run/lock/kvm-fleet-lab")
SESSIONS = Path("/run/lock/kvm-fleet-lab-sessions")
CACHE = Path("/var/cache/kvm-fleet-lab")

# Where the collection keeps what it knows of guests. Only what is named by the UUID of a guest of the lab is the lab's.
RUN_RECORDS = Path("/var/lib/kvm-fleet/runs")

INSTALLED_EMULATOR = Path("/usr/bin/qemu-system-x86_64")
# QEMU finds its firmware relative to its own directory, so the copy lives beside the original.
EMULATOR = Path("/usr/bin/qemu-system-x86_64-kvm-fleet-lab")

# UEFI firmware as Debian and Ubuntu ship it: the code, which guests share, and the variables that each begins with.
OVMF = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
OVMF_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")

# Where libvirt keeps what it and QEMU say of each guest, by the guest's name, and what the guest's TPM says.
QEMU_LOGS = Path("/var/log/libvirt/qemu")
TPM_LOGS = Path("/var/log/swtpm/libvirt/qemu")

# Of a guest whose disk its hypervisor has for itself. There, what is named by the UUID of a guest is the lab's.
IMAGES = Path("/var/lib/libvirt/images")

METADATA_NAMESPACE = "https://kvm.fleet/xmlns/lab/1"


@dataclass(frozen=True)
class Place:
    """Where one hypervisor has what is the lab's. All paths are as its own processes, and so its domains, name them.

    A hypervisor of a fleet has some of them for itself: `found` tells where these are for everybody else.
    """

    uri: str
    """Where its libvirt answers this machine."""
    guests: Path
    """What has a folder for each guest; for the hypervisors of a fleet it is one and the same."""
    emulator: Path
    """The copy of QEMU that its guests share."""
    own: tuple[tuple[Path, Path], ...] = ()
    """What it has for itself: as it names it, and where that is."""

    def found(self, path: Path) -> Path:
        """Where a path of this hypervisor is found from outside of it."""
        for named, kept in self.own:
            if path.is_relative_to(named):
                return kept / path.relative_to(named)
        return path

    def guest_directory(self, uuid: str) -> Path:
        """All files of a guest but its own QEMU. Named by UUID: a guest's name may be anything."""
        return self.guests / uuid

    def disk_path(self, uuid: str) -> Path:
        """A guest's disk."""
        return self.guest_directory(uuid) / "disk"

    def second_disk_path(self, uuid: str) -> Path:
        """A guest's second disk, if it has one."""
        return self.guest_directory(uuid) / "second-disk"

    def nvram(self, uuid: str) -> Path:
        """The variables of a guest's UEFI firmware, if it has that."""
        return self.guest_directory(uuid) / "nvram.fd"

    def own_disk_path(self, uuid: str) -> Path:
        """The disk of a guest whose hypervisor has it for itself."""
        return IMAGES / uuid

    def console_path(self, uuid: str) -> Path:
        """What a guest said on its serial console."""
        return self.guest_directory(uuid) / "console.log"

    def library_directory(self, uuid: str) -> Path:
        """Where the QEMU of a guest with a private library looks for libraries first."""
        return self.guest_directory(uuid) / "lib"

    def ssh_key(self, uuid: str) -> Path:
        """The private key that opens a guest with SSH."""
        return self.guest_directory(uuid) / "ssh-key"

    def private_emulator(self, uuid: str) -> Path:
        """The copy of QEMU that only this guest runs, if it has one: then it can drift alone."""
        return self.emulator.with_name(f"{self.emulator.name}-{uuid}")

    def run_record(self, uuid: str) -> Path:
        """Where the collection's record of its runs on a guest is found."""
        return self.found(RUN_RECORDS / f"{uuid}.json")

    def qemu_logs(self) -> Path:
        """Where what libvirt and QEMU say of each guest is found."""
        return self.found(QEMU_LOGS)

    def tpm_log(self, name: str) -> Path:
        """Where what the TPM of a guest says is found."""
        return self.found(TPM_LOGS / f"{name}-swtpm.log")


HERE = Place("qemu:///system", STATE / "guests", EMULATOR)
"""This machine itself."""
