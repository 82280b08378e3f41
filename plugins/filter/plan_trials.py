# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: plan_trials
short_description: Choose through which guests the QEMU of each hypervisor is tried
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Takes the first guest on each hypervisor and libvirt connection, so that M(kvm.fleet.qemu_trial) runs once there for
    all of them.
options:
  _input:
    description: The variables of the guests.
    type: list
    elements: dict
    required: true
  inventory:
    description:
      - The variables of every host of the inventory, as C(hostvars) has them. A guest without a C(kvm_uri) has that of
        its hypervisor, which is looked up here.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Choose through whom to try
  ansible.builtin.set_fact:
    trials: "{{ ansible_play_hosts_all | map('extract', hostvars) | kvm.fleet.plan_trials(hostvars) }}"
  run_once: true
"""

RETURN = r"""
_value:
  description: The C(uri), and the C(names) of the domains, by the guest through which to try.
  type: dict
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._trials import plan_trials


def trials(hosts: Sequence[Mapping[str, Any]], inventory: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return plan_trials(hosts, inventory)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"plan_trials": trials}
