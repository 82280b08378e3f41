# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The closed family of errors that every part of the collection raises.

Each error says what happened (its message), whether waiting can cure it (``transient``), what a person should do
(``remedy``) and what was seen (``evidence``). ``error_code`` is stable: playbooks and monitoring may depend on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class FleetError(Exception):
    """Base of the family; only its subclasses are raised."""

    error_code: ClassVar[str] = "fleet_error"
    transient: ClassVar[bool] = False

    def __init__(self, message: str, *, remedy: str, evidence: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.evidence: dict[str, object] = dict(evidence or {})


class InvalidRequest(FleetError):
    """What was asked for cannot be done on any guest: an impossible name, an empty command."""

    error_code = "invalid_request"


# --- the hypervisor ------------------------------------------------------------------------------


class RemoteUriRefused(FleetError):
    """The URI leads to another machine, whose processes cannot be seen from here."""

    error_code = "remote_uri_refused"


class HypervisorUnavailable(FleetError):
    """libvirt does not answer on this machine."""

    error_code = "hypervisor_unavailable"
    transient = True


class LibvirtFailed(FleetError):
    """libvirt refused or failed for a reason that this collection has no name for; the evidence has its own words."""

    error_code = "libvirt_failed"


# --- the domain ----------------------------------------------------------------------------------


class DomainNotFound(FleetError):
    error_code = "domain_not_found"


class DomainNotRunning(FleetError):
    error_code = "domain_not_running"


class DomainRunning(FleetError):
    """The domain is not off, and what was asked for can only be done while it is."""

    error_code = "domain_running"


class DomainBusy(FleetError):
    """Another operation on the domain holds libvirt's lock on it."""

    error_code = "domain_busy"
    transient = True


class DomainUnsafe(FleetError):
    """Something about the domain makes the operation lose what cannot be brought back."""

    error_code = "domain_unsafe"


class ShutdownTimeout(FleetError):
    """The guest was asked to shut down and is still there."""

    error_code = "shutdown_timeout"


class SaveImpossible(FleetError):
    """The guest's RAM cannot be saved: for a device that it has, or for want of space."""

    error_code = "save_impossible"


class SaveFailed(FleetError):
    """The guest's RAM was to be saved and was not; the guest is on its old QEMU, running or paused."""

    error_code = "save_failed"


class SavedStateRefused(FleetError):
    """The installed QEMU does not resume the guest from its saved RAM."""

    error_code = "saved_state_refused"


class MigrationImpossible(FleetError):
    """The guest cannot be migrated to any of the hypervisors that it may be migrated to; the evidence says why."""

    error_code = "migration_impossible"


class MigrationFailed(FleetError):
    """The guest was to be migrated and was not; it is where it was, on its old QEMU."""

    error_code = "migration_failed"


class MigratedAway(FleetError):
    """The guest was migrated, was to come back, and could not: it runs on the other hypervisor."""

    error_code = "migrated_away"


class StartFailed(FleetError):
    """The domain is off and could not be started, or did not stay up."""

    error_code = "start_failed"


class QemuTrialFailed(FleetError):
    """The installed QEMU does not start a machine like a guest's."""

    error_code = "qemu_trial_failed"


class ProofFailed(FleetError):
    """An operation reported success, and what was then measured says otherwise."""

    error_code = "proof_failed"


class HintsMalformed(FleetError):
    """The domain's metadata for a fleet says something that nobody understands."""

    error_code = "hints_malformed"


# --- runs ----------------------------------------------------------------------------------------


class GuestLeased(FleetError):
    """Another run works on the guest, or may be about to."""

    error_code = "guest_leased"
    transient = True


class LeaseLost(FleetError):
    """The run has no lease of the guest, or has it no more."""

    error_code = "lease_lost"


class RollbackUnfinished(FleetError):
    """A rollback of the guest was cut off, and only a rollback may go on from there."""

    error_code = "rollback_unfinished"


class GroupBusy(FleetError):
    """As many members of the guest's group as may be are worked on."""

    error_code = "group_busy"
    transient = True


class GroupMemberFailed(FleetError):
    """Members of the guest's group have failed and may be down: as many as may be at once."""

    error_code = "group_member_failed"


class RecordDamaged(FleetError):
    """What is on record of the work on a guest cannot be read, so nothing is done that might depend on it."""

    error_code = "record_damaged"


class RecordUnavailable(FleetError):
    """The hypervisor does not let what is on record there be read or written."""

    error_code = "record_unavailable"


# --- snapshots -----------------------------------------------------------------------------------


class SnapshotImpossible(FleetError):
    """This domain's disks, firmware, TPM, devices or free space do not allow the snapshot."""

    error_code = "snapshot_impossible"


class SnapshotNotFound(FleetError):
    error_code = "snapshot_not_found"


class SnapshotNotOurs(FleetError):
    """The snapshot was not made by this collection, so it is not touched."""

    error_code = "snapshot_not_ours"


class SnapshotBlocked(FleetError):
    """The snapshot cannot be reverted to or deleted as things are; nothing was lost for it."""

    error_code = "snapshot_blocked"


class DiskImageFailed(FleetError):
    """An image of a disk, or a copy of what goes with it, could not be read, made or written."""

    error_code = "disk_image_failed"


# --- the guest agent -----------------------------------------------------------------------------


class NoAgentChannel(FleetError):
    """The domain has no virtio channel for the guest agent."""

    error_code = "no_agent_channel"


class AgentSilent(FleetError):
    """The channel is there and nobody answers on it."""

    error_code = "agent_silent"
    transient = True


class AgentCommandBlocked(FleetError):
    """The agent answers, and its RPC filter forbids the command."""

    error_code = "agent_command_blocked"


class GuestFrozen(FleetError):
    """The guest's file systems are frozen, so that it can neither write nor do what it is asked to."""

    error_code = "guest_frozen"
    transient = True


class AgentCommandFailed(FleetError):
    """The agent understood the command and could not carry it out."""

    error_code = "agent_command_failed"


class AgentProtocolError(FleetError):
    """The agent's answer is not what its protocol allows."""

    error_code = "agent_protocol_error"


# --- commands in the guest -----------------------------------------------------------------------


class CommandTimeout(FleetError):
    """The command did not end within its deadline and was ended."""

    error_code = "command_timeout"


class CommandResultLost(FleetError):
    """The command ran; its result can no longer be had, because the agent restarted or an answer was lost."""

    error_code = "command_result_lost"


class CommandFailed(FleetError):
    """The command ended with a return code other than zero."""

    error_code = "command_failed"


class CommandKilled(FleetError):
    """The command was ended by a signal."""

    error_code = "command_killed"


# --- packages ------------------------------------------------------------------------------------


class PackageManagerUnknown(FleetError):
    error_code = "package_manager_unknown"


class PackageManagerLocked(FleetError):
    """Another process in the guest holds the package manager's lock."""

    error_code = "package_manager_locked"
    transient = True


class PackageStateInterrupted(FleetError):
    """An earlier package operation in the guest was cut off and has to be finished first."""

    error_code = "package_state_interrupted"


class PackageListsFailed(FleetError):
    """The package lists could not be refreshed."""

    error_code = "package_lists_failed"
    transient = True


class RepositoryUnreachable(FleetError):
    """The guest does not reach one of its repositories, or the repository is gone."""

    error_code = "repository_unreachable"
    transient = True


class RepositoryUntrusted(FleetError):
    """A repository's signature, key or certificate is missing, wrong or expired."""

    error_code = "repository_untrusted"


class DiskFull(FleetError):
    """A file system of the guest has not the room that the upgrade needs."""

    error_code = "disk_full"


class DependencyConflict(FleetError):
    """The package manager finds no way to satisfy all dependencies."""

    error_code = "dependency_conflict"


class MaintainerScriptFailed(FleetError):
    """A script that a package brings along failed; the package is not fully installed."""

    error_code = "maintainer_script_failed"


class SelinuxDenied(FleetError):
    """SELinux does not let the guest agent manage packages."""

    error_code = "selinux_denied"


class UpgradeFailed(FleetError):
    """The package manager ended with an error."""

    error_code = "upgrade_failed"


class UpgradeTimeout(FleetError):
    """The upgrade has not ended within its deadline. It was stopped; the message says if it could not be."""

    error_code = "upgrade_timeout"


class UpgradeRunning(FleetError):
    """An upgrade started earlier still runs in the guest."""

    error_code = "upgrade_running"
    transient = True


class UpgradeInterrupted(FleetError):
    """The upgrade's unit is gone and left no result."""

    error_code = "upgrade_interrupted"


class GuestUnsupported(FleetError):
    """The guest lacks something that the operation is built on."""

    error_code = "guest_unsupported"


# --- ways to a guest ------------------------------------------------------------------------------


class NoWayOpen(FleetError):
    """None of the ways to install the guest agent, or to change its settings, is open; the evidence says why."""

    error_code = "no_way_open"


class PolicyUnsupported(FleetError):
    """The agent's RPC filter comes from a place that is not edited, such as the command line of a vendor's unit."""

    error_code = "policy_unsupported"


class ChannelImpossible(FleetError):
    """The domain cannot be given a channel for the guest agent."""

    error_code = "channel_impossible"


class ImageToolsMissing(FleetError):
    """The hypervisor lacks libguestfs, with which a guest's image is edited."""

    error_code = "image_tools_missing"


class ImageFailed(FleetError):
    """The image of a guest could not be opened or edited."""

    error_code = "image_failed"
