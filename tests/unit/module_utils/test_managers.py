# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which package manager a guest has, by what it says of itself."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvm.fleet.plugins.module_utils import _managers
from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._apt import Apt
from ansible_collections.kvm.fleet.plugins.module_utils._clock import SystemClock
from ansible_collections.kvm.fleet.plugins.module_utils._dnf import Dnf
from ansible_collections.kvm.fleet.plugins.module_utils._errors import PackageManagerUnknown, SelinuxDenied
from ansible_collections.kvm.fleet.plugins.module_utils._exec import output_of, shell_script
from ansible_collections.kvm.fleet.plugins.module_utils._manager import PackageManager
from ansible_collections.kvm.fleet.plugins.module_utils._managers import choose, package_manager, parse_system
from ansible_collections.kvm.fleet.plugins.module_utils._zypper import Zypper
from ansible_collections.kvm.fleet.plugins.modules.guest_upgrade import OPTIONS
from tests.unit.host_agent import HostAgent

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
        (("id unheard-of", "like ", *APT), Apt()),
        (DNF, Dnf("dnf")),
        (("id opensuse-leap", "like suse opensuse", *APT, *DNF, *ZYPPER), Zypper()),
        (("id sles", "like suse", *ZYPPER), Zypper()),
        (("id fedora", "like ", *ZYPPER, *DNF), Dnf("dnf")),
        (("id openmandriva", "like mandriva", *ZYPPER), Zypper()),
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


@pytest.mark.parametrize(
    ("lines", "none"),
    [
        ((), r"\(os-release: unknown\) has no apt or dnf or zypper;"),
        (("id alpine", "like "), r"\(os-release: alpine\) has no apt or dnf or zypper;"),
        (("id centos", "like rhel", "has yum", "has rpm"), r"\(os-release: centos\) has no dnf;"),
        # Another family's can be installed as a tool
        (("id debian", "like ", *DNF, *ZYPPER), r"\(os-release: debian\) has no apt;"),
        (("id fedora", "like ", *APT), r"\(os-release: fedora\) has no dnf;"),
    ],
)
def test_a_guest_without_its_own_is_told(lines: tuple[str, ...], none: str) -> None:
    with pytest.raises(PackageManagerUnknown, match=none):
        choose(parse_system(lines), "auto")


@pytest.mark.parametrize("wanted", ["auto", "dnf"])
def test_a_package_manager_that_selinux_does_not_let_run_is_there(wanted: str) -> None:
    with pytest.raises(SelinuxDenied) as caught:
        choose(parse_system(("id rhel", "like fedora", "denied dnf", "has rpm", *CONFINED)), wanted)
    assert caught.value.evidence == {"denied": ["dnf"], "runner": False}
    assert "the role kvm.fleet.selinux_runner installs" in caught.value.remedy


def test_a_runner_that_selinux_takes_for_any_other_program_is_told() -> None:
    with pytest.raises(SelinuxDenied, match="SELinux") as caught:
        choose(parse_system(("runner there", "id rhel", "denied dnf", "has rpm", *CONFINED)), "auto")
    assert caught.value.evidence["runner"] is True
    assert "virt_qemu_ga_run_unconfined is on" in caught.value.remedy
    assert "label virt_qemu_ga_unconfined_exec_t" in caught.value.remedy


def test_what_may_not_be_run_for_another_reason_is_not_there() -> None:
    with pytest.raises(PackageManagerUnknown):
        choose(parse_system(("id rhel", "like fedora", "denied dnf", "has rpm", "enforcing 0")), "auto")


@pytest.mark.parametrize(
    "confined",
    [
        ("enforcing 0", "context system_u:system_r:virt_qemu_ga_t:s0"),
        ("enforcing ", "context unconfined"),
        ("enforcing 1", "context system_u:system_r:virt_qemu_ga_unconfined_t:s0"),
    ],
    ids=["permissive", "no SELinux", "unconfined"],
)
def test_without_confinement_selinux_is_not_blamed(confined: tuple[str, ...]) -> None:
    with pytest.raises(PackageManagerUnknown):
        choose(parse_system(("id rhel", "denied dnf", "denied rpm", *confined)), "auto")


def test_another_manager_that_may_be_run_is_no_way_around_selinux() -> None:
    """An rpm system on which only apt-get may be run would be upgraded by nothing."""
    system = parse_system(("id rhel", "like fedora", "denied dnf", "has rpm", "has apt-get", *CONFINED))
    with pytest.raises(SelinuxDenied):
        choose(system, "auto")


@pytest.mark.parametrize("wanted", [wanted for wanted in OPTIONS["package_manager"]["choices"] if wanted != "auto"])
def test_each_package_manager_that_can_be_asked_for_is_known(wanted: str) -> None:
    with pytest.raises(PackageManagerUnknown, match=f"has no {wanted}; known are "):
        choose(parse_system(("id alpine",)), wanted)


def test_what_a_guest_says_of_itself_is_capped() -> None:
    assert len(parse_system(["id " + "x" * 100_000]).name) == 256


# --- what the guest is asked, under the real shell -----------------------------------------------


def ask(host: HostAgent, shell: str) -> list[str]:
    """Ask this machine, in a PATH that has only a test's own programs in it."""
    look = subprocess.run(
        [*shell.split(), "-c", _managers.LOOK, "sh"],
        env={"PATH": str(host.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return look.stdout.splitlines()


@pytest.mark.parametrize("shell", ["/bin/dash", "/bin/bash --posix"])
def test_a_program_that_may_not_be_run_is_told_from_one_that_is_not_there(host: HostAgent, shell: str) -> None:
    host.install("dnf", "")
    host.install("rpm", "")
    (host.path / "dnf").chmod(0o644)
    (host.path / "zypper").mkdir()
    told = ask(host, shell)
    assert [line for line in told if line.startswith(("has ", "denied "))] == ["denied dnf", "has rpm"]


def test_this_machine_has_no_runner(host: HostAgent) -> None:
    assert not parse_system(ask(host, "/bin/sh")).runner


def test_a_program_that_may_be_run_elsewhere_is_there(host: HostAgent) -> None:
    (host.path / "first").mkdir()
    (host.path / "first" / "dnf").touch()
    host.install("dnf", "")
    host.environment["PATH"] = f"{host.path}/first:{host.environment['PATH']}"
    told = output_of(GuestAgent(host, SystemClock()), shell_script(_managers.LOOK, timeout=60)).splitlines()
    assert "has dnf" in told


def test_this_machine_has_apt(host: HostAgent) -> None:
    """Its packages are installed by it (tools/install-packages)."""
    agent = GuestAgent(host, SystemClock())
    assert package_manager(agent, "auto") == package_manager(agent, "apt") == Apt()


@given(st.lists(st.text()))
def test_whatever_a_guest_says_is_read(lines: list[str]) -> None:
    assert parse_system(lines).name
