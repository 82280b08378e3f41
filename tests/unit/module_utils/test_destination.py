# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a guest can be migrated to, and why not elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils import _destination
from ansible_collections.kvm.fleet.plugins.module_utils._destination import (
    RESERVE_BYTES,
    Destination,
    Need,
    choose,
    file_system,
    parse_version,
    refusal,
)
from ansible_collections.kvm.fleet.plugins.module_utils._domain import Storage
from ansible_collections.kvm.fleet.plugins.module_utils._errors import DomainNotFound, MigrationImpossible
from ansible_collections.kvm.fleet.plugins.module_utils._observe import observe
from ansible_collections.kvm.fleet.plugins.module_utils._power import PowerOptions
from tests.unit.fake_hypervisor import FakeDomain, FakeHypervisor

GIB = 1 << 30
ONE, TWO = "qemu+tls://one/system", "qemu+tls://two/system"

NEED = Need("web1", "u1", "here", 4 * GIB, installed=(8, 2, 0), running=(7, 2, 22), come_back=False)
THERE = Destination(ONE, "there", frozenset(), frozenset(), (8, 2, 0), 16 * GIB, ())


@pytest.mark.parametrize(
    ("found", "come_back", "why"),
    [
        (THERE, False, None),
        (THERE, True, None),
        (replace(THERE, host="here"), False, "it is this very hypervisor"),
        (replace(THERE, names=frozenset({"web1"})), False, "a domain of that name or UUID is there already"),
        (replace(THERE, uuids=frozenset({"u1"})), False, "a domain of that name or UUID is there already"),
        (replace(THERE, version=(9, 0, 0)), False, None),
        (replace(THERE, version=(8, 1, 9)), False, "its QEMU 8.1.9 is older than 8.2.0 here"),
        (
            *(replace(THERE, version=(9, 0, 0)), True),
            "its QEMU 9.0.0 is newer than 8.2.0 here, which could not take the guest back",
        ),
        (replace(THERE, version=(7, 2, 22)), True, None),
        (replace(THERE, version=(7, 2, 9)), True, "its QEMU 7.2.9 is older than 7.2.22, which the guest runs"),
        (replace(THERE, available_bytes=4 * GIB + RESERVE_BYTES), False, None),
        (
            *(replace(THERE, available_bytes=4 * GIB + RESERVE_BYTES - 1), False),
            "the guest needs 4608 MiB of RAM there, and 4607 MiB are free",
        ),
        (replace(THERE, refusals=("no such machine", "no such disk")), False, "no such machine"),
    ],
)
def test_a_destination_is_open_or_says_why_not(found: Destination, *, come_back: bool, why: str | None) -> None:
    assert refusal(replace(NEED, come_back=come_back), found) == why


def test_of_a_qemu_that_does_not_tell_its_version_nothing_is_asked() -> None:
    need = replace(NEED, running=None, come_back=True)
    assert refusal(need, replace(THERE, version=(5, 0, 0))) is None


@pytest.mark.parametrize(
    ("text", "version"),
    [("7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)", (7, 2, 22)), ("10.0.2", (10, 0, 2)), ("unknown", None), (None, None)],
)
def test_a_version_is_read_as_far_as_it_tells_one(text: str | None, version: tuple[int, int, int] | None) -> None:
    assert parse_version(text) == version


MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
35 22 0:31 / /var/lib/libvirt rw,relatime shared:2 master:1 - xfs /dev/vdb rw
36 35 0:41 / /var/lib/libvirt/images rw,relatime shared:3 - nfs4 nas:/images rw,vers=4.2
37 22 0:42 / /srv/with\\040space rw,relatime - ceph mon:/ rw
38 22 0:43 / /srv/twice rw - tmpfs tmpfs rw
39 22 0:44 / /srv/twice rw - nfs nas:/b rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/libvirt/images/web1.qcow2", "nfs4"),
        ("/var/lib/libvirt/images", "nfs4"),
        ("/var/lib/libvirt/images2/web1", "xfs"),
        ("/home/web1", "ext4"),
        ("/srv/with space/web1", "ceph"),
        ("/srv/twice/web1", "nfs"),
    ],
)
def test_the_file_system_of_a_path_is_that_of_the_last_mount_above_it(path: str, kind: str) -> None:
    assert file_system(path, MOUNTS) == kind


def test_where_nothing_is_mounted_nobody_knows() -> None:
    assert file_system("/a", "") is None


# --- choosing -------------------------------------------------------------------------------------


@pytest.fixture
def domain(hypervisor: FakeHypervisor) -> FakeDomain:
    return hypervisor.add("web1")


@pytest.fixture
def one(hypervisor: FakeHypervisor) -> FakeHypervisor:
    return hypervisor.beside(ONE)


@pytest.fixture
def two(hypervisor: FakeHypervisor) -> FakeHypervisor:
    return hypervisor.beside(TWO)


OPTIONS = PowerOptions(destinations=(ONE, TWO), storage=Storage.TRUSTED)


def chosen(hypervisor: FakeHypervisor, domain: FakeDomain, options: PowerOptions = OPTIONS) -> str:
    return choose(hypervisor, domain, observe(hypervisor, domain), options)


def refused(hypervisor: FakeHypervisor, domain: FakeDomain, options: PowerOptions = OPTIONS) -> MigrationImpossible:
    with pytest.raises(MigrationImpossible) as caught:
        chosen(hypervisor, domain, options)
    assert domain.changes == []
    return caught.value


