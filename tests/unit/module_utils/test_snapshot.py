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
    GuestFrozen,
    InvalidRequest,
    ProofFailed,
    SnapshotImpossible,
    SnapshotNotFound,
    SnapshotNotOurs,
)
from ansible_collections.kvm.fleet.plugins.module_utils._external import Wanted
from ansible_collections.kvm.fleet.plugins.module_utils._observe import Observation, observe
from ansible_collections.kvm.fleet.plugins.module_utils._qemu_img import free_bytes
from ansible_collections.kvm.fleet.plugins.module_utils._record import Facts
from ansible_collections.kvm.fleet.plugins.module_utils._snapshot import (
    choose_way,
    create,
    creation_needed,
    default_name,
    delete,
    find_own,
    require_own,
    revert,
)
from ansible_collections.kvm.fleet.plugins.module_utils._snapshot_policy import Choice, Way
from ansible_collections.kvm.fleet.plugins.module_utils._snapshot_xml import STAMP
from tests.unit.fake_clock import START
from tests.unit.fake_hypervisor import FakeDomain, FakeHypervisor

MIB = 1024 * 1024
INSIDE = Choice(Way.LIVE, layers=False)


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
    assert creation_needed(look(), name) is False


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize(
    "ask",
    [require_own, find_own, creation_needed],
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
    assert creation_needed(look(), "ours")


def test_a_missing_snapshot_is_said_with_those_there_are(domain: FakeDomain, look: Look) -> None:
    grow_tree(domain)
    with pytest.raises(SnapshotNotFound) as raised:
        require_own(look(), "gone")
    assert raised.value.message == "domain 'web1' has no snapshot named 'gone'"
    assert raised.value.evidence == {"snapshots": ["ours-left", "ours-right", "root"]}


# --- whether one can be made ---------------------------------------------------------------------


def test_an_impossible_name_is_refused_first(look: Look) -> None:
    with pytest.raises(InvalidRequest):
        creation_needed(look(), "a/b")


def test_what_decides_about_the_way_is_read_from_the_domain(
    hypervisor: FakeHypervisor, domain: FakeDomain, look: Look
) -> None:
    free = {str(hypervisor.image_directory / f"web1.{kind}"): (512 + 64) * MIB - 1 for kind in ("qcow2", "raw")}

    def chosen(asked: str) -> tuple[Way, bool]:
        choice = choose_way(hypervisor, domain, look(), asked, free.__getitem__)
        return choice.way, choice.layers

    assert chosen("auto") == (Way.OFFLINE, False)
    domain.memory = 512 * MIB - 1
    assert chosen("auto") == (Way.LIVE, False)
    domain.be(DomainState.SHUT_OFF)
    domain.memory = 512 * MIB
    assert chosen("live") == (Way.OFFLINE, False)
    domain.disk_formats = ("qcow2", "raw")
    with pytest.raises(SnapshotImpossible, match=r"disk vdb of domain 'web1' is raw, .* need 2048 MiB"):
        chosen("auto")
    free = dict.fromkeys(free, 2048 * MIB)
    assert chosen("auto") == (Way.OFFLINE, True)
    domain.loader = (
        "<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader><nvram format='qcow2'>/v.fd</nvram>"
    )
    domain.be(DomainState.RUNNING)
    with pytest.raises(SnapshotImpossible, match="UEFI variables"):
        chosen("online")
    domain.be(DomainState.SHUT_OFF)
    domain.loader = "<loader type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>"
    with pytest.raises(SnapshotImpossible, match="does not tell while it is off"):
        chosen("auto")
    domain.be(DomainState.RUNNING)
    domain.loader = ""
    hypervisor.layers_known = False
    with pytest.raises(SnapshotImpossible, match="capabilities"):
        chosen("external")


def test_the_agent_is_asked_only_where_file_systems_are_to_be_frozen(
    hypervisor: FakeHypervisor, domain: FakeDomain, look: Look
) -> None:
    domain.agent.blocked.add("guest-fsfreeze-freeze")
    assert choose_way(hypervisor, domain, look(), "auto").way is Way.LIVE
    assert domain.agent.requests == []
    domain.devices = "<hostdev type='pci'/>"
    assert choose_way(hypervisor, domain, look(), "auto").way is Way.OFFLINE
    with pytest.raises(SnapshotImpossible, match=r"does not allow guest-fsfreeze-freeze"):
        choose_way(hypervisor, domain, look(), "online")
    domain.agent.blocked.clear()
    assert choose_way(hypervisor, domain, look(), "auto").way is Way.EXTERNAL
    domain.agent.frozen = True
    with pytest.raises(GuestFrozen):
        choose_way(hypervisor, domain, look(), "auto")


def test_room_that_cannot_be_measured_is_no_reason_to_refuse() -> None:
    """libvirt itself says so when there is none; an image may be readable for QEMU's user only."""
    assert free_bytes("/nonexistent") is None


def test_room_is_measured_where_the_disk_is(hypervisor: FakeHypervisor) -> None:
    assert (free_bytes(str(hypervisor.image_directory)) or 0) > 0


# --- making one ----------------------------------------------------------------------------------


def no_layers(layers: Facts) -> None:
    pytest.fail(f"an internal snapshot gets layers: {layers}")


def test_the_default_name_tells_when() -> None:
    assert default_name(START) == "pre-upgrade-20260301-020000"


def test_a_snapshot_is_made_with_our_stamp_below_the_current_one(
    hypervisor: FakeHypervisor, domain: FakeDomain, look: Look
) -> None:
    grow_tree(domain)
    made = create(hypervisor, domain, Wanted("new <&>", "before the upgrade", ram=True), INSIDE, no_layers)
    assert made == SnapshotRecord(
        "new <&>", f"{STAMP} before the upgrade", int(START.timestamp()), "running", current=True, parent="theirs-deep"
    )
    assert domain.parent_of("new <&>") == "theirs-deep"
    assert require_own(look(), "new <&>") == made


def test_a_snapshot_that_libvirt_does_not_list_is_not_believed_in(
    hypervisor: FakeHypervisor, domain: FakeDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(domain, "create_snapshot", lambda _xml: None)
    with pytest.raises(ProofFailed, match=r"libvirt made snapshot 'new' of domain 'web1' and does not list it"):
        create(hypervisor, domain, Wanted("new", "x", ram=True), INSIDE, no_layers)


def test_an_error_of_libvirt_is_passed_on(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    domain.add_snapshot("new", "")
    with pytest.raises(FleetError, match="already exists"):
        create(hypervisor, domain, Wanted("new", "x", ram=True), INSIDE, no_layers)


# --- reverting and deleting ----------------------------------------------------------------------


def test_reverting_is_proved_by_the_current_snapshot(
    hypervisor: FakeHypervisor, domain: FakeDomain, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow_tree(domain)
    revert(hypervisor, domain, require_own(look(), "ours-left"), lambda: None)
    assert [snapshot.name for snapshot in domain.snapshots() if snapshot.current] == ["ours-left"]
    monkeypatch.setattr(domain, "revert_to_snapshot", lambda _name: None)
    with pytest.raises(ProofFailed, match=r"reverted domain 'web1' to snapshot 'root' and does not call it current"):
        revert(hypervisor, domain, require_own(look(), "root"), lambda: None)


def test_deleting_is_proved_by_the_list_and_keeps_the_others(
    hypervisor: FakeHypervisor, domain: FakeDomain, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow_tree(domain)
    delete(hypervisor, domain, require_own(look(), "root"))
    assert {snapshot.name for snapshot in domain.snapshots()} == {*OURS, *THEIRS} - {"root"}
    monkeypatch.setattr(domain, "delete_snapshot", lambda _name: None)
    with pytest.raises(ProofFailed, match=r"deleted snapshot 'ours-left' of domain 'web1' and still lists it"):
        delete(hypervisor, domain, require_own(look(), "ours-left"))
