# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The modules with external snapshots, of a guest that no internal one fits, whatever dies on the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils import _external, _quiesce
from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._domain import DomainState
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    AgentSilent,
    DiskImageFailed,
    HypervisorUnavailable,
)
from ansible_collections.kvm.fleet.plugins.module_utils._store import Store, records_directory
from tests.unit.fake_hypervisor import libvirt_failed
from tests.unit.fake_images import FakeImages
from tests.unit.plugins.test_prune import DAY, has_gone
from tests.unit.plugins.test_rollback import units
from tests.unit.plugins.test_runs import killed_in, record_of, steps, take

if TYPE_CHECKING:
    from tests.unit.fake_hypervisor import FakeDomain, FakeHypervisor
    from tests.unit.plugins.conftest import Run

BEFORE, AFTER = [["before"], ["before"]], [["before", "after"], ["before", "after"]]


@pytest.fixture
def store(hypervisor: FakeHypervisor) -> Store:
    return Store(records_directory(hypervisor.uri))


@pytest.fixture
def mixed(domain: FakeDomain, monkeypatch: pytest.MonkeyPatch) -> FakeDomain:
    """A guest with a qcow2 and a raw disk, with room beside them."""
    monkeypatch.setattr(
        "ansible_collections.kvm.fleet.plugins.module_utils._external.free_bytes", lambda _path: 1 << 40
    )
    domain.disk_formats = ("qcow2", "raw")
    domain.write("before")
    units(domain)
    return domain


def snapshot(call: Run, name: str = "new", **options: Any) -> dict[str, Any]:
    return call("domain_snapshot", name="web1", snapshot=name, **options)


def names(domain: FakeDomain) -> list[str]:
    return sorted(one.name for one in domain.snapshots())


# --- domain_snapshot -----------------------------------------------------------------------------


def test_what_would_be_done_is_done_and_told(run: Run, mixed: FakeDomain) -> None:
    predicted = snapshot(run, way="external", check=True)
    assert mixed.changes == []
    done = snapshot(run, way="external")
    assert [predicted[key] for key in ("changed", "way", "closed", "restarted")] == [
        done[key] for key in ("changed", "way", "closed", "restarted")
    ]
    made = done["snapshot"]
    assert (made["way"], made["kind"], made["state"]) == ("external", "external", "disk-snapshot")
    assert [Path(file).exists() for file in made["files"]] == [True, True]
    assert made["size"] > 0
    [listed] = run("domain_info", names=["web1"])["domains"][0]["snapshots"]
    assert {**listed, "size": made["size"]} == made
    assert snapshot(run)["changed"] is False


@pytest.mark.parametrize(
    ("way", "changes"), [("online", "create_external_snapshot"), ("auto", "create_external_snapshot")]
)
def test_ram_is_stored_where_that_can_be_and_the_closed_ways_are_told(
    run: Run, mixed: FakeDomain, way: str, changes: str
) -> None:
    done = snapshot(run, way=way)
    assert (done["way"], mixed.changes) == ("external_live", [changes])
    assert done["closed"] == {"live": "disk vdb of domain 'web1' is raw, which cannot hold a snapshot"}


def test_a_guest_that_cannot_be_frozen_is_shut_down_only_by_auto(run: Run, mixed: FakeDomain) -> None:
    mixed.devices = "<hostdev type='pci'/>"
    mixed.agent.blocked.add("guest-fsfreeze-thaw")
    refused = snapshot(run)
    assert refused["error_code"] == "snapshot_impossible"
    assert set(refused["evidence"]["closed"]) == {"live", "external_live", "external"}
    assert mixed.changes == []
    done = snapshot(run, way="auto")
    assert (done["way"], done["restarted"], done["snapshot"]["kind"]) == ("offline", True, "external")
    assert mixed.changes == ["shutdown by acpi", "create_external_snapshot", "start"]


