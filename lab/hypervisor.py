# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One hypervisor of a fleet: libvirt and sshd of its own, in a view of its own, at a cable of its own."""

from __future__ import annotations

import uuid as uuids
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lab import emulator, sshd
from lab.clock import wait_until
from lab.daemons import ANSWER_WITHIN_S, QEMU_CONF
from lab.errors import LabError
from lab.libvirt_session import answering
from lab.run import run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.network import Network
    from lab.places import Place
    from lab.process import Process
    from lab.view import View

LIBVIRTD_CONF = Path("/etc/libvirt/libvirtd.conf")
LIBVIRTD_LOG = Path("/var/log/libvirt/libvirtd.log")

LIBVIRTD_SETTINGS = """\
host_uuid = "{uuid}"
auth_unix_rw = "none"
unix_sock_rw_perms = "0700"
listen_tls = 0
listen_tcp = 1
listen_addr = "{address}"
auth_tcp = "none"
"""
# Neither another view of /dev nor a second confinement on top of this one. No control groups: these are the machine's,
# so that guests of one name on two hypervisors would be in the same, and a hypervisor that loses its power leaves its.
QEMU_SETTINGS = """\
namespaces = []
security_driver = "none"
cgroup_controllers = []
migration_address = "{address}"
"""
# Its process ids are those of its own namespace. What has ended has no process any more, see lab/view.py.
_END_LIBVIRTD = """\
pid=$(cat /run/libvirtd.pid)
kill -s "$0" "$pid"
while [ -e "/proc/$pid" ]; do sleep 0.05; done
"""


@dataclass(frozen=True)
class Hypervisor:
    """A hypervisor, which may be on or off."""

    index: int
    view: View
    network: Network
    key: Path
    """The private key that opens it for root."""

    @property
    def name(self) -> str:
        """Its host name, and its name in the inventory."""
        return self.view.name

    @property
    def place(self) -> Place:
        """Where it has what is the lab's."""
        return self.view.place

    @property
    def address(self) -> str:
        """Where its sshd answers this machine."""
        return self.network.address(self.index)

    @property
    def uri_among_hypervisors(self) -> str:
        """Where its libvirt answers other hypervisors, as for a migration."""
        return f"qemu+tcp://{self.name}/system"

    def known_host(self) -> str:
        """Its line in a known_hosts file."""
        return sshd.known_host(self.view.directory, self.address)

    def run(self, *argv: str | Path) -> str:
        """Run a command on it, as its root, and return what it wrote to stdout."""
        return run([*self.view.within(), *argv])

    def start(self) -> None:
        """Switch it on. Its guests are off, as after any boot of a machine. If that fails, it is off."""
        first = self.view.open()
        try:
            self._boot(first)
        except BaseException:
            self.view.close()
            raise

    def _boot(self, first: Process) -> None:
        self.network.plug(self.index, first, self.view.within())
        emulator.install(self.place.found(self.place.emulator))
        self._configure()
        sshd.start(self.view.directory, self.view.within())
        # virtlogd first: libvirtd hands it the guests' logs.
        self.run("virtlogd", "--daemon")
        self._start_libvirtd()

    def _start_libvirtd(self) -> None:
        self.run("libvirtd", "--daemon", "--listen")
        if not wait_until(lambda: answering(self.place), ANSWER_WITHIN_S, every_s=0.05):
            raise LabError(
                f"libvirt on {self.name} does not answer within {ANSWER_WITHIN_S} s",
                f"read {self.place.found(LIBVIRTD_LOG)}",
            )

    def _configure(self) -> None:
        among = self.network.address_among_hypervisors(self.index)
        uuid = uuids.uuid5(uuids.NAMESPACE_URL, self.view.directory.as_uri())
        for path, template in ((LIBVIRTD_CONF, LIBVIRTD_SETTINGS), (QEMU_CONF, QEMU_SETTINGS)):
            self.place.found(path).write_text(template.format(uuid=uuid, address=among), encoding="utf-8")
        sshd.provide(self.view.directory, self.address, self.key)

    @contextmanager
    def without_libvirtd(self, *, crashed: bool = False) -> Iterator[None]:
        """Have its libvirtd away for a while, as an upgrade of the package does, or a crash; guests run on."""
        self.run("sh", "-ec", _END_LIBVIRTD, "KILL" if crashed else "TERM")
        try:
            yield
        finally:
            self._start_libvirtd()

    def drift(self) -> None:
        """Replace the QEMU that its guests share. Other hypervisors have theirs."""
        emulator.replace(self.place.found(self.place.emulator))

    def take_away(self) -> None:
        """Take it off the network without goodbye. It goes on to work, and so do its guests."""
        self.network.pull(self.index)

    def lose_power(self) -> None:
        """End all that runs on it, guests included, without goodbye."""
        # That of one that is off is gone, or goes at any moment.
        if self.view.first() is not None and self.network.has(self.index):
            self.network.pull(self.index)
        self.view.close()

    def bring_back(self) -> None:
        """Put it back on the network. It is started if it is off, or was not started to the end."""
        if answering(self.place):
            self.network.push(self.index)
        else:
            self.lose_power()
            self.start()
