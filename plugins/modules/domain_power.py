#!/usr/bin/python
# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: domain_power
short_description: Shut a domain down gracefully, start it, or put it on a new QEMU process
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Brings a domain into the wanted state and proves it.
  - A power cycle is one operation. It ends when the guest agent answers from a new QEMU process, and from a new boot
    of the guest where the agent can tell. A reboot inside the guest would keep the old QEMU.
  - With O(strategy=save_restore), its RAM is saved (libvirt's managed save), and the new QEMU process goes on from
    there. The guest does not boot, and nothing in it is restarted; it stands still for as long as that takes. It ends
    when the guest agent answers from a new QEMU process and from the same boot. The guest's clock is set then, by its
    agent. What was edited in the domain's definition still waits for a cold start, see RV(pending), and the guest's
    processor stays what it was.
  - With O(strategy=migrate), the guest is migrated, as it runs, to another hypervisor, and back with O(come_back). It
    stands still for a moment only. One that is emulated, without KVM, stands still until it is there, and has its clock
    set then, since QEMU loses track of what such a guest writes meanwhile. The module holds a connection to the libvirt
    of either; when it dies, libvirt calls the migration off and the guest runs on where it was. Snapshots inside the
    guest's disks go along. A domain that has left is not defined here any more, see RV(migration). It ends when the
    guest agent answers from the same boot there, or here from a new QEMU process.
  - Where the image of its RAM is written, and in which format, is the hypervisor's own setting (C(save_image_format) of
    C(qemu.conf)). An image elsewhere would be overlooked by whoever starts the domain meanwhile.
  - When the installed QEMU refuses that image, twice, the guest is started anew, as after a power loss, and the task
    fails (C(saved_state_refused)). Its RAM is discarded only once it runs without it. O(keep_image) leaves it off
    instead, to be resumed when the old QEMU has been put back.
  - From the request to shut down until the domain is started, the end of the controller or of its connection does not
    end it, and SIGHUP, SIGTERM and SIGINT wait, so that a restart that is cancelled leaves no domain off.
  - A domain that would not survive a shutdown is refused before anything is changed, such as a transient one, or one
    with a stale managed save image.
  - While an upgrade that is on record is at work in the guest, nothing shuts it down (C(upgrade_running)). For
    O(state=stopped), where the agent does not say so within half a minute, the task goes on with a warning.
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
      - V(started) starts a domain that is off, V(stopped) shuts down one that runs.
      - V(restarted) does both, and refuses a domain that is off.
    type: str
    choices: [started, stopped, restarted]
    required: true
  strategy:
    description:
      - How O(state=restarted) puts a domain on a new QEMU process.
      - V(power_cycle) shuts the guest down and starts it. It also brings what was edited in the domain's definition.
      - V(save_restore) saves its RAM and resumes it, see above. A guest is refused (C(save_impossible)) that has a
        device with a state outside of QEMU, such as a passed-through one, or for whose RAM the hypervisor has no room.
      - V(migrate) migrates it to the one of O(destinations) that is open and has the most free RAM. One is open that
        answers, has no such domain, has a QEMU that is not older (with O(come_back), not newer either), starts the
        domain's type of machine with its processor, and has room for its RAM, and with O(storage=copy) for its disks.
        Where none is, or the guest has a device that does not go along, the task fails (C(migration_impossible)).
      - V(auto) takes V(migrate) where O(destinations) are given and one is open, else V(save_restore) where that is
        open, and otherwise V(power_cycle). RV(closed) says why.
    type: str
    choices: [power_cycle, save_restore, migrate, auto]
    default: power_cycle
  destinations:
    description:
      - URIs of the libvirt of hypervisors that the guest may be migrated to, as this one reaches them, such as
        V(qemu+tls://hypervisor2/system) or V(qemu+ssh://root@hypervisor2/system?no_tty=1). Nobody can be asked for a
        password.
      - QEMU's data go to where the other hypervisor's own C(migration_host) or host name leads.
    type: list
    elements: str
    default: []
  come_back:
    description:
      - Whether the guest, once migrated, is migrated back here at once, to the installed QEMU.
      - Where that fails, the guest stays where it is, and the task fails (C(migrated_away)) and says so.
    type: bool
    default: false
  storage:
    description:
      - What becomes of the guest's disks when it is migrated.
      - V(shared) is for disks that both hypervisors have. libvirt sees to that, as far as it knows the file system.
      - V(trusted) is for disks that both have by a file system that libvirt does not know to be shared. Nobody checks
        that they are the same.
      - V(copy) copies them. Each has to be a file in an active storage pool of the other hypervisor, where no such file
        may be yet. Snapshots are not copied, so a guest that has any is refused. What it leaves here, without
        O(come_back), stays and is told, see RV(migration).
    type: str
    choices: [shared, trusted, copy]
    default: shared
  migrate_timeout:
    description:
      - Seconds that a migration may take, each way. After that it is called off, and the guest goes on where it was. A
        guest that writes its RAM faster than it is sent is slowed down meanwhile.
    type: int
    default: 600
  save_timeout:
    description:
      - Seconds that saving the guest's RAM may take, during which the guest stands still. After that it is called off,
        and the guest goes on where it was.
    type: int
    default: 300
  keep_image:
    description:
      - What to do with a guest whose saved RAM the installed QEMU refuses. V(false) starts it anew, as after a power
        loss. V(true) leaves it off and keeps its RAM.
    type: bool
    default: false
  method:
    description:
      - How to ask the guest to shut down, by the ACPI power button or through its agent.
    type: str
    choices: [acpi, agent]
    default: acpi
  shutdown_timeout:
    description:
      - Seconds that the guest may take to shut down. The power button is pressed again every 30 seconds.
    type: int
    default: 300
  force:
    description:
      - What to do when the guest is still there at the deadline. V(true) ends it as pulling the plug would, and what it
        has not written to disk is lost. V(false) leaves it running and fails.
      - RV(forced) tells when that happened.
    type: bool
    default: false
  agent_timeout:
    description:
      - Seconds to wait for the guest agent after a start. V(0) does not wait, for guests that have no agent.
      - Unless it is V(0), a guest whose agent is silent is refused before it is shut down for V(restarted).
    type: int
    default: 300
  run:
    description:
      - Id of the run that this is done in, which needs the guest's lease, see M(kvm.fleet.guest_lease). Without it, a
        guest under a live lease is refused.
      - A run restarts a guest once for what it has changed. O(state=restarted) brings a restart to its end that an
        earlier run had begun before it was cut off. A guest that is off is then started, since it was that run that
        shut it down. A restart that was proved is not repeated, unless QEMU is outdated again, or it was a power
        cycle and packages were upgraded since.
      - O(state=stopped) is then the beginning of such a restart, O(state=restarted) its end. When the run dies in
        between, the next one starts the guest.
    type: str
"""

EXAMPLES = r"""
- name: Put a guest on the installed QEMU
  kvm.fleet.domain_power:
    name: web1
    state: restarted
  delegate_to: hypervisor1

- name: Put a guest on the installed QEMU without rebooting it, or by a power cycle where that cannot be
  kvm.fleet.domain_power:
    name: web1
    state: restarted
    strategy: auto
  delegate_to: hypervisor1

- name: Get a guest off an outdated QEMU by way of another hypervisor
  kvm.fleet.domain_power:
    name: web1
    state: restarted
    strategy: migrate
    destinations: ["qemu+tls://hypervisor2/system"]
    come_back: true
  delegate_to: hypervisor1

- name: Shut a guest down, and pull the plug if it does not comply within two minutes
  kvm.fleet.domain_power:
    name: web1
    state: stopped
    shutdown_timeout: 120
    force: true
  delegate_to: hypervisor1
"""

RETURN = r"""
restarted:
  description: >-
    Whether the domain is on a new QEMU process, by this task or by an earlier one of O(run), or would be after it.
    Always V(false) unless O(state=restarted).
  returned: success
  type: bool
  sample: true
steps:
  description: >-
    What was done, or would be done in check mode. A selection of V(shut_down), V(save), V(migrate), V(migrate_back),
    V(start), V(restore), V(wait_for_agent), V(set_clock).
  returned: success
  type: list
  elements: str
  sample: [shut_down, start, wait_for_agent]
strategy:
  description: >-
    How the domain was restarted, V(power_cycle), V(save_restore) or V(migrate). V(null) unless O(state=restarted).
  returned: success
  type: str
  sample: save_restore
closed:
  description: The gentler strategies that were not open for O(strategy=auto), and why.
  returned: success
  type: dict
  sample:
    save_restore: "the RAM of domain 'web1' cannot be saved with its hostdev pci: what these know is not in RAM"
pause:
  description: For how long the guest was away when it was restarted, by two measurements.
  returned: success
  type: dict
  contains:
    hypervisor:
      description: >-
        Seconds for which its processors stood still, as the hypervisor saw it. V(null) where nothing was restarted or
        an earlier run had begun it.
      type: float
      sample: 6.2
    guest:
      description: >-
        Seconds that the guest's own clock has leapt over, by a heartbeat in it that began before it was shut down or
        saved. After a boot, they end with the agent's first answer. V(null) where the guest runs no commands for us,
        where it took longer than the heartbeat lasts (a quarter of an hour), or where its clock could not be set after
        it was resumed.
      type: float
      sample: 6.4
migration:
  description: Where the domain was migrated to, or would be in check mode. V(null) unless RV(strategy=migrate).
  returned: success
  type: dict
  contains:
    destination:
      description: The one of O(destinations) that was chosen.
      type: str
      sample: qemu+tls://hypervisor2/system
    came_back:
      description: Whether the guest is here again. V(false) if it runs there.
      type: bool
      sample: true
    left_behind:
      description: The images here that the guest has left, since they were copied. Nothing removes them.
      type: list
      elements: str
      sample: []
clock:
  description: >-
    What was done about the guest's clock. V(null) unless the guest was resumed from its saved RAM, or stood still while
    it was migrated.
  returned: success
  type: dict
  contains:
    behind:
      description: Seconds that the guest's clock had lost. V(null) where its agent may not tell the time.
      type: float
      sample: 6.3
    set:
      description: Whether it was set.
      type: bool
      sample: true
    problem:
      description: Why not.
      type: str
      sample: the guest agent does not allow guest-set-time
pending:
  description: >-
    What differs in the domain's definition, by its size and its devices, from the domain as it runs on, and waits for
    a cold start. Empty unless RV(strategy=save_restore).
  returned: success
  type: list
  elements: str
  sample: [vcpu, interface 52:54:00:12:34:56]
forced:
  description: Whether the domain was ended by force.
  returned: success
  type: bool
  sample: false
transitions:
  description: The states that the domain was seen in, and since when.
  returned: success
  type: list
  elements: dict
  contains:
    state:
      description: A state, as M(kvm.fleet.domain_info) names them.
      type: str
      sample: shut_off
    at:
      description: When it was first seen, in UTC.
      type: str
      sample: "2026-03-01T02:00:12Z"
before:
  description: The QEMU process and the guest's boot before a shutdown.
  returned: success
  type: dict
  contains:
    pid:
      description: Process id of QEMU. V(null) when nothing ran or it was not looked at.
      type: int
      sample: 8718
    started:
      description: When that process was started, in UTC.
      type: str
      sample: "2026-03-01T02:00:12Z"
    boot_id:
      description: The guest kernel's id of its boot. V(null) when the guest could not be asked.
      type: str
      sample: 0b1d3a7d-2f8a-4a0e-9d0b-6c8e58b40c55
after:
  description: The same after a start.
  returned: success
  type: dict
  contains:
    pid:
      description: Process id of QEMU. V(null) when nothing ran or it was not looked at.
      type: int
      sample: 8718
    started:
      description: When that process was started, in UTC.
      type: str
      sample: "2026-03-01T02:00:12Z"
    boot_id:
      description: The guest kernel's id of its boot. V(null) when the guest could not be asked.
      type: str
      sample: 0b1d3a7d-2f8a-4a0e-9d0b-6c8e58b40c55
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.kvm.fleet.plugins.module_utils import _power, _power_steps, _restart, _results
from ansible_collections.kvm.fleet.plugins.module_utils._domain import ACTIVE_STATES, ShutdownMethod, Storage
from ansible_collections.kvm.fleet.plugins.module_utils._lease import working
from ansible_collections.kvm.fleet.plugins.module_utils._libvirt import LibvirtHypervisor
from ansible_collections.kvm.fleet.plugins.module_utils._observe import observe
from ansible_collections.kvm.fleet.plugins.module_utils._power import (
    DOWN,
    UP,
    PowerOptions,
    PowerReport,
    PowerState,
    Step,
    Strategy,
)
from ansible_collections.kvm.fleet.plugins.module_utils._runner import DOMAIN_ARGUMENTS, run


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["started", "stopped", "restarted"], "required": True},
            "method": {"type": "str", "choices": ["acpi", "agent"], "default": "acpi"},
            "shutdown_timeout": {"type": "int", "default": 300},
            "force": {"type": "bool", "default": False},
            "agent_timeout": {"type": "int", "default": 300},
            "strategy": {
                "type": "str",
                "choices": ["power_cycle", "save_restore", "migrate", "auto"],
                "default": "power_cycle",
            },
            "destinations": {"type": "list", "elements": "str", "default": []},
            "come_back": {"type": "bool", "default": False},
            "storage": {"type": "str", "choices": ["shared", "trusted", "copy"], "default": "shared"},
            "migrate_timeout": {"type": "int", "default": 600},
            "save_timeout": {"type": "int", "default": 300},
            "keep_image": {"type": "bool", "default": False},
            "run": {"type": "str"},
            **DOMAIN_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    options = PowerOptions(
        method=ShutdownMethod(module.params["method"]),
        shutdown_timeout=module.params["shutdown_timeout"],
        force=module.params["force"],
        agent_timeout=module.params["agent_timeout"],
        strategy=Strategy(module.params["strategy"]),
        save_timeout=module.params["save_timeout"],
        keep_image=module.params["keep_image"],
        destinations=tuple(module.params["destinations"]),
        come_back=module.params["come_back"],
        storage=Storage(module.params["storage"]),
        migrate_timeout=module.params["migrate_timeout"],
    )
    wanted = PowerState(module.params["state"])

    def work(hypervisor: LibvirtHypervisor) -> dict[str, Any]:
        options.check()
        domain = hypervisor.domain(module.params["name"])
        with working(hypervisor, domain, module.params["run"], check=module.check_mode, warn=module.warn) as recorder:
            observed = observe(hypervisor, domain)
            if wanted is PowerState.RESTARTED:
                steps, report = _restart.restart(
                    hypervisor, domain, observed, options, recorder, check=module.check_mode
                )
            elif wanted is PowerState.STOPPED:
                steps, report = _restart.stop(hypervisor, domain, observed, options, recorder, check=module.check_mode)
            else:
                steps = _power.plan(observed, wanted, options)
                _power_steps.check(hypervisor, domain, steps, options)
                report = PowerReport() if module.check_mode else _power_steps.apply(hypervisor, domain, steps, options)
        return {
            "changed": not (DOWN | UP).isdisjoint(steps),
            "restarted": wanted is PowerState.RESTARTED,
            "steps": [step.value for step in steps],
            **_results.power(report),
            "diff": difference(observed.state in ACTIVE_STATES, steps),
        }

    run(module, work)


def difference(active: bool, steps: tuple[Step, ...]) -> dict[str, str]:
    """In words, since a restart begins and ends in the same state."""
    before = "running" if active else "off"
    after = "off" if Step.SHUT_DOWN in steps else before
    if Step.START in steps:
        after = "running on a new QEMU process"
    elif Step.RESTORE in steps:
        after = "running on a new QEMU process, from its saved RAM"
    elif Step.MIGRATE_BACK in steps:
        after = "running on a new QEMU process, by way of another hypervisor"
    elif Step.MIGRATE in steps:
        after = "running on another hypervisor"
    return {"before": f"{before}\n", "after": f"{after}\n"}


if __name__ == "__main__":
    main()
