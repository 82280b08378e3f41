# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: migrated_to
short_description: Tell on which hypervisor a guest is that was migrated
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Tells where a guest has stayed, also where its restart has failed after it had left.
options:
  _input:
    description: What M(kvm.fleet.domain_power) returned.
    type: dict
    required: true
  destinations:
    description: The hypervisors that it could be migrated to, from P(kvm.fleet.migration_uris#filter).
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Tell where it is
  ansible.builtin.debug:
    msg: "{{ restarted | kvm.fleet.migrated_to(destinations) }}"
"""

RETURN = r"""
_value:
  description: The hypervisor's name. Empty where the guest is on its own.
  type: str
"""

from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._migration import migrated_to


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"migrated_to": migrated_to}
