# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A fleet of two hypervisors with four guests each, over SSH: rolled through in batches, by jobs as AWX runs them."""

from __future__ import annotations

import json
import uuid
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import libvirt
import pytest

from tests.integration import background
from tests.integration.background import PATIENCE_S, record_of, steps, wait_for
from tests.integration.jobs import Job, job
from tests.integration.proof import FAILS_AT_BOOT, fail_at_boot, make_fresh
from tests.integration.runs import PlaybookRun, literal, module_on, playbook

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterable, Iterator, Mapping

    from lab.fleets import Fleet
    from lab.guests import Guest
    from lab.hypervisor import Hypervisor
    from lab.process import Process
    from lab.session import Session

NAMES = (("cache1", "db1", "web1", "app1"), ("cache2", "db2", "web2", "app2"))
BROKEN = "cache1"
"""The guest that is fine until it boots: a unit fails then."""

# Each web server needs the database on the other hypervisor. They need not boot, so that they cost seconds.
DEPENDENCIES = {"web1": ["db2"], "web2": ["db1"]}
WEB: dict[str, dict[str, object]] = {
    name: {"kvm_depends_on": providers, "upgrade_strategy": "save_restore"} for name, providers in DEPENDENCIES.items()
}

# An administrator's own way into the guests. The collection reaches them through their hypervisors, and has to reach
# those by their own address and user.
INTO_THE_GUESTS = {"ansible_host": "192.0.2.1", "ansible_user": "nobody"}

GONE_WRONG = "has failed, was refused or was lost in this run"

GROUP = "databases"
GROUP_FILE = Path(f"/var/lib/kvm-fleet/groups/{GROUP}.json")


@dataclass(frozen=True)
class Rolling:
    """Eight running guests by their names in the inventory, the hypervisors they are on, and that inventory."""

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

    def records(self) -> dict[str, dict[str, Any]]:
        return {name: record_of(guest) for name, guest in self.guests.items()}

    def boots(self, *names: str) -> dict[str, str]:
        return {name: self.guests[name].boot_id() for name in names}

    def all_at(self, *step: str, names: Iterable[str]) -> bool:
        """Whether all of these guests have this step on record, and no other."""
        return all(steps(self.guests[name]) == [step] for name in names)

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
                own = {"kvm_hypervisor": hypervisor.name, "kvm_domain": guests[name].name}
                hosts[name] = {**own, **WEB.get(name, {})}
        for guest in guests.values():
            guest.wait_until_ready()
        fail_at_boot(guests[BROKEN])
        for guest in guests.values():
            guest.take_pristine()
        inventory = tmp_path_factory.mktemp("rolling")
        listed = {"kvm_guests": {"hosts": hosts, "vars": INTO_THE_GUESTS}}
        known = json.loads(fleet.inventory.read_text(encoding="utf-8"))
        (inventory / "hosts.yml").write_text(literal({**known, **listed}), encoding="utf-8")
        yield Rolling(fleet.hypervisors, guests, inventory / "hosts.yml")


def more(directory: Path, hosts: Mapping[str, object], **variables: object) -> tuple[str, str]:
    """What adds to the inventory what there is to say of some guests, and of all."""
    path = directory / "more.yml"
    path.write_text(literal({"kvm_guests": {"hosts": hosts, "vars": variables}}), encoding="utf-8")
    return "--inventory", str(path)


@contextmanager
def restarting(rolling: Rolling, log: Path, *arguments: str, **variables: object) -> Iterator[subprocess.Popen[bytes]]:
    """A restart at work in the background."""
    words = (*arguments, "--extra-vars", literal(variables), "kvm.fleet.restart")
    with (
        log.open("wb") as output,
        background.running("ansible-playbook", *words, output=output, inventory=rolling.inventory) as controller,
    ):
        yield controller


