# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs one command in a guest, with everything that the agent's guest-exec leaves to its caller."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ansible_collections.kvm.fleet.plugins.module_utils._agent import Finished, GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    AgentCommandBlocked,
    CommandFailed,
    CommandKilled,
    CommandTimeout,
    FleetError,
    InvalidRequest,
)

MAX_OUTPUT = 1_500_000
"""Bytes of each output stream that can be asked for.

The agent itself would send 16 MiB, but libvirt's RPC carries no string above 4 MiB (VIR_NET_MESSAGE_STRING_MAX), and an
answer above 10 MiB (QEMU_AGENT_MAX_RESPONSE) makes libvirt give up on the agent until the domain's next start. Two
streams of this size are 4.0 MB in base64.
"""

RUNNER = "/usr/libexec/kvm-fleet/run"
"""A program of the guest that runs its arguments, which the role selinux_runner installs.

SELinux starts it in another domain than the agent's (virt_qemu_ga_t): by its label, virt_qemu_ga_unconfined_exec_t, and
where the boolean virt_qemu_ga_run_unconfined is on.
"""


def _through_runner(script: str) -> str:
    """A script that passes through the guest's runner before anything else, if there is one, and else runs as it is."""
    return f"""\
script={shlex.quote(script)}
[ ! -x {RUNNER} ] || exec {RUNNER} /bin/sh -c "$script" "$0" "$@"
eval "$script"
"""


# Ran as: /bin/sh -c LAUNCHER sh CAP DIRECTORY COMMAND...
#
# The command replaces the shell, so its return code or signal is what the agent reports. Its output passes through two
# readers that keep the first CAP bytes and drain the rest, so that no command can flood the agent. Becoming a session
# leader makes its children reachable as one process group when it has to be ended. Where no FIFO can be made, as on a
# full or read-only /run, the command runs without a cap rather than not at all. FIFOs that are there already are those
# of a command that was killed here, with the same pid: only root can make any in /run.
LAUNCHER = _through_runner(
    """\
cap=$1 directory=$2 pipe=/run/kvm-fleet.$$; shift 2
if [ -n "$directory" ]; then cd -- "$directory" || exit 125; fi
make_pipes() { mkfifo -m 600 "$pipe.out" "$pipe.err" 2>/dev/null; }
if make_pipes || { rm -f "$pipe.out" "$pipe.err" 2>/dev/null && make_pipes; }; then
  { head -c "$cap"; exec cat >/dev/null; } <"$pipe.out" &
  { head -c "$cap" >&2; exec cat >/dev/null; } <"$pipe.err" &
  exec >"$pipe.out" 2>"$pipe.err"
  rm -f "$pipe.out" "$pipe.err"
fi
exec setsid "$@"
"""
)

# The same without readers, for a command whose output is short whatever happens: these are most of the processes that a
# short command costs.
PLAIN_LAUNCHER = _through_runner(
    """\
directory=$2; shift 2
if [ -n "$directory" ]; then cd -- "$directory" || exit 125; fi
exec setsid "$@"
"""
)

_VARIABLE = re.compile(r"\A[A-Za-z_][A-Za-z0-9_]*\Z")


@dataclass(frozen=True)
class Command:
    """What to run. ``timeout`` is in seconds, ``max_output`` in bytes of each stream.

    A ``terse`` command sees to it itself that its output is short, be the guest in whatever state.
    """

    argv: tuple[str, ...]
    stdin: bytes | None = None
    chdir: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 60
    max_output: int = 1024 * 1024
    terse: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a command ended. ``exit_code`` is None when a signal ended it; ``duration`` is in seconds."""

    exit_code: int | None
    signal: int | None
    stdout: str
    stderr: str
    stdout_truncated: bool
    stderr_truncated: bool
    duration: float


def shell_script(
    text: str,
    *arguments: str,
    timeout: float,
    environment: Mapping[str, str] | None = None,
    terse: bool = False,
) -> Command:
    """A POSIX shell script as a Command; ``arguments`` are its positional parameters."""
    argv = ("/bin/sh", "-c", text, "sh", *arguments)
    return Command(argv, timeout=timeout, environment=environment or {}, terse=terse)


def check_command(command: Command) -> None:
    """Raise InvalidRequest for a command that could not run on any guest."""
    problem = None
    texts = [*command.argv, command.chdir, *command.environment.values()]
    if not command.argv or not command.argv[0]:
        problem = "there is no command to run"
    elif any("\0" in text for text in texts):
        problem = "an argument contains a NUL byte"
    elif command.timeout <= 0:
        problem = f"the timeout of {command.timeout:g} s is not above zero"
    elif not 0 < command.max_output <= MAX_OUTPUT:
        problem = f"max_output of {command.max_output} is not between 1 and {MAX_OUTPUT}"
    else:
        for variable in command.environment:
            if not _VARIABLE.match(variable):
                problem = f"{variable!r} is no name for an environment variable"
    if problem:
        raise InvalidRequest(
            problem, remedy="Correct the option; the documentation of kvm.fleet.guest_exec has examples."
        )


def launch_line(command: Command) -> list[str]:
    """The argument list that is handed to guest-exec."""
    # One byte more than asked for tells a stream that was cut from one that fitted exactly.
    cap = str(command.max_output + 1)
    # guest-exec's own 'env' would replace the agent's environment, PATH included; env(1) adds to it.
    variables = [f"{name}={value}" for name, value in command.environment.items()]
    prefix = ["env", *variables] if variables else []
    launcher = PLAIN_LAUNCHER if command.terse else LAUNCHER
    return ["/bin/sh", "-c", launcher, "sh", cap, command.chdir, *prefix, *command.argv]


def run_command(agent: GuestAgent, command: Command) -> Outcome:
    """Run a command in the guest to its end.

    At the deadline its process group is ended, by SIGTERM and then SIGKILL, and CommandTimeout is raised. Raises what
    GuestAgent.run raises, and InvalidRequest.
    """
    return _outcome(_run_to_its_end(agent, command), command.max_output)


def _run_to_its_end(agent: GuestAgent, command: Command) -> Finished:
    check_command(command)
    try:
        return agent.run(launch_line(command), timeout=command.timeout, stdin=command.stdin)
    except CommandTimeout as error:
        error.evidence["ended"] = _end_group(agent, error.evidence["pid"])
        raise


# Succeeds only when the whole process group is gone, and the process itself, which leads none before its setsid: a
# directory that cannot be entered may keep it from there. Debian's dash knows no '--' before a group.
# It needs the runner as the command did: the agent's own domain may not signal that of the runner.
_END_GROUP = _through_runner(
    """\
