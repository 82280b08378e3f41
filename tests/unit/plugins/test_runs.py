# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A run that dies at any point leaves a record from which the next one goes on, and does nothing twice."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule

from ansible_collections.kvm.fleet.plugins.module_utils import _kept, _lease, _migrate, _upgrade
from ansible_collections.kvm.fleet.plugins.module_utils._domain import DomainState
from ansible_collections.kvm.fleet.plugins.module_utils._errors import UpgradeFailed
from ansible_collections.kvm.fleet.plugins.module_utils._job import JobState
from ansible_collections.kvm.fleet.plugins.module_utils._manager import Progress
from ansible_collections.kvm.fleet.plugins.module_utils._packages import PackageChange
from ansible_collections.kvm.fleet.plugins.module_utils._record import Record
from ansible_collections.kvm.fleet.plugins.module_utils._snapshot_xml import STAMP
from ansible_collections.kvm.fleet.plugins.module_utils._store import Store, records_directory
from ansible_collections.kvm.fleet.plugins.module_utils._upgrade import Underway, Upgraded
from tests.unit.fake_agent import Call, Ending
from tests.unit.fake_hypervisor import EMULATOR, FakeDomain, FakeHypervisor, libvirt_failed
from tests.unit.plugins.conftest import Run
from tests.unit.upgrading_guest import UpgradingGuest

guest_upgrade = importlib.import_module("ansible_collections.kvm.fleet.plugins.modules.guest_upgrade")


class Killed(BaseException):
    """A module was ended by SIGKILL, or its machine's power failed: nothing of it runs any more."""


@contextmanager
def killed_in(where: Any, method: str, *, after: bool = False) -> Iterator[None]:
    """The module that calls this method dies just before it, or just after."""
    real: Callable[..., Any] = getattr(where, method)

    def die(*arguments: Any, **options: Any) -> None:
        if after:
            real(*arguments, **options)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, method, die)
        with pytest.raises(Killed):
            yield


@pytest.fixture
def store(hypervisor: FakeHypervisor) -> Store:
    return Store(records_directory(hypervisor.uri))


def record_of(store: Store, domain: FakeDomain) -> Record:
    record = store.read(domain.uuid)
    assert record is not None
    return record


def steps(store: Store, domain: FakeDomain) -> list[tuple[str, str, str]]:
    return [(step.name.value, step.status.value, step.run) for step in record_of(store, domain).steps]


@pytest.fixture
def leased(domain: FakeDomain, run: Run) -> FakeDomain:
    """The guest, under the lease of run-a."""
    take(run, "a")
    return domain


def take(run: Run, who: str) -> dict[str, Any]:
    taken = run("guest_lease", name="web1", run=f"run-{who}", owner=f"root@{who}", take_over="run-a")
    assert not taken.get("failed"), taken
    return taken


def snapshot(run: Run, who: str = "a", **options: Any) -> dict[str, Any]:
    return run("domain_snapshot", name="web1", run=f"run-{who}", **options)


def restart(run: Run, who: str = "a", **options: Any) -> dict[str, Any]:
    return run("domain_power", name="web1", state="restarted", run=f"run-{who}", **options)


# --- the lease, seen by those who work -----------------------------------------------------------

WORK: list[tuple[str, dict[str, Any]]] = [
    ("domain_snapshot", {}),
    ("domain_snapshot", {"snapshot": "ours", "state": "reverted"}),
    ("domain_power", {"state": "restarted"}),
    ("domain_power", {"state": "stopped"}),
    ("guest_upgrade", {}),
]


@pytest.mark.parametrize(("module", "options"), WORK)
@pytest.mark.parametrize("run_id", [None, "run-b"])
def test_a_guest_of_a_live_run_is_refused_to_all_others(
    run: Run, leased: FakeDomain, module: str, options: dict[str, Any], run_id: str | None
) -> None:
    refused = run(module, name="web1", **options, **({"run": run_id} if run_id else {}))
    expected = "lease_lost" if run_id and module != "guest_upgrade" else "guest_leased"
    assert refused["error_code"] == expected
    assert "run-a" in refused["msg"]
    assert leased.changes == []


@pytest.mark.parametrize(("module", "options"), WORK)
def test_check_mode_without_a_run_refuses_it_as_well(
    run: Run, leased: FakeDomain, module: str, options: dict[str, Any]
) -> None:
    assert run(module, name="web1", check=True, **options)["error_code"] == "guest_leased"
    assert leased.changes == []


@pytest.mark.parametrize("module", ["domain_snapshot", "domain_power"])
def test_a_run_without_a_lease_changes_nothing(run: Run, domain: FakeDomain, module: str) -> None:
    options = {"state": "restarted"} if module == "domain_power" else {}
    assert run(module, name="web1", run="run-a", **options)["error_code"] == "lease_lost"
    assert not run(module, name="web1", run="run-a", check=True, **options).get("failed")
    assert domain.changes == []


def test_a_run_that_was_taken_for_dead_does_not_go_on(run: Run, leased: FakeDomain, upgrades: Upgrades) -> None:
    snapshot(run)
    leased.changes.clear()
    take(run, "b")
    lost = [snapshot(run), restart(run), run("guest_upgrade", name="web1", run="run-a")]
    assert [result["error_code"] for result in lost] == ["lease_lost"] * 3
    assert (leased.changes, upgrades.began) == ([], 0)


def test_each_task_of_the_run_keeps_its_lease_young(run: Run, hypervisor: FakeHypervisor, leased: FakeDomain) -> None:
    for _hour in range(3):
        hypervisor.clock.advance(3000)
        assert not snapshot(run).get("failed")
    [info] = run("domain_info", names=[leased.name])["domains"]
    assert info["run"]["live"] is True


def test_without_a_run_nothing_is_kept(run: Run, domain: FakeDomain, store: Store) -> None:
    run("domain_snapshot", name="web1")
    run("domain_power", name="web1", state="restarted")
    assert store.read(domain.uuid) is None
    assert not store.is_locked(domain.uuid)


# --- the snapshot --------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True])
def test_a_snapshot_that_was_cut_off_is_there_once_in_the_end(
    run: Run, hypervisor: FakeHypervisor, leased: FakeDomain, store: Store, after: bool
) -> None:
    with killed_in(leased, "create_snapshot", after=after):
        snapshot(run)
    assert steps(store, leased) == [("snapshot", "open", "run-a")]
    name = record_of(store, leased).steps[0].intent["name"]
    hypervisor.clock.advance(60)
    assert take(run, "b")["resumed"]["cut_off"] == "during the snapshot"
    predicted, made = snapshot(run, "b", check=True), snapshot(run, "b")
    assert (predicted["changed"], made["changed"], made["snapshot"]["name"]) == (not after, not after, name)
    assert [found.name for found in leased.snapshots()] == [name]
    assert steps(store, leased)[-1][:2] == ("snapshot", "done")


