#!/usr/bin/python
# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_repair
short_description: Repair a guest on its image, while it is off
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Opens the disks of a domain that is off with libguestfs, and repairs what keeps its system from coming up. Nothing
    in the guest has to work for that, and no program of the hypervisor reads its file systems.
  - A domain that is not off is refused, unless O(power_cycle) is set. One that is started meanwhile does not start,
    since QEMU locks a file that is written to. Of disks that are no files, see O(block_devices).
  - The repairs are done in this order, V(fsck), V(packages), V(agent), O(script). The first one that fails ends the
    task, with what was done before it in the evidence as C(repairs).
  - Programs are the guest's own, run by the kernel of libguestfs's appliance, as root, without an init system and,
    unless O(network) is set, without a network. What they change in C(/run) does not stay.
  - What programs write into the image of a guest that uses SELinux has no labels at first. All files are labelled
    before the image is closed, where libguestfs can do that, else by the guest itself at its next boot, which takes it
    some minutes and one more reboot. RV(selinux_relabel) tells which.
  - libguestfs runs as C(LIBGUESTFS_BACKEND) and C(LIBGUESTFS_BACKEND_SETTINGS) in the task's environment say.
    Otherwise it runs QEMU directly, and emulated for a domain that is emulated itself.
extends_documentation_fragment:
  - kvm.fleet.hypervisor
  - kvm.fleet.hypervisor.domain
  - kvm.fleet.hypervisor.attributes
requirements:
  - guestfish on the hypervisor (libguestfs-tools in Debian, Ubuntu and RHEL 8, libguestfs in later RHEL, Fedora and
    SUSE)
  - for O(virt_rescue), virt-rescue (libguestfs-tools in Debian and Ubuntu, libguestfs-rescue in RHEL, Fedora and SUSE)
attributes:
  check_mode:
    support: full
    details:
      - Everything is done, on a copy of the image that is thrown away at the end. Of a guest that runs, with
        O(power_cycle), only whether it can be shut down and its image could be opened then.
  diff_mode:
    support: none
options:
  repairs:
    description:
      - V(fsck) checks every file system (ext2 to ext4, XFS, FAT) while none is mounted, and corrects what is damaged.
        What e2fsck would ask a person about is answered with yes. Others are left alone, and named.
      - V(packages) finishes what dpkg was interrupted in (C(dpkg --configure -a), which keeps configuration files that
        were changed), or makes a database of rpm's anew that does not verify.
      - V(agent) has the settings of the guest's agent allow C(guest-exec), C(guest-exec-status) and the commands for
        files, as M(kvm.fleet.guest_agent_policy) does offline. All else in them stays, a copy is kept beside each file
        that is changed, and the change is written to C(/var/lib/kvm-fleet/audit.jsonl) on the hypervisor.
    type: list
    elements: str
    choices: [fsck, packages, agent]
    default: []
  script:
    description:
      - A script for the guest's C(/bin/sh). It fails the task when it returns other than zero.
    type: str
  timeout:
    description:
      - Seconds that one repair may take. Then it is ended, and the image is as after a power failure.
    type: int
    default: 1800
  block_devices:
    description:
      - Whether disks that are block devices, such as logical volumes, may be worked on.
      - QEMU's lock on an image protects files only, since libvirt gives each QEMU device nodes of its own. Nothing
        keeps such a guest from being started meanwhile, by hand, by a cluster manager or with the hypervisor, and both
        would write. V(true) says that you see to that.
      - Where the domain runs all the same, what works on its disks is ended within a second or so, and the task fails.
        The disks are then as after a power failure.
    type: bool
    default: false
  network:
    description:
      - Whether programs and O(script) have a network, as for installing a package. It is the user-mode network of
        libguestfs's QEMU. The guest's programs then reach whatever the hypervisor reaches, with its address, and the
        services on its loopback as well, at C(169.254.2.2).
    type: bool
    default: false
  power_cycle:
    description:
      - Shut the guest down first, and start it afterwards, whatever came of the repairs. One that is off is started,
        too. From the request to shut down until it is started, the task goes on though its controller is cancelled or
        gone, so the guest is not left off.
      - A repair that fails is told first. What came of the start is then in the evidence.
    type: bool
    default: false
  method:
    description: How to ask for the shutdown, as for M(kvm.fleet.domain_power).
    type: str
    choices: [acpi, agent]
    default: acpi
  shutdown_timeout:
    description:
      - Seconds that the guest may take to shut down. One that does not is left running, and nothing is repaired.
    type: int
    default: 300
  force:
    description:
      - End a guest that is still there at the deadline, as pulling the plug would. What it has not written to disk is
        lost.
    type: bool
    default: false
  agent_timeout:
    description:
      - Seconds to wait for the guest agent after the start. V(0) does not wait, for guests that have no agent.
    type: int
    default: 300
  before_shutdown:
    description:
      - Only see to it that the image of a domain that may still run could be opened once it is off, as far as that
        shows without opening it. Nothing is repaired, in check mode or not.
    type: bool
    default: false
  rehearse:
    description:
      - Only do all of it on a copy of the image that is thrown away, as in check mode, and also where the domain runs.
        Its disks are then as they are at that moment, as after a power failure, and may make no sense.
      - So a script that refuses something does that before the guest is shut down for it. What it prints tells whether
        that is needed at all.
      - Whether that would change anything is the result of the task. Files are not labelled then.
    type: bool
    default: false
  virt_rescue:
    description:
      - A person is going to repair the guest in virt-rescue's shell. So O(before_shutdown), with which alone it goes,
        looks for that program, and there are no O(repairs).
    type: bool
    default: false
  run:
    description:
      - Id of the run that this is done in, which needs the guest's lease, see M(kvm.fleet.guest_lease). Without it, a
        guest under a live lease is refused.
    type: str
