# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Long work in a guest that outlives the guest agent, and that keeps a journal.

A child of the guest agent dies when the agent is restarted, and upgrading qemu-guest-agent restarts it. So a job is a
systemd unit of its own. A guest without systemd gets a session of its own instead, which an agent that merely ends does
not take with it; an init system that ends whole control groups does, and at a shutdown nobody waits for it.

The journal is a directory of the guest, in one place for all runs, so that whoever comes next finds what the last run
left. Its files, of which each is whole or not there, however the guest went down:

    job         what runs: the wrapper around prepare, command and finish
    run         the id of the run that started it
    boot        the kernel's id of the boot in which it began
    started     the guest's uptime when it began, in seconds
    lock        is locked (flock) by the wrapper for its whole life, and by nobody else: the kernel sees to that
    log         what all three parts print
    progress    what they write to file descriptor 3
    pid         the command's pid and the time it began, in the kernel's ticks; only while the command runs
    stop        is there once somebody asked the job to stop
    exit        its exit code, and the last thing it writes
    asked       which request it was that has started it, so that one whose answer got lost starts nothing twice
    starting    is locked while somebody starts or removes a job, and shared while somebody looks

Other files are those of ``prepare``. They stay from a job that nobody has finished with.
"""

from __future__ import annotations

import re
import shlex
import uuid
from collections.abc import Callable, Iterable, Mapping
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
    DiskFull,
    FleetError,
    GuestUnsupported,
    InvalidRequest,
    UpgradeRunning,
)
from ansible_collections.kvm.fleet.plugins.module_utils._exec import (
    MAX_OUTPUT,
    Command,
    Outcome,
    check_command,
    failure_of,
    output_of,
    raw_output_of,
    run_command,
    shell_script,
)

UNIT = "kvm-fleet-upgrade.service"
"""One name for all runs: systemd itself then refuses to run two upgrades in one guest."""

JOURNAL = "/var/lib/kvm-fleet/upgrade"

STEP_TIMEOUT = 120
"""Seconds that a short look at the job may take, on a guest that is busy unpacking."""

LOG_CHUNK = 64 * 1024
"""Bytes of the log that one look returns at most."""

STOPPED = 130
"""The exit code of a command that was stopped before it began, as a shell tells the end by SIGINT."""

_SYSTEMD = "/run/systemd/system"
"""Is a directory where systemd runs."""


class JobState(str, Enum):
    """What the journal says, and the locks on it."""

    NONE = "none"
    """There is no journal: no job was started since the last one was finished with."""
    RUNNING = "running"
    ENDED = "ended"
    """The job has left its exit code, and nobody has finished with it."""
    CUT_OFF = "cut_off"
    """The job is gone and left no exit code: it was killed, or the guest went down under it."""


@dataclass(frozen=True)
class Job:
    """What to run. All three parts run with ``environment``, print to the log, and have the status descriptor 3."""

    run: str
    """Id of the run that starts it: printable ASCII without spaces."""
    prepare: str
    """Shell text, run in the journal before the command. Nothing has changed yet: its failure ends the job with its
    code. What it leaves is on the disk before the command begins."""
    command: tuple[str, ...]
    """What a gentle stop interrupts, by SIGINT to this process alone. It runs in the root directory."""
    finish: str
    """Shell text, run in the journal after the command however that ended. "$code" is its exit code, and what the text
    leaves there is the job's; "$stopped" is yes if a stop was asked for, else no."""
    environment: Mapping[str, str]


@dataclass(frozen=True)
class JobLook:
    """One look at the job."""

    state: JobState
    exit_code: int | None = None
    """Set once it has ended."""
    run: str = ""
    """Id of the run that started it."""
    elapsed: float | None = None
    """Seconds since it began, by the guest's own uptime; None unless it runs in the boot in which it began."""
    stopping: bool = False
    """Whether a stop was asked for."""
    offset: int = 0
    """Bytes of the log that were seen, for the next look."""
    log: tuple[str, ...] = ()
    """The whole lines that are new since the offset that was asked with; once it no longer runs, all that is left."""
    progress: tuple[str, ...] = ()
    """The last lines of the status descriptor."""


# --- in the guest --------------------------------------------------------------------------------

_CANNOT_WRITE = 94
_NO_FLOCK = 95
_ALREADY_RUNNING = 96

