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
  - Refreshes the package lists of a guest and upgrades its packages, new dependencies included. Knows apt, dnf (4 and
    5) and zypper. A guest that has only the yum of RHEL and CentOS 7 is refused (C(package_manager_unknown)).
  - openSUSE Tumbleweed and Slowroll, which have no releases, are upgraded by C(zypper dist-upgrade), which may also
    downgrade and remove packages. Check mode tells which.
  - The upgrade runs as a systemd unit of its own in the guest, so that it outlives a restart of the guest agent, even
    one by the upgrade itself. In a guest without systemd it is a session of its own, which outlives an agent that
    merely ends, but neither an init system that ends the agent's whole control group nor a shutdown of the guest.
  - An upgrade that an earlier task has left behind in the guest is picked up, whatever became of that task. One that
    still runs is waited for, one that failed or was cut off is repaired after (C(dpkg --configure -a) and its like),
    and what it had changed is part of the result.
  - What has changed is told by the package database before and after.
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
  package_manager:
    description:
      - By what to upgrade. V(auto) takes the one of the guest's distribution.
    type: str
    choices: [auto, apt, dnf, zypper]
    default: auto
  security_only:
    description:
      - Upgrade only what the guest's repositories call a security update, and what that depends on.
      - With apt these are the packages whose new version comes from a security archive, with dnf those of
        C(upgrade --security), with zypper those of the patches of category security.
      - What comes from a repository that does not tell its security updates is kept back and named in
        RV(kept_back).
    type: bool
    default: false
  exclude:
    description:
      - Names of packages that stay as they are, and are named in RV(kept_back). V(*), V(?) and V([…]) mean in them what
        they mean in a shell.
    type: list
    elements: str
    default: []
  conffiles:
    description:
      - What becomes of a configuration file that was changed in the guest and that its package brings anew. V(keep)
        leaves it, V(replace) puts the package's in its place. Either way the other one stays beside it and is named in
        RV(config_files).
    type: str
    choices: [keep, replace]
    default: keep
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
      - How often O(lock_delay) may pass while another package manager holds the lock. It is tried again at growing
        intervals within that time, or waited for by the package manager itself.
    type: int
    default: 3
  lock_delay:
    description:
      - Seconds between two tries at most.
    type: int
    default: 30
  timeout:
    description:
      - Seconds that the upgrade may take, from its beginning in the guest, whichever run began it. At the deadline the
        package manager is asked to stop. It ends when the transaction that it is in is done, never in the middle of
        unpacking; then the task fails and says how far it came. Running it again goes on from there.
    type: int
    default: 1800
  interval:
    description:
      - Seconds after which the task returns although the upgrade still runs, with RV(finished=false) and how far it is
        in RV(progress). The next task with the same O(run) follows it further, as C(until) repeats it.
      - Without it the task returns when the upgrade has ended.
    type: int
  run:
    description:
      - Id of the run whose upgrade it is. Tasks with the same id are about one upgrade, of which a failure is told
        once; a task of another run repairs what a failed one has left.
      - Where the run has the guest's lease (see M(kvm.fleet.guest_lease)), the upgrade is on record there as well. It
        need not have one. A guest under a live lease of another run is refused.
    type: str
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
    exclude: [linux-image-*]
  delegate_to: hypervisor1
  check_mode: true

- name: Upgrade, and say every 15 seconds how far it is
  kvm.fleet.guest_upgrade:
    name: web1
    run: "{{ ansible_date_time.iso8601_basic_short }}"
    interval: 15
  delegate_to: hypervisor1
  register: result
  until: result is failed or result.finished
  retries: 150
  delay: 0
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
      description: Whether it is a security update. V(null) where its repository does not tell.
      type: bool
      sample: true
kept_back:
  description: Packages that have a newer version and are not upgraded to it.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The package's name.
      type: str
      sample: linux-image-amd64
    reason:
      description: >-
        V(held) by the guest's own list, V(phased) by its distribution, V(excluded) by O(exclude), V(dependencies) that
        do not allow it, or V(security_unknown) where only security updates are wanted and its repository does not tell.
        Which of the held ones are security updates is not told.
      type: str
      sample: held
config_files:
  description: Configuration files that the upgrade has put beside others, for a person to compare.
  returned: success
  type: list
  elements: str
  sample: ["/etc/ssh/sshd_config.dpkg-dist"]
package_manager:
  description: What upgrades this guest.
  returned: success
  type: str
  sample: apt
finished:
  description: Whether the upgrade has ended. Always so without O(interval).
  returned: success
  type: bool
  sample: true
progress:
  description: How far the upgrade is. V(null) once it has ended.
  returned: success
  type: dict
  contains:
    percent:
      description: How much is done. V(null) where the package manager has not told yet.
      type: int
      sample: 42
    package:
      description: The package that is worked on, as the guest tells it.
      type: str
      sample: libssl3
    activity:
      description: What is being done, as the guest tells it.
      type: str
      sample: Unpacking libssl3 (amd64)
    elapsed:
      description: Seconds since the upgrade began.
      type: float
      sample: 31.5
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
services_to_restart:
  description: Units of the guest whose processes run programs or libraries that were replaced since they started.
  returned: success
  type: list
  elements: str
  sample: [cron.service]
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.kvm.fleet.plugins.module_utils import _results, _upgrade
from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._domain import require_running
from ansible_collections.kvm.fleet.plugins.module_utils._job import JobState
from ansible_collections.kvm.fleet.plugins.module_utils._lease import Recorder, working
from ansible_collections.kvm.fleet.plugins.module_utils._libvirt import LibvirtDomain, LibvirtHypervisor
from ansible_collections.kvm.fleet.plugins.module_utils._manager import UpgradeOptions
from ansible_collections.kvm.fleet.plugins.module_utils._managers import package_manager
from ansible_collections.kvm.fleet.plugins.module_utils._packages import PackageChange
from ansible_collections.kvm.fleet.plugins.module_utils._reboot import reboot_state
from ansible_collections.kvm.fleet.plugins.module_utils._record import StepName, StepStatus
from ansible_collections.kvm.fleet.plugins.module_utils._runner import DOMAIN_ARGUMENTS, run
from ansible_collections.kvm.fleet.plugins.module_utils._upgrade import Guest, Underway, Upgraded