there() { kill -0 "-$1" 2>/dev/null || kill -0 "$1" 2>/dev/null; }
kill -TERM "-$1" "$1" 2>/dev/null
for i in 1 2 3 4 5 6 7 8 9 10; do there "$1" || break; sleep 0.5; done
kill -KILL "-$1" "$1" 2>/dev/null
sleep 0.2
! there "$1"
"""
)


def _end_group(agent: GuestAgent, pid: object) -> bool:
    """End a process and its children; tells whether they are known to be gone."""
    try:
        finished = agent.run(["/bin/sh", "-c", _END_GROUP, "sh", str(pid)], timeout=30)
        return finished.exit_code == 0
    except FleetError:
        # The deadline that has passed is what the user is told; that the rest is unknown goes with it as evidence.
        return False


def _outcome(finished: Finished, max_output: int) -> Outcome:
    return Outcome(
        exit_code=finished.exit_code,
        signal=finished.signal,
        stdout=_decode(finished.stdout[:max_output]),
        stderr=_decode(finished.stderr[:max_output]),
        stdout_truncated=len(finished.stdout) > max_output,
        stderr_truncated=len(finished.stderr) > max_output,
        duration=finished.duration,
    )


def _decode(output: bytes) -> str:
    return output.decode("utf-8", "replace")


def failure_of(outcome: Outcome) -> FleetError | None:
    """The error that a command ended with, or None when it succeeded."""
    remedy = "See what it wrote to stdout and stderr."
    if outcome.signal is not None:
        return CommandKilled(f"the command was ended by signal {outcome.signal}", remedy=remedy)
    if outcome.exit_code != 0:
        return CommandFailed(f"the command returned {outcome.exit_code}", remedy=remedy)
    return None


def output_of(agent: GuestAgent, command: Command) -> str:
    """All that a command which has to succeed writes to standard output. Raises CommandFailed and CommandKilled.

    The command is run again while the agent is away, for as long as its patience lasts: it has to be one that may.
    """
    return _decode(raw_output_of(agent, command))


def raw_output_of(agent: GuestAgent, command: Command) -> bytes:
    """The same as bytes, for who counts them."""
    finished = agent.patiently(lambda: _run_to_its_end(agent, command))
    outcome = _outcome(finished, command.max_output)
    error = failure_of(outcome)
    if error:
        error.evidence.update(command=list(command.argv), stderr=list(last_lines(outcome.stderr)))
        raise error
    if outcome.stdout_truncated:
        raise CommandFailed(
            f"the command wrote more than {command.max_output} bytes",
            remedy="Look in the guest at what it writes; half of it would be worse than nothing.",
            evidence={"command": list(command.argv)},
        )
    return finished.stdout


def path_exists(agent: GuestAgent, pattern: str, chdir: str = "") -> bool:
    """Whether something in the guest matches a path, in which the shell's wildcards may be used.

    A relative path begins at ``chdir``. Raises CommandFailed where that cannot be entered.
    """
    text = 'IFS=; for path in $1; do [ ! -e "$path" ] || { echo yes; exit; }; done; echo no'
    look = replace(shell_script(text, pattern, timeout=60, terse=True), chdir=chdir)
    return output_of(agent, look).strip() == "yes"


def boot_id(agent: GuestAgent, timeout: float = 30) -> str:
    """The kernel's id of the guest's current boot: another one is the proof of a reboot."""
    return output_of(agent, Command(("cat", "/proc/sys/kernel/random/boot_id"), timeout=timeout, terse=True)).strip()


def boot_id_if_told(agent: GuestAgent) -> str | None:
    """Likewise, or None for a guest whose agent runs no commands: it is told from others by its process alone."""
    try:
        return boot_id(agent)
    except AgentCommandBlocked:
        return None


def last_lines(text: str, count: int = 20) -> Sequence[str]:
    """The end of an output, as evidence for an error."""
    return text.splitlines()[-count:]
