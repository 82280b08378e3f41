# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: upgrade_plan
short_description: Decide what has to be done to a guest
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Decides whether a guest needs a snapshot, an upgrade and a restart.
options:
  _input:
    description: The guest's domain, one of those that M(kvm.fleet.domain_info) returns.
    type: dict
    required: true
  predicted:
    description: What M(kvm.fleet.guest_upgrade) returned in check mode. Empty when packages are left alone.
    type: dict
    default: {}
  snapshot:
    description: Whether to take a snapshot before anything else is done.
    type: bool
    default: true
  restart:
    description:
      - V(needed) restarts a guest whose QEMU is outdated, that asks for a reboot, or whose packages are upgraded.
      - V(always) and V(never) do what they say.
    type: str
    choices: [needed, always, never]
    default: needed
  resumed:
    description:
      - What an earlier run has begun, as M(kvm.fleet.guest_lease) returned it, if any. The guest's domain is then that
        before the earlier run.
    type: dict
  strategy:
    description:
      - How to restart it, see M(kvm.fleet.domain_power). V(save_restore) and V(migrate) restart a guest for its
        outdated QEMU alone. V(auto) power-cycles one that has to be restarted for anything else.
    type: str
    choices: [power_cycle, save_restore, migrate, auto]
    default: power_cycle
"""

EXAMPLES = r"""
- name: Decide
  ansible.builtin.set_fact:
    plan: "{{ info.domains[0] | kvm.fleet.upgrade_plan(predicted=prediction, restart='never') }}"
"""

RETURN = r"""
_value:
  description: The plan.
  type: dict
  contains:
    snapshot:
      description: Whether to take a snapshot.
      type: bool
    upgrade:
      description: Whether to upgrade packages.
      type: bool
    restart:
      description: Whether to restart the guest.
      type: bool
    reasons:
      description: Why to restart it.
      type: list
      elements: str
    strategy:
      description: How to restart it. V(auto) only where the gentlest that is open will do.
      type: str
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.kvm.fleet.plugins.plugin_utils._cycle import (
    RESTART_POLICIES,
    STRATEGIES,
    make_plan,
)


def plan(
    before: Mapping[str, Any],
    predicted: Mapping[str, Any] | None = None,
    snapshot: bool = True,
    restart: str = "needed",
    resumed: Mapping[str, Any] | None = None,
    *,
    strategy: str = "power_cycle",
) -> dict[str, Any]:
    for option, given, choices in (("restart", restart, RESTART_POLICIES), ("strategy", strategy, STRATEGIES)):
        if given not in choices:
            raise AnsibleFilterError(f"{option} is {given!r}; it can be {', '.join(choices)}")
    made = make_plan(before, predicted or {}, snapshot=snapshot, restart=restart, resumed=resumed, strategy=strategy)
    return dataclasses.asdict(made)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"upgrade_plan": plan}
