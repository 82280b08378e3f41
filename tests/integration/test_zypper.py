# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""guest_upgrade in a guest that zypper upgrades."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from lab import rpms
from lab.clock import wait_until
from tests.integration.packages import changed, changes_told, upgraded_names
from tests.integration.proof import LET_GO, let_go_after
from tests.integration.runs import module, refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from lab.guests import Guest
    from lab.session import Session

PATIENCE_S = 300

# What an upgrade, or a simulation that is none, may touch: names, sizes, times and contents.
FILES = """\
where='/etc /var/cache/zypp /var/lib/zypp /var/log/zypp /usr/share/lab-rpm'
find $where -printf '%p %s %T@ %C@\\n' | sha256sum
ls -d /var/log/zypper.log /var/tmp/kvm* /tmp/* /run/kvm-fleet* /var/lib/kvm-fleet/* 2>/dev/null | grep -v /systemd-
"""

# A newer lab-library than the repository's, whose script does what a test has written down.
SCRIPT = "/root/post"
SCRIPTED = rpms.Rpm(
    "lab-library", "1.2", files=rpms.payload("lab-library", "1.2"), post=f"[ ! -e {SCRIPT} ] || . {SCRIPT}\n"
)
# Comes after it, and needs room.
LARGE = replace(
    rpms.plain("lab-app", "2.1", "lab-library = 1.2", "lab-plugin"),
    files={**rpms.payload("lab-app", "2.1"), "usr/share/lab-rpm/lab-app/large": "0" * 2_000_000},
)
EXTRA = "/srv/lab/extra"


