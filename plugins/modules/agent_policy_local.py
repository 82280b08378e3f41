#!/usr/bin/python
# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: agent_policy_local
short_description: Allow or block commands of the guest agent, from within the guest
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Does in the guest what M(kvm.fleet.guest_agent_policy) does through its agent, over whichever connection Ansible has
    to the guest. For guests whose agent lets nobody in and which are not to be shut down.
  - Edits the same files in the same way, keeps a copy of each beside it, and restarts the agent. Or puts back what it
    has changed so.
  - It does not know what the agent then says. M(kvm.fleet.guest_agent_policy) does, which finds nothing left to do,
    and M(kvm.fleet.guest_audit) writes down on the hypervisor what was changed. The playbook
    C(kvm.fleet.agent_policy) calls all of them.
  - It is in no action group, since it takes none of the options that the others share.
extends_documentation_fragment: []
attributes:
  check_mode:
    description: Can run in check mode and tell what it would do, without changing anything.
    support: full
  diff_mode:
    description: Shows what has changed, or would change, in diff mode.
    support: full
  platform:
    description: The guest's operating system.
    support: full
    platforms: linux
requirements:
  - Python 3.9 or later in the guest
options:
  state:
    description:
      - Whether the commands are to be allowed or blocked. It or O(put_back) is required.
    type: str
    choices: [enabled, disabled]
  rpcs:
    description:
      - The commands of the agent. Those that libvirt needs to speak to it cannot be blocked.
    type: list
    elements: str
    default: [guest-exec, guest-exec-status]
  restart:
    description:
      - Restart the agent even where no file has to change. For who has asked it by M(kvm.fleet.guest_agent_policy) and
        heard that it does otherwise than its files say, as after a task that was cut off before the restart.
    type: bool
    default: false
  put_back:
    description:
      - Files as an earlier task returned them. They are given the content of their copies, those that were made are
        removed, and the agent is restarted. For who has asked it by M(kvm.fleet.guest_agent_policy) and heard that it
        does not do what was wanted.
    type: list
    elements: dict
"""

EXAMPLES = r"""
- name: Allow guest-exec
  kvm.fleet.agent_policy_local:
    state: enabled
  become: true
  register: changed

- name: Undo that
  kvm.fleet.agent_policy_local:
    put_back: "{{ changed.files }}"
  become: true
"""

RETURN = r"""
settings:
  description: The settings that blocked each of the commands.
  returned: with O(state)
  type: dict
  sample:
    guest-exec:
      - path: /etc/sysconfig/qemu-ga
        line: 8
        text: BLACKLIST_RPC=guest-file-open,guest-exec
        effect: blocks it
files:
  description: The files that were changed, or would be, as M(kvm.fleet.guest_agent_policy) tells them.
  returned: success
  type: list
  elements: dict
  sample:
    - path: /etc/sysconfig/qemu-ga
      backup: /etc/sysconfig/qemu-ga.kvm-fleet-backup
      backup_on: guest
      lines:
        - before: BLACKLIST_RPC=guest-file-open,guest-exec
          after: BLACKLIST_RPC=guest-file-open
restarted:
  description: Whether the agent was restarted, or would be.
  returned: success
  type: bool
  sample: true
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.kvm.fleet.plugins.module_utils import _results
from ansible_collections.kvm.fleet.plugins.module_utils._clock import SystemClock
from ansible_collections.kvm.fleet.plugins.module_utils._policy import Wanted
from ansible_collections.kvm.fleet.plugins.module_utils._policy_here import apply_here, put_back_here
from ansible_collections.kvm.fleet.plugins.module_utils._runner import run_here


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["enabled", "disabled"]},
            "rpcs": {"type": "list", "elements": "str", "default": ["guest-exec", "guest-exec-status"]},
            "restart": {"type": "bool", "default": False},
            "put_back": {"type": "list", "elements": "dict"},
        },
        mutually_exclusive=[("state", "put_back")],
        required_one_of=[("state", "put_back")],
        supports_check_mode=True,
    )
    params = module.params

    def work() -> dict[str, Any]:
        if params["state"]:
            wanted = Wanted(tuple(params["rpcs"]), allowed=params["state"] == "enabled")
            report = apply_here(wanted, SystemClock(), restart=params["restart"], check=module.check_mode)
        else:
            copies = {file["path"]: file["backup"] for file in params["put_back"]}
            report = put_back_here(copies, SystemClock(), check=module.check_mode)
        told = _results.policy(report)
        return {key: told[key] for key in ("changed", "settings", "files", "restarted", "diff")}

    run_here(module, work)


if __name__ == "__main__":
    main()
