# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: rescue_result
short_description: Put together what became of a guest that was to be rescued
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Makes the record of one guest that the summary shows, from what the steps of the role P(kvm.fleet.rescue#role)
    returned, as far as they came.
options:
  _input:
    description:
      - Results of tasks. C(before) and C(after) from M(kvm.fleet.domain_info), C(repair) from
        M(kvm.fleet.guest_repair), C(stopped) and C(power) from M(kvm.fleet.domain_power), C(lease) from
        M(kvm.fleet.guest_lease), C(plan) from P(kvm.fleet.rescue_plan#filter).
      - C(intervening) tells whether anything may have been changed.
    type: dict
    required: true
  failure:
    description:
      - The name of the task that failed, as C(task), its C(result), and whether that is C(hidden), as by C(no_log).
        Under C(start), what came of the guest's start after it, if it had been shut down.
    type: dict
extends_documentation_fragment:
  - kvm.fleet.result
"""

EXAMPLES = r"""
- name: Put the result together
  ansible.builtin.set_fact:
    result: "{{ {'before': before, 'repair': repaired} | kvm.fleet.rescue_result(guest=guest, started=started) }}"
  vars:
    guest: {name: web1, hypervisor: hypervisor1, uri: "qemu:///system", domain: web1}
"""

RETURN = r"""
_value:
  description:
    - The record, as P(kvm.fleet.upgrade_result#filter) makes it. Its C(outcome) may also be V(repaired).
    - Besides, under C(repairs), what M(kvm.fleet.guest_repair) returned.
  type: dict
"""

from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._rescue import make_rescue_result
from ansible_collections.kvm.fleet.plugins.plugin_utils._result import result_filter

result = result_filter(make_rescue_result)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"rescue_result": result}
