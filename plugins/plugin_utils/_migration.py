# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which hypervisors of the inventory a guest may be migrated to, and on which of them it is afterwards."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._result import Facts

GROUP = "kvm_hypervisors"
URI = "kvm_migration_uri"


class NoMigrationUri(Exception):
    """A hypervisor was named that nobody can migrate a guest to; the message says what to do."""


def migration_uris(
    names: Sequence[str],
    own: str,
    groups: Mapping[str, Collection[str]],
    inventory: Mapping[str, Mapping[str, Any]],
) -> dict[str, str]:
    """The URI of each hypervisor that is named, by its name, but the guest's ``own``.

    Without names, they are those of the group that have one. Raises NoMigrationUri.
    """
    without = [name for name in names if name not in inventory or not inventory[name].get(URI)]
    if without:
        raise NoMigrationUri(
            f"upgrade_migrate_to names {', '.join(without)}, and the inventory gives no {URI} there: the URI of its "
            "libvirt as the other hypervisors reach it, such as qemu+tls://hypervisor2/system"
        )
    chosen = names or [name for name in groups.get(GROUP, []) if inventory[name].get(URI)]
    return {str(name): str(inventory[name][URI]) for name in chosen if name != own}


def migrated_to(power: Facts, destinations: Mapping[str, str]) -> str:
    """The name of the hypervisor that a guest has stayed on, by what domain_power returned; empty where it was not
    migrated, or has come back."""
    migration = power.get("migration") or {}
    left = migration.get("destination") if migration and not migration["came_back"] else None
    uri = left or (power.get("evidence") or {}).get("moved_to")
    return "" if uri is None else named(str(uri), destinations)


def named(uri: str, destinations: Mapping[str, str]) -> str:
    """The name of the hypervisor that a guest was migrated to by this URI."""
    return next((name for name, known in destinations.items() if known == uri), uri)
