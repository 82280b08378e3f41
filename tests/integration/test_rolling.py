# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A fleet of two hypervisors with three guests each, rolled through in batches, over SSH."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.integration import background
from tests.integration.background import PATIENCE_S, record_of, wait_for
from tests.integration.proof import make_fresh, stop_agent
from tests.integration.runs import PlaybookRun, literal, playbook

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lab.fleets import Fleet
    from lab.guests import Guest
    from lab.hypervisor import Hypervisor
    from lab.process import Process
    from lab.session import Session

NAMES = (("cache1", "db1", "web1"), ("cache2", "db2", "web2"))
BROKEN = "cache1"
"""The guest whose agent is silent."""

# Each web server needs the database on the other hypervisor.
DEPENDENCIES = {"web1": ["db2"], "web2": ["db1"]}
LOOK_ONLY = {"upgrade_packages": False, "upgrade_restart": "never"}


@dataclass(frozen=True)
class Rolling:
    """Six running guests by their names in the inventory, the hypervisors they are on, and that inventory."""

    hypervisors: tuple[Hypervisor, ...]
    guests: dict[str, Guest]
    inventory: Path

    def fresh(self, *names: str) -> None:
        """Put these guests back to how they first came up, and make both hypervisors' guests drift."""
        for name in names:
            make_fresh(self.guests[name])
        for hypervisor in self.hypervisors:
            hypervisor.drift()

    def processes(self) -> dict[str, Process | None]:
        return {name: guest.process() for name, guest in self.guests.items()}

    def span(self, name: str) -> tuple[str, str]:
        """When the restart of a guest began and ended, by the record on its hypervisor."""
        [step] = [step for step in record_of(self.guests[name])["steps"] if step["name"] == "restart"]
        return step["begun"], step["ended"]


@pytest.fixture(scope="module")
def rolling(lab: Session, fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolling]:
    hosts: dict[str, dict[str, object]] = {}
    with ExitStack() as stack:
        guests: dict[str, Guest] = {}
        for hypervisor, names in zip(fleet.hypervisors, NAMES, strict=True):
            for name in names:
                guests[name] = stack.enter_context(lab.guest(on=hypervisor, wait=False))
                hosts[name] = {"kvm_hypervisor": hypervisor.name, "kvm_domain": guests[name].name}
                hosts[name] |= {"kvm_depends_on": DEPENDENCIES[name]} if name in DEPENDENCIES else {}
        for guest in guests.values():
            guest.wait_until_ready()
        for guest in guests.values():
            guest.take_pristine()
        inventory = tmp_path_factory.mktemp("rolling")
        known = json.loads(fleet.inventory.read_text(encoding="utf-8"))
        (inventory / "hosts.yml").write_text(literal({**known, "kvm_guests": {"hosts": hosts}}), encoding="utf-8")
        stop_agent(guests[BROKEN])
        yield Rolling(fleet.hypervisors, guests, inventory / "hosts.yml")


def outcomes(run: PlaybookRun) -> dict[str, str]:
    return {name: record["outcome"] for name, record in run.records.items()}


# --- stopped before anything was changed ---------------------------------------------------------


def test_a_canary_that_is_refused_leaves_the_whole_fleet_untouched(rolling: Rolling, tmp_path: Path) -> None:
    canary = tmp_path / "canary.yml"
    canary.write_text(f"kvm_guests: {{hosts: {{{BROKEN}: {{kvm_canary: true}}}}}}\n", encoding="utf-8")
    for hypervisor in rolling.hypervisors:
        hypervisor.drift()
    before = rolling.processes()
    variables: dict[str, object] = {"fleet_batch": "1,100%", "fleet_continue_on_error": True}
    arguments = ("upgrade", "--inventory", str(canary))
    run = playbook(*arguments, guests=list(rolling.guests), variables=variables, inventory=rolling.inventory)
    assert run.exit_code != 0
    assert outcomes(run)[BROKEN] == "refused"
    assert run.records[BROKEN]["error"]["error_code"] == "agent_silent"
    assert run.summary[1] == "UPGRADE SUMMARY: 1 VM(s) processed, 5 not attempted"
    assert rolling.processes() == before
    assert all(not guest.run_record.exists() for name, guest in rolling.guests.items() if name != BROKEN)


@pytest.mark.parametrize(("allowed", "reached"), [(24, False), pytest.param(25, True, marks=pytest.mark.thorough)])
def test_a_quarter_of_a_batch_that_fails_stops_the_run_or_not(rolling: Rolling, allowed: int, reached: bool) -> None:
    variables: dict[str, object] = {"fleet_batch": 4, "fleet_max_fail_percentage": allowed, **LOOK_ONLY}
    chosen = [BROKEN, "db1", "cache2", "db2", "web2"]
    run = playbook("upgrade", guests=chosen, variables=variables, inventory=rolling.inventory)
    assert run.exit_code != 0
    first = {BROKEN: "refused", "db1": "unchanged", "cache2": "unchanged", "db2": "unchanged"}
    assert outcomes(run) == ({**first, "web2": "unchanged"} if reached else first), run.output