def test_a_snapshot_that_was_made_is_not_made_again(run: Run, hypervisor: FakeHypervisor, leased: FakeDomain) -> None:
    first = snapshot(run)
    hypervisor.clock.advance(60)
    assert take(run, "b")["resumed"]["cut_off"] == "after the snapshot"
    again = snapshot(run, "b")
    assert (again["changed"], again["snapshot"]) == (False, first["snapshot"])
    assert leased.changes == ["create_snapshot"]


def test_a_snapshot_that_nothing_followed_is_left_aside_when_it_is_old(
    run: Run, hypervisor: FakeHypervisor, leased: FakeDomain
) -> None:
    first = snapshot(run)["snapshot"]["name"]
    hypervisor.clock.advance(24 * 3600 + 1)
    take(run, "b")
    second = snapshot(run, "b")
    assert (second["changed"], second["snapshot"]["name"] != first) == (True, True)
    assert {found.name for found in leased.snapshots()} == {first, second["snapshot"]["name"]}


def test_an_old_snapshot_is_kept_where_something_was_changed_after_it(
    run: Run, hypervisor: FakeHypervisor, leased: FakeDomain
) -> None:
    first = snapshot(run)["snapshot"]["name"]
    with killed_in(leased, "start"):
        restart(run)
    hypervisor.clock.advance(24 * 3600 + 1)
    take(run, "b")
    restart(run, "b")
    assert snapshot(run, "b")["snapshot"]["name"] == first


def test_a_snapshot_that_somebody_has_deleted_is_made_again(run: Run, leased: FakeDomain) -> None:
    name = snapshot(run)["snapshot"]["name"]
    leased.delete_snapshot(name)
    take(run, "b")
    assert snapshot(run, "b")["changed"] is True
    assert [found.name for found in leased.snapshots()] == [name]


def test_the_name_of_a_snapshot_that_is_gone_is_not_used_for_what_came_after_it(
    run: Run, hypervisor: FakeHypervisor, leased: FakeDomain
) -> None:
    name = snapshot(run)["snapshot"]["name"]
    restart(run)
    with killed_in(leased, "delete_snapshot", after=True):
        snapshot(run, snapshot=name, state="absent")
    hypervisor.clock.advance(60)
    take(run, "b")
    made = snapshot(run, "b")
    assert (made["changed"], made["snapshot"]["name"] != name) == (True, True)


def test_a_snapshot_that_failed_is_on_record_as_that(run: Run, leased: FakeDomain, store: Store) -> None:
    leased.faults["create_snapshot"] = UpgradeFailed("the disk is full", remedy="Free some.")
    assert snapshot(run)["failed"]
    [step] = record_of(store, leased).steps
    assert (step.status.value, step.result["msg"]) == ("failed", "the disk is full")


@pytest.mark.parametrize("run_id", [None, "run-a"])
def test_a_guest_that_was_reverted_has_nothing_to_be_gone_on_with(
    run: Run, hypervisor: FakeHypervisor, leased: FakeDomain, store: Store, run_id: str | None
) -> None:
    name = snapshot(run)["snapshot"]["name"]
    with killed_in(leased, "shutdown"):
        restart(run)
    if run_id is None:
        hypervisor.clock.advance(3600)
    options = {"run": run_id} if run_id else {}
    assert run("domain_snapshot", name="web1", snapshot=name, state="reverted", **options)["changed"]
    assert record_of(store, leased).steps == ()
    assert take(run, "b")["resumed"] is None


# --- the restart ---------------------------------------------------------------------------------


def test_a_restart_is_on_record_before_the_guest_is_asked(run: Run, leased: FakeDomain, store: Store) -> None:
    pid, boot_id = leased.pid, leased.boot_id
    with killed_in(leased, "shutdown"):
        restart(run)
    [step] = record_of(store, leased).steps
    assert (step.status.value, step.intent["pid"], step.intent["boot_id"]) == ("open", pid, boot_id)


def test_a_guest_that_the_run_has_shut_down_is_started_by_the_next(run: Run, leased: FakeDomain, store: Store) -> None:
    pid, boot_id = leased.pid, leased.boot_id
    with killed_in(leased, "start"):
        restart(run)
    assert leased.state() is DomainState.SHUT_OFF
    [info] = run("domain_info", names=["web1"])["domains"]
    assert (info["run"]["shut_down"], info["run"]["unfinished"]) == (True, True)
    assert take(run, "b")["resumed"]["cut_off"] == "during the restart"
    predicted, done = restart(run, "b", check=True), restart(run, "b")
    assert predicted["steps"] == done["steps"] == ["start", "wait_for_agent"]
    assert (done["changed"], done["restarted"]) == (True, True)
    assert (done["before"]["pid"], done["before"]["boot_id"]) == (pid, boot_id)
    assert (done["after"]["pid"], done["after"]["boot_id"]) == (leased.pid, leased.boot_id)
    assert leased.boot_id != boot_id
    assert steps(store, leased) == [("restart", "done", "run-a")]


def test_a_guest_that_was_started_before_the_run_died_is_proved_and_not_restarted_again(
    run: Run, leased: FakeDomain
) -> None:
    with killed_in(leased, "start", after=True):
        restart(run)
    leased.changes.clear()
    take(run, "b")
    done = restart(run, "b")
    assert (done["steps"], done["changed"], done["restarted"]) == (["wait_for_agent"], False, True)
    assert done["after"]["pid"] == leased.pid
    assert leased.changes == []


def test_a_guest_that_was_never_shut_down_is_restarted(run: Run, leased: FakeDomain, store: Store) -> None:
    with killed_in(leased, "shutdown"):
        restart(run)
    take(run, "b")
    done = restart(run, "b")
    assert done["steps"] == ["shut_down", "start", "wait_for_agent"]
    assert steps(store, leased) == [("restart", "open", "run-a"), ("restart", "done", "run-b")]


# --- with its RAM saved --------------------------------------------------------------------------


def save_restore(run: Run, who: str = "a", **options: Any) -> dict[str, Any]:
    return restart(run, who, strategy="save_restore", **options)


RESUMED = ["restore", "wait_for_agent", "set_clock"]


def test_a_guest_that_the_run_has_saved_is_resumed_by_the_next(run: Run, leased: FakeDomain, store: Store) -> None:
    pid, boot_id = leased.pid, leased.boot_id
    with killed_in(leased, "start"):
        save_restore(run)
    assert (leased.state(), leased.has_managed_save()) == (DomainState.SHUT_OFF, True)
    [info] = run("domain_info", names=["web1"])["domains"]
    assert (info["run"]["shut_down"], info["run"]["unfinished"]) == (True, True)
    take(run, "b")
    # By what is on record, whatever the next run would do by itself.
    predicted, done = restart(run, "b", check=True), restart(run, "b")
    assert predicted["steps"] == done["steps"] == RESUMED
    assert (predicted["strategy"], done["strategy"]) == ("save_restore", "save_restore")
    assert (done["before"]["pid"], done["before"]["boot_id"], done["after"]["boot_id"]) == (pid, boot_id, boot_id)
    assert (leased.boot_id, done["clock"]["set"]) == (boot_id, True)
    assert steps(store, leased) == [("restart", "done", "run-a")]


