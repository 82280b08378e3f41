# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: migration_uris
short_description: Tell to which hypervisors a guest may be migrated, and by which URIs
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Takes the C(kvm_migration_uri) of each hypervisor that is named, but the guest's own. Without names, it takes those
    of the group C(kvm_hypervisors) that have one.
  - Fails for a hypervisor that is named and has none.
options:
  _input:
    description: The inventory's names of hypervisors, as a list or as text with commas.
    type: raw
    required: true
  own:
    description: The name of the guest's own.
    type: str
    required: true
  groups:
    description: The groups of the inventory, as C(groups) has them.
    type: dict
    required: true
  inventory:
    description: The variables of every host of the inventory, as C(hostvars) has them.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Tell where to
  ansible.builtin.debug:
    msg: "{{ [] | kvm.fleet.migration_uris(kvm_hypervisor, groups, hostvars) }}"
"""

RETURN = r"""
_value:
  description: The URIs, by the names.
  type: dict
"""

from collections.abc import Collection, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.kvm.fleet.plugins.plugin_utils import _migration
from ansible_collections.kvm.fleet.plugins.plugin_utils._selection import wanted_names


def uris(
    wanted: object,
    own: str,
    groups: Mapping[str, Collection[str]],
    inventory: Mapping[str, Mapping[str, Any]],
) -> dict[str, str]:
    try:
        return _migration.migration_uris(wanted_names(wanted), own, groups, inventory)
    except _migration.NoMigrationUri as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"migration_uris": uris}
