# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a guest has room for an upgrade."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvm.fleet.plugins.module_utils import _room
from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._clock import SystemClock
from ansible_collections.kvm.fleet.plugins.module_utils._errors import DiskFull
from ansible_collections.kvm.fleet.plugins.module_utils._packages import PackageChange, Prediction, Room
from ansible_collections.kvm.fleet.plugins.module_utils._room import (
    RESERVE_KIB,
    FreeSpace,
    Place,
    check_room,
    free_space,
    parse_free_space,
    require_room,
)
from tests.unit.fake_agent import Ending, FakeAgent
from tests.unit.fake_clock import FakeClock
from tests.unit.host_agent import HostAgent

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1024
"""In KiB."""


def at(mount: str, kib: int, device: str = "") -> Place:
    return Place(device or f"/dev{mount}", mount, kib)


def on_one(kib: int, kernel: int = 0) -> FreeSpace:
    return FreeSpace(at("/", kib), at("/", kib), at("/", kib), kernel)


def needing(download: int = 0, unpacked: int = 0, *names: str) -> Prediction:
    """A prediction that needs so many KiB, and brings new packages."""
    changes = tuple(PackageChange(name, "amd64", None, "1") for name in names or ("a",))
    return Prediction(changes, room=Room(download * 1024, unpacked * 1024))


@pytest.mark.parametrize(
    ("free", "prediction", "full"),
    [
        (on_one(RESERVE_KIB + 300), needing(100, 200), None),
        (on_one(RESERVE_KIB + 299), needing(100, 200), "/"),
        # Apart, each has only its own to hold.
        (
            FreeSpace(at("/var", RESERVE_KIB + 100), at("/usr", RESERVE_KIB + 200), at("/", 0), 0),
            needing(100, 200),
            None,
        ),
        (
            FreeSpace(at("/var", RESERVE_KIB + 99), at("/usr", RESERVE_KIB + 200), at("/", 0), 0),
            needing(100, 200),
            "/var",
        ),
        (
            FreeSpace(at("/var", RESERVE_KIB + 100), at("/usr", RESERVE_KIB + 199), at("/", 0), 0),
            needing(100, 200),
            "/usr",
        ),
        # A file system that the upgrade puts nothing on may be as full as it likes.
        (on_one(0), needing(0, 0), None),
        (FreeSpace(at("/", 10**9), at("/", 10**9), at("/boot", 0), 60 * MIB), needing(1, 1), None),
        (
            FreeSpace(at("/", 10**9), at("/", 10**9), at("/boot", 70 * MIB), 60 * MIB),
            needing(1, 1, "kernel-core"),
            "/boot",
        ),
        (
            FreeSpace(at("/", 10**9), at("/", 10**9), at("/boot", 76 * MIB), 60 * MIB),
            needing(1, 1, "kernel-core"),
            None,
        ),
        # Somebody wrote to it between one look and the other.
        (FreeSpace(at("/", RESERVE_KIB + 301), at("/", RESERVE_KIB + 299), at("/", 0), 0), needing(100, 200), "/"),
        # Subvolumes of one btrfs share its room; what is no device may be many.
        (
            FreeSpace(
                at("/var", RESERVE_KIB + 299, "/dev/a"),
                at("/", RESERVE_KIB + 299, "/dev/a"),
                at("/boot", RESERVE_KIB + 299, "/dev/a"),
                0,
            ),
            needing(100, 200),
            "/var",
        ),
        (
            FreeSpace(
                at("/var", RESERVE_KIB + 299, "tmpfs"),
                at("/", RESERVE_KIB + 299, "tmpfs"),
                at("/boot", RESERVE_KIB + 299, "tmpfs"),
                0,
            ),
            needing(100, 200),
            None,
        ),
        (None, needing(10**9, 10**9), None),
    ],
)
def test_an_upgrade_is_refused_by_the_first_file_system_that_has_no_room(
    free: FreeSpace | None, prediction: Prediction, full: str | None
) -> None:
    if full is None:
        check_room(free, prediction)
        return
    with pytest.raises(DiskFull) as raised:
        check_room(free, prediction)
    assert raised.value.evidence["mount"] == full


