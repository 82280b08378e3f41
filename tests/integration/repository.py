# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab's apt repository, served from this machine's loopback, which a guest's own network does not reach."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lab.guests import Guest

AGENTS = "/srv/lab/agent"
LOOPBACK = "169.254.2.2"
"""This machine's 127.0.0.1, as libguestfs's appliance sees it."""


@dataclass
class Served:
    """A repository that is served: where, and what was asked for so far."""

    port: int
    requests: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Its address for what runs in the appliance."""
        return f"http://{LOOPBACK}:{self.port}"


@contextmanager
def repository_of(guest: Guest, directory: Path) -> Iterator[Served]:
    """The agent's package and the index, taken out of a running guest's image and served."""
    directory.mkdir()
    for name in guest.output("/bin/ls", AGENTS).splitlines():
        if name in ("Packages", "Release") or name.startswith("qemu-guest-agent_"):
            (directory / name).write_bytes(guest.read_file(f"{AGENTS}/{name}"))

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(directory))

        def log_message(self, _format: str, *_arguments: object) -> None:
            served.requests.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served = Served(server.server_port)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