# --- rolled through ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rolled:
    rolling: Rolling
    before: dict[str, Process | None]
    boots: dict[str, str]
    run: PlaybookRun


@pytest.fixture(scope="module")
def rolled(rolling: Rolling) -> Rolled:
    sound = [name for name in rolling.guests if name != BROKEN]
    rolling.fresh(*sound)
    before, boots = rolling.processes(), {name: rolling.guests[name].boot_id() for name in sound}
    variables = {"fleet_batch": "1,4,100%", "fleet_per_hypervisor": 2, "fleet_continue_on_error": True}
    run = playbook("restart", guests=list(rolling.guests), variables=variables, inventory=rolling.inventory)
    return Rolled(rolling, before, boots, run)


def test_all_but_the_broken_guest_are_off_the_old_qemu(rolled: Rolled) -> None:
    assert rolled.run.exit_code != 0, "the exit code tells of the one that failed"
    told = outcomes(rolled.run)
    assert told.pop(BROKEN) == "refused"
    assert set(told.values()) == {"restarted"}
    assert set(told) == set(rolled.boots)
    for name, boot in rolled.boots.items():
        guest = rolled.rolling.guests[name]
        assert guest.boot_id() != boot
        assert guest.drifted() is False


def test_what_others_depend_on_was_up_before_they_went_down(rolled: Rolled) -> None:
    for name, providers in DEPENDENCIES.items():
        for provider in providers:
            assert rolled.rolling.span(provider)[1] <= rolled.rolling.span(name)[0], (provider, name)


def test_no_hypervisor_restarted_more_guests_at_once_than_it_may(rolled: Rolled) -> None:
    for names in NAMES:
        spans = [rolled.rolling.span(name) for name in names if name != BROKEN]
        for begun, _ended in spans:
            assert sum(one <= begun < other for one, other in spans) <= 2


# --- a hypervisor that is lost in the middle -----------------------------------------------------


@dataclass(frozen=True)
class Lost:
    """A run that lost a hypervisor between its two batches, and the run after that was back."""

    rolling: Rolling
    before: dict[str, Process | None]
    run: PlaybookRun
    left: dict[str, Process | None]
    again: PlaybookRun
    after: dict[str, Process | None]


@pytest.fixture(scope="module")
def lost(rolling: Rolling, tmp_path_factory: pytest.TempPathFactory) -> Lost:
    chosen = ("db1", "db2", "web2", "web1")
    rolling.fresh(*chosen)
    before, log = rolling.processes(), tmp_path_factory.mktemp("lost") / "log"
    variables = {"fleet_batch": 2, "fleet_per_hypervisor": 1, "fleet_continue_on_error": True, "fleet_pause": 10}
    said = ("--extra-vars", literal({"fleet_guests": chosen, **variables}), "kvm.fleet.restart")
    away, _other = rolling.hypervisors
    with (
        log.open("wb") as output,
        background.running("ansible-playbook", *said, output=output, inventory=rolling.inventory) as controller,
    ):
        wait_for(lambda: b"Pausing for 10 seconds" in log.read_bytes(), "the end of the first batch")
        away.take_away()
        try:
            exit_code = controller.wait(timeout=PATIENCE_S)
        finally:
            away.bring_back()
    print(log.read_text("utf-8"))  # pytest shows it when the test fails
    run, left = PlaybookRun(exit_code, log.read_text("utf-8")), rolling.processes()
    again = playbook("restart", guests=["web1"], inventory=rolling.inventory)
    return Lost(rolling, before, run, left, again, rolling.processes())


def test_a_hypervisor_that_is_lost_holds_up_no_guest_of_another(lost: Lost) -> None:
    assert lost.run.exit_code != 0
    assert [name for name in NAMES[1] if lost.left[name] != lost.before[name]] == ["db2", "web2"]
    assert {name: outcomes(lost.run)[name] for name in ("db1", "db2", "web2")} == {
        **dict.fromkeys(("db1", "db2", "web2"), "restarted"),
    }


def test_a_guest_of_a_hypervisor_that_is_lost_goes_on_and_is_named(lost: Lost) -> None:
    assert lost.before["web1"] is not None
    assert lost.left["web1"] == lost.before["web1"]
    title, error, remedy = lost.run.paragraph("web1")
    assert title == "✗ web1"
    assert error.startswith("  Error: the run lost this guest: its hypervisor could not be reached")
    assert remedy.endswith("and run again.")


def test_the_next_run_does_what_was_left(lost: Lost) -> None:
    assert lost.again.exit_code == 0, lost.again.output
    assert outcomes(lost.again) == {"web1": "restarted"}
    assert lost.rolling.guests["web1"].drifted() is False
    assert {name for name in lost.after if lost.after[name] != lost.left[name]} == {"web1"}
