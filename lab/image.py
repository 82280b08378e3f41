# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guests' disk image: built once per recipe, published whole or not at all."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lab import initrd, tree
from lab.host import distribution, require_room
from lab.locks import exclusive
from lab.mirrors import archive
from lab.places import CACHE
from lab.progress import say, step
from lab.run import run

if TYPE_CHECKING:
    from lab.host import Distribution

# The modules that determine what is in an image: a change to any of them makes another image.
RECIPE_MODULES = ("image.py", "initrd.py", "packages.py", "rpms.py", "tree.py")
DISK_SIZE = "2G"
BUILD_NEEDS_MIB = 4096


@dataclass(frozen=True)
class Image:
    """A published image: a disk, and the kernel and initrd that boot it directly."""

    directory: Path

    @property
    def disk(self) -> Path:
        """The qcow2 that guests' overlays lie on."""
        return self.directory / "root.qcow2"

    @property
    def kernel(self) -> Path:
        """The Linux kernel."""
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """Its initial RAM disk."""
        return self.directory / "initrd.img"


def recipe_hash(wanted: Distribution) -> str:
    """What the image of this recipe is called."""
    digest = hashlib.sha256(repr(wanted).encode())
    for name in RECIPE_MODULES:
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()[:16]


def ensure() -> Image:
    """The image of the current recipe, built first if the cache lacks it."""
    wanted = distribution()
    image = Image(CACHE / recipe_hash(wanted))
    if image.directory.is_dir():
        return image
    with exclusive(CACHE / "lock", "another build of the image") as lock:
        scratch = CACHE / "building"
        # A build that was killed leaves this. Its commands inherit the lock, so none still runs.
        run(["rm", "-rf", "--one-file-system", scratch])
        if image.directory.is_dir():
            return image
        require_room(CACHE, BUILD_NEEDS_MIB)
        with step(f"building the guest image {image.directory.name}"):
            _build(Image(scratch / "image"), scratch, wanted, lock)
            (scratch / "image").rename(image.directory)
        run(["rm", "-rf", "--one-file-system", scratch])
    return image


def purge() -> None:
    """Remove every image and whatever else is cached."""
    if CACHE.exists():
        say(f"removing {CACHE}")
        run(["rm", "-rf", "--one-file-system", CACHE])


def _build(image: Image, scratch: Path, wanted: Distribution, lock: int) -> None:
    root, downloads, debs, built_rpms = (scratch / name for name in ("tree", "downloads", "debs", "rpms"))
    for directory in (image.directory, downloads, debs, built_rpms):
        directory.mkdir(parents=True)
    with step(f"  {wanted.origin} {wanted.codename} by mmdebstrap"):
        tree.bootstrap(root, downloads, archive(wanted), inherit=[lock])
    with step("  packages and repositories"):
        (agent,) = downloads.glob("qemu-guest-agent_*.deb")
        tree.publish_repositories(root, agent, debs, wanted)
        tree.install_old_packages(root, debs)
        tree.provide_dnf_plugins(root, downloads)
        tree.publish_rpms(root, built_rpms)
        tree.install_old_rpms(root, built_rpms)
        tree.settle(root)
    with step("  disk"):
        _take_kernel(root, image)
        raw = scratch / "root.raw"
        run(["truncate", "--size", DISK_SIZE, raw])
        run(["mkfs.ext4", "-q", "-d", root, raw], inherit=[lock])
        run(["qemu-img", "convert", "-O", "qcow2", raw, image.disk], inherit=[lock])
        # Guests that boot while the disk still writes back boot up to three times slower.
        run(["sync"])


def _take_kernel(root: Path, image: Image) -> None:
    (kernel,) = (root / "boot").glob("vmlinuz-*")
    shutil.copyfile(kernel, image.kernel)
    image.initrd.write_bytes(initrd.build(root))