# What the scripts below share. $1: the journal, $2: the unit.
_COMMON = """\
export LC_ALL=C
journal=$1 unit=$2

# Go into the journal and keep it as it is: with -x for oneself, with -s among others who look. Fails where there is
# none. Whoever removes it moves it away first, so what was entered may be another's by the time the lock is had.
enter() {
  while [ -d "$journal" ]; do
    cd -- "$journal" || exit 1
    if [ "$1" = -x ]; then
      true >>starting || cannot_write
      exec 8>>starting
    else
      [ -e starting ] || return 0
      exec 8<starting
    fi
    flock "$1" 8 || exit 1
    [ "$journal" -ef . ] && return 0
  done
  return 1
}

locked() {
  [ -e lock ] || return 1
  (flock -s -n 9) 9<lock
  case $? in
    0) return 1 ;;
    1) return 0 ;;
    *) exit 1 ;;
  esac
}

same_boot() {
  read -r boot 2>/dev/null <boot && read -r now </proc/sys/kernel/random/boot_id && [ "$boot" = "$now" ]
}

# Whether the command is there, which may outlive a wrapper that was killed. Its pid alone may be another's by now.
alive() {
  [ -e pid ] && same_boot && read -r pid began <pid || return 1
  case $pid in '' | *[!0-9]*) return 1 ;; esac
  [ -e "/proc/$pid/stat" ] && read -r stat 2>/dev/null <"/proc/$pid/stat" || return 1
  set -- ${stat##*) }
  [ "${20}" = "$began" ]
}

unit_active() {
  case $(systemctl is-active "$unit" 2>/dev/null) in
    active | activating | deactivating | reloading) return 0 ;;
    *) return 1 ;;
  esac
}

# Whether a job is at work. The unit answers for the moments before its wrapper has the lock, and after that lock was
# let go the exit code says that all is done.
at_work() {
  locked && return 0
  [ ! -e exit ] && { alive || unit_active; }
}
"""

# $3: the run's id, $4: systemd's directory, $5: the request's own name. The job's script comes on standard input.
#
# Nobody else starts, removes or looks until this has ended, with the job's wrapper holding its lock. Where that is a
# unit, it takes the lock itself; else it inherits it, so that there is no moment without one even if this is killed.
_START = f"""\
{_COMMON}
run=$3 systemd=$4 asked=$5
command -v flock >/dev/null || exit {_NO_FLOCK}

# Tells what is left of the file system: KiB, inodes, and how many inodes it has in all.
cannot_write() {{
  rm -f "$journal/room"
  where=$journal
  until [ -d "$where" ]; do where=${{where%/*}}; done
  df -Pk "${{where:-/}}" | tail -n 1 | {{ read -r _ _ _ kib _; echo "kib $kib"; }}
  df -Pi "${{where:-/}}" | tail -n 1 | {{ read -r _ inodes _ free _; echo "inodes $free $inodes"; }}
  exit {_CANNOT_WRITE}
}}

running_already() {{
  cat run 2>/dev/null
  exit {_ALREADY_RUNNING}
}}

umask 077
rm -rf "$journal.removed"
while :; do
  mkdir -p "$journal" || cannot_write
  enter -x && break
done
[ "$(cat asked 2>/dev/null)" != "$asked" ] || exit 0
at_work && running_already
# The last job's unit may need a moment more than the job itself.
tries=0
while unit_active; do
  [ "$tries" -lt 100 ] || running_already
  tries=$((tries + 1))
  sleep 0.1 2>/dev/null || sleep 1
done

# Room for what is written later, and the exit code's own place: that has to be told even when the disk is full then.
head -c 1048576 /dev/zero >room || cannot_write
echo '      ' >exit.new && echo "$run" >run.new && cat >job.new || cannot_write
cat /proc/sys/kernel/random/boot_id >boot.new && true >>lock || cannot_write
sync exit.new run.new job.new boot.new || cannot_write
rm -f room exit stop pid log progress started asked
mv -f boot.new boot && mv -f run.new run && mv -f job.new job && sync . || cannot_write

if [ -d "$systemd" ]; then
  systemctl reset-failed "$unit" 2>/dev/null
  # At a shutdown only the wrapper is told to end, and the package manager may end by itself before the rest is killed.
  # Releases before 236 know neither --collect nor all of these properties.
  set -- --unit="$unit" --description="kvm.fleet: upgrade of packages" /bin/sh "$journal/job" "$journal" unit
  systemd-run --collect --property=KillMode=mixed --property=TimeoutStopSec=1500 "$@" 8>&- >/dev/null 2>&1 ||
    systemd-run "$@" 8>&- >/dev/null || unit_active || exit 1
else
  exec 9>>lock
  flock -n 9 || running_already
  set -- /bin/sh "$journal/job" "$journal" inherited
  # What a shell puts into the background ignores SIGINT for good, and so would the command until it minds it itself.
  if setsid -f true 2>/dev/null; then
    setsid -f "$@" 8>&- </dev/null >/dev/null 2>&1 || exit 1
  else
    setsid "$@" 8>&- </dev/null >/dev/null 2>&1 &
  fi
fi
echo "$asked" >asked
tries=0
while [ ! -e started ] && [ "$tries" -lt 100 ]; do
  tries=$((tries + 1))
  [ "$tries" -ne 10 ] || at_work || break
  sleep 0.1 2>/dev/null || sleep 1
done
exit 0
"""

