# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: agent_result
short_description: Put together what became of a guest that was to get an agent
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Makes the record of one guest that the summary shows, from what the steps of the role P(kvm.fleet.agent#role)
    returned, as far as they came.
options:
  _input:
    description:
      - Results of tasks. C(channel) and C(proof) from M(kvm.fleet.domain_channel), C(repair) from
        M(kvm.fleet.guest_repair), C(brought_back), C(stopped) and C(power) from M(kvm.fleet.domain_power), C(plan)
        from P(kvm.fleet.agent_plan#filter), C(lease) from M(kvm.fleet.guest_lease).
      - C(intervening) tells whether anything may have been changed, C(installed) whether the package was installed.
    type: dict
    required: true
  failure:
    description:
      - The name of the task that failed, as C(task), its C(result), and whether that is C(hidden), as by C(no_log).
    type: dict
extends_documentation_fragment:
  - kvm.fleet.result
"""

EXAMPLES = r"""
- name: Put the result together
  ansible.builtin.set_fact:
    result: "{{ {'channel': channel} | kvm.fleet.agent_result(guest=guest, started=started) }}"
  vars:
    guest: {name: web1, hypervisor: hypervisor1, uri: "qemu:///system", domain: web1}
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
    channel:
      description: C(persistent) and C(live), as M(kvm.fleet.domain_channel) returned them.
      type: dict
    installed:
      description: The way by which the package was installed, V(ssh) or V(offline). Empty where it was not.
      type: str
    closed:
      description: Why ways to install it that were asked for were not open, by their names.
      type: dict
    restarted:
      description: Whether the guest was restarted, and that was proved.
      type: bool
    forced_off:
      description: Whether it was ended by force.
      type: bool
    agent:
      description: V(answering) when the agent has answered in the end, else V(null).
      type: str
    resumed:
      description: >-
        The run that was gone on with, as C(run), and where it was cut off, as C(cut_off). V(null) if none.
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

from ansible_collections.kvm.fleet.plugins.plugin_utils._reach import make_result
from ansible_collections.kvm.fleet.plugins.plugin_utils._result import result_filter

result = result_filter(make_result)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"agent_result": result}
