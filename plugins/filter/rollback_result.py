# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: rollback_result
short_description: Put together what became of a guest that was to be rolled back
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Makes the record of one guest that the summary shows, from what the role P(kvm.fleet.rollback#role) did.
options:
  _input:
    description:
      - Results of tasks. C(before) and C(after) from M(kvm.fleet.domain_info), C(rehearsed) and C(done) from
        M(kvm.fleet.domain_rollback), C(lease) from M(kvm.fleet.guest_lease).
      - C(intervening) tells whether anything may have been changed.
    type: dict
    required: true
extends_documentation_fragment:
  - kvm.fleet.result
"""

EXAMPLES = r"""
- name: Put the result together
  ansible.builtin.set_fact:
    result: "{{ {'done': done} | kvm.fleet.rollback_result(guest=guest, started=started) }}"
  vars:
    guest: {name: web1, hypervisor: hypervisor1, uri: "qemu:///system", domain: web1}
"""

RETURN = r"""
_value:
  description:
    - The record, with the fields that all guests have in P(kvm.fleet.upgrade_result#filter).
    - Besides, the C(snapshot), what is C(lost), C(failed_units) and C(clock_set), as M(kvm.fleet.domain_rollback)
      returned them, and the C(drift). Its C(outcome) is V(rolled_back), V(rollback_failed) or V(refused).
  type: dict
"""

from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._result import result_filter
from ansible_collections.kvm.fleet.plugins.plugin_utils._rollback import make_rollback_result

result = result_filter(make_rollback_result)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"rollback_result": result}
