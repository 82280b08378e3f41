#!/usr/bin/python
# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_exec
short_description: Run a command in a guest through its agent
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Runs a program or a shell script inside a guest through the QEMU guest agent, without SSH, Python or a network in
    the guest.
  - The task fails when the command returns other than zero or is ended by a signal. Use C(failed_when) and
    C(changed_when) as with M(ansible.builtin.command).
  - At its deadline the command and its children are ended, by SIGTERM and five seconds later by SIGKILL.
  - The command is a child of the guest agent. What restarts the agent, such as an upgrade of it, ends the command too.
    Long work belongs into a unit of its own, as M(kvm.fleet.guest_upgrade) does it.
extends_documentation_fragment:
  - kvm.fleet.hypervisor
  - kvm.fleet.hypervisor.domain
  - kvm.fleet.hypervisor.attributes
attributes:
  check_mode:
    support: partial
    details:
      - Whether the guest could run the command is checked, and O(creates) and O(removes) are looked at. The command is
        not run.
  diff_mode:
    support: none
options:
  argv:
    description:
      - The program and its arguments. No shell takes part.
    type: list
    elements: str
  script:
    description:
      - A script for the guest's C(/bin/sh).
    type: str
  stdin:
    description:
      - What the command reads on standard input. Without it, standard input is empty.
    type: str
  chdir:
    description:
      - The directory in the guest to run in, from which O(creates) and O(removes) are looked at, too. If it cannot be
        entered, nothing runs and RV(rc) is V(125), or the task fails at the look.
    type: str
  environment:
    description:
      - Variables to add to the environment that the guest agent has.
    type: dict
    default: {}
  creates:
    description:
      - A path in the guest, in which the shell's wildcards may be used. When it exists, nothing is run.
    type: str
  removes:
    description:
      - A path in the guest, in which the shell's wildcards may be used. When it does not exist, nothing is run.
    type: str
  timeout:
    description:
      - Seconds that the command may take.
    type: int
    default: 60
  max_output:
    description:
      - Bytes to return of standard output and of standard error each, at most 1500000. What goes beyond is dropped.
    type: int
    default: 1048576
"""

EXAMPLES = r"""
- name: Ask for failed units
  kvm.fleet.guest_exec:
    name: web1
    argv: [systemctl, --failed, --no-legend, --plain]
  delegate_to: hypervisor1
  changed_when: false

- name: Grow the file system once
  kvm.fleet.guest_exec:
    name: web1
    script: |
      set -e
      resize2fs /dev/vda
      touch /var/lib/resized
    creates: /var/lib/resized
    timeout: 600
  delegate_to: hypervisor1

- name: Write a file
  kvm.fleet.guest_exec:
    name: web1
    argv: [tee, /etc/motd]
    stdin: |
      Managed through the hypervisor.
  delegate_to: hypervisor1
"""

RETURN = r"""
rc:
  description: The return code. V(null) when a signal ended the command, V(0) when it was not run.
  returned: always, unless the guest could not run commands
  type: int
  sample: 0
signal:
  description: The number of the signal that ended the command, else V(null).
  returned: always, unless the guest could not run commands
  type: int
  sample: 9
stdout:
  description: What the command wrote to standard output, decoded as UTF-8 with replacement.
  returned: when the command was run
  type: str
  sample: "hello\n"
stdout_lines:
  description: The same, by lines.
  returned: when the command was run
  type: list
  elements: str
  sample: [hello]
stderr:
  description: What the command wrote to standard error, decoded as UTF-8 with replacement.
  returned: when the command was run
  type: str
  sample: ""
stderr_lines:
  description: The same, by lines.
  returned: when the command was run
  type: list
  elements: str
  sample: []
stdout_truncated:
  description: Whether standard output was longer than O(max_output).
  returned: when the command was run
  type: bool
  sample: false
stderr_truncated:
  description: Whether standard error was longer than O(max_output).
  returned: when the command was run
  type: bool
  sample: false
duration:
  description: Seconds from asking the agent to the command's end.
  returned: when the command was run
  type: float
  sample: 0.31
"""

import dataclasses
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.kvm.fleet.plugins.module_utils import _results
from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._domain import require_running
from ansible_collections.kvm.fleet.plugins.module_utils._exec import (
    Command,
    Outcome,
    check_command,
    failure_of,
    path_exists,
    run_command,
)
from ansible_collections.kvm.fleet.plugins.module_utils._libvirt import LibvirtHypervisor
from ansible_collections.kvm.fleet.plugins.module_utils._runner import DOMAIN_ARGUMENTS, run


def command_from(params: dict[str, Any]) -> Command:
    return Command(
        argv=tuple(params["argv"]) if params["argv"] is not None else ("/bin/sh", "-c", params["script"]),
        stdin=None if params["stdin"] is None else params["stdin"].encode("utf-8"),
        chdir=params["chdir"] or "",
        environment={name: str(value) for name, value in params["environment"].items()},
        timeout=params["timeout"],
        max_output=params["max_output"],
    )


def skip_reason(agent: GuestAgent, command: Command, params: dict[str, Any]) -> str | None:
    """Why the command need not be run, by 'creates' and 'removes'."""
    if params["creates"] and path_exists(agent, params["creates"], command.chdir):
        return f"{params['creates']} exists"
    if params["removes"] and not path_exists(agent, params["removes"], command.chdir):
        return f"{params['removes']} does not exist"
    return None


def result_of(outcome: Outcome) -> dict[str, Any]:
    result = {
        "changed": True,
        "rc": outcome.exit_code,
        **dataclasses.asdict(outcome),
        "stdout_lines": outcome.stdout.splitlines(),
        "stderr_lines": outcome.stderr.splitlines(),
    }
    del result["exit_code"]
    error = failure_of(outcome)
    if error:
        result.update(_results.failure(error), failed=True)
    return result


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "argv": {"type": "list", "elements": "str"},
            "script": {"type": "str"},
            "stdin": {"type": "str"},
            "chdir": {"type": "str"},
            "environment": {"type": "dict", "default": {}},
            "creates": {"type": "str"},
            "removes": {"type": "str"},
            "timeout": {"type": "int", "default": 60},
            "max_output": {"type": "int", "default": 1048576},
            **DOMAIN_ARGUMENTS,
        },
        mutually_exclusive=[("argv", "script")],
        required_one_of=[("argv", "script")],
        supports_check_mode=True,
    )

    def work(hypervisor: LibvirtHypervisor) -> dict[str, Any]:
        command = command_from(module.params)
        check_command(command)
        domain = hypervisor.domain(module.params["name"])
        require_running(domain.name, domain.state())
        agent = GuestAgent(domain, hypervisor.clock)
        agent.require("guest-exec", "guest-exec-status")
        skip = skip_reason(agent, command, module.params)
        if skip:
            return {"changed": False, "rc": 0, "signal": None, "msg": f"not run, since {skip}"}
        if module.check_mode:
            return {"changed": True, "rc": 0, "signal": None, "msg": "not run, in check mode"}
        return result_of(run_command(agent, command))

    run(module, work)


if __name__ == "__main__":
    main()
