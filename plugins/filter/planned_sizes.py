# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: planned_sizes
short_description: Tell the sizes of the batches that were planned
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Gives C(serial) the sizes of the batches that P(kvm.fleet.plan_batches#filter) has planned and that were made groups
    of the inventory. Groups are all that is known where C(serial) is evaluated.
options:
  _input:
    description: The groups of the inventory, as C(groups) has them.
    type: dict
    required: true
  prefix:
    description: What the names of the batches' groups begin with, before the number.
    type: str
    default: fleet_batch_
"""

EXAMPLES = r"""
- name: Work batch by batch
  hosts: fleet_selected
  serial: "{{ groups | kvm.fleet.planned_sizes }}"
  gather_facts: false
  tasks: []
"""

RETURN = r"""
_value:
  description: The sizes of the batches, in their order.
  type: list
  elements: int
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._plan import GROUP, sizes_of


def sizes(groups: Mapping[str, Sequence[str]], prefix: str = GROUP) -> list[int]:
    return sizes_of(groups, prefix)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"planned_sizes": sizes}
