# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""guest_upgrade on a guest whose package manager is dnf."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from lab import rpms
from lab.clock import wait_until
from lab.errors import AgentFailed
from tests.integration.packages import changed, changes_told
from tests.integration.proof import LET_GO, let_go_after, look
from tests.integration.runs import module, refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lab.guests import Guest
    from lab.rpms import Rpm
    from lab.session import Session
    from tests.integration.proof import Look

PATIENCE_S = 120
ADMINISTRATORS = b"edited-by-the-administrator"

# What an upgrade or a look at one would touch: names, sizes, times and contents. Whoever reads rpm's database touches
# its shared memory.
FINGERPRINT = """\
set -- /etc /var/lib/dnf /var/lib/rpm /var/cache /var/log/dnf* /var/log/hawkey.log /usr/share/lab-rpm
find "$@" -name 'rpmdb.sqlite-*' -prune -o -type f -printf '%p %s %T@\\n' -exec sha256sum {} + | sort | sha256sum
"""

# Locks as rpm does, until it is told to let go.
HOLD_LOCK = f"""\
import fcntl, os, time
lock = open("/var/lib/rpm/.rpm.lock", "r+")
fcntl.lockf(lock, fcntl.LOCK_EX)
print("locked", flush=True)
while not os.path.exists("{LET_GO}"):
    time.sleep(0.1)
"""

POST_FAILS = replace(rpms.plain("lab-library", "1.1"), post="echo post says no; exit 1\n")
# Every section of a spec ends where the next one begins.
PRE_FAILS = replace(rpms.plain("lab-app", "2.0", "lab-library"), post="true\n%pre\necho pre says no; exit 1\n")
# Its script takes long the first time.
SLOW = replace(rpms.plain("lab-library", "1.1"), post="[ -e /root/begun ] || { echo >/root/begun; sync; sleep 600; }\n")
LARGE = replace(rpms.plain("lab-library", "1.1"), files={"usr/share/lab-rpm/lab-library/large": "0" * 20_000_000})
CONFLICTING = rpms.plain("lab-app", "2.1", "lab-library", "lab-absent")
LIBRARY = rpms.NEW_LIBRARY
CONFIG = rpms.with_configuration("1.1")


@pytest.fixture(scope="module")
def running(lab: Session) -> Iterator[Guest]:
    with lab.guest(package_manager="dnf") as guest:
        guest.take_pristine()
        yield guest


@pytest.fixture
def guest(running: Guest) -> Guest:
    """The guest as it first came up."""
    running.reset()
    return running


