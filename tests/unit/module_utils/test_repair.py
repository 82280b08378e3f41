# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is repaired on an image, in which order, and what is told of it."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._domain import DomainState
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    FleetError,
    ImageFailed,
    InvalidRequest,
    PackageManagerUnknown,
)
from ansible_collections.kvm.fleet.plugins.module_utils._repair import Done, Repair, Wanted, repair
from tests.unit.fake_guestfish import FakeGuestfish
from tests.unit.fake_hypervisor import FakeDomain, FakeHypervisor


@pytest.fixture
def domain(hypervisor: FakeHypervisor) -> FakeDomain:
    return hypervisor.add("web1", DomainState.SHUT_OFF)


def wanted(*, fsck: bool = False, packages: bool = False, script: str | None = None, timeout: float = 60) -> Wanted:
    return Wanted(fsck, packages, script, timeout)


def done(domain: FakeDomain, what: Wanted) -> tuple[Done, ...]:
    return repair(domain, what, uri="qemu:///system", check=False).done


@pytest.mark.parametrize("what", [wanted(), wanted(script=" \n"), wanted(script="a\0b"), wanted(fsck=True, timeout=0)])
def test_what_cannot_be_meant_is_refused(domain: FakeDomain, fake_guestfish: FakeGuestfish, what: Wanted) -> None:
    fake_guestfish.ready()
    with pytest.raises(InvalidRequest):
        done(domain, what)
    assert fake_guestfish.calls() == []


# --- file systems --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statuses", "corrected", "forced"),
    [
        (["0\n", "0\n"], False, 0),
        (["0x1\n", "0\n"], True, 0),
        (["0\n", "0x1\n"], True, 0),
        (["0x3\n", "0\n"], True, 0),
        (["0x4\n", "0x1\n"], True, 1),
        (["0\n", "0x4\n", "0\n"], True, 1),
    ],
)
def test_a_file_system_is_looked_through_and_what_is_left_is_forced(
    domain: FakeDomain, fake_guestfish: FakeGuestfish, statuses: list[str], corrected: bool, forced: int
) -> None:
    fake_guestfish.fsck = statuses
    fake_guestfish.ready()
    told = "errors were corrected" if corrected else "clean"
    assert done(domain, wanted(fsck=True)) == (Done(Repair.FSCK, corrected, f"/dev/sda1 (ext4): {told}\n"),)
    assert fake_guestfish.calls("e2fsck") == [["e2fsck", "/dev/sda1", {"forceall": "true"}]] * forced
    assert fake_guestfish.calls("mount", "inspect-os") == []


def test_the_limit_of_mounts_that_made_it_look_is_put_back(domain: FakeDomain, fake_guestfish: FakeGuestfish) -> None:
    fake_guestfish.answers = {"tune2fs-l": "Mount count:              3\nMaximum mount count:      40\n"}
    fake_guestfish.ready()
    done(domain, wanted(fsck=True))
    assert fake_guestfish.calls("tune2fs") == [
        ["tune2fs", "/dev/sda1", {"maxmountcount": "1", "mountcount": "2"}],
        ["tune2fs", "/dev/sda1", {"maxmountcount": "40"}],
    ]


@pytest.mark.parametrize(
    ("statuses", "words"),
    [(["0x4\n", "0x4\n"], "were not corrected"), (["0x8\n"], "could not be checked: fsck returned 8")],
)
def test_a_file_system_that_stays_damaged_fails(
    domain: FakeDomain, fake_guestfish: FakeGuestfish, statuses: list[str], words: str
) -> None:
    fake_guestfish.fsck = statuses
    fake_guestfish.ready()
    with pytest.raises(ImageFailed, match=words) as failed:
        done(domain, wanted(fsck=True, packages=True))
    assert (failed.value.evidence["repair"], failed.value.evidence["repairs"]) == ("fsck", [])


