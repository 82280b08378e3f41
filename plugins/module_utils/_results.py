# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Results as modules return them: plain dictionaries of what JSON can hold."""

from __future__ import annotations

import dataclasses
from typing import Any

from ansible_collections.kvm.fleet.plugins.module_utils import _external, _record, _snapshot
from ansible_collections.kvm.fleet.plugins.module_utils._agent import FileSystem
from ansible_collections.kvm.fleet.plugins.module_utils._clock import timestamp
from ansible_collections.kvm.fleet.plugins.module_utils._domain import SnapshotRecord
from ansible_collections.kvm.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.kvm.fleet.plugins.module_utils._group import Group
from ansible_collections.kvm.fleet.plugins.module_utils._guest_info import GuestInfo
from ansible_collections.kvm.fleet.plugins.module_utils._observe import Observation
from ansible_collections.kvm.fleet.plugins.module_utils._packages import KeptBack, PackageChange
from ansible_collections.kvm.fleet.plugins.module_utils._policy_ways import Report
from ansible_collections.kvm.fleet.plugins.module_utils._power import PowerReport
from ansible_collections.kvm.fleet.plugins.module_utils._proc import QemuProcess
from ansible_collections.kvm.fleet.plugins.module_utils._record import Lease, Moment, Record
from ansible_collections.kvm.fleet.plugins.module_utils._rpcs import RPCS


def failure(error: FleetError) -> dict[str, Any]:
    """What a module that fails with this error returns."""
    return {
        "msg": error.message,
        "error_code": error.error_code,
        "transient": error.transient,
        "remedy": error.remedy,
        "evidence": error.evidence,
    }


def observation(observed: Observation) -> dict[str, Any]:
    return {
        "name": observed.name,
        "uuid": observed.uuid,
        "state": observed.state.value,
        "persistent": observed.persistent,
        "managed_save": observed.managed_save,
        "qemu": {
            "emulator": observed.definition.emulator,
            "version_installed": observed.version_installed,
            "version_running": observed.version_running,
            **process(observed.process),
        },
        "drift": {
            "state": observed.drift.state.value,
            "reasons": [
                {"kind": reason.kind.value, "path": reason.path, "detail": reason.detail}
                for reason in observed.drift.reasons
            ],
        },
        "os": observed.definition.os,
        "agent_channel": observed.channel.value,
        "snapshots": [snapshot(record) for record in observed.own_snapshots],
        "hints": observed.hints.facts(),
        "hints_problem": problem(observed.hints_problem) if observed.hints_problem else None,
    }


def guest(found: GuestInfo) -> dict[str, Any]:
    return {
        "name": found.name,
        "uuid": found.uuid,
        "state": found.state,
        "agent": {
            "state": found.agent.value,
            "version": found.agent_version,
            "since": timestamp(found.agent_since) if found.agent_since else None,
            "rpcs": {
                rpc.name: {
                    "allowed": found.rpcs.get(rpc.name),
                    "needed_for": rpc.needed_for,
                    "setting": found.settings[rpc.name].facts() if rpc.name in found.settings else None,
                }
                for rpc in RPCS
            },
        },
        "manageable": found.manageable,
        "problems": [problem(error) for error in found.problems],
        "os": {
            "id": found.os_id,
            "like": list(found.os_like),
            "name": found.os_name,
            "version": found.os_version,
            "kernel_running": found.kernel_running,
            "kernel_installed": found.kernel_installed,
            "init": found.init,
            "package_manager": found.package_manager,
        },
        "selinux": {"mode": found.selinux_mode, "denies_package_management": found.selinux_denies},
        "reboot_required": found.reboot_required,
        "reboot_reasons": list(found.reboot_reasons),
        "failed_units": None if found.failed_units is None else list(found.failed_units),
        "filesystems": None if found.file_systems is None else [filesystem(one) for one in found.file_systems],
    }


def problem(error: FleetError) -> dict[str, str]:
    return {"error_code": error.error_code, "msg": error.message, "remedy": error.remedy}


