# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: policy_result
short_description: Put together what became of a guest's agent
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Makes the record of one guest that the summary shows, from what the steps of the role
    P(kvm.fleet.agent_policy#role) returned, as far as they came.
options:
  _input:
    description:
      - Results of tasks. C(lease) from M(kvm.fleet.guest_lease), C(power) from M(kvm.fleet.domain_power), C(done) from
        M(kvm.fleet.guest_agent_policy), C(audited) from M(kvm.fleet.guest_audit), C(predicted) and C(local) from
        M(kvm.fleet.agent_policy_local).
      - C(intervening) tells whether anything may have been changed.
    type: dict
    required: true
  guest:
    description:
      - The guest's C(name), C(hypervisor), C(uri) and C(domain), the id of the C(run), and the wanted C(state) and
        C(rpcs).
    type: dict
    required: true
extends_documentation_fragment:
  - kvm.fleet.result
"""

EXAMPLES = r"""
- name: Put the result together
  ansible.builtin.set_fact:
    result: "{{ {'done': done} | kvm.fleet.policy_result(guest=guest, started=started) }}"
  vars:
    guest:
      name: web1
      hypervisor: hypervisor1
      uri: qemu:///system
      domain: web1
      state: enabled
      rpcs: [guest-exec]
"""

RETURN = r"""
_value:
  description: The record.
  type: dict
  contains:
    run:
      description: The id of the run.
      type: str
    guest:
      description: The guest's name in the inventory.
      type: str
    hypervisor:
      description: Its hypervisor's name in the inventory.
      type: str
    uri:
      description: The local libvirt connection there.
      type: str
    domain:
      description: The domain's name there.
      type: str
    outcome:
      description: V(unchanged), V(changed), V(restarted), V(refused) or V(failed).
      type: str
    check_mode:
      description: Whether the record is a prediction.
      type: bool
    policy:
      description: What was wanted, as C(state) and C(rpcs).
      type: dict
    way:
      description: The way that was taken. V(null) if none.
      type: str
    closed:
      description: >-
        Why C(ssh) was not open, where the guest had an address for it and another way was taken. Empty otherwise.
      type: dict
    files:
      description: The files that were changed, as M(kvm.fleet.guest_agent_policy) returns them.
      type: list
      elements: dict
    restarted:
      description: Whether the agent was restarted, alone or together with its guest.
      type: bool
    resumed:
      description: The C(run) that was gone on with, and where it was C(cut_off). V(null) if none.
      type: dict
    taken_over:
      description: The run whose lease was taken over, as M(kvm.fleet.guest_lease) tells it. V(null) if none.
      type: dict
    duration:
      description: Seconds that the guest took.
      type: float
    error:
      description: The first failure, else V(null), with C(task), C(error_code), C(msg), C(remedy), C(transient) and
        C(evidence).
      type: dict
"""

from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._agent_policy import make_policy_result
from ansible_collections.kvm.fleet.plugins.plugin_utils._result import result_filter

result = result_filter(make_policy_result)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"policy_result": result}
