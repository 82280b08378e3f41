# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: upgrade_failure
short_description: Tell why a guest cannot be called healthy
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
  snapshot:
    description: The name of the snapshot that was made, if any.
    type: str
"""

EXAMPLES = r"""
- name: Judge
  ansible.builtin.assert:
    that: after.domains[0] | kvm.fleet.upgrade_failure(before=before.domains[0], plan=plan) | length == 0
"""

RETURN = r"""
_value:
  description: >-
    The failure, with C(error_code), C(msg), C(remedy), C(transient) and C(evidence), as a module would return it. Empty
    when the guest is healthy.
  type: dict
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._cycle import failure_after


def failure(
    after: Mapping[str, Any],
    before: Mapping[str, Any],
    plan: Mapping[str, Any],
    failed_units: Iterable[str] = (),
    snapshot: str | None = None,
) -> dict[str, Any]:
    return failure_after(before, after, failed_units, plan, snapshot)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"upgrade_failure": failure}
