#!/usr/bin/python
# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: domain_snapshot_prune
short_description: Delete snapshots of a domain that have had their time
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Deletes snapshots that M(kvm.fleet.domain_snapshot) has made, and no others. The layers of external ones are
    committed into the disks, so that nothing is lost that the guest has written.
  - A snapshot stays that O(keep) or O(days) would keep, unless it does not fit into the O(budget).
  - All of them stay of a guest that is not known to be well. One is where the last run on it ended well, with nothing
    left unfinished, and its domain is running or shut off. A snapshot that was made after that run stays as well.
  - A guest under a live lease, see M(kvm.fleet.guest_lease), is refused.
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
  keep:
    description:
      - How many of the newest snapshots stay, whatever their age.
    type: int
    default: 0
  days:
    description:
      - Snapshots that are younger than so many days stay.
    type: float
    default: 7
  budget:
    description:
      - Bytes that the snapshots may hold together, by the sizes that are known, as a number or as V(20G). The oldest go
        until the others fit. No budget takes the newest, whatever its size. No limit, unless it is set.
    type: bytes
"""

EXAMPLES = r"""
- name: Delete snapshots that are older than a week, but for the newest
  kvm.fleet.domain_snapshot_prune:
    name: web1
    keep: 1
  delegate_to: hypervisor1
"""

RETURN = r"""
pruned:
  description: The snapshots that were deleted, or would be in check mode, newest first.
  returned: success
  type: list
  elements: dict
  contains: &snapshot
    name:
      description: The snapshot's name.
      type: str
      sample: pre-upgrade-20261015-143022
    created:
      description: When it was made, in seconds since the epoch.
      type: int
      sample: 1792074622
    size:
      description: >-
        Bytes of RAM that an internal one holds. It may keep blocks of the disks as well, which are not counted, since
        qcow2 does not tell. Of an external one, bytes that its layers and its RAM take up. V(null) when the hypervisor
        has no qemu-img to ask, or it does not say.
      type: int
      sample: 173015040
    reason:
      description: Why it stays or goes.
      type: str
      sample: older than 7 days
kept:
  description: The snapshots of this collection that stay, newest first.
  returned: success
  type: list
  elements: dict
  contains: *snapshot
freed:
  description: >-
    Bytes that were freed on the hypervisor's file systems, as measured. In check mode, the sizes of what would be
    deleted together, as far as they are known: of internal ones at least so many, of external ones less where the disks
    grow by what is committed into them. V(null) when it cannot be measured, as on a block device.
  returned: success
  type: int
  sample: 173015040
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.kvm.fleet.plugins.module_utils import _prune
from ansible_collections.kvm.fleet.plugins.module_utils._lease import working
from ansible_collections.kvm.fleet.plugins.module_utils._libvirt import LibvirtHypervisor
from ansible_collections.kvm.fleet.plugins.module_utils._retention import Limits
from ansible_collections.kvm.fleet.plugins.module_utils._runner import DOMAIN_ARGUMENTS, run


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "keep": {"type": "int", "default": 0},
            "days": {"type": "float", "default": 7},
            "budget": {"type": "bytes"},
            **DOMAIN_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    limits = Limits(module.params["keep"], module.params["days"], module.params["budget"])

    def work(hypervisor: LibvirtHypervisor) -> dict[str, Any]:
        limits.check()
        domain = hypervisor.domain(module.params["name"])
        with working(hypervisor, domain, None, check=module.check_mode):
            return _prune.prune(hypervisor, domain, limits, check=module.check_mode)

    run(module, work)


if __name__ == "__main__":
    main()