def filesystem(one: FileSystem) -> dict[str, Any]:
    free = None if one.total is None or one.used is None else max(0, one.total - one.used)
    return {"mountpoint": one.mountpoint, "type": one.type, "total": one.total, "free": free}


def process(qemu: QemuProcess | None) -> dict[str, Any]:
    return {
        "pid": qemu.pid if qemu else None,
        "started": timestamp(qemu.started) if qemu else None,
    }


def snapshot(record: SnapshotRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "description": record.description,
        "created": record.created,
        "state": record.state,
        "current": record.current,
        "way": _snapshot.way_of(record).value,
        "kind": "external" if record.external else "internal",
        "files": list(_external.files_with(record)),
        "size": _external.size_of(record) if record.external else None,
    }


def power(report: PowerReport) -> dict[str, Any]:
    return {
        "forced": report.forced,
        "strategy": report.strategy.value if report.strategy else None,
        "closed": {strategy.value: why for strategy, why in report.closed.items()},
        "pause": {"hypervisor": seconds(report.off_for), "guest": seconds(report.longest_gap)},
        "clock": report.clock.facts() if report.clock else None,
        "migration": report.migration.facts() if report.migration else None,
        "pending": list(report.pending),
        "transitions": [transition.facts() for transition in report.transitions],
        "before": {**process(report.process_before), "boot_id": report.boot_id_before},
        "after": {**process(report.process_after), "boot_id": report.boot_id_after},
        **({"warnings": report.warnings} if report.warnings else {}),  # Ansible shows them
    }


def seconds(measured: float | None) -> float | None:
    return None if measured is None else round(measured, 1)


def policy(report: Report) -> dict[str, Any]:
    return {
        "changed": report.changed,
        "way": report.way.value if report.way else None,
        "settings": {rpc: [setting.facts() for setting in settings] for rpc, settings in report.settings.items()},
        "files": [written.facts() for written in report.files],
        "unseen": report.unseen,
        "restarted": report.restarted,
        "known": report.known,
        "proved": report.proved,
        "audit": report.audit,
        **({"warnings": report.warnings} if report.warnings else {}),
        "diff": [written.difference() for written in report.files],
    }


def change(package: PackageChange) -> dict[str, Any]:
    return dataclasses.asdict(package)


def kept_back(package: KeptBack) -> dict[str, Any]:
    return {"name": package.name, "reason": package.reason.value}


def lease(held: Lease, now: Moment) -> dict[str, Any]:
    silence = held.silence(now)
    return {
        "run": held.run,
        "owner": held.owner,
        "taken": held.taken,
        "silence": None if silence is None else round(silence, 1),
    }


def places(group: Group) -> list[dict[str, Any]]:
    return [
        {
            "member": place.member,
            "uuid": place.uuid,
            "run": place.lease.run,
            "owner": place.lease.owner,
            "taken": place.lease.taken,
            "failed": place.failed,
        }
        for place in group.places
    ]


def work(record: Record | None, now: Moment, *, at_work: bool) -> dict[str, Any] | None:
    """What is going on with a guest, was left unfinished or came of it; None where nothing is on record."""
    if record is None:
        return None
    held = record.lease
    return {
        "lease": lease(held, now) if held else None,
        "live": held is not None and (at_work or held.is_young(now)),
        "unfinished": record.unfinished,
        "shut_down": record.shut_down_by_us,
        "went_to": record.went_to,
        "steps": [{"name": step.name.value, "status": step.status.value, "run": step.run} for step in record.steps],
        "ended": dataclasses.asdict(record.ended) if record.ended else None,
        "way_back": _record.way_back(record),
        "problem": None,
    }


def unknown_work(error: FleetError) -> dict[str, Any]:
    """Likewise where the record cannot be read."""
    nothing: dict[str, Any] = {"lease": None, "live": False, "unfinished": False, "shut_down": False, "steps": []}
    return {**nothing, "went_to": None, "ended": None, "way_back": None, "problem": failure(error)}
