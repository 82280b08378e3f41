# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one place that speaks libvirt.

Its errors leave here as the collection's own, chosen by libvirt's numeric codes and never by its wording.
"""

from __future__ import annotations

import os
import re
import shlex
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from typing import Any, TypeVar
from xml.etree import ElementTree

from ansible_collections.kvm.fleet.plugins.module_utils import _quiesce
from ansible_collections.kvm.fleet.plugins.module_utils._clock import Deadline, SystemClock
from ansible_collections.kvm.fleet.plugins.module_utils._domain import (
    TRIAL_NAME,
    CommitJob,
    Domain,
    DomainState,
    FreezeWatch,
    Hypervisor,
    ShutdownMethod,
    SnapshotDefinition,
    SnapshotRecord,
    Storage,
    Surveyed,
)
from ansible_collections.kvm.fleet.plugins.module_utils._domain_xml import Kind
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    AgentCommandFailed,
    AgentSilent,
    DomainBusy,
    DomainNotFound,
    DomainNotRunning,
    FleetError,
    HypervisorUnavailable,
    InvalidRequest,
    LibvirtFailed,
    NoAgentChannel,
    RemoteUriRefused,
    SnapshotNotFound,
)
from ansible_collections.kvm.fleet.plugins.module_utils._qemu_img import QemuImg
from ansible_collections.kvm.fleet.plugins.module_utils._snapshot_xml import parse_snapshot
from ansible_collections.kvm.fleet.plugins.module_utils._uninterrupted import uninterrupted

LIBVIRT_IMPORT_ERROR: str | None
try:
    import libvirt
    import libvirt_qemu
except ImportError:
    LIBVIRT_IMPORT_ERROR = traceback.format_exc()
else:
    LIBVIRT_IMPORT_ERROR = None

_ErrorTable = dict[str, tuple[type[FleetError], str]]
"""libvirt's name of an error code, with the error that stands for it here and its remedy."""

_Answer = TypeVar("_Answer")

_LOCAL_URI = re.compile(r"\A[a-z]+(\+unix)?:///")


def require_local(uri: str) -> None:
    """Raise RemoteUriRefused for a URI that leads to another machine.

    Drift is read from /proc of the QEMU process, so the collection has to run where that process runs.
    """
    if not _LOCAL_URI.match(uri):
        raise RemoteUriRefused(
            f"{uri!r} is not a local libvirt URI",
            remedy="Run the task on the hypervisor itself (delegate_to) with a local URI such as qemu:///system.",
        )


@contextmanager
def open_hypervisor(uri: str, *, patient: bool = False) -> Iterator[LibvirtHypervisor]:
    """Connect to libvirt on this machine. Raises RemoteUriRefused and HypervisorUnavailable.

    Who is ``patient`` waits for one that is being restarted.
    """
    require_local(uri)
    libvirt.registerErrorHandler(lambda *_error: None, None)  # or libvirt prints each error on stderr too
    libvirt.virEventRegisterDefaultImpl()  # has to come before the connection that is to deliver events
    hypervisor = LibvirtHypervisor(uri, patient=patient)
    try:
        yield hypervisor
    finally:
        hypervisor.close()


class EventClock(SystemClock):
    """A clock whose ``wait`` runs libvirt's event loop and returns as soon as any domain reports an event."""

    def __init__(self) -> None:
        self._woken = False

    def listen(self, connection: Any) -> None:
        """Be woken by the events of this connection's domains."""
        for event in (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE):
            try:
                connection.domainEventRegisterAny(None, event, self._wake, None)
            except libvirt.libvirtError as error:
                # The test driver has no agent events. The timer below then still ends each wait.
                if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
                    raise

    def _wake(self, *_event: object) -> None:
        self._woken = True

    def wait(self, seconds: float) -> None:
        self._woken = False
        timer = libvirt.virEventAddTimeout(max(1, int(seconds * 1000)), self._wake, None)
        try:
            while not self._woken:
                libvirt.virEventRunDefaultImpl()
        finally:
            libvirt.virEventRemoveTimeout(timer)


REOPEN_SECONDS = 60
"""How long libvirt may be away, as it is while its daemon is restarted, before a question about a domain fails."""


OTHER_SECONDS = 20
"""How long another hypervisor may take to let us in. One that is off would be waited for by TCP for minutes."""