@pytest.mark.parametrize(
    ("answers", "told", "mounts"),
    [
        (["0\n"], "clean", 0),
        (["1\n", "0\n"], "errors were corrected", 0),
        (["1\n", "2\n", "0\n"], "errors were corrected", 1),
    ],
)
def test_xfs_is_repaired_after_its_log_was_replayed(
    domain: FakeDomain, fake_guestfish: FakeGuestfish, answers: list[str], told: str, mounts: int
) -> None:
    fake_guestfish.file_systems = "/dev/vg/root: xfs\n"
    fake_guestfish.answers = {"xfs-repair": answers}
    fake_guestfish.ready()
    assert done(domain, wanted(fsck=True))[0].output == f"/dev/vg/root (xfs): {told}\n"
    assert len(fake_guestfish.calls("mount")) == mounts


def test_a_log_that_cannot_be_replayed_is_never_dropped(domain: FakeDomain, fake_guestfish: FakeGuestfish) -> None:
    fake_guestfish.file_systems = "/dev/vg/root: xfs\n"
    fake_guestfish.answers = {"xfs-repair": ["1\n", "2\n"]}
    fake_guestfish.unmountable = ["/"]
    fake_guestfish.ready()
    with pytest.raises(ImageFailed, match="its log cannot be replayed"):
        done(domain, wanted(fsck=True))
    assert [call[2] for call in fake_guestfish.calls("xfs-repair")] == [{"nomodify": "true"}, {}]


def test_what_nothing_here_checks_is_named(domain: FakeDomain, fake_guestfish: FakeGuestfish) -> None:
    fake_guestfish.file_systems = "/dev/sda1: vfat\n/dev/sda2: btrfs\n/dev/sda3: crypto_LUKS\n/dev/sda4: swap\n"
    fake_guestfish.fsck = ["0x1\n"]
    fake_guestfish.ready()
    (told,) = done(domain, wanted(fsck=True))
    assert told.output.splitlines() == [
        "/dev/sda1 (vfat): errors were corrected",
        "/dev/sda2 (btrfs): not checked, nothing here checks this kind",
        "/dev/sda3 (crypto_LUKS): not checked, nothing here checks this kind",
    ]
    assert told.changed


# --- packages and scripts ------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "program"), [("deb", "dpkg"), ("rpm", "rpmdb")])
def test_packages_are_repaired_by_the_guests_own_means(
    domain: FakeDomain, fake_guestfish: FakeGuestfish, monkeypatch: pytest.MonkeyPatch, kind: str, program: str
) -> None:
    printed = ["no\n", "yes\nSetting up x\n"]
    ran = []

    def run(_image: Any, script: str, timeout: float) -> str:
        ran.append((program in script, timeout))
        return printed.pop(0)

    monkeypatch.setattr("ansible_collections.kvm.fleet.plugins.module_utils._image.Image.run", run)
    fake_guestfish.package_format = kind
    fake_guestfish.ready()
    told = [done(domain, wanted(packages=True)) for _time in printed.copy()]
    assert told == [(Done(Repair.PACKAGES, False, ""),), (Done(Repair.PACKAGES, True, "Setting up x\n"),)]
    assert ran == [(True, 60)] * 2


def test_packages_of_an_unknown_kind_are_refused(domain: FakeDomain, fake_guestfish: FakeGuestfish) -> None:
    fake_guestfish.package_format = "pacman"
    fake_guestfish.ready()
    with pytest.raises(PackageManagerUnknown, match="pacman"):
        done(domain, wanted(packages=True))


def test_repairs_come_in_their_order_and_one_that_fails_tells_the_others(
    domain: FakeDomain, fake_guestfish: FakeGuestfish
) -> None:
    fake_guestfish.ready()
    told = done(domain, wanted(fsck=True, script="echo hello"))
    assert [(one.repair, one.output) for one in told] == [
        (Repair.FSCK, "/dev/sda1 (ext4): clean\n"),
        (Repair.SCRIPT, "hello\n"),
    ]
    fake_guestfish.fsck = ["0x1\n", "0\n"]
    fake_guestfish.ready()
    with pytest.raises(FleetError) as failed:
        done(domain, wanted(fsck=True, script="exit 3"))
    assert failed.value.evidence["repair"] == "script"
    assert failed.value.evidence["repairs"] == [
        {"name": "fsck", "changed": True, "output": "/dev/sda1 (ext4): errors were corrected\n"}
    ]
