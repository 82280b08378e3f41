#!/usr/bin/python
# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: group_lease
short_description: Take one of the places of a group of guests, and let go of it again
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Of a group of guests, such as the members of a cluster, no more than O(at_once) are worked on at once. A guest has
    one of the group's places for that long, whichever run works on it, from whichever controller.
  - The places are kept in C(/var/lib/kvm-fleet/groups) on the machine that the task runs on. Runs that are to know of
    each other have to use the same one. It need not be a hypervisor.
  - A place goes stale as the lease of a guest does (M(kvm.fleet.guest_lease)), O(ttl) seconds after it was last taken,
    or when that machine is rebooted.
  - To be called with the guest's own lease, so that no two runs have the same guest. A run that has a guest takes over
    the place that an earlier one has left it with.
extends_documentation_fragment:
  - kvm.fleet.hypervisor.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
options:
  state:
    description:
      - V(present) takes a place, or renews it. V(absent) lets go of it.
    type: str
    choices: [present, absent]
    default: present
  group:
    description:
      - The group's name.
    type: str
    required: true
  at_once:
    description:
      - How many places the group has.
    type: int
    default: 1
  member:
    description:
      - The guest's name, for others who wait for it.
    type: str
    required: true
  uuid:
    description:
      - The UUID of the guest's domain, by which it is told from others.
    type: str
    required: true
  run:
    description:
      - The run's id. V(absent) leaves a place alone while another run is at work on the guest.
    type: str
    required: true
  owner:
    description:
      - Who runs it, for others who meet the place.
    type: str
    required: true
  ttl:
    description:
      - Seconds until the place is free although nobody has let go of it. Longer than the guest is worked on.
    type: int
    default: 3600
  outcome:
    description:
      - What became of the guest. Required for O(state=absent).
      - One that has V(failed) may be down, so it keeps the place for another O(ttl), or gets one, until a run on this
        guest goes well. Nobody needs to wait for that; others are refused at once. What was V(refused) is left as it
        was found.
    type: str
    choices: [unchanged, changed, upgraded, restarted, repaired, rolled_back, rollback_failed, failed, refused]
  uri:
    description:
      - The guest's libvirt connection. With that of a user's own session, the places are kept in the user's
        C(~/.local/state/kvm-fleet/groups). No connection is made.
    type: str
    default: qemu:///system
notes:
  - A failed task has RV(ignore:error_code), RV(ignore:transient), RV(ignore:remedy) and RV(ignore:evidence) besides
    C(msg). The codes are listed in the collection's documentation.
"""

EXAMPLES = r"""
- name: Wait for a place, for ten minutes at most
  kvm.fleet.group_lease:
    group: database
    member: db1
    uuid: 2f8a6c8e-58b4-4a0e-9d0b-0b1d3a7d0c55
    run: 20261124-003000-3f2a9c1e
    owner: root@control1
  delegate_to: hypervisor1
  register: result
  until: result is not failed or not result.transient | default(false)
  retries: 60
  delay: 10

- name: Let go of it
  kvm.fleet.group_lease:
    group: database
    member: db1
    uuid: 2f8a6c8e-58b4-4a0e-9d0b-0b1d3a7d0c55
    run: 20261124-003000-3f2a9c1e
    owner: root@control1
    state: absent
    outcome: upgraded
  delegate_to: hypervisor1
"""

RETURN = r"""
places:
  description: The group's places that are taken then, or would be in check mode.
  returned: success
  type: list
  elements: dict
  contains:
    member:
      description: The guest's name.
      type: str
      sample: db1
    uuid:
      description: Its domain's UUID.
      type: str
      sample: 2f8a6c8e-58b4-4a0e-9d0b-0b1d3a7d0c55
    run:
      description: The run that works on it.
      type: str
      sample: 20261124-003000-3f2a9c1e
    owner:
      description: Who runs that.
      type: str
      sample: root@control1
    taken:
      description: Since when, in UTC.
      type: str
      sample: "2026-03-01T02:00:12Z"
    failed:
      description: Whether it has failed, and keeps its place for that.
      type: bool
      sample: false
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.kvm.fleet.plugins.module_utils import _group_lease, _results
from ansible_collections.kvm.fleet.plugins.module_utils._clock import SystemClock
from ansible_collections.kvm.fleet.plugins.module_utils._record import OUTCOMES, Claim
from ansible_collections.kvm.fleet.plugins.module_utils._runner import run_here
from ansible_collections.kvm.fleet.plugins.module_utils._store import GroupStore, groups_directory


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "group": {"type": "str", "required": True},
            "at_once": {"type": "int", "default": 1},
            "member": {"type": "str", "required": True},
            "uuid": {"type": "str", "required": True},
            "run": {"type": "str", "required": True},
            "owner": {"type": "str", "required": True},
            "ttl": {"type": "int", "default": 3600},
            "outcome": {"type": "str", "choices": list(OUTCOMES)},
            "uri": {"type": "str", "default": "qemu:///system"},
        },
        required_if=[("state", "absent", ["outcome"])],
        supports_check_mode=True,
    )
    given = module.params
    store, clock = GroupStore(groups_directory(given["uri"])), SystemClock()

    def work() -> dict[str, Any]:
        claim = Claim(given["member"], given["uuid"], given["run"], given["owner"], given["ttl"])
        if given["state"] == "present":
            group, news = _group_lease.take(
                store, clock, given["group"], claim, given["at_once"], check=module.check_mode
            )
        else:
            group, news = _group_lease.leave(
                store, clock, given["group"], claim, given["outcome"], check=module.check_mode
            )
        return {"changed": news, "places": _results.places(group)}

    run_here(module, work)


if __name__ == "__main__":
    main()
