# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One run at a time has a guest, and says so on the hypervisor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._clock import Clock
from ansible_collections.kvm.fleet.plugins.module_utils._store import Store, records_directory
from tests.unit.fake_hypervisor import FakeDomain, FakeHypervisor
from tests.unit.plugins.conftest import Run


@pytest.fixture
def store(hypervisor: FakeHypervisor) -> Store:
    return Store(records_directory(hypervisor.uri))


def files(store: Store) -> dict[str, bytes]:
    """Everything that is kept of any run."""
    found = store.directory.rglob("*") if store.directory.exists() else ()
    return {path.name: path.read_bytes() for path in found}


def take(run: Run, who: str = "a", **options: Any) -> dict[str, Any]:
    return run("guest_lease", name="web1", run=f"run-{who}", owner=f"root@{who}", **options)


def let_go(run: Run, who: str = "a", outcome: str = "upgraded", **options: Any) -> dict[str, Any]:
    return run("guest_lease", name="web1", run=f"run-{who}", state="absent", outcome=outcome, **options)


def info(run: Run) -> dict[str, Any] | None:
    found: dict[str, Any] | None = run("domain_info", names=["web1"])["domains"][0]["run"]
    return found


def test_a_guest_is_taken_renewed_and_let_go(run: Run, domain: FakeDomain, store: Store) -> None:
    taken, renewed, released, again = take(run), take(run), let_go(run), let_go(run)
    assert [result["changed"] for result in (taken, renewed, released, again)] == [True, False, True, False]
    assert (taken["resumed"], taken["taken_over"]) == (None, None)
    assert taken["record"]["baseline"]["qemu"]["pid"] == domain.pid
    ended = {"run": "run-a", "at": "2026-03-01T02:00:00Z", "outcome": "upgraded", "error": None}
    assert (released["record"]["lease"], released["record"]["ended"]) == (None, ended)
    assert again["record"] == released["record"]
    assert store.read(domain.uuid) is not None
    assert not store.is_locked(domain.uuid)


