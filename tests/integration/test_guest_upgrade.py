# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""guest_upgrade by itself, without the role around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.packages import UPGRADED, changed, changes_told, upgraded_names
from tests.integration.proof import Look, break_package, look
from tests.integration.runs import module, refusal

if TYPE_CHECKING:
    from lab.fixtures import Kept
    from lab.guests import Guest

# Holds a lock as package managers do.
HOLD_LOCK = """\
open(my $lock, '+>', $ARGV[0]) or die;
my $write = pack('s s l! l! i', 1, 0, 0, 0, 0);
fcntl($lock, 6, $write) or die;
sleep $ARGV[1];
"""


def hold(guest: Guest, lock: str, seconds: int) -> None:
    """Have a process in a guest hold a lock from now on."""
    guest.output(
        *("/usr/bin/systemd-run", "--collect", "--unit=lock-holder"),
        *("/usr/bin/perl", "-e", HOLD_LOCK, lock, str(seconds)),
    )
    guest.output("/bin/sh", "-c", f"until grep -q :$(stat -c %i {lock}) /proc/locks; do sleep 0.1; done")


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
def upgraded(kept_guest: Kept) -> Upgraded:
    guest = kept_guest.to_change()
    guest.offer_newer_agent()
    before = look(guest)
    first = module("guest_upgrade", name=guest.name, autoremove=True)
    after = look(guest)
    second = module("guest_upgrade", name=guest.name, autoremove=True)
    return Upgraded(guest, before, first, after, second, look(guest))


def test_an_upgrade_of_the_agent_survives_the_agents_restart(upgraded: Upgraded) -> None:
    assert not upgraded.first["failed"], upgraded.first
    assert upgraded.after.agent_pid != upgraded.before.agent_pid
    assert upgraded.after.packages["qemu-guest-agent"] == upgraded.before.packages["qemu-guest-agent"] + "+lab1"
    assert upgraded.guest.output("/usr/bin/dpkg", "--audit") == ""


def test_the_result_tells_each_change_as_dpkg_recorded_it(upgraded: Upgraded) -> None:
    versions = changed(upgraded.before.packages, upgraded.after.packages)
    assert changes_told(upgraded.first) == versions
    assert "lab-obsolete" in versions
    assert [change["name"] for change in upgraded.first["packages"] if change["security"]] == ["lab-library"]


def test_configuration_files_that_were_kept_are_told(upgraded: Upgraded) -> None:
    assert upgraded.first["config_files"] == ["/etc/lab-config.conf.dpkg-dist"]
    assert b"edited-by-the-administrator" in upgraded.guest.read_file("/etc/lab-config.conf")


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
    before = look(shared_guest)
    result = module("guest_upgrade", check=True, name=shared_guest.name, security_only=True)
    assert [(change["name"], change["security"]) for change in result["packages"]] == [("lab-library", True)]
    assert look(shared_guest) == before


@pytest.mark.thorough
def test_a_package_that_cannot_be_upgraded(pristine_guest: Guest) -> None:
    break_package(pristine_guest, "lab-config")
    result = refusal("guest_upgrade", name=pristine_guest.name)
    assert result["error_code"] == "maintainer_script_failed"
    assert result["evidence"]["packages"] == ["lab-config"]
    assert "lab-config" in result["msg"]
    assert any("broken on purpose" in line for line in result["evidence"]["output"])
    assert pristine_guest.package_versions()["lab-config"] == "1.0"
    pristine_guest.output("/bin/rm", "/var/lib/dpkg/info/lab-config.prerm")
    mended = module("guest_upgrade", name=pristine_guest.name)
    assert not mended["failed"], mended
    assert upgraded_names(mended) == UPGRADED
    assert pristine_guest.output("/usr/bin/dpkg", "--audit") == ""


def test_another_package_manager_holds_the_lock(pristine_guest: Guest) -> None:
    hold(pristine_guest, "/var/lib/dpkg/lock-frontend", seconds=600)
    before = pristine_guest.package_versions()
    for check in (True, False):
        result = refusal("guest_upgrade", check=check, name=pristine_guest.name, lock_retries=1, lock_delay=2)
        assert (result["error_code"], result["transient"]) == ("package_manager_locked", True)
        assert result["evidence"]["holder"] == "perl"
        assert "by process" in result["msg"]
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
    assert (result["error_code"], result["transient"]) == ("repository_unreachable", True)
    assert look(pristine_guest) == before


