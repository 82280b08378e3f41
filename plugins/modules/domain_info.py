#!/usr/bin/python
# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: domain_info
short_description: Look at a hypervisor's domains and tell which run an outdated QEMU
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Looks at all domains of a hypervisor, or at some, in one call.
  - Drift is read from the running QEMU process, whose binary and libraries are compared, file by file, with what is
    installed now. A version string takes no part in it, since a distribution rebuilds a package without changing it.
  - Changes nothing and asks the guests nothing.
extends_documentation_fragment:
  - kvm.fleet.hypervisor
  - kvm.fleet.hypervisor.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
options:
  names:
    description:
      - The domains to look at, matched exactly. Without it, all of them.
    type: list
    elements: str
  snapshots:
    description:
      - Whether to look for snapshots. Where it does not, what is asked of libvirt is a few questions about all domains
        and one about each, for its definition.
    type: bool
    default: true
"""

EXAMPLES = r"""
- name: Look at every domain of the hypervisor
  kvm.fleet.domain_info:
  register: result

- name: Name the guests that run an outdated QEMU
  ansible.builtin.debug:
    msg: "{{ result.domains | selectattr('drift.state', 'equalto', 'drifted') | map(attribute='name') }}"

- name: Look at one guest from a play over guests
  kvm.fleet.domain_info:
    names: ["{{ kvm_domain }}"]
  delegate_to: "{{ kvm_hypervisor }}"
