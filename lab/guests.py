# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab's guests: made, started, waited for, put back to pristine, destroyed."""

from __future__ import annotations

import time
import uuid as uuids
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import libvirt

from lab import files, inside, ssh
from lab.clock import wait_until
from lab.domain_xml import parse_spec, render
from lab.errors import AgentFailed, GuestNotReady, LabError
from lab.packages import NEWER_AGENT, NEWER_AGENT_IS_AT
from lab.places import HERE
from lab.process import running_with

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from lab.domain_xml import GuestSpec, Machine
    from lab.image import Image
    from lab.inside import Outcome
    from lab.libvirt_session import Connection
    from lab.places import Place
    from lab.process import Process

EVERYTHING_OF_IT = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)
PRISTINE = "lab-pristine"
READY_WITHIN_S = 300
SYSTEM_IS_UP = ("running", "degraded")


@dataclass(frozen=True)
class Guest:
    """One guest of the lab. `uuid` names its files; `name` may be anything libvirt allows."""

    spec: GuestSpec
    uuid: str
    connection: Connection

    @property
    def domain(self) -> libvirt.virDomain:
        """libvirt's own handle of it."""
        return self.connection.live().lookupByUUIDString(self.uuid)

    @property
    def name(self) -> str:
        """The domain's name."""
        return self.spec.name

    @property
    def place(self) -> Place:
        """Where its hypervisor has its files."""
        return self.connection.place

    @property
    def console(self) -> Path:
        """What it said on its serial console."""
        return self.place.console_path(self.uuid)

    @property
    def disk(self) -> Path:
        """Its disk, where this machine finds it."""
        own = self.place.found(self.place.own_disk_path(self.uuid))
        return own if self.spec.own_disk else self.place.disk_path(self.uuid)

    @property
    def nvram(self) -> Path:
        """The variables of its UEFI firmware, if it has that."""
        return self.place.nvram(self.uuid)

    @property
    def ssh_key(self) -> Path:
        """The private key that opens it, if it has SSH."""
        return self.place.ssh_key(self.uuid)

    @property
    def run_record(self) -> Path:
        """What the collection has noted of its runs on it."""
        return self.place.run_record(self.uuid)

    def seen_by(self, connection: Connection) -> Guest:
        """The same guest on another hypervisor, which it was migrated to."""
        return replace(self, connection=connection)

    def state(self) -> int:
        """libvirt's number for what it does now: VIR_DOMAIN_RUNNING, VIR_DOMAIN_SHUTOFF, …"""
        return int(self.domain.state()[0])

    def start(self) -> None:
        """Start it, unless it runs; a paused one goes on."""
        if not self.domain.isActive():
            self.domain.create()
        elif self.state() != libvirt.VIR_DOMAIN_RUNNING:
            self.domain.resume()

    def wait_until_ready(self, deadline_s: float = READY_WITHIN_S) -> None:
        """Wait for its agent, then for its system to have come up. Raises GuestNotReady."""
        end = time.monotonic() + deadline_s
        if not wait_until(lambda: inside.answers(self.domain), deadline_s):
            raise self._not_ready("its agent does not answer", deadline_s)
        if not wait_until(self._system_is_up, end - time.monotonic()):
            raise self._not_ready("its system has not come up", deadline_s)

    def _system_is_up(self) -> bool:
        try:
            said = self.run("/usr/bin/systemctl", "is-system-running", "--wait").stdout.strip()
        except AgentFailed:
            return False
        return said in SYSTEM_IS_UP

    def _not_ready(self, what: str, deadline_s: float) -> GuestNotReady:
        return GuestNotReady(
            f"guest {self.name!r}: {what} after {deadline_s:.0f} s (domain state {self.state()})",
            f"read {self.console}",
        )

    def run(self, *argv: str, stdin: bytes = b"", deadline_s: float = 60) -> Outcome:
        """Run a command inside; `argv[0]` is an absolute path. Any exit status is an answer."""
        return inside.execute(self.domain, argv, stdin, deadline_s)

    def output(self, *argv: str, deadline_s: float = 60) -> str:
        """The stdout of a command inside that has to succeed."""
        return inside.output(self.domain, argv, deadline_s)

    def answers(self) -> bool:
        """Whether its agent answers now."""
        return inside.answers(self.domain)

    def boot_id(self) -> str:
        """Differs from one boot of its kernel to the next, and only then."""
        return self.output("/bin/cat", "/proc/sys/kernel/random/boot_id").strip()

    def package_versions(self) -> dict[str, str]:
        """Every package installed inside, with its version."""
        return inside.package_versions(self.domain)

    def rpm_versions(self) -> dict[str, str]:
        """Likewise what was installed as RPMs."""
        return inside.rpm_versions(self.domain)

    def read_file(self, path: str) -> bytes:
        """The content of a file inside."""
        return inside.read_file(self.domain, path)

    def write_file(self, path: str, content: bytes) -> None:
        """Put a file inside."""
        inside.write_file(self.domain, path, content)

    def admit_by_ssh(self, deadline_s: float = READY_WITHIN_S) -> None:
        """Let its root log in by the key that was made for it, and wait for its sshd. Raises GuestNotReady."""
        done = self.run("/bin/sh", "-c", ssh.ADMIT, stdin=ssh.public_key(self.ssh_key))
        if done.returncode != 0 or not wait_until(lambda: ssh.greets(self.spec.ssh_port), deadline_s):
            raise self._not_ready(f"its sshd does not answer {done.stderr}", deadline_s)

    def offer_newer_agent(self, *, offered: bool = True) -> None:
        """Have apt find a newer version of the agent, as it does from the start, or none."""
        self.write_file(NEWER_AGENT, NEWER_AGENT_IS_AT.encode() if offered else b"")

    def block_agent_commands(self, *commands: str) -> None:
        """Have its agent refuse these commands from now on, as a hardened guest's does."""
        setting = f"[general]\nblock-rpcs={','.join(commands)}\n"
        self.write_file("/etc/qemu/qemu-ga.conf", setting.encode())
        self.do_to_agent("restart")
        if not wait_until(lambda: self._refuses(commands), READY_WITHIN_S):
            raise self._not_ready(f"its agent does not refuse {commands}", READY_WITHIN_S)

    def do_to_agent(self, *verb: str) -> None:
        """Have systemd do something to the agent's service, such as ``restart``, a moment from now.

        Whether and when it was done has to be seen: the agent may not live to tell that it was asked.
        """
        with suppress(AgentFailed):
            self.output(
                *("/usr/bin/systemd-run", "--collect", "--on-active=100ms", "--timer-property=AccuracySec=10ms"),
                *("/usr/bin/systemctl", *verb, "qemu-guest-agent.service"),
            )

    def _refuses(self, commands: Sequence[str]) -> bool:
        try:
            supported = inside.ask(self.domain, "guest-info")["supported_commands"]
        except AgentFailed:
            return False
        return not any(known["enabled"] for known in supported if known["name"] in commands)

    def process(self) -> Process | None:
        """Its QEMU process, found by the UUID on its command line."""
        found = running_with("-uuid", self.uuid)
        if len(found) > 1:
            raise LabError(f"{self.name!r} runs more than once: {found}", "python -m lab down")
        return found[0] if found else None

    def drifted(self) -> bool | None:
        """Whether its QEMU's file was replaced since it started; None when it is not running."""
        process = self.process()
        return process.has_lost_its_executable() if process else None

    def take_pristine(self) -> None:
        """Remember the running guest as it is now, for `reset`."""
        self.domain.snapshotCreateXML(f"<domainsnapshot><name>{PRISTINE}</name></domainsnapshot>")

    def reset(self, deadline_s: float = READY_WITHIN_S) -> None:
        """Go back to what `take_pristine` remembered, running, with the right time.

        libvirt does this with a new QEMU process: boot_id stays, `process` changes, drift is gone.
        """
        snapshot = self.domain.snapshotLookupByName(PRISTINE)
        self.domain.revertToSnapshot(snapshot, libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING)
        if not wait_until(self.answers, deadline_s, every_s=0.1):
            raise self._not_ready("its agent does not answer after a reset", deadline_s)
        self.output("/bin/date", "--set", f"@{time.time():.3f}")

    def destroy(self) -> None:
        """Remove it and all that was made for it; what is gone already is fine."""
        with _accepting(libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
            self.domain.destroy()
        files.remove(self.place, self.uuid)
        files.remove_logs(self.place, self.name)  # as long as nobody else can have the name
        with _accepting(libvirt.VIR_ERR_NO_DOMAIN):
            self.domain.undefineFlags(EVERYTHING_OF_IT)


@contextmanager
def _accepting(*codes: int) -> Iterator[None]:
    try:
        yield
    except libvirt.libvirtError as error:
        if error.get_error_code() not in codes:
            raise


def lab_guests(connection: Connection) -> list[Guest]:
    """The guests that the lab made, by name."""
    found = [Guest(spec, domain.UUIDString(), connection) for domain, spec in _domains(connection) if spec is not None]
    return sorted(found, key=lambda guest: guest.name)


def foreign_names(connection: Connection) -> list[str]:
    """The names of the domains that the lab did not make. What tries QEMU for a second is none of them."""
    names = [domain.name() for domain, spec in _domains(connection) if spec is None]
    return sorted(name for name in names if not name.startswith("kvm-fleet-trial-"))


def _domains(connection: Connection) -> Iterator[tuple[libvirt.virDomain, GuestSpec | None]]:
    """Every domain, with what the lab noted in it; one that is destroyed while they are looked at is passed over."""
    for domain in connection.live().listAllDomains():
        with _accepting(libvirt.VIR_ERR_NO_DOMAIN):
            yield domain, parse_spec(domain.XMLDesc())


def define(connection: Connection, spec: GuestSpec, image: Image, machine: Machine) -> Guest:
    """Make a guest, not started. The caller holds the lab's lock: until it has a domain, its files look left over."""
    if spec.ssh_port and connection.place is not HERE:
        raise LabError(f"{spec.name!r} would have its SSH at a loopback that is not ours", "make it on this machine")
    if spec.own_disk and connection.place is HERE:
        raise LabError(f"{spec.name!r} would have its disk where ours are not", "make it on a hypervisor of a fleet")
    uuid = str(uuids.uuid4())
    try:
        files.provide(connection.place, spec, uuid, image)
        connection.live().defineXML(render(spec, uuid, image, machine, connection.place))
        return Guest(spec, uuid, connection)
    except BaseException:
        files.remove(connection.place, uuid)
        raise