def test_a_refusal_says_how_much_is_there_and_how_much_is_needed() -> None:
    with pytest.raises(DiskFull) as raised:
        check_room(on_one(20 * MIB), needing(100 * MIB, 30 * MIB))
    assert raised.value.message == "/ in the guest has 20 MiB free, and the upgrade needs 146 MiB there"
    assert raised.value.evidence == {"mount": "/", "free_kib": 20 * MIB, "needed_kib": 146 * MIB}


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("linux-image-6.1.0-37-amd64", True),
        ("linux-image-6.8.0-31-generic", True),
        ("kernel", True),
        ("kernel-core", True),
        ("kernel-default", True),
        ("kernel-uek", True),
        ("kernel-uek-core", True),
        ("kernel-rt-core", True),
        ("kernel-64k-debug-core", True),
        ("kernel-modules-core", False),
        ("kernel-rt-modules-core", False),
        ("linux-image-6.1.0-37-amd64-dbg", False),
        ("linux-image-6.8.0-31-generic-dbgsym", False),
        ("linux-image-amd64", False),
        ("linux-headers-6.1.0-37-amd64", False),
        ("kernel-headers", False),
        ("kernel-devel", False),
    ],
)
def test_what_puts_a_kernel_into_boot_is_told_by_its_name(name: str, is_one: bool) -> None:
    free = FreeSpace(at("/", 10**9), at("/", 10**9), at("/boot", 0), 1)
    prediction = needing(0, 0, name)
    if is_one:
        with pytest.raises(DiskFull):
            check_room(free, prediction)
    else:
        check_room(free, prediction)


@pytest.mark.parametrize(
    ("names", "count"),
    [(("kernel", "kernel-core", "kernel-modules-core"), 1), (("kernel-uek", "kernel-core"), 2), (("kernel",), 1)],
)
def test_a_kernel_counts_once(names: tuple[str, ...], count: int) -> None:
    one, needs = 20 * MIB, RESERVE_KIB + count * 20 * MIB
    check_room(FreeSpace(at("/", 10**9), at("/", 10**9), at("/boot", needs), one), needing(0, 0, *names))
    with pytest.raises(DiskFull):
        check_room(FreeSpace(at("/", 10**9), at("/", 10**9), at("/boot", needs - 1), one), needing(0, 0, *names))


def test_a_kernel_that_goes_needs_no_room() -> None:
    gone = Prediction((PackageChange("kernel-core", "x86_64", "1", None),))
    check_room(FreeSpace(at("/", 0), at("/", 0), at("/boot", 0), 60 * MIB), gone)


# --- asking --------------------------------------------------------------------------------------


def test_a_guests_answer_is_read() -> None:
    lines = ["free 100 /dev/var /var", "free 200 /dev/ /", "free 300 /dev/boot /boot", "kernel 40"]
    assert parse_free_space(lines) == FreeSpace(at("/var", 100), at("/", 200), at("/boot", 300), 40)


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["free 100 /dev/a /var", "free 200 /dev/b /"],
        ["free 100 /dev/a /var", "free 200 /dev/b /", "free - /dev/c /boot", "kernel 40"],
        ["free 100 /dev/a var", "free 200 /dev/b /", "free 300 /dev/c /boot"],
        ["df: /var: No such file"],
    ],
)
def test_a_guest_that_cannot_tell_is_not_judged(lines: list[str]) -> None:
    assert parse_free_space(lines) is None


@given(st.lists(st.text()))
def test_whatever_a_guest_tells_is_free_space_or_none(lines: list[str]) -> None:
    parse_free_space(lines)


def test_this_machine_can_tell(host: HostAgent) -> None:
    free = free_space(GuestAgent(host, SystemClock()))
    assert free
    for place in (free.download, free.unpack, free.boot):
        assert place.mount.startswith("/")
        assert place.free >= 0
    assert free.kernel >= 0


def test_a_kernels_initramfs_counts_by_whatever_name(tmp_path: Path) -> None:
    for name in ("vmlinuz-6.1-1.x86_64", "initramfs-6.1-1.x86_64.img", "initramfs-6.0-1.x86_64.img"):
        (tmp_path / name).write_bytes(bytes(MIB * 1024))
    look = f"uname() {{ echo 6.1-1.x86_64; }}\n{_room._LOOK.replace('/boot', str(tmp_path))}"
    told = subprocess.run(["/bin/sh", "-c", look], stdout=subprocess.PIPE, text=True, check=True).stdout
    free = parse_free_space(told.splitlines())
    assert free
    assert free.kernel == 2 * MIB


def test_a_machine_without_awk_is_not_judged(host: HostAgent) -> None:
    host.install("awk", "exit 127\n")
    assert free_space(GuestAgent(host, SystemClock())) is None


def test_where_nothing_is_to_be_done_nobody_is_asked(clock: FakeClock) -> None:
    agent = FakeAgent(clock, lambda _call: Ending(stdout=b"free 0 /dev/a /\n" * 3))
    require_room(GuestAgent(agent, clock), Prediction())
    assert agent.calls == []
    with pytest.raises(DiskFull):
        require_room(GuestAgent(agent, clock), needing(1))
