# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Long work in a guest: started once, followed across an agent that comes and goes, read from its own records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils import _job
from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._clock import SystemClock
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    FleetError,
    GuestUnsupported,
    UpgradeInterrupted,
    UpgradeRunning,
    UpgradeTimeout,
)
from ansible_collections.kvm.fleet.plugins.module_utils._job import Job, new_job, read, remove, split_files, start, wait
from tests.unit.fake_agent import NEVER, Call, Ending, FakeAgent, in_turn
from tests.unit.fake_clock import START, FakeClock
from tests.unit.host_agent import HostAgent

JOB = Job("/var/lib/kvm-fleet/20260301T020000Z-0011aabb")


def test_jobs_are_named_by_time_and_never_alike() -> None:
    first, second = new_job(START), new_job(START)
    assert first.directory.startswith("/var/lib/kvm-fleet/20260301T020000Z-")
    assert first != second


# --- starting ------------------------------------------------------------------------------------


def test_the_script_goes_in_by_standard_input_and_the_rest_as_arguments(clock: FakeClock) -> None:
    agent = FakeAgent(clock)
    start(GuestAgent(agent, clock), JOB, "script $1", ["no", "apt-get", "-o", "a b"])
    [call] = agent.calls
    assert call.stdin == b"script $1"
    assert call.command[3:] == ["sh", JOB.directory, "kvm-fleet-upgrade.service", "no", "apt-get", "-o", "a b"]


