# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: plan_batches
short_description: Plan in which batches guests are worked on
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Puts guests into batches. They keep their order, unless something speaks against it.
  - A guest comes in a later batch than all guests of the run that it depends on, directly or not (C(kvm_depends_on)).
  - Of the members of a C(kvm_group), no more are in a batch than the least C(kvm_group_at_once) says that any of them
    has, one without it, and never all that are known.
  - Canaries, those with C(kvm_canary) and as many others as O(canaries) asks for, come in batches of their own before
    all others, but for what they depend on.
  - These variables are a guest's own in the inventory, or what its domain's metadata says, as
    M(kvm.fleet.domain_info) returns it.
  - Refuses by name what cannot be planned, such as guests that depend on each other, or on one that nobody
    knows. While a hypervisor could not be looked at, such a one may live there, and the guest is left to
    P(kvm.fleet.held_back#filter).
options:
  _input:
    description: The names of the guests, in the order of their turns.
    type: list
    elements: str
    required: true
  hosts:
    description: The variables of the hosts that the guests were chosen from, as for P(kvm.fleet.select_guests#filter).
    type: list
    elements: dict
    required: true
  inventory:
    description: The variables of every host of the inventory, as C(hostvars) has them.
    type: dict
    required: true
  sizes:
    description:
      - A number of guests, a percentage of them, or several of these, as a list or separated by commas. Each is the
        size of one batch, the last one that of all that follow, and the first one that of every batch of canaries.
    type: raw
    default: 1
  canaries:
    description: How many canaries there have to be.
    type: int
    default: 0
  per_hypervisor:
    description: How many guests of a hypervisor may be in a batch. Without it, as many as there are.
    type: int
  refused:
    description: The names of guests that are of the run as well, and that nobody will work on.
    type: list
    elements: str
    default: []
  fleet:
    description: >-
      The names of all hosts in the inventory that are hypervisors or guests, whether the run is about them or not.
    type: list
    elements: str
    default: []
  locks_on:
    description: >-
      The host that keeps which guests of a C(kvm_group) are worked on, for all runs. Without it, each guest's
      hypervisor does. That is refused where there is another one, or where AWX has started this run as a slice of a
      job, since members may live elsewhere.
    type: str
  prefix:
    description: What the names of the batches' groups begin with, before the number.
    type: str
    default: fleet_batch_
"""

EXAMPLES = r"""
- name: Show the batches
  ansible.builtin.debug:
    msg: "{{ ['web1', 'web2', 'db1'] | kvm.fleet.plan_batches([], hostvars, sizes='1,50%') }}"
"""

RETURN = r"""
_value:
  description: The guests, batch by batch.
  type: list
  elements: dict
  contains:
    name:
      description: The guest's name.
      type: str
    hypervisor:
      description: The inventory's name of its hypervisor.
      type: str
    batch:
      description: The number of its batch, from 1.
      type: int
    group:
      description: A name for that batch as a group of the inventory.
      type: str
    canary:
      description: Whether it is a canary.
      type: bool
    after:
      description: The guests of the run that it depends on, directly or not, and those that nobody could see.
      type: list
      elements: str
    canaries:
      description: The canaries that come before it.
      type: list
      elements: str
    member_of:
      description: The group, such as a cluster, that it is a member of. Empty where nobody says so.
      type: str
    at_once:
      description: How many of that may be worked on at once, as all of its members say together.
      type: int
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.kvm.fleet.plugins.plugin_utils._batches import BatchError, check_number, check_sizes
from ansible_collections.kvm.fleet.plugins.plugin_utils._controller import is_slice
from ansible_collections.kvm.fleet.plugins.plugin_utils._plan import GROUP, check_locks, make_plan, member
from ansible_collections.kvm.fleet.plugins.plugin_utils._selection import all_guests, failed_looks, place_of


def plan_batches(
    names: Sequence[str],
    hosts: Sequence[Mapping[str, Any]],
    inventory: Mapping[str, Mapping[str, Any]],
    *,
    sizes: object = 1,
    canaries: object = 0,
    per_hypervisor: object = None,
    refused: Sequence[str] = (),
    fleet: Sequence[str] = (),
    locks_on: str | None = None,
    prefix: str = GROUP,
) -> list[dict[str, Any]]:
    everyone = list(hosts)
    try:
        turns = make_plan(
            names,
            [member(guest) for guest in all_guests(everyone, inventory)],
            check_sizes(sizes),
            canaries=check_number("fleet_canary", canaries, 0),
            per_hypervisor=None if per_hypervisor is None else check_number("fleet_per_hypervisor", per_hypervisor, 1),
            refused=refused,
            unseen=bool(failed_looks(everyone, inventory)),
        )
        if not locks_on:
            hosts_of_fleet = [*everyone, *(inventory[name] for name in fleet)]
            check_locks(
                turns,
                {place_of(host, inventory).hypervisor for host in hosts_of_fleet},
                sliced=any(is_slice(host) for host in hosts_of_fleet),
            )
    except BatchError as error:
        raise AnsibleFilterError(str(error)) from error
    return [
        {
            **vars(turn),
            "group": f"{prefix}{turn.batch:03}",
            "after": list(turn.after),
            "canaries": list(turn.canaries),
        }
        for turn in turns
    ]


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"plan_batches": plan_batches}
