# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: dead_run
short_description: Tell whether the run that has a guest is known to be dead
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - A run that was started on this controller, in the same container if there are any, and whose C(ansible-playbook) is
    gone, is dead. Of other runs nobody can tell here.
options:
  _input:
    description: What M(kvm.fleet.domain_info) returned of a domain as its C(run). May be none.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Take the guest, at once from a run that is dead
  kvm.fleet.guest_lease:
    name: web1
    run: "{{ lookup('kvm.fleet.this_run').run }}"
    owner: "{{ lookup('kvm.fleet.this_run').owner }}"
    take_over: "{{ [info.domains[0].run | kvm.fleet.dead_run] | select | list }}"
  delegate_to: hypervisor1
"""

RETURN = r"""
_value:
  description: The run's id, or an empty text.
  type: str
"""

from collections.abc import Mapping
from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._controller import owner_is_gone


def dead_run(run: Mapping[str, Any] | None) -> str:
    lease = (run or {}).get("lease")
    return str(lease["run"]) if lease and owner_is_gone(str(lease["owner"])) else ""


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"dead_run": dead_run}
