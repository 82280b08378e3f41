# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Long work in a guest, as a systemd unit of its own that keeps a journal.

A child of the guest agent dies when the agent is restarted, and upgrading qemu-guest-agent restarts it. A unit does
not. Its journal is a directory of the guest, in one place for all runs, so that whoever comes next finds what the last
run left: a job that still runs, one that has ended and that nobody asked for its result, or one that was cut off.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._clock import Clock, Deadline, ticks
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    AgentCommandFailed,
    AgentProtocolError,
    CommandFailed,
    CommandKilled,
    CommandResultLost,
    CommandTimeout,
    FleetError,
    GuestUnsupported,
    UpgradeRunning,
    UpgradeTimeout,
)
from ansible_collections.kvm.fleet.plugins.module_utils._exec import (
    MAX_OUTPUT,
    Command,
    output_of,
    run_command,
    shell_script,
)

UNIT = "kvm-fleet-upgrade.service"
"""One name for all runs: systemd itself then refuses to run two upgrades in one guest."""

JOURNAL = "/var/lib/kvm-fleet/upgrade"

STEP_TIMEOUT = 120
"""Seconds that a short look at the job may take, on a guest that is busy unpacking."""


class JobState(str, Enum):
    """What the journal and the unit say together."""

    NONE = "none"
    """There is no journal: no job was started since the last one was finished with."""
    RUNNING = "running"
    ENDED = "ended"
    """The job has left its exit code, and nobody has finished with it."""
    CUT_OFF = "cut_off"
    """The unit is gone and left no exit code: it was killed, or the guest went down under it."""
    UNCLEAR = "unclear"
    """The job has left no exit code, and systemd does not answer, as while it is itself upgraded."""


UNFINISHED = frozenset({JobState.RUNNING, JobState.UNCLEAR})
"""States in which the only thing to do is to wait."""


@dataclass(frozen=True)
class JobLook:
    """One look at the job. ``exit_code`` is set once it has ended; ``progress`` is the last that it told of itself."""

    state: JobState
    exit_code: int | None = None
    progress: str = ""


_NO_SYSTEMD = 95
_ALREADY_RUNNING = 96

# $1: the journal, $2: the unit; the rest is the job's command. The job's script comes on standard input. 'before' stays
# from an earlier job that was not finished with: it is the state that everything is compared with in the end.
_START = f"""\
journal=$1 unit=$2; shift 2
[ -d /run/systemd/system ] || exit {_NO_SYSTEMD}
systemctl is-active --quiet "$unit" && exit {_ALREADY_RUNNING}
umask 077
mkdir -p "$journal" && rm -f "$journal/exit" "$journal/progress" && cat >"$journal/job" || exit 1
systemd-run --quiet --collect --unit="$unit" --description="kvm.fleet: upgrade of packages" \
  /bin/sh "$journal/job" "$journal" "$@"
code=$?
[ "$code" -ne 0 ] && systemctl is-active --quiet "$unit" && exit {_ALREADY_RUNNING}
exit "$code"
"""

# The unit is looked at before the exit code, or a job that ends in between would seem to have been cut off.
_LOOK = """\
unit=$(systemctl is-active "$2" 2>/dev/null)
if [ ! -e "$1/job" ]; then echo none
elif [ -e "$1/exit" ]; then echo "ended $(cat "$1/exit")"
else
  case $unit in
    inactive | failed | unknown) echo cut_off ;;
    active | activating | deactivating | reloading) echo running ;;
    *) echo unclear ;;
  esac
fi
[ ! -e "$1/progress" ] || tail -n 1 "$1/progress"
"""


def start(agent: GuestAgent, script: str, arguments: Sequence[str]) -> None:
    """Start a script as the guest's upgrade unit. Raises UpgradeRunning and GuestUnsupported.

    The script gets the journal's path and then ``arguments``, and has to end by writing its exit code to ``exit``
    there.
    """
    argv = ("/bin/sh", "-c", _START, "sh", JOURNAL, UNIT, *arguments)
    outcome = run_command(agent, Command(argv, stdin=script.encode("utf-8"), timeout=STEP_TIMEOUT))
    if outcome.exit_code == 0:
        return
    if outcome.exit_code == _ALREADY_RUNNING:
        raise UpgradeRunning(
            f"another run has just started an upgrade in the guest as {UNIT}",
            remedy="Run again: it will wait for that upgrade rather than start one beside it.",
        )
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


