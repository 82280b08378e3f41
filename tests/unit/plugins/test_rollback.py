# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest is brought back to a snapshot, and up, whatever dies on the way."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._domain import DomainState
from ansible_collections.kvm.fleet.plugins.module_utils._errors import HypervisorUnavailable, LibvirtFailed
from ansible_collections.kvm.fleet.plugins.module_utils._observe import observe
from ansible_collections.kvm.fleet.plugins.module_utils._rollback import loss
from ansible_collections.kvm.fleet.plugins.module_utils._snapshot_xml import STAMP
from ansible_collections.kvm.fleet.plugins.module_utils._store import Store, records_directory
from tests.unit.fake_agent import Call, Ending
from tests.unit.fake_clock import START
from tests.unit.fake_hypervisor import libvirt_failed
from tests.unit.plugins.test_runs import killed_in

if TYPE_CHECKING:
    from ansible_collections.kvm.fleet.plugins.module_utils._record import Record
    from tests.unit.fake_hypervisor import FakeDomain, FakeHypervisor
    from tests.unit.plugins.conftest import Run

NAME = "pre-upgrade"


@pytest.fixture
def live(hypervisor: FakeHypervisor, domain: FakeDomain) -> FakeDomain:
    """A guest with a live snapshot of an hour ago, and no failed units."""
    domain.add_snapshot(NAME, f"{STAMP} x")
    hypervisor.clock.advance(3600)
    units(domain)
    return domain


@pytest.fixture
def offline(hypervisor: FakeHypervisor, domain: FakeDomain) -> FakeDomain:
    """Likewise with a snapshot that was made while the guest was off, and a QEMU process since."""
    domain.be(DomainState.SHUT_OFF)
    domain.add_snapshot(NAME, f"{STAMP} x")
    hypervisor.clock.advance(1)
    domain.start()
    hypervisor.clock.advance(3599)
    domain.changes.clear()
    units(domain)
    return domain


def units(domain: FakeDomain, *failed: str) -> None:
    """The units of the guest that have failed."""
    ordinary = domain.agent.program

    def program(call: Call) -> Ending:
        if any("list-units" in word for word in call.command):
            return Ending(stdout="".join(f"{unit}\n" for unit in failed).encode())
        return ordinary(call)

    domain.agent.program = program


def back(call: Run, **options: Any) -> dict[str, Any]:
    return call("domain_rollback", name="web1", snapshot=NAME, **options)


def take(run: Run, who: str, **options: Any) -> dict[str, Any]:
    return run("guest_lease", name="web1", run=f"run-{who}", owner=f"root@{who}", take_over="run-a", **options)


def record(hypervisor: FakeHypervisor, domain: FakeDomain) -> Record:
    found = Store(records_directory(hypervisor.uri)).read(domain.uuid)
    assert found is not None
    return found


def steps(hypervisor: FakeHypervisor, domain: FakeDomain) -> list[tuple[str, str]]:
    return [(step.name.value, step.status.value) for step in record(hypervisor, domain).steps]


# --- what it does --------------------------------------------------------------------------------


def test_a_live_snapshot_brings_back_what_ran_with_the_right_time(run: Run, live: FakeDomain) -> None:
    boot_id, pid = live.boot_id, live.pid
    done = back(run)
    assert live.changes == [f"revert_to_snapshot {NAME}"]
    assert (live.boot_id, live.state()) == (boot_id, DomainState.RUNNING)
    assert live.pid != pid
    assert live.agent.clock_offset == pytest.approx(0, abs=1)
    assert (done["changed"], done["reverted"], done["started"], done["clock_set"]) == (True, True, False, True)
    assert (done["snapshot"], done["failed_units"]) == (NAME, [])


def test_a_guest_that_was_off_in_the_snapshot_is_started(run: Run, offline: FakeDomain) -> None:
    boot_id = offline.boot_id
    done = back(run)
    assert offline.changes == [f"revert_to_snapshot {NAME}", "start"]
    assert offline.boot_id != boot_id
    assert (done["reverted"], done["started"], done["clock_set"]) == (True, True, None)


def test_check_mode_tells_what_would_be_lost_and_changes_nothing(run: Run, offline: FakeDomain) -> None:
    offline.written = 70 << 20
    predicted = back(run, check=True)
    assert offline.changes == []
    assert predicted["lost"] == {"since": "2026-03-01T02:00:00Z", "seconds": 3600, "written": 70 << 20}
    done = back(run)
    for told in ("changed", "snapshot", "lost", "reverted", "started", "diff"):
        assert predicted[told] == done[told]


def test_what_a_process_has_written_that_is_older_than_the_snapshot_does_not_count(
    hypervisor: FakeHypervisor, live: FakeDomain
) -> None:
    live.written = 70 << 20
    observed = observe(hypervisor, live)
    [snapshot] = observed.own_snapshots
    assert observed.process is not None
    for started, written in ((START - timedelta(seconds=1), None), (START + timedelta(seconds=1), 70 << 20)):
        looked = replace(observed, process=replace(observed.process, started=started))
        assert loss(hypervisor, live, looked, snapshot).written == written