@pytest.mark.parametrize(
    ("way", "state", "changes"),
    [
        ("external", DomainState.RUNNING, ["destroy", "start"]),
        ("external_live", DomainState.RUNNING, ["destroy", "restore"]),
        ("offline", DomainState.SHUT_OFF, ["destroy"]),
    ],
)
def test_a_guest_that_ran_runs_when_it_is_reverted(
    run: Run, mixed: FakeDomain, way: str, state: DomainState, changes: list[str]
) -> None:
    snapshot(run, way=way)
    mixed.write("after")
    mixed.changes.clear()
    assert snapshot(run, state="reverted")["changed"] is True
    assert (mixed.read(), mixed.state(), mixed.changes) == (BEFORE, state, changes)


def test_no_layers_are_made_where_nobody_could_revert_or_delete_them(
    run: Run, mixed: FakeDomain, hypervisor: FakeHypervisor
) -> None:
    hypervisor.images.there = False
    refused = snapshot(run, way="auto")
    assert (refused["error_code"], mixed.changes) == ("snapshot_impossible", [])
    assert "qemu-img is not installed on the hypervisor of domain 'web1'" in refused["msg"]
    assert "install it there" in refused["remedy"]


def test_a_deletion_loses_nothing_and_one_that_was_begun_is_told_of(
    run: Run, mixed: FakeDomain, hypervisor: FakeHypervisor
) -> None:
    snapshot(run, way="external")
    mixed.write("after")
    mixed.be(DomainState.SHUT_OFF)
    hypervisor.images.faults["commit"] = DiskImageFailed("no space left", remedy="Free some.")
    assert snapshot(run, state="absent")["error_code"] == "disk_image_failed"
    assert snapshot(run, state="reverted")["error_code"] == "snapshot_blocked"
    assert snapshot(run)["error_code"] == "snapshot_blocked"
    assert snapshot(run, state="absent")["changed"] is True
    assert (mixed.read(), names(mixed)) == (AFTER, [])


@pytest.mark.parametrize("check", [True, False])
def test_a_deletion_that_cannot_be_is_refused_in_check_mode_too(
    run: Run, mixed: FakeDomain, hypervisor: FakeHypervisor, check: bool
) -> None:
    [file, _raw] = snapshot(run, way="external")["snapshot"]["files"]
    hypervisor.images.put_snapshot(file, "inside")
    mixed.changes.clear()
    assert snapshot(run, state="absent", check=check)["error_code"] == "snapshot_blocked"
    assert mixed.changes == []


def test_a_run_that_died_as_it_deleted_its_snapshot_is_gone_on_with_by_a_new_one(
    run: Run, store: Store, mixed: FakeDomain, hypervisor: FakeHypervisor
) -> None:
    take(run, "a")
    old = run("domain_snapshot", name="web1", way="external", run="run-a")["snapshot"]["name"]
    mixed.write("after")
    with killed_in(mixed, "pivot"):
        snapshot(run, old, state="absent", run="run-a")
    hypervisor.clock.advance(60)
    take(run, "b")
    mixed.changes.clear()
    predicted = run("domain_snapshot", name="web1", way="external", run="run-b", check=True)
    assert (mixed.changes, names(mixed)) == ([], [old])
    done = run("domain_snapshot", name="web1", way="external", run="run-b")
    new = done["snapshot"]["name"]
    assert [predicted[key] for key in ("changed", "way", "diff")] == [done[key] for key in ("changed", "way", "diff")]
    assert (predicted["snapshot"]["name"], new != old, done["diff"]["after"]) == (new, True, f"{new}\n")
    assert (mixed.read(), names(mixed)) == (AFTER, [new])
    assert run("domain_snapshot", name="web1", way="external", run="run-b")["changed"] is False
    assert steps(store, mixed)[-1] == ("snapshot", "done", "run-b")


