# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbooks as AWX runs them: by ansible-runner, from a private data directory, watched by its events."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible_runner.interface import run

from tests.integration.background import record_of, steps, wait_for
from tests.integration.proof import Look, look, make_fresh
from tests.integration.runs import HYPERVISORS, LONGEST_RUN_S, command

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lab.guests import Guest
    from tests.integration.conftest import Pair

RESTART_ONLY = {"upgrade_packages": False, "upgrade_restart": "always", "upgrade_snapshot": False}
LOOK_AGAIN_S = 0.2


@dataclass(frozen=True)
class Job:
    """A job that has ended, as AWX keeps it."""

    status: str
    output: str
    events: list[dict[str, Any]]

    @property
    def artifacts(self) -> dict[str, Any]:
        """What a workflow's next node gets to read."""
        [ended] = [event for event in self.events if event["event"] == "playbook_on_stats"]
        found: dict[str, Any] = ended["event_data"]["artifact_data"]
        return found


def job(
    directory: Path, playbook: str, variables: Mapping[str, object], cancel: Callable[[], bool] | None = None
) -> Job:
    """Run one of the collection's playbooks as a job, until it ends or is to be cancelled."""
    directory.mkdir()
    (directory / "inventory").mkdir()
    (directory / "inventory" / "hypervisors.yml").write_text(HYPERVISORS.read_text("utf-8"), encoding="utf-8")
    _words, environment = command("ansible-playbook", inventory=HYPERVISORS)
    ran = run(
        private_data_dir=str(directory),
        playbook=f"kvm.fleet.{playbook}",
        envvars=environment,
        extravars=dict(variables),
        settings={"pexpect_timeout": LOOK_AGAIN_S, "job_timeout": LONGEST_RUN_S},
        cancel_callback=cancel,
        quiet=True,
    )
    output = Path(ran.config.artifact_dir, "stdout").read_text("utf-8")
    print(output)  # pytest shows it when the test fails
    return Job(ran.status, output, sorted(ran.events, key=lambda event: int(event["counter"])))


@dataclass(frozen=True)
class Cancelled:
    """A guest whose job was cancelled while it went down, and the job that came after."""

    guest: Guest
    before: Look
    cancelled: Job
    at_that_moment: list[tuple[str, str]]
    next: Job
    after: Look


@pytest.fixture(scope="module")
def cancelled(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Cancelled:
    directory, guest = tmp_path_factory.mktemp("jobs"), pair.plain
    make_fresh(guest, drifted=True)
    before = look(guest)
    going_down = [("restart", "open")]
    variables = {"fleet_guests": [guest.name], **RESTART_ONLY}
    first = job(directory / "1", "upgrade", variables, lambda: steps(guest) == going_down)
    left = steps(guest)
    # The guest goes down for seconds, and is off for a blink.
    wait_for(lambda: steps(guest) == [("restart", "done")], "the end of the restart")
    second = job(directory / "2", "upgrade", variables)
    return Cancelled(guest, before, first, left, second, look(guest))


def test_a_job_that_is_cancelled_leaves_no_guest_off(cancelled: Cancelled) -> None:
    assert cancelled.cancelled.status == "canceled"
    assert cancelled.at_that_moment == [("restart", "open")]
    assert (cancelled.before.drifted, cancelled.after.drifted) == (True, False)
    assert cancelled.after.boot_id != cancelled.before.boot_id
    assert cancelled.after.process.pid != cancelled.before.process.pid


def test_the_next_job_goes_on_from_there(cancelled: Cancelled) -> None:
    assert cancelled.next.status == "successful"
    told = cancelled.next.artifacts["kvm_fleet"]["guests"][cancelled.guest.name]
    assert (told["outcome"], told["resumed"]["cut_off"]) == ("restarted", "after the restart")
    assert record_of(cancelled.guest)["ended"]["outcome"] == "restarted"


def test_the_events_of_a_job_show_each_guest_by_its_name(cancelled: Cancelled) -> None:
    of_guest = [event for event in cancelled.next.events if event["event_data"].get("host") == cancelled.guest.name]
    assert {event["event"] for event in of_guest} >= {"runner_on_start", "runner_on_ok"}
    assert not any(event["event"] == "runner_on_failed" for event in of_guest)


def test_a_job_shows_the_status_of_the_fleet(cancelled: Cancelled, tmp_path: Path) -> None:
    shown = job(tmp_path / "job", "status", {"fleet_guests": [cancelled.guest.name]})
    assert shown.status == "successful"
    [row] = [line.split() for line in shown.output.splitlines() if line.startswith(f"{cancelled.guest.name} ")]
    assert row[1:5] == ["localhost", "running", "none", "connected"]
