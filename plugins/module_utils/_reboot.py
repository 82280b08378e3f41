# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a guest asks for a reboot."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._exec import output_of, shell_script

# One fact a line, its kind first; kernels in the order of their versions, and only those of a guest that boots from its
# own /boot.
_LOOK = """\
[ -e /run/reboot-required ] && echo flag
[ -e /run/reboot-required.pkgs ] && sed 's/^/package /' /run/reboot-required.pkgs
running=$(uname -r)
if [ -e "/boot/vmlinuz-$running" ]; then
  echo "running $running"
  ls /boot | sed -n 's/^vmlinuz-/kernel /p' | sort -V
fi
exit 0
"""


@dataclass(frozen=True)
class RebootState:
    """Whether a reboot is asked for, and by what."""

    required: bool
    reasons: tuple[str, ...]
    services: tuple[str, ...] = ()


def reboot_state(agent: GuestAgent) -> RebootState:
    """Ask the guest."""
    return parse_reboot_facts(output_of(agent, shell_script(_LOOK, timeout=60)).splitlines())


def parse_reboot_facts(lines: Iterable[str]) -> RebootState:
    """Read the facts that the guest tells.

    /run/reboot-required is written by Ubuntu, and on Debian by whatever implements its convention; where nothing does,
    a newer kernel than the running one is still seen.
    """
    facts: dict[str, list[str]] = {}
    for line in lines:
        kind, _space, value = line.partition(" ")
        facts.setdefault(kind, []).append(value)
    reasons = []
    if "flag" in facts:
        packages = ", ".join(dict.fromkeys(facts.get("package", [])))
        reasons.append(f"/run/reboot-required{f' ({packages})' if packages else ''}")
    for running in facts.get("running", [])[:1]:
        newest = [kernel for kernel in facts.get("kernel", []) if _flavour(kernel) == _flavour(running)][-1:]
        if newest and newest != [running]:
            reasons.append(f"kernel {newest[0]} is installed, {running} runs")
    return RebootState(bool(reasons), tuple(reasons))


def _flavour(kernel: str) -> str:
    """``6.1.0-37-cloud-amd64`` is of flavour ``cloud-amd64``: the next boot takes the newest kernel of its own."""
    return re.sub(r"\A[0-9][^-]*(-[0-9][^-]*)*-?", "", kernel)
