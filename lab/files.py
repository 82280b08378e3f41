# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a guest has on the host: its disk, and its own QEMU or library if it asked for one."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

from lab import emulator, libraries, ssh
from lab.host import require_room
from lab.places import OVMF_VARIABLES
from lab.run import run

if TYPE_CHECKING:
    from lab.domain_xml import GuestSpec
    from lab.image import Image
    from lab.places import Place

GUEST_NEEDS_MIB = 600
SECOND_DISK_SIZE = "64M"


def provide(place: Place, spec: GuestSpec, uuid: str, image: Image) -> None:
    """Make what a guest's domain names and does not have yet."""
    directory = place.guest_directory(uuid)
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    disk = place.found(place.own_disk_path(uuid)) if spec.own_disk else place.disk_path(uuid)
    if not disk.exists():
        disk.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        require_room(disk.parent, GUEST_NEEDS_MIB)
        new = disk.with_name(f"{disk.name}.new")
        if spec.disk_format == "qcow2":
            run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", image.disk, "-F", "qcow2", new])
        else:
            run(["qemu-img", "convert", "-O", spec.disk_format, image.disk, new])
        new.rename(disk)
    second = place.second_disk_path(uuid)
    if spec.second_disk and not second.exists():
        run(["qemu-img", "create", "-q", "-f", spec.second_disk, second, SECOND_DISK_SIZE])
    if spec.firmware == "uefi" and not place.nvram(uuid).exists():
        shutil.copyfile(OVMF_VARIABLES, place.nvram(uuid))
    if spec.private_emulator:
        emulator.install(place.found(place.private_emulator(uuid)))
    if spec.private_library:
        libraries.provide(place, uuid)
    if spec.ssh_port:
        ssh.provide(place.ssh_key(uuid))


def remove(place: Place, uuid: str) -> None:
    """Remove what `provide` made, and what the collection has noted of its runs on the guest."""
    shutil.rmtree(place.guest_directory(uuid), ignore_errors=True)
    emulator.remove(place.found(place.private_emulator(uuid)))
    place.found(place.own_disk_path(uuid)).unlink(missing_ok=True)
    place.run_record(uuid).unlink(missing_ok=True)
    place.run_record(uuid).with_suffix(".lock").unlink(missing_ok=True)


def remove_logs(place: Place, name: str) -> None:
    """Remove what libvirt, QEMU and swtpm have said of a guest that is off, what virtlogd has rotated included.

    No other guest's log is named so: it ends in ".log".
    """
    log = re.compile(rf"{re.escape(name)}\.log(\.\d+)?")
    logs = place.qemu_logs()
    for path in logs.iterdir() if logs.exists() else ():
        if log.fullmatch(path.name):
            path.unlink(missing_ok=True)
    place.tpm_log(name).unlink(missing_ok=True)