def test_a_deletion_that_cannot_be_gone_on_with_is_refused_before_a_new_snapshot(
    run: Run, mixed: FakeDomain, hypervisor: FakeHypervisor
) -> None:
    take(run, "a")
    made = run("domain_snapshot", name="web1", way="external", run="run-a")["snapshot"]
    with killed_in(mixed, "pivot"):
        snapshot(run, made["name"], state="absent", run="run-a")
    hypervisor.images.put_snapshot(made["files"][0], "inside")
    mixed.changes.clear()
    for check in (True, False):
        refused = run("domain_snapshot", name="web1", way="external", run="run-a", check=check)
        assert (refused["error_code"], mixed.changes) == ("snapshot_blocked", [])


# --- frozen --------------------------------------------------------------------------------------


def is_frozen(domain: FakeDomain) -> bool:
    return domain.agent.frozen


def test_a_run_that_died_with_its_guest_frozen_has_it_thawed_by_the_next_one(
    run: Run, store: Store, mixed: FakeDomain
) -> None:
    take(run, "a")
    with killed_in(_quiesce, "thaw", after=True):
        snapshot(run, way="external", run="run-a")
    mixed.agent.exchange('{"execute": "guest-fsfreeze-freeze"}', 10)
    assert steps(store, mixed)[-1][:2] == ("snapshot", "open")
    assert run("guest_exec", name="web1", argv=["true"])["error_code"] == "guest_frozen"
    run("guest_lease", name="web1", run="run-b", owner="root@b", take_over="run-a", check=True)
    assert is_frozen(mixed)
    take(run, "b")
    assert not is_frozen(mixed)
    assert snapshot(run, way="external", run="run-b")["changed"] is False


def test_a_layer_that_a_run_has_left_is_removed_by_the_next_one_and_none_that_is_used(
    run: Run, mixed: FakeDomain, hypervisor: FakeHypervisor
) -> None:
    take(run, "a")
    with killed_in(mixed, "_freeze", after=False):
        snapshot(run, way="external", run="run-a")
    left = hypervisor.image_directory / "web1.qcow2.kvm-fleet-20260301-020000"
    hypervisor.images.put_layer(str(left), *mixed.on_images()["vda"])
    take(run, "b")
    hypervisor.images.open.add(str(left))
    unsafe = snapshot(run, way="external", run="run-b")
    assert (unsafe["error_code"], unsafe["evidence"]) == ("domain_unsafe", {"file": str(left)})
    hypervisor.images.open.clear()
    assert snapshot(run, way="external", run="run-b")["changed"] is True
    assert [one.layers[0].file for one in mixed.snapshots()] == [str(left)]


def let_go(run: Run, who: str = "a") -> None:
    assert "msg" not in run("guest_lease", name="web1", run=f"run-{who}", state="absent", outcome="failed")


@pytest.fixture
def blind(run: Run, mixed: FakeDomain, hypervisor: FakeHypervisor) -> str:
    """The layer that a guest writes to without libvirt's knowledge, which died meanwhile. The run has told of that."""
    layer = str(hypervisor.image_directory / "web1.qcow2.kvm-fleet-20260301-020000")

    def die(_xml: str, **_options: bool) -> None:
        hypervisor.images.put_layer(layer, *mixed.on_images()["vda"])
        hypervisor.images.open.add(layer)
        raise HypervisorUnavailable("End of file while reading data", remedy="Start libvirt.")

    take(run, "a")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixed, "create_external_snapshot", die)
        assert snapshot(run, way="external", run="run-a")["error_code"] == "domain_unsafe"
    let_go(run)
    return layer


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    "asked",
    [
        ("domain_snapshot", {"way": "external"}),
        ("domain_snapshot", {"way": "offline"}),
        ("domain_power", {"state": "restarted"}),
        ("domain_power", {"state": "stopped"}),
    ],
)
def test_a_layer_that_libvirt_does_not_know_of_is_not_forgotten_once_it_is_told_of(
    run: Run, mixed: FakeDomain, blind: str, asked: tuple[str, dict[str, Any]], check: bool
) -> None:
    take(run, "b")
    module, options = asked
    unsafe = run(module, name="web1", run="run-b", check=check, **options)
    assert (unsafe["error_code"], unsafe["evidence"]) == ("domain_unsafe", {"file": blind})
    assert (mixed.changes, mixed.state()) == ([], DomainState.RUNNING)


