#!/usr/bin/python
# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: domain_rollback
short_description: Bring a guest back to a snapshot, and up
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Reverts the domain to a snapshot that M(kvm.fleet.domain_snapshot) has made, starts it where it is off then, waits
    for its guest agent, and sees that the guest has come up. All that the guest has written since is lost.
  - Of an external snapshot, the layers are made empty for that, while the guest is off. It stays, and can be gone back
    to again.
  - A snapshot that holds the guest's RAM brings back what ran then. The guest's clock is set, as far as its agent can.
    Where the installed QEMU refuses the RAM of an external one, the guest is started from the snapshot's disks, as
    after a power loss, and the task fails all the same (C(saved_state_refused)).
  - Check mode tells what would be lost.
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
  snapshot:
    description:
      - The snapshot's name.
    type: str
    required: true
  agent_timeout:
    description:
      - Seconds for the guest agent to answer. V(0) does not wait for it and does not ask for failed units, for guests
        that have no agent.
    type: int
    default: 300
  failed_units:
    description:
      - Units of the guest that had failed before the snapshot. Others that have failed when it is back make the
        rollback fail. Without it, those that have failed are told, and not judged.
    type: list
    elements: str
  run:
    description:
      - Id of the run that this is done in, which needs the guest's lease, see M(kvm.fleet.guest_lease). Without it, a
        guest under a live lease is refused.
      - Of a rollback of an earlier run that was cut off, only what is left is done.
    type: str
"""

EXAMPLES = r"""
- name: Bring the guest back to how it was before the upgrade
  kvm.fleet.domain_rollback:
    name: web1
    snapshot: pre-upgrade-20261015-143022
  delegate_to: hypervisor1
"""

RETURN = r"""
snapshot:
  description: The name of the snapshot that the guest is brought back to.
  returned: success
  type: str
  sample: pre-upgrade-20261015-143022
lost:
  description: What the guest has written since, which is lost.
  returned: success
  type: dict
  contains:
    since:
      description: When the snapshot was made, in UTC.
      type: str
      sample: "2026-10-15T14:30:22Z"
    seconds:
      description: How long ago that was.
      type: int
      sample: 7380
    written:
      description: >-
        How many bytes of it are known, which is what a QEMU process has written that was started since. V(null) where
        none was.
      type: int
      sample: 73400320
reverted:
  description: Whether the domain was reverted. V(false) where a run that was cut off had done that already.
  returned: success
  type: bool
  sample: true
started:
  description: Whether it was started after that. A domain whose RAM is in the snapshot runs by itself.
  returned: success
  type: bool
  sample: false
failed_units:
  description: The guest's units that have failed when it is back. V(null) where it was not asked.
  returned: success
  type: list
  elements: str
  sample: []
clock_set:
  description: Whether the clock of a guest could be set that runs on from its RAM. V(null) where there was no need.
  returned: success
  type: bool
  sample: true
"""

from dataclasses import asdict
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.kvm.fleet.plugins.module_utils._lease import working
from ansible_collections.kvm.fleet.plugins.module_utils._libvirt import LibvirtHypervisor
from ansible_collections.kvm.fleet.plugins.module_utils._observe import observe
from ansible_collections.kvm.fleet.plugins.module_utils._rollback import RollbackOptions, rollback
from ansible_collections.kvm.fleet.plugins.module_utils._runner import DOMAIN_ARGUMENTS, run


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "snapshot": {"type": "str", "required": True},
            "agent_timeout": {"type": "int", "default": 300},
            "failed_units": {"type": "list", "elements": "str"},
            "run": {"type": "str"},
            **DOMAIN_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    given, check = module.params, module.check_mode
    units = given["failed_units"]
    options = RollbackOptions(given["snapshot"], given["agent_timeout"], None if units is None else tuple(units))

    def work(hypervisor: LibvirtHypervisor) -> dict[str, Any]:
        domain = hypervisor.domain(given["name"])
        with working(hypervisor, domain, given["run"], check=check) as recorder:
            observed = observe(hypervisor, domain)
            done = rollback(hypervisor, domain, observed, options, recorder, check=check)
        return {
            "changed": True,
            "snapshot": done.snapshot.name,
            "lost": asdict(done.loss),
            "reverted": done.reverted,
            "started": done.started,
            "failed_units": None if done.failed_units is None else list(done.failed_units),
            "clock_set": done.clock_set,
            "diff": {"before": "as it is now\n", "after": f"as it was at {done.loss.since} ({done.snapshot.name})\n"},
        }

    run(module, work)


if __name__ == "__main__":
    main()
