# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A hypervisor whose domains have states, processes, snapshots and guests, and remember what was done to them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

from ansible_collections.kvm.fleet.plugins.module_utils._domain import (
    ACTIVE_STATES,
    DomainState,
    ShutdownMethod,
    SnapshotRecord,
)
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    AgentSilent,
    DomainNotFound,
    DomainNotRunning,
    FleetError,
    LibvirtFailed,
    NoAgentChannel,
    SnapshotNotFound,
)
from tests.unit.fake_agent import Call, Ending, FakeAgent
from tests.unit.fake_clock import FakeClock
from tests.unit.fake_proc import FakeProc

EMULATOR = "usr/bin/qemu-system-x86_64"
LIBRARY = "usr/lib/libspice.so.1"


def pid_file(runtime: Path, name: str) -> Path:
    """Where libvirt notes a domain's QEMU process: it names the file after the name as XML has it."""
    return runtime / f"{escape(name, {chr(34): '&quot;', chr(39): '&apos;'})}.pid"


def libvirt_failed(words: str) -> LibvirtFailed:
    return LibvirtFailed(words, remedy="See libvirt's log.")


@dataclass
class GuestHabits:
    """How the system in a guest behaves.

    ``shuts_down_after`` is in seconds; None is a guest that ignores its power button. ``deaf_to`` so many presses, it
    minds the next one. A boot takes ``boots_in`` seconds until its agent answers. ``new_boot_id`` is False for a guest
    that comes back as if it had never been away.
    """

    shuts_down_after: float | None = 4.0
    deaf_to: int = 0
    boots_in: float = 24.0
    new_boot_id: bool = True


