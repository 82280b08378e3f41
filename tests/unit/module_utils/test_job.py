# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Long work in a guest: started once, followed across an agent that comes and goes, read from its own records."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvm.fleet.plugins.module_utils import _job
from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._clock import SystemClock
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    AgentProtocolError,
    AgentSilent,
    CommandFailed,
    DiskFull,
    FleetError,
    GuestUnsupported,
    InvalidRequest,
    UpgradeRunning,
)
from ansible_collections.kvm.fleet.plugins.module_utils._job import (
    LOG_CHUNK,
    Job,
    JobLook,
    JobState,
    job_script,
    look,
    parse_look,
    read,
    remove,
    split_files,
    start,
    stop,
    tail,
    wait,
    whole_lines,
)
from tests.unit.fake_agent import NEVER, Call, Ending, FakeAgent, in_turn
from tests.unit.fake_clock import FakeClock
from tests.unit.host_agent import HostAgent


def a_job(*command: str, run: str = "run-1", prepare: str = "", finish: str = "") -> Job:
    return Job(run, prepare, command or ("true",), finish, {"LC_ALL": "C"})


# --- starting ------------------------------------------------------------------------------------


def test_the_job_goes_in_by_standard_input_and_the_rest_as_arguments(clock: FakeClock) -> None:
    agent = FakeAgent(clock)
    start(GuestAgent(agent, clock), a_job("apt-get", "-o", "a b"))
    [call] = agent.calls
    assert call.stdin.decode() == job_script(a_job("apt-get", "-o", "a b"))
    *told, asked = call.command[3:]
    assert told == ["sh", _job.JOURNAL, "kvm-fleet-upgrade.service", "run-1", "/run/systemd/system"]
    assert asked


@pytest.mark.parametrize(
    ("ending", "kind", "message"),
    [
        (
            Ending(96, stdout=b"run-0\n"),
            UpgradeRunning,
            "an upgrade runs in the guest already, started by the run run-0",
        ),
        (Ending(96), UpgradeRunning, "an upgrade runs in the guest already, started by the run unknown"),
        (
            Ending(96, stdout=b"\x1b[2J\n"),
            UpgradeRunning,
            "an upgrade runs in the guest already, started by the run unknown",
        ),
        (
            Ending(95),
            GuestUnsupported,
            "the guest has no flock, by which an upgrade that runs is told from one that was cut off",
        ),
        (
            Ending(94, stdout=b"kib 8\ninodes 100 200\n"),
            DiskFull,
            f"the upgrade's journal cannot be written in the guest: 8 KiB and 100 inodes are left for {_job.JOURNAL}",
        ),
        (
            Ending(94, stdout=b"kib 80000\ninodes 0 200\n"),
            DiskFull,
            f"the upgrade's journal cannot be written in the guest: 80000 KiB and 0 inodes are left for {_job.JOURNAL}",
        ),
        (
            Ending(94, stdout=b"kib 80000\ninodes 0 0\n", stderr=b"mkdir: Read-only file system\n"),
            GuestUnsupported,
            "the upgrade could not be started in the guest: mkdir: Read-only file system",
        ),
        (
            Ending(94, stdout=b"kib \n"),
            GuestUnsupported,
            "the upgrade could not be started in the guest: it gave no reason",
        ),
        (
            Ending(1, stderr=b"Failed to start transient service unit\n"),
            GuestUnsupported,
            "the upgrade could not be started in the guest: Failed to start transient service unit",
        ),
        (
            Ending(None, signal=9),
            GuestUnsupported,
            "the upgrade could not be started in the guest: it gave no reason",
        ),
    ],
)
def test_a_job_that_did_not_start_says_why(
    clock: FakeClock, ending: Ending, kind: type[FleetError], message: str
) -> None:
    with pytest.raises(FleetError) as raised:
        start(GuestAgent(FakeAgent(clock, in_turn([ending])), clock), a_job())
    assert (raised.type, raised.value.message) == (kind, message)


@pytest.mark.parametrize(
    "job",
    [
        a_job(run=""),
        a_job(run="two words"),
        a_job(run="a\nb"),
        a_job(prepare="a\0b"),
        a_job(finish="a\0b"),
        a_job("true", "\0"),
        Job("run", "", (), "", {}),
        Job("run", "", ("true",), "", {"a b": ""}),
    ],
)
def test_a_job_that_no_guest_could_run_is_refused_before_the_guest_is_asked(clock: FakeClock, job: Job) -> None:
    agent = FakeAgent(clock)
    with pytest.raises(InvalidRequest):
        start(GuestAgent(agent, clock), job)
    assert agent.calls == []


