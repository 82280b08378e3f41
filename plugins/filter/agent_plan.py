# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: agent_plan
short_description: Decide how a guest gets an agent that answers
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Decides whether the agent has to be installed, by which way, and whether the guest has to be restarted.
options:
  _input:
    description: What M(kvm.fleet.domain_channel) returned.
    type: dict
    required: true
  guest:
    description: The guest's name, for messages.
    type: str
    required: true
  asked:
    description: What M(kvm.fleet.domain_channel) returned when it was to wait for the agent, be it a failure.
    type: dict
    default: {}
  ways:
    description:
      - The ways by which the package may be installed, the preferred one first. V(ssh) is Ansible's own connection to
        the guest. V(offline) edits its image while it is shut down.
    type: list
    elements: str
    choices: [ssh, offline]
    default: []
  restart:
    description: Whether the guest may be shut down, for its channel where only that brings it, or for V(offline).
    type: bool
    default: true
  tried:
    description:
      - What came of seeing whether the ways are open, by their names, as far as that was done. For V(ssh) what
        C(id -u) in the guest returned, for V(offline) what M(kvm.fleet.guest_repair) returned with
        C(before_shutdown), be it a failure. A way that is not open makes place for the next one.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Decide
  ansible.builtin.set_fact:
    plan: "{{ channel | kvm.fleet.agent_plan(guest=inventory_hostname, ways=['ssh']) }}"
"""

RETURN = r"""
_value:
  description: The plan.
  type: dict
  contains:
    install:
      description: V(ssh), V(offline), or empty where nothing is to be installed.
      type: str
    restart:
      description: Whether to restart the guest.
      type: bool
    closed:
      description: Why ways that were asked for are not open, by their names.
      type: dict
    refusal:
      description: >-
        Why nothing can be done, with C(error_code), C(msg), C(remedy), C(transient) and C(evidence), as a module would
        return it. Empty when something can.
      type: dict
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.kvm.fleet.plugins.plugin_utils._reach import NOT_ASKED_FOR, make_plan


def plan(
    channel: Mapping[str, Any],
    guest: str,
    asked: Mapping[str, Any] | None = None,
    ways: Sequence[str] = (),
    restart: bool = True,
    *,
    tried: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    unknown = [way for way in ways if way not in NOT_ASKED_FOR]
    if unknown:
        known = ", ".join(NOT_ASKED_FOR)
        raise AnsibleFilterError(f"there is no way {', '.join(map(repr, unknown))}; there are {known}")
    return vars(make_plan(guest, channel, asked or {}, ways=ways, restart=restart, tried=tried))


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"agent_plan": plan}
