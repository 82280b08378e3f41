# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: rollback_refusal
short_description: Tell why nobody knows where a guest is to go back to
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Refuses a guest of which no snapshot was asked for, and none is on record.
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
- name: Refuse
  ansible.builtin.assert:
    that: info.domains[0] | kvm.fleet.rollback_refusal | length == 0
"""

RETURN = r"""
_value:
  description: >-
    The failure, with C(error_code), C(msg), C(remedy), C(transient) and C(evidence), as a module would return it. Empty
    where a snapshot is known.
  type: dict
"""

from collections.abc import Mapping
from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._rollback import rollback_refusal


def refusal(before: Mapping[str, Any], snapshot: str = "") -> dict[str, Any]:
    return rollback_refusal(before, snapshot)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"rollback_refusal": refusal}
