# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Commands in a guest: how they are launched, capped, ended and reported. The launcher runs under the real shell."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvm.fleet.plugins.module_utils import _exec
from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._clock import SystemClock
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    AgentSilent,
    CommandFailed,
    CommandKilled,
    CommandTimeout,
    FleetError,
    InvalidRequest,
)
from ansible_collections.kvm.fleet.plugins.module_utils._exec import (
    LAUNCHER,
    MAX_OUTPUT,
    PLAIN_LAUNCHER,
    RUNNER,
    Command,
    Outcome,
    check_command,
    last_lines,
    launch_line,
    output_of,
    path_exists,
    run_command,
    shell_script,
)
from tests.unit.fake_agent import NEVER, Call, Ending, FakeAgent, in_turn
from tests.unit.fake_clock import FakeClock
from tests.unit.host_agent import HostAgent


@pytest.fixture
def guest(host: HostAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GuestAgent:
    """A guest that really runs commands, and keeps the launcher's pipes in a directory of the test."""
    monkeypatch.setattr(_exec, "LAUNCHER", LAUNCHER.replace("/run/", f"{tmp_path}/"))
    return GuestAgent(host, SystemClock())


def shell(guest: GuestAgent, text: str, **options: Any) -> Outcome:
    return run_command(guest, Command(("/bin/sh", "-c", text), **options))


# --- what may be asked for -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (Command(()), "there is no command to run"),
        (Command(("",)), "there is no command to run"),
        (Command(("a", "b\0c")), "an argument contains a NUL byte"),
        (Command(("a",), chdir="\0"), "an argument contains a NUL byte"),
        (Command(("a",), environment={"A": "\0"}), "an argument contains a NUL byte"),
        (Command(("a",), timeout=0), "the timeout of 0 s is not above zero"),
        (Command(("a",), timeout=-1.5), "the timeout of -1.5 s is not above zero"),
        (Command(("a",), max_output=0), "max_output of 0 is not between 1 and 1500000"),
        (Command(("a",), max_output=MAX_OUTPUT + 1), "max_output of 1500001 is not between 1 and 1500000"),
        (Command(("a",), environment={"A=B": "x"}), "'A=B' is no name for an environment variable"),
        (Command(("a",), environment={"": "x"}), "'' is no name for an environment variable"),
        (Command(("a",), environment={"A\n": "x"}), "'A\\n' is no name for an environment variable"),
        (Command(("a",), environment={"1A": "x"}), "'1A' is no name for an environment variable"),
        (Command(("a",), environment={"A": "x", "-i": "x"}), "'-i' is no name for an environment variable"),
    ],
)
def test_a_command_that_could_run_nowhere_is_refused(command: Command, problem: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        check_command(command)
    assert raised.value.message == problem


@pytest.mark.parametrize(
    "command",
    [
        Command(("a", "", "-x", "ü", "a\nb")),
        Command(("a",), max_output=MAX_OUTPUT, timeout=0.1),
        Command(("a",), environment={"_a1": "", "B": "x=y\n"}, chdir="/a b"),
    ],
)
def test_an_unusual_command_is_accepted(command: Command) -> None:
    check_command(command)


def test_a_refused_command_never_reaches_the_guest(clock: FakeClock) -> None:
    agent = FakeAgent(clock)
    with pytest.raises(InvalidRequest):
        run_command(GuestAgent(agent, clock), Command(("a",), timeout=0))
    assert agent.requests == []


@pytest.mark.parametrize(
    ("command", "rest"),
    [
        (Command(("ls", "-l")), ["1048577", "", "ls", "-l"]),
        (Command(("ls",), chdir="/a b", max_output=10), ["11", "/a b", "ls"]),
        (Command(("ls",), environment={"A": "1", "B": "x y"}), ["1048577", "", "env", "A=1", "B=x y", "ls"]),
    ],
)
def test_the_launch_line_carries_everything_as_arguments(command: Command, rest: list[str]) -> None:
    assert launch_line(command) == ["/bin/sh", "-c", LAUNCHER, "sh", *rest]
    assert launch_line(replace(command, terse=True)) == ["/bin/sh", "-c", PLAIN_LAUNCHER, "sh", *rest]


def test_a_script_and_its_parameters_never_mix() -> None:
    command = shell_script("echo $1", "$(id)", "; id", timeout=5)
    assert command.argv == ("/bin/sh", "-c", "echo $1", "sh", "$(id)", "; id")
    assert command.environment == {}


# --- through the runner of a guest that SELinux confines ------------------------------------------


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the guest's runner would be; nothing is there."""
    path = tmp_path / "runner"
    for script in ("LAUNCHER", "PLAIN_LAUNCHER", "_END_GROUP"):
        monkeypatch.setattr(_exec, script, getattr(_exec, script).replace(RUNNER, str(path)))
    return path


def installed(runner: Path) -> None:
    """The program that the role installs, but for a mark that tells what ran by it."""
    runner.write_text(
        f'#!/bin/sh\n{{ echo "$@"; }} >>{runner}.log\nexport RAN_BY=runner\nexec "$@"\n', encoding="ascii"
    )
    runner.chmod(0o755)


SHOW = 'printf "%s|" "$RAN_BY" "$@"; cat; exit 3'


@pytest.mark.parametrize("terse", [False, True])
@pytest.mark.parametrize("there", [True, False])
def test_a_command_passes_through_the_runner_where_there_is_one(
    guest: GuestAgent, runner: Path, there: bool, terse: bool
) -> None:
    if there:
        installed(runner)
    arguments = ("", "a b", "$(id)", "'\"", "ü")
    command = Command(("/bin/sh", "-c", SHOW, "sh", *arguments), stdin=b"in", max_output=100, terse=terse)
    outcome = run_command(guest, command)
    by = "runner" if there else ""
    assert (outcome.exit_code, outcome.stdout) == (3, "|".join([by, *arguments, "in"]))


def test_a_runner_that_may_not_be_run_is_passed_by(guest: GuestAgent, runner: Path) -> None:
    installed(runner)
    runner.chmod(0o644)
    assert shell(guest, 'echo "<$RAN_BY>"').stdout == "<>\n"


def test_a_command_is_ended_by_the_runner_that_it_runs_by(guest: GuestAgent, runner: Path) -> None:
    """The agent's own domain may not signal what the runner has started."""
    installed(runner)
    with pytest.raises(CommandTimeout) as raised:
        shell(guest, "sleep 1000", timeout=2)
    assert raised.value.evidence["ended"] is True
    log = Path(f"{runner}.log").read_text(encoding="utf-8")
    assert [line[:10] for line in log.splitlines() if line.startswith("/bin/sh -c")] == ["/bin/sh -c"] * 2
    assert "kill -TERM" in log


# --- the launcher under the real shell -----------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 95, 126, 255])
def test_the_commands_exit_code_is_reported(guest: GuestAgent, code: int) -> None:
    outcome = shell(guest, f"exit {code}")
    assert (outcome.exit_code, outcome.signal) == (code, None)


@pytest.mark.parametrize("number", [9, 15, 6])
def test_a_command_that_a_signal_ended_has_a_signal_and_no_exit_code(guest: GuestAgent, number: int) -> None:
    outcome = shell(guest, f"ulimit -c 0; kill -{number} $$")
    assert (outcome.exit_code, outcome.signal) == (None, number)


def test_a_program_that_is_not_there_is_127(guest: GuestAgent) -> None:
    outcome = run_command(guest, Command(("no-such-program",)))
    assert outcome.exit_code == 127
    assert "no-such-program" in outcome.stderr


def test_arguments_arrive_as_they_were_given(guest: GuestAgent) -> None:
    nasty = ("a b", "'", '"', "$HOME", "`id`", "*", "-n", "", "a\nb", "ü", "\\")
    outcome = run_command(guest, Command(("printf", "<%s>", *nasty)))
    assert outcome.stdout == "".join(f"<{argument}>" for argument in nasty)


def test_standard_input_arrives_whole(guest: GuestAgent) -> None:
    stdin = bytes(range(256)) * 400
    outcome = run_command(guest, Command(("sha256sum",), stdin=stdin))
    assert outcome.stdout.split()[0] == hashlib.sha256(stdin).hexdigest()


def test_without_standard_input_there_is_none_to_wait_for(guest: GuestAgent) -> None:
    assert run_command(guest, Command(("cat",))).exit_code == 0


def test_the_streams_are_kept_apart_and_decoded_with_replacement(guest: GuestAgent) -> None:
    outcome = shell(guest, r"printf 'out \377 \303\274'; printf 'err' >&2")
    assert (outcome.stdout, outcome.stderr) == ("out \ufffd ü", "err")
    assert (outcome.stdout_truncated, outcome.stderr_truncated) == (False, False)


@pytest.mark.parametrize(
    ("length", "kept", "truncated"), [(0, 0, False), (9, 9, False), (10, 10, False), (11, 10, True), (500, 10, True)]
)
def test_each_stream_is_cut_at_its_limit_and_no_earlier(
    guest: GuestAgent, length: int, kept: int, truncated: bool
) -> None:
    text = f"head -c {length} /dev/zero | tr '\\0' x"
    outcome = shell(guest, f"{text}; {text} >&2", max_output=10)
    assert (outcome.stdout, outcome.stdout_truncated) == ("x" * kept, truncated)
    assert (outcome.stderr, outcome.stderr_truncated) == ("x" * kept, truncated)


def test_a_flood_is_drained_and_never_reaches_the_agent(guest: GuestAgent) -> None:
    pid = guest.start(launch_line(Command(("head", "-c", "3000000", "/dev/zero"), max_output=1000)))
    while not (status := guest.status(pid)).exited:
        pass
    assert (status.exit_code, len(status.stdout)) == (0, 1001)


def test_the_pipes_are_removed_at_once(guest: GuestAgent, tmp_path: Path) -> None:
    assert shell(guest, f"ls -d {tmp_path}/kvm-fleet.*").exit_code != 0


def test_pipes_that_a_killed_command_has_left_are_replaced(
    guest: GuestAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_exec, "LAUNCHER", _exec.LAUNCHER.replace("kvm-fleet.$$", "kvm-fleet.1"))
    os.mkfifo(tmp_path / "kvm-fleet.1.out")
    outcome = shell(guest, "echo one; echo two >&2", max_output=2)
    assert (outcome.stdout, outcome.stderr, outcome.stdout_truncated) == ("on", "tw", True)
    assert list(tmp_path.glob("kvm-fleet.*")) == []


def test_where_no_pipes_can_be_made_the_command_runs_all_the_same(
    guest: GuestAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_exec, "LAUNCHER", LAUNCHER.replace("/run/", "/nonexistent/"))
    outcome = shell(guest, "head -c 500 /dev/zero | tr '\\0' x; exit 3", max_output=10)
    assert (outcome.exit_code, outcome.stdout, outcome.stdout_truncated) == (3, "x" * 10, True)
    assert outcome.stderr == ""


@pytest.mark.parametrize("terse", [False, True])
def test_the_command_runs_in_its_directory(guest: GuestAgent, tmp_path: Path, terse: bool) -> None:
    directory = tmp_path / "-a b"
    directory.mkdir()
    outcome = run_command(guest, Command(("pwd", "-P"), chdir=str(directory), terse=terse))
    assert outcome.stdout == f"{directory.resolve()}\n"


@pytest.mark.parametrize("terse", [False, True])
def test_a_directory_that_cannot_be_entered_is_125_and_nothing_runs(
    guest: GuestAgent, tmp_path: Path, terse: bool
) -> None:
    witness = tmp_path / "witness"
    outcome = run_command(guest, Command(("touch", str(witness)), chdir=str(tmp_path / "missing"), terse=terse))
    assert outcome.exit_code == 125
    assert "missing" in outcome.stderr
    assert not witness.exists()


def test_variables_are_added_to_the_agents_own(guest: GuestAgent) -> None:
    outcome = shell(guest, 'printf "%s|%s" "$A" "$PATH"', environment={"A": "1 2'$x"})
    added, _bar, path = outcome.stdout.partition("|")
    assert added == "1 2'$x"
    assert path.endswith(":/bin")


@pytest.mark.parametrize("terse", [False, True])
def test_the_command_leads_a_process_group_of_its_own(guest: GuestAgent, terse: bool) -> None:
    # The fields of /proc/PID/stat: pid, name, state, parent, group, session
    outcome = run_command(guest, Command(("cat", "/proc/self/stat"), terse=terse))
    pid, _name, _state, _parent, group, session = outcome.stdout.split()[:6]
    assert pid == group == session


def alive(pid: int) -> bool:
    """Whether a process still runs; one that only waits for its parent to take notice does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("terse", [False, True])
def test_at_the_deadline_the_command_and_its_children_are_ended(guest: GuestAgent, tmp_path: Path, terse: bool) -> None:
    pids = tmp_path / "pids"
    text = f"sleep 600 & echo $$ $! >{pids}; wait"
    with pytest.raises(CommandTimeout):
        shell(guest, text, timeout=2, terse=terse)
    assert [alive(int(pid)) for pid in pids.read_text(encoding="utf-8").split()] == [False, False]


def test_a_command_that_ignores_sigterm_is_ended_all_the_same(
    guest: GuestAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = tmp_path / "pid"
    monkeypatch.setattr(_exec, "_END_GROUP", _exec._END_GROUP.replace("sleep 0.5", "sleep 0.02"))
    with pytest.raises(CommandTimeout) as raised:
        shell(guest, f"trap '' TERM; echo $$ >{pid}; while :; do :; done", timeout=2)
    assert raised.value.evidence["ended"] is True
    assert not alive(int(pid.read_text(encoding="utf-8")))


def test_a_command_that_has_not_begun_at_the_deadline_is_ended_too(
    guest: GuestAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = tmp_path / "pid"
    # Stands in for a directory on a file system that hangs.
    monkeypatch.setattr(_exec, "LAUNCHER", _exec.LAUNCHER.replace("cap=$1", f"echo $$ >{pid}; sleep 4; cap=$1"))
    with pytest.raises(CommandTimeout) as raised:
        shell(guest, "true", timeout=1)
    assert raised.value.evidence["ended"] is True
    assert not alive(int(pid.read_text(encoding="utf-8")))


# --- deadlines, with a scripted guest ------------------------------------------------------------


@pytest.mark.parametrize(("exit_code", "ended"), [(0, True), (1, False)])
def test_it_is_said_whether_the_process_group_is_gone(clock: FakeClock, exit_code: int, ended: bool) -> None:
    def program(call: Call) -> Ending:
        return Ending(exit_code) if _exec._END_GROUP in call.argv else NEVER

    agent = FakeAgent(clock, program)
    with pytest.raises(CommandTimeout) as raised:
        run_command(GuestAgent(agent, clock), Command(("sleep", "600"), timeout=60))
    assert raised.value.message == "the command has not ended after 60 s"
    assert raised.value.evidence == {"pid": 101, "ended": ended}
    assert agent.calls[-1].argv == ["/bin/sh", "-c", _exec._END_GROUP, "sh", "101"]


def test_an_agent_that_falls_silent_at_the_deadline_does_not_hide_it(clock: FakeClock) -> None:
    def program(call: Call) -> Ending:
        if _exec._END_GROUP in call.argv:
            agent.silent = True
        return NEVER

    agent = FakeAgent(clock, program)
    with pytest.raises(CommandTimeout) as raised:
        run_command(GuestAgent(agent, clock), Command(("sleep", "600"), timeout=60))
    assert raised.value.evidence["ended"] is False


def test_a_silent_agent_is_no_timeout_of_the_command(clock: FakeClock) -> None:
    agent = FakeAgent(clock)
    agent.silent = True
    with pytest.raises(AgentSilent):
        run_command(GuestAgent(agent, clock), Command(("true",)))


# --- small commands ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{}/a b.txt", True),
        ("{}/a*.txt", True),
        ("{}/?*", True),
        ("{}/[ab]*", True),
        ("{}/*.conf", False),
        ("{}/missing", False),
        ("{}/a", False),
        ("{}", True),
        ("", False),
        ("{}/$(touch pwned)", False),
        ("{}/x; exit 0", False),
        ("-e", False),
    ],
)
def test_a_path_is_found_with_wildcards_and_spaces(
    guest: GuestAgent, tmp_path: Path, pattern: str, expected: bool
) -> None:
    directory = tmp_path / "with space *"
    directory.mkdir()
    (directory / "a b.txt").touch()
    assert path_exists(guest, pattern.format(directory)) is expected
    assert not (directory / "pwned").exists()


def test_a_relative_path_begins_where_the_command_would_run(guest: GuestAgent, tmp_path: Path) -> None:
    (tmp_path / "made").touch()
    assert [path_exists(guest, "mad?", str(directory)) for directory in (tmp_path, "/")] == [True, False]
    with pytest.raises(CommandFailed, match="returned 125"):
        path_exists(guest, "made", str(tmp_path / "missing"))


def test_a_dangling_link_does_not_exist(guest: GuestAgent, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    assert path_exists(guest, str(tmp_path / "link")) is False


def test_the_boot_id_is_the_kernels(guest: GuestAgent) -> None:
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    assert _exec.boot_id(guest) == boot_id
    assert len(boot_id) == 36


@given(st.lists(st.from_regex(r"\A[a-z]{0,5}\Z"), max_size=30), st.integers(1, 25))
def test_the_last_lines_are_the_end(lines: list[str], count: int) -> None:
    assert list(last_lines("".join(f"{line}\n" for line in lines), count)) == lines[max(0, len(lines) - count) :]


@pytest.mark.parametrize(
    ("ending", "kind", "message"),
    [
        (Ending(2, stderr=b"one\ntwo\n"), CommandFailed, "the command returned 2"),
        (Ending(None, signal=9), CommandKilled, "the command was ended by signal 9"),
        (Ending(stdout=b"x" * 11), CommandFailed, "the command wrote more than 10 bytes"),
    ],
)
def test_output_that_is_needed_whole_is_never_half(
    clock: FakeClock, ending: Ending, kind: type[FleetError], message: str
) -> None:
    agent = GuestAgent(FakeAgent(clock, in_turn([ending, Ending(stdout=b"x" * 10)])), clock)
    command = Command(("cat", "/x"), max_output=10)
    with pytest.raises(kind) as raised:
        output_of(agent, command)
    assert raised.value.message == message
    assert raised.value.evidence["command"] == ["cat", "/x"]
    assert output_of(agent, command) == "x" * 10
