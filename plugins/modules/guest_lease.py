#!/usr/bin/python
# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_lease
short_description: Take a guest for a run, and let go of it again
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - A run that has a guest's lease is the only one whose tasks change that guest. What they do is on record on the
    hypervisor, in C(/var/lib/kvm-fleet/runs), each step before it is begun and again when it has ended. When the run
    dies on the way, the next one that takes the lease goes on from there.
  - A lease is live while one of the run's tasks is at work on the guest, and for O(ttl) seconds after the last of them,
    unless the hypervisor was rebooted since. A lease that is no longer live is taken over, and RV(taken_over) says so.
  - The run's other tasks give their O(run) too. They need the lease, and renew it.
  - A guest whose file systems were frozen for a snapshot, by a run that was cut off then, is thawed.
extends_documentation_fragment:
  - kvm.fleet.hypervisor
  - kvm.fleet.hypervisor.domain
  - kvm.fleet.hypervisor.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
options:
  state:
    description:
      - V(present) takes the lease, or renews it. V(absent) lets go of it and notes what became of the guest.
    type: str
    choices: [present, absent]
    default: present
  run:
    description:
      - The run's id.
    type: str
    required: true
  owner:
    description:
      - Who runs it, for others who meet the lease. Required for O(state=present).
    type: str
  ttl:
    description:
      - Seconds for which the lease stays live without any task of the run. It has to be longer than the longest that
        a guest waits for the others of its batch.
    type: int
    default: 3600
  take_over:
    description:
      - Ids of runs that are known to be dead. A lease of theirs is taken over although it is live, once the last of
        their tasks has ended, for which a minute is waited. A lease of any other run is refused all the same.
    type: list
    elements: str
    default: []
  take_over_setting:
    description:
      - Where whoever wants the guest names the runs of O(take_over), such as a variable of a role. A refusal tells it.
    type: str
    default: take_over of kvm.fleet.guest_lease
  rolls_back:
    description:
      - Whether the run rolls the guest back. Any other run is refused where a rollback was cut off, since nobody knows
        how the guest's disks are then.
    type: bool
    default: false
  baseline:
    description:
      - What else is to be on record of the guest as it was before the first change. What is there already stays, and
        nothing is added once a step was begun.
    type: dict
    default: {}
  record:
    description:
      - What is on record of the guest on another hypervisor that it was migrated from, as this module returned it
        there. It is gone on with here, unless work on the guest is on record here, too. What is on record here from
        before the guest had left is out of date, and so is a lease in it.
    type: dict
  uuid:
    description:
      - The domain's UUID, for O(state=absent) where the domain has left this hypervisor. Without it, the domain has to
        be here.
    type: str
  outcome:
    description:
      - What became of the guest. Required for O(state=absent).
      - After V(refused), what an earlier run has left unfinished stays on record. After V(failed), it stays as long as
        the guest may be off because it was shut down for a restart, or still has to be restarted for what was upgraded.
      - An upgrade that did not come to its end stays on record whatever the outcome.
    type: str
    choices: [unchanged, changed, upgraded, restarted, repaired, rolled_back, rollback_failed, failed, refused]
  error:
    description:
      - Why it failed or was refused, for the record.
    type: dict
"""

EXAMPLES = r"""
- name: Take the guest
  kvm.fleet.guest_lease:
    name: web1
    run: 20261124-003000-3f2a9c1e
    owner: root@control1
  delegate_to: hypervisor1
  register: result

- name: Tell what is gone on with
  ansible.builtin.debug:
    msg: "run {{ result.resumed.run }} was cut off {{ result.resumed.cut_off }}"
  when: result.resumed

- name: Restart it
  kvm.fleet.domain_power:
    name: web1
    state: restarted
    run: 20261124-003000-3f2a9c1e
  delegate_to: hypervisor1

- name: Let go of it
  kvm.fleet.guest_lease:
    name: web1
    run: 20261124-003000-3f2a9c1e
    state: absent
    outcome: restarted
  delegate_to: hypervisor1
"""

RETURN = r"""
record:
  description: What is on record of the work on the guest. V(null) where O(state=absent) finds nothing.
  returned: success
  type: dict
  contains:
    domain:
      description: The domain's name.
      type: str
      sample: web1
    uuid:
      description: The domain's UUID.
      type: str
      sample: 2f8a6c8e-58b4-4a0e-9d0b-0b1d3a7d0c55
    lease:
      description: The lease, with its C(run), C(owner), C(taken), C(heartbeat), C(ttl) and C(boot_id).
      type: dict
    earlier:
      description: The leases of the runs that were gone on from, oldest first.
      type: list
      elements: dict
    baseline:
      description: The domain before the first change, as M(kvm.fleet.domain_info) returns it, and O(baseline).
      type: dict
    steps:
      description: >-
        What was begun or done, in order, each with its C(name), C(status), C(run), C(begun), C(ended), C(intent) and
        C(result).
      type: list
      elements: dict
    ended:
      description: >-
        The run that has brought this to an end, with its C(run), C(at) what time, its C(outcome), and the C(error) if
        it failed or was refused. V(null) while that is open.
      type: dict