def test_all_counts_that_was_written_since_a_snapshot_of_a_guest_that_was_off(
    hypervisor: FakeHypervisor, offline: FakeDomain
) -> None:
    """libvirt and the kernel tell whole seconds, so a process may seem to be older than it."""
    offline.written = 70 << 20
    observed = observe(hypervisor, offline)
    [snapshot] = observed.own_snapshots
    assert observed.process is not None
    looked = replace(observed, process=replace(observed.process, started=START - timedelta(seconds=1)))
    assert loss(hypervisor, offline, looked, snapshot).written == 70 << 20


def test_a_guest_without_an_agent_is_rolled_back_all_the_same(run: Run, live: FakeDomain) -> None:
    live.agent_channel = False
    done = back(run, agent_timeout=0)
    assert (done["failed_units"], done["clock_set"]) == (None, None)
    assert live.changes == [f"revert_to_snapshot {NAME}"]


def test_an_agent_that_sets_no_clock_and_runs_no_commands_is_no_failure(run: Run, live: FakeDomain) -> None:
    live.agent.blocked |= {"guest-exec", "guest-set-time"}
    done = back(run)
    assert (done["changed"], done["failed_units"], done["clock_set"]) == (True, None, False)


@pytest.mark.parametrize(
    ("before", "failed"), [(None, False), (["app.service", "old.service"], False), (["old.service"], True), ([], True)]
)
def test_units_that_had_not_failed_before_make_it_fail(
    run: Run, live: FakeDomain, before: list[str] | None, failed: bool
) -> None:
    units(live, "app.service", "old.service")
    done = back(run, **({} if before is None else {"failed_units": before}))
    assert done.get("failed", False) is failed
    if failed:
        assert done["error_code"] == "proof_failed"
        assert "app.service" in done["evidence"]["failed_units"]
    else:
        assert done["failed_units"] == ["app.service", "old.service"]


# --- what it refuses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "code"),
    [({"snapshot": "gone"}, "snapshot_not_found"), ({"snapshot": "theirs"}, "snapshot_not_ours")],
)
def test_only_a_snapshot_of_ours_is_gone_back_to(
    run: Run, live: FakeDomain, options: dict[str, str], code: str
) -> None:
    live.add_snapshot("theirs", "")
    for check in (True, False):
        assert run("domain_rollback", name="web1", check=check, **options)["error_code"] == code
    assert live.changes == []


def test_a_managed_save_image_would_bring_back_the_wrong_ram(run: Run, offline: FakeDomain) -> None:
    offline.managed_save = True
    assert back(run)["error_code"] == "domain_unsafe"
    assert back(run, agent_timeout=-1)["error_code"] == "invalid_request"
    assert offline.changes == []


@pytest.mark.parametrize("check", [True, False])
def test_a_snapshot_is_not_reverted_to_with_one_either(run: Run, offline: FakeDomain, check: bool) -> None:
    offline.managed_save = True
    refused = run("domain_snapshot", name="web1", snapshot=NAME, state="reverted", check=check)
    assert refused["error_code"] == "domain_unsafe"
    assert "virsh managedsave-remove" in refused["remedy"]
    assert offline.changes == []


def test_a_guest_that_does_not_answer_is_told(run: Run, offline: FakeDomain) -> None:
    offline.habits.boots_in = 500
    failed = back(run, agent_timeout=100)
    assert failed["error_code"] == "agent_silent"


# --- runs ----------------------------------------------------------------------------------------


@pytest.fixture
def upgraded(run: Run, offline: FakeDomain) -> FakeDomain:
    """A guest under the lease of run-a, which has made a snapshot by another name, after the first."""
    assert not take(run, "a", baseline={"failed_units": ["old.service"]}).get("failed")
    assert run("domain_snapshot", name="web1", run="run-a", snapshot="of-run-a")["changed"]
    offline.changes.clear()
    return offline


def test_a_rollback_undoes_what_is_on_record_and_the_way_back_stays(
    run: Run, hypervisor: FakeHypervisor, upgraded: FakeDomain
) -> None:
    assert steps(hypervisor, upgraded) == [("snapshot", "done")]
    assert back(run, run="run-a")["changed"]
    assert steps(hypervisor, upgraded) == []
    [told] = run("domain_info", names=["web1"])["domains"]
    assert told["run"]["way_back"] == {"snapshot": NAME, "failed_units": None}
    ended = run("guest_lease", name="web1", run="run-a", state="absent", outcome="rolled_back")
    assert ended["record"]["ended"]["outcome"] == "rolled_back"


@pytest.mark.parametrize("outcome", ["failed", "refused", "upgraded", "rolled_back"])
def test_the_way_back_is_known_to_the_runs_after(run: Run, upgraded: FakeDomain, outcome: str) -> None:
    run("guest_lease", name="web1", run="run-a", state="absent", outcome=outcome)
    for who in ("b", "c"):
        assert not take(run, who).get("failed")
        [told] = run("domain_info", names=[upgraded.name])["domains"]
        assert told["run"]["way_back"] == {"snapshot": "of-run-a", "failed_units": ["old.service"]}
        run("guest_lease", name="web1", run=f"run-{who}", state="absent", outcome="refused")


