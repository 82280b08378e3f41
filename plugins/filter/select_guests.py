# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: select_guests
short_description: Choose the guests that a playbook is about
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Puts the guests of the inventory together with the domains that M(kvm.fleet.domain_info) found on the hypervisors,
    and chooses among them.
  - Without O(wanted), chooses those that O(choice) is about, and after them those that nobody can tell about.
options:
  _input:
    description:
      - The variables of the hosts, guests and hypervisors. What M(kvm.fleet.domain_info) returned through a host is
        expected as its C(fleet_domains), and what M(kvm.fleet.guest_info) returned, if it was asked, as its
        C(fleet_asked).
    type: list
    elements: dict
    required: true
  inventory:
    description:
      - The variables of every host of the inventory, as C(hostvars) has them. A guest without a C(kvm_uri) has that of
        its hypervisor, which is looked up here.
    type: dict
    default: {}
  wanted:
    description:
      - Names of guests, domains or groups, as a list or separated by commas, each matched exactly. A name that matches
        nothing is an error. V(all) is every guest, whatever its drift.
    type: raw
  groups:
    description: The groups of the inventory, as C(groups) has them.
    type: dict
    default: {}
  limit:
    description: What C(--limit) was given, as C(ansible_limit) has it.
    type: str
  choice:
    description:
      - What to choose guests for without O(wanted). V(upgrade) is about guests that drift or were left half done,
        V(agent) about those that run and on whose agent's channel nobody listens, if they have one at all, and those
        that a run has shut down and not started again.
    type: str
    choices: [upgrade, agent]
    default: upgrade
"""

EXAMPLES = r"""
- name: Make every drifted guest a host
  ansible.builtin.add_host:
    name: "{{ item.name }}"
    groups: [fleet_selected]
    kvm_hypervisor: "{{ item.hypervisor }}"
    kvm_domain: "{{ item.domain }}"
    kvm_uri: "{{ item.uri }}"
  loop: "{{ ansible_play_hosts_all | map('extract', hostvars) | kvm.fleet.select_guests(hostvars) }}"
"""

RETURN = r"""
_value:
  description: The chosen guests.
  type: list
  elements: dict
  contains:
    name:
      description: The guest's name in the inventory, now or once it is added.
      type: str
    hypervisor:
      description: The inventory's name of its hypervisor.
      type: str
    uri:
      description: The local libvirt connection there.
      type: str
    domain:
      description: The domain's name there.
      type: str
    listed:
      description: Whether the inventory lists the guest, and it is itself one of the hosts that were looked through.
      type: bool
    state:
      description: The domain's state, or V(unknown) when its hypervisor does not have it.
      type: str
    drift:
      description: V(none), V(drifted), V(unknown) or V(not_running).
      type: str
    drift_reasons:
      description: As M(kvm.fleet.domain_info) returns them.
      type: list
      elements: dict
    agent_channel:
      description: As M(kvm.fleet.domain_info) returns it.
      type: str
    guest_exec:
      description: Whether its agent allows C(guest-exec), V(allowed), V(blocked) or V(unknown).
      type: str
    reboot_required:
      description: As M(kvm.fleet.guest_info) returns it.
      type: bool
    snapshots:
      description: Names of the snapshots that this collection made.
      type: list
      elements: str
    left_off:
      description: Whether it is off because a run has shut it down and did not come to start it again.
      type: bool
    run:
      description: What a run does to it or has left unfinished, as M(kvm.fleet.domain_info) returns it.
      type: dict
    refusal:
      description: >-
        Why nobody may work on it, as P(kvm.fleet.failed_looks#filter) tells it, else V(null). Either its hypervisor
        could not be looked at, or its domain is off while the guest with the same UUID runs elsewhere
        (C(runs_elsewhere)), or what its metadata says of it as one of a fleet cannot be read (C(hints_malformed)).
      type: dict
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.kvm.fleet.plugins.plugin_utils._selection import (
    CHOICES,
    Guest,
    SelectionError,
    check_limit,
    elsewhere,
    failed_looks,
    known_guests,
    select_guests,
    unclear,
)


def select(
    hosts: Sequence[Mapping[str, Any]],
    inventory: Mapping[str, Mapping[str, Any]] | None = None,
    wanted: object = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    limit: str | None = None,
    *,
    choice: str = "upgrade",
) -> list[dict[str, Any]]:
    if choice not in CHOICES:
        raise AnsibleFilterError(f"choice is {choice!r}; it can be {', '.join(CHOICES)}")
    everyone, inventory = list(hosts), {} if inventory is None else inventory
    failures = {(failed["hypervisor"], failed["uri"]): failed for failed in failed_looks(everyone, inventory).values()}
    unseen = {hypervisor for hypervisor, _uri in failures}
    try:
        selected = select_guests(known_guests(everyone, inventory), wanted, groups or {}, unseen, choice)
        check_limit(selected, limit)
    except SelectionError as error:
        raise AnsibleFilterError(str(error)) from error
    stale = elsewhere(everyone, inventory)
    return [
        entry(guest, failures.get(guest.place) or stale.get((guest.place, guest.domain)) or unclear(guest))
        for guest in selected
    ]


def entry(guest: Guest, refusal: Mapping[str, Any] | None) -> dict[str, Any]:
    observed = guest.observed or {}
    return {
        "name": guest.name,
        "hypervisor": guest.place.hypervisor,
        "uri": guest.place.uri,
        "domain": guest.domain,
        "listed": guest.listed,
        "state": observed.get("state", "unknown"),
        "drift": guest.drift,
        "drift_reasons": observed.get("drift", {}).get("reasons", []),
        "agent_channel": observed.get("agent_channel", "unknown"),
        "guest_exec": guest.guest_exec,
        "reboot_required": (guest.asked or {}).get("reboot_required"),
        "snapshots": [snapshot["name"] for snapshot in observed.get("snapshots", [])],
        "left_off": guest.left_off,
        "run": observed.get("run"),
        "refusal": refusal,
    }


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"select_guests": select}
