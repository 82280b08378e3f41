# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: held_back
short_description: Tell why a guest is not attempted in its turn
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - A guest is left alone when one that it depends on, or a canary, has failed, was refused, or was lost in the same
    run, and when the tags of the run have chosen no part of its work.
options:
  _input:
    description: The guest's name.
    type: str
    required: true
  inventory:
    description:
      - The variables of every host of the inventory, as C(hostvars) has them. A guest's turn, from
        P(kvm.fleet.plan_batches#filter), is expected as its C(fleet_turn), the parts of the work as its
        C(fleet_parts), and whether it was done as its C(fleet_done).
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Leave a guest alone whose providers have failed
  ansible.builtin.meta: end_host
  when: inventory_hostname | kvm.fleet.held_back(hostvars) | length > 0
"""

RETURN = r"""
_value:
  description: >-
    A record for the summary, with C(guest), C(hypervisor), C(domain), the outcome V(not_attempted), and as its
    C(error) what holds the guest back. Empty where nothing does.
  type: dict
"""

from collections.abc import Mapping
from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._plan import held_back


def held(name: str, inventory: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return held_back(name, inventory)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"held_back": held}
