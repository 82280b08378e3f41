# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: rescue_plan
short_description: Decide whether a guest has to be shut down for its rescue, and started again after it
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - A guest that is off stays off, unless a run has shut it down that was cut off before it had started it again.
options:
  _input:
    description: The guest's domain, one of those that M(kvm.fleet.domain_info) returns.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Decide
  ansible.builtin.set_fact:
    plan: "{{ info.domains[0] | kvm.fleet.rescue_plan }}"
"""

RETURN = r"""
_value:
  description: The plan.
  type: dict
  contains:
    stop:
      description: Whether to shut it down.
      type: bool
    start:
      description: Whether to start it in the end.
      type: bool
"""

from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._rescue import make_rescue_plan


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"rescue_plan": make_rescue_plan}
