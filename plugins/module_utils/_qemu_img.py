# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only speaker of qemu-img: what is in an image, whoever has it open, and the layers over it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from ansible_collections.kvm.fleet.plugins.module_utils._domain import Image, LayerUse
from ansible_collections.kvm.fleet.plugins.module_utils._errors import DiskImageFailed

TIMEOUT = 30

_QCOW2 = b"QFI\xfb"
"""What a qcow2 image begins with."""


class QemuImg:
    """The images of disks, see ``_domain.Images``."""

    def installed(self) -> bool:
        return shutil.which("qemu-img") is not None

    def chain(self, file: str, image_format: str) -> tuple[Image, ...]:
        # The format of those below comes from the image above, where libvirt and we have written it, not from a guest.
        return parse_chain(file, _info(file, "--force-share", "--backing-chain", image_format=image_format))

    def use_of(self, file: str) -> LayerUse:
        if not _is_qcow2(file):
            return LayerUse.BROKEN
        if self.is_open(file):
            return LayerUse.OPEN
        said = _said(file, "map", "--output", "json", "-f", "qcow2", "--", file, timeout=None)
        return LayerUse.WRITTEN if parse_written(file, said) else LayerUse.EMPTY

    def is_open(self, file: str) -> bool:
        # A qemu-img that is missing or gets no answer says nothing of a layer: that is an error.
        _info(file, "--force-share")
        try:
            _info(file)  # which a QEMU's lock forbids
        except DiskImageFailed:
            return True
        return False

    def create_layer(self, file: str, over: Image) -> None:
        _said(file, "create", "-q", "-f", "qcow2", "-b", over.file, "-F", over.format, "--", file, timeout=TIMEOUT)

    def commit(self, layer: str, base: Image) -> None:
        # It locks the images as QEMU does: of this and the start of the guest, one fails.
        _said(layer, "commit", "-q", "-d", "-f", "qcow2", "-b", base.file, "--", layer, timeout=None)

    def rebase(self, layer: str, onto: Image) -> None:
        asked = ("rebase", "-q", "-u", "-f", "qcow2", "-b", onto.file, "-F", onto.format, "--", layer)
        _said(layer, *asked, timeout=TIMEOUT)


def _is_qcow2(file: str) -> bool:
    try:
        with Path(file).open("rb") as image:
            return image.read(len(_QCOW2)) == _QCOW2
    except OSError as error:
        raise DiskImageFailed(
            f"{file} cannot be read: {error}",
            remedy="See that the task runs as root on the hypervisor (ansible_become), and that this file system is "
            "there.",
            evidence={"image": file},
        ) from error


def _info(image: str, *options: str, image_format: str = "qcow2") -> str:
    """What is in an image. The format is given, so that nothing in the image is taken for that of another."""
    arguments = ("info", *options, "--output", "json", "-f", image_format, "--", image)
    return _said(image, *arguments, timeout=TIMEOUT)


def _said(image: str, *arguments: str, timeout: float | None) -> str:
    problem: str
    try:
        done = subprocess.run(
            ["qemu-img", *arguments],
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        problem = error.stderr.decode("utf-8", "replace").strip()
    except (OSError, subprocess.SubprocessError) as error:
        problem = str(error)
    else:
        return done.stdout.decode("utf-8", "replace")
    raise DiskImageFailed(
        f"'qemu-img {arguments[0]}' failed for {image}: {problem}",
        remedy="See that qemu-img is installed on the hypervisor (qemu-utils, qemu-img), that nothing else has the "
        "image open, and that there is room beside it.",
        evidence={"image": image, "command": arguments[0]},
    )


def parse_chain(file: str, said: str) -> tuple[Image, ...]:
    """An image and those below it, from what ``qemu-img info --backing-chain --output json`` prints."""
    try:
        chain = tuple(
            Image(
                file=str(one["filename"]),
                format=str(one["format"]),
                size=int(one["virtual-size"]),
                allocated=int(one["actual-size"]),
                snapshots=tuple(str(snapshot["name"]) for snapshot in one.get("snapshots", [])),
            )
            for one in json.loads(said)
        )
        _top = chain[0]  # there is at least that
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise _not_understood("info", file, said, error) from error
    return chain


def parse_written(file: str, said: str) -> bool:
    """Whether a layer has anything of its own, from what ``qemu-img map --output json`` prints."""
    try:
        return any(one["depth"] == 0 and (one["data"] or one["zero"]) for one in json.loads(said))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _not_understood("map", file, said, error) from error


def _not_understood(command: str, file: str, said: str, error: Exception) -> DiskImageFailed:
    return DiskImageFailed(
        f"what 'qemu-img {command}' says of {file} is not understood: {error!r}",
        remedy=f"See what it says: 'qemu-img {command}' with this file.",
        evidence={"image": file, "said": said[:500]},
    )


def snapshot_sizes(image: str) -> dict[str, int] | None:
    """Bytes of RAM that each internal snapshot of a qcow2 image holds, by its name; None where nobody can tell.

    That of a guest that was off has none. How many of the image's other blocks a snapshot alone keeps, qemu-img does
    not say.
    """
    try:
        return parse_snapshots(_info(image, "--force-share"))
    except DiskImageFailed:
        return None


def parse_snapshots(said: str) -> dict[str, int] | None:
    """Likewise from what ``qemu-img info --output json`` prints."""
    try:
        info: dict[str, Any] = json.loads(said)
        return {str(one["name"]): int(one["vm-state-size"]) for one in info.get("snapshots", [])}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def free_bytes(path: str) -> int | None:
    """Bytes that a file on the hypervisor may still grow by, or None where that cannot be told."""
    try:
        status = os.statvfs(path)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


def allocated_bytes(image: str) -> int | None:
    """Bytes that an image takes up on its file system; None where nobody can tell, as for a block device."""
    try:
        blocks = Path(image).stat().st_blocks
    except OSError:
        return None
    return blocks * 512