def test_a_run_that_dies_before_the_revert_is_gone_on_with_from_there(
    run: Run, hypervisor: FakeHypervisor, upgraded: FakeDomain
) -> None:
    with killed_in(upgraded, "revert_to_snapshot"):
        back(run, run="run-a", failed_units=[])
    assert steps(hypervisor, upgraded) == [("snapshot", "done"), ("rollback", "open")]
    assert record(hypervisor, upgraded).unfinished

    refused = take(run, "b")
    assert (refused["error_code"], refused["evidence"]) == ("rollback_unfinished", {"snapshot": NAME})
    assert not take(run, "b", rolls_back=True).get("failed")
    [told] = run("domain_info", names=["web1"])["domains"]
    assert told["run"]["way_back"] == {"snapshot": NAME, "failed_units": []}
    assert back(run, run="run-b")["reverted"] is True
    assert upgraded.changes == [f"revert_to_snapshot {NAME}", "start"]
    assert steps(hypervisor, upgraded) == []


@pytest.mark.parametrize("after", [False, True])
def test_a_run_that_dies_after_the_revert_does_not_lose_more(
    run: Run, hypervisor: FakeHypervisor, upgraded: FakeDomain, after: bool
) -> None:
    with killed_in(upgraded, "start", after=after):
        back(run, run="run-a")
    assert steps(hypervisor, upgraded) == [("rollback", "open")]
    take(run, "b", rolls_back=True)
    predicted = back(run, run="run-b", check=True)
    done = back(run, run="run-b")
    assert (predicted["reverted"], done["reverted"], done["started"]) == (False, False, not after)
    assert [change for change in upgraded.changes if change.startswith("revert")] == [f"revert_to_snapshot {NAME}"]
    assert upgraded.state() is DomainState.RUNNING
    assert steps(hypervisor, upgraded) == []


def test_one_that_is_to_go_elsewhere_than_the_run_that_died_begins_anew(
    run: Run, hypervisor: FakeHypervisor, upgraded: FakeDomain
) -> None:
    with killed_in(upgraded, "start"):
        back(run, run="run-a")
    take(run, "b", rolls_back=True)
    done = run("domain_rollback", name="web1", snapshot="of-run-a", run="run-b")
    assert (done["reverted"], upgraded.changes[-1]) == (True, "revert_to_snapshot of-run-a")
    assert steps(hypervisor, upgraded) == []


def test_a_rollback_that_failed_was_told_and_others_may_begin_anew(
    run: Run, hypervisor: FakeHypervisor, upgraded: FakeDomain
) -> None:
    upgraded.faults["start"] = LibvirtFailed("no such bridge", remedy="See.")
    assert back(run, run="run-a")["error_code"] == "start_failed"
    assert steps(hypervisor, upgraded) == [("rollback", "failed")]
    run("guest_lease", name="web1", run="run-a", state="absent", outcome="rollback_failed")
    assert not record(hypervisor, upgraded).unfinished
    assert not take(run, "b").get("failed")


def test_a_revert_that_fails_is_left_open_and_tells_how_the_guest_is(
    run: Run, hypervisor: FakeHypervisor, upgraded: FakeDomain
) -> None:
    upgraded.passing_faults["revert_to_snapshot"] = LibvirtFailed("it is in use", remedy="See.")
    failed = back(run, run="run-a")
    assert (failed["error_code"], failed["msg"]) == ("libvirt_failed", "it is in use")
    assert failed["remedy"] == "See. The guest is running. Run kvm.fleet.rollback again to bring it to the snapshot."
    assert steps(hypervisor, upgraded) == [("snapshot", "done"), ("rollback", "open")]
    run("guest_lease", name="web1", run="run-a", state="absent", outcome="rollback_failed")
    assert record(hypervisor, upgraded).unfinished
    assert take(run, "b")["error_code"] == "rollback_unfinished"
    take(run, "b", rolls_back=True)
    assert back(run, run="run-b")["reverted"] is True


@pytest.mark.parametrize(
    ("libvirt_is_back", "told"),
    [(True, ("The guest is off", "'virsh start web1'")), (False, ("Nobody can tell", "'virsh domstate web1'"))],
)
def test_a_revert_that_leaves_the_guest_off_tells_how_to_bring_it_back(
    run: Run, upgraded: FakeDomain, monkeypatch: pytest.MonkeyPatch, libvirt_is_back: bool, told: tuple[str, ...]
) -> None:
    def end_and_fail(_name: str) -> None:
        upgraded.go_off()
        if not libvirt_is_back:
            upgraded.faults["state"] = libvirt_failed("no libvirt")
        raise HypervisorUnavailable("the connection to libvirt broke", remedy="Start libvirt.")

    monkeypatch.setattr(upgraded, "revert_to_snapshot", end_and_fail)
    remedy = back(run, run="run-a")["remedy"]
    assert all(words in remedy for words in told)