# The job's script. Before it come $environment, $prepare and $finish, and the command as its positional parameters;
# behind it, nothing. $how: whether the lock on descriptor 9 is inherited or has to be taken.
#
# No child has the lock: a daemon that a maintainer script starts would keep it for ever. The command is a child in the
# foreground, since one in the background ignores SIGINT.
_WRAPPER = """\
cd -- "$journal" || exit 1
[ "$how" = inherited ] || exec 9>>lock
flock 9 || exit 1
trap : TERM
umask 022
PATH=${PATH:+$PATH:}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH

read -r uptime _ </proc/uptime
echo "$uptime" >started.new && mv -f started.new started
code=$?
if [ "$code" -eq 0 ]; then
  (eval "$prepare") </dev/null >log 2>&1 3>progress 9>&-
  code=$?
fi
if [ "$code" -eq 0 ]; then
  sync ./* . || sync
  /bin/sh -c "$launcher" sh "$journal" "$@" </dev/null >>log 2>&1 3>>progress 9>&-
  code=$?
  rm -f pid
  # What it was interrupted in may be half a line.
  [ -z "$(tail -c 1 log 9>&-)" ] || echo >>log
  stopped=no
  [ ! -e stop ] || stopped=yes
  (eval "$finish"; exit "$code") </dev/null >>log 2>&1 3>>progress 9>&-
  code=$?
fi
sync
# Into the place that was made for it, so that this needs no space.
printf '%6d\\n' "$code" 1<>exit.new && sync exit.new && mv -f exit.new exit && sync .
exit 0
"""

# The pid is there before the command is, and whoever asks for a stop leaves a note before it looks for the pid: one of
# the two sees the other.
_LAUNCHER = f"""\
journal=$1; shift
echo "$$ $(cut -d " " -f 22 "/proc/$$/stat")" >pid
[ ! -e stop ] || exit {STOPPED}
cd /
exec "$@"
"""

# $3: the offset in the log, $4: how many bytes of it to print at most.
_LOOK = f"""\
{_COMMON}
offset=$3 most=$4
command -v flock >/dev/null || flock() {{ :; }}
none() {{ printf 'state none\\n\\n'; exit 0; }}
enter -s || none
[ -e job ] || none
if at_work; then
  echo "state running"
  same_boot && read -r started 2>/dev/null <started && read -r now _ </proc/uptime && echo "uptime $started $now"
elif [ -e exit ]; then
  read -r code <exit
  echo "state ended $code"
else
  echo "state cut_off"
fi
read -r run 2>/dev/null <run && echo "run $run"
[ ! -e stop ] || echo "stopping"
# A last line that is still being written is left out.
[ ! -e progress ] || tail -n 6 progress | while IFS= read -r line; do printf 'progress %s\\n' "$line"; done
size=0
[ ! -e log ] || size=$(($(wc -c <log)))
[ "$offset" -le "$size" ] || offset=0
[ "$((size - offset))" -le "$most" ] || offset=$((size - most))
printf 'log %d\\n\\n' "$offset"
[ "$size" -eq "$offset" ] || tail -c "+$((offset + 1))" log | head -c "$((size - offset))"
"""