resumed:
  description: What this run goes on with. V(null) when it begins by itself.
  returned: O(state=present)
  type: dict
  contains:
    run:
      description: The run that was cut off.
      type: str
      sample: 20261124-003000-3f2a9c1e
    owner:
      description: Who ran it.
      type: str
      sample: root@control1
    cut_off:
      description: Where it was cut off, V(during) or V(after) a step.
      type: str
      sample: during the restart
    steps:
      description: What it had begun, with C(name), C(status) (V(open), V(done) or V(failed)) and C(run).
      type: list
      elements: dict
    packages:
      description: The packages that its finished upgrades changed, as M(kvm.fleet.guest_upgrade) returns them.
      type: list
      elements: dict
    config_files:
      description: The configuration files that they have put beside others, for a person to compare.
      type: list
      elements: str
    snapshot:
      description: The snapshot that it had made.
      type: str
      sample: pre-upgrade-20261124-003012
    restarted:
      description: Whether it had restarted the guest, and proved that.
      type: bool
      sample: false
    restarting:
      description: Whether it was cut off while it restarted the guest, which may be on its way down, off, or coming up.
      type: bool
      sample: false
    forced:
      description: Whether it had ended the guest by force.
      type: bool
      sample: false
    strategy:
      description: By what it restarted the guest, see M(kvm.fleet.domain_power). V(null) if it did not.
      type: str
      sample: power_cycle
taken_over:
  description: >-
    The lease of another run that this one has taken over, with its C(run), its C(owner), when it was C(taken), and the
    seconds of C(silence) since it was last heard of (V(null) when the hypervisor was rebooted since). V(null) if none.
  returned: O(state=present)
  type: dict
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.kvm.fleet.plugins.module_utils import _lease, _quiesce, _record, _results
from ansible_collections.kvm.fleet.plugins.module_utils._errors import FleetError, InvalidRequest
from ansible_collections.kvm.fleet.plugins.module_utils._lease import Departed
from ansible_collections.kvm.fleet.plugins.module_utils._libvirt import LibvirtDomain, LibvirtHypervisor
from ansible_collections.kvm.fleet.plugins.module_utils._observe import observe
from ansible_collections.kvm.fleet.plugins.module_utils._record import OUTCOMES, Claim, Malformed, Record
from ansible_collections.kvm.fleet.plugins.module_utils._runner import DOMAIN_ARGUMENTS, run
from ansible_collections.kvm.fleet.plugins.module_utils._store import moment


def present(module: AnsibleModule, hypervisor: LibvirtHypervisor) -> dict[str, Any]:
    given = module.params
    domain = hypervisor.domain(given["name"])
    claim = Claim(
        domain=domain.name,
        uuid=domain.uuid,
        run=given["run"],
        owner=given["owner"],
        ttl=given["ttl"],
        take_over=tuple(given["take_over"]),
        take_over_setting=given["take_over_setting"],
        rolls_back=given["rolls_back"],
    )
    taken = _lease.take(
        hypervisor,
        domain,
        claim,
        lambda: _results.observation(observe(hypervisor, domain)),
        given["baseline"],
        brought=brought(domain.uuid, given["record"]) if given["record"] else None,
        check=module.check_mode,
    )
    other, record = taken.taken_over, taken.record
    if not module.check_mode and record.may_be_frozen:
        record = thawed(hypervisor, domain, taken, given["run"])
    return {
        "changed": taken.is_news,
        "record": _record.facts(record),
        "resumed": _record.resumed(record),
        "taken_over": _results.lease(other, moment(hypervisor.clock)) if other else None,
    }


def thawed(hypervisor: LibvirtHypervisor, domain: LibvirtDomain, taken: _lease.Taken, run_id: str) -> Record:
    """The record, once a guest that was left frozen has been looked at.

    Where it cannot be thawed, the lease goes as it came: whoever asked for it does not know that it has it.
    """
    try:
        with _lease.working(hypervisor, domain, run_id, check=False) as recorder:
            _quiesce.thaw_left(domain, hypervisor.clock, recorder)
            return recorder.record or taken.record
    except FleetError:
        if taken.is_news:
            _lease.release(hypervisor, domain, run_id, "refused", None, check=False)
        raise


def brought(uuid: str, given: dict[str, Any]) -> Record:
    """Raises InvalidRequest for what is no record of this guest."""
    try:
        record = _record.parse(_record.dump(given))
    except Malformed as error:
        raise InvalidRequest(
            f"that is no record of a guest: {error}", remedy="Give what guest_lease has returned as record."
        ) from error
    if record.uuid != uuid:
        raise InvalidRequest(
            f"that is the record of the domain {record.uuid}, not of {uuid}", remedy="Give that of the same guest."
        )
    return record


def absent(module: AnsibleModule, hypervisor: LibvirtHypervisor) -> dict[str, Any]:
    given = module.params
    domain = Departed(given["name"], given["uuid"]) if given["uuid"] else hypervisor.domain(given["name"])
    record, released = _lease.release(
        hypervisor, domain, given["run"], given["outcome"], given["error"], check=module.check_mode
    )
    return {"changed": released, "record": _record.facts(record) if record else None}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "run": {"type": "str", "required": True},
            "owner": {"type": "str"},
            "ttl": {"type": "int", "default": 3600},
            "take_over": {"type": "list", "elements": "str", "default": []},
            "take_over_setting": {"type": "str", "default": _record.TAKE_OVER},
            "rolls_back": {"type": "bool", "default": False},
            "baseline": {"type": "dict", "default": {}},
            "record": {"type": "dict"},
            "uuid": {"type": "str"},
            "outcome": {"type": "str", "choices": list(OUTCOMES)},
            "error": {"type": "dict"},
            **DOMAIN_ARGUMENTS,
        },
        required_if=[("state", "present", ["owner"]), ("state", "absent", ["outcome"])],
        supports_check_mode=True,
    )
    act = {"present": present, "absent": absent}[module.params["state"]]
    run(module, lambda hypervisor: act(module, hypervisor))


if __name__ == "__main__":
    main()
