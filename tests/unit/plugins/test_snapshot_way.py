# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""domain_snapshot of a guest that is shut down for it, whatever dies on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._domain import DomainState
from ansible_collections.kvm.fleet.plugins.module_utils._errors import LibvirtFailed
from ansible_collections.kvm.fleet.plugins.module_utils._store import Store, records_directory
from tests.unit.plugins.test_runs import Killed, killed_in, steps, take

if TYPE_CHECKING:
    from tests.unit.fake_hypervisor import FakeDomain, FakeHypervisor
    from tests.unit.plugins.conftest import Run

CYCLE = ["shutdown by acpi", "create_snapshot", "start"]


@pytest.fixture
def store(hypervisor: FakeHypervisor) -> Store:
    return Store(records_directory(hypervisor.uri))


@pytest.fixture
def leased(domain: FakeDomain, run: Run) -> FakeDomain:
    take(run, "a")
    return domain


def test_the_guest_is_off_in_its_snapshot_and_on_a_new_process_after(run: Run, domain: FakeDomain) -> None:
    pid, boot_id = domain.pid, domain.boot_id
    predicted = run("domain_snapshot", name="web1", snapshot="new", way="offline", check=True)
    assert (predicted["changed"], predicted["way"], domain.changes) == (True, "offline", [])
    done = run("domain_snapshot", name="web1", snapshot="new", way="offline")
    assert domain.changes == CYCLE
    assert (done["way"], done["snapshot"]["state"], domain.state()) == ("offline", "shutoff", DomainState.RUNNING)
    assert domain.pid != pid
    assert domain.boot_id != boot_id
    assert (predicted["restarted"], predicted["forced"]) == (done["restarted"], done["forced"]) == (True, False)


def test_a_plug_that_was_pulled_for_it_is_told(run: Run, domain: FakeDomain) -> None:
    domain.habits.shuts_down_after = None
    assert run("domain_snapshot", name="web1", way="offline", force=True)["forced"] is True


def test_a_guest_that_is_off_is_not_started_for_it(run: Run, domain: FakeDomain) -> None:
    domain.be(DomainState.SHUT_OFF)
    done = run("domain_snapshot", name="web1", way="auto")
    assert (done["way"], done["restarted"]) == ("offline", False)
    assert domain.changes == ["create_snapshot"]


def test_what_is_there_has_no_way(run: Run, domain: FakeDomain) -> None:
    made = run("domain_snapshot", name="web1", snapshot="new")
    assert (made["way"], made["restarted"], made["forced"]) == ("live", False, False)
    found = run("domain_snapshot", name="web1", snapshot="new", way="offline")
    assert (found["way"], found["restarted"], found["forced"]) == (None, False, False)
    assert domain.changes == ["create_snapshot"]


@pytest.mark.parametrize("check", [True, False])
def test_a_guest_that_would_not_come_back_is_not_shut_down(run: Run, domain: FakeDomain, check: bool) -> None:
    domain.agent.silent = True
    assert run("domain_snapshot", name="web1", way="offline", check=check)["error_code"] == "agent_silent"
    domain.agent.silent, domain.persistent = False, False
    assert run("domain_snapshot", name="web1", way="offline", check=check)["error_code"] == "domain_unsafe"
    assert domain.changes == []


def test_a_snapshot_that_fails_leaves_the_guest_running(run: Run, store: Store, leased: FakeDomain) -> None:
    leased.faults["create_snapshot"] = LibvirtFailed("no space left", remedy="Free some.")
    failed = run("domain_snapshot", name="web1", way="offline", run="run-a")
    assert failed["error_code"] == "libvirt_failed"
    assert leased.state() is DomainState.RUNNING
    assert steps(store, leased)[-1][:2] == ("snapshot", "failed")


def test_a_restart_after_it_is_the_one_that_was_done(run: Run, store: Store, leased: FakeDomain) -> None:
    assert run("domain_snapshot", name="web1", way="offline", run="run-a")["changed"]
    assert [step[:2] for step in steps(store, leased)] == [("restart", "done"), ("snapshot", "done")]
    restarted = run("domain_power", name="web1", state="restarted", run="run-a")
    assert (restarted["restarted"], restarted["steps"], leased.changes) == (True, [], CYCLE)


@pytest.mark.parametrize("where", ["create_snapshot", "start"])
def test_a_run_that_dies_while_the_guest_is_off_is_gone_on_with(run: Run, leased: FakeDomain, where: str) -> None:
    def die(_xml: str) -> None:
        raise Killed

    with killed_in(leased, "start"), pytest.MonkeyPatch.context() as patch:
        if where == "create_snapshot":  # what is dead does not start the guest either
            patch.setattr(leased, "create_snapshot", die)
        run("domain_snapshot", name="web1", snapshot="new", way="offline", run="run-a")
    take(run, "b")
    assert run("domain_power", name="web1", state="restarted", run="run-b")["steps"] == ["start", "wait_for_agent"]
    again = run("domain_snapshot", name="web1", snapshot="new", way="offline", run="run-b")
    assert again["snapshot"]["name"] == "new"
    assert again["changed"] is (where == "create_snapshot")
    assert leased.state() is DomainState.RUNNING
