# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: refused_guests
short_description: Make records of the chosen guests that nobody may work on
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Makes for the summary what P(kvm.fleet.upgrade_result#filter) makes for guests that were worked on. Of guests whose
    hypervisor could not be looked at, and of domains that are off while their guest runs elsewhere.
options:
  _input:
    description: The chosen guests, from P(kvm.fleet.select_guests#filter).
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Note the guests that cannot be worked on
  ansible.builtin.set_stats:
    data:
      kvm_fleet:
        guests: "{{ chosen | kvm.fleet.refused_guests }}"
"""

RETURN = r"""
_value:
  description: The records, by the guest's name.
  type: dict
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._selection import refusal


def refused(guests: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {guest["name"]: refusal(guest) for guest in guests if guest["refusal"]}


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"refused_guests": refused}
