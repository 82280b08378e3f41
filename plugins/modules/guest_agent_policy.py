#!/usr/bin/python
# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_agent_policy
short_description: Allow or block commands of a guest's agent
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Changes the RPC filter of a guest's QEMU guest agent, so that it allows or blocks C(guest-exec) or other commands.
  - The filter is edited where it stands, in whichever of the files decides it by the rules of systemd and of the agent
    itself. Other settings, comments and line ends stay. What a vendor ships below C(/usr) is never edited.
  - If the agent says that all is as wanted, no file is looked at.
  - A copy of each changed file is kept. What is changed, and each restart, is written to
    C(/var/lib/kvm-fleet/audit.jsonl) on the hypervisor before it is begun and when it has ended.
  - A task that fails after that has the last of these lines in its evidence (C(audit)). One that has none there has
    changed no setting and restarted nothing.
  - Afterwards the agent has to say what was wanted. Where it does not, the task fails, and the files get their old
    content back, on the image and with a second power cycle where the agent is gone by then. If that fails as well, the
    remedy names the copies.
  - An agent that hangs, or that may not tell what it allows (C(guest-info)), can be set up by O(way=offline). It is
    then allowed C(guest-info), C(guest-ping) and C(guest-sync) as well. Unless asked for this way, the module does not
    shut such a guest down where its settings are as wanted already.
  - A guest in which an upgrade that is on record is at work is not shut down (C(upgrade_running)). Where the agent does
    not say whether it is, the task goes on with a warning.
extends_documentation_fragment:
  - kvm.fleet.hypervisor
  - kvm.fleet.hypervisor.domain
  - kvm.fleet.hypervisor.attributes
attributes:
  check_mode:
    support: full
    details:
      - Where only O(way=offline) is open to a guest that runs, its files are read from its disks as they are at that
        moment. What it has not written out yet, for half a minute or so, is not seen. Where its disks make no sense
        while it runs, RV(files) is empty and RV(known) is V(false).
  diff_mode:
    support: full
options:
  state:
    description:
      - Whether the commands are to be allowed or blocked.
    type: str
    choices: [enabled, disabled]
    required: true
  rpcs:
    description:
      - The commands of the agent. Those that libvirt needs to speak to it cannot be blocked.
    type: list
    elements: str
    default: [guest-exec, guest-exec-status]
  way:
    description:
      - How to reach the guest's files. V(auto) takes the first of the others that is open, in their order.
      - V(exec) runs commands in the guest, which needs C(guest-exec), and has a transient unit restart the agent.
      - V(files) uses the agent's own commands for files, where they are allowed. A power cycle then restarts the agent.
      - V(offline) shuts the guest down gracefully, edits its image with libguestfs and starts it again. What can be
        refused is refused before that, by a look at its disks. A guest that is off stays off.
      - If none is open, the task fails with the error code C(no_way_open), and its evidence says why for each. With an
        account in the guest there is M(kvm.fleet.agent_policy_local).
    type: str
    choices: [auto, exec, files, offline]
    default: auto
  power_cycle:
    description:
      - Whether the guest may be shut down and started. V(files) and V(offline) need that.
    type: bool
    default: true
  shutdown_timeout:
    description:
      - Seconds that the guest may take to shut down. It is never forced, but left running.
    type: int
    default: 300
  agent_timeout:
    description:
      - Seconds to wait for the agent after it, or the guest, was restarted.
    type: int
    default: 300
  block_devices:
    description:
      - Whether disks that are block devices, such as logical volumes, may be edited by O(way=offline).
      - QEMU's lock on an image protects files only, since libvirt gives each QEMU device nodes of its own. Nothing
        keeps such a guest from being started meanwhile, by hand, by a cluster manager or with the hypervisor, and both
        would write. V(true) says that you see to that.
      - Where the domain runs all the same, what works on its disks is ended within a second or so, and the task fails.
        The disks are then as after a power failure.
    type: bool
    default: false
  owner:
    description:
      - Who is to answer for the change, for the audit. By default the user who logged in to the hypervisor.
    type: str
  run:
    description:
      - Id of the run that this is done in, which needs the guest's lease, see M(kvm.fleet.guest_lease). Without it, a
        guest under a live lease is refused.
    type: str
"""

EXAMPLES = r"""
- name: See which lines would have to change for guest-exec
  kvm.fleet.guest_agent_policy:
    name: web1
    state: enabled
  check_mode: true
  diff: true
  delegate_to: hypervisor1

- name: Allow guest-exec, but do not restart the guest for it
  kvm.fleet.guest_agent_policy:
    name: web1
    state: enabled
    power_cycle: false
  delegate_to: hypervisor1