class FakeDomain:
    """One domain.

    ``agent_channel`` is that of the domain as it runs, or as it is while it is off. The next start goes by
    ``channel_at_start``, where that is another. Without a channel, a ``serial_bus`` takes one while the domain runs.
    A ``managed_save`` image has the channel or not, by ``saved_channel``.
    ``changes`` lists what was done to it, in order. ``faults`` has, by the method's name, the error that each call of
    it raises, ``passing_faults`` one that only the next call raises.
    """

    def __init__(self, hypervisor: FakeHypervisor, name: str) -> None:
        self.name = name
        self.uuid = str(uuid.uuid5(uuid.NAMESPACE_URL, name))
        self.habits = GuestHabits()
        self.agent = FakeAgent(hypervisor.clock, self._program)
        self.changes: list[str] = []
        self.faults: dict[str, FleetError] = {}
        self.passing_faults: dict[str, FleetError] = {}
        self.migrating = False
        self.persistent = True
        self.managed_save = False
        self.saved_channel = True
        self.on_poweroff = "destroy"
        self.goes_off_before_request = False
        self.agent_channel = True
        self.channel_at_start: bool | None = None
        self.serial_bus = False
        self.disk_formats: tuple[str, ...] = ("qcow2",)
        self.on_block_devices = False
        self.loader = ""
        self.memory = 512 * 1024 * 1024
        self.pid: int | None = None
        self.boot_id = ""
        self._boots = 0
        self._presses = 0
        self._hypervisor = hypervisor
        self._state = DomainState.SHUT_OFF
        self._snapshots: dict[str, tuple[SnapshotRecord, str | None]] = {}
        self._current: str | None = None

    # --- what libvirt tells -------------------------------------------------------------------------

    def state(self) -> DomainState:
        self._fault("state")
        return self._state

    def is_migrating(self) -> bool:
        self._fault("is_migrating")
        return self.migrating

    def is_persistent(self) -> bool:
        return self.persistent

    def has_managed_save(self) -> bool:
        return self.managed_save

    def saved_xml(self) -> str | None:
        return self._xml(channel=self.saved_channel) if self.managed_save else None

    def memory_bytes(self) -> int:
        return self.memory

    def xml(self) -> str:
        self._fault("xml")
        if self._state not in ACTIVE_STATES:
            return self.persistent_xml()
        state = "disconnected" if self.agent.silent else "connected"
        return self._xml(channel=self.agent_channel, state=f" state='{state}'")

    def persistent_xml(self) -> str:
        return self._xml(channel=self._defined_channel)

    @property
    def _defined_channel(self) -> bool:
        return self.agent_channel if self.channel_at_start is None else self.channel_at_start

    def _xml(self, *, channel: bool, state: str = "") -> str:
        kind, source = ("block", "dev") if self.on_block_devices else ("file", "file")
        disks = "".join(
            f"<disk type='{kind}' device='disk'><driver name='qemu' type='{disk_format}'/>"
            f"<source {source}={quoteattr(str(self._hypervisor.images / f'{self.name}.{disk_format}'))}/>"
            f"<target dev='vd{letter}' bus='virtio'/></disk>"
            for disk_format, letter in zip(self.disk_formats, "abc", strict=False)
        )
        bus = "<controller type='virtio-serial' index='0'/>" if channel or self.serial_bus else ""
        agent = f"<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'{state}/></channel>"
        return (
            f"<domain type='qemu'><name>{escape(self.name)}</name><os><type>hvm</type>{self.loader}</os>"
            f"<on_poweroff>{self.on_poweroff}</on_poweroff><devices>"
            f"<emulator>{self._hypervisor.emulator}</emulator>{disks}{bus}{agent if channel else ''}"
            f"</devices></domain>"
        )

    def attach_device(self, xml: str, *, live: bool) -> None:
        self._change(f"attach_device {'live' if live else 'persistent'}")
        target = ElementTree.fromstring(xml).find("target")
        assert target is not None
        assert target.get("name") == "org.qemu.guest_agent.0"
        if live and self._state not in ACTIVE_STATES:
            raise libvirt_failed("Requested operation is not valid: domain is not running")
        if not live and not self.persistent:
            raise libvirt_failed(
                "Requested operation is not valid: transient domains do not have any persistent config"
            )
        if self.agent_channel if live else self._defined_channel:
            raise libvirt_failed("Requested operation is not valid: chardev already exists")
        if live and not self.serial_bus:
            raise libvirt_failed("internal error: no virtio-serial controllers are available")
        if live:
            self.channel_at_start = self._defined_channel
            self.agent_channel = True
        else:
            self.channel_at_start = True

    # --- power --------------------------------------------------------------------------------------

    def start(self) -> None:
        self._change("start")
        if self._state in ACTIVE_STATES:
            raise libvirt_failed(f"internal error: Domain '{self.name}' is already running")
        self._come_up(DomainState.RUNNING)
        self.boot()

    def shutdown(self, method: ShutdownMethod) -> None:
        self._change(f"shutdown by {method.value}")
        if self.goes_off_before_request:
            self.go_off()
        if self._state not in ACTIVE_STATES:
            raise DomainNotRunning("Requested operation is not valid: domain is not running", remedy="Start it.")
        if method is ShutdownMethod.AGENT and self.agent.silent:
            raise AgentSilent("Guest agent is not responding", remedy="See whether it runs.")
        self._presses += 1
        if self.habits.shuts_down_after is not None and self._presses > self.habits.deaf_to:
            self._hypervisor.clock.after(self.habits.shuts_down_after, self.go_off)

    def destroy(self) -> None:
        self._change("destroy")
        if self._state not in ACTIVE_STATES:
            raise libvirt_failed("Requested operation is not valid: domain is not running")
        self.go_off()

    def go_off(self, state: DomainState = DomainState.SHUT_OFF) -> None:
        """The guest has shut down by itself, or its QEMU is gone."""
        if self.pid is not None:
            self._hypervisor.end_process(self.name, self.pid)
        self.pid = None
        self._state = state

    def boot(self) -> None:
        """The guest's system begins anew, without a new QEMU process."""
        if self.habits.new_boot_id or not self.boot_id:
            self._boots += 1
            self.boot_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self.name} {self._boots}"))
        self.agent.restart()
        if self.habits.boots_in:
            self.agent.silent = True
            self._hypervisor.clock.after(self.habits.boots_in, self._has_booted)

    def be(self, state: DomainState) -> None:
        """Put it into a state at once, before a test begins."""
        if state in ACTIVE_STATES and self.pid is None:
            self._come_up(state)
            self.boot_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self.name} 0"))
        elif state not in ACTIVE_STATES:
            self.go_off(state)
        self._state = state

    def _come_up(self, state: DomainState) -> None:
        self.pid = self._hypervisor.start_process(self.name, self.uuid)
        self._state = state
        self._presses = 0
        self.agent_channel = self._defined_channel

    def _has_booted(self) -> None:
        self.agent.silent = False

    # --- the agent ----------------------------------------------------------------------------------

    def exchange(self, request: str, timeout: int) -> str:
        if self._state is not DomainState.RUNNING:
            raise DomainNotRunning("Requested operation is not valid: domain is not running", remedy="Start it.")
        if not self.agent_channel:
            raise NoAgentChannel("QEMU guest agent is not configured", remedy="Add a channel.")
        return self.agent.exchange(request, timeout)

    def _program(self, call: Call) -> Ending:
        if call.command == ["cat", "/proc/sys/kernel/random/boot_id"]:
            return Ending(stdout=f"{self.boot_id}\n".encode())
        return Ending(127, stderr=f"not found: {call.command}\n".encode())

    # --- snapshots ----------------------------------------------------------------------------------

    def snapshots(self) -> Sequence[SnapshotRecord]:
        return [replace(record, current=name == self._current) for name, (record, _parent) in self._snapshots.items()]

    def create_snapshot(self, xml: str) -> None:
        self._change("create_snapshot")
        root = ElementTree.fromstring(xml)
        name = root.findtext("name", "")
        if name in self._snapshots:
            raise libvirt_failed(f"operation failed: domain moment {name} already exists")
        self.add_snapshot(name, root.findtext("description", ""))

    def add_snapshot(self, name: str, description: str) -> None:
        """Add a snapshot below the current one, without anybody having asked through this collection."""
        created = int(self._hypervisor.clock.now().timestamp())
        state = "running" if self._state in ACTIVE_STATES else "shutoff"
        record = SnapshotRecord(name, description, created, state, current=False)
        self._snapshots[name] = (record, self._current)
        self._current = name

    def revert_to_snapshot(self, name: str) -> None:
        self._change(f"revert_to_snapshot {name}")
        record = self._snapshot(name)
        if record.state == "running" and self._state not in ACTIVE_STATES:
            self._come_up(DomainState.RUNNING)
        elif record.state != "running":
            self.go_off()
        self._current = name

    def delete_snapshot(self, name: str) -> None:
        self._change(f"delete_snapshot {name}")
        self._snapshot(name)
        _record, parent = self._snapshots.pop(name)
        for child, (record, of) in list(self._snapshots.items()):
            if of == name:
                self._snapshots[child] = (record, parent)
        if self._current == name:
            self._current = parent

    def parent_of(self, name: str) -> str | None:
        return self._snapshots[name][1]

    def _snapshot(self, name: str) -> SnapshotRecord:
        if name not in self._snapshots:
            raise SnapshotNotFound(f"no domain snapshot with matching name '{name}'", remedy="See the others.")
        return self._snapshots[name][0]

    # --- the fake itself ----------------------------------------------------------------------------

    def _change(self, what: str) -> None:
        self.changes.append(what)
        self._fault(what.partition(" ")[0])

    def _fault(self, method: str) -> None:
        if method in self.passing_faults:
            raise self.passing_faults.pop(method)
        if method in self.faults:
            raise self.faults[method]


