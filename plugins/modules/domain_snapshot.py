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
  - Makes the snapshot that fits the guest, or that O(way) asks for. Inside its qcow2 disks, with its RAM or while it is
    off; or, where they cannot hold one, as layers over its disks, which from then on have all that it writes.
  - Every snapshot made here carries a stamp in its description. Others are never reverted to and never deleted.
  - Where no way is open, because of a disk, the firmware, a device or too little space, that is refused before anything
    is changed.
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
      - V(present) makes the snapshot unless it is there, V(absent) deletes it if it is there. The layers of an external
        one are committed into the disks for that, whether the guest runs or not, and nothing that it has written is
        lost.
      - V(reverted) brings the domain back to it. All that the guest has written since is lost. A guest that ran when it
        was made runs then; from its disks alone, as after a power loss, where the installed QEMU refuses the RAM of an
        external one, and then the task fails all the same (C(saved_state_refused)). Refused while the domain has a
        managed save image, whose RAM would not go with its disks, and for an external one on whose layers a newer
        snapshot stands. In a run, it is on record as a rollback, and one that is cut off is gone on with by the role
        P(kvm.fleet.rollback#role).
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
  way:
    description:
      - How to make a snapshot of a guest that runs. Of one that is off, it is made as with V(offline).
      - V(live) stores its RAM as well, inside its disks, which have to be qcow2, without UEFI firmware. It stands still
        for that.
      - V(external_live) stores its RAM in a file beside its first disk, and puts layers over its disks, which may be
        raw.
      - V(external) puts layers over its disks while its agent keeps its file systems frozen, and stores no RAM. A guest
        that is reverted to it boots. Its UEFI variables are copied as well. Whatever becomes of this module or of
        libvirt, the guest is thawed.
      - V(offline) shuts the guest down, makes the snapshot, inside its disks where they can hold it and else as layers,
        starts the guest again on a new QEMU process and proves that, as M(kvm.fleet.domain_power) does.
      - V(auto) is the first of these that is open, in this order. V(online) likewise, without V(offline).
      - A guest with a TPM is only open to the ways that store RAM, since its TPM's state comes back with nothing else.
      - The room beside the disks has to be that of the guest's RAM, where it is stored, and besides 64 MiB for a
        snapshot inside of them, or for each layer a tenth of its disk, at least 1 GiB. A layer may grow to the size of
        its disk. QEMU pauses a guest that finds no room.
    type: str
    choices: [auto, online, live, external_live, external, offline]
    default: online
  method:
    description:
      - How to ask a guest to shut down that has to be off, as M(kvm.fleet.domain_power) takes it.
    type: str
    choices: [acpi, agent]
    default: acpi
  shutdown_timeout:
    description:
      - Seconds that it may take to shut down. It is left running then, and the task fails.
    type: int
    default: 300
  force:
    description:
      - Whether to end it as pulling the plug would at that deadline instead.
    type: bool
    default: false
  agent_timeout:
    description:
      - Seconds for its guest agent to answer after the start. V(0) does not wait.
    type: int
    default: 300
  run:
    description:
      - Id of the run that this is done in, which needs the guest's lease, see M(kvm.fleet.guest_lease). Without it, a
        guest under a live lease is refused.
      - Without O(snapshot), a run has one snapshot. One that the run has made before, or that an earlier run had made
        or begun before it was cut off, is returned as it is. One of more than a day ago, after which that run changed
        nothing, is left aside, and a new one is made. So it is where that run was cut off while it deleted it, which is
        brought to its end first.
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
way:
  description: >-
    How the snapshot was made, or would be in check mode, V(live), V(external_live), V(external) or V(offline). V(null)
    where none was.
  returned: success
  type: str
  sample: live
closed:
  description: Why the ways that come before it were not open, by their names.
  returned: success
  type: dict
  sample: {live: "disk vda of domain 'web1' is raw, which cannot hold a snapshot"}
restarted:
  description: >-
    Whether the domain was put on a new QEMU process for it, which was proved, or would be in check mode. Always
    V(false) unless RV(way=offline).
  returned: success
  type: bool
  sample: false
forced:
  description: Whether the domain was ended by force for it.
  returned: success
  type: bool
  sample: false
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
      description: The domain's state that it holds, C(disk-snapshot) for a guest that ran, without its RAM.
      type: str
      sample: running
    current:
      description: Whether the domain's state descends from it most recently.
      type: bool
      sample: true
    way:
      description: How it was made, as O(way) names it.
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
"""

from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.kvm.fleet.plugins.module_utils import (
    _external,
    _quiesce,
    _record,
    _restart,
    _results,
    _rollback,
    _snapshot,
)
from ansible_collections.kvm.fleet.plugins.module_utils._domain import ACTIVE_STATES, ShutdownMethod
from ansible_collections.kvm.fleet.plugins.module_utils._external import Wanted
from ansible_collections.kvm.fleet.plugins.module_utils._lease import Recorder, working
from ansible_collections.kvm.fleet.plugins.module_utils._libvirt import LibvirtDomain, LibvirtHypervisor
from ansible_collections.kvm.fleet.plugins.module_utils._observe import Observation, observe
from ansible_collections.kvm.fleet.plugins.module_utils._power import PowerOptions
from ansible_collections.kvm.fleet.plugins.module_utils._record import StepName, StepStatus
from ansible_collections.kvm.fleet.plugins.module_utils._runner import DOMAIN_ARGUMENTS, run
from ansible_collections.kvm.fleet.plugins.module_utils._snapshot_policy import CHOICES, ONLINE, Way
from ansible_collections.kvm.fleet.plugins.module_utils._snapshot_xml import check_description, is_being_deleted


class Work(NamedTuple):
    """What there is to work with. ``name`` is the snapshot's."""

    hypervisor: LibvirtHypervisor
    domain: LibvirtDomain
    observed: Observation
    recorder: Recorder
    name: str


def default_name(recorder: Recorder, observed: Observation, now: datetime) -> str:
    """The name of the run's snapshot, or that of a new one."""
    there = [snapshot.name for snapshot in observed.snapshots]
    recorded = _record.snapshot_to_keep(recorder.record, there, now) if recorder.record else None
    return recorded or _snapshot.default_name(now)


def without_half_deleted(module: AnsibleModule, work: Work) -> Work:
    """Bring the deletion to its end of a snapshot that a run would use, and have it make a new one."""
    found = _snapshot.find_own(work.observed, work.name)
    if found is None or not is_being_deleted(found):
        return work
    if module.check_mode:
        _snapshot.require_safe_deletion(work.hypervisor, work.domain, found)
        left = tuple(snapshot for snapshot in work.observed.snapshots if snapshot is not found)
        observed = replace(work.observed, snapshots=left)
    else:
        _snapshot.delete(work.hypervisor, work.domain, found)
        observed = observe(work.hypervisor, work.domain)
    return work._replace(observed=observed, name=_snapshot.default_name(work.hypervisor.clock.now()))


def present(module: AnsibleModule, work: Work) -> dict[str, Any]:
    if module.params["snapshot"] is None:
        work = without_half_deleted(module, work)
    name = work.name
    if not module.check_mode:
        _quiesce.thaw_left(work.domain, work.hypervisor.clock, work.recorder)
    if not _snapshot.creation_needed(work.observed, name):
        found = _results.snapshot(_snapshot.require_own(work.observed, name))
        recorded = work.recorder.last(StepName.SNAPSHOT)
        if recorded and recorded.status is not StepStatus.DONE and recorded.intent["name"] == name:
            work.recorder.end(StepName.SNAPSHOT, found)
        return {"changed": False, "snapshot": found}
    _external.clear_left(work.hypervisor, work.domain, work.recorder, check=module.check_mode)
    choice = _snapshot.choose_way(work.hypervisor, work.domain, work.observed, module.params["way"])
    told = {"way": choice.way.value, "closed": {way.value: why for way, why in choice.closed.items()}}
    cycling = choice.way is Way.OFFLINE and work.observed.state in ACTIVE_STATES
    options = power_options(module)
    if cycling:
        _restart.see_that_it_can_be_off(work.hypervisor, work.domain, work.observed, options, work.recorder)
    if module.check_mode:
        return {"changed": True, "snapshot": {"name": name}, **told, "restarted": cycling}
    made: dict[str, Any] = {}

    nvram = work.observed.definition.nvram
    wanted = Wanted(name, module.params["description"], choice.way is Way.EXTERNAL_LIVE, nvram)

    def note(facts: _record.Facts) -> None:
        work.recorder.note(StepName.SNAPSHOT, facts)

    def make() -> None:
        work.recorder.begin(StepName.SNAPSHOT, {"name": name})
        with work.recorder.failing(StepName.SNAPSHOT):
            made.update(_results.snapshot(_snapshot.create(work.hypervisor, work.domain, wanted, choice, note)))
        work.recorder.end(StepName.SNAPSHOT, made)

    forced = False
    if cycling:
        report = _restart.cycle(work.hypervisor, work.domain, work.observed, options, work.recorder, meanwhile=make)
        forced = report.forced
    else:
        make()
    return {"changed": True, "snapshot": made, **told, "restarted": cycling, "forced": forced}


def power_options(module: AnsibleModule) -> PowerOptions:
    given = module.params
    options = PowerOptions(
        method=ShutdownMethod(given["method"]),
        shutdown_timeout=given["shutdown_timeout"],
        force=given["force"],
        agent_timeout=given["agent_timeout"],
    )
    options.check()
    return options


def absent(module: AnsibleModule, work: Work) -> dict[str, Any]:
    found = _snapshot.find_own(work.observed, work.name)
    if found is None:
        return {"changed": False, "snapshot": None}
    _snapshot.require_safe_deletion(work.hypervisor, work.domain, found)
    told = _results.snapshot(found)
    if not module.check_mode:
        _snapshot.delete(work.hypervisor, work.domain, found)
    return {"changed": True, "snapshot": told}


def reverted(module: AnsibleModule, work: Work) -> dict[str, Any]:
    found = _snapshot.require_own(work.observed, work.name)
    _snapshot.require_safe_revert(work.hypervisor, work.domain, work.observed, found)
    if not module.check_mode:
        with work.hypervisor.uninterrupted():
            refusal = _rollback.revert(work.hypervisor, work.domain, found, work.recorder)
            if refusal or _snapshot.way_of(found) is Way.EXTERNAL:
                with _rollback.telling_how_it_is_left(work.domain):
                    work.domain.start()
        work.recorder.forget(work.domain.uuid)
        if refusal:
            raise refusal
    return {"changed": True, "snapshot": _results.snapshot(found)}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent", "reverted"], "default": "present"},
            "snapshot": {"type": "str"},
            "description": {"type": "str", "default": _snapshot.DEFAULT_DESCRIPTION},
            "way": {"type": "str", "choices": list(CHOICES), "default": ONLINE},
            "method": {"type": "str", "choices": ["acpi", "agent"], "default": "acpi"},
            "shutdown_timeout": {"type": "int", "default": 300},
            "force": {"type": "bool", "default": False},
            "agent_timeout": {"type": "int", "default": 300},
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
            result = state(module, Work(hypervisor, domain, observed, recorder, name))
        result = {"way": None, "closed": {}, "restarted": False, "forced": False, **result}
        result["diff"] = difference(observed, given["state"], name, result)
        return result

    run(module, work)


def difference(observed: Observation, state: str, name: str, result: dict[str, Any]) -> dict[str, str]:
    """The domain's own snapshots before and after, one a line; a revert keeps them all and is told in words.

    One that was made may be in place of that of this ``name``, see ``without_half_deleted``.
    """
    changed: bool = result["changed"]
    before = [snapshot.name for snapshot in observed.own_snapshots]
    after = list(before)
    if changed and state == "present":
        after = [*(other for other in before if other != name), result["snapshot"]["name"]]
    elif changed and state == "absent":
        after.remove(name)
    elif changed:
        after.append(f"(reverted to {name})")
    return {"before": "".join(f"{line}\n" for line in before), "after": "".join(f"{line}\n" for line in after)}


if __name__ == "__main__":
    main()
