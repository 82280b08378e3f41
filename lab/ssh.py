# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The way into a guest by SSH: a port of the host's loopback, and a key of the guest's own."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from lab.run import run

if TYPE_CHECKING:
    from pathlib import Path

GREETING = b"SSH-"
ANSWERS_WITHIN_S = 10

# Run in the guest, with the public key as its input.
ADMIT = "umask 077; mkdir -p /root/.ssh && cat >/root/.ssh/authorized_keys"


def free_port() -> int:
    """A port of the host's loopback that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def provide(key: Path) -> None:
    """Make a key pair, unless it is there."""
    if not key.exists():
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", key])


def public_key(key: Path) -> bytes:
    """What is told to whoever is to admit, or to know, the holder of the key."""
    return key.with_name(f"{key.name}.pub").read_bytes()


def greets(port: int) -> bool:
    """Whether an sshd answers at the port. QEMU itself listens there also while the guest does not."""
    try:
        with socket.create_connection(("127.0.0.1", port), ANSWERS_WITHIN_S) as connection:
            return connection.recv(len(GREETING)) == GREETING
    except OSError:
        return False