- name: Block guest-exec and the agent's access to files
  kvm.fleet.guest_agent_policy:
    name: web1
    state: disabled
    rpcs: [guest-exec, guest-exec-status, guest-file-open]
  delegate_to: hypervisor1
"""

RETURN = r"""
way:
  description: The way that was taken, or would be. V(null) where nothing had to be done.
  returned: success
  type: str
  sample: files
settings:
  description: The settings that blocked each of the commands when the files were read, as far as they were.
  returned: success
  type: dict
  sample:
    guest-exec:
      - path: /etc/sysconfig/qemu-ga
        line: 8
        text: BLACKLIST_RPC=guest-file-open,guest-exec
        effect: blocks it
files:
  description: The files that were changed, or would be.
  returned: success
  type: list
  elements: dict
  contains:
    path:
      description: The file in the guest.
      type: str
      sample: /etc/sysconfig/qemu-ga
    backup:
      description: >-
        Where its old content is kept, for the same eyes as the file itself. V(null) in check mode, and for a file that
        was made.
      type: str
      sample: /etc/sysconfig/qemu-ga.kvm-fleet-backup
    backup_on:
      description: >-
        Whether that is on the V(guest) or on the V(hypervisor), where O(way=files) keeps it, since the agent makes
        files that every user of the guest can change.
      type: str
      sample: guest
    lines:
      description: The lines that change, each with C(before) and C(after). V(null) where there is no such line.
      type: list
      elements: dict
unseen:
  description: >-
    Directories of the guest that could not be listed by this way. A file in one of them could decide as well, which the
    agent's answer afterwards would show.
  returned: success
  type: list
  elements: str
  sample: [/etc/systemd/system/qemu-guest-agent.service.d]
restarted:
  description: Whether the agent was restarted, or would be, alone or together with its guest.
  returned: success
  type: bool
  sample: true
known:
  description: >-
    Whether RV(files) tells all. V(false) in check mode where they could only be read after a shutdown, see there.
  returned: success
  type: bool
  sample: true
proved:
  description: >-
    Whether the agent itself has said that all is as wanted. V(false) for a change in check mode, and a guest that is
    off.
  returned: success
  type: bool
  sample: true
audit:
  description: >-
    The last line that was written to the audit on the hypervisor. V(null) where no file was changed and nothing was
    restarted. Its C(event) is V(changed), or V(restarted) where no file had to be changed.
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
    way: files
    state: enabled
    rpcs: [guest-exec, guest-exec-status]
    files: []
    run: null
    proved: true
    uri: qemu:///system
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.kvm.fleet.plugins.module_utils import _image, _results
from ansible_collections.kvm.fleet.plugins.module_utils._lease import working
from ansible_collections.kvm.fleet.plugins.module_utils._libvirt import LibvirtHypervisor
from ansible_collections.kvm.fleet.plugins.module_utils._policy import Wanted
from ansible_collections.kvm.fleet.plugins.module_utils._policy_ways import Request, Way, apply_policy
from ansible_collections.kvm.fleet.plugins.module_utils._power import PowerOptions
from ansible_collections.kvm.fleet.plugins.module_utils._runner import DOMAIN_ARGUMENTS, run


def request_from(params: dict[str, Any]) -> Request:
    return Request(
        wanted=Wanted(tuple(params["rpcs"]), allowed=params["state"] == "enabled"),
        way=None if params["way"] == "auto" else Way(params["way"]),
        power_cycle=params["power_cycle"],
        power=PowerOptions(shutdown_timeout=params["shutdown_timeout"], agent_timeout=params["agent_timeout"]),
        block_devices=params["block_devices"],
        run=params["run"],
        owner=params["owner"],
    )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["enabled", "disabled"], "required": True},
            "rpcs": {"type": "list", "elements": "str", "default": ["guest-exec", "guest-exec-status"]},
            "way": {"type": "str", "choices": ["auto", "exec", "files", "offline"], "default": "auto"},
            "power_cycle": {"type": "bool", "default": True},
            "shutdown_timeout": {"type": "int", "default": 300},
            "agent_timeout": {"type": "int", "default": 300},
            "block_devices": {"type": "bool", "default": False},
            "owner": {"type": "str"},
            "run": {"type": "str"},
            **DOMAIN_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    request = request_from(module.params)

    def work(hypervisor: LibvirtHypervisor) -> dict[str, Any]:
        request.check()
        domain = hypervisor.domain(module.params["name"])
        with working(hypervisor, domain, request.run, check=module.check_mode, warn=module.warn) as recorder:
            return _results.policy(apply_policy(hypervisor, domain, request, recorder, _image, check=module.check_mode))

    run(module, work)


if __name__ == "__main__":
    main()
