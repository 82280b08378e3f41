# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: upgrade_problems
short_description: Tell what speaks against calling a guest healthy
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Compares a guest's domain and its failed units before and after.
options:
  _input:
    description: The guest's domain afterwards, one of those that M(kvm.fleet.domain_info) returns.
    type: dict
    required: true
  before:
    description: The same domain before.
    type: dict
    required: true
  plan:
    description: What was to be done, from P(kvm.fleet.upgrade_plan#filter).
    type: dict
    required: true
  failed_units:
    description: Names of the guest's units that have failed and had not failed before.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Judge
  ansible.builtin.assert:
    that: after.domains[0] | kvm.fleet.upgrade_problems(before=before.domains[0], plan=plan) | length == 0
"""

RETURN = r"""
_value:
  description: The problems. Empty when there are none.
  type: list
  elements: str
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._cycle import problems_after


def problems(
    after: Mapping[str, Any], before: Mapping[str, Any], plan: Mapping[str, Any], failed_units: Iterable[str] = ()
) -> list[str]:
    return problems_after(before, after, failed_units, plan)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"upgrade_problems": problems}
