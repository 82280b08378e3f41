#!/usr/bin/python
# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: domain_power
short_description: Shut a domain down gracefully, start it, or power-cycle it
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Brings a domain into the wanted state and proves it.
  - A power cycle is one operation. It ends when the guest agent answers from a new QEMU process, and from a new boot
    of the guest where the agent can tell. A reboot inside the guest would keep the old QEMU.
  - A domain that would not survive a shutdown is refused before anything is changed, such as a transient one, or one
    with a stale managed save image.
  - While an upgrade that is on record is at work in the guest, nothing shuts it down (C(upgrade_running)). For
    O(state=stopped), where the agent does not say so within half a minute, the task goes on with a warning.
extends_documentation_fragment:
  - kvm.fleet.hypervisor
  - kvm.fleet.hypervisor.domain
  - kvm.fleet.hypervisor.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
options:
  state:
    description:
      - V(started) starts a domain that is off, V(stopped) shuts down one that runs.
      - V(restarted) does both, and refuses a domain that is off.
    type: str
    choices: [started, stopped, restarted]
    required: true
  method:
    description:
      - How to ask the guest to shut down, by the ACPI power button or through its agent.
    type: str
    choices: [acpi, agent]
    default: acpi
  shutdown_timeout:
    description:
      - Seconds that the guest may take to shut down. The power button is pressed again every 30 seconds.
    type: int
    default: 300
  force:
    description:
      - What to do when the guest is still there at the deadline. V(true) ends it as pulling the plug would, and what it
        has not written to disk is lost. V(false) leaves it running and fails.
      - RV(forced) tells when that happened.
    type: bool
    default: false
  agent_timeout:
    description:
      - Seconds to wait for the guest agent after a start. V(0) does not wait, for guests that have no agent.
      - Unless it is V(0), a guest whose agent is silent is refused before it is shut down for V(restarted).
    type: int
    default: 300
  run:
    description:
      - Id of the run that this is done in, which needs the guest's lease, see M(kvm.fleet.guest_lease). Without it, a
        guest under a live lease is refused.
      - A run restarts a guest once for what it has changed. O(state=restarted) brings a restart to its end that an
        earlier run had begun before it was cut off. A guest that is off is then started, since it was that run that
        shut it down. A restart that was proved is not repeated, unless packages were upgraded since, or QEMU is
        outdated again.
      - O(state=stopped) is then the beginning of such a restart, O(state=restarted) its end. When the run dies in
        between, the next one starts the guest.
    type: str
"""

EXAMPLES = r"""
- name: Put a guest on the installed QEMU
  kvm.fleet.domain_power:
    name: web1
    state: restarted
  delegate_to: hypervisor1

- name: Shut a guest down, and pull the plug if it does not comply within two minutes
  kvm.fleet.domain_power:
    name: web1
    state: stopped
    shutdown_timeout: 120
    force: true
  delegate_to: hypervisor1
"""

RETURN = r"""
restarted:
  description: >-
    Whether the domain is on a new QEMU process, by this task or by an earlier one of O(run), or would be after it.
    Always V(false) unless O(state=restarted).
  returned: success
  type: bool
  sample: true
steps:
  description: What was done, or would be done in check mode. A selection of V(shut_down), V(start), V(wait_for_agent).
  returned: success
  type: list
  elements: str
  sample: [shut_down, start, wait_for_agent]
forced:
  description: Whether the domain was ended by force.
  returned: success
  type: bool
  sample: false
transitions:
  description: The states that the domain was seen in, and since when.
  returned: success
  type: list
  elements: dict
  contains:
    state:
      description: A state, as M(kvm.fleet.domain_info) names them.
      type: str
      sample: shut_off
    at:
      description: When it was first seen, in UTC.
      type: str
      sample: "2026-03-01T02:00:12Z"
before:
  description: The QEMU process and the guest's boot before a shutdown.
  returned: success
  type: dict
  contains:
    pid:
      description: Process id of QEMU. V(null) when nothing ran or it was not looked at.
      type: int
      sample: 8718
    started:
      description: When that process was started, in UTC.
      type: str
      sample: "2026-03-01T02:00:12Z"
    boot_id:
      description: The guest kernel's id of its boot. V(null) when the guest could not be asked.
      type: str
      sample: 0b1d3a7d-2f8a-4a0e-9d0b-6c8e58b40c55
after:
  description: The same after a start.
  returned: success
  type: dict
  contains:
    pid:
      description: Process id of QEMU. V(null) when nothing ran or it was not looked at.
      type: int
      sample: 8718
    started:
      description: When that process was started, in UTC.
      type: str
      sample: "2026-03-01T02:00:12Z"
    boot_id:
      description: The guest kernel's id of its boot. V(null) when the guest could not be asked.
      type: str
      sample: 0b1d3a7d-2f8a-4a0e-9d0b-6c8e58b40c55
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.kvm.fleet.plugins.module_utils import _power, _restart, _results
from ansible_collections.kvm.fleet.plugins.module_utils._domain import ACTIVE_STATES, ShutdownMethod
from ansible_collections.kvm.fleet.plugins.module_utils._lease import working
from ansible_collections.kvm.fleet.plugins.module_utils._libvirt import LibvirtHypervisor
from ansible_collections.kvm.fleet.plugins.module_utils._observe import observe
from ansible_collections.kvm.fleet.plugins.module_utils._power import PowerOptions, PowerReport, PowerState, Step
from ansible_collections.kvm.fleet.plugins.module_utils._runner import DOMAIN_ARGUMENTS, run


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["started", "stopped", "restarted"], "required": True},
            "method": {"type": "str", "choices": ["acpi", "agent"], "default": "acpi"},
            "shutdown_timeout": {"type": "int", "default": 300},
            "force": {"type": "bool", "default": False},
            "agent_timeout": {"type": "int", "default": 300},
            "run": {"type": "str"},
            **DOMAIN_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    options = PowerOptions(
        method=ShutdownMethod(module.params["method"]),
        shutdown_timeout=module.params["shutdown_timeout"],
        force=module.params["force"],
        agent_timeout=module.params["agent_timeout"],
    )
    wanted = PowerState(module.params["state"])

    def work(hypervisor: LibvirtHypervisor) -> dict[str, Any]:
        options.check()
        domain = hypervisor.domain(module.params["name"])
        with working(hypervisor, domain, module.params["run"], check=module.check_mode) as recorder:
            observed = observe(hypervisor, domain)
            if wanted is PowerState.RESTARTED:
                steps, report = _restart.restart(
                    hypervisor, domain, observed, options, recorder, check=module.check_mode
                )
            elif wanted is PowerState.STOPPED:
                steps, report = _restart.stop(hypervisor, domain, observed, options, recorder, check=module.check_mode)
            else:
                steps = _power.plan(observed, wanted, options)
                _power.check(hypervisor, domain, steps, options)
                report = PowerReport() if module.check_mode else _power.apply(hypervisor, domain, steps, options)
        return {
            "changed": bool({Step.SHUT_DOWN, Step.START} & set(steps)),
            "restarted": wanted is PowerState.RESTARTED,
            "steps": [step.value for step in steps],
            **_results.power(report),
            "diff": difference(observed.state in ACTIVE_STATES, steps),
        }

    run(module, work)


def difference(active: bool, steps: tuple[Step, ...]) -> dict[str, str]:
    """In words, since a restart begins and ends in the same state."""
    before = "running" if active else "off"
    after = "running on a new QEMU process" if Step.START in steps else ("off" if Step.SHUT_DOWN in steps else before)
    return {"before": f"{before}\n", "after": f"{after}\n"}


if __name__ == "__main__":
    main()
