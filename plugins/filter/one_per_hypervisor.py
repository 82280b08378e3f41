# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: one_per_hypervisor
short_description: Choose one host through which to look at each hypervisor
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - From hosts that are guests, by their C(kvm_hypervisor), or hypervisors themselves, takes the first on each
    hypervisor. A task that looks at a whole hypervisor then runs once for it, however many guests it has.
options:
  _input:
    description: The variables of the hosts.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Look at each hypervisor once
  kvm.fleet.domain_info:
  delegate_to: "{{ kvm_hypervisor | default(inventory_hostname) }}"
  when: inventory_hostname in (ansible_play_hosts | map('extract', hostvars) | kvm.fleet.one_per_hypervisor)
"""

RETURN = r"""
_value:
  description: Names of hosts of the inventory.
  type: list
  elements: str
"""

from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._selection import one_per_hypervisor


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"one_per_hypervisor": one_per_hypervisor}