_STOP = f"""\
{_COMMON}
command -v flock >/dev/null || flock() {{ :; }}
enter -s && [ -e job ] && at_work || exit 0
true >>stop
noted=$?
if alive; then kill -INT "$pid" 2>/dev/null; fi
exit "$noted"
"""

# Moved away first, so that a journal is there as a whole or not at all.
_REMOVE = f"""\
{_COMMON}
cannot_write() {{ exit 1; }}
command -v flock >/dev/null || flock() {{ :; }}
enter -x || exec rm -rf "$journal.removed"
[ -e job ] && at_work && {{ cat run 2>/dev/null; exit {_ALREADY_RUNNING}; }}
rm -rf "$journal.removed" && mv "$journal" "$journal.removed" && cd / && rm -rf "$journal.removed"
"""

# $1: the journal; the rest are names of files there. Where there is no journal, there are no lines. A last line that
# was never ended is ended here, or the next file would begin in it.
_READ = """\
[ -d "$1" ] || exit 0
cd -- "$1" || exit 1
shift
for name; do
  [ -e "$name" ] || continue
  sed "s/^/$name\\t/" "$name" || exit 1
  [ -z "$(tail -c 1 "$name")" ] || echo
done
"""


# --- starting ------------------------------------------------------------------------------------


def start(agent: GuestAgent, job: Job) -> None:
    """Start a job. It replaces what an earlier one has left, except for the files that ``prepare`` wrote.

    Raises UpgradeRunning, naming the run whose job is at work; DiskFull where the journal cannot be written for want of
    space; GuestUnsupported without flock, or where nothing could be started; InvalidRequest.
    """
    script = job_script(job)
    argv = ("/bin/sh", "-c", _START, "sh", JOURNAL, UNIT, job.run, _SYSTEMD, uuid.uuid4().hex)
    command = Command(argv, stdin=script.encode("utf-8"), timeout=STEP_TIMEOUT, terse=True)
    outcome = agent.patiently(lambda: run_command(agent, command))
    # A start whose answer got lost on its way is asked for again. It may have been cut off before it was noted.
    ours = outcome.exit_code == _ALREADY_RUNNING and outcome.stdout.strip() == job.run
    if outcome.exit_code != 0 and not ours:
        raise _not_started(outcome)


_RUN = re.compile(r"[!-~]{1,200}")


def job_script(job: Job) -> str:
    """The shell script that a job is. Raises InvalidRequest for a job that no guest could run."""
    check_command(Command(job.command, environment=job.environment))
    if not _RUN.fullmatch(job.run) or "\0" in job.prepare + job.finish:
        raise InvalidRequest(
            f"a job of the run {job.run!r} cannot be started",
            remedy="A run's id is printable ASCII without spaces, and a script has no NUL byte.",
        )
    return "".join(
        (
            *(f"export {name}={shlex.quote(value)}\n" for name, value in job.environment.items()),
            "journal=$1 how=$2\n",
            f"prepare={shlex.quote(job.prepare)}\n",
            f"finish={shlex.quote(job.finish)}\n",
            f"launcher={shlex.quote(_LAUNCHER)}\n",
            f"set -- {shlex.join(job.command)}\n",
            _WRAPPER,
        )
    )


def _not_started(outcome: Outcome) -> FleetError:
    """The error behind a job that was not started."""
    if outcome.exit_code == _ALREADY_RUNNING:
        return _running_already(outcome)
    if outcome.exit_code == _NO_FLOCK:
        return flock_missing()
    left = _SPACE.fullmatch(outcome.stdout) if outcome.exit_code == _CANNOT_WRITE else None
    if left and (int(left["kib"]) < _ROOM_KIB or (int(left["inodes"]) > 0 and int(left["free"]) == 0)):
        return DiskFull(
            f"the upgrade's journal cannot be written in the guest: {left['kib']} KiB and {left['free']} inodes are "
            f"left for {JOURNAL}",
            remedy="Make room in the guest ('apt-get clean', old kernels, logs), then run again.",
            evidence={"journal": JOURNAL, "free_kib": int(left["kib"]), "free_inodes": int(left["free"])},
        )
    return GuestUnsupported(
        f"the upgrade could not be started in the guest: {outcome.stderr.strip() or 'it gave no reason'}",
        remedy=f"See 'journalctl -b' in the guest, and whether root can write to {JOURNAL} there.",
        evidence={"exit_code": outcome.exit_code, "stderr": outcome.stderr},
    )


