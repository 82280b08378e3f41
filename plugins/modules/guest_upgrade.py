#!/usr/bin/python
# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_upgrade
short_description: Upgrade the packages of a guest through its agent
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Refreshes the package lists of a guest and upgrades its packages, new dependencies included. Knows apt.
  - The upgrade runs as a systemd unit of its own in the guest, so that it outlives a restart of the guest agent, even
    one by the upgrade itself.
  - An upgrade that an earlier task has left behind in the guest is picked up, whatever became of that task. One that
    still runs is waited for, one that failed or was cut off is repaired after (C(dpkg --configure -a)), and what it had
    changed is part of the result.
  - What has changed is told by the package database before and after. Configuration files that were changed in the
    guest are kept.
  - Does not restart the guest. RV(reboot_required) tells whether it asks for that.
extends_documentation_fragment:
  - kvm.fleet.hypervisor
  - kvm.fleet.hypervisor.domain
  - kvm.fleet.hypervisor.attributes
attributes:
  check_mode:
    support: full
    details:
      - The package lists are refreshed into a directory that is removed again, so that even they stay as they are.
  diff_mode:
    support: full
options:
  security_only:
    description:
      - Upgrade only packages whose new version comes from a security archive, and what those depend on.
    type: bool
    default: false
  autoremove:
    description:
      - Remove packages that nothing depends on any more.
    type: bool
    default: false
  clean:
    description:
      - Empty the cache of downloaded packages after the upgrade.
    type: bool
    default: false
  lock_retries:
    description:
      - How often to try again while another package manager holds the lock.
    type: int
    default: 3
  lock_delay:
    description:
      - Seconds between two tries.
    type: int
    default: 30
  timeout:
    description:
      - Seconds that the upgrade may take. At the deadline the task fails and the upgrade goes on in the guest, since
        ending it would leave the packages half installed. Running the task again waits for it.
    type: int
    default: 1800
"""

EXAMPLES = r"""
- name: Upgrade all packages
  kvm.fleet.guest_upgrade:
    name: web1
    autoremove: true
  delegate_to: hypervisor1
  register: result

- name: Tell what an upgrade would bring
  kvm.fleet.guest_upgrade:
    name: web1
    security_only: true
  delegate_to: hypervisor1
  check_mode: true
"""

RETURN = r"""
packages:
  description: What has changed, or would change in check mode, by name.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The package's name.
      type: str
      sample: libssl3
    arch:
      description: Its architecture. Empty where apt does not tell it, for a removal in check mode.
      type: str
      sample: amd64
    old:
      description: The version before. V(null) for a new package.
      type: str
      sample: 3.0.14-1~deb12u1
    new:
      description: The version after. V(null) for a removed package.
      type: str
      sample: 3.0.15-1~deb12u1
    security:
      description: Whether the new version comes from a security archive.
      type: bool
      sample: true
kept_back:
  description: Packages that have a newer version and are not upgraded to it, such as held and phased ones.
  returned: success
  type: list
  elements: str
  sample: [linux-image-amd64]
unfinished:
  description: >-
    In check mode, what an earlier upgrade has left behind, V(running), V(ended), V(cut_off), or V(none). The upgrade
    would bring it to an end first, and what is left to do after it cannot be told while it is V(running) or V(cut_off).
  returned: success
  type: str
  sample: none
reboot_required:
  description: Whether the guest asks for a reboot now. In check mode, before any upgrade.
  returned: success
  type: bool
  sample: true
reboot_reasons:
  description: What asks for it.
  returned: success
  type: list
  elements: str
  sample: ["/run/reboot-required (linux-image-amd64)"]
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.kvm.fleet.plugins.module_utils import _results, _upgrade
from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._domain import require_running
from ansible_collections.kvm.fleet.plugins.module_utils._job import JobState
from ansible_collections.kvm.fleet.plugins.module_utils._libvirt import LibvirtHypervisor
from ansible_collections.kvm.fleet.plugins.module_utils._packages import PackageChange
from ansible_collections.kvm.fleet.plugins.module_utils._reboot import reboot_state
from ansible_collections.kvm.fleet.plugins.module_utils._runner import DOMAIN_ARGUMENTS, run
from ansible_collections.kvm.fleet.plugins.module_utils._upgrade import UpgradeOptions

OPTIONS: dict[str, Any] = {
    "security_only": {"type": "bool", "default": False},
    "autoremove": {"type": "bool", "default": False},
    "clean": {"type": "bool", "default": False},
    "lock_retries": {"type": "int", "default": 3},
    "lock_delay": {"type": "int", "default": 30},
    "timeout": {"type": "int", "default": 1800},
}


def main() -> None:
    module = AnsibleModule(argument_spec={**OPTIONS, **DOMAIN_ARGUMENTS}, supports_check_mode=True)
    options = UpgradeOptions(**{name: module.params[name] for name in OPTIONS})

    def work(hypervisor: LibvirtHypervisor) -> dict[str, Any]:
        options.check()
        domain = hypervisor.domain(module.params["name"])
        require_running(domain.name, domain.state())
        agent = GuestAgent(domain, hypervisor.clock)
        agent.require("guest-exec", "guest-exec-status")
        _upgrade.require_package_manager(agent)
        unfinished = JobState.NONE
        if module.check_mode:
            ahead = _upgrade.preview(agent, hypervisor.clock, options)
            found, unfinished = ahead.prediction, ahead.unfinished
        else:
            found = _upgrade.upgrade(agent, hypervisor.clock, options)
        reboot = reboot_state(agent)
        return {
            "changed": bool(found.changes) or unfinished is not JobState.NONE,
            "packages": [_results.change(package) for package in found.changes],
            "kept_back": list(found.kept_back),
            "unfinished": unfinished.value,
            "reboot_required": reboot.required,
            "reboot_reasons": list(reboot.reasons),
            "diff": difference(found.changes),
        }

    run(module, work)


def difference(packages: tuple[PackageChange, ...]) -> dict[str, str]:
    """One line a package and version."""
    before = [f"{package.name} {package.old}\n" for package in packages if package.old]
    after = [f"{package.name} {package.new}\n" for package in packages if package.new]
    return {"before": "".join(before), "after": "".join(after)}


if __name__ == "__main__":
    main()