def test_the_open_one_with_the_most_free_ram_is_taken(
    hypervisor: FakeHypervisor, domain: FakeDomain, one: FakeHypervisor, two: FakeHypervisor
) -> None:
    one.available, two.available = 20 * GIB, 10 * GIB
    assert chosen(hypervisor, domain) == ONE
    two.available = 21 * GIB
    assert chosen(hypervisor, domain) == TWO
    two.refuses_guests = "unsupported machine type"
    assert chosen(hypervisor, domain) == ONE
    assert domain.changes == []


def test_ram_that_another_guest_on_its_way_there_will_have_is_not_free(
    hypervisor: FakeHypervisor, domain: FakeDomain, one: FakeHypervisor, two: FakeHypervisor
) -> None:
    one.available, two.available = 20 * GIB, 15 * GIB
    coming = one.add("web9")
    coming.memory = 6 * GIB
    assert chosen(hypervisor, domain) == ONE
    coming.migrating = True
    assert chosen(hypervisor, domain) == TWO
    coming.faults["is_migrating"] = DomainNotFound("it was there a moment ago", remedy="Run again.")
    assert chosen(hypervisor, domain) == ONE


def test_where_none_is_open_each_says_why(hypervisor: FakeHypervisor, domain: FakeDomain, one: FakeHypervisor) -> None:
    one.add("web1")
    error = refused(hypervisor, domain)
    taken, silent = "a domain of that name or UUID is there already", f"libvirt does not answer at {TWO} within 20 s"
    assert error.evidence["closed"] == {ONE: taken, TWO: silent}
    assert error.message == f"domain 'web1' cannot be migrated: {ONE}: {taken}; {TWO}: {silent}"


def test_without_destinations_that_is_what_is_said(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    error = refused(hypervisor, domain, PowerOptions(storage=Storage.TRUSTED))
    assert error.message == "domain 'web1' cannot be migrated: no destination is given"


def test_a_destination_that_is_this_hypervisor_is_none(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    hypervisor.others[ONE] = hypervisor
    assert "this very hypervisor" in refused(hypervisor, domain).message


def test_the_hypervisors_own_processor_is_compared_where_the_guest_has_it(
    hypervisor: FakeHypervisor, domain: FakeDomain, one: FakeHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = domain.xml()
    for cpu, compared in (
        ("<cpu mode='host-passthrough'/>", True),
        ("<cpu mode='custom'><model>x</model></cpu>", False),
    ):
        monkeypatch.setattr(domain, "xml", lambda cpu=cpu: own.replace("<devices>", f"{cpu}<devices>"))
        chosen(hypervisor, domain)
        kind, processor = one.asked_for[-1]
        assert (kind.cpu != "", processor is not None) == (True, compared)


DEVICE = "<hostdev type='pci'/>"


def test_a_device_with_a_state_outside_of_qemu_does_not_go_along(
    hypervisor: FakeHypervisor, domain: FakeDomain, one: FakeHypervisor
) -> None:
    domain.devices = DEVICE
    assert "with its hostdev pci" in refused(hypervisor, domain).message
    assert one.asked_for == []


@pytest.mark.parametrize(
    ("kind", "is_open"), [("ext4", False), ("xfs", False), ("nfs4", True), ("fuse.glusterfs", True)]
)
def test_disks_that_no_other_machine_has_are_not_shared(
    hypervisor: FakeHypervisor,
    domain: FakeDomain,
    one: FakeHypervisor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    kind: str,
    is_open: bool,
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"22 1 254:0 / / rw - {kind} /dev/vda1 rw\n", encoding="utf-8")
    monkeypatch.setattr(_destination, "MOUNTS", mounts)
    options = replace(OPTIONS, storage=Storage.SHARED)
    if is_open:
        assert chosen(hypervisor, domain, options) == ONE
    else:
        assert f"is on a file system ({kind}) that no other machine has" in refused(hypervisor, domain, options).message
    assert chosen(hypervisor, domain) == ONE
    assert one.asked_for


COPY = replace(OPTIONS, storage=Storage.COPY)


def test_disks_are_copied_where_there_is_room_and_no_such_image(
    hypervisor: FakeHypervisor, domain: FakeDomain, one: FakeHypervisor
) -> None:
    assert chosen(hypervisor, domain, COPY) == ONE
    one.room = (2 << 30) - 1
    assert "needs 2048 MiB" in refused(hypervisor, domain, COPY).message
    one.room = 2 << 30
    one.made.add(str(hypervisor.image_directory / "web1.qcow2"))
    assert "there is an image" in refused(hypervisor, domain, COPY).message


def test_snapshots_and_block_devices_are_not_copied(
    hypervisor: FakeHypervisor, domain: FakeDomain, one: FakeHypervisor
) -> None:
    domain.add_snapshot("before", "mine")
    assert chosen(hypervisor, domain) == ONE
    assert "snapshots are not copied, and it has before" in refused(hypervisor, domain, COPY).message
    domain.delete_snapshot("before")
    domain.changes.clear()
    domain.on_block_devices = True
    assert "by copying vda" in refused(hypervisor, domain, COPY).message
    assert one.asked_for


def test_a_snapshot_in_files_of_its_own_stays_behind(
    hypervisor: FakeHypervisor, domain: FakeDomain, one: FakeHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain.add_snapshot("before", "mine")
    [found] = domain.snapshot_definitions()
    external = replace(found, xml=found.xml.replace("<state>", "<memory snapshot='external'/><state>"))
    monkeypatch.setattr(domain, "snapshot_definitions", lambda: [external])
    assert "with before: such snapshots stay behind" in refused(hypervisor, domain).message
    assert one.asked_for == []