def test_a_guest_of_another_run_is_refused_by_name(run: Run, hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    take(run, "a")
    hypervisor.clock.advance(60)
    for check in (True, False):
        refused = take(run, "b", check=check)
        assert (refused["error_code"], refused["transient"]) == ("guest_leased", True)
        assert "run run-a, which root@a took at 2026-03-01T02:00:00Z; it was last heard of 60 s ago" in refused["msg"]
    assert let_go(run, "b")["error_code"] == "lease_lost"
    assert domain.changes == []


def test_a_refusal_names_what_its_reader_can_set(
    run: Run, hypervisor: FakeHypervisor, domain: FakeDomain, store: Store
) -> None:
    take(run, "a")
    told = "before (agent_take_over: run-a)."
    assert told in take(run, "b", take_over_setting="agent_take_over")["remedy"]
    with store.locked(domain.uuid, hypervisor.clock, 0):
        assert told in take(run, "b", take_over_setting="agent_take_over")["remedy"]


@pytest.mark.usefixtures("domain")
def test_a_stale_lease_is_taken_over_and_that_is_said(run: Run, hypervisor: FakeHypervisor) -> None:
    take(run, "a", ttl=100)
    hypervisor.clock.advance(101)
    taken = take(run, "b")
    assert taken["taken_over"] == {"run": "run-a", "owner": "root@a", "taken": "2026-03-01T02:00:00Z", "silence": 101.0}
    assert let_go(run, "a")["error_code"] == "lease_lost"


@pytest.mark.usefixtures("domain")
def test_a_young_lease_of_a_dead_run_is_taken_over_by_its_name(run: Run) -> None:
    take(run, "a")
    assert take(run, "b", take_over="run-z")["error_code"] == "guest_leased"
    assert take(run, "b", take_over="run-a")["taken_over"]["run"] == "run-a"
    assert take(run, "c", take_over="run-a")["error_code"] == "guest_leased"


def test_a_lease_whose_module_is_at_work_is_nobody_elses_however_old(
    run: Run, hypervisor: FakeHypervisor, domain: FakeDomain, store: Store
) -> None:
    take(run, "a", ttl=100)
    hypervisor.clock.advance(1000)
    clock: Clock = hypervisor.clock
    with store.locked(domain.uuid, clock):
        told = info(run)
        refused = [take(run, "b", take_over="run-a", check=check) for check in (True, False)]
    assert [result["error_code"] for result in refused] == ["guest_leased"] * 2
    assert "a task of this collection works on it at this moment" in refused[0]["msg"]
    assert told is not None
    assert told["live"] is True


def test_a_guest_that_a_module_of_no_run_works_on_is_refused(
    run: Run, hypervisor: FakeHypervisor, domain: FakeDomain, store: Store
) -> None:
    clock: Clock = hypervisor.clock
    with store.locked(domain.uuid, clock):
        assert take(run)["msg"] == "guest 'web1' is busy: a task of this collection works on it at this moment"


@pytest.mark.parametrize("state", ["present", "absent"])
def test_check_mode_says_what_it_would_do_and_writes_nothing(
    run: Run, domain: FakeDomain, store: Store, state: str
) -> None:
    if state == "absent":
        take(run)
    before = files(store)
    act = take if state == "present" else let_go
    predicted = act(run, check=True)
    assert files(store) == before
    done = act(run)
    assert predicted == done
    assert domain.changes == []


@pytest.mark.usefixtures("domain")
def test_domain_info_tells_who_has_a_guest(run: Run, hypervisor: FakeHypervisor) -> None:
    assert info(run) is None
    take(run)
    hypervisor.clock.advance(3599)
    lease = {"run": "run-a", "owner": "root@a", "taken": "2026-03-01T02:00:00Z", "silence": 3599.0}
    nothing_yet: dict[str, Any] = {
        "unfinished": False,
        "shut_down": False,
        "went_to": None,
        "steps": [],
        "ended": None,
        "way_back": None,
        "problem": None,
    }
    assert info(run) == {"lease": lease, "live": True, **nothing_yet}
    hypervisor.clock.advance(1)
    assert info(run) == {"lease": {**lease, "silence": 3600.0}, "live": False, **nothing_yet}
    let_go(run, outcome="failed", error={"msg": "no room"})
    told = info(run)
    assert told is not None
    assert (told["lease"], told["live"], told["ended"]["outcome"]) == (None, False, "failed")
    assert told["ended"]["error"] == {"msg": "no room"}


def test_a_damaged_record_is_refused_and_hides_no_other_guest(run: Run, domain: FakeDomain, store: Store) -> None:
    take(run)
    store.path(domain.uuid).write_text("{", encoding="utf-8")
    assert [take(run)["error_code"], let_go(run)["error_code"]] == ["record_damaged"] * 2
    told = info(run)
    assert told is not None
    assert (told["problem"]["error_code"], told["live"]) == ("record_damaged", False)
    assert str(store.path(domain.uuid)) in told["problem"]["msg"]
    assert store.path(domain.uuid).read_text(encoding="utf-8") == "{"


@pytest.mark.usefixtures("domain")
def test_a_place_that_cannot_be_written_to_is_an_error_of_its_own(run: Run, store: Store) -> None:
    Path(os.environ["XDG_STATE_HOME"]).touch()
    refused = take(run)
    assert (refused["error_code"], refused["evidence"]["file"].startswith(str(store.directory))) == (
        "record_unavailable",
        True,
    )


@pytest.mark.usefixtures("domain")
@pytest.mark.parametrize("fault", [{"owner": "a\nb"}, {"ttl": 0}, {"run": ""}])
def test_what_cannot_be_meant_is_refused(run: Run, store: Store, fault: dict[str, Any]) -> None:
    given = {"name": "web1", "run": "run-a", "owner": "root@a", **fault}
    assert run("guest_lease", **given)["error_code"] == "invalid_request"
    assert files(store) == {}
