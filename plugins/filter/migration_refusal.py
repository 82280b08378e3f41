# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: migration_refusal
short_description: Tell why the snapshot before a migration would not go along
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - A snapshot goes along that is inside disks which both hypervisors have, and that was made while the guest ran.
options:
  _input:
    description: What M(kvm.fleet.domain_snapshot) returned in check mode, or that it was skipped.
    type: dict
    required: true
  storage:
    description: What becomes of the disks, as O(kvm.fleet.domain_power#module:storage) of M(kvm.fleet.domain_power).
    type: str
    choices: [shared, trusted, copy]
    required: true
"""

EXAMPLES = r"""
- name: Refuse
  ansible.builtin.assert:
    that: foreseen | kvm.fleet.migration_refusal('shared') | length == 0
"""

RETURN = r"""
_value:
  description: >-
    The failure, with C(error_code), C(msg), C(remedy), C(transient) and C(evidence), as a module would return it. Empty
    where the snapshot goes along, or none is made.
  type: dict
"""

from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._cycle import refusal_of_migration


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"migration_refusal": refusal_of_migration}
