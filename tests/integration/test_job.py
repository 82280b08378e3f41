# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The upgrade's job in a real guest: under its systemd and without, across its restarts, on a disk that is full."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils import _job
from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._clock import SystemClock
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    AgentCommandFailed,
    AgentSilent,
    DiskFull,
    FleetError,
    UpgradeRunning,
)
from ansible_collections.kvm.fleet.plugins.module_utils._job import Job, JobState, look, read, remove, start, stop, wait
from lab.clock import wait_until
from lab.errors import AgentFailed
from lab.inside import ask

if TYPE_CHECKING:
    from lab.guests import Guest

PATIENCE_S = 300
CLOCK = SystemClock()


class LabChannel:
    """A lab guest's agent, as the collection speaks to one."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    def exchange(self, request: str, timeout: int) -> str:
        message = json.loads(request)
        try:
            answer = ask(self._guest.domain, message["execute"], timeout, **message.get("arguments", {}))
        except AgentFailed as error:
            failed = AgentCommandFailed if self._guest.answers() else AgentSilent
            raise failed(str(error), remedy="See the guest's console.") from error
        return json.dumps({"return": answer})


@pytest.fixture
def agent(pristine_guest: Guest) -> GuestAgent:
    """As patient as guest_upgrade makes it: some of the jobs restart the agent while they are being started."""
    return GuestAgent(LabChannel(pristine_guest), CLOCK, patience=PATIENCE_S)


def a_job(text: str, run: str = "run-1") -> Job:
    return Job(run, "[ -e before ] || echo one >before", ("/bin/sh", "-c", text), 'echo "$code $stopped"', {})


def logged(agent: GuestAgent, line: str) -> bool:
    """Whether the job has printed a line. Asked while the agent restarts, too."""
    try:
        return line in look(agent).log
    except FleetError:
        return False


@pytest.mark.parametrize("systemd", [_job._SYSTEMD, "/nonexistent"])
def test_of_jobs_that_start_at_once_just_one_runs(
    pristine_guest: Guest, systemd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_job, "_SYSTEMD", systemd)

    def race(run: str) -> object:
        try:
            start(GuestAgent(LabChannel(pristine_guest), CLOCK), a_job("echo begun >>/root/begun; sleep 5", run))
        except UpgradeRunning as error:
            return error.evidence["run"]
        return run

    runs = [f"run-{number}" for number in range(3)]
    with ThreadPoolExecutor() as racers:
        told = list(racers.map(race, runs))
    agent = GuestAgent(LabChannel(pristine_guest), CLOCK)
    assert told == [wait(agent, CLOCK, PATIENCE_S).run] * 3
    assert pristine_guest.read_file("/root/begun") == b"begun\n"


def test_a_job_outlives_the_agent_and_is_stopped_gently(agent: GuestAgent) -> None:
    loop = "trap 'echo stopping; exit 7' INT; for i in $(seq 600); do sleep 0.5; done"
    start(agent, a_job(f"systemctl restart qemu-guest-agent; echo restarted; {loop}"))
    assert wait_until(lambda: logged(agent, "restarted"), PATIENCE_S)
    found = look(agent)
    assert (found.state, found.run, found.stopping) == (JobState.RUNNING, "run-1", False)
    assert found.elapsed is not None
    stop(agent)
    found = wait(agent, CLOCK, PATIENCE_S)
    assert (found.state, found.exit_code, found.stopping) == (JobState.ENDED, 7, True)
    assert look(agent).log == ("restarted", "stopping", "7 yes")
    remove(agent)
    assert look(agent).state is JobState.NONE


def test_a_guest_that_restarts_lets_the_job_end_first(agent: GuestAgent, pristine_guest: Guest) -> None:
    boot = pristine_guest.boot_id()
    # Not before the start was answered: its patience would last until the guest is up again.
    wait_to_go = "until [ -e /root/go ]; do sleep 0.2; done"
    start(agent, a_job(f"{wait_to_go}; systemctl --no-block reboot; for i in $(seq 20); do sleep 1; done; echo done"))
    pristine_guest.write_file("/root/go", b"")
    assert wait_until(lambda: not pristine_guest.answers(), PATIENCE_S)
    pristine_guest.wait_until_ready()
    assert pristine_guest.boot_id() != boot
    found = look(agent)
    assert (found.state, found.exit_code, found.log) == (JobState.ENDED, 0, ("done", "0 no"))


def test_a_guest_that_loses_power_cuts_the_job_off_and_keeps_the_baseline(
    agent: GuestAgent, pristine_guest: Guest
) -> None:
    start(agent, a_job("echo begun; sleep 600"))
    assert wait_until(lambda: logged(agent, "begun"), PATIENCE_S)
    pristine_guest.domain.destroy()
    pristine_guest.start()
    pristine_guest.wait_until_ready()
    found = look(agent)
    assert (found.state, found.run, found.elapsed) == (JobState.CUT_OFF, "run-1", None)
    start(agent, a_job("echo again", "run-2"))
    assert wait(agent, CLOCK, PATIENCE_S).exit_code == 0
    assert read(agent, "before") == {"before": ["one"]}


@pytest.mark.thorough
def test_a_full_disk_refuses_a_job_and_does_not_hide_how_one_ended(agent: GuestAgent, pristine_guest: Guest) -> None:
    fill = "dd if=/dev/zero of={} bs=1M 2>/dev/null; dd if=/dev/zero of={}.rest bs=1k 2>/dev/null"
    start(agent, a_job(f"{fill.format('/fill', '/fill')}; exit 3"))
    found = wait(agent, CLOCK, PATIENCE_S)
    assert (found.state, found.exit_code) == (JobState.ENDED, 3)
    with pytest.raises(DiskFull):
        start(agent, a_job("true", "run-2"))
    found = look(agent)
    assert (found.state, found.exit_code, found.run) == (JobState.ENDED, 3, "run-1")
    pristine_guest.output("/bin/rm", "/fill", "/fill.rest")
    start(agent, a_job("true", "run-2"))
    assert wait(agent, CLOCK, PATIENCE_S).exit_code == 0
    assert read(agent, "before") == {"before": ["one"]}