CALL_OFF_EVERY_SECONDS = 0.2
"""How often a job that lasts too long is called off, until it has ended."""


class LibvirtHypervisor:
    """The hypervisor behind a connection, which is opened anew when it breaks."""

    def __init__(self, uri: str, *, patient: bool = False, events: bool = True) -> None:
        self.uri = uri
        self.clock: SystemClock = EventClock() if events else SystemClock()
        self.images = QemuImg()
        self._connection = self._open_again() if patient else self._open()

    def _open(self) -> Any:
        try:
            connection = libvirt.open(self.uri)
            if isinstance(self.clock, EventClock):
                self.clock.listen(connection)
        except libvirt.libvirtError as error:
            raise HypervisorUnavailable(
                f"libvirt does not answer at {self.uri}: {error}", remedy=_START_LIBVIRT, evidence=_evidence(error)
            ) from error
        return connection

    def reopen(self) -> None:
        """Connect again, trying for as long as a restart of libvirt may take. Raises HypervisorUnavailable."""
        self.close()
        self._connection = self._open_again()

    def _open_again(self) -> Any:
        clock = SystemClock()
        deadline = Deadline(clock, REOPEN_SECONDS)
        while True:
            try:
                return self._open()
            except HypervisorUnavailable:
                if deadline.passed:
                    raise
                clock.wait(1)

    def close(self) -> None:
        with suppress(libvirt.libvirtError):  # a connection that has broken cannot be closed in order
            self._connection.close()

    def domains(self) -> Sequence[LibvirtDomain]:
        return [domain for domain in self._all() if not TRIAL_NAME.fullmatch(domain.name)]

    def trials(self) -> Sequence[LibvirtDomain]:
        return [domain for domain in self._all() if TRIAL_NAME.fullmatch(domain.name)]

    def _all(self) -> Sequence[LibvirtDomain]:
        """Asked again when libvirt was restarted meanwhile, as a domain is asked again."""
        try:
            return self._list()
        except HypervisorUnavailable:
            self.reopen()
        return self._list()

    def _list(self) -> Sequence[LibvirtDomain]:
        with _translated():
            return [LibvirtDomain(self, domain) for domain in self._connection.listAllDomains()]

    def start_for_now(self, xml: str) -> LibvirtDomain:
        with _translated():
            return LibvirtDomain(self, self._connection.createXML(xml, libvirt.VIR_DOMAIN_START_AUTODESTROY))

    def survey(self) -> Sequence[Surveyed]:
        with _translated():
            # In this order: what has come or gone meanwhile is missing from the later ones, as if it were not so.
            found = self._connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE)
            persistent, saved, with_snapshots = (
                {handle.UUIDString() for handle in self._connection.listAllDomains(flag)}
                for flag in (
                    libvirt.VIR_CONNECT_LIST_DOMAINS_PERSISTENT,
                    libvirt.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE,
                    libvirt.VIR_CONNECT_LIST_DOMAINS_HAS_SNAPSHOT,
                )
            )
        return [
            Surveyed(
                domain,
                _state(stats["state.state"]),
                *(domain.uuid in having for having in (persistent, saved, with_snapshots)),
            )
            for domain, stats in ((LibvirtDomain(self, handle), stats) for handle, stats in found)
            if not TRIAL_NAME.fullmatch(domain.name)
        ]

    def domain(self, name: str) -> LibvirtDomain:
        if "\0" in name:
            raise InvalidRequest(f"no domain can be named {name!r}", remedy="Remove the NUL character from the name.")
        try:
            return LibvirtDomain(self, self._connection.lookupByName(name))
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise _translate(error) from error
        raise DomainNotFound(
            f"no domain is named {name!r} on {self.uri}",
            remedy="Names are matched exactly, letter by letter: compare with 'virsh list --all'.",
            evidence={"domains": sorted(domain.name for domain in self.domains())},
        )

    def has_disk_snapshots(self) -> bool:
        with _translated():
            return "<disksnapshot" in self._connection.getCapabilities()

    def watching_freeze(self, domain: Domain) -> AbstractContextManager[FreezeWatch]:
        # In a process of its own the event loop would take what is meant for this one's connection.
        return _quiesce.watching(lambda: closing(LibvirtHypervisor(self.uri, events=False)), domain.name)

    def uninterrupted(self) -> AbstractContextManager[None]:
        return uninterrupted()

    # --- as another hypervisor sees it --------------------------------------------------------------

    @contextmanager
    def other(self, uri: str) -> Iterator[LibvirtHypervisor]:
        opened = _opened_within(uri, OTHER_SECONDS)
        try:
            yield opened
        finally:
            opened.close()

    @property
    def connection(self) -> Any:
        """libvirt's own handle of the present connection."""
        return self._connection

    def host_uuid(self) -> str:
        return self._host("uuid").text or ""

    def qemu_version(self) -> tuple[int, int, int]:
        with _translated():
            number = int(self._connection.getVersion())
        return number // 1_000_000, number // 1_000 % 1_000, number % 1_000

    def available_bytes(self) -> int:
        with _translated():
            told = self._connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)
        return sum(int(told.get(kind, 0)) for kind in ("free", "buffers", "cached")) * 1024

    def processor(self) -> str:
        return ElementTree.tostring(self._host("cpu"), encoding="unicode")

    def _host(self, part: str) -> ElementTree.Element:
        with _translated():
            capabilities = str(self._connection.getCapabilities())
        found = ElementTree.fromstring(capabilities).find(f"./host/{part}")
        return ElementTree.Element(part) if found is None else found

    def machine_refusal(self, kind: Kind, processor: str | None) -> str | None:
        wanted = (kind.emulator, kind.architecture or None, kind.machine or None, kind.virtualization or None)
        try:
            self._connection.getDomainCapabilities(*wanted)
            if processor is not None:
                self._compare_with_its_own(processor)
            elif kind.cpu:
                self._compare_with_what_qemu_offers(wanted, kind.cpu)
        except libvirt.libvirtError as error:
            problem = _translate(error)
            if isinstance(problem, HypervisorUnavailable):
                raise problem from error
            return problem.message
        return None

    def _compare_with_its_own(self, processor: str) -> None:
        self._connection.compareCPU(processor, libvirt.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE)

    def _compare_with_what_qemu_offers(self, wanted: tuple[str | None, ...], processor: str) -> None:
        try:
            self._connection.compareHypervisorCPU(*wanted, processor, libvirt.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE)
        except libvirt.libvirtError as error:
            # Not for every kind of processor, nor known to every libvirt. KVM offers what the machine has.
            if error.get_error_code() not in (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_OPERATION_UNSUPPORTED):
                raise
            self._compare_with_its_own(processor)

    def image_refusal(self, path: str, size: int) -> str | None:
        folder, name = os.path.split(path)
        with _translated():
            pool = self._pool_of(folder)
            if pool is None:
                return f"libvirt makes images only in its storage pools, and none has the folder {folder}"
            pool.refresh()
            _state, _capacity, _allocation, available = pool.info()
            if name in pool.listVolumes():
                return f"there is an image {path} already, perhaps of a migration that was cut off"
        if available < size:
            return f"the image {path} needs {size >> 20} MiB, and {available >> 20} MiB are free"
        return None

    def remove_image(self, path: str) -> None:
        folder, name = os.path.split(path)
        with _translated():
            pool = self._pool_of(folder)
            if pool is None:
                return
            pool.refresh()
            if name in pool.listVolumes():
                pool.storageVolLookupByName(name).delete()

    def _pool_of(self, folder: str) -> Any:
        """The active storage pool whose folder this is, or None."""
        try:
            pool = self._connection.storagePoolLookupByTargetPath(folder)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_POOL:
                return None
            raise
        return pool if pool.isActive() else None

    def handle(self, uuid: str) -> Any:
        """libvirt's own handle of a domain, over the present connection."""
        with _translated():
            return self._connection.lookupByUUIDString(uuid)