class FakeHypervisor:
    """Domains by name, and the processes and pid files that their QEMUs have."""

    uri = "qemu:///session"

    def __init__(self, clock: FakeClock, proc: FakeProc, runtime: Path, images: Path) -> None:
        self.clock = clock
        self.proc = proc
        self.images = images
        self.emulator = proc.install(EMULATOR, "#!/bin/sh\necho 'QEMU emulator version 7.2.13 (Debian 1:7.2+dfsg-7)'\n")
        self.library = proc.install(LIBRARY)
        self.recycle_pid = False
        self._runtime = runtime
        self._domains: dict[str, FakeDomain] = {}
        self._last_pid = 4000

    def add(self, name: str, state: DomainState = DomainState.RUNNING) -> FakeDomain:
        domain = self._domains[name] = FakeDomain(self, name)
        domain.be(state)
        for disk_format in ("qcow2", "raw"):
            (self.images / f"{name}.{disk_format}").touch()
        return domain

    def remove(self, name: str) -> None:
        del self._domains[name]

    def domains(self) -> Sequence[FakeDomain]:
        return list(self._domains.values())

    def domain(self, name: str) -> FakeDomain:
        if name not in self._domains:
            raise DomainNotFound(f"no domain is named {name!r} on {self.uri}", remedy="Compare with the list.")
        return self._domains[name]

    def start_process(self, name: str, uuid_: str) -> int:
        if not self.recycle_pid:
            self._last_pid += 1
        pid = self._last_pid
        arguments = [self.emulator, "-name", f"guest={name}", "-uuid", uuid_]
        ticks = 12345 if self.recycle_pid else 12345 + pid
        self.proc.start(pid, arguments, self.emulator, (self.library,), ticks=ticks)
        pid_file(self._runtime, name).write_text(f"{pid}\n", encoding="ascii")
        return pid

    def end_process(self, name: str, pid: int) -> None:
        self.proc.end(pid)
        pid_file(self._runtime, name).unlink()