def test_a_layer_that_nothing_was_written_to_is_removed_before_a_restart(
    run: Run, store: Store, mixed: FakeDomain, hypervisor: FakeHypervisor, blind: str
) -> None:
    take(run, "b")
    hypervisor.images.open.clear()
    assert run("domain_power", name="web1", state="restarted", run="run-b", check=True)["changed"] is True
    assert Path(blind).exists()
    assert run("domain_power", name="web1", state="restarted", run="run-b")["changed"] is True
    assert not Path(blind).exists()
    assert record_of(store, mixed).files_begun == ()


def test_a_snapshot_that_failed_and_left_nothing_is_no_work_for_the_next_run(
    run: Run, store: Store, mixed: FakeDomain
) -> None:
    take(run, "a")
    mixed.libvirt_dies_frozen = True
    assert snapshot(run, way="external", run="run-a")["error_code"] == "hypervisor_unavailable"
    let_go(run)
    assert record_of(store, mixed).unfinished is False


@pytest.fixture
def left_frozen(run: Run, mixed: FakeDomain) -> Iterator[pytest.MonkeyPatch]:
    """The guest could not be thawed after its snapshot, and that was told. Undo this, and it can be."""

    def get_no_answer(_agent: GuestAgent) -> None:
        raise AgentSilent("Guest agent is not responding", remedy="See whether it runs.")

    take(run, "a")
    mixed.libvirt_dies_frozen = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GuestAgent, "thaw", get_no_answer)
        assert snapshot(run, way="external", run="run-a")["error_code"] == "guest_frozen"
        let_go(run)
        yield patch


def test_a_guest_that_could_not_be_thawed_is_by_the_next_run_though_that_was_told(
    run: Run, store: Store, mixed: FakeDomain, left_frozen: pytest.MonkeyPatch
) -> None:
    left_frozen.undo()
    taken = take(run, "b")
    assert not is_frozen(mixed)
    assert record_of(store, mixed).may_be_frozen is False
    assert taken["record"]["steps"][-1]["result"]["freezes"] is False


def test_a_run_that_cannot_thaw_its_guest_does_not_keep_the_lease_of_it(
    run: Run, store: Store, mixed: FakeDomain, left_frozen: pytest.MonkeyPatch
) -> None:
    refused = run("guest_lease", name="web1", run="run-b", owner="root@b")
    assert refused["error_code"] == "guest_frozen"
    record = record_of(store, mixed)
    assert (record.lease, record.unfinished, record.may_be_frozen) == (None, True, True)
    left_frozen.undo()
    take(run, "c")
    assert not is_frozen(mixed)


def test_a_guest_that_somebody_else_has_frozen_is_refused_and_left_so(run: Run, mixed: FakeDomain) -> None:
    take(run, "a")
    mixed.agent.frozen = True
    for check in (True, False):
        refused = snapshot(run, way="external", run="run-a", check=check)
        assert (refused["error_code"], refused["transient"]) == ("guest_frozen", True)
    assert (mixed.agent.frozen, mixed.changes) == (True, [])


# --- domain_rollback -----------------------------------------------------------------------------


@pytest.mark.parametrize(("way", "started", "clock_set"), [("external", True, None), ("external_live", False, True)])
def test_a_rollback_brings_the_guest_back_and_up(
    run: Run, mixed: FakeDomain, way: str, started: bool, clock_set: bool | None
) -> None:
    snapshot(run, way=way)
    mixed.write("after")
    predicted = run("domain_rollback", name="web1", snapshot="new", check=True)
    assert (predicted["started"], mixed.read()) == (started, AFTER)
    done = run("domain_rollback", name="web1", snapshot="new")
    assert (done["reverted"], done["started"], done["clock_set"]) == (True, started, clock_set)
    assert (mixed.read(), mixed.state()) == (BEFORE, DomainState.RUNNING)


