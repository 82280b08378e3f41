# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""External snapshots: nothing that was written is lost, whoever dies at whichever step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils import _external
from ansible_collections.kvm.fleet.plugins.module_utils._domain import DomainState, SnapshotRecord
from ansible_collections.kvm.fleet.plugins.module_utils._domain_xml import parse_definition
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    DiskImageFailed,
    DomainBusy,
    DomainUnsafe,
    GuestFrozen,
    HypervisorUnavailable,
    LibvirtFailed,
    ProofFailed,
    RecordUnavailable,
    SavedStateRefused,
    SnapshotBlocked,
)
from ansible_collections.kvm.fleet.plugins.module_utils._external import Wanted
from ansible_collections.kvm.fleet.plugins.module_utils._record import FILES, Facts
from ansible_collections.kvm.fleet.plugins.module_utils._snapshot_xml import is_being_deleted
from tests.unit.fake_clock import START
from tests.unit.fake_hypervisor import FakeDomain, FakeHypervisor, libvirt_failed
from tests.unit.fake_images import FakeImages

UEFI = "<loader readonly='yes' type='pflash'>/x/OVMF_CODE.fd</loader><nvram>{}</nvram>"


@pytest.fixture
def domain(hypervisor: FakeHypervisor) -> FakeDomain:
    domain = hypervisor.add("web1")
    domain.disk_formats = ("qcow2", "raw")
    domain.write("first")
    return domain


Take = Callable[..., SnapshotRecord]


@pytest.fixture
def take(hypervisor: FakeHypervisor, domain: FakeDomain) -> Take:
    """Takes a snapshot, a second after the one before."""

    def take_one(name: str, *, ram: bool = False) -> SnapshotRecord:
        hypervisor.clock.advance(1)
        nvram = parse_definition(domain.xml()).nvram
        noted: list[Facts] = []
        made = _external.create(hypervisor, domain, Wanted(name, "x", ram, nvram), noted.append)
        copies = [str(file) for file in hypervisor.image_directory.glob(f"*{made.layers[0].file[-26:]}.nvram")]
        assert len(copies) == (nvram is not None)
        assert noted[0] == {FILES: [*_external.files_with(made), *copies]}
        return made

    return take_one


def again(domain: FakeDomain, name: str) -> SnapshotRecord:
    """The snapshot as it is now."""
    [found] = [snapshot for snapshot in domain.snapshots() if snapshot.name == name]
    return found


def files(hypervisor: FakeHypervisor) -> set[str]:
    return {path.name for path in hypervisor.image_directory.iterdir()}


def everywhere(*writes: str) -> list[list[str]]:
    return [list(writes), list(writes)]


def revert(hypervisor: FakeHypervisor, domain: FakeDomain, snapshot: SnapshotRecord) -> SavedStateRefused | None:
    return _external.revert(hypervisor, domain, snapshot, lambda: None)


class Dead(BaseException):
    """Whoever did this is no more."""


BY_DOMAIN = tuple(
    (FakeDomain, method)
    for method in ("redefine_snapshot", "forget_snapshot", "commit", "pivot", "update_disk", "destroy", "restore")
)
BY_IMAGES = ((FakeImages, "create_layer"), (FakeImages, "commit"), (FakeImages, "rebase"))
BY_FILES = ((Path, "replace"), (Path, "unlink"))


