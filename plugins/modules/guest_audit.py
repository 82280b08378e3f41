#!/usr/bin/python
# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_audit
short_description: Write down on the hypervisor what was changed of a guest's agent
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Adds a line to C(/var/lib/kvm-fleet/audit.jsonl), as M(kvm.fleet.guest_agent_policy) does for its own changes. For
    those that were made in the guest by M(kvm.fleet.agent_policy_local).
extends_documentation_fragment:
  - kvm.fleet.hypervisor
  - kvm.fleet.hypervisor.domain
  - kvm.fleet.hypervisor.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
options:
  event:
    description:
      - V(changing) before a change, V(changed) or V(failed) after it. V(restarting) and V(restarted) where the agent is
        restarted and no file is changed.
    type: str
    choices: [changing, changed, restarting, restarted, failed]
    required: true
  state:
    description:
      - What was wanted of the commands.
    type: str
    choices: [enabled, disabled]
    required: true
  rpcs:
    description:
      - The commands of the agent.
    type: list
    elements: str
    default: [guest-exec, guest-exec-status]
  way:
    description:
      - How the guest was reached.
    type: str
    default: ssh
  files:
    description:
      - The files that are changed, as M(kvm.fleet.agent_policy_local) returns them.
    type: list
    elements: dict
    required: true
  owner:
    description:
      - Who is to answer for the change. By default the user who logged in to the hypervisor.
    type: str
  run:
    description:
      - Id of the run that this is done in.
    type: str
"""

EXAMPLES = r"""
- name: Write down what was changed over SSH
  kvm.fleet.guest_audit:
    name: web1
    event: changed
    state: enabled
    files: "{{ result.files }}"
  delegate_to: hypervisor1
"""

RETURN = r"""
audit:
  description: The line, as RV(kvm.fleet.guest_agent_policy#module:audit) has it. V(null) in check mode.
  returned: success
  type: dict
  sample:
    at: "2026-03-01T02:00:12Z"
    event: changed
    owner: alice
    user: root
    sudo_user: alice
    guest: web1
    uuid: 0b1d3a7d-2f8a-4a0e-9d0b-6c8e58b40c55
    way: ssh
    state: enabled
    rpcs: [guest-exec, guest-exec-status]
    files: []
    run: null
    uri: qemu:///system
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.kvm.fleet.plugins.module_utils._audit import Audit
from ansible_collections.kvm.fleet.plugins.module_utils._libvirt import LibvirtHypervisor
from ansible_collections.kvm.fleet.plugins.module_utils._policy import Wanted
from ansible_collections.kvm.fleet.plugins.module_utils._policy_ways import audit_facts
from ansible_collections.kvm.fleet.plugins.module_utils._runner import DOMAIN_ARGUMENTS, run

EVENTS = ["changing", "changed", "restarting", "restarted", "failed"]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "event": {"type": "str", "choices": EVENTS, "required": True},
            "state": {"type": "str", "choices": ["enabled", "disabled"], "required": True},
            "rpcs": {"type": "list", "elements": "str", "default": ["guest-exec", "guest-exec-status"]},
            "way": {"type": "str", "default": "ssh"},
            "files": {"type": "list", "elements": "dict", "required": True},
            "owner": {"type": "str"},
            "run": {"type": "str"},
            **DOMAIN_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    params = module.params
    wanted = Wanted(tuple(params["rpcs"]), allowed=params["state"] == "enabled")

    def work(hypervisor: LibvirtHypervisor) -> dict[str, Any]:
        domain = hypervisor.domain(params["name"])
        facts = audit_facts(
            domain.name,
            domain.uuid,
            params["way"],
            wanted,
            params["files"],
            run=params["run"],
            owner=params["owner"],
        )
        if module.check_mode:
            return {"changed": True, "audit": None}
        return {"changed": True, "audit": Audit(hypervisor.uri, hypervisor.clock).add(params["event"], facts)}

    run(module, work)


if __name__ == "__main__":
    main()