def test_a_repository_that_is_not_signed(pristine_guest: Guest) -> None:
    pristine_guest.output("/bin/sed", "-i", "s/trusted=yes/check-date=yes/", "/etc/apt/sources.list.d/lab.list")
    result = refusal("guest_upgrade", check=True, name=pristine_guest.name)
    assert (result["error_code"], result["transient"]) == ("repository_untrusted", False)


def test_a_disk_with_too_little_room_is_told_before_anything_is_changed(pristine_guest: Guest) -> None:
    free_kib = int(pristine_guest.output("/bin/df", "--output=avail", "/var").split()[-1])
    pristine_guest.output("/usr/bin/fallocate", "--length", f"{free_kib - 10 * 1024}KiB", "/srv/ballast")
    before = pristine_guest.package_versions()
    for check in (True, False):
        result = refusal("guest_upgrade", check=check, name=pristine_guest.name)
        assert (result["error_code"], result["evidence"]["mount"]) == ("disk_full", "/")
        assert result["evidence"]["free_kib"] < result["evidence"]["needed_kib"]
    assert pristine_guest.package_versions() == before
    pristine_guest.output("/bin/rm", "/srv/ballast")
    assert upgraded_names(module("guest_upgrade", check=True, name=pristine_guest.name)) == UPGRADED


def test_a_lock_that_is_held_for_a_while_is_waited_for(pristine_guest: Guest) -> None:
    hold(pristine_guest, "/var/lib/dpkg/lock-frontend", seconds=20)
    result = module("guest_upgrade", name=pristine_guest.name, security_only=True)
    assert not result["failed"], result
    assert upgraded_names(result) == {"lab-library"}


def test_an_upgrade_that_takes_too_long_is_stopped_gently_and_goes_on_later(pristine_guest: Guest) -> None:
    hold(pristine_guest, "/var/lib/dpkg/lock-frontend", seconds=600)
    result = refusal("guest_upgrade", name=pristine_guest.name, timeout=5)
    assert result["error_code"] == "upgrade_timeout"
    assert (result["evidence"]["stopped"], result["evidence"]["changes"]) == (True, [])
    assert pristine_guest.output("/usr/bin/dpkg", "--audit") == ""
    pristine_guest.output("/usr/bin/systemctl", "stop", "lock-holder")
    later = module("guest_upgrade", name=pristine_guest.name)
    assert not later["failed"], later
    assert upgraded_names(later) == UPGRADED


def test_excluded_and_held_packages_stay_and_are_named(pristine_guest: Guest) -> None:
    pristine_guest.output("/usr/bin/apt-mark", "hold", "lab-kernel")
    pristine_guest.offer_newer_agent()
    result = module("guest_upgrade", name=pristine_guest.name, exclude=["lab-con*", "qemu-guest-agent"])
    assert {kept["name"]: kept["reason"] for kept in result["kept_back"]} == {
        "lab-config": "excluded",
        "lab-kernel": "held",
        "qemu-guest-agent": "excluded",
    }
    assert upgraded_names(result) == {"lab-app", "lab-library", "lab-plugin"}


def test_an_upgrade_that_replaces_edited_configuration_files_is_followed_in_several_tasks(
    pristine_guest: Guest,
) -> None:
    options: dict[str, Any] = {"name": pristine_guest.name, "conffiles": "replace", "run": "followed", "interval": 2}
    told = [module("guest_upgrade", **options)]
    while not told[-1]["failed"] and not told[-1]["finished"]:
        told.append(module("guest_upgrade", **options))
    assert not told[-1]["failed"], told[-1]
    assert upgraded_names(told[-1]) == UPGRADED
    assert told[-1]["progress"] is None
    progress = [result["progress"] for result in told[:-1]]
    # What is downloaded is counted apart from what is then installed, package by package.
    percents = [one["percent"] for one in progress if one["package"]]
    assert percents, progress
    assert percents == sorted(percents)
    assert all(one["activity"] for one in progress if one["percent"] is not None)
    assert [one["elapsed"] for one in progress] == sorted(one["elapsed"] for one in progress)
    assert told[-1]["config_files"] == ["/etc/lab-config.conf.dpkg-old"]
    assert b"setting = default" in pristine_guest.read_file("/etc/lab-config.conf")
    assert b"edited-by-the-administrator" in pristine_guest.read_file("/etc/lab-config.conf.dpkg-old")