def test_a_guest_that_was_resumed_before_the_run_died_is_proved_and_has_its_clock_set(
    run: Run, leased: FakeDomain
) -> None:
    with killed_in(leased, "start", after=True):
        save_restore(run)
    leased.changes.clear()
    take(run, "b")
    done = save_restore(run, "b")
    assert (done["steps"], done["changed"], done["restarted"]) == (RESUMED[1:], False, True)
    assert (done["clock"]["behind"], leased.changes) == (3.0, [])


@pytest.mark.parametrize("strategy", ["save_restore", "power_cycle"])
def test_a_guest_that_was_never_saved_is_restarted_as_the_next_run_wants_it(
    run: Run, leased: FakeDomain, store: Store, strategy: str
) -> None:
    with killed_in(leased, "save"):
        save_restore(run)
    take(run, "b")
    assert restart(run, "b", strategy=strategy)["strategy"] == strategy
    assert steps(store, leased) == [("restart", "open", "run-a"), ("restart", "done", "run-b")]


def test_a_guest_that_was_asked_to_shut_down_is_not_saved_on_its_way(run: Run, leased: FakeDomain) -> None:
    leased.habits.shuts_down_after = 40
    with killed_in(leased, "shutdown", after=True):
        restart(run)
    leased.habits.shuts_down_after = None  # once is enough
    take(run, "b")
    done = save_restore(run, "b")
    assert (done["steps"][0], done["strategy"]) == ("shut_down", "power_cycle")


def test_a_saved_image_that_the_next_run_finds_refused_does_not_keep_the_guest_off(
    run: Run, leased: FakeDomain, store: Store
) -> None:
    with killed_in(leased, "start"):
        save_restore(run)
    leased.refuses_image = 2
    take(run, "b")
    refused = save_restore(run, "b")
    assert (refused["error_code"], refused["evidence"]["started_anew"]) == ("saved_state_refused", True)
    assert leased.state() is DomainState.RUNNING
    assert steps(store, leased) == [("restart", "failed", "run-a")]
    leased.go_off()
    [info] = run("domain_info", names=["web1"])["domains"]
    assert info["run"]["shut_down"] is False, "it was started again"


@pytest.mark.parametrize(("booted", "strategy"), [(True, "power_cycle"), (False, "save_restore")])
def test_a_guest_that_its_owner_has_brought_back_after_its_image_was_refused_is_done(
    run: Run, leased: FakeDomain, store: Store, booted: bool, strategy: str
) -> None:
    leased.refuses_image = 2
    assert save_restore(run, keep_image=True)["evidence"]["started_anew"] is False
    run("guest_lease", name="web1", run="run-a", state="absent", outcome="failed")
    leased.managed_save = not booted
    leased.start()
    leased.agent.silent = False
    leased.changes.clear()
    take(run, "b")
    done = save_restore(run, "b")
    assert (done["strategy"], done["steps"][0], leased.changes) == (strategy, "wait_for_agent", [])
    assert steps(store, leased) == [("restart", "failed", "run-a"), ("restart", "done", "run-b")]
    assert record_of(store, leased).steps[-1].intent["strategy"] == strategy
    run("guest_lease", name="web1", run="run-b", state="absent", outcome="restarted")
    assert not record_of(store, leased).unfinished


@pytest.mark.usefixtures("leased")
def test_a_power_cycle_that_is_wanted_is_not_done_by_an_earlier_save(run: Run) -> None:
    save_restore(run)
    take(run, "b")
    assert save_restore(run, "b")["steps"] == []
    assert restart(run, "b", strategy="auto")["steps"] == []
    assert restart(run, "b")["steps"] == ["shut_down", "start", "wait_for_agent"]


def test_the_gentlest_strategy_that_is_open_is_taken(run: Run, domain: FakeDomain) -> None:
    def auto(*, check: bool = False) -> dict[str, Any]:
        return run("domain_power", name="web1", state="restarted", strategy="auto", check=check)

    told = auto()
    assert (told["strategy"], told["closed"]) == ("save_restore", {})
    domain.devices = "<hostdev type='pci'/>"
    for check in (True, False):
        told = auto(check=check)
        assert (told["strategy"], told["steps"][0]) == ("power_cycle", "shut_down")
        assert "hostdev pci" in told["closed"]["save_restore"]
    refused = run("domain_power", name="web1", state="restarted", strategy="save_restore", check=True)
    assert refused["error_code"] == "save_impossible"


def test_the_gentlest_strategy_that_fails_before_anything_is_changed_is_made_up_for(
    run: Run, leased: FakeDomain, store: Store
) -> None:
    leased.save_takes = 1000
    told = restart(run, strategy="auto")
    assert (told["strategy"], told["restarted"]) == ("power_cycle", True)
    assert "was not saved" in told["closed"]["save_restore"]
    assert steps(store, leased) == [("restart", "failed", "run-a"), ("restart", "done", "run-a")]


def test_a_guest_that_was_not_saved_is_not_started_when_its_owner_shuts_it_down(run: Run, leased: FakeDomain) -> None:
    leased.save_takes = 1000
    assert save_restore(run)["error_code"] == "save_failed"
    run("guest_lease", name="web1", run="run-a", state="absent", outcome="failed")
    leased.go_off()
    [info] = run("domain_info", names=["web1"])["domains"]
    assert (info["run"]["shut_down"], info["run"]["unfinished"]) == (False, False)


def fill_up(domain: FakeDomain) -> None:
    """No file system has room for the RAM of this guest."""
    domain.memory = 1 << 60


def test_a_guest_that_is_resumed_needs_no_room_for_its_image(run: Run, leased: FakeDomain) -> None:
    with killed_in(leased, "start"):
        save_restore(run)
    fill_up(leased)
    take(run, "b")
    done = restart(run, "b", strategy="auto")
    assert (done["steps"], done["strategy"], done["closed"]) == (RESUMED, "save_restore", {})


def test_a_guest_that_was_saved_and_resumed_is_not_power_cycled_for_want_of_room(run: Run, leased: FakeDomain) -> None:
    save_restore(run)
    fill_up(leased)
    take(run, "b")
    done = restart(run, "b", strategy="auto")
    assert (done["steps"], done["strategy"], done["closed"]) == ([], "save_restore", {})


