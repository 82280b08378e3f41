# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the lab needs of the machine: a known distribution, root, Debian packages, room."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from lab.errors import Unsupported
from lab.progress import step
from lab.run import run
from lab.tree import KERNELS

LAB_PACKAGES = (
    "apt-utils",
    "createrepo-c",
    "dpkg-dev",
    "e2fsprogs",
    "guestfish",
    "iproute2",
    "libvirt-clients",
    "libvirt-daemon-system",
    "mmdebstrap",
    "openssh-client",
    "ovmf",
    "qemu-system-x86",
    "qemu-utils",
    "rpm",
    "swtpm",
    "swtpm-tools",
)

BOOT = Path("/boot")


@dataclass(frozen=True)
class Distribution:
    """The host's distribution, which is also the guests'."""

    id: str
    version: str
    codename: str

    @property
    def origin(self) -> str:
        """The Origin field of the distribution's own Release files."""
        return self.id.capitalize()


def parse_os_release(text: str) -> Distribution:
    """Read os-release(5). Raises Unsupported for anything but Debian and Ubuntu."""
    fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    values = {key: value.strip("\"'") for key, value in fields.items()}
    if values.get("ID") not in ("debian", "ubuntu") or "VERSION_CODENAME" not in values:
        raise Unsupported(
            f"the lab builds its guests from Debian or Ubuntu, and this is {values.get('ID')!r}",
            "run it on a Debian or Ubuntu machine",
        )
    return Distribution(values["ID"], values.get("VERSION_ID", ""), values["VERSION_CODENAME"])


def distribution() -> Distribution:
    """The distribution of this machine."""
    return parse_os_release(Path("/etc/os-release").read_text(encoding="utf-8"))


def require_a_suitable_machine() -> None:
    """Raise Unsupported unless root runs this on x86-64 Linux."""
    if os.geteuid() != 0:
        raise Unsupported("the lab manages system guests, so it needs root", "run it as root")
    if platform.machine() != "x86_64":
        raise Unsupported(
            f"the lab's guests are x86-64, and this machine is {platform.machine()}",
            "run it on an x86-64 machine",
        )


def require_room(directory: Path, mebibytes: int) -> None:
    """Raise Unsupported unless the file system of `directory` has that much left."""
    directory.mkdir(parents=True, exist_ok=True)
    left = shutil.disk_usage(directory).free // 2**20
    if left < mebibytes:
        raise Unsupported(
            f"{directory} has {left} MiB left, and {mebibytes} MiB are needed",
            "free some space there",
        )


def packages() -> tuple[str, ...]:
    """The Debian packages that the lab needs here.

    libguestfs boots its appliance with a kernel of the host's, which a container has not. A host that has one is given
    no other.
    """
    has_kernel = any(BOOT.glob("vmlinuz-*"))
    return LAB_PACKAGES if has_kernel else (*LAB_PACKAGES, KERNELS[distribution().id])


def missing(installed: str, wanted: tuple[str, ...]) -> list[str]:
    """Those of `wanted` that are not in dpkg-query's `${Package} ${db:Status-Abbrev}` lines."""
    present = {line.split()[0] for line in installed.splitlines() if line.endswith(" ii ")}
    return [name for name in wanted if name not in present]


def prepare(*, install: bool = True) -> None:
    """Have all that the lab needs before the rest of it can as much as be imported.

    Without `install` nothing is installed: what looks or cleans up must not.
    """
    require_a_suitable_machine()
    # QEMU runs as another user, which has to read what the lab makes.
    os.umask(0o022)
    if install:
        install_packages()
    try:
        importlib.import_module("libvirt")
    except ImportError as error:
        raise Unsupported(
            f"this Python cannot import libvirt: {error}",
            "install libvirt-python into it, or use the environment that `make deps` makes",
        ) from error


def install_packages() -> None:
    """Install the Debian packages that the lab lacks."""
    installed = run(["dpkg-query", "-W", "-f=${Package} ${db:Status-Abbrev}\n"])
    lacking = missing(installed, packages())
    if not lacking:
        return
    with step(f"installing {' '.join(lacking)}"):
        run(["apt-get", "update"])
        run(["apt-get", "-y", "--no-install-recommends", "install", *lacking], deadline_s=1800)
