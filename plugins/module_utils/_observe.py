# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Looks at domains without changing anything and without asking their agents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ansible_collections.kvm.fleet.plugins.module_utils import _drift
from ansible_collections.kvm.fleet.plugins.module_utils._domain import (
    ACTIVE_STATES,
    Domain,
    DomainState,
    Hypervisor,
    SnapshotRecord,
    Surveyed,
)
from ansible_collections.kvm.fleet.plugins.module_utils._domain_xml import ChannelState, Definition, parse_definition
from ansible_collections.kvm.fleet.plugins.module_utils._drift import Drift, DriftState, FileId
from ansible_collections.kvm.fleet.plugins.module_utils._errors import DomainNotFound, HintsMalformed
from ansible_collections.kvm.fleet.plugins.module_utils._hints import Hints, parse_hints
from ansible_collections.kvm.fleet.plugins.module_utils._proc import (
    PROC,
    ProcessUnreadable,
    QemuProcess,
    find_process,
    running_files,
    runtime_directory,
    version_of,
)
from ansible_collections.kvm.fleet.plugins.module_utils._snapshot_xml import is_ours


@dataclass(frozen=True)
class Observation:
    """One domain, as it was found. Versions are None where no process runs or the binary does not tell.

    ``hints`` are empty where they cannot be read, and ``hints_problem`` says why.
    """

    name: str
    uuid: str
    state: DomainState
    persistent: bool
    managed_save: bool
    definition: Definition
    process: QemuProcess | None
    version_running: str | None
    version_installed: str | None
    drift: Drift
    snapshots: tuple[SnapshotRecord, ...]
    hints: Hints
    hints_problem: HintsMalformed | None

    @property
    def own_snapshots(self) -> tuple[SnapshotRecord, ...]:
        return tuple(snapshot for snapshot in self.snapshots if is_ours(snapshot))

    @property
    def channel(self) -> ChannelState:
        """The agent's channel; unknown while the guest does not run, whatever its definition says."""
        if self.definition.channel is ChannelState.ABSENT or self.state in ACTIVE_STATES:
            return self.definition.channel
        return ChannelState.UNKNOWN


def observe_domains(hypervisor: Hypervisor, names: list[str] | None, *, snapshots: bool = True) -> list[Observation]:
    """Look at the named domains in that order, or at all of them, by name. Raises DomainNotFound for the first missing.

    A domain that is undefined between being listed and being looked at is left out, unless it was asked for by name.
    Of all of them libvirt is asked at once, but for their definitions and their snapshots. Without ``snapshots`` none
    are looked for.
    """
    versions: dict[FileId, str | None] = {}
    if names is not None:
        return [
            _observe(hypervisor, _surveyed(hypervisor.domain(name)), versions, snapshots=snapshots) for name in names
        ]
    observations = []
    for surveyed in sorted(hypervisor.survey(), key=lambda surveyed: surveyed.domain.name):
        try:
            observations.append(
                _observe(hypervisor, surveyed, versions, snapshots=snapshots and surveyed.has_snapshots)
            )
        except DomainNotFound:
            continue
    return observations


def observe(hypervisor: Hypervisor, domain: Domain) -> Observation:
    """Look at one domain."""
    return _observe(hypervisor, _surveyed(domain), {}, snapshots=True)


def _surveyed(domain: Domain) -> Surveyed:
    return Surveyed(domain, domain.state(), domain.is_persistent(), domain.has_managed_save(), has_snapshots=True)


def _observe(
    hypervisor: Hypervisor, surveyed: Surveyed, versions: dict[FileId, str | None], *, snapshots: bool
) -> Observation:
    """``versions`` carries what is known of QEMU binaries from one domain to the next."""
    domain, state = surveyed.domain, surveyed.state
    xml = domain.xml()
    definition = parse_definition(xml)
    hints, hints_problem = read_hints(xml)
    process, drift, running = None, Drift(DriftState.NOT_RUNNING), None
    if state in ACTIVE_STATES:
        try:
            process = find_process(domain.name, domain.uuid, runtime_directory(hypervisor.uri))
            drift = _drift.judge(*running_files(process))
            running = version_of(PROC / str(process.pid) / "exe", versions)
        except ProcessUnreadable as problem:
            drift = _drift.unknown(str(problem))
    found = domain.snapshots() if snapshots else ()
    return Observation(
        name=domain.name,
        uuid=domain.uuid,
        state=state,
        persistent=surveyed.persistent,
        managed_save=surveyed.managed_save,
        definition=definition,
        process=process,
        version_running=running,
        version_installed=version_of(Path(definition.emulator), versions) if definition.emulator else None,
        drift=drift,
        snapshots=tuple(sorted(found, key=lambda snapshot: (snapshot.created, snapshot.name))),
        hints=hints,
        hints_problem=hints_problem,
    )


def read_hints(xml: str) -> tuple[Hints, HintsMalformed | None]:
    """What the metadata says, or why it cannot be read: what its owner has misspelled must not hide a domain."""
    try:
        return parse_hints(xml), None
    except HintsMalformed as problem:
        return Hints(), problem