# --- looking -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (b"state none\n\n", JobLook(JobState.NONE)),
        (b"state running\n\n", JobLook(JobState.RUNNING)),
        (
            b"state running\nuptime 10.25 13.5\nrun a-1\nstopping\nprogress \nprogress a:1.0:x y\nlog 0\n\none\ntw",
            JobLook(JobState.RUNNING, None, "a-1", 3.25, True, 4, ("one",), ("", "a:1.0:x y")),
        ),
        (b"state ended 0\nrun a\nlog 0\n\n", JobLook(JobState.ENDED, 0, "a")),
        (b"state ended 100\nrun a\nlog 0\n\none\ntw", JobLook(JobState.ENDED, 100, "a", offset=6, log=("one", "tw"))),
        (b"state cut_off\nrun a\nlog 0\n\n\n", JobLook(JobState.CUT_OFF, run="a", offset=1, log=("",))),
    ],
)
def test_an_answer_tells_how_the_job_is(answer: bytes, found: JobLook) -> None:
    assert parse_look(answer) == found


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"state running",
        b"state running\n",
        b"state ended \n\n",
        b"state ended x\n\n",
        b"state ended -1\n\n",
        b"state ended 256\n\n",
        b"state ended 1234\n\n",
        b"State ended 0\n\n",
        b"state none\nrun \n\n",
        b"state none\nrun a b\n\n",
        b"state running\nuptime 2 1\n\n",
        b"state running\nuptime -2 1\n\n",
        b"state running\nuptime nan nan\n\n",
        "state ended ٣\n\n".encode(),
        b"state none\nmore\n\n",
        b"state none\nlog -1\n\n",
        b"state none\n\na log nobody asked for\n",
        b"state running\nlog 0\n\n" + b"x" * (LOG_CHUNK + 1),
    ],
)
def test_an_answer_that_is_none_is_not_taken_for_success(clock: FakeClock, answer: bytes) -> None:
    agent = FakeAgent(clock, lambda _call: Ending(stdout=answer))
    with pytest.raises(AgentProtocolError, match="the guest's answer about its upgrade"):
        wait(GuestAgent(agent, clock), clock, 10)


HEAD_LINES = (
    *("state none", "state running", "state ended 7", "state cut_off", "uptime 1.5 2", "run a", "stopping"),
    *("progress x", "log 0", "log 70000", ""),
)
HEADS = st.lists(st.sampled_from(HEAD_LINES) | st.text(max_size=20)).map(
    lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass")
)


@given(HEADS | st.binary(), st.binary(), st.integers(0, 100_000))
def test_whatever_a_guest_answers_is_understood_or_refused(head: bytes, log: bytes, asked: int) -> None:
    try:
        found = parse_look(head + b"\n\n" + log, asked)
    except AgentProtocolError:
        return
    assert (found.exit_code is not None) == (found.state is JobState.ENDED)
    assert found.elapsed is None or found.elapsed >= 0
    assert not any("\n" in line for line in found.log + found.progress)


LOGS = st.lists(st.sampled_from([b"a", b"\n", "é".encode(), "🐧".encode(), b"\xff", b"\r", b"\0"])).map(b"".join)


@given(LOGS, st.lists(st.integers(0, 12)))
def test_the_looks_at_a_log_that_grows_show_all_of_it_once(log: bytes, growth: list[int]) -> None:
    shown: list[str] = []
    offset = size = 0
    for more in growth:
        size = min(len(log), size + more)
        lines, offset = whole_lines(log[offset:size], offset, offset, to_its_end=False)
        shown += lines
        assert offset <= size
    lines, offset = whole_lines(log[offset:], offset, offset, to_its_end=True)
    assert offset == len(log)
    text = log.decode("utf-8", "replace")
    assert [*shown, *lines] == (text.removesuffix("\n").split("\n") if text else [])


def test_what_was_skipped_does_not_leave_half_a_line() -> None:
    assert whole_lines("é half\nwhole\nbegun".encode()[1:], 1000, 10, to_its_end=False) == (("whole",), 1013)
    assert whole_lines(b"no end", 1000, 10, to_its_end=False) == ((), 1000)


def test_a_log_that_was_begun_anew_is_shown_from_its_begin() -> None:
    assert whole_lines(b"first\n", 0, 5000, to_its_end=False) == (("first",), 6)


def test_a_line_that_is_longer_than_a_look_is_cut_rather_than_waited_for() -> None:
    assert whole_lines(b"x" * LOG_CHUNK, 7, 7, to_its_end=False) == (("x" * LOG_CHUNK,), 7 + LOG_CHUNK)


# --- following -----------------------------------------------------------------------------------

RUNNING, CUT_OFF = Ending(stdout=b"state running\n\n"), Ending(stdout=b"state cut_off\n\n")


def ended(code: int) -> Ending:
    return Ending(stdout=f"state ended {code}\n\n".encode())


@pytest.mark.parametrize("code", [0, 100])
def test_a_running_job_is_followed_to_its_exit_code(clock: FakeClock, code: int) -> None:
    agent = FakeAgent(clock, in_turn([RUNNING, RUNNING, RUNNING, ended(code)]))
    assert wait(GuestAgent(agent, clock), clock, 1800) == JobLook(JobState.ENDED, code)
    assert {tuple(call.command[3:]) for call in agent.calls} == {
        ("sh", _job.JOURNAL, "kvm-fleet-upgrade.service", "0", "65536")
    }


