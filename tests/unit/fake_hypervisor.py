# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A hypervisor whose domains have states, processes, snapshots and guests, and remember what was done to them."""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

from ansible_collections.kvm.fleet.plugins.module_utils import _heartbeat
from ansible_collections.kvm.fleet.plugins.module_utils._domain import (
    ACTIVE_STATES,
    TRIAL_NAME,
    CommitJob,
    Domain,
    DomainState,
    Hypervisor,
    Layer,
    ShutdownMethod,
    SnapshotDefinition,
    SnapshotRecord,
    Storage,
    Surveyed,
)
from ansible_collections.kvm.fleet.plugins.module_utils._domain_xml import Kind, files_of_disks, parse_definition
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    AgentSilent,
    DomainNotFound,
    DomainNotRunning,
    FleetError,
    HypervisorUnavailable,
    LibvirtFailed,
    NoAgentChannel,
    SnapshotNotFound,
)
from ansible_collections.kvm.fleet.plugins.module_utils._quiesce import Watch
from ansible_collections.kvm.fleet.plugins.module_utils._save import save_directory
from ansible_collections.kvm.fleet.plugins.module_utils._snapshot_xml import parse_snapshot
from tests.unit.fake_agent import Call, Ending, FakeAgent
from tests.unit.fake_clock import FakeClock
from tests.unit.fake_images import SIZE, FakeImages
from tests.unit.fake_proc import FakeProc

EMULATOR = "usr/bin/qemu-system-x86_64"
LIBRARY = "usr/lib/libspice.so.1"


def pid_file(runtime: Path, name: str) -> Path:
    """Where libvirt notes a domain's QEMU process: it names the file after the name as XML has it."""
    return runtime / f"{escape(name, {chr(34): '&quot;', chr(39): '&apos;'})}.pid"


