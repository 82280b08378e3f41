# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshots: whether one can be made, and whose they are, over trees of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._domain import DomainState, SnapshotRecord
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    FleetError,
    InvalidRequest,
    ProofFailed,
    SnapshotImpossible,
    SnapshotNotFound,
    SnapshotNotOurs,
)
from ansible_collections.kvm.fleet.plugins.module_utils._observe import Observation, observe
from ansible_collections.kvm.fleet.plugins.module_utils._snapshot import (
    create,
    creation_needed,
    default_name,
    delete,
    find_own,
    free_bytes,
    require_own,
    revert,
)
from ansible_collections.kvm.fleet.plugins.module_utils._snapshot_xml import STAMP
from tests.unit.fake_clock import START
from tests.unit.fake_hypervisor import FakeDomain, FakeHypervisor

MIB = 1024 * 1024


@pytest.fixture
def domain(hypervisor: FakeHypervisor) -> FakeDomain:
    return hypervisor.add("web1")


@pytest.fixture
def look(hypervisor: FakeHypervisor, domain: FakeDomain) -> Callable[[], Observation]:
    return lambda: observe(hypervisor, domain)


Look = Callable[[], Observation]


def grow_tree(domain: FakeDomain) -> None:
    """Ours and others' in one tree: two branches below 'root', the current one ends in 'theirs-deep'."""
    domain.add_snapshot("root", f"{STAMP} x")
    domain.add_snapshot("ours-left", f"{STAMP} x")
    domain.add_snapshot("theirs-left", "made by hand")
    domain.revert_to_snapshot("root")
    domain.add_snapshot("theirs-right", "made by hand")
    domain.add_snapshot("ours-right", f"{STAMP} x")
    domain.add_snapshot("theirs-deep", "")


OURS, THEIRS = ("root", "ours-left", "ours-right"), ("theirs-left", "theirs-right", "theirs-deep")


# --- whose they are ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OURS)
def test_our_snapshots_are_found_anywhere_in_the_tree(domain: FakeDomain, look: Look, name: str) -> None:
    grow_tree(domain)
    assert require_own(look(), name).name == name
    found = find_own(look(), name)
    assert found is not None
    assert found.name == name
    assert creation_needed(look(), name, 0) is False


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize(
    "ask",
    [require_own, find_own, lambda observed, name: creation_needed(observed, name, 0)],
    ids=["require", "find", "create"],
)
def test_a_snapshot_of_somebody_else_is_refused_wherever_it_is(
    domain: FakeDomain, look: Look, name: str, ask: Callable[[Observation, str], object]
) -> None:
    grow_tree(domain)
    with pytest.raises(SnapshotNotOurs) as raised:
        ask(look(), name)
    assert raised.value.message == f"snapshot {name!r} of domain 'web1' was not made by kvm.fleet"


def test_a_name_is_matched_exactly(domain: FakeDomain, look: Look) -> None:
    grow_tree(domain)
    assert find_own(look(), "ours") is None
    assert find_own(look(), "Root") is None
    assert creation_needed(look(), "ours", 0)


def test_a_missing_snapshot_is_said_with_those_there_are(domain: FakeDomain, look: Look) -> None:
    grow_tree(domain)
    with pytest.raises(SnapshotNotFound) as raised:
        require_own(look(), "gone")
    assert raised.value.message == "domain 'web1' has no snapshot named 'gone'"
    assert raised.value.evidence == {"snapshots": ["ours-left", "ours-right", "root"]}


# --- whether one can be made ---------------------------------------------------------------------


def test_an_impossible_name_is_refused_first(look: Look) -> None:
    with pytest.raises(InvalidRequest):
        creation_needed(look(), "a/b", 0)


def raw_disk(domain: FakeDomain) -> None:
    domain.disk_formats = ("qcow2", "raw")


def no_disk(domain: FakeDomain) -> None:
    domain.disk_formats = ()


def uefi(domain: FakeDomain) -> None:
    domain.loader = "<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>"


@pytest.mark.parametrize(
    ("arrange", "message"),
    [
        (raw_disk, "disk vdb of domain 'web1' is raw, which cannot hold a snapshot"),
        (no_disk, "domain 'web1' has no writable disk that could hold a snapshot"),
        (uefi, "domain 'web1' boots from UEFI firmware, which internal snapshots do not cover"),
    ],
)
@pytest.mark.parametrize("state", [DomainState.RUNNING, DomainState.SHUT_OFF])
def test_a_domain_that_cannot_have_one_is_refused_with_the_cause(
    domain: FakeDomain, look: Look, arrange: Callable[[FakeDomain], None], message: str, state: DomainState
) -> None:
    arrange(domain)
    domain.be(state)
    with pytest.raises(SnapshotImpossible) as raised:
        creation_needed(look(), "new", 0)
    assert raised.value.message == message


