# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Long work in a guest: started once, followed across an agent that comes and goes, read from its own records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvm.fleet.plugins.module_utils import _job
from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._clock import SystemClock
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    AgentProtocolError,
    FleetError,
    GuestUnsupported,
    UpgradeRunning,
    UpgradeTimeout,
)
from ansible_collections.kvm.fleet.plugins.module_utils._job import (
    JobLook,
    JobState,
    look,
    parse_look,
    read,
    split_files,
    start,
    wait,
)
from tests.unit.fake_agent import NEVER, Call, Ending, FakeAgent, in_turn
from tests.unit.fake_clock import FakeClock
from tests.unit.host_agent import HostAgent

# --- starting ------------------------------------------------------------------------------------


def test_the_script_goes_in_by_standard_input_and_the_rest_as_arguments(clock: FakeClock) -> None:
    agent = FakeAgent(clock)
    start(GuestAgent(agent, clock), "script $1", ["no", "apt-get", "-o", "a b"])
    [call] = agent.calls
    assert call.stdin == b"script $1"
    assert call.command[3:] == ["sh", _job.JOURNAL, "kvm-fleet-upgrade.service", "no", "apt-get", "-o", "a b"]


@pytest.mark.parametrize(
    ("ending", "kind", "message"),
    [
        (
            Ending(96),
            UpgradeRunning,
            "another run has just started an upgrade in the guest as kvm-fleet-upgrade.service",
        ),
        (
            Ending(95),
            GuestUnsupported,
            "the guest does not run systemd, so the upgrade cannot outlive a restart of the guest agent",
        ),
        (
            Ending(1, stderr=b"Failed to start transient service unit\n"),
            GuestUnsupported,
            "systemd in the guest did not start the upgrade: Failed to start transient service unit",
        ),
        (Ending(1), GuestUnsupported, "systemd in the guest did not start the upgrade: it gave no reason"),
        (
            Ending(None, signal=9),
            GuestUnsupported,
            "systemd in the guest did not start the upgrade: it gave no reason",
        ),
    ],
)
def test_a_job_that_did_not_start_says_why(
    clock: FakeClock, ending: Ending, kind: type[FleetError], message: str
) -> None:
    with pytest.raises(kind) as raised:
        start(GuestAgent(FakeAgent(clock, in_turn([ending])), clock), "", [])
    assert raised.value.message == message


# --- looking -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("none\n", JobLook(JobState.NONE)),
        ("running\n", JobLook(JobState.RUNNING)),
        ("running\npmstatus:a:1.0:Unpacking a\n", JobLook(JobState.RUNNING, None, "pmstatus:a:1.0:Unpacking a")),
        ("ended 0\n", JobLook(JobState.ENDED, 0)),
        ("ended 100\npmstatus:a:1.0:x\n", JobLook(JobState.ENDED, 100, "pmstatus:a:1.0:x")),
        ("cut_off\n", JobLook(JobState.CUT_OFF)),
    ],
)
def test_an_answer_tells_how_the_job_is(answer: str, found: JobLook) -> None:
    assert parse_look(answer) == found


@pytest.mark.parametrize(
    "answer", ["ended \n", "ended x\n", "ended -1\n", "Ended 0\n", "", "ended 0 0\n", "ended 1234"]
)
def test_an_answer_that_is_none_is_not_taken_for_success(clock: FakeClock, answer: str) -> None:
    agent = FakeAgent(clock, lambda _call: Ending(stdout=answer.encode()))
    with pytest.raises(AgentProtocolError):
        wait(GuestAgent(agent, clock), clock, 10)


@given(st.text())
def test_whatever_a_guest_answers_is_understood_or_refused(answer: str) -> None:
    try:
        found = parse_look(answer)
    except AgentProtocolError:
        return
    assert (found.exit_code is not None) == (found.state is JobState.ENDED)


# --- following -----------------------------------------------------------------------------------

RUNNING, CUT_OFF = Ending(stdout=b"running\n"), Ending(stdout=b"cut_off\n")


def ended(code: int) -> Ending:
    return Ending(stdout=f"ended {code}\n".encode())


@pytest.mark.parametrize("code", [0, 100])
def test_a_running_job_is_followed_to_its_exit_code(clock: FakeClock, code: int) -> None:
    agent = FakeAgent(clock, in_turn([RUNNING, RUNNING, RUNNING, ended(code)]))
    assert wait(GuestAgent(agent, clock), clock, 1800) == JobLook(JobState.ENDED, code)
    assert {tuple(call.command[3:]) for call in agent.calls} == {("sh", _job.JOURNAL, "kvm-fleet-upgrade.service")}


