# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab's guests: made, started, waited for, put back to pristine, destroyed."""

from __future__ import annotations

import shutil
import time
import uuid as uuids
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lab import inside, libraries
from lab.clock import wait_until
from lab.domain_xml import (
    GuestSpec,
    console_path,
    disk_path,
    is_lab_guest,
    parse_spec,
    render,
)
from lab.errors import AgentFailed, GuestNotReady, LabError
from lab.host import require_room
from lab.libvirt_session import (
    NO_SUCH_SNAPSHOT,
    SNAPSHOT_REVERT_RUNNING,
    STATE_RUNNING,
    UNDEFINE_EVERYTHING_OF_IT,
    error_code,
    libvirt_error,
)
from lab.places import GUESTS, guest_directory
from lab.process import running_with
from lab.run import run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lab.domain_xml import Machine
    from lab.image import Image
    from lab.inside import Outcome
    from lab.libvirt_session import Connection, Domain
    from lab.process import Process

PRISTINE = "lab-pristine"
READY_WITHIN_S = 300
GUEST_NEEDS_MIB = 600
SYSTEM_IS_UP = ("running", "degraded")


@dataclass(frozen=True)
class Guest:
    """One guest of the lab. `uuid` names its files; `name` may be anything libvirt allows."""

    spec: GuestSpec
    uuid: str
    domain: Domain

    @property
    def name(self) -> str:
        """The domain's name."""
        return self.spec.name

    def start(self) -> None:
        """Start it, unless it runs; a paused one goes on."""
        if not self.domain.isActive():
            self.domain.create()
        elif self.domain.state()[0] != STATE_RUNNING:
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
            f"guest {self.name!r}: {what} after {deadline_s:.0f} s"
            f" (domain state {self.domain.state()[0]})",
            f"read {console_path(self.uuid)}",
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

    def read_file(self, path: str) -> bytes:
        """The content of a file inside."""
        return inside.read_file(self.domain, path)

    def write_file(self, path: str, content: bytes) -> None:
        """Put a file inside."""
        inside.write_file(self.domain, path, content)

    def block_agent_commands(self, *commands: str) -> None:
        """Have its agent refuse these commands from now on, as a hardened guest's does."""
        setting = f"[general]\nblock-rpcs={','.join(commands)}\n"
        self.write_file("/etc/qemu/qemu-ga.conf", setting.encode())
        self.output(
            *("/usr/bin/systemd-run", "--collect", "--on-active=100ms"),
            *("/usr/bin/systemctl", "restart", "qemu-guest-agent.service"),
        )
        if not wait_until(lambda: self._refuses(commands), READY_WITHIN_S):
            raise self._not_ready(f"its agent does not refuse {commands}", READY_WITHIN_S)

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
        return process.executable().endswith(" (deleted)") if process else None

    def take_pristine(self) -> None:
        """Remember the running guest as it is now, for `reset`."""
        self.domain.snapshotCreateXML(
            f"<domainsnapshot><name>{PRISTINE}</name></domainsnapshot>"
        )

    def has_pristine(self) -> bool:
        """Whether `reset` has something to go back to."""
        try:
            self.domain.snapshotLookupByName(PRISTINE)
        except libvirt_error() as error:
            if error_code(error) == NO_SUCH_SNAPSHOT:
                return False
            raise
        return True

    def reset(self, deadline_s: float = READY_WITHIN_S) -> None:
        """Go back to what `take_pristine` remembered, running, with the right time.

        QEMU itself is not put back: see `drifted`.
        """
        snapshot = self.domain.snapshotLookupByName(PRISTINE)
        self.domain.revertToSnapshot(snapshot, SNAPSHOT_REVERT_RUNNING)
        if not wait_until(self.answers, deadline_s, every_s=0.1):
            raise self._not_ready("its agent does not answer after a reset", deadline_s)
        self.output("/bin/date", "--set", f"@{time.time():.3f}")

    def destroy(self) -> None:
        """Remove it and all that was made for it."""
        if self.domain.isActive():
            self.domain.destroy()
        shutil.rmtree(guest_directory(self.uuid), ignore_errors=True)
        self.domain.undefineFlags(UNDEFINE_EVERYTHING_OF_IT)


def lab_guests(connection: Connection) -> list[Guest]:
    """The guests that the lab made, by name."""
    found = []
    for domain in connection.listAllDomains():
        xml = domain.XMLDesc()
        if is_lab_guest(xml):
            found.append(Guest(parse_spec(xml), domain.UUIDString(), domain))
    return sorted(found, key=lambda guest: guest.name)


def foreign_names(connection: Connection) -> list[str]:
    """The names of the domains that the lab did not make."""
    domains = connection.listAllDomains()
    return sorted(domain.name() for domain in domains if not is_lab_guest(domain.XMLDesc()))


def define(connection: Connection, spec: GuestSpec, image: Image, machine: Machine) -> Guest:
    """Make a guest, not started.

    The domain comes before its files: so files without a domain are always left-overs.
    """
    uuid = str(uuids.uuid4())
    guest = Guest(spec, uuid, connection.defineXML(render(spec, uuid, image, machine)))
    provide_files(guest, image)
    return guest


def provide_files(guest: Guest, image: Image) -> None:
    """Make what a guest's domain names and does not have yet."""
    directory = guest_directory(guest.uuid)
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    disk = disk_path(guest.uuid)
    if not disk.exists():
        require_room(directory, GUEST_NEEDS_MIB)
        new = disk.with_name("disk.new")
        if guest.spec.disk_format == "qcow2":
            backing = ["-b", image.disk, "-F", "qcow2"]
            run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, new])
        else:
            run(["qemu-img", "convert", "-O", guest.spec.disk_format, image.disk, new])
        new.rename(disk)
    if guest.spec.private_library:
        libraries.provide(guest.uuid)


def remove_left_over_files(connection: Connection) -> None:
    """Remove files of guests that are no more: their domain was removed first, or never ours."""
    known = {domain.UUIDString() for domain in connection.listAllDomains()}
    for uuid in left_over_files(known):
        shutil.rmtree(guest_directory(uuid))


def left_over_files(known: set[str]) -> list[str]:
    """UUIDs that have files and are not `known`."""
    if not GUESTS.exists():
        return []
    return sorted(entry.name for entry in GUESTS.iterdir() if entry.name not in known)