"""

RETURN = r"""
domains:
  description: The domains, by name, or in the order of O(names).
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The domain's name.
      type: str
      sample: web1
    uuid:
      description: The domain's UUID.
      type: str
      sample: 2f8a6c8e-58b4-4a0e-9d0b-0b1d3a7d0c55
    state:
      description: >-
        V(running), V(paused), V(shutting_down), V(shut_off), V(crashed), V(suspended), V(blocked) or V(no_state).
      type: str
      sample: running
    persistent:
      description: Whether the domain is still defined after a shutdown.
      type: bool
      sample: true
    managed_save:
      description: Whether a managed save image exists, which the next start would resume from.
      type: bool
      sample: false
    qemu:
      description: The domain's QEMU.
      type: dict
      contains:
        emulator:
          description: Path of the binary that the next start would use.
          type: str
          sample: /usr/bin/qemu-system-x86_64
        version_installed:
          description: What the installed binary says of itself. V(null) when it does not.
          type: str
          sample: 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)
        version_running:
          description: What the running binary says of itself, even when it was deleted. V(null) when nothing runs.
          type: str
          sample: 7.2.13 (Debian 1:7.2+dfsg-7+deb12u7)
        pid:
          description: Process id of the running QEMU. V(null) when nothing runs or it could not be found.
          type: int
          sample: 8718
        started:
          description: When that process was started, in UTC.
          type: str
          sample: "2026-03-01T02:00:12Z"
    drift:
      description: Whether the running process still is what is installed.
      type: dict
      contains:
        state:
          description: V(none), V(drifted), V(unknown) or V(not_running).
          type: str
          sample: drifted
        reasons:
          description: What has drifted, or why it cannot be told.
          type: list
          elements: dict
          contains:
            kind:
              description: V(binary_replaced), V(library_replaced) or V(unknown).
              type: str
              sample: binary_replaced
            path:
              description: The file in question. Empty where no file is to blame.
              type: str
              sample: /usr/bin/qemu-system-x86_64
            detail:
              description: What was found.
              type: str
              sample: another file has taken its place
    os:
      description: >-
        The operating system that the domain's metadata tells for libosinfo, as a URL. V(null) where it tells none.
      type: str
      sample: http://debian.org/debian/12
    agent_channel:
      description: >-
        The guest agent's channel as the hypervisor sees it: V(absent), V(disconnected), V(connected), or V(unknown)
        for a guest that does not run.
      type: str
      sample: connected
    snapshots:
      description: The snapshots that this collection made, oldest first. V(null) where O(snapshots) is V(false).
      type: list
      elements: dict
      contains:
        name:
          description: The snapshot's name.
          type: str
          sample: pre-upgrade-20261015-143022
        description:
          description: Its description, which begins with C([kvm.fleet]).
          type: str
          sample: "[kvm.fleet] Automatic snapshot before package upgrade"
        created:
          description: When it was made, in seconds since the epoch.
          type: int
          sample: 1792074622
        state:
          description: The domain's state that it holds, C(disk-snapshot) for a guest that ran, without its RAM.
          type: str
          sample: running
        current:
          description: Whether the domain's state descends from it most recently.
          type: bool
          sample: true
        way:
          description: How it was made, as the option C(way) of M(kvm.fleet.domain_snapshot) names it.
          type: str
          sample: live
        kind:
          description: Whether it is V(internal), inside the disks, or V(external), as layers over them.
          type: str
          sample: internal
        files:
          description: The files of an external one, its layers and that of its RAM.
          type: list
          elements: str
          sample: []
        size:
          description: Bytes that these take up. V(null) for an internal one.
          type: int
          sample: 173015040
    hints:
      description:
        - What the domain's metadata says of the guest as one of a fleet, in an element C(guest) of the namespace
          C(https://kvm.fleet/xmlns/guest/1). What it does not say is left out.
        - For a running domain it is what C(virsh metadata --live) has set.
      type: dict
      contains:
        tags:
          description: The texts of the elements C(tag).
          type: list
          elements: str
          sample: [web]
        depends_on:
          description: The guests that it depends on, from the elements C(depends-on).
          type: list
          elements: str
          sample: [db1]
        group:
          description: The cluster that it is a member of, from the element C(group).
          type: str
          sample: web
        group_at_once:
          description: How many members of that may be worked on at once, from the element C(group-at-once).
          type: int
          sample: 2
        canary:
          description: Whether there is the element C(canary), so that other guests come after this one.
          type: bool
          sample: true
    hints_problem:
      description: >-
        Why the metadata cannot be read, as C(error_code), C(msg) and C(remedy). V(null) when it can, and where there is
        none.
      type: dict
    run:
      description: What a run is doing to the guest, has left unfinished, or has done. V(null) where none is known.
      type: dict
      contains:
        lease:
          description: Who has the guest's lease, see M(kvm.fleet.guest_lease). V(null) where nobody has.
          type: dict
          contains:
            run:
              description: The run's id.
              type: str
              sample: 20261124-003000-3f2a9c1e
            owner:
              description: Who runs it.
              type: str
              sample: root@control1
            taken:
              description: When it took the lease, in UTC.
              type: str
              sample: "2026-11-24T00:30:00Z"
            silence:
              description: Seconds since it was last heard of. V(null) when the hypervisor was rebooted since.
              type: float
              sample: 12.5
        live:
          description: Whether that run has to be taken for alive.
          type: bool
          sample: false
        unfinished:
          description: Whether something was begun that no run has told the end of. The next run goes on with it.
          type: bool
          sample: true
        shut_down:
          description: Whether the guest, if it is off, is so because a run has shut it down in order to start it again.
          type: bool
          sample: true
        went_to:
          description: >-
            The URI of the hypervisor that a run has migrated the guest to, or was cut off on the way to. A guest that
            is off here may run there. V(null) for any other.
          type: str
          sample: qemu+tls://hypervisor2/system
        steps:
          description: What was begun or done so far.
          type: list
          elements: dict
          contains:
            name:
              description: V(snapshot), V(upgrade), V(restart) or V(rollback).
              type: str
              sample: restart
            status:
              description: V(open), V(done) or V(failed).
              type: str
              sample: open
            run:
              description: The run that did it.
              type: str
              sample: 20261124-003000-3f2a9c1e
        ended:
          description: How the last run ended on this guest. V(null) while one has not.
          type: dict
          contains:
            run:
              description: The run's id.
              type: str
              sample: 20261124-003000-3f2a9c1e
            at:
              description: When it ended, in UTC.
              type: str
              sample: "2026-11-24T00:42:10Z"
            outcome:
              description: >-
                V(unchanged), V(changed), V(upgraded), V(restarted), V(repaired), V(rolled_back), V(rollback_failed),
                V(failed) or V(refused).
              type: str
              sample: failed
            error:
              description: Why it failed or was refused, as a failed task tells it. V(null) otherwise.
              type: dict
        way_back:
          description: >-
            What the playbook C(kvm.fleet.rollback) goes back to, if no other snapshot is named. V(null) where no run
            has made a snapshot, or none is known any more.
          type: dict
          contains:
            snapshot:
              description: The snapshot's name.
              type: str
              sample: pre-upgrade-20261124-003012
            failed_units:
              description: The guest's units that had failed before it. V(null) where that is not known.
              type: list
              elements: str
              sample: []
        problem:
          description: Why the record cannot be read, as a failed task would tell it. V(null) when it can.
          type: dict
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.kvm.fleet.plugins.module_utils import _lease, _results
from ansible_collections.kvm.fleet.plugins.module_utils._domain import Hypervisor
from ansible_collections.kvm.fleet.plugins.module_utils._errors import DomainNotFound, RecordDamaged, RecordUnavailable
from ansible_collections.kvm.fleet.plugins.module_utils._libvirt import LibvirtHypervisor
from ansible_collections.kvm.fleet.plugins.module_utils._observe import observe_domains
from ansible_collections.kvm.fleet.plugins.module_utils._runner import HYPERVISOR_ARGUMENTS, run


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str"},
            "snapshots": {"type": "bool", "default": True},
            **HYPERVISOR_ARGUMENTS,
        },
        supports_check_mode=True,
    )

    def work(hypervisor: LibvirtHypervisor) -> dict[str, Any]:
        with_snapshots = module.params["snapshots"]
        names = module.params["names"]
        try:
            observations = observe_domains(hypervisor, names, snapshots=with_snapshots)
        except DomainNotFound as error:
            _lease.tell_where_it_went(hypervisor, names or [], error)
            raise
        domains = [{**_results.observation(found), "run": run_of(hypervisor, found.uuid)} for found in observations]
        for domain in domains if not with_snapshots else []:
            domain["snapshots"] = None
        return {"changed": False, "domains": domains}

    run(module, work)


def run_of(hypervisor: Hypervisor, uuid: str) -> dict[str, Any] | None:
    """What is on record of a domain. One whose record is damaged must not hide the others."""
    try:
        record, at_work, now = _lease.look(hypervisor, uuid)
    except (RecordDamaged, RecordUnavailable) as error:
        return _results.unknown_work(error)
    return _results.work(record, now, at_work=at_work)


if __name__ == "__main__":
    main()
