# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: fleet_hosts
short_description: Tell in which groups of an inventory the fleet is
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Names those of the groups C(kvm_hypervisors) and C(kvm_guests) that the inventory has, and fails when it has neither,
    since a play over no hosts would end as if all was well.
options:
  _input:
    description: The groups of the inventory, as C(groups) has them.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Find the guests
  hosts: "{{ groups | kvm.fleet.fleet_hosts }}"
  gather_facts: false
  tasks: []
"""

RETURN = r"""
_value:
  description: Names of groups.
  type: list
  elements: str
"""

from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.kvm.fleet.plugins.plugin_utils._selection import SelectionError, default_hosts


def hosts(groups: Mapping[str, Any]) -> list[str]:
    try:
        return default_hosts(groups)
    except SelectionError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"fleet_hosts": hosts}
