# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: untouched_guests
short_description: Tell that no guest is attempted, where the installed QEMU starts no machine like theirs
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Makes records for the summary of all guests of a run, once M(kvm.fleet.qemu_trial) has failed on one of their
    hypervisors (C(qemu_trial_failed)).
options:
  _input:
    description: The variables of the guests. What the module returned is expected as their C(fleet_trial).
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Stop before a guest is touched
  ansible.builtin.fail:
    msg: QEMU has to be mended first.
  when: ansible_play_hosts_all | map('extract', hostvars) | kvm.fleet.untouched_guests | length > 0
  run_once: true
"""

RETURN = r"""
_value:
  description: >-
    A record by the name of each guest, with C(guest), C(hypervisor), C(domain), the outcome V(not_attempted), and as
    its C(error) what the first trial that failed has told. Empty where none has.
  type: dict
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._trials import untouched


def guests(hosts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return untouched(hosts)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"untouched_guests": guests}
