# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The real qemu-ga on a unix socket, without a guest: contract tests in milliseconds."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lab.clock import wait_until
from lab.errors import AgentFailed
from lab.locks import exclusive
from lab.places import CACHE
from lab.progress import step
from lab.run import clean_environment, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LISTENS_WITHIN_S = 10
# This agent's guest would be the machine that runs the tests.
NEVER = (
    "guest-fsfreeze-freeze",
    "guest-fsfreeze-freeze-list",
    "guest-fstrim",
    "guest-set-memory-blocks",
    "guest-set-time",
    "guest-set-user-password",
    "guest-set-vcpus",
    "guest-shutdown",
    "guest-ssh-add-authorized-keys",
    "guest-ssh-remove-authorized-keys",
    "guest-suspend-disk",
    "guest-suspend-hybrid",
    "guest-suspend-ram",
)


def binary() -> Path:
    """The qemu-ga of the host's distribution, unpacked into the cache: the host installs none."""
    unpacked = CACHE / "agent"
    with exclusive(CACHE / "agent.lock", "another download of the agent"):
        if not unpacked.is_dir():
            with step("fetching qemu-guest-agent"), tempfile.TemporaryDirectory(dir=CACHE) as scratch:
                run(["apt-get", "download", "qemu-guest-agent"], cwd=Path(scratch))
                (package,) = Path(scratch).glob("*.deb")
                run(["dpkg-deb", "--extract", package, Path(scratch) / "agent"])
                (Path(scratch) / "agent").rename(unpacked)
    return unpacked / "usr/sbin/qemu-ga"


@contextmanager
def local_agent(block_rpcs: Sequence[str] = ()) -> Iterator[Path]:
    """Run an agent that answers on the socket whose path this gives, one client at a time.

    `block_rpcs` are refused by it as on a hardened guest. Its commands run on this machine, as
    this user; what would harm the machine is always refused. Raises AgentFailed if it does not
    listen.
    """
    program = binary()
    blocked = ",".join(sorted({*NEVER, *block_rpcs}))
    # A socket's path has to be short, so it is not below the test's own directory.
    directory = Path(tempfile.mkdtemp(prefix="qga-"))
    address = directory / "socket"
    process = subprocess.Popen(
        [
            *(program, "--method=unix-listen", f"--path={address}", f"--block-rpcs={blocked}"),
            *(f"--statedir={directory}", f"--pidfile={directory / 'pid'}", f"--logfile={directory / 'log'}"),
        ],
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        if not wait_until(lambda: _listens(address) or process.poll() is not None, LISTENS_WITHIN_S, every_s=0.01):
            raise AgentFailed(f"qemu-ga does not listen after {LISTENS_WITHIN_S} s", f"run {program} by hand")
        if process.poll() is not None:
            raise AgentFailed(f"qemu-ga ended with {process.returncode}", f"run {program} by hand")
        yield address
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(directory)


def _listens(address: Path) -> bool:
    # The socket's file is there a moment before anybody listens on it.
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(address))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True