@pytest.mark.parametrize("check", [True, False])
def test_a_guest_is_not_touched_for_a_rollback_that_cannot_be(run: Run, mixed: FakeDomain, check: bool) -> None:
    snapshot(run, "older", way="external")
    snapshot(run, "newer", way="external")
    mixed.changes.clear()
    refused = run("domain_rollback", name="web1", snapshot="older", check=check)
    assert (refused["error_code"], refused["evidence"]) == ("snapshot_blocked", {"snapshots": ["newer"]})
    assert mixed.changes == []


@pytest.mark.parametrize("where", [(FakeImages, "create_layer"), (_external, "_give_away"), (_external, "_sync")])
def test_a_rollback_that_died_is_gone_on_with(
    run: Run, store: Store, mixed: FakeDomain, where: tuple[Any, str]
) -> None:
    take(run, "a")
    snapshot(run, way="external", run="run-a")
    mixed.write("after")
    with killed_in(*where):
        run("domain_rollback", name="web1", snapshot="new", run="run-a")
    # What came of the guest is on record from the moment on at which it is touched.
    assert (("rollback", "open") in [step[:2] for step in steps(store, mixed)]) == ("destroy" in mixed.changes)
    run("guest_lease", name="web1", run="run-b", owner="root@b", take_over="run-a", rolls_back=True)
    done = run("domain_rollback", name="web1", snapshot="new", run="run-b")
    assert (done["reverted"], done["started"], mixed.read()) == (True, True, BEFORE)


def test_a_rollback_that_fails_before_the_guest_is_touched_locks_nobody_out(
    run: Run, store: Store, mixed: FakeDomain, hypervisor: FakeHypervisor
) -> None:
    take(run, "a")
    snapshot(run, way="external", run="run-a")
    mixed.changes.clear()
    hypervisor.images.faults["create_layer"] = DiskImageFailed("no space left", remedy="Free some.")
    failed = run("domain_rollback", name="web1", snapshot="new", run="run-a")
    assert (failed["error_code"], mixed.changes) == ("disk_image_failed", [])
    assert "The guest is running." in failed["remedy"]
    assert record_of(store, mixed).rollback_is_open is False
    run("guest_lease", name="web1", run="run-a", state="absent", outcome="rollback_failed")
    take(run, "b")


@pytest.mark.parametrize("check", [True, False])
def test_a_rollback_without_its_ram_is_refused(run: Run, store: Store, mixed: FakeDomain, check: bool) -> None:
    take(run, "a")
    snapshot(run, way="external_live", run="run-a")
    Path(mixed.snapshots()[0].memory_file or "").unlink()
    mixed.changes.clear()
    refused = run("domain_rollback", name="web1", snapshot="new", run="run-a", check=check)
    assert (refused["error_code"], mixed.changes) == ("snapshot_blocked", [])
    assert record_of(store, mixed).rollback_is_open is False


def test_a_guest_whose_ram_is_refused_is_started_from_its_disks_and_locked_for_nobody(
    run: Run, store: Store, mixed: FakeDomain
) -> None:
    take(run, "a")
    snapshot(run, way="external_live", run="run-a")
    mixed.write("after")
    mixed.faults["restore"] = libvirt_failed("internal error: unknown machine type")
    told = run("domain_rollback", name="web1", snapshot="new", run="run-a")
    assert (told["error_code"], told["evidence"]["started_anew"]) == ("saved_state_refused", True)
    assert (mixed.read(), mixed.state()) == (BEFORE, DomainState.RUNNING)
    run("guest_lease", name="web1", run="run-a", state="absent", outcome="rollback_failed")
    assert record_of(store, mixed).unfinished is False
    take(run, "b")
    mixed.write("after")
    assert snapshot(run, state="reverted", run="run-b")["error_code"] == "saved_state_refused"
    assert (mixed.read(), mixed.state()) == (BEFORE, DomainState.RUNNING)