def test_where_no_job_runs_nothing_is_waited_for(clock: FakeClock) -> None:
    agent = FakeAgent(clock, in_turn([Ending(stdout=b"none\n")]))
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


@pytest.mark.parametrize("trouble", [Ending(2), Ending(None, signal=15), Ending(stdout=b"unclear\n")])
def test_a_look_that_fails_while_the_guest_is_busy_is_taken_again(clock: FakeClock, trouble: Ending) -> None:
    agent = FakeAgent(clock, in_turn([trouble, trouble, ended(0)]))
    assert wait(GuestAgent(agent, clock), clock, 1800).exit_code == 0


def test_a_look_that_is_killed_or_hangs_is_taken_again(clock: FakeClock) -> None:
    hanging_and_its_end = (NEVER, Ending())
    agent = FakeAgent(clock, in_turn([Ending(None, signal=15), *hanging_and_its_end, ended(0)]))
    assert wait(GuestAgent(agent, clock), clock, 1800).exit_code == 0


def test_a_job_that_does_not_end_is_left_running_and_said_how_far_it_came(clock: FakeClock) -> None:
    agent = FakeAgent(clock, lambda _call: Ending(stdout=b"running\npmstatus:bash:43.0:Unpacking bash\n"))
    with pytest.raises(UpgradeTimeout) as raised:
        wait(GuestAgent(agent, clock), clock, 60)
    assert raised.value.message == (
        "the upgrade has not ended within 60 s (it was last at: pmstatus:bash:43.0:Unpacking bash); it was not touched "
        "and goes on in the guest as kvm-fleet-upgrade.service"
    )
    assert raised.value.evidence == {
        "journal": _job.JOURNAL,
        "last_answer": "pmstatus:bash:43.0:Unpacking bash",
    }


def test_a_timeout_tells_that_the_agent_was_silent(clock: FakeClock) -> None:
    agent = FakeAgent(clock)
    agent.silent = True
    with pytest.raises(UpgradeTimeout) as raised:
        wait(GuestAgent(agent, clock), clock, 60)
    assert raised.value.evidence["last_answer"] == "Guest agent is not responding"


# --- reading -------------------------------------------------------------------------------------


def test_files_that_came_in_one_output_are_told_apart() -> None:
    output = "before\ta\tb\nafter\tx\nbefore\t\nlog\tnot asked for\nno tab\nbefore\tafter\ty\n"
    assert split_files(output, ["before", "after", "missing"]) == {
        "before": ["a\tb", "", "after\ty"],
        "after": ["x"],
        "missing": [],
    }


# --- for real, under the real shell --------------------------------------------------------------

SYSTEMCTL = """\
[ "$1" = is-active ] || exit 9
[ "$2" = --quiet ] && {{ exec >/dev/null; shift; }}
[ -e "{units}/$2" ] || {{ echo inactive; exit 3; }}
echo active
"""
# Runs the unit in the background, as systemd does, and forgets it when it has ended.
SYSTEMD_RUN = """\
for word; do case $word in --unit=*) unit={units}/${{word#--unit=}};; esac; done
[ -e "$unit" ] && exit 1
while [ "${{1#--}}" != "$1" ]; do shift; done
touch "$unit"
(setsid "$@"; rm "$unit") >/dev/null 2>&1 </dev/null &
"""


@pytest.fixture
def systemd(host: HostAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostAgent]:
    """A guest with as much of systemd as a job needs."""
    units = tmp_path / "units"
    units.mkdir()
    host.install("systemctl", SYSTEMCTL.format(units=units))
    host.install("systemd-run", SYSTEMD_RUN.format(units=units))
    monkeypatch.setattr(_job, "_START", _job._START.replace("/run/systemd/system", str(units)))
    yield host
    for program in ("systemctl", "systemd-run"):
        (host.path / program).unlink()


def until(go: Path) -> str:
    """Shell that waits for a file, though not for ever: a test that fails never makes it."""
    return f"for i in $(seq 1000); do [ -e {go} ] && break; sleep 0.01; done"


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "var/lib/kvm fleet/upgrade"
    monkeypatch.setattr(_job, "JOURNAL", str(path))
    return path


