# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: calls_for_rollback
short_description: Tell whether a guest that has failed has to be rolled back
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Tells whether a guest did not come back as it was after it had been upgraded or restarted, and the run has made a
    snapshot of it. One of an earlier run does not count, as the guest may have written for days since.
  - An upgrade that has failed is repaired by the next run, and does not call for a rollback. Nor does a restart that
    failed before the guest was off, or drift that remains, which is no damage to the guest.
options:
  _input:
    description: Results of tasks, as P(kvm.fleet.upgrade_result#filter) takes them.
    type: dict
    required: true
  verdict:
    description: Why the guest is not healthy, from P(kvm.fleet.upgrade_failure#filter). Empty where nobody says so.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Decide
  ansible.builtin.set_fact:
    roll_back: "{{ {'snapshot': made, 'power': restarted} | kvm.fleet.calls_for_rollback(verdict) }}"
"""

RETURN = r"""
_value:
  description: Whether it has to.
  type: bool
"""

from collections.abc import Mapping
from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._cycle import calls_for_rollback


def judge(taken: Mapping[str, Any], verdict: Mapping[str, Any] | None = None) -> bool:
    return calls_for_rollback(taken, verdict or {})


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"calls_for_rollback": judge}
