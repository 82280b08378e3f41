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
  - Names those of the groups C(kvm_hypervisors) and C(kvm_guests) that the inventory has.
  - Where it has neither, every host counts, as in C(-i hypervisor1,).
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

from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._selection import default_hosts


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"fleet_hosts": default_hosts}
