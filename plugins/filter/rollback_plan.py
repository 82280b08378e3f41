# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: rollback_plan
short_description: Tell where a guest is to go back to
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Chooses the snapshot that was asked for, or that of the last run on the guest that has made one.
options:
  _input:
    description: The guest's domain, one of those that M(kvm.fleet.domain_info) returns.
    type: dict
    required: true
  snapshot:
    description: The name of the snapshot that was asked for, empty where none was.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Choose
  ansible.builtin.set_fact:
    plan: "{{ info.domains[0] | kvm.fleet.rollback_plan }}"
"""

RETURN = r"""
_value:
  description: Where to.
  type: dict
  contains:
    snapshot:
      description: The snapshot's name. V(null) where none is known.
      type: str
    failed_units:
      description: The guest's units that had failed before it. V(null) where that is not known.
      type: list
      elements: str
"""

from collections.abc import Mapping
from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._rollback import make_rollback_plan


def plan(before: Mapping[str, Any], snapshot: str = "") -> dict[str, Any]:
    return make_rollback_plan(before, snapshot)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"rollback_plan": plan}