OPTIONS: dict[str, Any] = {
    "package_manager": {"type": "str", "choices": ["auto", "apt", "dnf", "zypper"], "default": "auto"},
    "security_only": {"type": "bool", "default": False},
    "exclude": {"type": "list", "elements": "str", "default": []},
    "conffiles": {"type": "str", "choices": ["keep", "replace"], "default": "keep"},
    "autoremove": {"type": "bool", "default": False},
    "clean": {"type": "bool", "default": False},
    "lock_retries": {"type": "int", "default": 3},
    "lock_delay": {"type": "int", "default": 30},
    "timeout": {"type": "int", "default": 1800},
    "interval": {"type": "int"},
    "run": {"type": "str"},
}


AGENT_PATIENCE = 60
"""Seconds that the agent may be away before the task fails for it."""


def main() -> None:
    module = AnsibleModule(argument_spec={**OPTIONS, **DOMAIN_ARGUMENTS}, supports_check_mode=True)
    given = {name: module.params[name] for name in OPTIONS}
    # A question of a survey that was left blank is one empty pattern.
    exclude = tuple(pattern for pattern in given["exclude"] if pattern)
    options = UpgradeOptions(**{**given, "exclude": exclude, "run": given["run"] or ""})

    def work(hypervisor: LibvirtHypervisor) -> dict[str, Any]:
        options.check()
        domain = hypervisor.domain(module.params["name"])
        with working(
            hypervisor, domain, options.run, check=module.check_mode, warn=module.warn, lease_required=False
        ) as recorder:
            require_running(domain.name, domain.state())
            guest = reach(hypervisor, domain, options)
            result = preview(guest, options) if module.check_mode else upgrade(guest, options, recorder)
        return {**result, "package_manager": guest.manager.name}

    run(module, work)


def reach(hypervisor: LibvirtHypervisor, domain: LibvirtDomain, options: UpgradeOptions) -> Guest:
    """The guest, if its agent runs commands. The upgrade may restart the agent at any moment, so patiently."""
    agent = GuestAgent(domain, hypervisor.clock, patience=AGENT_PATIENCE)
    agent.patiently(lambda: agent.require("guest-exec", "guest-exec-status"))
    return Guest(agent, hypervisor.clock, package_manager(agent, options.package_manager))


def preview(guest: Guest, options: UpgradeOptions) -> dict[str, Any]:
    """What check mode returns."""
    ahead = _upgrade.preview(guest, options)
    found = Upgraded(ahead.prediction.changes, ahead.prediction.kept_back)
    result = describe(guest, found, ahead.unfinished)
    return {**result, "changed": result["changed"] or ahead.unfinished is not JobState.NONE}


def upgrade(guest: Guest, options: UpgradeOptions, recorder: Recorder) -> dict[str, Any]:
    """Upgrade, and return how far it is or what it came to."""
    step = recorder.last(StepName.UPGRADE)
    if step and step.status is StepStatus.DONE:
        # Its controller died between noting the result and removing the journal, which would tell it once more.
        # The journal may be that of an earlier run, which was told as well.
        _upgrade.forget(guest, of_runs=recorder.runs(StepName.UPGRADE))
    if not (step and step.status is StepStatus.OPEN and step.run == options.run):
        recorder.begin(StepName.UPGRADE, {"security_only": options.security_only, "exclude": list(options.exclude)})
    with recorder.failing(StepName.UPGRADE):
        done = _upgrade.upgrade(guest, options)
        if isinstance(done, Underway):
            return underway(done)
        result = describe(guest, done, JobState.NONE)
    recorder.end(StepName.UPGRADE, {name: result[name] for name in ("packages", "config_files")})
    _upgrade.forget(guest)
    return result


def underway(found: Underway) -> dict[str, Any]:
    """The result of a task whose interval has passed."""
    return {
        "changed": True,
        "finished": False,
        "progress": {**vars(found.progress), "elapsed": round(found.elapsed, 1)},
        "packages": [],
        "kept_back": [],
        "config_files": [],
        "unfinished": JobState.RUNNING.value,
        "reboot_required": None,
        "reboot_reasons": [],
        "services_to_restart": [],
    }


def describe(guest: Guest, found: Upgraded, unfinished: JobState) -> dict[str, Any]:
    """The result of a task that has nothing left to wait for."""
    reboot = reboot_state(guest.agent)
    return {
        "changed": bool(found.changes),
        "finished": True,
        "progress": None,
        "packages": [_results.change(package) for package in found.changes],
        "kept_back": [_results.kept_back(package) for package in found.kept_back],
        "config_files": list(found.config_files),
        "unfinished": unfinished.value,
        "reboot_required": reboot.required,
        "reboot_reasons": list(reboot.reasons),
        "services_to_restart": list(reboot.services),
        "diff": difference(found.changes),
    }


def difference(packages: tuple[PackageChange, ...]) -> dict[str, str]:
    """One line a package and version."""
    before = [f"{package.name} {package.old}\n" for package in packages if package.old]
    after = [f"{package.name} {package.new}\n" for package in packages if package.new]
    return {"before": "".join(before), "after": "".join(after)}


if __name__ == "__main__":
    main()
