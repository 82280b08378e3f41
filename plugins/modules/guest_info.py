#!/usr/bin/python
# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_info
short_description: Tell what guests are, and whether they can be managed through their agents
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Looks at all guests of a hypervisor, or at some, through their agents. A guest that is off, paused, crashed or being
    migrated, or whose agent is not to be had, is told of with what is in the way and what to do about it.
  - Starts no process in a guest, unless O(run_commands) is set. What cannot be known without is V(null).
  - Changes nothing.
extends_documentation_fragment:
  - kvm.fleet.hypervisor
  - kvm.fleet.hypervisor.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
options:
  names:
    description:
      - The guests to look at, matched exactly. Without it, all of them.
    type: list
    elements: str
  run_commands:
    description:
      - Run one command in each guest that allows it. It finds out what no file tells, such as failed units, the package
        manager and the newest kernel that is installed.
    type: bool
    default: false
  timeout:
    description:
      - Seconds that each guest has to answer. What it has told by then is returned, and the rest is V(null).
      - The guests are looked at one after the other. One that hangs takes about five seconds, by libvirt's own limit;
        one whose agent another program is waiting for takes up to thirty more.
    type: int
    default: 15
"""

EXAMPLES = r"""
- name: Look at every guest of the hypervisor
  kvm.fleet.guest_info:
  register: result

- name: Say which guests cannot be upgraded, and what to do
  ansible.builtin.debug:
    msg: "{{ item.name }}: {{ item.problems | map(attribute='msg') | join('; ') }}"
  loop: "{{ result.guests | rejectattr('manageable') }}"
  loop_control:
    label: "{{ item.name }}"

- name: Look closely at one guest
  kvm.fleet.guest_info:
    names: [web1]
    run_commands: true
    timeout: 60
  delegate_to: hypervisor1
