# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: upgrade_result
short_description: Put together what became of a guest
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Makes the record of one guest that the summary shows, from what the steps of the role P(kvm.fleet.upgrade#role)
    returned, as far as they came.
options:
  _input:
    description:
      - Results of tasks. C(before) and C(after) from M(kvm.fleet.domain_info), C(predicted) and C(upgrade) from
        M(kvm.fleet.guest_upgrade), C(snapshot) from M(kvm.fleet.domain_snapshot), C(power) from
        M(kvm.fleet.domain_power), C(plan) from P(kvm.fleet.upgrade_plan#filter), C(lease) from
        M(kvm.fleet.guest_lease), C(rollback) from M(kvm.fleet.domain_rollback).
      - C(destinations) are the hypervisors that the guest could be migrated to, from
        P(kvm.fleet.migration_uris#filter).
      - C(intervening) tells whether anything may have been changed, C(snapshot_kept) whether the snapshot still exists.
    type: dict
    required: true
extends_documentation_fragment:
  - kvm.fleet.result
"""

EXAMPLES = r"""
- name: Put the result together
  ansible.builtin.set_fact:
    result: "{{ {'before': before} | kvm.fleet.upgrade_result(guest=guest, started=started) }}"
  vars:
    guest: {name: web1, hypervisor: hypervisor1, uri: "qemu:///system", domain: web1}
"""

RETURN = r"""
_value:
  description: The record.
  type: dict
  contains:
    run:
      description: The id of the run.
      type: str
    guest:
      description: The guest's name in the inventory.
      type: str
    hypervisor:
      description: The name in the inventory of the hypervisor that it is on.
      type: str
    uri:
      description: The local libvirt connection there.
      type: str
    domain:
      description: The domain's name there.
      type: str
    outcome:
      description: V(unchanged), V(upgraded), V(restarted), V(refused), V(failed), V(rolled_back) or V(rollback_failed).
      type: str
    check_mode:
      description: Whether the record is a prediction.
      type: bool
    packages:
      description: The packages that changed, as M(kvm.fleet.guest_upgrade) returns them.
      type: list
      elements: dict
    kept_back:
      description: Packages that have a newer version and were not upgraded to it, and why.
      type: list
      elements: dict
    config_files:
      description: Configuration files that the upgrade has put beside others, for a person to compare.
      type: list
      elements: str
    restarted:
      description: Whether the guest was restarted, be it for its snapshot alone, and that was proved.
      type: bool
    restart_reasons:
      description: Why it was restarted.
      type: list
      elements: str
    strategy:
      description: How it was restarted, V(power_cycle), V(save_restore) or V(migrate). V(null) if it was not.
      type: str
    closed:
      description: The gentler strategies that were not open, and why, where the gentlest was wanted.
      type: dict
    pause:
      description: >-
        For how many seconds it was away, as M(kvm.fleet.domain_power) returns it. V(null) if it was not restarted,
        or for its snapshot alone.
      type: dict
    migration:
      description: >-
        The hypervisor that it was migrated to, as C(destination), whether it C(came_back), and the images that it has
        C(left_behind) since they were copied. V(null) if it was not migrated.
      type: dict
    forced_off:
      description: Whether it was ended by force.
      type: bool
    reboot_required:
      description: Whether it still asks for a reboot. V(null) when it was not asked.
      type: bool
    drift:
      description: V(none), V(resolved), V(remains) or V(unknown).
      type: str
    snapshot:
      description: The snapshot that was made and still exists, else V(null).
      type: str
    lost:
      description: What a rollback has undone, as M(kvm.fleet.domain_rollback) tells it. V(null) if there was none.
      type: dict
    failed_units:
      description: The units that have failed after that rollback. V(null) if the guest was not asked.
      type: list
      elements: str
    clock_set:
      description: >-
        Whether the guest's clock could be set after that rollback. V(null) where there was no need. Where it is
        V(false), the guest goes on from the time at which the snapshot was made.
      type: bool
    resumed:
      description: The C(run) that was gone on with, and where it was C(cut_off). V(null) if none.
      type: dict
    taken_over:
      description: The run whose lease was taken over, as M(kvm.fleet.guest_lease) tells it. V(null) if none.
      type: dict
    duration:
      description: Seconds that the guest took.
      type: float
    error:
      description: The first failure, else V(null), with C(task), C(error_code), C(msg), C(remedy), C(transient) and
        C(evidence).
      type: dict
"""

from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._cycle import make_result
from ansible_collections.kvm.fleet.plugins.plugin_utils._result import result_filter

result = result_filter(make_result)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"upgrade_result": result}