def test_each_look_is_told_and_goes_on_where_the_last_one_ended(clock: FakeClock) -> None:
    answers = [
        Ending(stdout=b"state running\nlog 0\n\none\ntw"),
        Ending(2),
        Ending(stdout=b"state running\nlog 4\n\ntwo\n"),
        Ending(stdout=b"state ended 0\nlog 8\n\nthree\n"),
    ]
    agent, told = FakeAgent(clock, in_turn(answers)), list[JobLook]()
    found = wait(GuestAgent(agent, clock), clock, 1800, told.append)
    assert [line for look in told for line in look.log] == ["one", "two", "three"]
    assert found == told[-1] == JobLook(JobState.ENDED, 0, offset=14, log=("three",))
    assert [call.command[-2] for call in agent.calls] == ["0", "4", "4", "8"]


def test_where_no_job_runs_nothing_is_waited_for(clock: FakeClock) -> None:
    agent = FakeAgent(clock, in_turn([Ending(stdout=b"state none\n\n")]))
    assert wait(GuestAgent(agent, clock), clock, 1800) == JobLook(JobState.NONE)


def test_a_job_that_vanished_without_a_result_was_cut_off(clock: FakeClock) -> None:
    agent = FakeAgent(clock, in_turn([RUNNING, CUT_OFF]))
    assert wait(GuestAgent(agent, clock), clock, 1800) == JobLook(JobState.CUT_OFF)


def test_an_agent_that_is_silent_in_between_is_asked_again(clock: FakeClock) -> None:
    def program(_call: Call) -> Ending:
        if len(agent.calls) == 2:
            agent.silent = True
            clock.after(100, lambda: setattr(agent, "silent", False))
        return ended(0) if len(agent.calls) > 2 else RUNNING

    agent = FakeAgent(clock, program)
    assert wait(GuestAgent(agent, clock), clock, 1800).exit_code == 0


def test_an_agent_that_restarts_in_the_middle_of_a_look_is_asked_again(clock: FakeClock) -> None:
    def program(_call: Call) -> Ending:
        if len(agent.calls) == 1:
            clock.after(0.5, agent.restart)
            return Ending(after=1)
        return ended(0)

    agent = FakeAgent(clock, program)
    assert wait(GuestAgent(agent, clock), clock, 1800).exit_code == 0
    assert len(agent.calls) == 2


@pytest.mark.parametrize("trouble", [Ending(2), Ending(None, signal=15)])
def test_a_look_that_fails_while_the_guest_is_busy_is_taken_again(clock: FakeClock, trouble: Ending) -> None:
    agent = FakeAgent(clock, in_turn([trouble, trouble, ended(0)]))
    assert wait(GuestAgent(agent, clock), clock, 1800).exit_code == 0


def test_a_look_that_is_killed_or_hangs_is_taken_again(clock: FakeClock) -> None:
    hanging_and_its_end = (NEVER, Ending())
    agent = FakeAgent(clock, in_turn([Ending(None, signal=15), *hanging_and_its_end, ended(0)]))
    assert wait(GuestAgent(agent, clock), clock, 1800).exit_code == 0


def test_at_the_deadline_a_job_that_runs_is_handed_back_as_it_is(clock: FakeClock) -> None:
    agent = FakeAgent(clock, lambda _call: Ending(stdout=b"state running\nprogress bash:43.0:Unpacking bash\n\n"))
    found = wait(GuestAgent(agent, clock), clock, 60)
    assert found == JobLook(JobState.RUNNING, progress=("bash:43.0:Unpacking bash",))
    assert clock.monotonic() == 1060


def test_at_the_deadline_the_last_look_that_succeeded_counts(clock: FakeClock) -> None:
    agent = FakeAgent(clock, lambda _call: RUNNING)
    clock.after(30, lambda: setattr(agent, "silent", True))
    assert wait(GuestAgent(agent, clock), clock, 60) == JobLook(JobState.RUNNING)


def test_where_no_look_succeeds_the_last_error_is_told(clock: FakeClock) -> None:
    agent = FakeAgent(clock)
    agent.silent = True
    with pytest.raises(AgentSilent):
        wait(GuestAgent(agent, clock), clock, 60)


# --- reading -------------------------------------------------------------------------------------


def test_files_that_came_in_one_output_are_told_apart() -> None:
    output = "before\ta\tb\nafter\tx\nbefore\t\nlog\tnot asked for\nno tab\nbefore\tafter\ty\n"
    assert split_files(output, ["before", "after", "missing"]) == {
        "before": ["a\tb", "", "after\ty"],
        "after": ["x"],
        "missing": [],
    }