_STATES = {
    "VIR_DOMAIN_NOSTATE": DomainState.NO_STATE,
    "VIR_DOMAIN_RUNNING": DomainState.RUNNING,
    "VIR_DOMAIN_BLOCKED": DomainState.BLOCKED,
    "VIR_DOMAIN_PAUSED": DomainState.PAUSED,
    "VIR_DOMAIN_SHUTDOWN": DomainState.SHUTTING_DOWN,
    "VIR_DOMAIN_SHUTOFF": DomainState.SHUT_OFF,
    "VIR_DOMAIN_CRASHED": DomainState.CRASHED,
    "VIR_DOMAIN_PMSUSPENDED": DomainState.SUSPENDED,
}


def _state(number: int) -> DomainState:
    by_number = {getattr(libvirt, constant): state for constant, state in _STATES.items()}
    return by_number.get(number, DomainState.NO_STATE)


def _is_migrating(handle: Any) -> bool:
    # The states tell of a domain that arrives, of one in its last moments here, and of one whose memory follows it. One
    # whose memory is being sent is just running.
    if handle.state() in (
        [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION],
        [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY],
        [libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY],
    ):
        return True
    return _operation(handle) in (
        libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT,
        libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN,
    )


def _operation(handle: Any) -> int | None:
    """libvirt's number for the job that it does on a domain, None for no job."""
    try:
        operation = handle.jobStats().get(libvirt.VIR_DOMAIN_JOB_OPERATION)
    except libvirt.libvirtError as error:
        # The test driver has no jobs. No job is running in a domain that is not running either.
        if error.get_error_code() in (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_OPERATION_INVALID):
            return None
        raise
    return None if operation is None else int(operation)


