# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: upgrade_refusals
short_description: Tell why a guest must not be touched
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Tells what speaks against working on a guest, as far as its domain tells.
options:
  _input:
    description: The guest's domain, one of those that M(kvm.fleet.domain_info) returns.
    type: dict
    required: true
  restart:
    description: When the guest may be restarted.
    type: str
    choices: [needed, always, never]
    default: needed
"""

EXAMPLES = r"""
- name: Refuse early
  ansible.builtin.assert:
    that: info.domains[0] | kvm.fleet.upgrade_refusals | length == 0
"""

RETURN = r"""
_value:
  description: The reasons, with what to do about each. Empty when there are none.
  type: list
  elements: str
"""

from collections.abc import Mapping
from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._cycle import refusals


def reasons(before: Mapping[str, Any], restart: str = "needed") -> list[str]:
    return refusals(before, restart=restart)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"upgrade_refusals": reasons}
