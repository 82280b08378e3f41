#!/usr/bin/python
# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: domain_snapshot
short_description: Create, revert to and delete snapshots of a domain
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Makes internal snapshots, live ones with the guest's RAM where the guest runs. The guest stands still while its RAM
    is stored.
  - Every snapshot made here carries a stamp in its description. Others are never reverted to and never deleted.
  - What would make a snapshot impossible (a disk that is not qcow2, UEFI firmware, too little space beside the disk)
    is refused before anything is changed.
extends_documentation_fragment:
  - kvm.fleet.hypervisor
  - kvm.fleet.hypervisor.domain
  - kvm.fleet.hypervisor.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
options:
  state:
    description:
      - V(present) makes the snapshot unless it is there, V(absent) deletes it if it is there.
      - V(reverted) brings the domain back to it. All that the guest has written since is lost.
    type: str
    choices: [present, absent, reverted]
    default: present
  snapshot:
    description:
      - The snapshot's name. Required unless O(state=present), where it defaults to C(pre-upgrade-YYYYMMDD-HHMMSS) by
        the hypervisor's clock in UTC.
    type: str
  description:
    description:
      - What to write into the snapshot's description, after the collection's stamp.
    type: str
    default: Automatic snapshot before package upgrade
  run:
    description:
      - Id of the run that this is done in, which needs the guest's lease, see M(kvm.fleet.guest_lease). Without it, a
        guest under a live lease is refused.
      - Without O(snapshot), a run has one snapshot. One that the run has made before, or that an earlier run had made
        or begun before it was cut off, is returned as it is. One of more than a day ago, after which that run changed
        nothing, is left aside, and a new one is made.
    type: str
"""

EXAMPLES = r"""
- name: Take a snapshot
  kvm.fleet.domain_snapshot:
    name: web1
  delegate_to: hypervisor1
  register: result

- name: Bring the guest back to it
  kvm.fleet.domain_snapshot:
    name: web1
    snapshot: "{{ result.snapshot.name }}"
    state: reverted
  delegate_to: hypervisor1

- name: Delete it
  kvm.fleet.domain_snapshot:
    name: web1
    snapshot: "{{ result.snapshot.name }}"
    state: absent
  delegate_to: hypervisor1
"""

RETURN = r"""
snapshot:
  description: >-
    The snapshot that was made, found, reverted to or deleted. V(null) when there was nothing to delete. In check mode,
    one that would be made has its name only.
  returned: success
  type: dict
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
      description: The domain's state that it holds.
      type: str
      sample: running
    current:
      description: Whether the domain's state descends from it most recently.
      type: bool
      sample: true
"""

from datetime import datetime
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.kvm.fleet.plugins.module_utils import _record, _results, _snapshot
from ansible_collections.kvm.fleet.plugins.module_utils._lease import Recorder, working
from ansible_collections.kvm.fleet.plugins.module_utils._libvirt import LibvirtDomain, LibvirtHypervisor
from ansible_collections.kvm.fleet.plugins.module_utils._observe import Observation, observe
from ansible_collections.kvm.fleet.plugins.module_utils._record import StepName, StepStatus
from ansible_collections.kvm.fleet.plugins.module_utils._runner import DOMAIN_ARGUMENTS, run
from ansible_collections.kvm.fleet.plugins.module_utils._snapshot_xml import check_description


class Work(NamedTuple):
    """What there is to work with. ``name`` is the snapshot's."""

    domain: LibvirtDomain
    observed: Observation
    recorder: Recorder
    name: str


def default_name(recorder: Recorder, observed: Observation, now: datetime) -> str:
    """The name of the run's snapshot, or that of a new one."""
    there = [snapshot.name for snapshot in observed.snapshots]
    recorded = _record.snapshot_to_keep(recorder.record, there, now) if recorder.record else None
    return recorded or _snapshot.default_name(now)


def present(module: AnsibleModule, work: Work) -> dict[str, Any]:
    name = work.name
    if not _snapshot.creation_needed(work.observed, name, work.domain.memory_bytes()):
        found = _results.snapshot(_snapshot.require_own(work.observed, name))
        recorded = work.recorder.last(StepName.SNAPSHOT)
        if recorded and recorded.status is not StepStatus.DONE and recorded.intent["name"] == name:
            work.recorder.end(StepName.SNAPSHOT, found)
        return {"changed": False, "snapshot": found}
    if module.check_mode:
        return {"changed": True, "snapshot": {"name": name}}
    work.recorder.begin(StepName.SNAPSHOT, {"name": name})
    with work.recorder.failing(StepName.SNAPSHOT):
        made = _results.snapshot(_snapshot.create(work.domain, name, module.params["description"]))
    work.recorder.end(StepName.SNAPSHOT, made)
    return {"changed": True, "snapshot": made}


def absent(module: AnsibleModule, work: Work) -> dict[str, Any]:
    found = _snapshot.find_own(work.observed, work.name)
    if found is None:
        return {"changed": False, "snapshot": None}
    if not module.check_mode:
        _snapshot.delete(work.domain, work.name)
    return {"changed": True, "snapshot": _results.snapshot(found)}


def reverted(module: AnsibleModule, work: Work) -> dict[str, Any]:
    found = _snapshot.require_own(work.observed, work.name)
    if not module.check_mode:
        _snapshot.revert(work.domain, work.name)
        work.recorder.forget(work.domain.uuid)
    return {"changed": True, "snapshot": _results.snapshot(found)}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent", "reverted"], "default": "present"},
            "snapshot": {"type": "str"},
            "description": {"type": "str", "default": _snapshot.DEFAULT_DESCRIPTION},
            "run": {"type": "str"},
            **DOMAIN_ARGUMENTS,
        },
        required_if=[("state", "absent", ["snapshot"]), ("state", "reverted", ["snapshot"])],
        supports_check_mode=True,
    )
    given = module.params
    state = {"present": present, "absent": absent, "reverted": reverted}[given["state"]]

    def work(hypervisor: LibvirtHypervisor) -> dict[str, Any]:
        check_description(given["description"])
        domain = hypervisor.domain(given["name"])
        with working(hypervisor, domain, given["run"], check=module.check_mode) as recorder:
            observed = observe(hypervisor, domain)
            name = given["snapshot"]
            if name is None:
                name = default_name(recorder, observed, hypervisor.clock.now())
            result = state(module, Work(domain, observed, recorder, name))
        result["diff"] = difference(observed, given["state"], name, result["changed"])
        return result

    run(module, work)


def difference(observed: Observation, state: str, name: str, changed: bool) -> dict[str, str]:
    """The domain's own snapshots before and after, one a line; a revert keeps them all and is told in words."""
    before = [snapshot.name for snapshot in observed.own_snapshots]
    after = list(before)
    if changed and state == "present":
        after.append(name)
    elif changed and state == "absent":
        after.remove(name)
    elif changed:
        after.append(f"(reverted to {name})")
    return {"before": "".join(f"{line}\n" for line in before), "after": "".join(f"{line}\n" for line in after)}


if __name__ == "__main__":
    main()
