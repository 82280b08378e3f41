# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a guest has room for an upgrade."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._clock import SystemClock
from ansible_collections.kvm.fleet.plugins.module_utils._errors import DiskFull
from ansible_collections.kvm.fleet.plugins.module_utils._packages import PackageChange, Prediction, Room
from ansible_collections.kvm.fleet.plugins.module_utils._room import (
    RESERVE_KIB,
    FreeSpace,
    check_room,
    free_space,
    parse_free_space,
    require_room,
)
from tests.unit.fake_agent import Ending, FakeAgent
from tests.unit.fake_clock import FakeClock
from tests.unit.host_agent import HostAgent

MIB = 1024
"""In KiB."""


def on_one(kib: int, kernel: int = 0) -> FreeSpace:
    return FreeSpace(("/", kib), ("/", kib), ("/", kib), kernel)


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
        (FreeSpace(("/var", RESERVE_KIB + 100), ("/usr", RESERVE_KIB + 200), ("/", 0), 0), needing(100, 200), None),
        (FreeSpace(("/var", RESERVE_KIB + 99), ("/usr", RESERVE_KIB + 200), ("/", 0), 0), needing(100, 200), "/var"),
        (FreeSpace(("/var", RESERVE_KIB + 100), ("/usr", RESERVE_KIB + 199), ("/", 0), 0), needing(100, 200), "/usr"),
        # A file system that the upgrade puts nothing on may be as full as it likes.
        (on_one(0), needing(0, 0), None),
        (FreeSpace(("/", 10**9), ("/", 10**9), ("/boot", 0), 60 * MIB), needing(1, 1), None),
        (FreeSpace(("/", 10**9), ("/", 10**9), ("/boot", 70 * MIB), 60 * MIB), needing(1, 1, "kernel-core"), "/boot"),
        (FreeSpace(("/", 10**9), ("/", 10**9), ("/boot", 76 * MIB), 60 * MIB), needing(1, 1, "kernel-core"), None),
        # Somebody wrote to it between one look and the other.
        (FreeSpace(("/", RESERVE_KIB + 301), ("/", RESERVE_KIB + 299), ("/", 0), 0), needing(100, 200), "/"),
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
        ("linux-image-amd64", False),
        ("linux-headers-6.1.0-37-amd64", False),
        ("kernel-headers", False),
        ("kernel-devel", False),
    ],
)
def test_what_puts_a_kernel_into_boot_is_told_by_its_name(name: str, is_one: bool) -> None:
    free = FreeSpace(("/", 10**9), ("/", 10**9), ("/boot", 0), 1)
    prediction = needing(0, 0, name)
    if is_one:
        with pytest.raises(DiskFull):
            check_room(free, prediction)
    else:
        check_room(free, prediction)


def test_a_kernel_that_goes_needs_no_room() -> None:
    gone = Prediction((PackageChange("kernel-core", "x86_64", "1", None),))
    check_room(FreeSpace(("/", 0), ("/", 0), ("/boot", 0), 60 * MIB), gone)


# --- asking --------------------------------------------------------------------------------------


def test_a_guests_answer_is_read() -> None:
    lines = ["free 100 /var", "free 200 /", "free 300 /boot", "kernel 40"]
    assert parse_free_space(lines) == FreeSpace(("/var", 100), ("/", 200), ("/boot", 300), 40)


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["free 100 /var", "free 200 /"],
        ["free 100 /var", "free 200 /", "free - /boot", "kernel 40"],
        ["free 100 var", "free 200 /", "free 300 /boot"],
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
    for mount, kib in (free.download, free.unpack, free.boot):
        assert mount.startswith("/")
        assert kib >= 0
    assert free.kernel >= 0


def test_a_machine_without_awk_is_not_judged(host: HostAgent) -> None:
    host.install("awk", "exit 127\n")
    assert free_space(GuestAgent(host, SystemClock())) is None


def test_where_nothing_is_to_be_done_nobody_is_asked(clock: FakeClock) -> None:
    agent = FakeAgent(clock, lambda _call: Ending(stdout=b"free 0 /\nfree 0 /\nfree 0 /\n"))
    require_room(GuestAgent(agent, clock), Prediction())
    assert agent.calls == []
    with pytest.raises(DiskFull):
        require_room(GuestAgent(agent, clock), needing(1))