def outcomes(records: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {name: record["outcome"] for name, record in records.items()}


def not_attempted(run: PlaybookRun) -> dict[str, str]:
    """Why the guests were held back that were."""
    held_back = {name: record for name, record in run.records.items() if record["outcome"] == "not_attempted"}
    return {name: record["error"]["msg"] for name, record in held_back.items()}


def changed(before: Mapping[str, object], after: Mapping[str, object]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


# --- stopped by a guest that its restart has broken ----------------------------------------------


def test_a_canary_that_its_restart_breaks_leaves_the_rest_of_the_fleet_untouched(
    rolling: Rolling, tmp_path: Path
) -> None:
    rolling.fresh()
    before, boots, records = rolling.processes(), rolling.boots(BROKEN), rolling.records()
    canary = more(tmp_path, {BROKEN: {"kvm_canary": True}})
    variables: dict[str, object] = {"fleet_batch": "1,100%", "fleet_continue_on_error": True}
    run = playbook("restart", *canary, guests=list(rolling.guests), variables=variables, inventory=rolling.inventory)
    assert run.exit_code != 0
    record = run.records[BROKEN]
    assert (record["outcome"], record["restarted"], record["drift"]) == ("failed", True, "resolved")
    assert record["error"]["error_code"] == "guest_unhealthy"
    assert FAILS_AT_BOOT in record["error"]["msg"]
    assert rolling.boots(BROKEN) != boots
    assert record_of(rolling.guests[BROKEN])["ended"]["outcome"] == "failed"
    held_back = not_attempted(run)
    assert {*held_back} == {*rolling.guests} - {BROKEN}
    assert {why.partition(", and ")[2] for why in held_back.values()} == {f"{BROKEN} {GONE_WRONG}"}
    assert run.summary[1] == "RESTART SUMMARY: 1 VM(s) processed, 7 not attempted"
    assert changed(before, rolling.processes()) == {BROKEN}
    assert changed(records, rolling.records()) == {BROKEN}


def test_more_failures_than_are_allowed_in_a_batch_stop_the_run(rolling: Rolling, tmp_path: Path) -> None:
    rolling.fresh(BROKEN)
    before = rolling.processes()
    left_alone = {"upgrade_packages": False, "upgrade_snapshot": False, "upgrade_restart": "never"}
    only_one = more(tmp_path, {BROKEN: {"upgrade_restart": "always"}}, **left_alone)
    run = playbook(
        "upgrade",
        *only_one,
        guests=[BROKEN, "db1", "cache2", "db2", "app2"],
        variables={"fleet_batch": 4, "fleet_max_fail_percentage": 24},
        inventory=rolling.inventory,
    )
    assert run.exit_code != 0
    batch = dict.fromkeys(("db1", "cache2", "db2"), "unchanged")
    assert outcomes(run.records) == {BROKEN: "failed", **batch}, "a quarter has failed"
    assert run.records[BROKEN]["error"]["error_code"] == "guest_unhealthy"
    assert run.paragraph("app2")[1] == "  Not attempted: the run ended before its turn"
    assert changed(before, rolling.processes()) == {BROKEN}


# --- rolled through ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rolled:
    """A job that was allowed to lose a quarter of a batch, and lost one of its four guests."""

    rolling: Rolling
    before: dict[str, Process | None]
    boots: dict[str, str]
    job: Job


@pytest.fixture(scope="module")
def rolled(rolling: Rolling, tmp_path_factory: pytest.TempPathFactory) -> Rolled:
    rolling.fresh(*rolling.guests)
    before, boots = rolling.processes(), rolling.boots(*rolling.guests)
    variables = {"fleet_batch": 4, "fleet_per_hypervisor": 2, "fleet_max_fail_percentage": 25}
    done = job(
        tmp_path_factory.mktemp("rolled") / "job",
        "restart",
        {"fleet_guests": list(rolling.guests), **variables},
        inventory=rolling.inventory,
    )
    return Rolled(rolling, before, boots, done)


def test_no_more_failures_than_are_allowed_let_the_run_go_on(rolled: Rolled) -> None:
    assert rolled.job.status == "failed", "for the one guest"
    told = outcomes(rolled.job.records)
    assert told.pop(BROKEN) == "failed"
    assert told == dict.fromkeys([name for name in rolled.boots if name != BROKEN], "restarted")
    assert rolled.job.records[BROKEN]["error"]["error_code"] == "guest_unhealthy"
    turns = [rolled.rolling.span(name)[0] for name in (BROKEN, "app2")]
    assert turns == sorted(turns), "the one that failed was not in the last batch"


def test_all_are_off_the_old_qemu(rolled: Rolled) -> None:
    rolling = rolled.rolling
    assert changed(rolled.before, rolling.processes()) == set(rolling.guests)
    assert changed(rolled.boots, rolling.boots(*rolling.guests)) == {*rolling.guests} - {*WEB}
    assert {guest.drifted() for guest in rolling.guests.values()} == {False}


def test_what_others_depend_on_was_up_before_they_went_down(rolled: Rolled) -> None:
    for name, providers in DEPENDENCIES.items():
        for provider in providers:
            assert rolled.rolling.span(provider)[1] <= rolled.rolling.span(name)[0], (provider, name)


def test_no_hypervisor_restarted_more_guests_at_once_than_it_may(rolled: Rolled) -> None:
    for names in NAMES:
        spans = [rolled.rolling.span(name) for name in names]
        for begun, _ended in spans:
            assert sum(one <= begun < other for one, other in spans) <= 2


def test_the_events_of_a_job_show_each_guest_by_its_name(rolled: Rolled) -> None:
    for guest in rolled.boots:
        assert rolled.job.of(guest) >= {"runner_on_start", "runner_on_ok"}
    assert [guest for guest in rolled.boots if "runner_on_failed" in rolled.job.of(guest)] == [BROKEN]


def test_a_job_shows_the_status_of_the_fleet(rolled: Rolled, tmp_path: Path) -> None:
    shown = job(tmp_path / "job", "status", {}, inventory=rolled.rolling.inventory)
    assert shown.status == "successful"
    rows = [line.split() for line in shown.output.splitlines() if line.split()[:1] and line.split()[0] in rolled.boots]
    found = {name: rest[:4] for name, *rest in rows}
    on = {
        name: hypervisor.name
        for hypervisor, names in zip(rolled.rolling.hypervisors, NAMES, strict=True)
        for name in names
    }
    assert found == {name: [on[name], "running", "none", "connected"] for name in rolled.boots}


# --- cancelled -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cancelled:
    """A job that was cancelled while a guest of each hypervisor went down, and the job that came after."""

    rolling: Rolling
    before: dict[str, Process | None]
    boots: dict[str, str]
    job: Job
    cut_off: bool
    """Whether it had gone when both restarts were still open."""
    left: dict[str, Process | None]
    next: Job


@pytest.fixture(scope="module")
def cancelled(rolling: Rolling, tmp_path_factory: pytest.TempPathFactory) -> Cancelled:
    directory, begun = tmp_path_factory.mktemp("cancelled"), ("app1", "app2")
    rolling.fresh(*begun, "cache2")
    before, boots = rolling.processes(), rolling.boots(*begun)
    variables = {"fleet_guests": [*begun, "cache2"], "fleet_batch": 2}
    first = job(
        directory / "1",
        "restart",
        variables,
        inventory=rolling.inventory,
        cancel=lambda: rolling.all_at("restart", "open", names=begun),
    )
    cut_off = rolling.all_at("restart", "open", names=begun)
    # The guests go down for seconds, and are off for a blink.
    wait_for(lambda: rolling.all_at("restart", "done", names=begun), "the end of the restarts")
    left = rolling.processes()
    second = job(directory / "2", "restart", {**variables, "fleet_guests": [*begun]}, inventory=rolling.inventory)
    return Cancelled(rolling, before, boots, first, cut_off, left, second)


def test_a_job_that_is_cancelled_leaves_no_guest_off(cancelled: Cancelled) -> None:
    assert cancelled.job.status == "canceled"
    assert cancelled.cut_off
    assert None not in cancelled.left.values()
    assert changed(cancelled.before, cancelled.left) == {*cancelled.boots}, (
        "the one whose turn had not come is as it was"
    )
    assert not cancelled.rolling.guests["cache2"].run_record.exists()


def test_the_next_job_goes_on_from_there(cancelled: Cancelled) -> None:
    rolling = cancelled.rolling
    assert cancelled.next.status == "successful"
    for name in cancelled.boots:
        told = cancelled.next.records[name]
        assert (told["outcome"], told["resumed"]["cut_off"]) == ("restarted", "after the restart")
        assert record_of(rolling.guests[name])["ended"]["outcome"] == "restarted"
        assert rolling.guests[name].process() == cancelled.left[name], "it was restarted once"
        assert rolling.guests[name].drifted() is False
    assert changed(cancelled.boots, rolling.boots(*cancelled.boots)) == {*cancelled.boots}


# --- two slices of a job -------------------------------------------------------------------------


def test_two_slices_do_not_restart_two_members_of_a_group_at_once(rolling: Rolling, tmp_path: Path) -> None:
    members = ("db1", "db2")
    rolling.fresh(*members)
    group = more(tmp_path, {member: {"kvm_group": GROUP} for member in members})
    keeper, other = rolling.hypervisors
    logs = [tmp_path / name for name in members]
    limits = [f"{hypervisor.name},fleet_selected" for hypervisor in rolling.hypervisors]
    mine: dict[str, Any] = {"group": GROUP, "member": "a third one", "uuid": str(uuid.uuid4()), "run": "elsewhere"}
    mine |= {"owner": "a test"}
    # Both are to want the place at the same moment, however long each takes to come to it.
    assert not module_on(keeper, "group_lease", **mine)["failed"]
    with ExitStack() as stack:
        slices = {
            log: stack.enter_context(
                restarting(rolling, log, *group, "--limit", limit, fleet_guests=[name], fleet_locks_on=keeper.name)
            )
            for name, limit, log in zip(members, limits, logs, strict=True)
        }
        waits = f"-> {keeper.name}]: Take a place"
        wait_for(
            lambda: all(waits in log.read_text("utf-8") or each.poll() is not None for log, each in slices.items()),
            "the slices' wait for a place",
        )
        assert not module_on(keeper, "group_lease", **mine, state="absent", outcome="unchanged")["failed"]
        codes = [each.wait(timeout=PATIENCE_S) for each in slices.values()]
    told = [log.read_text("utf-8") for log in logs]
    assert codes == [0, 0], "".join(told)
    assert [waits in text for text in told] == [True, True]
    first, second = sorted(rolling.span(member) for member in members)
    assert first[1] <= second[0]
    assert [rolling.guests[member].drifted() for member in members] == [False, False]
    # Each hypervisor keeps a file of its own where nobody says otherwise.
    assert json.loads(keeper.place.found(GROUP_FILE).read_text("utf-8"))["places"] == []
    assert not other.place.found(GROUP_FILE).exists()


# --- a hypervisor that is lost in the middle of a restart ----------------------------------------


@dataclass(frozen=True)
class Lost:
    """A run one of whose hypervisors lost its power while a guest went down, and the run after that was back."""

    rolling: Rolling
    before: dict[str, Process | None]
    run: PlaybookRun
    left: dict[str, Process | None]
    left_on_record: dict[str, Any]
    again: PlaybookRun


@pytest.fixture(scope="module")
def lost(rolling: Rolling, tmp_path_factory: pytest.TempPathFactory) -> Lost:
    chosen = ("app1", "app2", "db1", "db2", "web2")
    rolling.fresh(*chosen)
    before, log = rolling.processes(), tmp_path_factory.mktemp("lost") / "log"
    variables: dict[str, object] = {"fleet_batch": 2, "fleet_per_hypervisor": 1, "fleet_continue_on_error": True}
    lost, _other = rolling.hypervisors
    guest = rolling.guests["app1"]
    with restarting(rolling, log, fleet_guests=chosen, **variables) as controller:
        # On its way down, its agent is among what ends first; on its way up, among what comes last.
        wait_for(lambda: rolling.all_at("restart", "open", names=["app1"]) and not guest.answers(), "the shutdown")
        lost.lose_power()
        try:
            exit_code = controller.wait(timeout=PATIENCE_S)
        finally:
            lost.bring_back()
    print(log.read_text("utf-8"))  # pytest shows it when the test fails
    run, left, left_on_record = PlaybookRun(exit_code, log.read_text("utf-8")), rolling.processes(), record_of(guest)
    # Of all that are on it, those that drift or were left half done.
    again = playbook("restart", "--limit", f"{lost.name},fleet_selected", inventory=rolling.inventory)
    return Lost(rolling, before, run, left, left_on_record, again)


def test_a_hypervisor_that_is_lost_holds_up_no_guest_of_another(lost: Lost) -> None:
    assert lost.run.exit_code != 0
    told = outcomes(lost.run.records)
    assert {name: told[name] for name in ("app2", "db2")} == dict.fromkeys(("app2", "db2"), "restarted")
    assert changed(lost.before, lost.left) & {*NAMES[1]} == {"app2", "db2"}
    assert all(lost.left[name] for name in NAMES[1])


def test_what_depends_on_a_guest_that_is_lost_is_not_attempted(lost: Lost) -> None:
    assert not_attempted(lost.run) == {"web2": f"it depends on db1, and db1 {GONE_WRONG}"}


def test_a_guest_that_was_lost_in_its_restart_is_told_to_be_off_perhaps(lost: Lost) -> None:
    record = lost.run.records["app1"]
    assert (record["outcome"], record["error"]["error_code"]) == ("failed", "run_ended")
    assert "it may be off. The next run of kvm.fleet.upgrade, restart" in record["error"]["remedy"]
    assert lost.left["app1"] is None
    assert [(step["name"], step["status"]) for step in lost.left_on_record["steps"]] == [("restart", "open")]
    assert lost.left_on_record["lease"]["run"] == record["run"]


def test_a_guest_whose_turn_came_when_its_hypervisor_was_lost_is_named(lost: Lost) -> None:
    title, error, remedy = lost.run.paragraph("db1")
    assert title == "✗ db1"
    assert error.startswith("  Error: the run lost this guest: its hypervisor could not be reached")
    assert remedy.endswith("and run again.")
    assert not lost.rolling.guests["db1"].run_record.exists()


def test_the_next_run_brings_back_up_what_a_run_has_left_off(lost: Lost) -> None:
    assert lost.again.exit_code == 0, lost.again.output
    [(name, told)] = lost.again.records.items()
    assert (name, told["outcome"], told["resumed"]["cut_off"]) == ("app1", "restarted", "during the restart")
    guest = lost.rolling.guests["app1"]
    assert (guest.answers(), guest.drifted()) == (True, False)
    assert record_of(guest)["ended"]["outcome"] == "restarted"
    # Nobody's run has shut it down.
    assert lost.rolling.guests["db1"].state() == libvirt.VIR_DOMAIN_SHUTOFF
