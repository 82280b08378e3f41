# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: rollback_unconfirmed
short_description: Tell why a guest is not rolled back yet
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Refuses a rollback that would lose what the guest has written, unless that was confirmed.
options:
  _input:
    description: What M(kvm.fleet.domain_rollback) returned in check mode.
    type: dict
    required: true
  confirmed:
    description: Whether what the guest has written since may be lost.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Refuse
  ansible.builtin.assert:
    that: rehearsed | kvm.fleet.rollback_unconfirmed(confirmed=true) | length == 0
"""

RETURN = r"""
_value:
  description: >-
    The failure, with C(error_code), C(msg), C(remedy), C(transient) and C(evidence), as a module would return it. Empty
    where the guest may be rolled back.
  type: dict
"""

from collections.abc import Mapping
from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._rollback import unconfirmed


def refusal(rehearsed: Mapping[str, Any], confirmed: bool = False) -> dict[str, Any]:
    return unconfirmed(rehearsed, confirmed)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"rollback_unconfirmed": refusal}