@pytest.fixture(scope="module")
def suse(lab: Session, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A running guest that calls itself openSUSE, with a second repository that it does not use yet."""
    repository, scratch = tmp_path_factory.mktemp("extra"), tmp_path_factory.mktemp("scratch")
    for one in (SCRIPTED, LARGE):
        rpms.build(one, repository, scratch)
    rpms.index(repository, scratch)
    with lab.guest(package_manager="zypper") as guest:
        put(guest, repository)
        guest.take_pristine()
        yield guest


def put(guest: Guest, repository: Path) -> None:
    guest.output("/bin/mkdir", "-p", f"{EXTRA}/repodata")
    for path in repository.rglob("*"):
        if path.is_file():
            guest.write_file(f"{EXTRA}/{path.relative_to(repository)}", path.read_bytes())


@pytest.fixture
def guest(suse: Guest) -> Guest:
    suse.reset()
    return suse


def offer(guest: Guest, script: str) -> None:
    """Have the guest use the second repository, whose package does this when it is installed."""
    guest.write_file(SCRIPT, script.encode())
    settings = rpms.REPOSITORY_SETTINGS.replace("lab", "extra").replace("/srv/extra/rpm", EXTRA)
    guest.write_file("/etc/zypp/repos.d/extra.repo", settings.encode())
    guest.output("/bin/sync")


def files(guest: Guest) -> str:
    return guest.run("/bin/sh", "-c", FILES).stdout


@dataclass(frozen=True)
class Upgraded:
    """A guest that was looked at in check mode and then upgraded."""

    guest: Guest
    before: Mapping[str, str]
    untouched: tuple[str, str]
    checked: dict[str, Any]
    result: dict[str, Any]
    after: Mapping[str, str]
    agents: tuple[str, str]


@pytest.fixture(scope="module")
def upgraded(suse: Guest) -> Upgraded:
    def agent() -> str:
        return suse.output("/usr/bin/systemctl", "show", "--property=MainPID", "--value", "qemu-guest-agent.service")

    suse.reset()
    before, old_files, old_agent = suse.rpm_versions(), files(suse), agent()
    checked = module("guest_upgrade", check=True, name=suse.name, exclude=["no-such-*"], autoremove=True)
    new_files = files(suse)
    result = module("guest_upgrade", name=suse.name, autoremove=True, clean=True)
    after = suse.rpm_versions()
    return Upgraded(suse, before, (old_files, new_files), checked, result, after, (old_agent, agent()))


def test_a_look_ahead_changes_nothing(upgraded: Upgraded) -> None:
    assert not upgraded.checked["failed"], upgraded.checked
    assert upgraded.untouched[0] == upgraded.untouched[1]
    assert upgraded_names(upgraded.checked) == upgraded_names(upgraded.result)


def test_an_upgrade_of_the_agent_survives_the_agents_restart(upgraded: Upgraded) -> None:
    assert not upgraded.result["failed"], upgraded.result
    assert upgraded.agents[0] != upgraded.agents[1]
    assert upgraded.after["qemu-guest-agent"] == "2:1.1-1"


def test_the_result_tells_each_change_as_rpm_recorded_it(upgraded: Upgraded) -> None:
    told = changes_told(upgraded.result)
    assert told == changed(upgraded.before, upgraded.after)
    assert told["lab-obsolete"] == ("1.0-1", None)
    for result in (upgraded.checked, upgraded.result):
        security = {change["name"]: change["security"] for change in result["packages"] if change["new"]}
        assert {name for name, known in security.items() if known} == {"lab-library"}
        assert None not in security.values()


def test_configuration_files_that_were_kept_are_told(upgraded: Upgraded) -> None:
    assert upgraded.result["config_files"] == ["/etc/lab-config-rpm.conf.rpmnew"]
    assert b"edited-by-the-administrator" in upgraded.guest.read_file("/etc/lab-config-rpm.conf")


def test_a_reboot_is_asked_for(upgraded: Upgraded) -> None:
    assert upgraded.result["reboot_required"] is True


@pytest.mark.thorough
def test_security_patches_alone(guest: Guest) -> None:
    before = guest.rpm_versions()
    result = module("guest_upgrade", name=guest.name, security_only=True)
    assert [(change["name"], change["security"]) for change in result["packages"]] == [("lab-library", True)]
    assert changed(before, guest.rpm_versions()) == {"lab-library": ("1.0-1", "1.1-1")}


@pytest.mark.thorough
def test_excluded_and_locked_packages_stay_and_are_named(guest: Guest) -> None:
    guest.output("/usr/bin/zypper", "--non-interactive", "addlock", "lab-ker*")
    locks = guest.read_file("/etc/zypp/locks")
    result = module("guest_upgrade", name=guest.name, exclude=["lab-con*", "lab-l[i-j]brary"], conffiles="replace")
    assert not result["failed"], result
    assert {kept["name"]: kept["reason"] for kept in result["kept_back"]} == {
        "lab-config": "excluded",
        "lab-kernel": "held",
        "lab-library": "excluded",
    }
    assert upgraded_names(result) == {"lab-app", "lab-plugin", "qemu-guest-agent"}
    assert guest.rpm_versions()["lab-config"] == "1.0-1"
    assert guest.read_file("/etc/zypp/locks") == locks


@pytest.mark.thorough
def test_another_zypper_is_waited_for_as_long_as_allowed(guest: Guest) -> None:
    offer(guest, f"touch /root/begun; until [ -e {LET_GO} ]; do sleep 0.1; done\n")
    guest.output("/usr/bin/systemd-run", "--collect", "/usr/bin/zypper", "-n", "update", "lab-library")
    guest.output("/bin/sh", "-c", "until [ -e /root/begun ]; do sleep 0.1; done")
    result = refusal("guest_upgrade", name=guest.name, lock_retries=1, lock_delay=1)
    assert (result["error_code"], result["transient"]) == ("package_manager_locked", True)
    assert result["evidence"]["holder"] in ("zypper", "rpm")
    assert "by process" in result["msg"]
    let_go_after(guest, 40)
    result = module("guest_upgrade", name=guest.name)
    assert not result["failed"], result
    assert guest.run("/usr/bin/test", "-e", LET_GO).returncode == 0
    # What the other one has upgraded is none of this one's.
    assert upgraded_names(result) == {"lab-app", "lab-config", "lab-kernel", "lab-plugin", "qemu-guest-agent"}


@pytest.mark.thorough
def test_a_disk_that_is_full_in_the_middle(guest: Guest) -> None:
    before = guest.rpm_versions()
    offer(guest, "fallocate --length $(df --output=avail --block-size=1 /srv | tail -n 1) /srv/ballast\n")
    result = refusal("guest_upgrade", name=guest.name)
    assert result["error_code"] == "disk_full"
    told = {change["name"]: (change["old"], change["new"]) for change in result["evidence"]["changes"]}
    assert told == changed(before, guest.rpm_versions())
    assert "lab-library" in told
    assert "lab-app" not in told
    guest.output("/bin/rm", "/srv/ballast", SCRIPT)
    result = module("guest_upgrade", name=guest.name)
    assert not result["failed"], result
    assert guest.rpm_versions()["lab-app"] == "2.1-1"
    assert changes_told(result) == changed(before, guest.rpm_versions())


@pytest.mark.thorough
def test_a_script_that_fails_is_told_with_its_package(guest: Guest) -> None:
    offer(guest, "exit 1\n")
    result = refusal("guest_upgrade", name=guest.name, conffiles="replace")
    assert (result["error_code"], result["evidence"]["packages"]) == ("maintainer_script_failed", ["lab-library"])
    assert {change["name"] for change in result["evidence"]["changes"]} > {"lab-app", "lab-library"}
    assert guest.read_file("/etc/lab-config-rpm.conf") == b"# lab-config 1.1\nsetting = default\n"
    assert b"edited-by-the-administrator" in guest.read_file("/etc/lab-config-rpm.conf.rpmsave")


def test_a_repository_that_is_gone(guest: Guest) -> None:
    offer(guest, "")
    guest.output("/bin/mv", EXTRA, f"{EXTRA}.away")
    before = files(guest)
    result = refusal("guest_upgrade", check=True, name=guest.name)
    assert (result["error_code"], result["transient"]) == ("repository_unreachable", True)
    assert "extra" in result["msg"]
    assert files(guest) == before


@pytest.mark.thorough
def test_what_a_power_cut_leaves_half_done_is_finished_by_the_next_run(guest: Guest) -> None:
    offer(guest, "touch /root/begun; sleep 600\n")
    before = guest.rpm_versions()
    running = module("guest_upgrade", name=guest.name, run="cut", interval=1)
    assert not running["failed"], running
    assert wait_until(lambda: guest.run("/usr/bin/test", "-e", "/root/begun").returncode == 0, PATIENCE_S)
    guest.domain.destroy()
    guest.start()
    guest.wait_until_ready()
    offer(guest, "echo again >>/root/ran\n")
    result = module("guest_upgrade", name=guest.name, run="next")
    assert not result["failed"], result
    after = guest.rpm_versions()
    assert changes_told(result) == changed(before, after)
    assert after["lab-library"] == "1.2-1"
    installed = guest.output("/usr/bin/rpm", "-qa", "--qf", "%{NAME}\\n").split()
    assert len(installed) == len(set(installed))
    assert guest.read_file("/root/ran") == b"again\n"
