# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: choose_looks
short_description: Choose one host through which to look at each hypervisor
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - From hosts that are guests, by their C(kvm_hypervisor), or hypervisors themselves, takes the first on each
    hypervisor and libvirt connection. A task that looks at all domains then runs once there, however many guests there
    are.
options:
  _input:
    description: The variables of the hosts.
    type: list
    elements: dict
    required: true
  inventory:
    description:
      - The variables of every host of the inventory, as C(hostvars) has them. A guest without a C(kvm_uri) has that of
        its hypervisor, which is looked up here.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Choose through whom to look
  ansible.builtin.set_fact:
    looks: "{{ ansible_play_hosts_all | map('extract', hostvars) | kvm.fleet.choose_looks(hostvars) }}"
  run_once: true

- name: Look at each hypervisor once
  kvm.fleet.domain_info:
    uri: "{{ looks[inventory_hostname] }}"
  delegate_to: "{{ kvm_hypervisor | default(inventory_hostname) }}"
  when: inventory_hostname in looks
"""

RETURN = r"""
_value:
  description: The libvirt connection to look at, by the name of the host through which to look.
  type: dict
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._selection import choose_looks


def choose(
    hosts: Sequence[Mapping[str, Any]], inventory: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, str]:
    return choose_looks(hosts, {} if inventory is None else inventory)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"choose_looks": choose}