@pytest.mark.parametrize(
    ("ending", "kind", "message"),
    [
        (Ending(96), UpgradeRunning, "an upgrade started earlier still runs in the guest as kvm-fleet-upgrade.service"),
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
        start(GuestAgent(FakeAgent(clock, in_turn([ending])), clock), JOB, "", [])
    assert raised.value.message == message


# --- following -----------------------------------------------------------------------------------

RUNNING, GONE = Ending(stdout=b"running\n"), Ending(stdout=b"gone\n")


def ended(code: int) -> Ending:
    return Ending(stdout=f"ended {code}\n".encode())


@pytest.mark.parametrize("code", [0, 100])
def test_a_running_job_is_followed_to_its_exit_code(clock: FakeClock, code: int) -> None:
    agent = FakeAgent(clock, in_turn([RUNNING, RUNNING, RUNNING, ended(code)]))
    assert wait(GuestAgent(agent, clock), clock, JOB, 1800) == code
    assert {tuple(call.command[3:]) for call in agent.calls} == {
        ("sh", JOB.directory, "kvm-fleet-upgrade.service"),
    }


def test_a_job_that_vanished_without_a_result_was_interrupted(clock: FakeClock) -> None:
    agent = FakeAgent(clock, in_turn([RUNNING, GONE, Ending(stdout=b"Unpacking a\nUnpacking b\n")]))
    with pytest.raises(UpgradeInterrupted) as raised:
        wait(GuestAgent(agent, clock), clock, JOB, 1800)
    assert raised.value.evidence == {"directory": JOB.directory, "log": ["Unpacking a", "Unpacking b"]}


def test_an_agent_that_is_silent_in_between_is_asked_again(clock: FakeClock) -> None:
    def program(_call: Call) -> Ending:
        if len(agent.calls) == 2:
            agent.silent = True
            clock.after(100, lambda: setattr(agent, "silent", False))
        return ended(0) if len(agent.calls) > 2 else RUNNING

    agent = FakeAgent(clock, program)
    assert wait(GuestAgent(agent, clock), clock, JOB, 1800) == 0


def test_an_agent_that_restarts_in_the_middle_of_a_look_is_asked_again(clock: FakeClock) -> None:
    def program(_call: Call) -> Ending:
        if len(agent.calls) == 1:
            clock.after(0.5, agent.restart)
            return Ending(after=1)
        return ended(0)

    agent = FakeAgent(clock, program)
    assert wait(GuestAgent(agent, clock), clock, JOB, 1800) == 0
    assert len(agent.calls) == 2


def test_a_look_that_is_killed_or_hangs_is_taken_again(clock: FakeClock) -> None:
    hanging_and_its_end = (NEVER, Ending())
    agent = FakeAgent(clock, in_turn([Ending(None, signal=15), *hanging_and_its_end, ended(0)]))
    assert wait(GuestAgent(agent, clock), clock, JOB, 1800) == 0


def test_a_job_that_does_not_end_is_left_running_and_said_so(clock: FakeClock) -> None:
    agent = FakeAgent(clock, lambda _call: RUNNING)
    with pytest.raises(UpgradeTimeout) as raised:
        wait(GuestAgent(agent, clock), clock, JOB, 60)
    assert raised.value.message == (
        "the upgrade has not ended within 60 s; it was not touched and goes on in the guest as "
        "kvm-fleet-upgrade.service"
    )
    assert raised.value.evidence == {"directory": JOB.directory, "last_answer": "running"}
    assert f"tail -f {JOB.directory}/log" in raised.value.remedy


def test_a_timeout_tells_that_the_agent_was_silent(clock: FakeClock) -> None:
    agent = FakeAgent(clock)
    agent.silent = True
    with pytest.raises(UpgradeTimeout) as raised:
        wait(GuestAgent(agent, clock), clock, JOB, 60)
    assert raised.value.evidence["last_answer"] == "Guest agent is not responding"


@pytest.mark.parametrize("answer", [b"ended \n", b"ended x\n", b"ended -1\n", b"Ended 0\n", b"", b"ended 0 0\n"])
def test_an_answer_that_is_none_is_not_taken_for_success(clock: FakeClock, answer: bytes) -> None:
    agent = FakeAgent(clock, lambda _call: Ending(stdout=answer))
    with pytest.raises(UpgradeTimeout):
        wait(GuestAgent(agent, clock), clock, JOB, 10)


# --- reading -------------------------------------------------------------------------------------


def test_files_that_came_in_one_output_are_told_apart() -> None:
    lines = ["before\ta\tb", "after\tx", "before\t", "log\tnot asked for", "no tab", "before\tafter\ty"]
    assert split_files(lines, ["before", "after", "missing"]) == {
        "before": ["a\tb", "", "after\ty"],
        "after": ["x"],
        "missing": [],
    }


# --- for real, under the real shell --------------------------------------------------------------

SYSTEMCTL = '[ "$1 $2" = "is-active --quiet" ] && [ -e "{units}/$3" ]\n'
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


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(str(tmp_path / "var/lib/kvm fleet/job"))


def test_a_job_runs_as_a_unit_and_its_files_are_read_back(systemd: HostAgent, job: Job) -> None:
    agent = GuestAgent(systemd, SystemClock())
    script = 'cd "$1"; printf "%s\\n" "$2" "$3" >log; printf "a\\tb\\n\\nc" >before; echo 7 >exit\n'
    start(agent, job, script, ["x y", "-n $HOME"])
    assert wait(agent, SystemClock(), job, 30) == 7
    assert _job.tail(agent, job) == ["x y", "-n $HOME"]
    assert read(agent, job, "before", "after") == {"before": ["a\tb", "", "c"], "after": []}
    assert Path(job.directory).stat().st_mode & 0o077 == 0
    remove(agent, job)
    assert not Path(job.directory).exists()


def test_a_second_job_is_refused_while_one_runs(systemd: HostAgent, job: Job, tmp_path: Path) -> None:
    agent = GuestAgent(systemd, SystemClock())
    go = tmp_path / "go"
    start(agent, job, f'while ! [ -e {go} ]; do sleep 0.01; done; echo 0 >"$1/exit"\n', [])
    with pytest.raises(UpgradeRunning):
        start(agent, Job(f"{job.directory}-2"), "exit 0\n", [])
    assert not Path(f"{job.directory}-2").exists()
    go.touch()
    assert wait(agent, SystemClock(), job, 30) == 0


def test_two_jobs_that_start_at_once_do_not_both_run(systemd: HostAgent, job: Job, tmp_path: Path) -> None:
    """systemd refuses the second unit after the look that found none."""
    unit = tmp_path / "units" / _job.UNIT
    systemd.install("systemd-run", f"touch {unit}; exit 1\n")
    with pytest.raises(UpgradeRunning):
        start(GuestAgent(systemd, SystemClock()), job, "exit 0\n", [])


def test_a_job_that_dies_without_a_result_was_interrupted(systemd: HostAgent, job: Job) -> None:
    agent = GuestAgent(systemd, SystemClock())
    start(agent, job, 'echo "Unpacking" >"$1/log"\n', [])
    with pytest.raises(UpgradeInterrupted) as raised:
        wait(agent, SystemClock(), job, 30)
    assert raised.value.evidence["log"] == ["Unpacking"]


def test_a_guest_without_systemd_is_unsupported(host: HostAgent, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_job, "_START", _job._START.replace("/run/systemd/system", "/nonexistent"))
    with pytest.raises(GuestUnsupported, match="does not run systemd"):
        start(GuestAgent(host, SystemClock()), job, "exit 0\n", [])
    assert not Path(job.directory).exists()
