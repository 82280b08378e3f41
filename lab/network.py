# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The network of a fleet: a bridge of this machine's, and a cable from it to each hypervisor.

Each hypervisor has two addresses at its cable. This machine shares the first one's network. The second one's it has no
part in: there hypervisors speak to each other's libvirt, which asks nobody who he is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lab.errors import LabError
from lab.run import run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lab.process import Process

LINKS = Path("/sys/class/net")
# Meant for tests of networks, and routed nowhere (RFC 2544): .18 with this machine, .19 among hypervisors.
SHARED, AMONG = "198.18", "198.19"
MOST = 99


@dataclass(frozen=True)
class Network:
    """The network of the fleet with this number, from 1 to `MOST`."""

    number: int

    @property
    def bridge(self) -> str:
        """The bridge's name."""
        return f"kvm-fleet-lab{self.number}"

    def cable(self, index: int) -> str:
        """The end of a hypervisor's cable that is at the bridge."""
        return f"kfl{self.number}h{index}"

    def address(self, index: int) -> str:
        """Where this machine reaches a hypervisor."""
        return f"{SHARED}.{self.number}.{10 + index}"

    def address_among_hypervisors(self, index: int) -> str:
        """Where only other hypervisors reach it."""
        return f"{AMONG}.{self.number}.{10 + index}"

    def hardware_address(self, index: int) -> str:
        """The address of a hypervisor's network card, or with 0 the bridge's.

        A machine that comes back has the one that it had, or nobody would find it before they forget the old one.
        """
        return f"02:c6:12:{self.number:02x}:00:{index:02x}"

    def free(self) -> bool:
        """Whether nobody uses this number."""
        return not self._links()

    def lay(self) -> None:
        """Make the bridge."""
        _ip("link", "add", self.bridge, "address", self.hardware_address(0), "type", "bridge")
        _ip("address", "add", f"{SHARED}.{self.number}.1/24", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")

    def plug(self, index: int, first: Process, within: Sequence[str]) -> None:
        """Give a hypervisor its cable. `first` is the first process of its view, `within` leads there."""
        cable = self.cable(index)
        if self.has(index):  # of a view that is no more
            _take_away(cable)
        card = ("name", "eth0", "address", self.hardware_address(index), "netns", str(first.pid))
        _ip("link", "add", cable, "type", "veth", "peer", *card)
        _ip("link", "set", cable, "master", self.bridge, "up")
        for address in (self.address(index), self.address_among_hypervisors(index)):
            _ip("address", "add", f"{address}/24", "dev", "eth0", within=within)
        for name in ("lo", "eth0"):
            _ip("link", "set", name, "up", within=within)

    def has(self, index: int) -> bool:
        """Whether a hypervisor has its cable."""
        return (LINKS / self.cable(index)).exists()

    def pull(self, index: int) -> None:
        """Take a hypervisor off the network. Whoever speaks with it hears nothing any more, not even that."""
        _ip("link", "set", self.cable(index), "down")

    def push(self, index: int) -> None:
        """Put it back on."""
        _ip("link", "set", self.cable(index), "up")

    def remove(self) -> None:
        """Take the bridge and all cables away."""
        for name in self._links():
            _take_away(name)
        left = self._links()
        if left:
            raise LabError(f"{', '.join(left)} could not be removed", f"see why: ip link delete {left[0]}")

    def _links(self) -> list[str]:
        names = [entry.name for entry in LINKS.iterdir()]
        return [name for name in names if name == self.bridge or name.startswith(f"kfl{self.number}h")]


def _take_away(name: str) -> None:
    # A cable goes by itself with the view that it led to, if late, and perhaps just now: ip misses it (1), or the
    # kernel does (2).
    _ip("link", "delete", name, accept=(0, 1, 2))


def _ip(*words: str, within: Sequence[str] = (), accept: Sequence[int] = (0,)) -> None:
    run([*within, "ip", *words], accept=accept)