def _as_libvirt_prints(definition: ElementTree.Element) -> str:
    """In one form, whoever has written it."""
    return ElementTree.tostring(definition, encoding="unicode")


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
    A ``managed_save`` image has the channel or not, by ``saved_channel``. Saving it takes ``save_takes`` seconds.
    The installed QEMU refuses as many tries to resume it as ``refuses_image``.
    Its QEMU process has ``written`` so many bytes.
    A migration takes ``migration_takes`` seconds, and it stands still for ``stands_still`` of them.
    The image that a disk is on is that of its ``tops``, by its target. ``jobs`` commit its layers while it runs, and
    fail with ``commits_fail``. With ``libvirt_dies_frozen``, libvirt does so while a snapshot is made.
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
        self.saved_channel = True
        self.save_takes = 3.0
        self.migration_takes = 3.0
        self.stands_still = 0.2
        self.refuses_image = 0
        self.on_poweroff = "destroy"
        self.goes_off_before_request = False
        self.agent_channel = True
        self.channel_at_start: bool | None = None
        self.serial_bus = False
        self.disk_formats: tuple[str, ...] = ("qcow2",)
        self.on_block_devices = False
        self.loader = ""
        self.devices = ""
        self.memory = 512 * 1024 * 1024
        self.hints = ""
        self.written = 0
        self.beats: list[int] | None = None
        self.pid: int | None = None
        self.boot_id = ""
        self._boots = 0
        self._presses = 0
        self._hypervisor = hypervisor
        self._flagged_as_saved = False
        self._saved_at = 0.0
        self._restored = False
        self._arrived = False
        self._elements: dict[str, str] = {}
        self._autostart = False
        self._state = DomainState.SHUT_OFF
        self.tops: dict[str, tuple[str, str]] = {}
        self.jobs: dict[str, tuple[str, str | None]] = {}
        self.commits_fail = False
        self.libvirt_dies_frozen = False
        self._snapshots: dict[str, tuple[SnapshotRecord, str | None]] = {}
        self._definitions: dict[str, str] = {}
        self._current: str | None = None

    # --- what libvirt tells -------------------------------------------------------------------------

    def state(self) -> DomainState:
        self._fault("state")
        self._hypervisor.domain(self.name)
        return self._state

    def is_making_snapshot(self) -> bool:
        return False

    def is_migrating(self) -> bool:
        self._fault("is_migrating")
        return self.migrating

    def is_persistent(self) -> bool:
        return self.persistent

    def has_managed_save(self) -> bool:
        return self.managed_save

    @property
    def managed_save(self) -> bool:
        """What libvirt remembers of an image, which is not always whether there is one."""
        return self._flagged_as_saved

    @managed_save.setter
    def managed_save(self, there: bool) -> None:
        self._flagged_as_saved = there
        self.saved_image.unlink(missing_ok=True)
        if there:
            self.saved_image.touch()

    @property
    def saved_image(self) -> Path:
        return save_directory(self._hypervisor.uri) / f"{self.name}.save"

    def was_restored(self) -> bool:
        return (self._restored or self._arrived) and self._state is DomainState.RUNNING

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
        self._fault("persistent_xml")
        return self._xml(channel=self._defined_channel)

    @property
    def _defined_channel(self) -> bool:
        return self.agent_channel if self.channel_at_start is None else self.channel_at_start

    def _xml(self, *, channel: bool, state: str = "") -> str:
        kind, source = ("block", "dev") if self.on_block_devices else ("file", "file")
        disks = "".join(
            f"<disk type='{kind}' device='disk'><driver name='qemu' type='{disk_format}'/>"
            f"<source {source}={quoteattr(file)}/><target dev='{target}' bus='virtio'/></disk>"
            for target, (file, disk_format) in self.on_images().items()
        )
        bus = "<controller type='virtio-serial' index='0'/>" if channel or self.serial_bus else ""
        agent = f"<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'{state}/></channel>"
        return (
            f"<domain type='qemu'><name>{escape(self.name)}</name>"
            f"<metadata>{self.hints}</metadata><os><type>hvm</type>{self.loader}</os>"
            f"<on_poweroff>{self.on_poweroff}</on_poweroff><devices>"
            f"<emulator>{self._hypervisor.emulator}</emulator>{disks}{bus}{agent if channel else ''}"
            f"{self.devices}</devices></domain>"
        )

    def on_images(self) -> dict[str, tuple[str, str]]:
        """The images that its disks are on, with their formats, by the disks' targets."""
        first = {
            f"vd{letter}": (str(self._hypervisor.image_directory / f"{self.name}.{disk_format}"), disk_format)
            for disk_format, letter in zip(self.disk_formats, "abc", strict=False)
        }
        return {**first, **self.tops}

    def write(self, text: str) -> None:
        """The guest writes this to all of its disks."""
        for file, _format in self.on_images().values():
            self._hypervisor.images.write(file, text)

    def read(self) -> list[list[str]]:
        """What was written to each of its disks."""
        return [self._hypervisor.images.read(file) for file, _format in self.on_images().values()]

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
        if self.saved_image.exists():
            self._resume()
            return
        self._come_up(DomainState.RUNNING)
        self.boot()

    def _resume(self) -> None:
        if self.refuses_image:
            self.refuses_image -= 1
            raise libvirt_failed(
                "internal error: qemu unexpectedly closed the monitor: load of migration failed: Invalid argument"
            )
        self.managed_save = False
        channel = self.agent_channel
        self._come_up(DomainState.RUNNING)
        self.agent_channel = channel  # it goes by the definition in the image
        self._restored = True
        self.agent.clock_offset -= self._hypervisor.clock.monotonic() - self._saved_at
        self._beat()

    def save(self, timeout: float) -> None:
        self._change("save")
        if self._state not in ACTIVE_STATES:
            raise libvirt_failed("Requested operation is not valid: domain is not running")
        if not self.persistent:
            raise libvirt_failed("Requested operation is not valid: cannot do managed save for transient domain")
        self._beat()
        self._saved_at = self._hypervisor.clock.monotonic()
        self._hypervisor.clock.advance(min(timeout, self.save_takes))
        if self.save_takes > timeout:
            raise libvirt_failed("operation aborted: job 'domain save' canceled by client")
        self.managed_save = True
        self.go_off()

    def remove_managed_save(self) -> None:
        self._change("remove_managed_save")
        if not self.saved_image.exists():
            raise libvirt_failed("Failed to remove managed save file: No such file or directory")
        self.managed_save = False

    def shutdown(self, method: ShutdownMethod) -> None:
        self._change(f"shutdown by {method.value}")
        if self.goes_off_before_request:
            self.go_off()
        if self._state not in ACTIVE_STATES or self._state is DomainState.PAUSED:
            raise DomainNotRunning("Requested operation is not valid: domain is not running", remedy="Start it.")
        if method is ShutdownMethod.AGENT and self.agent.silent:
            raise AgentSilent("Guest agent is not responding", remedy="See whether it runs.")
        self._beat()
        self._presses += 1
        if self.habits.shuts_down_after is not None and self._presses > self.habits.deaf_to:
            self._hypervisor.clock.after(self.habits.shuts_down_after, self.go_off)

    def destroy(self) -> None:
        self._change("destroy")
        self._hypervisor.domain(self.name)
        if self._state not in ACTIVE_STATES:
            raise libvirt_failed("Requested operation is not valid: domain is not running")
        self.go_off()

    def go_off(self, state: DomainState = DomainState.SHUT_OFF) -> None:
        """The guest has shut down by itself, or its QEMU is gone."""
        if self.pid is not None:
            self._hypervisor.end_process(self.name, self.pid)
        self.pid = None
        self._state = state
        if not self.persistent:
            self._hypervisor.remove(self.name)

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
        self._restored = False
        self._arrived = False
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
        if _heartbeat.START in call.command:
            self.beats = []
            self._beat()
            return Ending()
        if _heartbeat.STOP in call.command:
            self._beat()
            beats, self.beats = self.beats or [], None
            return Ending(stdout="".join(f"{beat}\n" for beat in beats).encode())
        return Ending(127, stderr=f"not found: {call.command}\n".encode())

    def _beat(self) -> None:
        """A beat of the guest's heart, if that was begun."""
        if self.beats is not None:
            now = self._hypervisor.clock.now().timestamp() + self.agent.clock_offset
            self.beats.append(int(now * 1e9))

    # --- snapshots ----------------------------------------------------------------------------------

    def snapshots(self) -> Sequence[SnapshotRecord]:
        self._fault("snapshots")
        return [
            replace(record, current=name == self._current, parent=parent)
            for name, (record, parent) in self._snapshots.items()
        ]

    def written_bytes(self) -> int | None:
        return self.written if self._state in ACTIVE_STATES else None

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
        self._definitions[name] = _as_libvirt_prints(ElementTree.fromstring(self.xml()))
        self._current = name

    # --- those that are external, as libvirt 9.0 makes them -------------------------------------------

    def create_external_snapshot(self, xml: str, *, disk_only: bool, quiesce: bool) -> None:
        self._change(f"create_external_snapshot{' quiesced' if quiesce else ''}")
        asked = parse_snapshot(xml, current=False)
        active = self._state in ACTIVE_STATES
        if asked.name in self._snapshots:
            raise libvirt_failed(f"operation failed: domain moment {asked.name} already exists")
        for layer in asked.layers:
            if Path(layer.file).exists():
                raise libvirt_failed(f"external snapshot file for disk {layer.target} already exists: {layer.file}")
        if quiesce:
            self._freeze(asked.layers)
        definition = self.xml()
        for layer in asked.layers:
            self._hypervisor.images.put_layer(layer.file, *self.on_images()[layer.target])
            self.tops[layer.target] = (layer.file, "qcow2")
        if asked.memory_file:
            ram = {"xml": definition, "boot_id": self.boot_id, "at": self._hypervisor.clock.now().timestamp()}
            Path(asked.memory_file).write_text(json.dumps(ram), encoding="utf-8")
        if quiesce:
            self.agent.frozen = False
        state = "shutoff" if not active else "disk-snapshot" if disk_only else "running"
        created = int(self._hypervisor.clock.now().timestamp())
        self._snapshots[asked.name] = (replace(asked, created=created, state=state), self._current)
        self._definitions[asked.name] = definition
        self._current = asked.name

    def _freeze(self, layers: Sequence[Layer]) -> None:
        if self.agent.silent:
            raise AgentSilent("Guest agent is not responding", remedy="See whether it runs.")
        if self.agent.frozen:
            raise libvirt_failed("Command guest-fsfreeze-freeze has been disabled: the agent is in frozen state")
        self.agent.frozen = True
        if self.libvirt_dies_frozen:
            Path(layers[0].file).touch()
            raise HypervisorUnavailable("End of file while reading data", remedy="Start libvirt.")

    def snapshot_xml(self, name: str) -> str:
        record, parent = self._snapshot(name), self._snapshots[name][1]
        disks = "".join(
            f"<disk name='{layer.target}' snapshot='external'><source file={quoteattr(layer.file)}/></disk>"
            for layer in record.layers
        )
        memory = f"snapshot='external' file={quoteattr(record.memory_file)}" if record.memory_file else "snapshot='no'"
        return (
            f"<domainsnapshot><name>{escape(name)}</name><description>{escape(record.description)}</description>"
            f"<state>{record.state}</state><creationTime>{record.created}</creationTime>"
            + (f"<parent><name>{escape(parent)}</name></parent>" if parent else "")
            + f"<memory {memory}/><disks>{disks}</disks>{self._definitions[name]}</domainsnapshot>"
        )

    def redefine_snapshot(self, xml: str, *, current: bool) -> None:
        root, told = ElementTree.fromstring(xml), parse_snapshot(xml, current=current)
        self._change(f"redefine_snapshot {told.name}")
        definition = root.find("domain")
        assert definition is not None
        self._definitions[told.name] = _as_libvirt_prints(definition)
        self._snapshots[told.name] = (told, root.findtext("parent/name"))
        self._current = told.name if current else None if self._current == told.name else self._current

    def images_in(self, name: str) -> frozenset[str]:
        """The images that the definition in a snapshot has its disks on."""
        return files_of_disks(self._definitions[name])

    def forget_snapshot(self, name: str) -> None:
        self._change(f"forget_snapshot {name}")
        self._remove_snapshot(name)

    def disk_size(self, target: str) -> int:
        assert target in self.on_images()
        return SIZE

    def commit(self, target: str, base: str, top: str | None) -> None:
        self._change(f"commit {target}")
        if self._state not in ACTIVE_STATES:
            raise libvirt_failed("Requested operation is not valid: domain is not running")
        self.jobs[target] = (base, top)

    def commit_job(self, target: str) -> CommitJob | None:
        if self._state not in ACTIVE_STATES:
            raise libvirt_failed("Requested operation is not valid: domain is not running")
        if target not in self.jobs:
            return None
        if self.commits_fail:
            del self.jobs[target]
            return None
        _base, top = self.jobs[target]
        if top is None:
            return CommitJob(1, ready=True)
        images, on = self._hypervisor.images, self.on_images()[target]
        chain = images.chain(*on)
        at = next(at for at, image in enumerate(chain) if image.file == top)
        images.commit(top, chain[at + 1])
        images.rebase(chain[at - 1].file, chain[at + 1])
        del self.jobs[target]
        return None

    def pivot(self, target: str) -> None:
        self._change(f"pivot {target}")
        images, on = self._hypervisor.images, self.on_images()[target]
        below = images.chain(*on)[1]
        assert below.file == self.jobs.pop(target)[0]
        images.commit(on[0], below)
        self.tops[target] = (below.file, below.format)

    def update_disk(self, xml: str) -> None:
        self._change("update_disk")
        [disk] = parse_definition(f"<domain><devices>{xml}</devices></domain>").writable_disks
        assert disk.file
        self.tops[disk.target] = (disk.file, disk.format)

    def image_xml(self, image: str) -> str:
        return str(self._ram(image)["xml"])

    def restore(self, image: str, xml: str) -> None:
        self._change("restore")
        if self._state in ACTIVE_STATES:
            raise libvirt_failed("Requested operation is not valid: domain is already active")
        ram = self._ram(image)
        on = {disk.target: (disk.file, disk.format) for disk in parse_definition(xml).writable_disks}
        assert on == self.on_images(), "it would write to what its snapshot stands on"
        self._come_up(DomainState.RUNNING)
        self.boot_id = ram["boot_id"]
        self.agent.silent = False
        self.agent.clock_offset = ram["at"] - self._hypervisor.clock.now().timestamp()

    def _ram(self, image: str) -> dict[str, Any]:
        if not Path(image).exists():
            raise libvirt_failed(f"Failed to open file '{image}': No such file or directory")
        found: dict[str, Any] = json.loads(Path(image).read_text("utf-8"))
        return found

    def revert_to_snapshot(self, name: str) -> None:
        self._change(f"revert_to_snapshot {name}")
        record = self._snapshot(name)
        if record.external:
            raise libvirt_failed("unsupported configuration: revert to external snapshot not supported yet")
        self.go_off()
        if record.state == "running":
            self._come_up(DomainState.RUNNING)
            self.agent.silent = False
            self.agent.clock_offset = record.created - self._hypervisor.clock.now().timestamp()
        self._current = name

    def delete_snapshot(self, name: str) -> None:
        self._change(f"delete_snapshot {name}")
        self._remove_snapshot(name)

    def _remove_snapshot(self, name: str) -> None:
        self._snapshot(name)
        _record, parent = self._snapshots.pop(name)
        for child, (record, of) in list(self._snapshots.items()):
            if of == name:
                self._snapshots[child] = (record, parent)
        if self._current == name:
            self._current = parent

    def snapshot_definitions(self) -> Sequence[SnapshotDefinition]:
        self._fault("snapshot_definitions")
        return [SnapshotDefinition(name, self.snapshot_xml(name), name == self._current) for name in self._snapshots]

    # --- metadata and migration ---------------------------------------------------------------------

    def autostart(self) -> bool:
        return self._autostart

    def set_autostart(self, wanted: bool) -> None:
        self._change(f"set_autostart {wanted}")
        if not self.persistent:
            raise libvirt_failed("Requested operation is not valid: cannot set autostart for transient domain")
        self._autostart = wanted

    def metadata(self, namespace: str) -> str | None:
        self._fault("metadata")
        return self._elements.get(namespace)

    def set_metadata(self, namespace: str, prefix: str, xml: str | None) -> None:
        self._change(f"set_metadata {prefix}")
        if xml is None:
            self._elements.pop(namespace, None)
        else:
            self._elements[namespace] = xml

    def migrate(self, to: Hypervisor, timeout: float, storage: Storage, *, live: bool) -> FakeDomain:
        assert isinstance(to, FakeHypervisor)
        self._change(f"migrate {storage.value}{'' if live else ' standing still'}")
        if self._snapshots:
            count = len(self._snapshots)
            raise libvirt_failed(f"Requested operation is not valid: cannot migrate domain with {count} snapshots")
        if self._state not in ACTIVE_STATES:
            raise libvirt_failed("Requested operation is not valid: domain is not running")
        files = [
            str(self._hypervisor.image_directory / f"{self.name}.{disk_format}") for disk_format in self.disk_formats
        ]
        if storage is Storage.COPY:
            to.made.update(files)
        self._beat()
        lasts = min(timeout, self.migration_takes)
        self._hypervisor.clock.advance(lasts)
        if not live:
            self.agent.clock_offset -= lasts
        if self.migration_takes > timeout:
            raise libvirt_failed("operation aborted: job 'migration out' canceled by client")
        self._beat()
        return self._arrive(to)

    def _arrive(self, to: FakeHypervisor) -> FakeDomain:
        arrived = copy.copy(self)
        arrived._hypervisor = to
        arrived.faults, arrived.passing_faults = dict(to.faults_on_arrival), {}
        if self.agent.program == self._program:
            self.agent.program = arrived._program
        assert self.pid is not None
        self._hypervisor.end_process(self.name, self.pid)
        self._hypervisor.remove(self.name)
        to._domains[self.name] = arrived
        arrived.pid = to.start_process(self.name, self.uuid)
        arrived._arrived = True
        arrived._autostart = False
        return arrived

    def arrived_after(self) -> float | None:
        return self.stands_still if self._arrived else None

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
    """Domains by name, and the processes and pid files that their QEMUs have.

    ``others`` are the hypervisors that it reaches, by their URIs. It ``refuses_guests`` for a reason, or not,
    ``asked_for`` what they are, has ``available`` RAM and ``room`` for an image, and has ``made`` images for guests
    that arrive. These then have its ``faults_on_arrival``.

    ``signals_wait`` while nothing is to interrupt what is done. Of machines that are started for now, the QEMU
    ``refuses_machines``, or the ``machines_go_off`` by themselves; ``tried`` has their definitions.
    """

    uri = "qemu:///session"

    def __init__(self, clock: FakeClock, proc: FakeProc, runtime: Path, images: Path) -> None:
        self.clock = clock
        self.proc = proc
        self.image_directory = images
        self.images = FakeImages()
        self.layers_known = True
        self.freeze_patience_lost = False
        self.freezes_watched: list[str] = []
        self.emulator = proc.install(EMULATOR, "#!/bin/sh\necho 'QEMU emulator version 7.2.13 (Debian 1:7.2+dfsg-7)'\n")
        self.library = proc.install(LIBRARY)
        self.recycle_pid = False
        self.signals_wait = False
        self.refuses_machines = False
        self.machines_go_off = False
        self.tried: list[str] = []
        self.others: dict[str, FakeHypervisor] = {}
        self.version = (7, 2, 13)
        self.available = 8 << 30
        self.refuses_guests: str | None = None
        self.asked_for: list[tuple[Kind, str | None]] = []
        self.room = 100 << 30
        self.made: set[str] = set()
        self.faults_on_arrival: dict[str, FleetError] = {}
        self._runtime = runtime
        self._domains: dict[str, FakeDomain] = {}
        self._last_pid = 4000

    def add(self, name: str, state: DomainState = DomainState.RUNNING) -> FakeDomain:
        domain = self._domains[name] = FakeDomain(self, name)
        domain.be(state)
        for disk_format in ("qcow2", "raw"):
            (self.image_directory / f"{name}.{disk_format}").touch()
        return domain

    def remove(self, name: str) -> None:
        del self._domains[name]

    def domains(self) -> Sequence[FakeDomain]:
        return [domain for name, domain in self._domains.items() if not TRIAL_NAME.fullmatch(name)]

    def trials(self) -> Sequence[FakeDomain]:
        return [domain for name, domain in self._domains.items() if TRIAL_NAME.fullmatch(name)]

    def start_for_now(self, xml: str) -> FakeDomain:
        self.tried.append(xml)
        if self.refuses_machines:
            raise libvirt_failed("unsupported configuration: Emulator does not support machine type")
        domain = self.add(ElementTree.fromstring(xml).findtext("name", ""))
        domain.persistent = False
        if self.machines_go_off:
            self.clock.after(0.5, domain.go_off)
        return domain

    def survey(self) -> Sequence[Surveyed]:
        return [
            Surveyed(domain, domain._state, domain.persistent, domain.managed_save, bool(domain._snapshots))
            for domain in self.domains()
        ]

    def domain(self, name: str) -> FakeDomain:
        if name not in self._domains:
            raise DomainNotFound(f"no domain is named {name!r} on {self.uri}", remedy="Compare with the list.")
        return self._domains[name]

    def has_disk_snapshots(self) -> bool:
        return self.layers_known

    @contextmanager
    def watching_freeze(self, domain: Domain) -> Iterator[Watch]:
        self.freezes_watched.append(domain.name)
        watch = Watch()
        yield watch
        watch.lost_patience = self.freeze_patience_lost

    @contextmanager
    def other(self, uri: str) -> Iterator[FakeHypervisor]:
        if uri not in self.others:
            raise HypervisorUnavailable(f"libvirt does not answer at {uri} within 20 s", remedy="See that it is up.")
        yield self.others[uri]

    def beside(self, uri: str) -> FakeHypervisor:
        """Another hypervisor, which this one reaches at the URI, and where guests find the same images."""
        runtime = self._runtime.with_name(f"run-{len(self.others)}")
        runtime.mkdir()
        other = self.others[uri] = FakeHypervisor(self.clock, self.proc, runtime, self.image_directory)
        other._last_pid = 9000 + 100 * len(self.others)
        return other

    def host_uuid(self) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, str(self._runtime)))

    def qemu_version(self) -> tuple[int, int, int]:
        return self.version

    def available_bytes(self) -> int:
        return self.available

    def processor(self) -> str:
        return "<cpu><arch>x86_64</arch></cpu>"

    def machine_refusal(self, kind: Kind, processor: str | None) -> str | None:
        self.asked_for.append((kind, processor))
        return self.refuses_guests

    def image_refusal(self, path: str, size: int) -> str | None:
        if path in self.made:
            return f"there is an image {path} already, perhaps of a migration that was cut off"
        return None if size <= self.room else f"the image {path} needs {size >> 20} MiB"

    def remove_image(self, path: str) -> None:
        self.made.discard(path)

    @contextmanager
    def uninterrupted(self) -> Iterator[None]:
        self.signals_wait = True
        try:
            yield
        finally:
            self.signals_wait = False

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
