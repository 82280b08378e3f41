# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The sshd of a hypervisor: a host key of its own, and one key that opens it for root."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from lab import ssh
from lab.locks import exclusive
from lab.places import CACHE
from lab.progress import step
from lab.run import run

if TYPE_CHECKING:
    from collections.abc import Sequence

INSTALLED = Path("/usr/sbin/sshd")
LIBRARIES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")
# Where there are these, sshd has been taken apart, and has to be told where its parts are.
PARTS = {"SshdSessionPath": "usr/lib/openssh/sshd-session", "SshdAuthPath": "usr/lib/openssh/sshd-auth"}


def root() -> Path:
    """Below which directory OpenSSH's server is.

    It is the machine's own if it has one. Else the distribution's package is unpacked into the cache, with what it
    needs and the machine lacks: installed, it would open this machine to its network.
    """
    if INSTALLED.exists():
        return Path("/")
    unpacked = CACHE / "sshd"
    with exclusive(CACHE / "sshd.lock", "another download of sshd"):
        if not unpacked.is_dir():
            with step("fetching openssh-server"), tempfile.TemporaryDirectory(dir=CACHE) as scratch:
                _unpack(Path(scratch))
                (Path(scratch) / "root").rename(unpacked)
    return unpacked


def _unpack(scratch: Path) -> None:
    archives, target = scratch / "archives", scratch / "root"
    (archives / "partial").mkdir(parents=True)
    target.mkdir(mode=0o755)
    options = ["--yes", "--no-install-recommends", "--download-only", f"--option=Dir::Cache::archives={archives}"]
    run(["apt-get", *options, "--option=DPkg::Lock::Timeout=300", "install", "openssh-server"])
    for package in archives.glob("*.deb"):
        run(["dpkg-deb", "--extract", package, target])


def settings(directory: Path, address: str, below: Path) -> str:
    """An sshd_config(5) for the sshd below `below`, whose keys are in `directory`."""
    parts = {option: below / part for option, part in PARTS.items() if below != Path("/")}
    lines = {
        "ListenAddress": address,
        "HostKey": _host_key(directory),
        "AuthorizedKeysFile": directory / "authorized_keys",
        "PermitRootLogin": "prohibit-password",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        # Without PAM, it refuses a root whose password is locked.
        "UsePAM": "yes",
        "UseDNS": "no",
        "PidFile": "none",
        "Subsystem": "sftp internal-sftp",
        **{option: part for option, part in parts.items() if part.exists()},
    }
    return "".join(f"{name} {value}\n" for name, value in lines.items())


def provide(directory: Path, address: str, client_key: Path) -> None:
    """Make what an sshd needs. Its host key stays the same over its starts."""
    ssh.provide(_host_key(directory))
    (directory / "authorized_keys").write_bytes(ssh.public_key(client_key))
    (directory / "sshd_config").write_text(settings(directory, address, root()), encoding="utf-8")


def start(directory: Path, within: Sequence[str]) -> None:
    """Start it in the view that `within` leads to; it puts itself into the background."""
    below = root()
    path = os.pathsep.join(str(below / libraries) for libraries in LIBRARIES)
    run([*within, "env", f"LD_LIBRARY_PATH={path}", below / "usr/sbin/sshd", "-f", directory / "sshd_config"])


def known_host(directory: Path, address: str) -> str:
    """The line of a known_hosts file by which it is known again."""
    return f"{address} {ssh.public_key(_host_key(directory)).decode().strip()}\n"


def _host_key(directory: Path) -> Path:
    return directory / "ssh_host_ed25519_key"