@pytest.mark.parametrize(
    ("state", "free"),
    [(DomainState.RUNNING, 512 * MIB), (DomainState.SHUT_OFF, 0), (DomainState.CRASHED, 0)],
)
def test_room_for_the_ram_is_needed_only_while_there_is_ram(
    domain: FakeDomain, look: Look, state: DomainState, free: int
) -> None:
    domain.be(state)
    assert creation_needed(look(), "new", 512 * MIB, lambda _path: free)


@pytest.mark.parametrize("state", [DomainState.RUNNING, DomainState.PAUSED])
def test_too_little_room_for_the_ram_is_refused(
    hypervisor: FakeHypervisor, domain: FakeDomain, look: Look, state: DomainState
) -> None:
    domain.be(state)
    room = {str(hypervisor.images / "web1.qcow2"): 512 * MIB - 1}
    with pytest.raises(SnapshotImpossible) as raised:
        creation_needed(look(), "new", 512 * MIB, room.__getitem__)
    assert raised.value.message == (
        f"a live snapshot of domain 'web1' may write 512 MiB of RAM beside {hypervisor.images}/web1.qcow2, "
        "where 511 MiB are free"
    )
    assert raised.value.evidence == {"needed_bytes": 512 * MIB, "free_bytes": 512 * MIB - 1}


def test_room_that_cannot_be_measured_is_no_reason_to_refuse(look: Look) -> None:
    """libvirt itself says so when there is none; an image may be readable for QEMU's user only."""
    assert free_bytes("/nonexistent") is None
    assert creation_needed(look(), "new", 512 * MIB, lambda _path: None)


def test_room_is_measured_where_the_disk_is(hypervisor: FakeHypervisor) -> None:
    assert (free_bytes(str(hypervisor.images)) or 0) > 0


# --- making one ----------------------------------------------------------------------------------


def test_the_default_name_tells_when() -> None:
    assert default_name(START) == "pre-upgrade-20260301-020000"


def test_a_snapshot_is_made_with_our_stamp_below_the_current_one(domain: FakeDomain, look: Look) -> None:
    grow_tree(domain)
    made = create(domain, "new <&>", "before the upgrade")
    assert made == SnapshotRecord(
        "new <&>", f"{STAMP} before the upgrade", int(START.timestamp()), "running", current=True
    )
    assert domain.parent_of("new <&>") == "theirs-deep"
    assert require_own(look(), "new <&>") == made


def test_a_snapshot_that_libvirt_does_not_list_is_not_believed_in(
    domain: FakeDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(domain, "create_snapshot", lambda _xml: None)
    with pytest.raises(ProofFailed, match=r"libvirt made snapshot 'new' of domain 'web1' and does not list it"):
        create(domain, "new", "x")


def test_an_error_of_libvirt_is_passed_on(domain: FakeDomain) -> None:
    domain.add_snapshot("new", "")
    with pytest.raises(FleetError, match="already exists"):
        create(domain, "new", "x")


# --- reverting and deleting ----------------------------------------------------------------------


def test_reverting_is_proved_by_the_current_snapshot(domain: FakeDomain, monkeypatch: pytest.MonkeyPatch) -> None:
    grow_tree(domain)
    revert(domain, "ours-left")
    assert [snapshot.name for snapshot in domain.snapshots() if snapshot.current] == ["ours-left"]
    monkeypatch.setattr(domain, "revert_to_snapshot", lambda _name: None)
    with pytest.raises(ProofFailed, match=r"reverted domain 'web1' to snapshot 'root' and does not call it current"):
        revert(domain, "root")


def test_deleting_is_proved_by_the_list_and_keeps_the_others(
    domain: FakeDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow_tree(domain)
    delete(domain, "root")
    assert {snapshot.name for snapshot in domain.snapshots()} == {*OURS, *THEIRS} - {"root"}
    monkeypatch.setattr(domain, "delete_snapshot", lambda _name: None)
    with pytest.raises(ProofFailed, match=r"deleted snapshot 'ours-left' of domain 'web1' and still lists it"):
        delete(domain, "ours-left")