def _written_bytes(handle: Any) -> int | None:
    try:
        _reads, _read, _writes, written, _errors = handle.blockStats("")  # of all disks together
    except libvirt.libvirtError as error:
        # The test driver does not count for all disks at once.
        if error.get_error_code() in (
            libvirt.VIR_ERR_NO_SUPPORT,
            libvirt.VIR_ERR_OPERATION_INVALID,
            libvirt.VIR_ERR_INVALID_ARG,
        ):
            return None
        raise
    return int(written) if written >= 0 else None


@contextmanager
def _meanwhile(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Have a thread at work as long as this lasts. It is given what is set once that has ended."""
    ended = threading.Event()
    thread = threading.Thread(target=work, args=[ended])
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _called_off_after(seconds: float, handle: Any) -> AbstractContextManager[None]:
    """Call off the job that libvirt does on a domain meanwhile, once it has lasted for so long."""

    def call_off(ended: threading.Event) -> None:
        wait = seconds
        while not ended.wait(wait):
            # It may not have begun, or have ended just now: what becomes of it, whoever waits for it is told.
            with suppress(libvirt.libvirtError):
                handle.abortJob()
            wait = CALL_OFF_EVERY_SECONDS

    return _meanwhile(call_off)


def _events_handled() -> AbstractContextManager[None]:
    """Handle the events of all connections meanwhile, while whoever else does is busy with one of them.

    libvirt hangs up on a connection whose keepalive nobody answers for half a minute, and a migration ends with either
    of its two.
    """

    def handle(ended: threading.Event) -> None:
        timer = libvirt.virEventAddTimeout(int(CALL_OFF_EVERY_SECONDS * 1000), lambda *_timer: None, None)
        try:
            while not ended.is_set():
                libvirt.virEventRunDefaultImpl()
        finally:
            libvirt.virEventRemoveTimeout(timer)

    return _meanwhile(handle)


def _opened_within(uri: str, seconds: float) -> LibvirtHypervisor:
    """Raises HypervisorUnavailable."""
    came: list[LibvirtHypervisor | FleetError] = []

    def open_it() -> None:
        try:
            came.append(LibvirtHypervisor(uri))
        except FleetError as error:
            came.append(error)

    opening = threading.Thread(target=open_it, daemon=True)  # what is stuck in there must not keep the module
    opening.start()
    opening.join(seconds)
    found = came[0] if came else None
    if isinstance(found, LibvirtHypervisor):
        return found
    if found is not None:
        raise found
    raise HypervisorUnavailable(
        f"libvirt does not answer at {uri} within {seconds:g} s",
        remedy="See that the other hypervisor is up, and that this one reaches its libvirt without being asked for a "
        f"password: virsh -c {shlex.quote(uri)} version",
    )


class LibvirtDomain:
    """A domain behind its libvirt handle.

    A question is asked again when libvirt was restarted meanwhile. What changes something is not repeated, since nobody
    knows whether it was done: it raises HypervisorUnavailable over a connection that works again.

    libvirt also hangs up on whoever leaves its keepalive unanswered for half a minute, as everybody does here who waits
    for something else, such as the image of a guest. So a change comes after a question, which connects anew.
    """

    def __init__(self, hypervisor: LibvirtHypervisor, handle: Any) -> None:
        self._hypervisor = hypervisor
        self._handle = handle
        self.name: str = handle.name()
        self.uuid: str = handle.UUIDString()

    def _ask(self, question: Callable[[Any], _Answer]) -> _Answer:
        try:
            with _translated():
                return question(self._handle)
        except HypervisorUnavailable:
            self._reopen()
        with _translated():
            return question(self._handle)

    @contextmanager
    def _changing(self, more: _ErrorTable | None = None, fallback: type[FleetError] = LibvirtFailed) -> Iterator[None]:
        self.state()
        try:
            with _translated(more, fallback):
                yield
        except HypervisorUnavailable:
            self._reopen()
            raise

    def _reopen(self) -> None:
        self._hypervisor.reopen()
        self._handle = self._hypervisor.handle(self.uuid)

    def state(self) -> DomainState:
        return _state(self._ask(lambda handle: handle.state()[0]))

    def is_migrating(self) -> bool:
        return self._ask(_is_migrating)

    def is_making_snapshot(self) -> bool:
        return self._ask(lambda handle: _operation(handle) == libvirt.VIR_DOMAIN_JOB_OPERATION_SNAPSHOT)

    def is_persistent(self) -> bool:
        return self._ask(lambda handle: bool(handle.isPersistent()))

    def has_managed_save(self) -> bool:
        return self._ask(lambda handle: bool(handle.hasManagedSaveImage()))

    def saved_xml(self) -> str | None:
        return self._ask(lambda handle: str(handle.managedSaveGetXMLDesc()) if handle.hasManagedSaveImage() else None)

    def save(self, timeout: float) -> None:
        with self._changing(), _called_off_after(timeout, self._handle):
            self._handle.managedSave()

    def remove_managed_save(self) -> None:
        with self._changing():
            self._handle.managedSaveRemove()

    def was_restored(self) -> bool:
        reasons = (libvirt.VIR_DOMAIN_RUNNING_RESTORED, libvirt.VIR_DOMAIN_RUNNING_MIGRATED)
        goes_on = [[libvirt.VIR_DOMAIN_RUNNING, reason] for reason in reasons]
        return self._ask(lambda handle: handle.state() in goes_on)

    def memory_bytes(self) -> int:
        return self._ask(lambda handle: int(handle.maxMemory()) * 1024)

    def xml(self) -> str:
        return self._ask(lambda handle: str(handle.XMLDesc()))

    def persistent_xml(self) -> str:
        return self._ask(lambda handle: str(handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)))

    def attach_device(self, xml: str, *, live: bool) -> None:
        with self._changing():
            self._handle.attachDeviceFlags(
                xml, libvirt.VIR_DOMAIN_AFFECT_LIVE if live else libvirt.VIR_DOMAIN_AFFECT_CONFIG
            )

    def start(self) -> None:
        with self._changing():
            self._handle.create()

    def shutdown(self, method: ShutdownMethod) -> None:
        flag = {
            ShutdownMethod.ACPI: libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN,
            ShutdownMethod.AGENT: libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT,
        }[method]
        with self._changing(_AGENT_ERRORS):
            self._handle.shutdownFlags(flag)

    def destroy(self) -> None:
        with self._changing():
            self._handle.destroy()

    def exchange(self, request: str, timeout: int) -> str:
        with self._changing(_AGENT_ERRORS, AgentCommandFailed):
            return str(libvirt_qemu.qemuAgentCommand(self._handle, request, timeout, 0))

    def written_bytes(self) -> int | None:
        return self._ask(_written_bytes)

    def snapshots(self) -> Sequence[SnapshotRecord]:
        def read(handle: Any) -> list[SnapshotRecord]:
            found = []
            for snapshot in handle.listAllSnapshots():
                # One that is deleted just now is none.
                with suppress(SnapshotNotFound), _translated():
                    found.append(parse_snapshot(snapshot.getXMLDesc(), current=bool(snapshot.isCurrent())))
            return found

        return self._ask(read)

    def create_snapshot(self, xml: str) -> None:
        with self._changing():
            self._handle.snapshotCreateXML(xml, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC)

    def create_external_snapshot(self, xml: str, *, disk_only: bool, quiesce: bool) -> None:
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY if disk_only else 0
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE if quiesce else 0
        with self._changing():
            self._handle.snapshotCreateXML(xml, flags)

    def snapshot_xml(self, name: str) -> str:
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE
        return self._ask(lambda handle: str(handle.snapshotLookupByName(name).getXMLDesc(flags)))

    def redefine_snapshot(self, xml: str, *, current: bool) -> None:
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT if current else 0
        with self._changing():
            self._handle.snapshotCreateXML(xml, flags)

    def forget_snapshot(self, name: str) -> None:
        with self._changing():
            self._handle.snapshotLookupByName(name).delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)

    def disk_size(self, target: str) -> int:
        return self._ask(lambda handle: int(handle.blockInfo(target)[0]))

    def commit(self, target: str, base: str, top: str | None) -> None:
        flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE if top is None else 0
        with self._changing():
            self._handle.blockCommit(target, base, top, 0, flags)

    def commit_job(self, target: str) -> CommitJob | None:
        job = self._ask(lambda handle: handle.blockJobInfo(target))
        if not job:
            return None
        active = job["type"] == libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT
        if not active and job["type"] != libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT:
            raise DomainBusy(
                f"disk {target} of domain {self.name!r} is at work for somebody else",
                remedy=f"See what does it ('virsh blockjob' for {target}), and run again when that has ended.",
                evidence={"disk": target, "type": job["type"]},
            )
        # libvirt tells an end that is reached only once the job waits for the pivot.
        return CommitJob(int(job["cur"]), ready=active and job["cur"] == job["end"] > 0)

    def pivot(self, target: str) -> None:
        with self._changing():
            self._handle.blockJobAbort(target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)

    def update_disk(self, xml: str) -> None:
        with self._changing():
            self._handle.updateDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_CONFIG)

    def image_xml(self, image: str) -> str:
        flags = libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE
        return self._ask(lambda handle: str(handle.connect().saveImageGetXMLDesc(image, flags)))

    def restore(self, image: str, xml: str) -> None:
        with self._changing():
            self._handle.connect().restoreFlags(image, xml, libvirt.VIR_DOMAIN_SAVE_RUNNING)

    def revert_to_snapshot(self, name: str) -> None:
        with self._changing():
            self._handle.revertToSnapshot(self._handle.snapshotLookupByName(name))

    def delete_snapshot(self, name: str) -> None:
        with self._changing():
            self._handle.snapshotLookupByName(name).delete()

    def snapshot_definitions(self) -> Sequence[SnapshotDefinition]:
        def read(handle: Any) -> list[SnapshotDefinition]:
            # With what is secret in the domain: what is left out here would be lost.
            return [
                SnapshotDefinition(
                    *(snapshot.getName(), str(snapshot.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE))),
                    bool(snapshot.isCurrent()),
                )
                for snapshot in handle.listAllSnapshots(libvirt.VIR_DOMAIN_SNAPSHOT_LIST_TOPOLOGICAL)
            ]

        return self._ask(read)

    # --- migration ----------------------------------------------------------------------------------

    def autostart(self) -> bool:
        return self._ask(lambda handle: bool(handle.autostart()))

    def set_autostart(self, wanted: bool) -> None:
        with self._changing():
            self._handle.setAutostart(int(wanted))

    def metadata(self, namespace: str) -> str | None:
        def read(handle: Any) -> str | None:
            try:
                return str(handle.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, namespace))
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
                    return None
                raise

        return self._ask(read)

    def set_metadata(self, namespace: str, prefix: str, xml: str | None) -> None:
        with self._changing():
            live = libvirt.VIR_DOMAIN_AFFECT_LIVE if self._handle.isActive() else 0
            config = libvirt.VIR_DOMAIN_AFFECT_CONFIG if self._handle.isPersistent() else 0
            key = None if xml is None else prefix
            self._handle.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, xml, key, namespace, live | config)

    def migrate(self, to: Hypervisor, timeout: float, storage: Storage, *, live: bool) -> LibvirtDomain:
        if not isinstance(to, LibvirtHypervisor):
            raise TypeError(f"{to!r} has no libvirt")
        # A guest that writes faster than its RAM is sent is slowed down, or it would never arrive.
        running = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_AUTO_CONVERGE
        flags = (
            (running if live else 0)
            # One definition is left in the end. With two, somebody could start a second guest on the same disks.
            | libvirt.VIR_MIGRATE_PERSIST_DEST
            | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
            | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
            | {
                Storage.SHARED: 0,
                Storage.TRUSTED: libvirt.VIR_MIGRATE_UNSAFE,
                Storage.COPY: libvirt.VIR_MIGRATE_NON_SHARED_DISK,
            }[storage]
        )
        with self._changing(), _events_handled(), _called_off_after(timeout, self._handle):
            return LibvirtDomain(to, self._handle.migrate3(to.connection, {}, flags))

    def arrived_after(self) -> float | None:
        def read(handle: Any) -> float | None:
            try:
                told = handle.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED).get(libvirt.VIR_DOMAIN_JOB_DOWNTIME)
            except libvirt.libvirtError as error:
                if error.get_error_code() in (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_OPERATION_INVALID):
                    return None
                raise
            return None if told is None else float(told) / 1000

        return self._ask(read)


# --- errors --------------------------------------------------------------------------------------

# Named rather than numbered, because an older binding lacks the newer ones: libvirt 11.2 brought the two AGENT_COMMAND
# codes, before it a command that ran out of time was AGENT_UNRESPONSIVE and one that failed INTERNAL_ERROR.
_COMMON_ERRORS: _ErrorTable = {
    "VIR_ERR_NO_DOMAIN": (DomainNotFound, "It was there a moment ago: see 'virsh list --all' and run again."),
    "VIR_ERR_OPERATION_TIMEOUT": (
        DomainBusy,
        "See what else works on the domain ('virsh domjobinfo'), then run again.",
    ),
    "VIR_ERR_NO_DOMAIN_SNAPSHOT": (SnapshotNotFound, "See 'virsh snapshot-list' for the snapshots that exist."),
}
_AGENT_SILENT = (
    AgentSilent,
    "See that qemu-guest-agent is installed in the guest and runs ('systemctl status qemu-guest-agent').",
)
_NO_CHANNEL = (
    NoAgentChannel,
    "Give the domain that channel with kvm.fleet.domain_channel, and see that the guest has qemu-guest-agent.",
)
_AGENT_ERRORS: _ErrorTable = {
    "VIR_ERR_OPERATION_INVALID": (DomainNotRunning, "Look at its state with 'virsh domstate --reason'."),
    "VIR_ERR_ARGUMENT_UNSUPPORTED": _NO_CHANNEL,
    "VIR_ERR_AGENT_UNRESPONSIVE": _AGENT_SILENT,
    "VIR_ERR_AGENT_UNSYNCED": _AGENT_SILENT,
    "VIR_ERR_AGENT_COMMAND_TIMEOUT": _AGENT_SILENT,
}
_START_LIBVIRT = (
    "Start libvirt ('systemctl start libvirtd', or virtqemud where libvirt is modular) "
    "and see that this user may use it."
)
_LOG_REMEDY = "Look at libvirt's log and at the domain's own in /var/log/libvirt/qemu."


@contextmanager
def _translated(more: _ErrorTable | None = None, fallback: type[FleetError] = LibvirtFailed) -> Iterator[None]:
    """Let libvirt's errors leave as the collection's own."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise _translate(error, more, fallback) from error


def _translate(
    error: Any,
    more: _ErrorTable | None = None,
    fallback: type[FleetError] = LibvirtFailed,
) -> FleetError:
    broken = error.get_error_domain() in (libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE)
    # VIR_ERR_RPC is about one message, such as an answer that is too long for it; the connection goes on.
    if broken and error.get_error_code() != libvirt.VIR_ERR_RPC:
        return HypervisorUnavailable(
            f"the connection to libvirt broke: {error}", remedy=_START_LIBVIRT, evidence=_evidence(error)
        )
    for code, (kind, remedy) in {**_COMMON_ERRORS, **(more or {})}.items():
        if error.get_error_code() == getattr(libvirt, code, None):
            return kind(str(error), remedy=remedy, evidence=_evidence(error))
    return fallback(str(error), remedy=_LOG_REMEDY, evidence=_evidence(error))


def _evidence(error: Any) -> dict[str, object]:
    return {"libvirt_code": error.get_error_code(), "libvirt_domain": error.get_error_domain()}
