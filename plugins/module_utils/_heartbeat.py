# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""For how long a guest was away, as it saw it itself: the largest gap between two beats of its clock.

A loop in the guest writes down the time, five times a second. It ends with its file, with the guest's agent, and after
a quarter of an hour in any case. A shutdown ends it early on, as it does the guest's services; the beat that ends the
gap then is that of the agent's first answer after the boot. A guest that is saved and resumed sees no gap until its
clock is set, since that stands still with it.
"""

from __future__ import annotations

import re

from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.kvm.fleet.plugins.module_utils._exec import output_of, shell_script

BEATS = "/var/lib/kvm-fleet/heartbeat"
"""The file in the guest. It has to outlast a boot."""

MOST_BEATS = 4500
"""Of the loop."""

BESIDE_THE_LOOP = 2
"""One when it is begun and one when it is stopped."""

# $1: the file, $2: how many beats at most. The file that is open is the one to end with, not the next one of its name.
_LOOP = """\
exec 3>>"$1"
beats=0
while [ "$1" -ef "/proc/$$/fd/3" ] && [ "$beats" -lt "$2" ]; do
  date +%s%N >&3
  sleep 0.2
  beats=$((beats + 1))
done
"""

# $1: the file, $2: the loop, $3: how many beats at most.
START = """\
mkdir -p "${1%/*}" && rm -f "$1" && date +%s%N >"$1" || exit
setsid /bin/sh -c "$2" sh "$1" "$3" </dev/null >/dev/null 2>&1 &
"""

# $1: the file. What else may be in its directory stays.
STOP = """\
[ -e "$1" ] || exit 0
date +%s%N >>"$1"
cat "$1"
rm -f "$1"
rmdir "${1%/*}" 2>/dev/null
exit 0
"""

TIMEOUT = 30

_BEAT = re.compile(r"\d{9,11}(\d{9})?")


def start(agent: GuestAgent) -> bool:
    """Have the guest's heart beat. False where that cannot be: whatever it is for does not depend on it."""
    try:
        output_of(agent, shell_script(START, BEATS, _LOOP, str(MOST_BEATS), timeout=TIMEOUT))
    except FleetError:
        return False
    return True


def stop(agent: GuestAgent) -> float | None:
    """End it, remove its traces, and return the largest gap in seconds, or None where that cannot be had."""
    try:
        return largest_gap(output_of(agent, shell_script(STOP, BEATS, timeout=TIMEOUT)))
    except FleetError:
        return None


def largest_gap(text: str) -> float | None:
    """The most seconds between a beat and the next. A date(1) that knows no nanoseconds has told whole seconds.

    None where the loop has ended by itself before it was stopped: nobody has seen what came then.
    """
    told = [line for line in text.splitlines() if _BEAT.fullmatch(line)]
    if len(told) >= MOST_BEATS + BESIDE_THE_LOOP:
        return None
    beats = [int(line) / (1e9 if len(line) > 11 else 1) for line in told]
    return max((after - before for before, after in zip(beats, beats[1:])), default=None)
