# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: prune_result
short_description: Put together what became of a guest whose snapshots were to be pruned
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Makes the record of one guest that the summary shows, from what the role P(kvm.fleet.prune#role) did.
options:
  _input:
    description: What M(kvm.fleet.domain_snapshot_prune) returned.
    type: dict
    required: true
extends_documentation_fragment:
  - kvm.fleet.result
"""

EXAMPLES = r"""
- name: Put the result together
  ansible.builtin.set_fact:
    result: "{{ pruned | kvm.fleet.prune_result(guest=guest, started=started) }}"
  vars:
    guest: {name: web1, hypervisor: hypervisor1, uri: "qemu:///system", domain: web1}
"""

RETURN = r"""
_value:
  description:
    - The record, with the fields that all guests have in P(kvm.fleet.upgrade_result#filter).
    - Besides, C(pruned), C(kept) and C(freed), as M(kvm.fleet.domain_snapshot_prune) returned them. Its C(outcome) is
      V(unchanged), V(changed), V(refused) or V(failed).
  type: dict
"""

from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._prune import make_prune_result
from ansible_collections.kvm.fleet.plugins.plugin_utils._result import result_filter

result = result_filter(make_prune_result)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"prune_result": result}