def test_a_job_runs_as_a_unit_and_its_files_are_read_back(systemd: HostAgent, journal: Path) -> None:
    agent = GuestAgent(systemd, SystemClock())
    script = 'cd "$1"; printf "%s\\n" "$2" "$3" >log; printf "a\\tb\\n\\nc" >before; echo 7 >exit\n'
    assert look(agent) == JobLook(JobState.NONE)
    start(agent, script, ["x y", "-n $HOME"])
    assert wait(agent, SystemClock(), 30) == JobLook(JobState.ENDED, 7)
    assert read(agent, "log", "before", "after") == {
        "log": ["x y", "-n $HOME"],
        "before": ["a\tb", "", "c"],
        "after": [],
    }
    assert journal.stat().st_mode & 0o077 == 0


def test_the_last_progress_is_part_of_a_look(systemd: HostAgent, journal: Path, tmp_path: Path) -> None:
    agent = GuestAgent(systemd, SystemClock())
    go = tmp_path / "go"
    progress = 'printf "first\\nlast\\n" >"$1/progress"; touch "$1/told"'
    start(agent, f'{progress}; {until(go)}; echo 0 >"$1/exit"\n', [])
    while not (journal / "told").exists():
        SystemClock().wait(0.01)
    assert look(agent) == JobLook(JobState.RUNNING, None, "last")
    go.touch()
    assert wait(agent, SystemClock(), 30) == JobLook(JobState.ENDED, 0, "last")


def test_a_new_job_keeps_the_baseline_of_one_that_was_not_finished_with(systemd: HostAgent, journal: Path) -> None:
    agent = GuestAgent(systemd, SystemClock())
    start(agent, 'echo one >"$1/before"; echo 1% >"$1/progress"; echo 100 >"$1/exit"\n', [])
    assert wait(agent, SystemClock(), 30).exit_code == 100
    start(agent, 'echo 0 >"$1/exit"\n', [])
    assert wait(agent, SystemClock(), 30) == JobLook(JobState.ENDED, 0)
    assert (journal / "before").read_text(encoding="utf-8") == "one\n"


def test_a_second_job_is_refused_while_one_runs(systemd: HostAgent, journal: Path, tmp_path: Path) -> None:
    agent = GuestAgent(systemd, SystemClock())
    go = tmp_path / "go"
    start(agent, f'{until(go)}; echo 0 >"$1/exit"\n', [])
    first = (journal / "job").read_text(encoding="utf-8")
    with pytest.raises(UpgradeRunning):
        start(agent, "exit 0\n", [])
    assert (journal / "job").read_text(encoding="utf-8") == first
    go.touch()
    assert wait(agent, SystemClock(), 30).exit_code == 0


def test_two_jobs_that_start_at_once_do_not_both_run(systemd: HostAgent, journal: Path, tmp_path: Path) -> None:
    """systemd refuses the second unit after the look that found none."""
    unit = tmp_path / "units" / _job.UNIT
    systemd.install("systemd-run", f"touch {unit}; exit 1\n")
    with pytest.raises(UpgradeRunning):
        start(GuestAgent(systemd, SystemClock()), "exit 0\n", [])
    assert journal.exists()


def test_a_job_that_dies_without_a_result_was_cut_off(systemd: HostAgent, journal: Path) -> None:
    agent = GuestAgent(systemd, SystemClock())
    start(agent, 'echo "Unpacking" >"$1/log"\n', [])
    assert wait(agent, SystemClock(), 30).state is JobState.CUT_OFF
    assert (journal / "log").read_text(encoding="utf-8") == "Unpacking\n"


def test_a_systemd_that_does_not_answer_does_not_make_a_job_cut_off(systemd: HostAgent, journal: Path) -> None:
    journal.mkdir(parents=True)
    (journal / "job").touch()
    systemd.install("systemctl", 'echo "Failed to connect to bus" >&2; exit 1\n')
    assert look(GuestAgent(systemd, SystemClock())) == JobLook(JobState.UNCLEAR)


def test_a_journal_that_is_not_there_has_no_lines(systemd: HostAgent, journal: Path) -> None:
    assert not journal.exists()
    assert read(GuestAgent(systemd, SystemClock()), "before") == {"before": []}


def test_a_guest_without_systemd_is_unsupported(
    host: HostAgent, journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_job, "_START", _job._START.replace("/run/systemd/system", "/nonexistent"))
    with pytest.raises(GuestUnsupported, match="does not run systemd"):
        start(GuestAgent(host, SystemClock()), "exit 0\n", [])
    assert not journal.exists()