@contextmanager
def dying_at(step: int, *methods: tuple[type, str]) -> Iterator[list[str]]:
    """Die before the change of this number, counted from 1, by these methods. Yields the changes that there were."""
    done: list[str] = []

    def watched(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def act(*arguments: object, **options: object) -> object:
            done.append(name)
            if len(done) == step:
                raise Dead
            return real(*arguments, **options)

        return act

    with pytest.MonkeyPatch.context() as patch:
        for owner, method in methods:
            patch.setattr(owner, method, watched(method, getattr(owner, method)))
        yield done


# --- making one ----------------------------------------------------------------------------------


def test_what_is_written_after_it_goes_to_the_layers(
    hypervisor: FakeHypervisor, domain: FakeDomain, take: Take
) -> None:
    made = take("one")
    domain.write("second")
    mark = "kvm-fleet-20260301-020001"
    assert [Path(layer.file).name for layer in made.layers] == [f"web1.qcow2.{mark}", f"web1.raw.{mark}"]
    below = [hypervisor.images.read(str(hypervisor.image_directory / f"web1.{kind}")) for kind in ("qcow2", "raw")]
    assert (below, domain.read()) == (everywhere("first"), everywhere("first", "second"))
    assert (made.state, made.has_ram, made.memory_file) == ("disk-snapshot", False, None)
    assert domain.changes == ["create_external_snapshot quiesced"]
    assert (hypervisor.freezes_watched, domain.agent.frozen) == (["web1"], False)


def test_nothing_is_frozen_for_ram_or_for_a_guest_that_is_off(
    hypervisor: FakeHypervisor, domain: FakeDomain, take: Take
) -> None:
    with_ram = take("ram", ram=True)
    assert (with_ram.has_ram, with_ram.memory_file) == (True, f"{with_ram.layers[0].file}.ram")
    domain.be(DomainState.SHUT_OFF)
    assert take("off").state == "shutoff"
    assert hypervisor.freezes_watched == []


def test_names_do_not_grow_and_are_not_taken_twice(domain: FakeDomain, hypervisor: FakeHypervisor, take: Take) -> None:
    take("one")
    definition = parse_definition(domain.xml())
    in_the_same_second = _external.plan(definition, None, hypervisor.clock.now(), ram=False)
    assert [Path(layer.file).name for layer in in_the_same_second.layers] == [
        "web1.qcow2.kvm-fleet-20260301-020001-2",
        "web1.raw.kvm-fleet-20260301-020001-2",
    ]
    later = _external.plan(definition, None, START.replace(year=2027), ram=True)
    assert Path(later.layers[0].file).name == "web1.qcow2.kvm-fleet-20270301-020000"


def test_long_names_are_cut_and_told_apart() -> None:
    long = "ü" * 120
    disks = "".join(
        f"<disk><source file='/i/{long}{letter}'/><target dev='vd{letter}'/></disk>" for letter in ("a", "b")
    )
    definition = parse_definition(f"<domain><devices>{disks}</devices></domain>")
    planned = _external.plan(definition, None, START, ram=True)
    names = [Path(layer.file).name for layer in planned.layers]
    assert len(set(names)) == 2
    assert planned.memory_file
    assert all(len(name.encode()) < 250 for name in (*names, Path(planned.memory_file).name))


def test_a_guest_that_libvirt_leaves_frozen_is_thawed_and_no_file_is_left(
    hypervisor: FakeHypervisor, domain: FakeDomain, take: Take
) -> None:
    before = files(hypervisor)
    domain.libvirt_dies_frozen = True
    with pytest.raises(HypervisorUnavailable):
        take("one")
    assert domain.agent.frozen is False
    assert (list(domain.snapshots()), files(hypervisor)) == ([], before)


def test_a_layer_that_is_used_without_libvirts_knowledge_is_told_of_and_kept(
    hypervisor: FakeHypervisor, domain: FakeDomain
) -> None:
    layers = [str(hypervisor.image_directory / f"web1.{kind}.layer") for kind in ("qcow2", "raw")]
    for file in layers:
        hypervisor.images.put_layer(file, *domain.on_images()["vda"])
    hypervisor.images.open = {layers[0]}
    with pytest.raises(DomainUnsafe, match="libvirt does not know of it"):
        _external.clear(hypervisor, domain, layers)
    hypervisor.images.open = set()
    hypervisor.images.write(layers[0], "second")
    with pytest.raises(DomainUnsafe):
        _external.clear(hypervisor, domain, layers)
    assert all(Path(file).exists() for file in layers)
    _external.clear(hypervisor, domain, layers[1:])
    assert [Path(file).exists() for file in layers] == [True, False]


def test_what_a_listed_snapshot_needs_is_not_taken_for_what_was_left(
    hypervisor: FakeHypervisor, domain: FakeDomain, take: Take
) -> None:
    """libvirt may have made it after the module that asked for it was killed."""
    made = take("one", ram=True)
    domain.write("second")
    take("two")
    domain.be(DomainState.SHUT_OFF)
    before = files(hypervisor)
    _external.clear(hypervisor, domain, _external.files_with(made))
    assert files(hypervisor) == before
    domain.forget_snapshot("one")  # the layers are still below those of the other one
    _external.clear(hypervisor, domain, [layer.file for layer in made.layers])
    assert files(hypervisor) == before


def test_nothing_is_removed_while_libvirt_still_makes_the_snapshot(
    hypervisor: FakeHypervisor, domain: FakeDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    ram = hypervisor.image_directory / "web1.qcow2.kvm-fleet-20260301-020000.ram"
    ram.write_bytes(b"as far as it has come")
    monkeypatch.setattr(domain, "is_making_snapshot", lambda: True)
    with pytest.raises(DomainBusy, match="still makes a snapshot"):
        _external.clear(hypervisor, domain, [str(ram)])
    assert ram.exists()
    _external.clear(hypervisor, domain, [])  # nothing was begun


def test_ram_that_belongs_to_no_snapshot_is_removed(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    ram = hypervisor.image_directory / "web1.qcow2.kvm-fleet-20260301-020000.ram"
    ram.write_bytes(b"libvirt's own format")
    _external.clear(hypervisor, domain, [str(ram)])
    assert not ram.exists()


def test_a_snapshot_of_which_only_the_answer_got_lost_keeps_all_that_it_needs(
    hypervisor: FakeHypervisor, domain: FakeDomain, variables: Path, take: Take
) -> None:
    make = domain.create_external_snapshot

    def lose_the_answer(xml: str, *, disk_only: bool, quiesce: bool) -> None:
        make(xml, disk_only=disk_only, quiesce=quiesce)
        raise HypervisorUnavailable("End of file while reading data", remedy="Start libvirt.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(domain, "create_external_snapshot", lose_the_answer)
        with pytest.raises(HypervisorUnavailable):
            take("one")
    domain.write("second")
    variables.write_bytes(b"now")
    revert(hypervisor, domain, again(domain, "one"))
    assert (domain.read(), variables.read_bytes()) == (everywhere("first"), b"then")


def test_a_snapshot_for_which_the_guest_was_thawed_too_early_is_deleted(
    hypervisor: FakeHypervisor, domain: FakeDomain, take: Take
) -> None:
    before = files(hypervisor)
    hypervisor.freeze_patience_lost = True
    with pytest.raises(ProofFailed, match="thawed meanwhile"):
        take("one")
    assert (list(domain.snapshots()), files(hypervisor), domain.read()) == ([], before, everywhere("first"))


def test_a_guest_that_is_frozen_already_is_left_so(domain: FakeDomain, take: Take) -> None:
    domain.agent.frozen = True
    with pytest.raises(GuestFrozen):
        take("one")
    assert (list(domain.snapshots()), domain.agent.frozen, domain.changes) == ([], True, [])


def test_a_snapshot_whose_layers_are_not_used_is_not_believed_in(
    domain: FakeDomain, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(domain, "on_images", lambda: {"vda": ("/elsewhere", "qcow2")})
    monkeypatch.setattr(domain, "create_external_snapshot", lambda _xml, **_options: None)
    with pytest.raises(ProofFailed, match="does not list it"):
        take("one")


# --- UEFI variables ------------------------------------------------------------------------------


@pytest.fixture
def variables(hypervisor: FakeHypervisor, domain: FakeDomain) -> Path:
    file = hypervisor.image_directory / "web1.fd"
    file.write_bytes(b"then")
    domain.loader = UEFI.format(file)
    return file


def test_uefi_variables_come_back_and_their_copy_goes(
    hypervisor: FakeHypervisor, domain: FakeDomain, variables: Path, take: Take
) -> None:
    before = files(hypervisor)
    made = take("one")
    variables.write_bytes(b"now")
    revert(hypervisor, domain, made)
    assert variables.read_bytes() == b"then"
    _external.delete(hypervisor, domain, again(domain, "one"))
    assert files(hypervisor) == before


def test_variables_that_only_the_snapshot_tells_of_come_back_too(
    hypervisor: FakeHypervisor, domain: FakeDomain, variables: Path, take: Take
) -> None:
    """libvirt may choose their file when it starts the guest: the definition of one that is off does not name it."""
    made = take("one")
    variables.write_bytes(b"now")
    domain.be(DomainState.SHUT_OFF)
    domain.loader = "<loader type='pflash'>/x/OVMF_CODE.fd</loader>"
    revert(hypervisor, domain, made)
    assert variables.read_bytes() == b"then"


def test_variables_that_nobody_tells_of_are_not_left_as_they_are_in_silence(
    hypervisor: FakeHypervisor, domain: FakeDomain, take: Take
) -> None:
    domain.loader = "<loader type='pflash'>/x/OVMF_CODE.fd</loader>"
    made = take("one")
    for act in (revert, _external.delete):
        with pytest.raises(SnapshotBlocked, match="UEFI variables"):
            act(hypervisor, domain, made)
    assert not is_being_deleted(again(domain, "one"))


def test_no_copy_is_left_of_a_snapshot_that_failed(
    hypervisor: FakeHypervisor, domain: FakeDomain, variables: Path, take: Take
) -> None:
    assert variables.exists()
    before = files(hypervisor)
    domain.libvirt_dies_frozen = True
    with pytest.raises(HypervisorUnavailable):
        take("one")
    assert files(hypervisor) == before


def test_a_copy_is_removed_unless_it_goes_with_a_snapshot(
    hypervisor: FakeHypervisor, domain: FakeDomain, variables: Path, take: Take
) -> None:
    made = take("one")
    [copy] = variables.parent.glob("web1.fd.*")
    left = variables.parent / "web1.fd.kvm-fleet-20260228-020000.nvram"
    left.write_bytes(b"then")
    _external.clear(hypervisor, domain, [*_external.files_of(domain, made), str(left)])
    assert (copy.exists(), left.exists()) == (True, False)


def test_variables_of_a_guest_that_runs_are_not_to_be_found_by_its_start(
    hypervisor: FakeHypervisor, domain: FakeDomain, take: Take
) -> None:
    made = take("one")
    domain.loader = "<loader type='pflash'>/x/OVMF_CODE.fd</loader>"
    with pytest.raises(SnapshotBlocked) as running:
        revert(hypervisor, domain, made)
    domain.be(DomainState.SHUT_OFF)
    with pytest.raises(SnapshotBlocked) as off:
        revert(hypervisor, domain, made)
    assert ["tart it" in blocked.value.remedy for blocked in (running, off)] == [False, True]


def test_variables_whose_copy_is_gone_block_a_revert(
    hypervisor: FakeHypervisor, domain: FakeDomain, variables: Path, take: Take
) -> None:
    made = take("one")
    [copy] = variables.parent.glob("web1.fd.*")
    copy.unlink()
    with pytest.raises(SnapshotBlocked, match="is gone that goes with snapshot 'one'"):
        revert(hypervisor, domain, made)
    assert domain.state() is DomainState.RUNNING
    _external.delete(hypervisor, domain, made)


def test_variables_that_are_nowhere_are_not_copied(domain: FakeDomain, variables: Path, take: Take) -> None:
    variables.unlink()
    with pytest.raises(DiskImageFailed, match="No such file"):
        take("one")
    assert domain.changes == []


def test_variables_that_change_all_the_time_are_not_copied(
    hypervisor: FakeHypervisor, variables: Path, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert variables.exists()
    before = files(hypervisor)
    monkeypatch.setattr("filecmp.cmp", lambda *_files, **_options: False)
    with pytest.raises(DiskImageFailed, match="the guest writes to it all the time"):
        take("one")
    assert files(hypervisor) == before


# --- reverting -----------------------------------------------------------------------------------


def test_a_revert_loses_what_was_written_since_and_nothing_else(
    hypervisor: FakeHypervisor, domain: FakeDomain, take: Take
) -> None:
    made = take("one")
    before = files(hypervisor)
    for _again in range(2):  # it stays, and can be gone back to again
        domain.be(DomainState.RUNNING)
        domain.write("second")
        revert(hypervisor, domain, again(domain, "one"))
        assert (domain.state(), domain.read()) == (DomainState.SHUT_OFF, everywhere("first"))
        assert (again(domain, "one"), files(hypervisor)) == (made, before)


def test_a_guest_with_its_ram_goes_on_from_it(hypervisor: FakeHypervisor, domain: FakeDomain, take: Take) -> None:
    boot_id, pid = domain.boot_id, domain.pid
    made = take("ram", ram=True)
    domain.write("second")
    domain.boot()
    revert(hypervisor, domain, made)
    assert (domain.state(), domain.boot_id, domain.read()) == (DomainState.RUNNING, boot_id, everywhere("first"))
    assert domain.pid != pid


@pytest.mark.parametrize("ram", [False, True])
@pytest.mark.parametrize("step", range(1, 9))
def test_a_revert_that_is_cut_off_anywhere_is_done_by_the_next_one(
    hypervisor: FakeHypervisor, domain: FakeDomain, take: Take, ram: bool, step: int
) -> None:
    made = take("one", ram=ram)
    before = files(hypervisor)
    domain.write("second")
    with pytest.MonkeyPatch.context(), dying_at(step, *BY_DOMAIN, *BY_IMAGES, *BY_FILES) as done:
        try:
            revert(hypervisor, domain, made)
        except Dead:
            assert len(done) == step
    whole = [set(disk) for disk in domain.read()]
    assert all(disk in ({"first"}, {"first", "second"}) for disk in whole)
    revert(hypervisor, domain, again(domain, "one"))
    assert domain.read() == everywhere("first")
    assert files(hypervisor) == before


def test_a_guest_is_not_shut_down_for_a_revert_that_cannot_be(
    hypervisor: FakeHypervisor, domain: FakeDomain, take: Take
) -> None:
    made = take("one")
    before = files(hypervisor)
    domain.write("second")
    hypervisor.images.faults["create_layer"] = DiskImageFailed("no space left", remedy="Free some.")
    with pytest.raises(DiskImageFailed):
        revert(hypervisor, domain, made)
    assert (domain.state(), domain.read()) == (DomainState.RUNNING, everywhere("first", "second"))
    assert files(hypervisor) == before


def test_a_layer_that_some_qemu_has_is_not_replaced(hypervisor: FakeHypervisor, domain: FakeDomain, take: Take) -> None:
    """As that of a guest that has crashed and was kept for a look."""
    made = take("one")
    domain.write("second")
    domain.be(DomainState.CRASHED)
    hypervisor.images.open = {made.layers[1].file}
    before = files(hypervisor)
    with pytest.raises(DomainUnsafe, match="is open in a QEMU, though domain 'web1' is crashed"):
        _external.revert(hypervisor, domain, made, pytest.fail)
    domain.be(DomainState.RUNNING)
    assert files(hypervisor) == before
    with pytest.raises(DomainUnsafe, match="is open in a QEMU, though domain 'web1' is shut off"):
        revert(hypervisor, domain, made)
    assert domain.read() == everywhere("first", "second")


def test_a_revert_that_cannot_be_put_on_record_is_not_begun(
    hypervisor: FakeHypervisor, domain: FakeDomain, take: Take
) -> None:
    made = take("one")
    before = files(hypervisor)
    domain.changes.clear()

    def fail() -> None:
        raise RecordUnavailable("no space left", remedy="Free some.")

    with pytest.raises(RecordUnavailable):
        _external.revert(hypervisor, domain, made, fail)
    assert (domain.changes, files(hypervisor)) == ([], before)


def test_ram_that_is_gone_or_cannot_be_read_blocks_a_revert(
    hypervisor: FakeHypervisor, domain: FakeDomain, take: Take
) -> None:
    made = take("ram", ram=True)
    domain.changes.clear()
    assert made.memory_file
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(domain, "image_xml", no_image)
        with pytest.raises(LibvirtFailed):
            _external.require_revertible(hypervisor, domain, made)
    Path(made.memory_file).unlink()
    for act in (_external.require_revertible, revert):
        with pytest.raises(SnapshotBlocked, match="the file with the RAM of domain 'web1' is gone"):
            act(hypervisor, domain, made)
    assert domain.changes == []


def no_image(_file: str) -> str:
    raise libvirt_failed("failed to read qemu header")


def test_a_guest_whose_ram_is_refused_has_its_disks_back_and_that_is_told(
    hypervisor: FakeHypervisor, domain: FakeDomain, take: Take
) -> None:
    made = take("ram", ram=True)
    domain.write("second")
    domain.faults["restore"] = libvirt_failed("internal error: unknown machine type")
    refused = revert(hypervisor, domain, made)
    assert refused is not None
    assert "unknown machine type. Its disks are those of the snapshot" in refused.message
    assert (domain.state(), domain.read()) == (DomainState.SHUT_OFF, everywhere("first"))


def test_ram_is_not_called_refused_where_somebody_has_started_the_guest(
    hypervisor: FakeHypervisor, domain: FakeDomain, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = take("ram", ram=True)

    def restore(_file: str, _xml: str) -> None:
        domain.start()
        raise libvirt_failed("Requested operation is not valid: domain is already active")

    monkeypatch.setattr(domain, "restore", restore)
    with pytest.raises(LibvirtFailed, match="already active"):
        revert(hypervisor, domain, made)


def test_a_guest_that_somebody_starts_meanwhile_is_told(
    hypervisor: FakeHypervisor, domain: FakeDomain, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = take("one")
    monkeypatch.setattr(domain, "destroy", lambda: None)
    with pytest.raises(ProofFailed, match="started by somebody else"):
        revert(hypervisor, domain, made)


def test_what_stands_on_a_snapshot_blocks_its_revert(
    hypervisor: FakeHypervisor, domain: FakeDomain, take: Take
) -> None:
    made = take("one")
    hypervisor.images.put_snapshot(made.layers[1].file, "inside")
    with pytest.raises(SnapshotBlocked, match="internal snapshot 'inside'"):
        _external.require_revertible(hypervisor, domain, made)
    take("two")
    with pytest.raises(SnapshotBlocked, match="snapshot 'two' of domain 'web1' stands on the layers of 'one'"):
        revert(hypervisor, domain, made)
    domain.tops.clear()
    with pytest.raises(SnapshotBlocked, match="disk vda of domain 'web1' is not on the layer of snapshot 'two'"):
        revert(hypervisor, domain, again(domain, "two"))
    domain.persistent = False
    with pytest.raises(SnapshotBlocked, match="transient"):
        revert(hypervisor, domain, again(domain, "two"))


# --- deleting ------------------------------------------------------------------------------------


@pytest.fixture(params=[DomainState.RUNNING, DomainState.SHUT_OFF], ids=lambda state: state.value)
def state(request: pytest.FixtureRequest) -> DomainState:
    """Of the guest while a snapshot is deleted."""
    found: DomainState = request.param
    return found


@pytest.mark.parametrize("order", [("one", "two", "three"), ("three", "two", "one"), ("two", "one", "three")])
def test_whichever_goes_first_nothing_is_lost(
    hypervisor: FakeHypervisor, domain: FakeDomain, take: Take, state: DomainState, order: tuple[str, ...]
) -> None:
    before = files(hypervisor)
    for name in ("one", "two", "three"):
        take(name, ram=name == "two")
        domain.write(name)
    domain.be(state)
    for name in order:
        _external.delete(hypervisor, domain, again(domain, name))
        assert domain.read() == everywhere("first", "one", "two", "three")
        for left in domain.snapshots():
            there = {str(hypervisor.image_directory / file) for file in files(hypervisor)}
            assert domain.images_in(left.name) <= there
    assert (list(domain.snapshots()), files(hypervisor)) == ([], before)
    assert [image for image, _format in domain.on_images().values()] == [
        str(hypervisor.image_directory / f"web1.{kind}") for kind in ("qcow2", "raw")
    ]


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("step", range(1, 16))
def test_a_deletion_that_is_cut_off_anywhere_is_done_by_the_next_one(
    hypervisor: FakeHypervisor, take: Take, state: DomainState, inner: bool, step: int
) -> None:
    domain = hypervisor.domain("web1")
    take("one")
    domain.write("second")
    if inner:
        take("two")
        domain.write("third")
    domain.be(state)
    written = domain.read()
    by_images = BY_IMAGES if state is DomainState.SHUT_OFF else ()  # libvirt does it for a guest that runs
    with dying_at(step, *BY_DOMAIN, *by_images, *BY_FILES) as done:
        try:
            _external.delete(hypervisor, domain, again(domain, "one"))
        except Dead:
            assert len(done) == step
    assert [list(dict.fromkeys(disk)) for disk in domain.read()] == written
    if step == 1 or not any(snapshot.name == "one" for snapshot in domain.snapshots()):
        return
    left = again(domain, "one")
    assert is_being_deleted(left)
    with pytest.raises(SnapshotBlocked):
        revert(hypervisor, domain, left)
    _external.delete(hypervisor, domain, left)
    assert [list(dict.fromkeys(disk)) for disk in domain.read()] == written
    assert [snapshot.name for snapshot in domain.snapshots()] == (["two"] if inner else [])
    assert len(files(hypervisor)) == (4 if inner else 2)
    for snapshot in domain.snapshots():
        assert {Path(image).name for image in domain.images_in(snapshot.name)} <= files(hypervisor)


def test_a_guest_that_is_started_while_its_snapshot_is_deleted_keeps_what_it_writes(
    hypervisor: FakeHypervisor, domain: FakeDomain, take: Take
) -> None:
    made = take("one")
    domain.write("second")
    domain.be(DomainState.SHUT_OFF)
    change = domain.update_disk

    def start_before(xml: str) -> None:
        running = domain.xml()
        domain.be(DomainState.RUNNING)
        patch.setattr(domain, "xml", lambda: running)
        patch.setattr(domain, "update_disk", change)
        change(xml)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(domain, "update_disk", start_before)
        with pytest.raises(ProofFailed, match="was started by somebody else"):
            _external.delete(hypervisor, domain, made)
    assert domain.on_images()["vda"][0] == made.layers[0].file
    domain.write("third")
    _external.delete(hypervisor, domain, again(domain, "one"))
    assert [list(dict.fromkeys(disk)) for disk in domain.read()] == everywhere("first", "second", "third")


def test_a_commit_that_fails_removes_nothing(hypervisor: FakeHypervisor, domain: FakeDomain, take: Take) -> None:
    made = take("one")
    domain.write("second")
    domain.commits_fail = True
    with pytest.raises(ProofFailed, match="still in use"):
        _external.delete(hypervisor, domain, made)
    assert domain.read() == everywhere("first", "second")
    assert "update_disk" not in domain.changes  # its next start would be without what it has written
    domain.commits_fail = False
    _external.delete(hypervisor, domain, again(domain, "one"))
    assert domain.read() == everywhere("first", "second")


def test_a_commit_of_somebody_else_is_waited_for_by_hand(
    hypervisor: FakeHypervisor, domain: FakeDomain, take: Take
) -> None:
    made = take("one")
    domain.jobs["vdb"] = ("/elsewhere", None)
    with pytest.raises(DomainBusy):
        _external.delete(hypervisor, domain, made)
    assert not is_being_deleted(again(domain, "one"))


def test_what_would_be_lost_blocks_a_deletion(
    hypervisor: FakeHypervisor, domain: FakeDomain, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = take("one")
    domain.write("second")
    monkeypatch.setattr(_external, "free_bytes", lambda _path: 1)
    with pytest.raises(SnapshotBlocked, match=r"may need 1 MiB more in .*web1\.qcow2, where 0 MiB are free"):
        _external.delete(hypervisor, domain, made)
    monkeypatch.setattr(_external, "free_bytes", lambda _path: None)
    hypervisor.images.put_snapshot(made.layers[0].file, "inside")
    with pytest.raises(SnapshotBlocked, match=r"the internal snapshot 'inside' .* would be lost"):
        _external.delete(hypervisor, domain, made)
    domain.be(DomainState.SHUT_OFF)
    domain.managed_save = True
    with pytest.raises(SnapshotBlocked, match="managed save image"):
        _external.delete(hypervisor, domain, made)
    domain.managed_save = False
    domain.tops.clear()
    with pytest.raises(SnapshotBlocked, match="is not on the layer of snapshot 'one'"):
        _external.delete(hypervisor, domain, made)
    assert not is_being_deleted(again(domain, "one"))


def test_what_somebody_else_has_put_on_it_blocks_a_deletion(
    hypervisor: FakeHypervisor, domain: FakeDomain, take: Take
) -> None:
    take("one")
    made = take("two")
    xml = domain.snapshot_xml("two").replace("[kvm.fleet] x", "theirs")
    domain.redefine_snapshot(xml, current=True)
    assert made.parent == "one"
    with pytest.raises(SnapshotBlocked, match=r"snapshot 'two' of domain 'web1', which kvm\.fleet has not made"):
        _external.delete(hypervisor, domain, again(domain, "one"))


def test_a_snapshot_holds_what_its_layers_and_its_ram_take_up(
    hypervisor: FakeHypervisor, domain: FakeDomain, take: Take
) -> None:
    made = take("ram", ram=True)
    size = _external.size_of(made) or 0
    assert size > 0
    assert made.memory_file
    Path(made.memory_file).write_bytes(b"x" * (1 << 20))
    assert (_external.size_of(made) or 0) >= size + (1 << 20) - 4096
    _external.delete(hypervisor, domain, made)
    assert _external.size_of(made) is None
