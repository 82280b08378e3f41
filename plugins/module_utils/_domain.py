# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the rest of the collection knows about a hypervisor and its domains: values and ports, no libvirt."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from ansible_collections.kvm.fleet.plugins.module_utils._clock import Clock
from ansible_collections.kvm.fleet.plugins.module_utils._domain_xml import Kind
from ansible_collections.kvm.fleet.plugins.module_utils._errors import DomainNotRunning

TRIAL_NAME = re.compile(r"kvm-fleet-trial-\d{14}-[0-9a-f]{8}")
"""The names of machines that are started to try QEMU, and are no guests."""


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
class Layer:
    """The image that has what a disk was written since an external snapshot, over the one that has all before."""

    target: str
    file: str


_OFF_STATE = "shutoff"
RAMLESS_STATES = frozenset({_OFF_STATE, "disk-snapshot"})
"""What libvirt calls the state of a snapshot that has no RAM."""


@dataclass(frozen=True)
class SnapshotRecord:
    """One snapshot, as libvirt keeps it. ``created`` is in seconds since the epoch.

    An ``external`` one is a set of ``layers`` that were put over its disks, with a ``memory_file`` if it has RAM.
    """

    name: str
    description: str
    created: int
    state: str
    current: bool
    parent: str | None = None
    external: bool = False
    layers: tuple[Layer, ...] = ()
    memory_file: str | None = None

    @property
    def has_ram(self) -> bool:
        """Whether the guest goes on where it was when it is reverted to, rather than boots."""
        return self.state not in RAMLESS_STATES

    @property
    def was_off(self) -> bool:
        """Whether the guest was off when it was made, so that no process of then can still run."""
        return self.state == _OFF_STATE


@dataclass(frozen=True)
class SnapshotDefinition:
    """What libvirt knows of a snapshot, as XML from which it can know it again."""

    name: str
    xml: str
    current: bool


class Storage(str, Enum):
    """What becomes of a guest's disks when it is migrated."""

    SHARED = "shared"
    """Both hypervisors have them. libvirt sees to that, as far as it knows the file system."""
    TRUSTED = "trusted"
    """Both have them, by a file system that libvirt does not know to be shared."""
    COPY = "copy"
    """They are copied."""


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

    def is_making_snapshot(self) -> bool:
        """Whether libvirt makes a snapshot of the domain at this moment."""

    def is_migrating(self) -> bool:
        """Whether the domain is on its way from or to another hypervisor."""

    def is_persistent(self) -> bool: ...

    def has_managed_save(self) -> bool: ...

    def saved_xml(self) -> str | None:
        """The definition in the managed save image, by which the next start resumes. None where there is no image."""

    def save(self, timeout: float) -> None:
        """Write the running guest's RAM to an image that its next start resumes from, and end its QEMU process.

        At the timeout, in seconds, it is called off, and the guest runs on. Raises LibvirtFailed and DomainBusy.
        """

    def remove_managed_save(self) -> None: ...

    def was_restored(self) -> bool:
        """Whether a running guest's QEMU was begun from a saved image or by a migration, rather than by a boot.

        Only until its processors are stopped and go on for another reason.
        """

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

    def written_bytes(self) -> int | None:
        """What the QEMU process that runs has written to all disks. None where none runs, or nobody counts."""

    def snapshots(self) -> Sequence[SnapshotRecord]: ...

    def create_snapshot(self, xml: str) -> None: ...

    def create_external_snapshot(self, xml: str, *, disk_only: bool, quiesce: bool) -> None:
        """Put layers over the disks, all or none. To ``quiesce``, its agent freezes the guest's file systems for it.

        libvirt thaws them itself, as long as it lives.
        """

    def revert_to_snapshot(self, name: str) -> None: ...

    def delete_snapshot(self, name: str) -> None: ...

    def snapshot_definitions(self) -> Sequence[SnapshotDefinition]:
        """Of all snapshots, parents before their children."""

    def snapshot_xml(self, name: str) -> str:
        """All that libvirt knows of a snapshot, with what it keeps secret of the definition in it."""

    def redefine_snapshot(self, xml: str, *, current: bool) -> None:
        """Have libvirt know this of a snapshot, in place of what it may have known, and do nothing else."""

    def forget_snapshot(self, name: str) -> None:
        """Have libvirt know nothing of a snapshot any more, whose data and files stay."""

    def autostart(self) -> bool:
        """Whether libvirt starts the domain when the hypervisor boots."""

    def set_autostart(self, wanted: bool) -> None: ...

    def metadata(self, namespace: str) -> str | None:
        """The domain's own element of this namespace, as XML without that namespace. None where it has none."""

    def set_metadata(self, namespace: str, prefix: str, xml: str | None) -> None:
        """Replace or remove that element, in each definition that the domain has."""

    def migrate(self, to: Hypervisor, timeout: float, storage: Storage, *, live: bool) -> Domain:
        """Move the running guest and its definition to another hypervisor, and return it as that one knows it.

        It runs all the while, or, where that is not to be ``live``, stands still until it is there.
        At the timeout, in seconds, or when this process dies, libvirt calls it off, and the guest runs on where it was.
        Raises LibvirtFailed, DomainBusy and HypervisorUnavailable.
        """

    def arrived_after(self) -> float | None:
        """Seconds for which a guest stood still when it was last migrated to here. None where libvirt does not tell."""

    # --- its disks and their layers -------------------------------------------------------------

    def disk_size(self, target: str) -> int:
        """Bytes that a disk has for the guest."""

    def commit(self, target: str, base: str, top: str | None) -> None:
        """Begin to write a running guest's layers above ``base`` into it: up to ``top``, or all where that is None."""

    def commit_job(self, target: str) -> CommitJob | None:
        """How far that is. None where nothing of the kind is at work. Raises DomainBusy for another job."""

    def pivot(self, target: str) -> None:
        """Have the guest write to what its uppermost layer has been committed to, once that is ready."""

    def update_disk(self, xml: str) -> None:
        """Replace a disk in the persistent definition."""

    def image_xml(self, image: str) -> str:
        """The definition in an image of RAM, with its secrets."""

    def restore(self, image: str, xml: str) -> None:
        """Start the guest from an image of its RAM, with this definition."""


