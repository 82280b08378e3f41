#!/usr/bin/python
# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qemu_trial
short_description: See that the installed QEMU starts machines like those of the guests
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Starts a machine that nobody misses, with 64 MiB and without any disk or network, for each kind of machine that the
    guests are defined with, and sees it run for a second. Guests are of one kind that have the emulator, the machine
    type, the architecture, the processor and the virtualization (KVM or emulation) in common.
  - Fails (C(qemu_trial_failed)) with libvirt's or QEMU's own words at the first kind that does not start. To be called
    before the first guest is shut down.
  - What a guest has besides, such as firmware, disks and devices, is not tried.
  - Each machine is gone when its trial has ended, also when the module is killed. What a libvirt that was ended just
    then may have left is ended by a trial ten minutes later. Other modules do not see these machines.
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
      - The domains whose kinds are tried, matched exactly. Without it, those of all domains.
    type: list
    elements: str
"""

EXAMPLES = r"""
- name: See that guests can be started before one of them is shut down
  kvm.fleet.qemu_trial:
    names: [web1, web2]
  delegate_to: hypervisor1
"""

RETURN = r"""
trials:
  description: What was tried, or would be in check mode. Nothing is left of it.
  returned: success
  type: list
  elements: dict
  contains:
    virtualization:
      description: The domain's type, V(kvm) or V(qemu).
      type: str
      sample: kvm
    emulator:
      description: The QEMU. V(null) where libvirt chooses it.
      type: str
      sample: /usr/bin/qemu-system-x86_64
    architecture:
      description: What it emulates.
      type: str
      sample: x86_64
    machine:
      description: The machine type.
      type: str
      sample: pc-q35-7.2
    processor:
      description: The processor's model or mode. Empty where libvirt chooses it.
      type: str
      sample: host-passthrough
    guests:
      description: The domains of this kind.
      type: list
      elements: str
      sample: [web1, web2]
ended:
  description: Machines of earlier trials that were left behind and are ended by this one.
  returned: success
  type: list
  elements: str
  sample: []
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.kvm.fleet.plugins.module_utils import _trial
from ansible_collections.kvm.fleet.plugins.module_utils._libvirt import LibvirtHypervisor
from ansible_collections.kvm.fleet.plugins.module_utils._runner import HYPERVISOR_ARGUMENTS, run


def main() -> None:
    module = AnsibleModule(
        argument_spec={"names": {"type": "list", "elements": "str"}, **HYPERVISOR_ARGUMENTS}, supports_check_mode=True
    )
    names: list[str] | None = module.params["names"]

    def work(hypervisor: LibvirtHypervisor) -> dict[str, Any]:
        domains = hypervisor.domains() if names is None else [hypervisor.domain(name) for name in names]
        kinds = _trial.kinds_of(domains)
        ended = _trial.old(hypervisor)
        if not module.check_mode:
            for machine in ended:
                _trial.end(machine)
            for kind, guests in kinds.items():
                _trial.try_kind(hypervisor, kind, guests)
        return {
            "changed": bool(ended),
            "trials": [{**kind.facts(), "guests": guests} for kind, guests in kinds.items()],
            "ended": [machine.name for machine in ended],
        }

    run(module, work)


if __name__ == "__main__":
    main()