def test_a_guest_that_is_left_paused_by_its_save_is_not_power_cycled(
    run: Run, leased: FakeDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_paused(timeout: float) -> None:
        leased.be(DomainState.PAUSED)
        raise libvirt_failed(f"no answer within {timeout} s")

    monkeypatch.setattr(leased, "save", fail_paused)
    told = restart(run, strategy="auto")
    assert told["error_code"] == "save_failed"
    assert "'virsh resume web1'" in told["remedy"]


# --- a shutdown ----------------------------------------------------------------------------------


def stop(run: Run, who: str = "a", **options: Any) -> dict[str, Any]:
    return run("domain_power", name="web1", state="stopped", run=f"run-{who}", **options)


def test_a_shutdown_in_a_run_is_half_a_restart(run: Run, leased: FakeDomain, store: Store) -> None:
    predicted, first = stop(run, check=True), leased.pid
    assert store.read(leased.uuid) is not None
    assert record_of(store, leased).steps == ()
    stopped = stop(run)
    assert (predicted["steps"], stopped["steps"], stopped["changed"]) == (["shut_down"], ["shut_down"], True)
    assert steps(store, leased) == [("restart", "open", "run-a")]
    assert stop(run)["changed"] is False
    done = restart(run)
    assert (done["steps"], done["restarted"]) == (["start", "wait_for_agent"], True)
    assert done["before"]["pid"] == first
    assert steps(store, leased) == [("restart", "done", "run-a")]


@pytest.mark.usefixtures("leased")
def test_a_guest_that_a_dead_run_has_shut_down_is_started_by_the_next(run: Run) -> None:
    stop(run)
    assert take(run, "b")["resumed"]["cut_off"] == "during the restart"
    assert restart(run, "b")["steps"] == ["start", "wait_for_agent"]


def test_a_guest_that_did_not_go_down_may_yet_and_is_started_then(run: Run, leased: FakeDomain, store: Store) -> None:
    leased.habits.shuts_down_after = None
    assert stop(run, shutdown_timeout=10)["error_code"] == "shutdown_timeout"
    assert steps(store, leased) == [("restart", "failed", "run-a")]
    leased.go_off()
    take(run, "b")
    assert restart(run, "b")["steps"] == ["start", "wait_for_agent"]


def test_a_guest_that_is_shut_down_outside_of_any_run_is_wanted_off(run: Run, domain: FakeDomain, store: Store) -> None:
    assert run("domain_power", name="web1", state="stopped")["changed"] is True
    assert store.read(domain.uuid) is None


def test_a_restart_of_the_guest_that_kept_its_boot_is_not_proved(run: Run, leased: FakeDomain) -> None:
    leased.habits.new_boot_id = False
    with killed_in(leased, "start"):
        restart(run)
    take(run, "b")
    assert restart(run, "b")["error_code"] == "proof_failed"


def test_a_restart_that_was_proved_is_not_repeated(run: Run, leased: FakeDomain) -> None:
    first = restart(run)
    leased.changes.clear()
    told = take(run, "b")["resumed"]
    assert (told["cut_off"], told["restarted"]) == ("after the restart", True)
    again = restart(run, "b")
    assert (again["changed"], again["restarted"], again["steps"], leased.changes) == (False, True, [], [])
    assert again["after"]["pid"] == first["after"]["pid"]


def test_a_restart_is_repeated_for_what_came_after_it(
    run: Run, hypervisor: FakeHypervisor, leased: FakeDomain, upgrades: Upgrades
) -> None:
    def needed() -> bool:
        pid = leased.pid
        assert not restart(run).get("failed")
        return leased.pid != pid

    assert [needed(), needed()] == [True, False]
    upgrades.results.append(Upgraded())
    assert not run("guest_upgrade", name="web1", run="run-a").get("failed")
    assert needed() is False
    upgrades.results.append(Upgraded((PackageChange("app", "all", "1", "2"),)))
    assert not run("guest_upgrade", name="web1", run="run-a").get("failed")
    assert needed() is True
    hypervisor.proc.install(EMULATOR)
    assert needed() is True


def test_a_guest_that_goes_off_after_its_run_has_given_up_is_started_by_the_next(
    run: Run, leased: FakeDomain, store: Store
) -> None:
    leased.habits.shuts_down_after = None
    assert restart(run, shutdown_timeout=10)["error_code"] == "shutdown_timeout"
    assert steps(store, leased) == [("restart", "failed", "run-a")]
    run("guest_lease", name="web1", run="run-a", state="absent", outcome="failed")
    leased.go_off()
    take(run, "b")
    assert restart(run, "b")["steps"] == ["start", "wait_for_agent"]


def test_a_guest_that_was_started_again_and_goes_off_later_is_left_off(run: Run, leased: FakeDomain) -> None:
    leased.habits.boots_in = 1000
    assert restart(run)["error_code"] == "agent_silent"
    run("guest_lease", name="web1", run="run-a", state="absent", outcome="failed")
    leased.go_off()
    [info] = run("domain_info", names=["web1"])["domains"]
    assert (info["run"]["unfinished"], info["run"]["shut_down"]) == (False, False)


@pytest.mark.parametrize("after", [False, True])
def test_a_restart_that_was_gone_on_with_has_started_the_guest_too(run: Run, leased: FakeDomain, after: bool) -> None:
    leased.habits.boots_in = 1000
    with killed_in(leased, "start", after=after):
        restart(run)
    take(run, "b")
    assert restart(run, "b")["error_code"] == "agent_silent"
    leased.go_off()
    [info] = run("domain_info", names=["web1"])["domains"]
    assert info["run"]["shut_down"] is False


def test_a_guest_that_is_still_shutting_down_for_a_dead_run_is_waited_for(run: Run, leased: FakeDomain) -> None:
    pid, boot_id = leased.pid, leased.boot_id
    leased.habits.shuts_down_after = 40
    with killed_in(leased, "shutdown", after=True):
        restart(run)
    leased.agent.silent = True
    assert take(run, "b")["resumed"]["restarting"] is True
    assert restart(run, "b", check=True)["steps"] == ["shut_down", "start", "wait_for_agent"]
    done = restart(run, "b")
    assert (done["restarted"], done["before"]["pid"], done["before"]["boot_id"]) == (True, pid, boot_id)
    assert (leased.pid != pid, leased.boot_id != boot_id) == (True, True)


def take_while_upgrading(run: Run, hypervisor: FakeHypervisor, leased: FakeDomain) -> None:
    """Run b has the guest, in which the upgrade of run a still works."""
    guest = UpgradingGuest(hypervisor.clock, duration=100)
    leased.agent.program = guest.agent.program
    assert upgrade(run, interval=10)["finished"] is False
    take(run, "b")


def test_a_guest_is_not_restarted_under_an_upgrade_that_is_on_record(
    run: Run, hypervisor: FakeHypervisor, leased: FakeDomain
) -> None:
    take_while_upgrading(run, hypervisor, leased)
    leased.changes.clear()
    for check in (True, False):
        refused = restart(run, "b", check=check)
        assert (refused["error_code"], refused["evidence"]["run"]) == ("upgrade_running", "run-a")
        refused = run("domain_power", name="web1", state="stopped", run="run-b", check=check)
        assert (refused["error_code"], refused["evidence"]["run"]) == ("upgrade_running", "run-a")
    assert leased.changes == []
    run("guest_lease", name="web1", run="run-b", state="absent", outcome="refused")
    [info] = run("domain_info", names=["web1"])["domains"]
    assert info["run"]["unfinished"] is True


def test_a_silent_guest_is_shut_down_whatever_is_on_record_and_that_is_told(
    run: Run, hypervisor: FakeHypervisor, leased: FakeDomain
) -> None:
    take_while_upgrading(run, hypervisor, leased)
    leased.agent.silent = True
    stopped = [run("domain_power", name="web1", state="stopped", run="run-b", check=check) for check in (True, False)]
    for told in stopped:
        assert told["changed"] is True
        assert "whether it still runs could not be seen" in str(told["warnings"])
    assert leased.state() is DomainState.SHUT_OFF


def test_an_agent_that_is_restarted_by_the_upgrade_is_asked_again(
    run: Run, hypervisor: FakeHypervisor, leased: FakeDomain
) -> None:
    take_while_upgrading(run, hypervisor, leased)
    leased.agent.silent = True
    hypervisor.clock.after(15, lambda: setattr(leased.agent, "silent", False))
    assert run("domain_power", name="web1", state="stopped", run="run-b")["error_code"] == "upgrade_running"


def test_without_an_upgrade_on_record_nobody_is_asked(run: Run, leased: FakeDomain) -> None:
    asked = len(leased.agent.requests)
    assert run("domain_power", name="web1", state="stopped", run="run-a")["changed"] is True
    assert len(leased.agent.requests) == asked


def test_a_hypervisor_that_was_rebooted_has_started_the_guest_itself(
    run: Run, leased: FakeDomain, store: Store
) -> None:
    with killed_in(leased, "start"):
        restart(run)
    text = store.path(leased.uuid).read_text(encoding="utf-8")
    boot = record_of(store, leased).steps[0].intent["hypervisor_boot_id"]
    store.path(leased.uuid).write_text(text.replace(boot, "another boot"), encoding="utf-8")
    leased.start()
    taken = run("guest_lease", name="web1", run="run-b", owner="root@b")
    assert (taken["taken_over"]["run"], taken["taken_over"]["silence"]) == ("run-a", None)
    done = restart(run, "b")
    assert (done["steps"], done["restarted"], done["before"]["pid"]) == (["wait_for_agent"], True, None)


# --- the upgrade ---------------------------------------------------------------------------------


class Upgrades:
    """Stands in for the guest: upgrades that come to what a test says, and what became of their journal."""

    def __init__(self) -> None:
        self.results: list[Upgraded | Underway | UpgradeFailed] = []
        self.began = 0
        self.forgotten: list[set[str] | None] = []

    def upgrade(self, *_given: object) -> Upgraded | Underway:
        self.began += 1
        result = self.results.pop(0)
        if isinstance(result, UpgradeFailed):
            raise result
        return result

    def forget(self, _guest: object, of_runs: Collection[str] | None = None) -> None:
        self.forgotten.append(None if of_runs is None else set(of_runs))


@pytest.fixture
def upgrades(monkeypatch: pytest.MonkeyPatch) -> Upgrades:
    upgrades = Upgrades()
    monkeypatch.setattr(_upgrade, "upgrade", upgrades.upgrade)
    monkeypatch.setattr(_upgrade, "forget", upgrades.forget)
    described: dict[str, Any] = {"config_files": ["/etc/app.dpkg-dist"], "finished": True}

    def describe(_guest: object, found: Upgraded, _unfinished: JobState) -> dict[str, Any]:
        return {"changed": True, "packages": [vars(change) for change in found.changes], **described}

    monkeypatch.setattr(guest_upgrade, "describe", describe)
    monkeypatch.setattr(guest_upgrade, "package_manager", lambda _agent, _name: guest_upgrade.Guest)
    monkeypatch.setattr(guest_upgrade.Guest, "name", "apt", raising=False)
    return upgrades


APP = PackageChange("app", "all", "1", "2")


def upgrade(run: Run, who: str = "a", **options: Any) -> dict[str, Any]:
    return run("guest_upgrade", name="web1", run=f"run-{who}", **options)


def test_the_result_is_on_record_before_the_journal_goes(
    run: Run, leased: FakeDomain, store: Store, upgrades: Upgrades
) -> None:
    upgrades.results += [Upgraded((APP,)), Upgraded()]
    with killed_in(_upgrade, "forget"):
        upgrade(run)
    assert steps(store, leased) == [("upgrade", "done", "run-a")]
    told = take(run, "b")["resumed"]
    assert (told["cut_off"], [change["name"] for change in told["packages"]]) == ("after the upgrade", ["app"])
    assert upgrade(run, "b")["packages"] == []
    assert upgrades.forgotten == [{"run-a"}, None]


def test_an_upgrade_that_is_followed_is_one_step(
    run: Run, leased: FakeDomain, store: Store, upgrades: Upgrades
) -> None:
    upgrades.results += [Underway(Progress(), 15), Underway(Progress(), 30), Upgraded((APP,))]
    assert [upgrade(run, interval=15)["finished"] for _look in range(3)] == [False, False, True]
    assert steps(store, leased) == [("upgrade", "done", "run-a")]


def test_an_upgrade_that_lost_its_run_is_the_next_ones_too(
    run: Run, leased: FakeDomain, store: Store, upgrades: Upgrades
) -> None:
    upgrades.results += [Underway(Progress(), 15), Upgraded((APP,))]
    upgrade(run, interval=15)
    assert take(run, "b")["resumed"]["cut_off"] == "during the upgrade"
    assert len(upgrade(run, "b")["packages"]) == 1
    assert steps(store, leased) == [("upgrade", "open", "run-a"), ("upgrade", "done", "run-b")]


def test_an_upgrade_that_failed_is_on_record_as_that(
    run: Run, leased: FakeDomain, store: Store, upgrades: Upgrades
) -> None:
    upgrades.results.append(UpgradeFailed("dpkg failed", remedy="Look."))
    assert upgrade(run)["error_code"] == "upgrade_failed"
    assert steps(store, leased) == [("upgrade", "failed", "run-a")]


def test_an_upgrade_needs_no_lease_where_nobody_has_one(
    run: Run, domain: FakeDomain, store: Store, upgrades: Upgrades
) -> None:
    upgrades.results += [Upgraded((APP,)), Upgraded()]
    assert upgrade(run)["packages"]
    assert store.read(domain.uuid) is None
    take(run, "b")
    assert upgrade(run)["error_code"] == "guest_leased"
    assert upgrade(run, "b")["packages"] == []


@pytest.mark.parametrize(
    ("left", "left_by", "goes"),
    [("ended 0", "run-a", True), ("ended 0", "run-b", False), ("running", "run-a", False), ("cut_off", "run-a", False)],
)
def test_only_a_journal_whose_result_is_on_record_goes(
    hypervisor: FakeHypervisor, left: str, left_by: str, goes: bool
) -> None:
    guest = UpgradingGuest(hypervisor.clock, left=left, left_by=left_by, duration=60)
    _upgrade.forget(guest.port, of_runs={"run-a", "run-c"})
    assert (guest.look.state is JobState.NONE) == goes


def test_what_several_runs_have_upgraded_is_told_once_in_the_end(
    run: Run, hypervisor: FakeHypervisor, leased: FakeDomain
) -> None:
    guest = UpgradingGuest(hypervisor.clock)
    leased.agent.program = guest.agent.program
    with killed_in(_upgrade, "forget"):
        upgrade(run)
    told, again = take(run, "b")["resumed"]["packages"], upgrade(run, "b")["packages"]
    assert [change["name"] for change in told] == ["bash", "libssl3"]
    assert again == []
    assert guest.look.state is JobState.NONE


class Boundaries:
    """Everything that a cycle changes on the hypervisor, in its order; the run dies at one of these, before or after.

    Records are written in two of them: their content, and their place.
    """

    def __init__(self, patch: pytest.MonkeyPatch, domain: FakeDomain) -> None:
        self.reached = 0
        self.dies_at: int | None = None
        for where, name in (
            (domain, "create_snapshot"),
            (domain, "shutdown"),
            (domain, "start"),
            (domain, "delete_snapshot"),
            (_upgrade, "upgrade"),
            (_upgrade, "forget"),
            (os, "fsync"),
            (Path, "replace"),
        ):
            patch.setattr(where, name, self._boundary(getattr(where, name)))

    def _boundary(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self._pass()
            result = real(*arguments, **options)
            self._pass()
            return result

        return call

    def _pass(self) -> None:
        self.reached += 1
        if self.reached == self.dies_at:
            raise Killed


def cycle(run: Run, who: str) -> dict[str, Any]:
    """What the role does of a guest, of which it has decided that it needs all of it; returns the whole result."""
    resumed = take(run, who)["resumed"] or {"packages": []}
    if resumed.get("restarting"):
        assert not restart(run, who).get("failed")
    for told in (snapshot(run, who), done := upgrade(run, who), power := restart(run, who)):
        assert not told.get("failed"), told
    run("guest_lease", name="web1", run=f"run-{who}", state="absent", outcome="upgraded")
    return {"packages": [*resumed["packages"], *done["packages"]], "restarted": power["restarted"]}


def test_a_run_that_dies_at_any_boundary_is_brought_to_its_end_by_the_next(
    run: Run, hypervisor: FakeHypervisor, domain: FakeDomain, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    boundaries = Boundaries(monkeypatch, domain)
    hypervisor.clock.advance(60)
    cycle_length = 0
    at = 0
    while at == 0 or at <= cycle_length:
        guest = UpgradingGuest(hypervisor.clock)
        domain.agent.program = with_boot_ids(domain, guest)
        hypervisor.clock.advance(3 * 3600)
        pid, boot_id = domain.pid, domain.boot_id
        domain.changes.clear()
        known = {found.name for found in domain.snapshots()}
        boundaries.reached, boundaries.dies_at = 0, at or None
        if at:
            with pytest.raises(Killed):
                cycle(run, "a")
            hypervisor.clock.advance(60)
            boundaries.dies_at = None
        where = f"killed at boundary {at} of {cycle_length}"
        record = store.read(domain.uuid)
        # Killed when all of it was over, the run has nothing to go on with.
        if record is None or record.ended is None or record.ended.run != "run-a" or at == 0:
            result = cycle(run, "b")
            assert {change["name"] for change in result["packages"]} == {"bash", "libssl3"}, where
            assert result["restarted"] is True, where
        cycle_length = cycle_length or boundaries.reached
        assert len({found.name for found in domain.snapshots()} - known) == 1, where
        assert (domain.changes.count("create_snapshot"), domain.changes.count("start")) == (1, 1), where
        assert (domain.pid != pid, domain.boot_id != boot_id, domain.agent.silent) == (True, True, False), where
        assert guest.packages == {"bash": "2", "libssl3": "2"}, where
        assert guest.kinds == ["upgrade"], where
        record = record_of(store, domain)
        assert (record.lease, record.unfinished, guest.look.state) == (None, False, JobState.NONE), where
        store.path(domain.uuid).unlink()
        at += 1
    assert cycle_length > 40  # or the boundaries are none


def with_boot_ids(domain: FakeDomain, guest: UpgradingGuest) -> Callable[[Call], Ending]:
    """The guest that is upgraded, in the domain that is restarted."""

    def program(call: Call) -> Ending:
        if call.command == ["cat", "/proc/sys/kernel/random/boot_id"]:
            return Ending(stdout=f"{domain.boot_id}\n".encode())
        return guest.agent.program(call)

    return program


def test_snapshots_of_others_are_none_of_the_run(run: Run, leased: FakeDomain) -> None:
    leased.add_snapshot("ours", f"{STAMP} by hand")
    made = snapshot(run)
    assert made["changed"] is True
    assert made["snapshot"]["name"] != "ours"


# --- a guest that is migrated ---------------------------------------------------------------------

URI = "qemu+tls://there/system"


@pytest.fixture
def there(hypervisor: FakeHypervisor) -> FakeHypervisor:
    return hypervisor.beside(URI)


def migrate(run: Run, who: str = "a", **options: Any) -> dict[str, Any]:
    return restart(run, who, **{"strategy": "migrate", "destinations": [URI], "storage": "trusted", **options})


def test_a_guest_that_was_migrated_is_on_record_as_gone(
    run: Run, hypervisor: FakeHypervisor, leased: FakeDomain, store: Store, there: FakeHypervisor
) -> None:
    boot_id = leased.boot_id
    predicted = migrate(run, check=True)
    done = migrate(run)
    for told in (predicted, done):
        assert told["migration"] == {"destination": URI, "came_back": False, "left_behind": []}
        assert (told["strategy"], told["steps"]) == ("migrate", ["migrate", "wait_for_agent"])
    assert done["diff"]["after"] == "running on another hypervisor\n"
    assert (done["after"]["pid"], done["after"]["boot_id"]) == (None, boot_id)
    assert steps(store, leased) == [("restart", "done", "run-a")]
    assert record_of(store, leased).went_to == URI
    assert (hypervisor.domains(), there.domain("web1").boot_id) == ([], boot_id)
    missing = run("domain_info", names=["web1"])
    assert (missing["error_code"], missing["evidence"]["moved_to"]) == ("domain_not_found", URI)
    assert f"has migrated 'web1' to {URI}" in missing["remedy"]


def test_the_run_goes_on_with_a_guest_that_was_migrated_where_it_is(
    run: Run, hypervisor: FakeHypervisor, leased: FakeDomain, store: Store, there: FakeHypervisor
) -> None:
    snapshot(run)
    migrate(run)
    left = {"name": "web1", "run": "run-a", "state": "absent", "outcome": "restarted"}
    assert run("guest_lease", **left)["error_code"] == "domain_not_found"
    record = run("guest_lease", uuid=leased.uuid, **left)["record"]
    assert (record["lease"], record["ended"]["outcome"]) == (None, "restarted")

    # As if on the other hypervisor, where nothing is on record.
    store.path(leased.uuid).unlink()
    there.remove("web1")
    hypervisor.add("web1")
    wrong = run("guest_lease", name="web1", run="run-a", owner="root@a", record={**record, "uuid": "u2"})
    assert (wrong["error_code"], "u2" in wrong["msg"]) == ("invalid_request", True)
    broken = run("guest_lease", name="web1", run="run-a", owner="root@a", record={"steps": []})
    assert (broken["error_code"], "no record of a guest" in broken["msg"]) == ("invalid_request", True)
    taken = run("guest_lease", name="web1", run="run-a", owner="root@a", record=record)
    assert (taken["record"]["steps"], taken["record"]["ended"]) == (record["steps"], None)
    assert taken["record"]["lease"]["run"] == "run-a"
    assert migrate(run)["steps"] == [], "it has been restarted by its migration"
    run("guest_lease", name="web1", run="run-a", state="absent", outcome="restarted")
    [info] = run("domain_info", names=["web1"])["domains"]
    assert info["run"]["way_back"]["snapshot"] == record["steps"][0]["intent"]["name"]


def test_work_that_is_on_record_where_a_guest_comes_to_goes_before_what_it_brings(
    run: Run, leased: FakeDomain, store: Store
) -> None:
    brought = run("guest_lease", name="web1", run="run-a", state="absent", outcome="restarted")["record"]
    take(run, "a")
    snapshot(run)
    here = steps(store, leased)
    run("guest_lease", name="web1", run="run-a", owner="root@a", record={**brought, "baseline": {"other": True}})
    assert (steps(store, leased), record_of(store, leased).baseline.get("other")) == (here, None)


def test_what_is_on_record_of_a_guest_that_had_left_gives_way_to_what_it_brings_when_it_is_back(
    run: Run, hypervisor: FakeHypervisor, leased: FakeDomain, store: Store, there: FakeHypervisor
) -> None:
    with killed_in(_migrate._Journey, "see_that_it_answers"):
        migrate(run)
    stale = store.path(leased.uuid).read_text()
    # As if on the other hypervisor, by a run that has begun there and brings it back.
    store.path(leased.uuid).unlink()
    there.remove("web1")
    hypervisor.add("web1")
    take(run, "c")
    snapshot(run, "c")
    migrate(run, "c")
    left = {"name": "web1", "uuid": leased.uuid, "run": "run-c", "state": "absent", "outcome": "restarted"}
    brought = run("guest_lease", **left)["record"]

    store.path(leased.uuid).write_text(stale)
    there.remove("web1")
    hypervisor.add("web1")
    refused = run("guest_lease", name="web1", run="run-d", owner="root@d")
    assert refused["error_code"] == "guest_leased", "its run may be alive, and nobody has brought the guest"
    taken = run("guest_lease", name="web1", run="run-c", owner="root@c", record=brought)
    assert taken["record"]["steps"] == brought["steps"]
    assert steps(store, leased) == [("snapshot", "done", "run-c"), ("restart", "done", "run-c")]


@pytest.mark.parametrize("strategy", ["migrate", "save_restore"])
def test_a_guest_that_does_not_boot_is_not_restarted_once_more_for_its_packages(
    run: Run, leased: FakeDomain, upgrades: Upgrades, there: FakeHypervisor, strategy: str
) -> None:
    gentle: dict[str, Any] = {"strategy": strategy, "come_back": True}
    with killed_in(leased, "migrate" if strategy == "migrate" else "save"):
        migrate(run, **gentle)
    take(run, "b")
    assert migrate(run, "b", **gentle)["changed"]
    upgrades.results.append(Upgraded((PackageChange("app", "all", "1", "2"),)))
    assert not run("guest_upgrade", name="web1", run="run-b").get("failed")
    again = migrate(run, "b", **gentle)
    assert (again["changed"], again["restarted"], again["steps"]) == (False, True, [])
    cycled = migrate(run, "b", strategy="power_cycle")
    assert (cycled["changed"], cycled["strategy"]) == (True, "power_cycle")
    assert there.domains() == []


def test_snapshots_are_known_again_to_whoever_works_on_the_guest_after_a_death(
    run: Run, leased: FakeDomain, there: FakeHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    leased.add_snapshot("mine", "my own")
    with monkeypatch.context() as patch, killed_in(leased, "migrate"):
        patch.setattr(_kept, "tell_again", lambda _domain: None)  # what was killed tidies up nothing
        migrate(run)
    assert leased.snapshots() == []
    take(run, "b")
    snapshot(run, "b", snapshot="new")
    assert {found.name for found in leased.snapshots()} == {"mine", "new"}
    assert there.domains() == []


def test_snapshots_that_libvirt_refuses_keep_nobody_from_what_needs_none(
    run: Run, leased: FakeDomain, there: FakeHypervisor, upgrades: Upgrades, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In a process that is a controller as well, as that of the tests may be, Ansible has warnings go there.
    warnings: list[str] = []
    monkeypatch.setattr(AnsibleModule, "warn", lambda _module, text: warnings.append(text))
    leased.add_snapshot("mine", "my own")
    with pytest.MonkeyPatch.context() as patch, killed_in(leased, "migrate"):
        patch.setattr(_kept, "tell_again", lambda _domain: None)
        migrate(run)
    leased.faults["redefine_snapshot"] = libvirt_failed("disk 'vdb' not found in domain")
    take(run, "b")
    for module, options in (("domain_snapshot", {}), ("domain_rollback", {"snapshot": "mine"})):
        refused = run(module, name="web1", run="run-b", **options)
        assert (refused["error_code"], "disk 'vdb' not found" in refused["msg"]) == ("snapshot_blocked", True)
    upgrades.results.append(Upgraded())
    for told in (
        run("guest_upgrade", name="web1", run="run-b"),
        migrate(run, "b", strategy="auto"),
    ):
        assert not told.get("failed"), told
        assert "disk 'vdb' not found" in warnings.pop()
    assert leased.metadata(_kept.NAMESPACE) is not None
    del leased.faults["redefine_snapshot"]
    assert snapshot(run, "b")["snapshot"]["name"] != "mine"
    assert "mine" in [found.name for found in leased.snapshots()]
    assert there.domains() == []


def test_a_guest_that_was_never_migrated_is_restarted_as_the_next_run_wants_it(
    run: Run, leased: FakeDomain, store: Store, there: FakeHypervisor
) -> None:
    with killed_in(leased, "migrate"):
        migrate(run)
    assert record_of(store, leased).went_to == URI
    take(run, "b")
    assert restart(run, "b")["strategy"] == "power_cycle"
    assert steps(store, leased) == [("restart", "open", "run-a"), ("restart", "done", "run-b")]
    assert record_of(store, leased).went_to is None
    assert there.domains() == []


def test_a_guest_that_came_back_before_the_run_died_is_proved(
    run: Run, hypervisor: FakeHypervisor, leased: FakeDomain, store: Store, there: FakeHypervisor
) -> None:
    boot_id = leased.boot_id
    with killed_in(_migrate._Journey, "prove"):
        migrate(run, come_back=True)
    take(run, "b")
    done = migrate(run, "b", come_back=True)
    assert (done["steps"], done["strategy"], done["after"]["boot_id"]) == (["wait_for_agent"], "migrate", boot_id)
    assert steps(store, leased) == [("restart", "done", "run-a")]
    assert (there.domains(), hypervisor.domain("web1").boot_id) == ([], boot_id)


def test_a_guest_that_was_away_when_the_run_died_is_told_of_and_can_be_worked_on_there(
    run: Run, hypervisor: FakeHypervisor, leased: FakeDomain, store: Store, there: FakeHypervisor
) -> None:
    leased.add_snapshot("mine", "my own")
    with pytest.MonkeyPatch.context() as patch, killed_in(_migrate._Journey, "_return"):
        patch.setattr(_kept, "tell_again", lambda _domain: None)  # what was killed tidies up nothing
        migrate(run, come_back=True)
    assert (hypervisor.domains(), there.domain("web1").snapshots()) == ([], [])
    assert run("domain_info", names=["web1"])["evidence"]["moved_to"] == URI
    assert steps(store, leased) == [("restart", "open", "run-a")]
    store.path(leased.uuid).unlink()  # as on the other hypervisor, where nothing is on record
    with _lease.working(there, there.domain("web1"), None, check=True):
        assert there.domain("web1").snapshots() == []
    with _lease.working(there, there.domain("web1"), None, check=False):
        assert [found.name for found in there.domain("web1").snapshots()] == ["mine"]


def test_a_guest_that_is_off_since_a_migration_was_cut_off_is_started_by_nobody(
    run: Run, leased: FakeDomain, store: Store, there: FakeHypervisor
) -> None:
    """It may have left, and run elsewhere on the same disks."""
    with killed_in(leased, "migrate"):
        migrate(run)
    leased.go_off()
    assert not record_of(store, leased).shut_down_by_us
    take(run, "b")
    for strategy in ("migrate", "save_restore", "power_cycle", "auto"):
        assert migrate(run, "b", strategy=strategy)["error_code"] == "domain_unsafe"
    [info] = run("domain_info", names=["web1"])["domains"]
    assert info["run"]["went_to"] == URI
    work: list[tuple[str, dict[str, Any]]] = [
        ("domain_power", {"state": "started"}),
        ("guest_repair", {"repairs": ["fsck"]}),
        ("domain_snapshot", {}),
        ("domain_rollback", {"snapshot": "mine"}),
    ]
    for module, options in work:
        for check in (True, False):
            refused = run(module, name="web1", run="run-b", **options, check=check)
            assert (refused["error_code"], refused["evidence"]["moved_to"]) == ("domain_unsafe", URI), module
            assert f"virsh -c {URI} list --all" in refused["remedy"]
    assert leased.state() is DomainState.SHUT_OFF
    assert there.domains() == []


def test_where_a_guest_may_have_gone_stays_known_to_the_runs_after_one_that_has_failed(
    run: Run, leased: FakeDomain, there: FakeHypervisor
) -> None:
    with killed_in(leased, "migrate"):
        migrate(run)
    leased.go_off()
    take(run, "b")
    run("guest_lease", name="web1", run="run-b", state="absent", outcome="failed")
    take(run, "c")
    assert run("domain_power", name="web1", state="started", run="run-c")["error_code"] == "domain_unsafe"
    leased.start()
    assert run("domain_power", name="web1", state="started", run="run-c")["changed"] is False
    assert there.domains() == []


def test_a_migration_that_cannot_come_back_is_on_record_with_where_the_guest_is(
    run: Run, leased: FakeDomain, store: Store, there: FakeHypervisor
) -> None:
    there.faults_on_arrival["migrate"] = libvirt_failed("no")
    refused = migrate(run, come_back=True)
    assert (refused["error_code"], refused["evidence"]["moved_to"]) == ("migrated_away", URI)
    assert steps(store, leased) == [("restart", "failed", "run-a")]
    assert record_of(store, leased).went_to == URI


@pytest.mark.usefixtures("leased", "there")
def test_what_a_guest_would_leave_behind_is_foreseen(run: Run) -> None:
    for back in (True, False):
        predicted = migrate(run, storage="copy", come_back=back, check=True)
        assert bool(predicted["migration"]["left_behind"]) is not back
    assert migrate(run, storage="copy")["migration"] == predicted["migration"]


def auto(run: Run, **options: Any) -> dict[str, Any]:
    return migrate(run, strategy="auto", **options)


@pytest.mark.usefixtures("there")
def test_a_migration_is_the_gentlest_of_all(run: Run, leased: FakeDomain) -> None:
    assert (auto(run, check=True)["strategy"], auto(run)["strategy"]) == ("migrate", "migrate")
    assert "save" not in leased.changes


@pytest.mark.usefixtures("leased")
def test_where_no_destination_is_open_the_guest_is_saved(run: Run, there: FakeHypervisor) -> None:
    there.available = 0
    for check in (True, False):
        told = auto(run, check=check)
        assert (told["strategy"], list(told["closed"])) == ("save_restore", ["migrate"])
        assert "MiB are free" in told["closed"]["migrate"]


def test_a_migration_that_fails_is_made_up_for_by_the_next_strategy(
    run: Run, leased: FakeDomain, store: Store, there: FakeHypervisor
) -> None:
    leased.migration_takes = 601
    leased.save_takes = 301
    told = auto(run)
    assert (told["strategy"], list(told["closed"])) == ("power_cycle", ["migrate", "save_restore"])
    assert "was not migrated" in told["closed"]["migrate"]
    assert steps(store, leased) == [("restart", status, "run-a") for status in ("failed", "failed", "done")]
    assert there.domains() == []


def test_without_destinations_no_migration_is_thought_of(run: Run, leased: FakeDomain) -> None:
    told = auto(run, destinations=[])
    assert (told["strategy"], told["closed"], leased.changes[0]) == ("save_restore", {}, "save")


@pytest.mark.usefixtures("leased")
def test_a_migration_that_is_wanted_needs_a_destination(run: Run) -> None:
    refused = migrate(run, destinations=[])
    assert (refused["error_code"], "no destination is given" in refused["msg"]) == ("migration_impossible", True)