@given(st.text(), st.lists(st.sampled_from(["before", "log", "a b"])))
def test_whatever_the_guest_prints_there_are_lines_for_just_the_files_asked_for(output: str, names: list[str]) -> None:
    files = split_files(output, names)
    assert set(files) == set(names)
    assert sum(map(len, files.values())) <= output.count("\n") + 1


# --- for real, under the real shell --------------------------------------------------------------

SYSTEMCTL = """\
[ "$1" = reset-failed ] && exit 0
[ "$1" = is-active ] || exit 9
[ -e "{units}/$2" ] || {{ echo inactive; exit 3; }}
echo active
"""
# Runs the unit in the background, as systemd does, and forgets it when it has ended.
SYSTEMD_RUN = """\
for word; do case $word in --unit=*) unit={units}/${{word#--unit=}};; esac; done
[ -e "$unit" ] && {{ echo "Unit exists" >&2; exit 1; }}
while [ "${{1#--}}" != "$1" ]; do shift; done
touch "$unit"
setsid -f /bin/sh -c '"$@"; rm "$0"' "$unit" "$@" >/dev/null 2>&1 </dev/null
"""


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "var/lib/kvm fleet/upgrade"
    monkeypatch.setattr(_job, "JOURNAL", str(path))
    return path


class HastyClock(SystemClock):
    """Asks more often, since nothing here takes long."""

    def wait(self, seconds: float) -> None:
        super().wait(seconds / 20)


@pytest.fixture
def with_systemd(host: HostAgent, tmp_path: Path, journal: Path, monkeypatch: pytest.MonkeyPatch) -> GuestAgent:
    """A guest with as much of systemd as a job needs."""
    assert not journal.exists()
    units = tmp_path / "units"
    units.mkdir()
    host.install("systemctl", SYSTEMCTL.format(units=units))
    host.install("systemd-run", SYSTEMD_RUN.format(units=units))
    host.install("sleep", "exec /usr/bin/sleep 0.01\n")
    monkeypatch.setattr(_job, "_SYSTEMD", str(units))
    return GuestAgent(host, HastyClock())


@pytest.fixture
def without_systemd(host: HostAgent, journal: Path, monkeypatch: pytest.MonkeyPatch) -> GuestAgent:
    assert not journal.exists()
    host.install("systemctl", "exit 127\n")
    host.install("systemd-run", "exit 127\n")
    host.install("sleep", "exec /usr/bin/sleep 0.01\n")
    monkeypatch.setattr(_job, "_SYSTEMD", "/nonexistent")
    return GuestAgent(host, HastyClock())


@pytest.fixture(params=["with_systemd", "without_systemd"])
def guest(request: pytest.FixtureRequest) -> GuestAgent:
    agent: GuestAgent = request.getfixturevalue(request.param)
    return agent


def until(go: Path) -> str:
    """Shell that waits for a file, though not for ever: a test that fails never makes it."""
    return f"for i in $(seq 1000); do [ -e '{go}' ] && break; sleep 0.01; done"


