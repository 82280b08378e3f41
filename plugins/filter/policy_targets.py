# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: policy_targets
short_description: Choose the guests whose agents have to be set up
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Chooses the guests that a run has shut down and not started again, then those whose agents do not yet allow, or
    block, C(guest-exec), and after them those that run and of which nobody can tell.
options:
  _input:
    description:
      - The variables of the guests. What M(kvm.fleet.guest_info) returned of one is expected as its C(fleet_agent), and
        whether a run has left it off as its C(fleet_left_off).
    type: list
    elements: dict
    required: true
  state:
    description: V(enabled) where C(guest-exec) is to be allowed, V(disabled) where it is to be blocked.
    type: str
    required: true
  wanted:
    description: What guests were asked for by name, if any. Then all of them are chosen.
    type: raw
"""

EXAMPLES = r"""
- name: Show the guests whose guest-exec is blocked
  ansible.builtin.debug:
    msg: "{{ (ansible_play_hosts_all | map('extract', hostvars) | kvm.fleet.policy_targets('enabled')).chosen }}"
"""

RETURN = r"""
_value:
  description: What becomes of the guests, by their names in the inventory.
  type: dict
  contains:
    chosen:
      description: Those whose agents have to be set up, in their turn.
      type: list
      elements: str
    content:
      description: Those whose agents are as wanted.
      type: list
      elements: str
    "off":
      description: Of those that are off, so that nobody can tell, a record for the summary that says so.
      type: dict
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._agent_policy import policy_targets


def targets(hosts: Sequence[Mapping[str, Any]], state: str, wanted: object = None) -> dict[str, Any]:
    return vars(policy_targets(hosts, state, wanted))


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"policy_targets": targets}
