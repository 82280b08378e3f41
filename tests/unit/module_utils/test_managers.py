# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which package manager a guest has, by what it says of itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvm.fleet.plugins.module_utils._apt import Apt
from ansible_collections.kvm.fleet.plugins.module_utils._dnf import Dnf
from ansible_collections.kvm.fleet.plugins.module_utils._errors import PackageManagerUnknown, SelinuxDenied
from ansible_collections.kvm.fleet.plugins.module_utils._manager import PackageManager
from ansible_collections.kvm.fleet.plugins.module_utils._managers import choose, parse_system
from ansible_collections.kvm.fleet.plugins.module_utils._zypper import Zypper

APT = ("has apt-get", "has dpkg-query")
DNF = ("has dnf", "has rpm")
ZYPPER = ("has zypper", "has rpm")
CONFINED = ("enforcing 1", "context system_u:system_r:virt_qemu_ga_t:s0")


@pytest.mark.parametrize(
    ("lines", "manager"),
    [
        (("id debian", "like ", *APT), Apt()),
        (("id linuxmint", "like ubuntu debian", *APT, *DNF), Apt()),
        (("id fedora", "like ", *APT, *DNF), Dnf("dnf")),
        (("id rocky", "like rhel centos fedora", *DNF), Dnf("dnf")),
        (("id fedora", "like ", "has dnf5", *DNF), Dnf("dnf")),
        (("id fedora", "like ", "has dnf5", "has rpm"), Dnf("dnf5")),
        (("id openEuler", "like ", *DNF), Dnf("dnf")),
        (("id fedora", "like ", *APT), Apt()),
        (DNF, Dnf("dnf")),
        (("id opensuse-leap", "like suse opensuse", *APT, *DNF, *ZYPPER), Zypper()),
        (("id sles", "like suse", *ZYPPER), Zypper()),
        (("id fedora", "like ", *ZYPPER, *DNF), Dnf("dnf")),
        (ZYPPER, Zypper()),
    ],
)
def test_a_guests_own_package_manager_is_preferred(lines: tuple[str, ...], manager: PackageManager) -> None:
    assert choose(parse_system(lines), "auto") == manager


def test_a_wanted_package_manager_is_taken_if_it_is_there() -> None:
    system = parse_system(("id debian", "like ", *APT, *DNF))
    assert choose(system, "dnf") == Dnf("dnf")
    with pytest.raises(
        PackageManagerUnknown, match=r"the guest \(os-release: debian\) has no zypper; known are apt, dnf, zypper"
    ):
        choose(system, "zypper")


@pytest.mark.parametrize("lines", [(), ("id alpine", "like "), ("id centos", "like rhel", "has yum", "has rpm")])
def test_a_guest_without_one_is_told(lines: tuple[str, ...]) -> None:
    with pytest.raises(PackageManagerUnknown, match="no package manager that is known here"):
        choose(parse_system(lines), "auto")


@pytest.mark.parametrize("wanted", ["auto", "dnf"])
def test_a_package_manager_that_selinux_does_not_let_run_is_there(wanted: str) -> None:
    with pytest.raises(SelinuxDenied) as caught:
        choose(parse_system(("id rhel", "like fedora", "denied dnf", "has rpm", *CONFINED)), wanted)
    assert caught.value.evidence["denied"] == ["dnf"]


def test_what_may_not_be_run_for_another_reason_is_not_there() -> None:
    with pytest.raises(PackageManagerUnknown):
        choose(parse_system(("id rhel", "like fedora", "denied dnf", "has rpm", "enforcing 0")), "auto")


@given(st.lists(st.text()))
def test_whatever_a_guest_says_is_read(lines: list[str]) -> None:
    assert parse_system(lines).name
