# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fleets of hypervisors on this machine: made whole, found again, removed with all that is on them.

A fleet is a numbered folder, and everything of it is found by the number: processes, links, files. So one whose maker
has died is removed as well as any other. Whoever makes, looks for or removes fleets holds the lab's lock.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lab import ssh
from lab.errors import LabError
from lab.hypervisor import Hypervisor
from lab.network import MOST, Network
from lab.places import FLEETS
from lab.process import Process
from lab.progress import say, step
from lab.view import View

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_HYPERVISORS = 99
# A lost hypervisor is found out by ssh itself, after this long.
ASK_EVERY_S, UNANSWERED = 5, 3


@dataclass(frozen=True)
class Fleet:
    """So many hypervisors, which share a network and a folder of guests' disks."""

    number: int
    count: int
    owner: Process | None
    """The process, a test session, without which the fleet is abandoned; none: it is to stay."""

    @property
    def directory(self) -> Path:
        """All files of it."""
        return FLEETS / str(self.number)

    @property
    def inventory(self) -> Path:
        """Its hypervisors, as Ansible is told of them."""
        return self.directory / "hypervisors.yml"

    @property
    def network(self) -> Network:
        """Its network."""
        return Network(self.number)

    @property
    def guests(self) -> Path:
        """The folder of its guests' files, the same on each hypervisor."""
        return self.directory / "guests"

    @property
    def key(self) -> Path:
        """The private key that opens all of its hypervisors for root."""
        return self.directory / "key"

    @property
    def hypervisors(self) -> tuple[Hypervisor, ...]:
        """Its hypervisors, whether they are on or off."""
        names = {index: f"hypervisor{index}" for index in range(1, self.count + 1)}
        hosts = "".join(f"{self.network.address_among_hypervisors(index)} {name}\n" for index, name in names.items())
        views = {
            index: View(name, self.directory / name, self.directory / "qemu", self.guests, hosts)
            for index, name in names.items()
        }
        return tuple(Hypervisor(index, view, self.network, self.key) for index, view in views.items())

    def start(self) -> None:
        """Switch on all hypervisors that are off, and put the others back on the network."""
        for hypervisor in self.hypervisors:
            hypervisor.bring_back()
        self._known_hosts.write_text("".join(one.known_host() for one in self.hypervisors), encoding="utf-8")

    @property
    def _known_hosts(self) -> Path:
        return self.directory / "known_hosts"

    def write_down(self) -> None:
        """Write what is needed to find it again, and its inventory."""
        self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        owner = [self.owner.pid, self.owner.started] if self.owner else None
        _record(self.directory).write_text(json.dumps({"count": self.count, "owner": owner}), encoding="utf-8")
        self.inventory.write_text(self._inventory(), encoding="utf-8")

    def _inventory(self) -> str:
        options = {
            "UserKnownHostsFile": self._known_hosts,
            "IdentitiesOnly": "yes",
            "ServerAliveInterval": ASK_EVERY_S,
            "ServerAliveCountMax": UNANSWERED,
        }
        told = {
            "hosts": {
                one.name: {"ansible_host": one.address, "kvm_migration_uri": one.uri_among_hypervisors}
                for one in self.hypervisors
            },
            "vars": {
                "ansible_user": "root",
                "ansible_ssh_private_key_file": str(self.key),
                "ansible_ssh_common_args": " ".join(f"-o {name}={value}" for name, value in options.items()),
                # A connection that is kept open must not be taken for one to a later fleet.
                "ansible_control_path_dir": str(self.directory / "ssh"),
                "ansible_host_key_checking": True,
                # Modules need the Python that has libvirt-python, which is Debian's own and not Ansible's.
                "ansible_python_interpreter": "/usr/bin/python3",
            },
        }
        return json.dumps({"kvm_hypervisors": told}, indent=2) + "\n"


def _record(directory: Path) -> Path:
    return directory / "fleet.json"


def existing() -> list[Fleet]:
    """All fleets that were begun to be made and not removed since."""
    return [_read(directory) for directory in sorted(FLEETS.iterdir())] if FLEETS.exists() else []


def _read(directory: Path) -> Fleet:
    try:
        known = json.loads(_record(directory).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        # Its maker died before anything but its folder was there.
        return Fleet(int(directory.name), 0, Process(0, 0))
    return Fleet(int(directory.name), known["count"], Process(*known["owner"]) if known["owner"] else None)


def standing() -> Fleet | None:
    """The fleet that is to stay; there is one at most."""
    return next((fleet for fleet in existing() if fleet.owner is None), None)


def make(count: int, owner: Process | None) -> Fleet:
    """Make a fleet and switch it on; if that fails, nothing of it is left."""
    if not 1 <= count <= MOST_HYPERVISORS:
        raise LabError(f"cannot have {count} hypervisors", f"ask for 1 to {MOST_HYPERVISORS}")
    fleet = Fleet(_free_number(), count, owner)
    with step(f"starting {', '.join(one.name for one in fleet.hypervisors)}"):
        try:
            fleet.write_down()
            fleet.guests.mkdir(mode=0o755)
            ssh.provide(fleet.key)
            fleet.network.lay()
            fleet.start()
        except BaseException:
            remove(fleet)
            raise
    return fleet


def _free_number() -> int:
    taken = {fleet.number for fleet in existing()}
    for number in range(1, MOST + 1):
        if number not in taken and Network(number).free():
            return number
    raise LabError(f"there are {MOST} fleets already", "python -m lab down")


def remove(fleet: Fleet) -> None:
    """Remove a fleet, its guests included. Nothing need be left of it."""
    for hypervisor in fleet.hypervisors:
        hypervisor.lose_power()
    fleet.network.remove()
    if fleet.directory.exists():
        shutil.rmtree(fleet.directory)


def remove_all(fleets: Sequence[Fleet]) -> None:
    """Remove these fleets, and say so."""
    for fleet in fleets:
        say(f"removing {', '.join(one.name for one in fleet.hypervisors) or 'what was to be a fleet'}")
        remove(fleet)


def abandoned() -> list[Fleet]:
    """Those whose test session has died."""
    return [fleet for fleet in existing() if fleet.owner is not None and not fleet.owner.alive()]