def flock_missing() -> GuestUnsupported:
    """What a guest is told in which no job can be started."""
    return GuestUnsupported(
        "the guest has no flock, by which an upgrade that runs is told from one that was cut off",
        remedy="Install util-linux in the guest, or skip its packages with upgrade_packages: false.",
    )


_ROOM_KIB = 1024
_SPACE = re.compile(r"kib (?P<kib>[0-9]{1,18})\ninodes (?P<free>[0-9]{1,18}) (?P<inodes>[0-9]{1,18})\n")


def _running_already(outcome: Outcome) -> UpgradeRunning:
    told = outcome.stdout.strip()
    run = told if _RUN.fullmatch(told) else "unknown"
    return UpgradeRunning(
        f"an upgrade runs in the guest already, started by the run {run}",
        remedy="Run again: it will wait for that upgrade rather than start one beside it.",
        evidence={"run": run, "journal": JOURNAL},
    )


# --- looking -------------------------------------------------------------------------------------


def look(agent: GuestAgent, offset: int = 0) -> JobLook:
    """Ask how the job is, without waiting for it. ``offset`` is that of the last look, in bytes.

    Raises AgentProtocolError, and what ``output_of`` raises.
    """
    command = shell_script(_LOOK, JOURNAL, UNIT, str(offset), str(LOG_CHUNK), timeout=STEP_TIMEOUT, terse=True)
    return parse_look(raw_output_of(agent, command), offset)


_SECONDS = r"[0-9]{1,12}(?:\.[0-9]{1,9})?"
# What each line of an answer's head may say, in the order in which the guest says it.
_HEAD = re.compile(
    r"state (?P<state>none|running|cut_off|ended (?P<code>[0-9]{1,3}))\n"
    rf"(?:uptime (?P<began>{_SECONDS}) (?P<now>{_SECONDS})\n)?"
    r"(?:run (?P<run>[!-~]{1,200})\n)?"
    r"(?P<stopping>stopping\n)?"
    r"(?P<progress>(?:progress [^\n]*\n)*)"
    r"(?:log (?P<log>[0-9]{1,18})\n)?"
)


def parse_look(answer: bytes, asked: int = 0) -> JobLook:
    """Read the answer to a look that asked for the log from an offset on.

    Raises AgentProtocolError for an answer that the guest cannot have given honestly.
    """
    head, blank, text = answer.partition(b"\n\n")
    told = _HEAD.fullmatch(head.decode("utf-8", "replace") + "\n")
    if not blank or not told:
        raise _odd_answer("is none", answer)
    state = JobState(told["state"].partition(" ")[0])
    code = int(told["code"]) if told["code"] else None
    if code is not None and code > 255:
        raise _odd_answer(f"has the exit code {code}", answer)
    if len(text) > LOG_CHUNK or (text and told["log"] is None):
        raise _odd_answer(f"has {len(text)} bytes of a log that were not asked for", answer)
    elapsed = float(told["now"]) - float(told["began"]) if told["now"] else None
    if elapsed is not None and elapsed < 0:
        raise _odd_answer("has a job that begins in the future", answer)
    log, offset = whole_lines(text, int(told["log"] or 0), asked, to_its_end=state is not JobState.RUNNING)
    return JobLook(
        state=state,
        exit_code=code,
        run=told["run"] or "",
        elapsed=elapsed,
        stopping=told["stopping"] is not None,
        offset=offset,
        log=log,
        progress=tuple(line.partition(" ")[2] for line in told["progress"].split("\n")[:-1]),
    )


