# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a guest has on the host: its disk, and its own QEMU or library if it asked for one."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from lab import emulator, libraries
from lab.host import require_room
from lab.places import disk_path, guest_directory, private_emulator, run_record
from lab.run import run

if TYPE_CHECKING:
    from lab.domain_xml import GuestSpec
    from lab.image import Image

GUEST_NEEDS_MIB = 600


def provide(spec: GuestSpec, uuid: str, image: Image) -> None:
    """Make what a guest's domain names and does not have yet."""
    directory = guest_directory(uuid)
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    disk = disk_path(uuid)
    if not disk.exists():
        require_room(directory, GUEST_NEEDS_MIB)
        new = disk.with_name("disk.new")
        if spec.disk_format == "qcow2":
            run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", image.disk, "-F", "qcow2", new])
        else:
            run(["qemu-img", "convert", "-O", spec.disk_format, image.disk, new])
        new.rename(disk)
    if spec.private_emulator:
        emulator.install(private_emulator(uuid))
    if spec.private_library:
        libraries.provide(uuid)


def remove(uuid: str) -> None:
    """Remove what `provide` made, and what the collection has noted of its runs on the guest."""
    shutil.rmtree(guest_directory(uuid), ignore_errors=True)
    private_emulator(uuid).unlink(missing_ok=True)
    run_record(uuid).unlink(missing_ok=True)
    run_record(uuid).with_suffix(".lock").unlink(missing_ok=True)
