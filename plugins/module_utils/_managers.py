# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which package manager a guest has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._apt import Apt
from ansible_collections.kvm.fleet.plugins.module_utils._errors import PackageManagerUnknown, SelinuxDenied
from ansible_collections.kvm.fleet.plugins.module_utils._exec import output_of, shell_script
from ansible_collections.kvm.fleet.plugins.module_utils._manager import PackageManager

MANAGERS: Mapping[str, PackageManager] = {manager.name: manager for manager in (Apt(),)}

# What the guest says it is, one 'key value' a line. A program that is there and may not be run is told as denied: test
# -x asks the kernel, and so SELinux.
_LOOK = """\
for file in /etc/os-release /usr/lib/os-release; do
  [ -r "$file" ] || continue
  (. "$file"; printf 'id %s\\nlike %s\\n' "$ID" "$ID_LIKE")
  break
done
for program in apt-get dpkg-query dnf5 dnf yum zypper rpm; do
  path=$(command -v "$program") || continue
  if [ -x "$path" ]; then echo "has $program"; else echo "denied $program"; fi
done
printf 'enforcing %s\\n' "$(cat /sys/fs/selinux/enforce 2>/dev/null)"
printf 'context %s\\n' "$(tr -d '\\0' </proc/self/attr/current 2>/dev/null)"
"""

_PROGRAMS = {"apt": ("apt-get", "dpkg-query")}

_FAMILIES = {
    "apt": {"debian", "ubuntu"},
}


@dataclass(frozen=True)
class System:
    """What a guest says of itself. ``families`` are its os-release's ID and ID_LIKE."""

    families: tuple[str, ...]
    programs: frozenset[str]
    denied: frozenset[str]
    confined: bool

    @property
    def name(self) -> str:
        """What it calls itself."""
        return self.families[0] if self.families else "unknown"


def package_manager(agent: GuestAgent, wanted: str) -> PackageManager:
    """The guest's package manager, or the wanted one. Raises PackageManagerUnknown and SelinuxDenied."""
    return choose(parse_system(output_of(agent, shell_script(_LOOK, timeout=60)).splitlines()), wanted)


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
        # The agent's type; what runs as virt_qemu_ga_unconfined_t may do what it likes.
        confined="1" in told.get("enforcing", []) and ":virt_qemu_ga_t:" in context,
    )


def choose(system: System, wanted: str) -> PackageManager:
    """The wanted package manager; with 'auto' that of the system's family, or else the first that is there."""
    there = [name for name, programs in _PROGRAMS.items() if system.programs.issuperset(programs)]
    own = [name for name in there if _FAMILIES[name].intersection(system.families)]
    candidates = [wanted] if wanted != "auto" else [*own, *there]
    for name in candidates:
        if name in there:
            return MANAGERS[name]
    known = set(_PROGRAMS) if wanted == "auto" else {wanted}
    if any(system.denied.intersection(_PROGRAMS[name]) for name in known) and system.confined:
        raise SelinuxDenied(
            "SELinux in the guest does not let the guest agent run its package manager: the agent runs as "
            "virt_qemu_ga_t, which may start shells and ordinary programs only",
            remedy="Let the agent's commands run unconfined in this guest: set the boolean "
            "virt_qemu_ga_run_unconfined and give the runner the label virt_qemu_ga_unconfined_exec_t; or skip its "
            "packages with upgrade_packages: false.",
            evidence={"denied": sorted(system.denied)},
        )
    missing = "no package manager that is known here" if wanted == "auto" else f"no {wanted}"
    raise PackageManagerUnknown(
        f"the guest (os-release: {system.name}) has {missing}; known are {', '.join(MANAGERS)}",
        remedy="Upgrade this guest by other means; skip its packages with upgrade_packages: false.",
        evidence={"os_release": list(system.families), "programs": sorted(system.programs)},
    )
