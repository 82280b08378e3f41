# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which package manager a guest has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._apt import Apt
from ansible_collections.kvm.fleet.plugins.module_utils._dnf import Dnf
from ansible_collections.kvm.fleet.plugins.module_utils._errors import PackageManagerUnknown, SelinuxDenied
from ansible_collections.kvm.fleet.plugins.module_utils._exec import RUNNER, output_of, shell_script
from ansible_collections.kvm.fleet.plugins.module_utils._manager import PackageManager
from ansible_collections.kvm.fleet.plugins.module_utils._zypper import Zypper

# Each with the programs that it takes; of several that have one name, the first that a guest has all programs for. What
# is called dnf is dnf 5 where that is the distribution's, and another than the distribution's would not know why
# packages are installed. Nobody has yum without dnf but who has the yum before it, which is another program.
_KNOWN: Sequence[tuple[PackageManager, frozenset[str]]] = (
    (Apt(), frozenset({"apt-get", "dpkg-query"})),
    (Dnf("dnf"), frozenset({"dnf", "rpm"})),
    (Dnf("dnf5"), frozenset({"dnf5", "rpm"})),
    (Zypper(), frozenset({"zypper", "rpm"})),
)

# What the guest says it is, one 'key value' a line. A program that is there and may not be run is told as denied: test
# -x asks the kernel, and so SELinux. 'command -v' would not find such a program.
LOOK = f"""\
[ ! -e {RUNNER} ] || echo 'runner there'
for file in /etc/os-release /usr/lib/os-release; do
  [ -r "$file" ] || continue
  (. "$file"; printf 'id %s\\nlike %s\\n' "$ID" "$ID_LIKE")
  break
done
for program in apt-get dpkg-query dnf5 dnf zypper rpm; do
  told=
  IFS=:
  for directory in $PATH; do
    [ ! -f "$directory/$program" ] || told=denied
    [ ! -f "$directory/$program" ] || [ ! -x "$directory/$program" ] || {{ told=has; break; }}
  done
  [ -z "$told" ] || echo "$told $program"
done
printf 'enforcing %s\\n' "$(cat /sys/fs/selinux/enforce 2>/dev/null)"
printf 'context %s\\n' "$(tr -d '\\0' </proc/self/attr/current 2>/dev/null)"
"""

_RUNNER_MISSING = (
    "Let the agent's commands run unconfined in this guest, if its policy and yours allow that: the role "
    f"kvm.fleet.selinux_runner installs {RUNNER} with the label virt_qemu_ga_unconfined_exec_t and sets the boolean "
    "virt_qemu_ga_run_unconfined."
)
_RUNNER_IDLE = (
    f"{RUNNER} is there and SELinux starts it as any other program. See in the guest that the boolean "
    "virt_qemu_ga_run_unconfined is on ('getsebool') and that the file has the label virt_qemu_ga_unconfined_exec_t "
    "('ls -Z', 'restorecon'); the role kvm.fleet.selinux_runner sees to both."
)

_FAMILIES = {
    "apt": {"debian", "ubuntu"},
    "dnf": {"fedora", "rhel", "centos"},
    "zypper": {"suse", "opensuse", "sles"},
}


@dataclass(frozen=True)
class System:
    """What a guest says of itself. ``families`` are its os-release's ID and ID_LIKE."""

    families: tuple[str, ...]
    programs: frozenset[str]
    denied: frozenset[str]
    confined: bool
    runner: bool

    @property
    def name(self) -> str:
        """What it calls itself."""
        return self.families[0] if self.families else "unknown"


def package_manager(agent: GuestAgent, wanted: str) -> PackageManager:
    """The guest's package manager, or the wanted one. Raises PackageManagerUnknown and SelinuxDenied."""
    return choose(parse_system(output_of(agent, shell_script(LOOK, timeout=60, terse=True)).splitlines()), wanted)


def parse_system(lines: Sequence[str]) -> System:
    """Read what the guest tells."""
    told: dict[str, list[str]] = {}
    for line in lines:
        key, _space, value = line.partition(" ")
        told.setdefault(key, []).append(value.strip()[:256])
    families = [*told.get("id", []), *(word for value in told.get("like", []) for word in value.split())]
    context = "".join(told.get("context", []))
    return System(
        families=tuple(family for family in families if family),
        programs=frozenset(told.get("has", [])),
        denied=frozenset(told.get("denied", [])),
        confined="1" in told.get("enforcing", []) and is_confined(context),
        runner=bool(told.get("runner")),
    )


def is_confined(context: str) -> bool:
    """Whether a process of this SELinux context is held to what the policy lets the guest agent do."""
    # The agent's type; what runs as virt_qemu_ga_unconfined_t may do what it likes.
    return ":virt_qemu_ga_t:" in context


def choose(system: System, wanted: str) -> PackageManager:
    """The wanted package manager; with 'auto' that of the system's family, or the first that is there if it tells none
    that is known: what another family's package manager knows of a system is not what the system consists of.
    """
    there: dict[str, PackageManager] = {}
    for manager, programs in _KNOWN:
        if programs <= system.programs:
            there.setdefault(manager.name, manager)
    own = [name for name, ids in _FAMILIES.items() if ids.intersection(system.families)] or list(_FAMILIES)
    candidates = own if wanted == "auto" else [wanted]
    for name in candidates:
        if name in there:
            return there[name]
    wants = [programs for manager, programs in _KNOWN if manager.name in candidates]
    if system.confined and any(system.denied & programs for programs in wants):
        raise selinux_denied({"denied": sorted(system.denied), "runner": system.runner})
    raise PackageManagerUnknown(
        f"the guest (os-release: {system.name}) has no {' or '.join(candidates)}; known are {', '.join(_FAMILIES)}",
        remedy="Upgrade this guest by other means; skip its packages with upgrade_packages: false.",
        evidence={"os_release": list(system.families), "programs": sorted(system.programs)},
    )


def selinux_denied(evidence: Mapping[str, object]) -> SelinuxDenied:
    """What a guest is told that has a package manager which its agent may not run."""
    return SelinuxDenied(
        "SELinux in the guest does not let the guest agent run its package manager: the agent runs as "
        "virt_qemu_ga_t, which may start shells and ordinary programs only",
        remedy=(_RUNNER_IDLE if evidence.get("runner") else _RUNNER_MISSING)
        + " Or skip the guest's packages with upgrade_packages: false.",
        evidence=evidence,
    )
