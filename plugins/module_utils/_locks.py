# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who holds a package manager's lock in a guest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._exec import output_of, shell_script

# For each path that is locked (apt and rpm lock with fcntl) or that holds the pid of a living process (dnf and zypper):
# the path, the pid, the process's start in ticks, the guest's uptime, and the process's name.
LOOK = """\
tell() {
  [ -r "/proc/$2/stat" ] || return 0
  started=$(sed 's/.*) //' "/proc/$2/stat" | cut -d ' ' -f 20)
  printf '%s\\t%s\\t%s\\t%s\\t%s\\n' "$1" "$2" "$started" "$(cut -d ' ' -f 1 /proc/uptime)" "$(cat "/proc/$2/comm")"
}
for lock; do
  [ -e "$lock" ] || continue
  case $lock in
    *.pid) pid=$(tr -cd 0-9 <"$lock"); [ -z "$pid" ] || tell "$lock" "$pid" ;;
    *)
      inode=$(stat -c %i "$lock") || continue
      sed -n "s/^[0-9]*: [A-Z]* *[A-Z]* *WRITE *\\([0-9]*\\) [^ ]*:$inode .*/\\1/p" /proc/locks |
        while read -r pid; do
          for fd in "/proc/$pid/fd"/*; do
            if [ "$fd" -ef "$lock" ]; then tell "$lock" "$pid"; break; fi
          done
        done
      ;;
  esac
done
"""

TICKS_PER_SECOND = 100  # USER_HZ, which is the same on every architecture that runs as a KVM guest


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock. ``age`` is how many seconds it has been running."""

    lock: str
    pid: int
    program: str
    age: float


def holders(agent: GuestAgent, locks: Sequence[str]) -> tuple[Holder, ...]:
    """Who holds these locks now. Raises what output_of raises."""
    return parse_holders(output_of(agent, shell_script(LOOK, *locks, timeout=60, terse=True)).splitlines())


_HOLDER = re.compile(r"(/[^\t]+)\t(\d{1,10})\t(\d{1,20})\t(\d{1,12}(?:\.\d+)?)\t(.*)")


def parse_holders(lines: Iterable[str]) -> tuple[Holder, ...]:
    """Read what the guest tells; a line that tells nothing is of a process that ended meanwhile."""
    found = []
    for line in lines:
        told = _HOLDER.fullmatch(line)
        if told:
            lock, pid, started, uptime, program = told.groups()
            age = max(0.0, float(uptime) - int(started) / TICKS_PER_SECOND)
            found.append(Holder(lock, int(pid), program[:64], round(age, 1)))
    return tuple(found)
