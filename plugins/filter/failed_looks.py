# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: failed_looks
short_description: Tell which hypervisors could not be looked at, and why
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Finds the hosts through which M(kvm.fleet.domain_info) returned no domains, in a play that went on nevertheless.
options:
  _input:
    description:
      - The variables of the hosts. What M(kvm.fleet.domain_info) returned through a host is expected as its
        C(fleet_domains).
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
- name: Note what could not be looked at
  ansible.builtin.set_fact:
    failed: "{{ ansible_play_hosts_all | map('extract', hostvars) | kvm.fleet.failed_looks(hostvars) }}"
  run_once: true
"""

RETURN = r"""
_value:
  description:
    - Dictionaries with C(hypervisor), C(uri), C(error_code), C(msg) and C(remedy), by the name of the host through
      which to look.
  type: dict
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._selection import failed_looks


def failed(
    hosts: Sequence[Mapping[str, Any]], inventory: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    return failed_looks(hosts, {} if inventory is None else inventory)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"failed_looks": failed}