"""

RETURN = r"""
guests:
  description: The guests, by name, or in the order of O(names).
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The domain's name.
      type: str
      sample: web1
    uuid:
      description: The domain's UUID.
      type: str
      sample: 2f8a6c8e-58b4-4a0e-9d0b-0b1d3a7d0c55
    state:
      description: >-
        V(running), V(migrating), V(paused), V(shutting_down), V(shut_off), V(crashed), V(suspended), V(blocked) or
        V(no_state). V(null) when libvirt does not tell.
      type: str
      sample: running
    agent:
      description: The guest's agent.
      type: dict
      contains:
        state:
          description: >-
            V(answering); V(silent) when something in the guest holds the channel open and does not answer;
            V(disconnected) when nobody there has opened it; V(absent) when the domain has no channel; V(not_running)
            when the guest does not run; V(garbled) when what answers is not of the agent's protocol; V(unknown) when
            libvirt does not tell.
          type: str
          sample: answering
        version:
          description: The agent's version.
          type: str
          sample: 7.2.22
        since:
          description: >-
            When the agent was started, in UTC by the guest's clock. V(null) where neither its files can be read nor
            commands be run.
          type: str
          sample: "2026-03-01T02:00:31Z"
        rpcs:
          description: The agent's commands that this collection has a use for, by name.
          type: dict
          contains:
            NAME:
              description: One of them, such as C(guest-exec).
              type: dict
              contains:
                allowed:
                  description: Whether the agent allows it. V(null) when the agent does not answer.
                  type: bool
                  sample: true
                needed_for:
                  description: What it is needed for.
                  type: str
                  sample: running commands, and so all upgrades
                setting:
                  description: >-
                    The first of the settings in the guest that block it, as M(kvm.fleet.guest_agent_policy) tells them.
                    V(null) where none does, or it was not found.
                  type: dict
                  sample:
                    path: /etc/sysconfig/qemu-ga
                    line: 8
                    text: BLACKLIST_RPC=guest-file-open,guest-exec
                    effect: blocks it
    manageable:
      description: Whether nothing was found that keeps this collection from upgrading the guest.
      type: bool
      sample: false
    problems:
      description: What was found.
      type: list
      elements: dict
      contains:
        error_code:
          description: The code that a task on this guest would fail with.
          type: str
          sample: agent_command_blocked
        msg:
          description: What is in the way.
          type: str
          sample: the guest agent does not allow guest-exec, guest-exec-status
        remedy:
          description: What to do about it.
          type: str
          sample: Allow it with the playbook kvm.fleet.enable_guest_exec.
    os:
      description: The guest's system, each of it V(null) or empty where it is not known.
      type: dict
      contains:
        id:
          description: The C(ID) of its os-release.
          type: str
          sample: rocky
        like:
          description: The C(ID_LIKE) of its os-release.
          type: list
          elements: str
          sample: [rhel, centos, fedora]
        name:
          description: Its name for people.
          type: str
          sample: Rocky Linux 9.4 (Blue Onyx)
        version:
          description: The C(VERSION_ID) of its os-release.
          type: str
          sample: "9.4"
        kernel_running:
          description: The kernel that runs.
          type: str
          sample: 5.14.0-427.13.1.el9_4.x86_64
        kernel_installed:
          description: The newest installed kernel of the same flavour. V(null) without O(run_commands).
          type: str
          sample: 5.14.0-427.42.1.el9_4.x86_64
        init:
          description: The name of process 1.
          type: str
          sample: systemd
        package_manager:
          description: V(apt), V(dnf) or V(zypper). V(null) without O(run_commands).
          type: str
          sample: dnf
    selinux:
      description: SELinux in the guest.
      type: dict
      contains:
        mode:
          description: V(enforcing), V(permissive) or V(disabled). V(null) where it is not known.
          type: str
          sample: enforcing
        denies_package_management:
          description: >-
            Whether it keeps the agent from running the package manager. Without O(run_commands) this is concluded from
            the agent's type, and V(null) where the role C(kvm.fleet.selinux_runner) has left its program in the guest,
            since only a command tells whether that one is let through. With it the guest's kernel is asked.
          type: bool
          sample: true
    reboot_required:
      description: >-
        Whether the guest asks for a reboot. Without O(run_commands) this is V(true) or, since not every system says so
        in a file, V(null).
      type: bool
      sample: true
    reboot_reasons:
      description: What asks for it.
      type: list
      elements: str
      sample: [/run/reboot-required (linux-image-6.1.0-37-amd64)]
    failed_units:
      description: The failed units of systemd. V(null) without O(run_commands), or without systemd.
      type: list
      elements: str
      sample: [nginx.service]
    filesystems:
      description: The file systems on the guest's disks. V(null) where it is not known.
      type: list
      elements: dict
      contains:
        mountpoint:
          description: Where it is mounted.
          type: str
          sample: /
        type:
          description: Its type.
          type: str
          sample: ext4
        total:
          description: Its size in bytes. V(null) where the agent is too old to tell.
          type: int
          sample: 10434699264
        free:
          description: The bytes that are free for others than root. V(null) where the agent is too old to tell.
          type: int
          sample: 7340032000
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.kvm.fleet.plugins.module_utils import _results
from ansible_collections.kvm.fleet.plugins.module_utils._guest_info import InfoOptions, look_at_guests
from ansible_collections.kvm.fleet.plugins.module_utils._libvirt import LibvirtHypervisor
from ansible_collections.kvm.fleet.plugins.module_utils._runner import HYPERVISOR_ARGUMENTS, run


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str"},
            "run_commands": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 15},
            **HYPERVISOR_ARGUMENTS,
        },
        supports_check_mode=True,
    )

    def work(hypervisor: LibvirtHypervisor) -> dict[str, Any]:
        options = InfoOptions(run_commands=module.params["run_commands"], timeout=module.params["timeout"])
        found = look_at_guests(hypervisor, module.params["names"], options)
        return {"changed": False, "guests": [_results.guest(guest) for guest in found]}

    run(module, work)


if __name__ == "__main__":
    main()
