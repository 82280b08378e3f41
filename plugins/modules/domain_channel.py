#!/usr/bin/python
# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: domain_channel
short_description: Give a domain the channel that its guest agent listens on
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Adds the virtio channel C(org.qemu.guest_agent.0) to a domain's definition, and to the domain as it runs where that
    is possible. Addresses are left to libvirt.
  - A running domain takes the channel only if it has a virtio-serial controller already, as those with a graphical
    console by SPICE have. libvirt does not hot-plug such a controller. Otherwise the channel comes with the next start,
    and RV(restart_required) says so.
  - A channel that only the running domain has, or only the definition, is completed. A transient domain has no
    definition; it gets the channel for as long as it runs, or is refused.
  - Reverting to a snapshot from before brings back a definition without the channel.
extends_documentation_fragment:
  - kvm.fleet.hypervisor
  - kvm.fleet.hypervisor.domain
  - kvm.fleet.hypervisor.attributes
attributes:
  check_mode:
    support: full
    details: Whether a running domain really takes the channel, only libvirt and QEMU can tell. If they refuse it, the
      run returns RV(live=needs_restart) where check mode had said RV(live=added).
  diff_mode:
    support: full
options:
  agent_timeout:
    description:
      - Seconds to wait for the guest agent to answer on the channel, once the running domain has it. The task fails
        with the error code C(agent_silent) if it does not. V(0) does not ask it.
    type: int
    default: 0
  run:
    description:
      - Id of the run that this is done in, which needs the guest's lease, see M(kvm.fleet.guest_lease). Without it, a
        guest under a live lease is refused.
    type: str
"""

EXAMPLES = r"""
- name: See to it that a guest has the channel
  kvm.fleet.domain_channel:
    name: web1
  delegate_to: hypervisor1
  register: result

- name: Restart it where only that brings the channel
  kvm.fleet.domain_power:
    name: web1
    state: restarted
    agent_timeout: 0
  delegate_to: hypervisor1
  when: result.restart_required

- name: See that the agent answers
  kvm.fleet.domain_channel:
    name: web1
    agent_timeout: 300
  delegate_to: hypervisor1
"""

RETURN = r"""
live:
  description: >-
    The channel in the running domain, V(added), V(present), V(needs_restart) when it comes with the next start only, or
    V(not_running).
  returned: success
  type: str
  sample: added
persistent:
  description: The channel in the definition, V(added) or V(present). V(transient) when there is no definition.
  returned: success
  type: str
  sample: added
restart_required:
  description: Whether the guest has to be shut down and started for the channel to be there.
  returned: success
  type: bool
  sample: false
reason:
  description: Why it has to be restarted. Empty when it has not.
  returned: success
  type: str
  sample: the running domain has no virtio-serial controller, and libvirt does not hot-plug one
agent:
  description: V(answering) when the agent was asked and has answered. V(null) when it was not asked.
  returned: success
  type: str
  sample: answering
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.kvm.fleet.plugins.module_utils import _channel
from ansible_collections.kvm.fleet.plugins.module_utils._channel import CHANNEL_XML, Live, Persistent, Plan
from ansible_collections.kvm.fleet.plugins.module_utils._lease import working
from ansible_collections.kvm.fleet.plugins.module_utils._libvirt import LibvirtHypervisor
from ansible_collections.kvm.fleet.plugins.module_utils._runner import DOMAIN_ARGUMENTS, run


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "agent_timeout": {"type": "int", "default": 0},
            "run": {"type": "str"},
            **DOMAIN_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    given = module.params

    def work(hypervisor: LibvirtHypervisor) -> dict[str, Any]:
        _channel.check_agent_timeout(given["agent_timeout"])
        domain = hypervisor.domain(given["name"])
        with working(hypervisor, domain, given["run"], check=module.check_mode, warn=module.warn):
            plan = _channel.plan(_channel.observe(domain))
            if plan.changes and not module.check_mode:
                plan = _channel.apply(domain, plan)
            there = {Live.PRESENT} if module.check_mode else {Live.PRESENT, Live.ADDED}
            asking = given["agent_timeout"] > 0 and plan.live in there
            if asking:
                _channel.wait_for_agent(hypervisor, domain, given["agent_timeout"])
        return {
            "changed": plan.changes,
            "live": plan.live.value,
            "persistent": plan.persistent.value,
            "restart_required": plan.restart_required,
            "reason": plan.reason,
            "agent": "answering" if asking else None,
            "diff": difference(plan),
        }

    run(module, work)


def difference(plan: Plan) -> list[dict[str, str]]:
    """The device that is added, once for each of the two definitions that gets it."""
    added = {
        "persistent definition": plan.persistent is Persistent.ADDED,
        "running domain": plan.live is Live.ADDED,
    }
    return [
        {"before_header": where, "after_header": where, "before": "", "after": CHANNEL_XML}
        for where, is_added in added.items()
        if is_added
    ]


if __name__ == "__main__":
    main()
