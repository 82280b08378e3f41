# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Long work in a guest, as a systemd unit of its own.

A child of the guest agent dies when the agent is restarted, and upgrading qemu-guest-agent restarts it. A unit does
not, and it leaves its log and its exit code in a directory of the guest, where they wait for whoever asks.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._clock import Clock, Deadline, ticks
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    AgentSilent,
    CommandKilled,
    CommandResultLost,
    CommandTimeout,
    GuestUnsupported,
    UpgradeInterrupted,
    UpgradeRunning,
    UpgradeTimeout,
)
from ansible_collections.kvm.fleet.plugins.module_utils._exec import Command, output_of, run_command, shell_script

UNIT = "kvm-fleet-upgrade.service"
"""One name for all runs: systemd itself then refuses to run two upgrades in one guest."""

DIRECTORY = "/var/lib/kvm-fleet"

STEP_TIMEOUT = 120
"""Seconds that a short look at the job may take, on a guest that is busy unpacking."""

_NO_SYSTEMD = 95
_ALREADY_RUNNING = 96

# $1: the job's directory, $2: the unit; the rest is the job's command. The job's script comes on standard input.
_START = f"""\
directory=$1 unit=$2; shift 2
[ -d /run/systemd/system ] || exit {_NO_SYSTEMD}
systemctl is-active --quiet "$unit" && exit {_ALREADY_RUNNING}
umask 077
mkdir -p "$directory" && cat >"$directory/job" || exit 1
systemd-run --quiet --collect --unit="$unit" --description="kvm.fleet: upgrade of packages" \
  /bin/sh "$directory/job" "$directory" "$@"
code=$?
[ "$code" -ne 0 ] && systemctl is-active --quiet "$unit" && exit {_ALREADY_RUNNING}
exit "$code"
"""

# The unit is looked at before the exit code, or a job that ends in between would seem to have vanished.
_LOOK = """\
active=gone
systemctl is-active --quiet "$2" && active=running
if [ -e "$1/exit" ]; then echo "ended $(cat "$1/exit")"; else echo "$active"; fi
"""


@dataclass(frozen=True)
class Job:
    """A job in a guest, by the directory that it keeps there."""

    directory: str


def new_job(now: datetime) -> Job:
    return Job(f"{DIRECTORY}/{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}")


def require_idle(agent: GuestAgent) -> None:
    """Raise UpgradeRunning while an upgrade that was started earlier still runs in the guest."""
    if run_command(agent, Command(("systemctl", "is-active", "--quiet", UNIT), timeout=STEP_TIMEOUT)).exit_code == 0:
        raise _running()


def _running() -> UpgradeRunning:
    return UpgradeRunning(
        f"an upgrade started earlier still runs in the guest as {UNIT}",
        remedy=f"Wait until it has ended ('systemctl status {UNIT}' in the guest) and run again.",
    )


def start(agent: GuestAgent, job: Job, script: str, arguments: Sequence[str]) -> None:
    """Start a script as the guest's upgrade unit. Raises UpgradeRunning and GuestUnsupported.

    The script gets the job's directory and then ``arguments``, and has to end by writing its exit code to ``exit``
    there.
    """
    argv = ("/bin/sh", "-c", _START, "sh", job.directory, UNIT, *arguments)
    outcome = run_command(agent, Command(argv, stdin=script.encode("utf-8"), timeout=STEP_TIMEOUT))
    if outcome.exit_code == 0:
        return
    if outcome.exit_code == _ALREADY_RUNNING:
        raise _running()
    if outcome.exit_code == _NO_SYSTEMD:
        raise GuestUnsupported(
            "the guest does not run systemd, so the upgrade cannot outlive a restart of the guest agent",
            remedy="Upgrade this guest by other means; skip its packages with upgrade_packages: false.",
        )
    raise GuestUnsupported(
        f"systemd in the guest did not start the upgrade: {outcome.stderr.strip() or 'it gave no reason'}",
        remedy="See 'journalctl -b' in the guest.",
        evidence={"exit_code": outcome.exit_code, "stderr": outcome.stderr},
    )


def wait(agent: GuestAgent, clock: Clock, job: Job, timeout: float) -> int:
    """Wait for the job and return its exit code.

    An agent that is silent, or that was restarted and so lost an answer, is asked again until the deadline. Raises
    UpgradeTimeout, with the job still running, and UpgradeInterrupted.
    """
    deadline = Deadline(clock, timeout)
    look = shell_script(_LOOK, job.directory, UNIT, timeout=STEP_TIMEOUT)
    last_answer = "nothing yet"
    for _tick in ticks(deadline, clock, first=1, longest=5):
        try:
            last_answer = output_of(agent, look).strip()
        except (AgentSilent, CommandKilled, CommandResultLost, CommandTimeout) as error:
            last_answer = error.message
            continue
        ended = re.fullmatch(r"ended ([0-9]+)", last_answer)
        if ended:
            return int(ended.group(1))
        if last_answer == "gone":
            raise UpgradeInterrupted(
                "the upgrade's unit is gone from the guest and left no result: it was stopped, or the guest restarted",
                remedy="Run 'dpkg --configure -a' in the guest, then run again.",
                evidence={"directory": job.directory, "log": tail(agent, job)},
            )
    raise UpgradeTimeout(
        f"the upgrade has not ended within {timeout:g} s; it was not touched and goes on in the guest as {UNIT}",
        remedy=f"Follow it with 'tail -f {job.directory}/log' in the guest, and run again once it has ended.",
        evidence={"directory": job.directory, "last_answer": last_answer},
    )


def read(agent: GuestAgent, job: Job, *names: str) -> Mapping[str, list[str]]:
    """The lines of some of the job's files, by the file's name; a file that is not there has none."""
    # Each line goes out behind its file's name, so that nothing a file contains can pass for another file.
    script = 'cd -- "$1"; shift; for name; do [ -e "$name" ] && sed "s/^/$name\\t/" "$name"; done; exit 0'
    output = output_of(agent, shell_script(script, job.directory, *names, timeout=STEP_TIMEOUT))
    return split_files(output.splitlines(), names)


def split_files(lines: Iterable[str], names: Iterable[str]) -> Mapping[str, list[str]]:
    """Undo what ``read`` does to put several files into one output."""
    files: dict[str, list[str]] = {name: [] for name in names}
    for line in lines:
        name, _tab, content = line.partition("\t")
        if name in files:
            files[name].append(content)
    return files


def tail(agent: GuestAgent, job: Job, count: int = 40) -> list[str]:
    """The last lines of the log that the job keeps in its directory."""
    command = Command(("tail", "-n", str(count), f"{job.directory}/log"), timeout=STEP_TIMEOUT)
    return run_command(agent, command).stdout.splitlines()


def remove(agent: GuestAgent, job: Job) -> None:
    """Remove the job's directory from the guest, once its result is safe elsewhere."""
    run_command(agent, Command(("rm", "-rf", "--", job.directory), timeout=STEP_TIMEOUT))