@dataclass(frozen=True)
class CommitJob:
    """How far a layer has been committed. One that is ``ready`` waits for the pivot."""

    done: int
    ready: bool


@dataclass(frozen=True)
class Image:
    """An image of a disk: its bytes for the guest, those that it takes up, and the internal snapshots in it."""

    file: str
    format: str
    size: int
    allocated: int
    snapshots: tuple[str, ...] = ()


class LayerUse(str, Enum):
    """What has become of a layer that nobody knows of."""

    BROKEN = "broken"
    """It has not become an image: whoever made it was cut off."""
    EMPTY = "empty"
    WRITTEN = "written"
    OPEN = "open"
    """A QEMU has it."""


class Images(Protocol):
    """The images of disks, as qemu-img knows them. All but the first of these raise DiskImageFailed."""

    def installed(self) -> bool:
        """Whether there is a qemu-img."""

    def chain(self, file: str, image_format: str) -> tuple[Image, ...]:
        """An image and those below it, from the top."""

    def use_of(self, file: str) -> LayerUse:
        """What has become of a qcow2 layer."""

    def is_open(self, file: str) -> bool:
        """Whether a QEMU has a qcow2 layer."""

    def create_layer(self, file: str, over: Image) -> None:
        """Make an empty layer over an image, in place of what is there. The guest may be running."""

    def commit(self, layer: str, base: Image) -> None:
        """Write a layer of a guest that is off into what is below it, and leave the layer as it is."""

    def rebase(self, layer: str, onto: Image) -> None:
        """Have a layer of a guest that is off stand on another image with the same content."""


@dataclass(frozen=True)
class Surveyed:
    """What libvirt tells of a domain together with all others."""

    domain: Domain
    state: DomainState
    persistent: bool
    managed_save: bool
    has_snapshots: bool


class FreezeWatch(Protocol):
    """Who sees to it that a guest's file systems do not stay frozen."""

    @property
    def lost_patience(self) -> bool:
        """Whether they were thawed because it took too long. Known once the watch is over."""


class Hypervisor(Protocol):
    """The machine that the domains run on, reached over its local libvirt socket."""

    @property
    def uri(self) -> str: ...

    @property
    def clock(self) -> Clock:
        """A clock whose ``wait`` returns early when libvirt reports an event of any domain."""

    def domains(self) -> Sequence[Domain]: ...

    def survey(self) -> Sequence[Surveyed]:
        """All domains, by as many questions as it takes for one."""

    def domain(self, name: str) -> Domain:
        """Raises DomainNotFound."""

    def trials(self) -> Sequence[Domain]:
        """The machines that try QEMU. Neither ``domains`` nor ``survey`` tells of them."""

    def start_for_now(self, xml: str) -> Domain:
        """Start a transient domain, which ends with this connection at the latest. Raises LibvirtFailed."""

    def other(self, uri: str) -> AbstractContextManager[Hypervisor]:
        """Another hypervisor, by a URI that is not a local one. Raises HypervisorUnavailable."""

    def host_uuid(self) -> str:
        """The same for every connection to one machine."""

    def qemu_version(self) -> tuple[int, int, int]:
        """That of the installed QEMU."""

    def available_bytes(self) -> int:
        """RAM that is free, or would be without the cached content of files."""

    def processor(self) -> str:
        """The machine's own processor, as libvirt has it in XML."""

    def machine_refusal(self, kind: Kind, processor: str | None) -> str | None:
        """Why no machine of this kind can run there, in libvirt's words; None where it can.

        ``processor`` is another machine's own, where the guest is given that as it is.
        """

    def image_refusal(self, path: str, size: int) -> str | None:
        """Why the image of a disk cannot be made there, under this path, by libvirt; None where it can."""

    def remove_image(self, path: str) -> None:
        """Remove an image that libvirt has made there. None that is not there."""

    @property
    def images(self) -> Images: ...

    def has_disk_snapshots(self) -> bool:
        """Whether its QEMU can put layers over disks."""

    def watching_freeze(self, domain: Domain) -> AbstractContextManager[FreezeWatch]:
        """As long as this lasts, the guest is thawed by somebody else if whoever works on the hypervisor dies."""

    def uninterrupted(self) -> AbstractContextManager[None]:
        """As long as this lasts, neither a signal nor the end of its controller ends who works on the hypervisor."""


def quoted(name: str) -> str:
    """A domain's name for a shell, after a virsh command; '--' keeps a leading dash from being an option."""
    return ("-- " if name.startswith("-") else "") + shlex.quote(name)


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