def wait_for(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


def to_its_end(agent: GuestAgent) -> JobLook:
    """The whole of what there is to see once the job no longer runs."""
    wait_for(lambda: look(agent).state is not JobState.RUNNING)
    return look(agent)


def wrapper_of(journal: Path) -> int:
    """The pid of the shell that runs a job."""
    script = str(journal / "job").encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if words[0] == b"/bin/sh" and words[1:2] == [script]:
                return int(path.parent.name)
    raise AssertionError("no job runs")


def test_a_job_runs_its_parts_in_order_and_its_files_are_read_back(guest: GuestAgent, journal: Path) -> None:
    assert look(guest) == JobLook(JobState.NONE)
    command = ("/bin/sh", "-c", 'printf "<%s>" "$@"; pwd; umask; echo "$A"; echo 50% >&3; exit 7', "sh", "x y", "-n $A")
    prepare = 'printf "a\\tb\\n\\nc" >before; echo "prepare $A"'
    finish = 'echo "finish $code $stopped $A"; code=$((code + 1))'
    start(guest, Job("run-1", prepare, command, finish, {"A": "it's"}))
    found = to_its_end(guest)
    log = ("prepare it's", "<x y><-n $A>/", "0022", "it's", "finish 7 no it's")
    assert found == JobLook(JobState.ENDED, 8, "run-1", offset=found.offset, log=log, progress=("50%",))
    assert found.offset == (journal / "log").stat().st_size
    assert read(guest, "before", "run", "after") == {"before": ["a\tb", "", "c"], "run": ["run-1"], "after": []}
    assert tail(guest, 2) == ["it's", "finish 7 no it's"]
    assert journal.stat().st_mode & 0o077 == 0


def test_a_prepare_that_fails_ends_the_job_before_its_command(guest: GuestAgent) -> None:
    start(guest, a_job("echo", "command", prepare="echo prepare; exit 5", finish="echo finish"))
    found = to_its_end(guest)
    assert (found.exit_code, found.log) == (5, ("prepare",))


def test_a_command_that_is_not_there_ends_the_job(guest: GuestAgent) -> None:
    start(guest, a_job("/nonexistent/command", finish="echo finish $code"))
    found = to_its_end(guest)
    assert (found.exit_code, found.log[-1]) == (127, "finish 127")


def test_a_running_job_tells_whose_it_is_and_how_far_it_has_come(guest: GuestAgent, tmp_path: Path) -> None:
    go = tmp_path / "go"
    start(guest, a_job("/bin/sh", "-c", f"echo first; echo 1% >&3; echo 2% >&3; {until(go)}; echo last"))
    wait_for(lambda: look(guest).progress == ("1%", "2%"))
    found = look(guest)
    assert (found.state, found.run, found.stopping, found.log) == (JobState.RUNNING, "run-1", False, ("first",))
    assert found.elapsed is not None
    assert 0 <= found.elapsed < 60
    go.touch()
    assert wait(guest, HastyClock(), 30).exit_code == 0
    assert look(guest, found.offset).log == ("last",)
    assert look(guest, 10_000).log == ("first", "last")


def test_a_status_that_is_still_being_written_is_left_out(guest: GuestAgent) -> None:
    start(guest, a_job("/bin/sh", "-c", r"printf '1%%\n\n-n \\n 2%%\n3' >&3; echo log"))
    found = to_its_end(guest)
    assert (found.progress, found.log) == (("1%", "", r"-n \n 2%"), ("log",))


def test_a_log_that_is_longer_than_a_look_is_shown_by_its_end(guest: GuestAgent) -> None:
    start(guest, a_job("seq", "100000"))
    found = to_its_end(guest)
    assert len("\n".join(found.log)) <= LOG_CHUNK
    assert (found.log[-1], found.log) == ("100000", tuple(str(100001 - n) for n in range(len(found.log), 0, -1)))


def test_a_new_job_keeps_the_baseline_of_one_that_was_not_finished_with(guest: GuestAgent, journal: Path) -> None:
    start(guest, a_job("/bin/sh", "-c", "echo 1% >&3; exit 100", prepare="echo one >before"))
    assert to_its_end(guest).exit_code == 100
    start(guest, a_job(run="run-2", prepare="[ -e before ] || echo two >before"))
    found = to_its_end(guest)
    assert (found.exit_code, found.run, found.progress, found.log) == (0, "run-2", (), ())
    assert (journal / "before").read_text(encoding="utf-8") == "one\n"


def test_a_second_job_is_refused_while_one_runs(guest: GuestAgent, journal: Path, tmp_path: Path) -> None:
    go = tmp_path / "go"
    start(guest, a_job("/bin/sh", "-c", until(go)))
    first = (journal / "job").read_text(encoding="utf-8")
    with pytest.raises(UpgradeRunning, match="started by the run run-1"):
        start(guest, a_job(run="run-2"))
    with pytest.raises(UpgradeRunning, match="started by the run run-1"):
        remove(guest)
    assert (journal / "job").read_text(encoding="utf-8") == first
    go.touch()
    assert to_its_end(guest).run == "run-1"


def test_of_jobs_that_start_at_once_just_one_runs(guest: GuestAgent, tmp_path: Path) -> None:
    go, at_once = tmp_path / "go", threading.Barrier(4)
    outcomes: dict[str, str] = {}

    def race(run: str) -> None:
        at_once.wait()
        try:
            start(guest, a_job("/bin/sh", "-c", f"echo >>{tmp_path}/begun; {until(go)}", run=run))
            outcomes[run] = "started"
        except UpgradeRunning as error:
            outcomes[run] = str(error.evidence["run"])

    threads = [threading.Thread(target=race, args=(f"run-{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [winner] = [run for run, outcome in outcomes.items() if outcome == "started"]
    assert sorted(outcomes.values()) == [winner] * 3 + ["started"]
    wait_for((tmp_path / "begun").exists)
    go.touch()
    assert to_its_end(guest).run == winner
    assert (tmp_path / "begun").read_text(encoding="utf-8") == "\n"


def test_a_start_that_is_asked_for_again_by_the_same_run_is_one_start(guest: GuestAgent, tmp_path: Path) -> None:
    go = tmp_path / "go"
    job = a_job("/bin/sh", "-c", f"echo >>{tmp_path}/begun; {until(go)}")
    start(guest, job)
    wait_for((tmp_path / "begun").exists)
    start(guest, job)
    go.touch()
    assert to_its_end(guest).exit_code == 0
    assert (tmp_path / "begun").read_text(encoding="utf-8") == "\n"


def test_a_job_that_is_killed_was_cut_off(guest: GuestAgent, journal: Path, tmp_path: Path) -> None:
    go = tmp_path / "go"
    start(guest, a_job("/bin/sh", "-c", f"echo begun; {until(go)}", prepare="echo one >before"))
    wait_for(lambda: look(guest).log == ("begun",))
    os.kill(wrapper_of(journal), signal.SIGKILL)
    assert look(guest).state is JobState.RUNNING, "its command is still there"
    with pytest.raises(UpgradeRunning):
        start(guest, a_job(run="run-2"))
    go.touch()
    assert to_its_end(guest).state is JobState.CUT_OFF
    start(guest, a_job())
    assert to_its_end(guest).exit_code == 0
    assert (journal / "before").read_text(encoding="utf-8") == "one\n"


def test_a_daemon_that_the_job_leaves_behind_does_not_keep_it_running(guest: GuestAgent, tmp_path: Path) -> None:
    go = tmp_path / "go"
    daemon = f"setsid -f /bin/sh -c '{until(go)}' >/dev/null 2>&1 </dev/null"
    start(guest, a_job("/bin/sh", "-c", daemon.replace("'", '"'), prepare=daemon, finish=daemon))
    assert to_its_end(guest).state is JobState.ENDED
    go.touch()


def test_a_journal_of_another_boot_was_cut_off(guest: GuestAgent, journal: Path, tmp_path: Path) -> None:
    """Even if its pid is somebody's again."""
    go = tmp_path / "go"
    start(guest, a_job("/bin/sh", "-c", f"echo begun; {until(go)}"))
    wait_for(lambda: look(guest).log == ("begun",))
    os.kill(wrapper_of(journal), signal.SIGKILL)
    (journal / "boot").write_text("00000000-0000-0000-0000-000000000000\n", encoding="ascii")
    wait_for(lambda: not list(tmp_path.glob("units/*")))
    assert look(guest).state is JobState.CUT_OFF
    go.touch()


def test_a_journal_that_was_removed_is_gone_and_a_new_one_can_be_begun(guest: GuestAgent, journal: Path) -> None:
    remove(guest)
    start(guest, a_job(prepare="echo one >before"))
    to_its_end(guest)
    remove(guest)
    assert list(journal.parent.iterdir()) == []
    assert look(guest) == JobLook(JobState.NONE)
    start(guest, a_job())
    assert to_its_end(guest).exit_code == 0
    assert read(guest, "before") == {"before": []}


# --- stopping ------------------------------------------------------------------------------------

# Ends gently when it is interrupted, and tells whether its child was as well.
PACKAGE_MANAGER = """\
import signal, subprocess, sys
child = subprocess.Popen(["/bin/sh", "-c", "trap 'echo interrupted' INT; " + sys.argv[1]])
signal.signal(signal.SIGINT, lambda *_: print("stopping", flush=True))
print("begun", flush=True)
sys.exit(100 + child.wait())
"""


def test_a_stop_interrupts_the_command_alone(guest: GuestAgent, tmp_path: Path) -> None:
    go = tmp_path / "go"
    finish = 'echo "finish $code $stopped"; code=3'
    start(guest, a_job("/usr/bin/python3", "-c", PACKAGE_MANAGER, until(go), finish=finish))
    wait_for(lambda: look(guest).log == ("begun",))
    stop(guest)
    wait_for(lambda: look(guest).log == ("begun", "stopping"))
    assert look(guest).stopping
    go.touch()
    found = to_its_end(guest)
    assert (found.exit_code, found.stopping) == (3, True)
    assert found.log == ("begun", "stopping", "finish 100 yes")


def test_a_job_that_is_stopped_before_its_command_does_not_begin_it(guest: GuestAgent, tmp_path: Path) -> None:
    go = tmp_path / "go"
    start(guest, a_job("echo", "begun", prepare=until(go), finish='echo "finish $code $stopped"'))
    stop(guest)
    go.touch()
    found = to_its_end(guest)
    assert (found.exit_code, found.log) == (130, ("finish 130 yes",))


def test_where_no_job_runs_a_stop_does_nothing(guest: GuestAgent, journal: Path) -> None:
    stop(guest)
    assert not journal.exists()
    start(guest, a_job())
    assert to_its_end(guest).stopping is False
    stop(guest)
    assert look(guest).stopping is False


def test_a_new_job_does_not_inherit_a_stop(guest: GuestAgent, tmp_path: Path) -> None:
    start(guest, a_job("/bin/sh", "-c", until(tmp_path / "go")))
    stop(guest)
    assert to_its_end(guest).exit_code == 130
    start(guest, a_job())
    found = to_its_end(guest)
    assert (found.exit_code, found.stopping) == (0, False)


# --- guests that lack something ------------------------------------------------------------------


def test_an_old_systemd_is_asked_for_no_more_than_it_knows(with_systemd: GuestAgent, host: HostAgent) -> None:
    run = (host.path / "systemd-run").read_text(encoding="utf-8").partition("\n")[2]
    host.install("systemd-run", f"case $* in *--collect* | *--property=*) exit 1 ;; esac\n{run}")
    start(with_systemd, a_job())
    assert to_its_end(with_systemd).exit_code == 0


def test_a_systemd_that_starts_nothing_says_why(with_systemd: GuestAgent, host: HostAgent, journal: Path) -> None:
    host.install("systemd-run", 'echo "Failed to start: no" >&2; exit 1\n')
    with pytest.raises(GuestUnsupported, match="could not be started in the guest: Failed to start: no"):
        start(with_systemd, a_job())
    assert look(with_systemd).state is JobState.CUT_OFF
    assert journal.exists()


def test_a_systemd_that_does_not_answer_does_not_make_a_job_cut_off(
    with_systemd: GuestAgent, host: HostAgent, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    start(with_systemd, a_job("/bin/sh", "-c", until(go)))
    host.install("systemctl", 'echo "Failed to connect to bus" >&2; exit 1\n')
    assert look(with_systemd).state is JobState.RUNNING
    go.touch()
    assert to_its_end(with_systemd).exit_code == 0


def test_a_unit_whose_wrapper_has_not_begun_runs(with_systemd: GuestAgent, journal: Path, tmp_path: Path) -> None:
    journal.mkdir(parents=True)
    (journal / "job").touch()
    (tmp_path / "units" / _job.UNIT).touch()
    assert look(with_systemd).state is JobState.RUNNING
    with pytest.raises(UpgradeRunning, match="started by the run unknown"):
        start(with_systemd, a_job())


def test_a_job_starts_where_setsid_cannot_fork(without_systemd: GuestAgent, host: HostAgent) -> None:
    host.install("setsid", '[ "$1" = -f ] && exit 1\nexec /usr/bin/setsid "$@"\n')
    start(without_systemd, a_job("echo", "done"))
    assert to_its_end(without_systemd).log == ("done",)


def test_a_guest_without_flock_is_unsupported(guest: GuestAgent, host: HostAgent, journal: Path) -> None:
    """What an earlier version has left there can still be looked at."""
    for directory in ("/usr/bin", "/bin", "/usr/sbin"):
        for program in Path(directory).iterdir():
            if program.name != "flock" and not (host.path / program.name).exists():
                with suppress(FileExistsError):
                    (host.path / program.name).symlink_to(program)
    host.environment["PATH"] = str(host.path)
    with pytest.raises(GuestUnsupported, match="has no flock"):
        start(guest, a_job())
    assert not journal.exists()
    journal.mkdir(parents=True)
    (journal / "job").touch()
    assert look(guest).state is JobState.CUT_OFF
    (journal / "exit").write_text("0\n", encoding="ascii")
    assert look(guest) == JobLook(JobState.ENDED, 0)
    stop(guest)
    remove(guest)
    assert not journal.exists()


def test_a_flock_that_fails_is_no_answer(guest: GuestAgent, host: HostAgent) -> None:
    start(guest, a_job())
    to_its_end(guest)
    host.install("flock", "exit 71\n")
    with pytest.raises(CommandFailed):
        look(guest)


def test_a_start_whose_answer_got_lost_starts_nothing_twice(
    host: HostAgent, with_systemd: GuestAgent, tmp_path: Path
) -> None:
    """The job may have ended by the time that it is asked for again, and failed at that."""
    begun = tmp_path / "begun"
    host.on_end = lambda: wait_for(lambda: begun.exists() and look(with_systemd).state is JobState.ENDED)
    start(GuestAgent(host, HastyClock(), patience=60), a_job("/bin/sh", "-c", f"echo begun >>'{begun}'; exit 100"))
    found = look(with_systemd)
    assert (found.state, found.exit_code) == (JobState.ENDED, 100)
    assert begun.read_text(encoding="ascii") == "begun\n"


def test_a_journal_that_cannot_be_written_says_so(guest: GuestAgent, journal: Path) -> None:
    journal.parent.parent.mkdir(parents=True)
    journal.parent.touch()
    with pytest.raises(GuestUnsupported, match="could not be started in the guest: mkdir:"):
        start(guest, a_job())


# --- crashes, at whatever point ------------------------------------------------------------------

# bash calls this before each command of a script, at any depth; the commands of subshells are not counted.
KILL_AT = """\
set -T
left={point}
trap '[ "$BASH_SUBSHELL" -gt 0 ] || [ $((left -= 1)) -gt 0 ] || kill -KILL $$' DEBUG
"""
FAR = 10_000


def start_that_is_killed(host: HostAgent, job: Job, point: int) -> int:
    """Run what starts a job up to some command of it; tells how it ended."""
    script = KILL_AT.format(point=point) + _job._START
    arguments = [_job.JOURNAL, _job.UNIT, job.run, _job._SYSTEMD, job.run]
    return subprocess.run(
        ["/bin/bash", "--posix", "-c", script, "sh", *arguments],
        input=job_script(job).encode(),
        env=host.environment,
        check=False,
        capture_output=True,
    ).returncode


@pytest.fixture
def hasty(host: HostAgent) -> HostAgent:
    """A guest whose disk is never waited for: what is killed here is a shell, not the guest."""
    host.install("sync", "exit 0\n")
    return host


def upgrading(database: Path, run: str) -> Job:
    prepare = "[ -e before ] || { cp $DATABASE before.new && mv before.new before; }"
    command = ("/bin/sh", "-c", "echo 2 >$DATABASE; echo upgraded")
    return Job(run, prepare, command, "echo finished", {"DATABASE": str(database)})


def test_a_start_that_is_killed_at_any_point_can_be_made_up_for(
    with_systemd: GuestAgent, hasty: HostAgent, journal: Path, tmp_path: Path
) -> None:
    database = tmp_path / "database"
    database.write_text("1\n", encoding="ascii")
    start(with_systemd, upgrading(database, "run-0"))
    assert to_its_end(with_systemd).state is JobState.ENDED
    states = set()
    for point in range(1, FAR):
        if start_that_is_killed(hasty, upgrading(database, f"killed-{point}"), point) != -signal.SIGKILL:
            break
        states.add(to_its_end(with_systemd).state)
        assert (journal / "before").read_text(encoding="ascii") == "1\n"
        start(with_systemd, upgrading(database, f"run-{point}"))
        found = to_its_end(with_systemd)
        assert (found.state, found.run, found.exit_code) == (JobState.ENDED, f"run-{point}", 0)
        assert found.log == ("upgraded", "finished")
    assert 30 < point < FAR
    assert states == {JobState.ENDED, JobState.CUT_OFF}
    assert (journal / "before").read_text(encoding="ascii") == "1\n"


def test_a_first_start_that_is_killed_at_any_point_leaves_no_half_of_a_job(
    without_systemd: GuestAgent, hasty: HostAgent, journal: Path, tmp_path: Path
) -> None:
    database = tmp_path / "database"
    states = set()
    for point in range(1, FAR):
        database.write_text("1\n", encoding="ascii")
        if start_that_is_killed(hasty, upgrading(database, f"killed-{point}"), point) != -signal.SIGKILL:
            break
        states.add(to_its_end(without_systemd).state)
        remove(without_systemd)
        assert not journal.exists()
    assert 30 < point < FAR
    assert states == {JobState.NONE, JobState.ENDED, JobState.CUT_OFF}


def test_a_job_that_is_killed_at_any_point_has_its_baseline_once_anything_changed(
    with_systemd: GuestAgent, hasty: HostAgent, tmp_path: Path
) -> None:
    database = tmp_path / "database"
    states = set()
    run = (hasty.path / "systemd-run").read_text(encoding="utf-8").partition("\n")[2]
    for point in range(1, FAR):
        database.write_text("1\n", encoding="ascii")
        prefix = tmp_path / "prefix"
        prefix.write_text(KILL_AT.format(point=point), encoding="ascii")
        killed = f'shell="$(cat {prefix}; cat "$2")"; shift 2; set -- /bin/bash --posix -c "$shell" sh "$@"\n'
        hasty.install("systemd-run", run.replace("touch", f"{killed}touch"))
        start(with_systemd, upgrading(database, f"killed-{point}"))
        found = to_its_end(with_systemd)
        states.add(found.state)
        changed = database.read_text(encoding="ascii") == "2\n"
        assert not changed or read(with_systemd, "before") == {"before": ["1"]}
        assert (found.state is JobState.ENDED) == (found.exit_code == 0)
        assert changed or found.state is JobState.CUT_OFF
        hasty.install("systemd-run", run)
        start(with_systemd, upgrading(database, f"run-{point}"))
        again = to_its_end(with_systemd)
        assert (again.exit_code, again.log) == (0, ("upgraded", "finished"))
        assert read(with_systemd, "before") == {"before": ["1"]}
        remove(with_systemd)
        if found.state is JobState.ENDED:
            break
    assert 15 < point < FAR
    assert states == {JobState.ENDED, JobState.CUT_OFF}


def test_a_removal_that_is_killed_at_any_point_leaves_all_or_nothing(
    with_systemd: GuestAgent, hasty: HostAgent, journal: Path, tmp_path: Path
) -> None:
    database = tmp_path / "database"
    states = set()
    for point in range(1, FAR):
        database.write_text("1\n", encoding="ascii")
        start(with_systemd, upgrading(database, "run-1"))
        to_its_end(with_systemd)
        script = KILL_AT.format(point=point) + _job._REMOVE
        words = ["/bin/bash", "--posix", "-c", script, "sh", _job.JOURNAL, _job.UNIT]
        if subprocess.run(words, env=hasty.environment, check=False).returncode != -signal.SIGKILL:
            break
        found = look(with_systemd)
        states.add(found.state)
        assert (found.state, read(with_systemd, "before")["before"]) in ((JobState.ENDED, ["1"]), (JobState.NONE, []))
        remove(with_systemd)
    assert 10 < point < FAR
    assert states == {JobState.NONE, JobState.ENDED}
    assert list(journal.parent.iterdir()) == []