def whole_lines(text: bytes, begins: int, asked: int, *, to_its_end: bool) -> tuple[tuple[str, ...], int]:
    """The whole lines in a part of the log, and the offset in bytes behind the last of them.

    ``begins`` is the part's own offset and ``asked`` the one that was asked for. Where something between the two was
    skipped, the part begins in the middle of a line, and that line is left out. A line that fills the whole part is cut
    rather than waited for. ``to_its_end`` takes a last line that was never ended.
    """
    end = text.rfind(b"\n") + 1
    if to_its_end or (end == 0 and len(text) >= LOG_CHUNK):
        end = len(text)
    first = text.find(b"\n", 0, end) + 1 if begins > asked else 0
    lines = text[first:end].decode("utf-8", "replace").split("\n")
    return tuple(lines[:-1] if lines[-1] == "" else lines), begins + end


def _odd_answer(what: str, answer: bytes) -> AgentProtocolError:
    shown = answer[:80].decode("utf-8", "replace")
    return AgentProtocolError(
        f"the guest's answer about its upgrade {what}: {shown!r}",
        remedy=f"Look at {JOURNAL} in the guest; the file 'exit' there has to hold one number, and 'run' one word.",
        evidence={"answer": answer[:500].decode("utf-8", "replace")},
    )


_ASK_AGAIN = (AgentCommandFailed, CommandFailed, CommandKilled, CommandResultLost, CommandTimeout)


def wait(agent: GuestAgent, clock: Clock, timeout: float, on_look: Callable[[JobLook], None] | None = None) -> JobLook:
    """Wait for as long as the job runs, and return the first look that finds it otherwise.

    At the ``timeout``, in seconds, the last look is returned, with the job still running: it is not touched. Each look
    is handed to ``on_look`` as well, with the log's lines since the look before.

    A look that fails is taken again until the deadline: the agent or libvirt may be restarted meanwhile, and nothing
    can be started in a guest whose libc or shell is just being replaced. If none succeeded, the last error is raised.
    """
    deadline = Deadline(clock, timeout)
    found: JobLook | None = None
    trouble: FleetError
    for _tick in ticks(deadline, clock, first=1, longest=5):
        try:
            found = look(agent, found.offset if found else 0)
        except FleetError as error:
            if not (error.transient or isinstance(error, _ASK_AGAIN)):
                raise
            trouble = error
            continue
        if on_look:
            on_look(found)
        if found.state is not JobState.RUNNING:
            break
    if found:
        return found
    raise trouble


# --- stopping ------------------------------------------------------------------------------------


def stop(agent: GuestAgent) -> None:
    """Ask the job to stop gently, and return at once; nothing happens where none runs.

    The command gets SIGINT, by which a package manager ends after its current step; its children do not. A job whose
    command has not begun does not begin it. ``finish`` runs all the same.
    """
    output_of(agent, shell_script(_STOP, JOURNAL, UNIT, timeout=STEP_TIMEOUT, terse=True))


# --- reading and removing ------------------------------------------------------------------------


def read(agent: GuestAgent, *names: str) -> Mapping[str, list[str]]:
    """The lines of some of the journal's files, by the file's name; a file that is not there has none."""
    # Each line goes out behind its file's name, so that nothing a file contains can pass for another file.
    script = shell_script(_READ, JOURNAL, *names, timeout=STEP_TIMEOUT)
    return split_files(output_of(agent, replace(script, max_output=MAX_OUTPUT)), names)


def split_files(output: str, names: Iterable[str]) -> Mapping[str, list[str]]:
    """Undo what ``read`` does to put several files into one output."""
    files: dict[str, list[str]] = {name: [] for name in names}
    for line in output.split("\n"):
        name, _tab, content = line.partition("\t")
        if name in files:
            files[name].append(content)
    return files


def tail(agent: GuestAgent, count: int = 40) -> list[str]:
    """The last lines of the job's log; none where there is no log."""
    command = Command(("tail", "-n", str(count), f"{JOURNAL}/log"), timeout=STEP_TIMEOUT)
    return agent.patiently(lambda: run_command(agent, command)).stdout.splitlines()


def remove(agent: GuestAgent) -> None:
    """Remove the journal, once its result is told. Raises UpgradeRunning where a job is at work by now."""
    script = shell_script(_REMOVE, JOURNAL, UNIT, timeout=STEP_TIMEOUT, terse=True)
    outcome = agent.patiently(lambda: run_command(agent, script))
    if outcome.exit_code == _ALREADY_RUNNING:
        raise _running_already(outcome)
    error = failure_of(outcome)
    if error:
        error.evidence.update(journal=JOURNAL, stderr=outcome.stderr)
        raise error
