# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbooks as AWX runs them: by ansible-runner, from a private data directory, watched by its events."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_runner.interface import run

from lab.process import running_with
from tests.integration.background import kill_all
from tests.integration.runs import LONGEST_RUN_S, command

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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

    @property
    def records(self) -> dict[str, dict[str, Any]]:
        """The record of each guest in the artifacts, by its name."""
        found: dict[str, dict[str, Any]] = self.artifacts["kvm_fleet"]["guests"]
        return found

    def of(self, guest: str) -> set[str]:
        """The kinds of events that there are of a guest."""
        return {event["event"] for event in self.events if event["event_data"].get("host") == guest}


def job(
    directory: Path,
    playbook: str,
    variables: Mapping[str, object],
    *,
    inventory: Path,
    cancel: Callable[[], bool] | None = None,
) -> Job:
    """Run one of the collection's playbooks as a job, until it ends or is to be cancelled."""
    hosts = directory / "inventory"
    hosts.mkdir(parents=True)
    (hosts / "hypervisors.yml").write_text(inventory.read_text("utf-8"), encoding="utf-8")
    _words, environment = command("ansible-playbook", inventory=inventory)

    asked: list[str] = []

    def cancelled() -> bool:
        if cancel is not None and not asked and cancel():
            asked.append("once")
            # AWX ends the job's container. ansible-runner itself ends no worker of Ansible's, see background.kill.
            kill_all(process.pid for process in running_with("-i", str(hosts)))
        return bool(asked)

    ran = run(
        private_data_dir=str(directory),
        playbook=f"kvm.fleet.{playbook}",
        envvars=environment,
        extravars=dict(variables),
        settings={"pexpect_timeout": LOOK_AGAIN_S, "job_timeout": LONGEST_RUN_S},
        cancel_callback=cancelled,
        quiet=True,
    )
    output = Path(ran.config.artifact_dir, "stdout").read_text("utf-8")
    print(output)  # pytest shows it when the test fails
    return Job(ran.status, output, sorted(ran.events, key=lambda event: int(event["counter"])))
