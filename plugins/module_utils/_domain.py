# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the rest of the collection knows about a hypervisor and its domains: values and ports, no libvirt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from ansible_collections.kvm.fleet.plugins.module_utils._clock import Clock
from ansible_collections.kvm.fleet.plugins.module_utils._errors import DomainNotRunning


class DomainState(str, Enum):
    """The states of libvirt's ``virDomainState``, by the names that ``virsh list`` made familiar."""

    NO_STATE = "no_state"
    RUNNING = "running"
    BLOCKED = "blocked"
    PAUSED = "paused"
    SHUTTING_DOWN = "shutting_down"
    SHUT_OFF = "shut_off"
    CRASHED = "crashed"
    SUSPENDED = "suspended"


ACTIVE_STATES = frozenset(
    {
        DomainState.RUNNING,
        DomainState.BLOCKED,
        DomainState.PAUSED,
        DomainState.SHUTTING_DOWN,
        DomainState.SUSPENDED,
    }
)
"""States in which a QEMU process exists."""


class ShutdownMethod(str, Enum):
    """How the guest is asked to shut down."""

    ACPI = "acpi"
    AGENT = "agent"


@dataclass(frozen=True)
class SnapshotRecord:
    """One snapshot, as libvirt keeps it. ``created`` is in seconds since the epoch."""

    name: str
    description: str
    created: int
    state: str
    current: bool


class AgentChannel(Protocol):
    """Carries one request to a guest agent and brings its answer back."""

    def exchange(self, request: str, timeout: int) -> str:
        """Send a JSON request and return the JSON answer.

        ``timeout`` is in seconds. Raises NoAgentChannel, DomainNotRunning, AgentSilent, or AgentCommandFailed when the
        agent answered with an error.
        """


class Domain(AgentChannel, Protocol):
    """One domain on the hypervisor."""

    @property
    def name(self) -> str: ...

    @property
    def uuid(self) -> str: ...

    def state(self) -> DomainState: ...

    def is_migrating(self) -> bool:
        """Whether the domain is on its way from or to another hypervisor."""

    def is_persistent(self) -> bool: ...

    def has_managed_save(self) -> bool: ...

    def saved_xml(self) -> str | None:
        """The definition in the managed save image, by which the next start resumes. None where there is no image."""

    def memory_bytes(self) -> int:
        """The most RAM the guest may use, in bytes."""

    def xml(self) -> str:
        """The live definition of an active domain, the persistent one of an inactive domain."""

    def persistent_xml(self) -> str:
        """The definition that the next start goes by. A transient domain has none of its own, only the live one."""

    def attach_device(self, xml: str, *, live: bool) -> None:
        """Add a device to the running domain, or else to its persistent definition. Raises LibvirtFailed."""

    def start(self) -> None: ...

    def shutdown(self, method: ShutdownMethod) -> None:
        """Ask the guest to shut down; returns as soon as it was asked."""

    def destroy(self) -> None:
        """End the QEMU process at once, as pulling the plug would."""

    def snapshots(self) -> Sequence[SnapshotRecord]: ...

    def create_snapshot(self, xml: str) -> None: ...

    def revert_to_snapshot(self, name: str) -> None: ...

    def delete_snapshot(self, name: str) -> None: ...


class Hypervisor(Protocol):
    """The machine that the domains run on, reached over its local libvirt socket."""

    @property
    def uri(self) -> str: ...

    @property
    def clock(self) -> Clock:
        """A clock whose ``wait`` returns early when libvirt reports an event of any domain."""

    def domains(self) -> Sequence[Domain]: ...

    def domain(self, name: str) -> Domain:
        """Raises DomainNotFound."""


def require_running(name: str, state: DomainState) -> None:
    """Raise DomainNotRunning unless the guest's processors run, naming its state and what to do about it."""
    if state in (DomainState.RUNNING, DomainState.BLOCKED):
        return
    raise DomainNotRunning(
        f"domain {name!r} is {state.value.replace('_', ' ')}, not running",
        remedy=_REMEDIES[state],
        evidence={"state": state.value},
    )


_REMEDIES = {
    DomainState.NO_STATE: "Look at it with 'virsh dominfo' and try again once it runs.",
    DomainState.PAUSED: "Find out why it was paused ('virsh domstate --reason'), then 'virsh resume' it.",
    DomainState.SHUTTING_DOWN: "Wait until it is off, then start it with 'virsh start'.",
    DomainState.SHUT_OFF: "Start it with 'virsh start' or kvm.fleet.domain_power, or leave it out.",
    DomainState.CRASHED: "Look at its log in /var/log/libvirt/qemu, then start it with 'virsh start'.",
    DomainState.SUSPENDED: "Wake it with 'virsh dompmwakeup'.",
}