"""

EXAMPLES = r"""
- name: Repair what an upgrade has left half done
  kvm.fleet.guest_repair:
    name: web1
    repairs: [fsck, packages]
  delegate_to: hypervisor1

- name: Have a guest forget a mount that keeps it from booting
  kvm.fleet.guest_repair:
    name: web1
    script: sed -i '\|^/dev/vdb|s|^|#|' /etc/fstab
  delegate_to: hypervisor1

- name: Check the file systems of a guest that runs
  kvm.fleet.guest_repair:
    name: web1
    repairs: [fsck]
    power_cycle: true
  delegate_to: hypervisor1
"""

RETURN = r"""
repairs:
  description: What was done, in order, or in check mode on the copy.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: V(fsck), V(packages), V(agent) or V(script).
      type: str
      sample: fsck
    changed:
      description: Whether it has changed anything. A script always has.
      type: bool
      sample: true
    output:
      description: What it printed, of a script its standard output. At most its last 256 KiB.
      type: str
      sample: "/dev/sda1 (ext4): errors were corrected\n"
selinux_relabel:
  description: >-
    Whether the guest's files got their SELinux labels (V(done)), or get them at its next boot (V(at_boot)). V(null)
    where it is not needed, and with O(rehearse).
  returned: success
  type: str
  sample: at_boot
power:
  description: >-
    What came of O(power_cycle), or would: whether the guest was C(restarted) (also where it was off), and what
    M(kvm.fleet.domain_power) returns besides, as RV(kvm.fleet.domain_power#module:forced). V(null) without it.
  returned: success
  type: dict
  sample: {restarted: true, forced: false, pending: []}
virt_rescue:
  description: >-
    The command that opens a shell on the image once the domain is off, for a person at a terminal of the hypervisor.
  returned: with O(before_shutdown). V(null) unless O(virt_rescue) is set
  type: str
  sample: env LIBGUESTFS_BACKEND=direct virt-rescue --format=qcow2 -a /var/lib/libvirt/images/web1.qcow2 -i
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.kvm.fleet.plugins.module_utils import _repair, _repair_cycle, _results
from ansible_collections.kvm.fleet.plugins.module_utils._domain import ShutdownMethod
from ansible_collections.kvm.fleet.plugins.module_utils._lease import working
from ansible_collections.kvm.fleet.plugins.module_utils._libvirt import LibvirtHypervisor
from ansible_collections.kvm.fleet.plugins.module_utils._power import PowerOptions, PowerReport
from ansible_collections.kvm.fleet.plugins.module_utils._repair import Repair, Repaired, Wanted
from ansible_collections.kvm.fleet.plugins.module_utils._runner import DOMAIN_ARGUMENTS, run


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "repairs": {"type": "list", "elements": "str", "choices": ["fsck", "packages", "agent"], "default": []},
            "script": {"type": "str"},
            "timeout": {"type": "int", "default": 1800},
            "block_devices": {"type": "bool", "default": False},
            "network": {"type": "bool", "default": False},
            "power_cycle": {"type": "bool", "default": False},
            "method": {"type": "str", "choices": ["acpi", "agent"], "default": "acpi"},
            "shutdown_timeout": {"type": "int", "default": 300},
            "force": {"type": "bool", "default": False},
            "agent_timeout": {"type": "int", "default": 300},
            "before_shutdown": {"type": "bool", "default": False},
            "rehearse": {"type": "bool", "default": False},
            "virt_rescue": {"type": "bool", "default": False},
            "run": {"type": "str"},
            **DOMAIN_ARGUMENTS,
        },
        mutually_exclusive=[("power_cycle", "before_shutdown", "rehearse")],
        supports_check_mode=True,
    )
    given = module.params
    wanted = Wanted(
        fsck=Repair.FSCK.value in given["repairs"],
        packages=Repair.PACKAGES.value in given["repairs"],
        agent=Repair.AGENT.value in given["repairs"],
        script=given["script"],
        timeout=given["timeout"],
        shell=given["virt_rescue"],
        block_devices=given["block_devices"],
        run=given["run"],
        network=given["network"],
        rehearse=given["rehearse"],
    )
    options = PowerOptions(
        method=ShutdownMethod(given["method"]),
        shutdown_timeout=given["shutdown_timeout"],
        force=given["force"],
        agent_timeout=given["agent_timeout"],
    )

    def work(hypervisor: LibvirtHypervisor) -> dict[str, Any]:
        wanted.check()
        domain = hypervisor.domain(given["name"])
        only_tried = module.check_mode or wanted.rehearse
        with working(hypervisor, domain, given["run"], check=only_tried, warn=module.warn) as recorder:
            if given["before_shutdown"]:
                command = _repair.foresee(domain, wanted, uri=hypervisor.uri)
                return {**told(Repaired((), None)), "virt_rescue": command}
            if given["power_cycle"]:
                cycled = _repair_cycle.repair(hypervisor, domain, wanted, options, recorder, check=module.check_mode)
                return {**told(cycled.repaired), "changed": True, **power(cycled.power)}
            return told(_repair.repair(domain, wanted, uri=hypervisor.uri, check=module.check_mode))

    run(module, work)


def told(repaired: Repaired) -> dict[str, Any]:
    return {"changed": any(one.changed for one in repaired.done), **repaired.facts(), "power": None}


def power(report: PowerReport) -> dict[str, Any]:
    found = _results.power(report)
    warnings = found.pop("warnings", [])  # Ansible shows those of the whole result
    return {"power": {"restarted": True, **found}, **({"warnings": warnings} if warnings else {})}


if __name__ == "__main__":
    main()