@pytest.fixture
def publish(guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Gives the guest another repository, of these packages."""

    def packages(*wanted: Rpm) -> None:
        directory, scratch = tmp_path_factory.mktemp("repository"), tmp_path_factory.mktemp("scratch")
        for one in wanted:
            rpms.build(one, directory, scratch)
        rpms.index(directory, scratch)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            archive.add(directory, arcname=".")
        guest.write_file("/srv/repository.tar.gz", packed.getvalue())
        guest.output("/bin/sh", "-c", "rm -r /srv/lab/rpm/* && tar -xzf /srv/repository.tar.gz -C /srv/lab/rpm")

    return packages


def fingerprint(guest: Guest) -> str:
    return guest.output("/bin/sh", "-c", FINGERPRINT, deadline_s=PATIENCE_S)


def kept_back(result: Mapping[str, Any]) -> dict[str, str]:
    return {kept["name"]: kept["reason"] for kept in result["kept_back"]}


# --- an upgrade ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Upgraded:
    """A guest that was upgraded twice in a row."""

    guest: Guest
    before: Look
    rpms_before: Mapping[str, str]
    first: dict[str, Any]
    after: Look
    rpms_after: Mapping[str, str]
    second: dict[str, Any]


@pytest.fixture(scope="module")
def upgraded(running: Guest) -> Upgraded:
    running.reset()
    # dnf would wait for ever for the process that has this pid since the guest went down.
    running.write_file("/var/lib/dnf/rpmdb_lock.pid", b"1")
    before, rpms_before = look(running), running.rpm_versions()
    first = module("guest_upgrade", name=running.name, autoremove=True)
    after, rpms_after = look(running), running.rpm_versions()
    second = module("guest_upgrade", name=running.name)
    return Upgraded(running, before, rpms_before, first, after, rpms_after, second)


def test_the_result_tells_each_change_as_rpm_recorded_it(upgraded: Upgraded) -> None:
    assert not upgraded.first["failed"], upgraded.first
    assert upgraded.first["package_manager"] == "dnf"
    assert changes_told(upgraded.first) == changed(upgraded.rpms_before, upgraded.rpms_after)
    assert changes_told(upgraded.first) == {
        "lab-app": ("1.0-1", "2.0-1"),
        "lab-config": ("1.0-1", "1.1-1"),
        "lab-kernel": ("1.0-1", "1.1-1"),
        "lab-library": ("1.0-1", "1.1-1"),
        "lab-obsolete": ("1.0-1", None),
        "lab-plugin": (None, "1.0-1"),
        "qemu-guest-agent": ("2:1.0-1", "2:1.1-1"),
    }
    assert [change["name"] for change in upgraded.first["packages"] if change["security"]] == ["lab-library"]


def test_an_upgrade_of_the_agent_survives_the_agents_restart(upgraded: Upgraded) -> None:
    assert upgraded.after.agent_pid != upgraded.before.agent_pid
    assert upgraded.after.boot_id == upgraded.before.boot_id


def test_configuration_files_that_were_kept_are_told(upgraded: Upgraded) -> None:
    assert upgraded.first["config_files"] == [f"/{rpms.CONFIGURATION}.rpmnew"]
    assert ADMINISTRATORS in upgraded.guest.read_file(f"/{rpms.CONFIGURATION}")


def test_a_reboot_is_asked_for(upgraded: Upgraded) -> None:
    assert upgraded.first["reboot_required"] is True
    assert upgraded.first["reboot_reasons"] == ["installed since the boot: lab-kernel"]


def test_nothing_is_left_of_the_job_and_a_second_one_has_nothing_to_do(upgraded: Upgraded) -> None:
    assert upgraded.after.left == ()
    assert (upgraded.second["changed"], upgraded.second["packages"]) == (False, [])


# --- looking ahead -------------------------------------------------------------------------------


def test_check_mode_tells_what_would_be_and_changes_nothing(guest: Guest) -> None:
    guest.write_file("/etc/dnf/plugins/versionlock.list", b"lab-kernel-0:1.0-1.*\n")
    before = fingerprint(guest)
    result = module("guest_upgrade", check=True, name=guest.name, exclude=["lab-con*"])
    assert fingerprint(guest) == before
    assert look(guest).left == ()
    assert {name: new for name, (_old, new) in changes_told(result).items()} == {
        "lab-app": "2.0-1",
        "lab-library": "1.1-1",
        "lab-plugin": "1.0-1",
        "qemu-guest-agent": "2:1.1-1",
    }
    assert [change["name"] for change in result["packages"] if change["security"]] == ["lab-library"]
    assert kept_back(result) == {"lab-config": "excluded", "lab-kernel": "held"}


def test_only_security_updates(guest: Guest) -> None:
    result = module("guest_upgrade", check=True, name=guest.name, security_only=True)
    assert changes_told(result) == {"lab-library": ("1.0-1", "1.1-1")}
    assert result["kept_back"] == []


def test_a_repository_that_is_gone(guest: Guest) -> None:
    guest.output("/bin/mv", "/srv/lab/rpm", "/srv/lab/away")
    before = fingerprint(guest)
    result = refusal("guest_upgrade", check=True, name=guest.name)
    assert (result["error_code"], result["transient"]) == ("repository_unreachable", True)
    assert fingerprint(guest) == before
    assert look(guest).left == ()


@pytest.mark.thorough
def test_dependencies_that_cannot_be_satisfied(guest: Guest, publish: Any) -> None:
    publish(CONFLICTING, LIBRARY)
    result = module("guest_upgrade", check=True, name=guest.name)
    assert changes_told(result) == {"lab-library": ("1.0-1", "1.1-1")}
    assert kept_back(result) == {"lab-app": "dependencies"}
    guest.output("/bin/sed", "-i", "s/best=False/best=True/", "/etc/dnf/dnf.conf")
    result = refusal("guest_upgrade", check=True, name=guest.name)
    assert (result["error_code"], result["transient"]) == ("dependency_conflict", False)
    assert "nothing provides lab-absent" in result["msg"]


# --- obstacles -----------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_lock_is_waited_for_as_long_as_allowed(guest: Guest) -> None:
    guest.output("/usr/bin/systemd-run", "--collect", "--unit=holder", "/usr/bin/python3", "-c", HOLD_LOCK)
    assert wait_until(
        lambda: "locked" in guest.output("/usr/bin/journalctl", "--unit=holder", "--output=cat"), PATIENCE_S
    )
    before = guest.rpm_versions()
    for check in (True, False):
        result = refusal("guest_upgrade", check=check, name=guest.name, lock_retries=1, lock_delay=1)
        assert (result["error_code"], result["transient"]) == ("package_manager_locked", True)
        assert result["evidence"]["holder"] == "python3"
    assert guest.rpm_versions() == before
    let_go_after(guest, 40)
    result = module("guest_upgrade", name=guest.name)
    assert not result["failed"], result
    assert guest.run("/usr/bin/test", "-e", LET_GO).returncode == 0
    assert changes_told(result) == changed(before, guest.rpm_versions())


@pytest.mark.thorough
def test_scripts_of_packages_that_fail(guest: Guest, publish: Any) -> None:
    publish(POST_FAILS, PRE_FAILS, CONFIG)
    result = refusal("guest_upgrade", name=guest.name)
    assert result["error_code"] == "maintainer_script_failed"
    assert result["evidence"]["packages"] == ["lab-app", "lab-library"]
    # What failed before it was installed is not; what failed after it was installed is.
    after = guest.rpm_versions()
    assert (after["lab-app"], after["lab-library"], after["lab-config"]) == ("1.0-1", "1.1-1", "1.1-1")
    assert {change["name"] for change in result["evidence"]["changes"]} == {"lab-library", "lab-config"}


@pytest.mark.thorough
def test_a_script_that_fails_where_dnf_calls_it_a_success(guest: Guest, publish: Any) -> None:
    publish(POST_FAILS)
    result = refusal("guest_upgrade", name=guest.name)
    assert result["error_code"] == "maintainer_script_failed"
    assert result["evidence"]["packages"] == ["lab-library"]


@pytest.mark.thorough
def test_a_disk_with_too_little_room(guest: Guest, publish: Any) -> None:
    publish(LARGE)
    free_kib = int(guest.output("/bin/df", "--output=avail", "/var").split()[-1])
    guest.output("/usr/bin/fallocate", "--length", f"{free_kib - 10 * 1024}KiB", "/srv/ballast")
    before = guest.rpm_versions()
    result = refusal("guest_upgrade", name=guest.name)
    assert (result["error_code"], result["evidence"]["changes"]) == ("disk_full", [])
    assert guest.rpm_versions() == before


@pytest.mark.thorough
def test_a_power_cut_in_the_middle_is_repaired_by_the_next_run(guest: Guest, publish: Any) -> None:
    publish(SLOW, CONFIG)
    before = guest.rpm_versions()
    result = module("guest_upgrade", name=guest.name, run="cut", interval=1)
    assert result["finished"] is False
    assert wait_until(lambda: begun(guest), PATIENCE_S)
    guest.domain.destroy()
    guest.start()
    guest.wait_until_ready()
    listed = guest.output("/usr/bin/rpm", "-q", "lab-library").split()
    assert listed == ["lab-library-1.0-1.noarch", "lab-library-1.1-1.noarch"]
    result = module("guest_upgrade", name=guest.name)
    assert not result["failed"], result
    assert changes_told(result) == changed(before, guest.rpm_versions())
    assert guest.output("/usr/bin/rpm", "-q", "lab-library").split() == ["lab-library-1.1-1.noarch"]
    assert guest.output("/usr/bin/dnf", "-q", "check", deadline_s=PATIENCE_S) == ""


def begun(guest: Guest) -> bool:
    """Whether the package's script has begun. Asked while the agent may restart."""
    try:
        return guest.run("/usr/bin/test", "-e", "/root/begun").returncode == 0
    except AgentFailed:
        return False
