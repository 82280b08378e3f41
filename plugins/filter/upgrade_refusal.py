# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: upgrade_refusal
short_description: Tell why a guest cannot be worked on
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Refuses a guest that does not run, unless an earlier run of the role has shut it down, and one of which nobody can
    tell whether it has to be restarted.
options:
  _input:
    description: The guest's domain, one of those that M(kvm.fleet.domain_info) returns.
    type: dict
    required: true
  restart:
    description: When to restart it, as in P(kvm.fleet.upgrade_plan#filter).
    type: str
    choices: [needed, always, never]
    default: needed
"""

EXAMPLES = r"""
- name: Refuse
  ansible.builtin.assert:
    that: info.domains[0] | kvm.fleet.upgrade_refusal | length == 0
"""

RETURN = r"""
_value:
  description: >-
    The failure, with C(error_code), C(msg), C(remedy), C(transient) and C(evidence), as a module would return it. Empty
    when nothing speaks against working on the guest.
  type: dict
"""

from collections.abc import Mapping
from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._cycle import refusal_before


def refusal(before: Mapping[str, Any], restart: str = "needed") -> dict[str, Any]:
    return refusal_before(before, restart=restart)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"upgrade_refusal": refusal}
