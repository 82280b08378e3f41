# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""guest_upgrade by itself, without the role around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.proof import Look, break_package, look
from tests.integration.runs import module, refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.guests import Guest

# Holds dpkg's lock as another package manager does, for longer than any test.
HOLD_LOCK = """\
open(my $lock, '+>', '/var/lib/dpkg/lock-frontend') or die;
my $write = pack('s s l! l! i', 1, 0, 0, 0, 0);
fcntl($lock, 6, $write) or die;
sleep 600;
"""


@dataclass(frozen=True)
class Upgraded:
    """A guest that was upgraded twice in a row, and how it was found in between."""

    guest: Guest
    before: Look
    first: dict[str, Any]
    after: Look
    second: dict[str, Any]
    in_the_end: Look


@pytest.fixture(scope="module")
def upgraded(shared_guest: Guest) -> Iterator[Upgraded]:
    shared_guest.reset()
    before = look(shared_guest)
    first = module("guest_upgrade", name=shared_guest.name, autoremove=True)
    after = look(shared_guest)
    second = module("guest_upgrade", name=shared_guest.name, autoremove=True)
    yield Upgraded(shared_guest, before, first, after, second, look(shared_guest))
    shared_guest.reset()


def test_an_upgrade_of_the_agent_survives_the_agents_restart(upgraded: Upgraded) -> None:
    assert not upgraded.first["failed"], upgraded.first
    assert upgraded.after.agent_pid != upgraded.before.agent_pid
    assert upgraded.after.packages["qemu-guest-agent"] == upgraded.before.packages["qemu-guest-agent"] + "+lab1"
    assert upgraded.guest.output("/usr/bin/dpkg", "--audit") == ""


def test_the_result_tells_each_change_as_dpkg_recorded_it(upgraded: Upgraded) -> None:
    old, new = upgraded.before.packages, upgraded.after.packages
    changed = {name: (old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)}
    assert {change["name"]: (change["old"], change["new"]) for change in upgraded.first["packages"]} == changed
    assert "lab-obsolete" in changed
    assert [change["name"] for change in upgraded.first["packages"] if change["security"]] == ["lab-library"]


def test_a_reboot_is_asked_for(upgraded: Upgraded) -> None:
    assert upgraded.first["reboot_required"] is True
    assert upgraded.first["reboot_reasons"] == ["/run/reboot-required (lab-kernel)"]


def test_an_upgrade_does_not_restart_the_guest(upgraded: Upgraded) -> None:
    assert upgraded.after.process == upgraded.before.process
    assert upgraded.after.boot_id == upgraded.before.boot_id


def test_nothing_is_left_of_the_job(upgraded: Upgraded) -> None:
    assert upgraded.after.left == ()


def test_a_second_upgrade_has_nothing_to_do(upgraded: Upgraded) -> None:
    assert (upgraded.second["changed"], upgraded.second["packages"]) == (False, [])
    assert upgraded.in_the_end.packages == upgraded.after.packages


def test_security_only_in_check_mode(shared_guest: Guest) -> None:
    shared_guest.reset()
    before = look(shared_guest)
    result = module("guest_upgrade", check=True, name=shared_guest.name, security_only=True)
    assert [(change["name"], change["security"]) for change in result["packages"]] == [("lab-library", True)]
    assert look(shared_guest) == before


def test_a_package_that_cannot_be_upgraded(pristine_guest: Guest) -> None:
    break_package(pristine_guest, "lab-config")
    result = refusal("guest_upgrade", name=pristine_guest.name)
    assert result["error_code"] == "upgrade_failed"
    assert result["evidence"]["packages"] == ["lab-config"]
    assert "lab-config" in result["msg"]
    assert any("broken on purpose" in line for line in result["evidence"]["output"])
    assert pristine_guest.package_versions()["lab-config"] == "1.0"


def test_another_package_manager_holds_the_lock(pristine_guest: Guest) -> None:
    pristine_guest.output("/usr/bin/systemd-run", "--collect", "/usr/bin/perl", "-e", HOLD_LOCK)
    before = pristine_guest.package_versions()
    result = refusal("guest_upgrade", name=pristine_guest.name, lock_retries=1, lock_delay=2)
    assert (result["error_code"], result["transient"]) == ("package_manager_locked", True)
    assert result["evidence"]["holder"] == "perl"
    assert pristine_guest.package_versions() == before


def test_no_upgrade_is_started_beside_one_that_somebody_else_runs(pristine_guest: Guest) -> None:
    unit = ("--unit=kvm-fleet-upgrade.service", "/bin/sleep", "600")
    pristine_guest.output("/usr/bin/systemd-run", "--collect", *unit)
    before = pristine_guest.package_versions()
    result = refusal("guest_upgrade", name=pristine_guest.name)
    assert (result["error_code"], result["transient"]) == ("upgrade_running", True)
    assert pristine_guest.package_versions() == before


def test_a_guest_without_a_known_package_manager(pristine_guest: Guest) -> None:
    pristine_guest.output("/bin/mv", "/usr/bin/apt-get", "/usr/bin/apt-get.away")
    result = refusal("guest_upgrade", name=pristine_guest.name)
    assert result["error_code"] == "package_manager_unknown"
    assert "debian" in result["msg"] or "ubuntu" in result["msg"]


def test_a_repository_that_is_gone(pristine_guest: Guest) -> None:
    pristine_guest.output("/bin/mv", "/srv/lab/main", "/srv/lab/away")
    before = look(pristine_guest)
    result = refusal("guest_upgrade", check=True, name=pristine_guest.name)
    assert (result["error_code"], result["transient"]) == ("package_lists_failed", True)
    assert look(pristine_guest) == before