_STATES_WITHOUT_CODE = frozenset(state.value for state in JobState if state is not JobState.ENDED)


def look(agent: GuestAgent) -> JobLook:
    """Ask how the job is, without waiting for it."""
    return parse_look(output_of(agent, shell_script(_LOOK, JOURNAL, UNIT, timeout=STEP_TIMEOUT)))


def parse_look(output: str) -> JobLook:
    """Read the answer to a look. Raises AgentProtocolError for one that the guest cannot have given honestly."""
    state, _newline, progress = output.partition("\n")
    ended = re.fullmatch(r"ended ([0-9]{1,3})", state)
    if ended:
        return JobLook(JobState.ENDED, int(ended.group(1)), progress.strip())
    if state not in _STATES_WITHOUT_CODE:
        raise AgentProtocolError(
            f"the guest's answer about its upgrade is {state[:80]!r}, which is none",
            remedy=f"Look at {JOURNAL} in the guest; the file 'exit' there has to hold one number.",
        )
    return JobLook(JobState(state), None, progress.strip())


_ASK_AGAIN = (AgentCommandFailed, CommandFailed, CommandKilled, CommandResultLost, CommandTimeout)


def wait(agent: GuestAgent, clock: Clock, timeout: float) -> JobLook:
    """Wait for as long as the job runs, and return the first look that finds it otherwise.

    A look that fails is taken again until the deadline: the agent or libvirt may be restarted meanwhile, and nothing
    can be started in a guest whose libc or shell is just being replaced. Raises UpgradeTimeout, with the job still
    running.
    """
    deadline = Deadline(clock, timeout)
    last_answer = "nothing yet"
    for _tick in ticks(deadline, clock, first=1, longest=5):
        try:
            found = look(agent)
        except FleetError as error:
            if not (error.transient or isinstance(error, _ASK_AGAIN)):
                raise
            last_answer = error.message
            continue
        if found.state not in UNFINISHED:
            return found
        last_answer = found.progress or found.state.value
    raise UpgradeTimeout(
        f"the upgrade has not ended within {timeout:g} s (it was last at: {last_answer}); it was not touched and "
        f"goes on in the guest as {UNIT}",
        remedy="Run again: it will wait for this upgrade to end, and then go on.",
        evidence={"journal": JOURNAL, "last_answer": last_answer},
    )


# $1: the journal; the rest are names of files there. Where there is no journal, there are no lines.
_READ = """\
[ -d "$1" ] || exit 0
cd -- "$1" || exit 1
shift
for name; do
  [ ! -e "$name" ] || sed "s/^/$name\\t/" "$name" || exit 1
done
"""


def read(agent: GuestAgent, *names: str) -> Mapping[str, list[str]]:
    """The lines of some of the journal's files, by the file's name; a file that is not there has none."""
    # Each line goes out behind its file's name, so that nothing a file contains can pass for another file.
    script = shell_script(_READ, JOURNAL, *names, timeout=STEP_TIMEOUT)
    return split_files(output_of(agent, replace(script, max_output=MAX_OUTPUT)), names)


def tail(agent: GuestAgent, count: int = 40) -> list[str]:
    """The last lines of the job's log; none where there is no log."""
    command = Command(("tail", "-n", str(count), f"{JOURNAL}/log"), timeout=STEP_TIMEOUT)
    return run_command(agent, command).stdout.splitlines()


def split_files(output: str, names: Iterable[str]) -> Mapping[str, list[str]]:
    """Undo what ``read`` does to put several files into one output."""
    files: dict[str, list[str]] = {name: [] for name in names}
    for line in output.split("\n"):
        name, _tab, content = line.partition("\t")
        if name in files:
            files[name].append(content)
    return files