def test_a_revert_that_fails_says_how_the_guest_is_left_and_is_on_record(
    run: Run, store: Store, mixed: FakeDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(run, "a")
    snapshot(run, way="external", run="run-a")
    mixed.write("after")
    [made] = mixed.snapshots()
    replace = Path.replace

    def fail_at_the_second(file: Path, to: Path) -> Path:
        if str(to) == made.layers[1].file:
            raise OSError(28, "No space left on device")
        return replace(file, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail_at_the_second)
        failed = snapshot(run, state="reverted", run="run-a")
    assert failed["error_code"] == "disk_image_failed"
    assert mixed.read() == [["before"], ["before", "after"]]
    assert "The guest is off, and its disks may or may not be those of the snapshot." in failed["remedy"]
    assert record_of(store, mixed).rollback_is_open is True
    assert snapshot(run, state="reverted", run="run-a")["changed"] is True
    assert (mixed.read(), mixed.state(), record_of(store, mixed).steps) == (BEFORE, DomainState.RUNNING, ())


# --- domain_snapshot_prune -----------------------------------------------------------------------


def test_old_ones_are_committed_from_the_oldest_on_and_the_newest_stays(
    run: Run, mixed: FakeDomain, hypervisor: FakeHypervisor
) -> None:
    for name in ("oldest", "older", "newest"):
        snapshot(run, name, way="external")
        mixed.write(name)
        hypervisor.clock.advance(5 * DAY)
    has_gone(run, "upgraded")
    predicted = run("domain_snapshot_prune", name="web1", keep=1, check=True)
    assert [one["name"] for one in predicted["pruned"]] == ["older", "oldest"]
    assert all(one["size"] > 0 for one in predicted["pruned"])
    written = mixed.read()
    done = run("domain_snapshot_prune", name="web1", keep=1)
    assert done["pruned"] == predicted["pruned"]
    assert done["freed"] is not None
    assert (names(mixed), mixed.read()) == (["newest"], written)


def test_one_whose_deletion_was_begun_is_no_way_back_that_is_kept(
    run: Run, mixed: FakeDomain, hypervisor: FakeHypervisor
) -> None:
    snapshot(run, way="external")
    hypervisor.clock.advance(1)
    has_gone(run, "upgraded")
    with killed_in(mixed, "pivot"):
        snapshot(run, state="absent")
    done = run("domain_snapshot_prune", name="web1", keep=5)
    assert [one["reason"] for one in done["pruned"]] == ["its deletion was begun"]
    assert names(mixed) == []


@pytest.mark.parametrize("limits", [{"keep": 1}, {"keep": 1, "budget": "1"}])
def test_one_whose_deletion_was_begun_takes_no_place_of_those_that_are_kept(
    run: Run, mixed: FakeDomain, hypervisor: FakeHypervisor, limits: dict[str, Any]
) -> None:
    for name in ("older", "newest"):
        snapshot(run, name, way="external")
        hypervisor.clock.advance(10 * DAY)
    has_gone(run, "upgraded")
    with killed_in(mixed, "pivot"):
        snapshot(run, "newest", state="absent")
    done = run("domain_snapshot_prune", name="web1", **limits)
    assert ([one["name"] for one in done["pruned"]], names(mixed)) == (["newest"], ["older"])


def test_a_deletion_that_was_begun_is_ended_before_the_next_one(
    run: Run, mixed: FakeDomain, hypervisor: FakeHypervisor
) -> None:
    for name in ("oldest", "newer", "newest"):
        snapshot(run, name, way="external")
        hypervisor.clock.advance(10 * DAY)
    has_gone(run, "upgraded")
    with killed_in(mixed, "pivot"):
        snapshot(run, "newest", state="absent")
    assert mixed.jobs
    done = run("domain_snapshot_prune", name="web1", keep=1)
    assert ({one["name"] for one in done["pruned"]}, names(mixed)) == ({"oldest", "newest"}, ["newer"])
