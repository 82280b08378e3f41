# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a guest asks for a reboot."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._exec import output_of, shell_script

# What dnf's needs-restarting looks at, besides what packages and administrators add. Asking rpm itself takes a tenth
# of the time, writes no log, and does not depend on a plugin that minimal systems lack.
_RESTARTING = "kernel kernel-core kernel-rt glibc linux-firmware microcode_ctl systemd dbus dbus-broker dbus-daemon"

# One fact a line, its kind first; kernels in the order of their versions, and only those of a guest that boots from its
# own /boot. rpm says on standard output which packages are not installed. Mapped code that is deleted was replaced by
# an upgrade if it is where packages have theirs; what runs in a container is the container's.
LOOK = f"""\
[ -e /run/reboot-required ] && echo flag
[ -e /run/reboot-required.pkgs ] && sed 's/^/package /' /run/reboot-required.pkgs
[ -e /run/reboot-needed ] && echo needed
running=$(uname -r)
if [ -e "/boot/vmlinuz-$running" ]; then
  echo "running $running"
  ls /boot | sed -n 's/^vmlinuz-/kernel /p' | sort -V
fi
if command -v rpm >/dev/null && {{ command -v dnf || command -v dnf5; }} >/dev/null; then
  sed -n 's/^btime /booted /p' /proc/stat
  more=$(sed 's/#.*//' /etc/dnf/plugins/needs-restarting.d/*.conf 2>/dev/null)
  rpm -q --qf 'installed %{{INSTALLTIME}} %{{NAME}}\\n' -- {_RESTARTING} $more 2>/dev/null | grep '^installed '
fi
set --
for maps in $(grep -lsE 'r-xp [^/]*/(usr|opt|lib[^/]*|s?bin)/.* \\(deleted\\)$' /proc/[0-9]*/maps); do
  process=${{maps%/maps}}
  [ "$process/ns/pid" -ef "/proc/$$/ns/pid" ] && set -- "$@" "$process/cgroup"
done
[ "$#" -eq 0 ] || sed -n 's/^[0-9]*:\\(name=systemd\\)*:/cgroup /p' "$@" 2>/dev/null
exit 0
"""


@dataclass(frozen=True)
class RebootState:
    """Whether a reboot is asked for, and by what. ``services`` are the units that still run code which was replaced."""

    required: bool
    reasons: tuple[str, ...]
    services: tuple[str, ...] = ()


def reboot_state(agent: GuestAgent) -> RebootState:
    """Ask the guest."""
    return parse_reboot_facts(output_of(agent, shell_script(LOOK, timeout=60, terse=True)).splitlines())


def parse_reboot_facts(lines: Iterable[str]) -> RebootState:
    """Read the facts that the guest tells.

    /run/reboot-required is written by Ubuntu, and on Debian by whatever implements its convention; /run/reboot-needed
    by zypper. Where nothing does, a newer kernel than the running one is still seen, and with dnf what was installed
    since the boot.
    """
    facts: dict[str, list[str]] = {}
    for line in lines:
        kind, _space, value = line.partition(" ")
        facts.setdefault(kind, []).append(value)
    reasons = []
    if "flag" in facts:
        packages = ", ".join(dict.fromkeys(facts.get("package", [])))
        reasons.append(f"/run/reboot-required{f' ({packages})' if packages else ''}")
    if "needed" in facts:
        reasons.append("/run/reboot-needed")
    for running in facts.get("running", [])[:1]:
        newest = newest_kernel(running, facts.get("kernel", []))
        if newest and newest != running:
            reasons.append(f"kernel {newest} is installed, {running} runs")
    since_boot = _installed_since_boot(facts.get("booted", []), facts.get("installed", []))
    if since_boot:
        reasons.append(f"installed since the boot: {', '.join(since_boot)}")
    return RebootState(bool(reasons), tuple(reasons), tuple(_services(facts.get("cgroup", []))))


def _installed_since_boot(booted: Sequence[str], installed: Iterable[str]) -> list[str]:
    """The names of packages whose time, in seconds since 1970, is behind that of the boot."""
    times = [(time, name) for time, _space, name in (line.partition(" ") for line in installed)]
    if not booted or not _SECONDS.fullmatch(booted[0]):
        return []
    return sorted({name for time, name in times if _SECONDS.fullmatch(time) and int(time) > int(booted[0])})


_SECONDS = re.compile(r"[0-9]{1,12}")


def _services(cgroups: Iterable[str]) -> list[str]:
    """The units that processes belong to, by the paths of their control groups. What runs in a user's session is that
    user's to restart.
    """
    units = {next((part for part in path.split("/") if part.endswith(".service")), "") for path in cgroups}
    return sorted(unit for unit in units if unit and not unit.startswith("user@"))


def newest_kernel(running: str, kernels: Sequence[str]) -> str | None:
    """The kernel that the next boot takes, of those that are installed, in the order of their versions."""
    own = [kernel for kernel in kernels if _flavour(kernel) == _flavour(running)]
    return own[-1] if own else None


def _flavour(kernel: str) -> str:
    """``6.1.0-37-cloud-amd64`` is of flavour ``cloud-amd64``: the next boot takes the newest kernel of its own."""
    return re.sub(r"\A[0-9][^-]*(-[0-9][^-]*)*-?", "", kernel)
