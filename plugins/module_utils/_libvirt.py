# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one place that speaks libvirt.

Its errors leave here as the collection's own, chosen by libvirt's numeric codes and never by its wording.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from ansible_collections.kvm.fleet.plugins.module_utils._clock import Deadline, SystemClock
from ansible_collections.kvm.fleet.plugins.module_utils._domain import DomainState, ShutdownMethod, SnapshotRecord
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
from ansible_collections.kvm.fleet.plugins.module_utils._snapshot_xml import parse_snapshot

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
def open_hypervisor(uri: str) -> Iterator[LibvirtHypervisor]:
    """Connect to libvirt on this machine. Raises RemoteUriRefused and HypervisorUnavailable."""
    require_local(uri)
    libvirt.registerErrorHandler(lambda *_error: None, None)  # or libvirt prints each error on stderr too
    libvirt.virEventRegisterDefaultImpl()  # has to come before the connection that is to deliver events
    hypervisor = LibvirtHypervisor(uri)
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


class LibvirtHypervisor:
    """The hypervisor behind a connection, which is opened anew when it breaks."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.clock = EventClock()
        self._connection = self._open()

    def _open(self) -> Any:
        try:
            connection = libvirt.open(self.uri)
            self.clock.listen(connection)
        except libvirt.libvirtError as error:
            raise HypervisorUnavailable(
                f"libvirt does not answer at {self.uri}: {error}", remedy=_START_LIBVIRT, evidence=_evidence(error)
            ) from error
        return connection

    def reopen(self) -> None:
        """Connect again, trying for as long as a restart of libvirt may take. Raises HypervisorUnavailable."""
        self.close()
        clock = SystemClock()
        deadline = Deadline(clock, REOPEN_SECONDS)
        while True:
            try:
                self._connection = self._open()
            except HypervisorUnavailable:
                if deadline.passed:
                    raise
                clock.wait(1)
            else:
                return

    def close(self) -> None:
        with suppress(libvirt.libvirtError):  # a connection that has broken cannot be closed in order
            self._connection.close()

    def domains(self) -> Sequence[LibvirtDomain]:
        with _translated():
            return [LibvirtDomain(self, domain) for domain in self._connection.listAllDomains()]

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


def _is_migrating(handle: Any) -> bool:
    # The states tell of a domain that arrives, of one in its last moments here, and of one whose memory follows it. One
    # whose memory is being sent is just running.
    if handle.state() in (
        [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION],
        [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY],
        [libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY],
    ):
        return True
    try:
        operation = handle.jobStats().get(libvirt.VIR_DOMAIN_JOB_OPERATION)
    except libvirt.libvirtError as error:
        # The test driver has no jobs. No job is running in a domain that is not running either.
        if error.get_error_code() in (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_OPERATION_INVALID):
            return False
        raise
    return operation in (libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT, libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN)


class LibvirtDomain:
    """A domain behind its libvirt handle.

    A question is asked again when libvirt was restarted meanwhile. What changes something is not repeated, since nobody
    knows whether it was done: it raises HypervisorUnavailable over a connection that works again.
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
        number = self._ask(lambda handle: handle.state()[0])
        by_number = {getattr(libvirt, constant): state for constant, state in _STATES.items()}
        return by_number.get(number, DomainState.NO_STATE)

    def is_migrating(self) -> bool:
        return self._ask(_is_migrating)

    def is_persistent(self) -> bool:
        return self._ask(lambda handle: bool(handle.isPersistent()))

    def has_managed_save(self) -> bool:
        return self._ask(lambda handle: bool(handle.hasManagedSaveImage()))

    def saved_xml(self) -> str | None:
        return self._ask(lambda handle: str(handle.managedSaveGetXMLDesc()) if handle.hasManagedSaveImage() else None)

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

    def revert_to_snapshot(self, name: str) -> None:
        with self._changing():
            self._handle.revertToSnapshot(self._handle.snapshotLookupByName(name))

    def delete_snapshot(self, name: str) -> None:
        with self._changing():
            self._handle.snapshotLookupByName(name).delete()


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
