# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""apt's words: what a simulation, dpkg's records and a failure mean. Recordings are of the named apt's real output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._apt import (
    Apt,
    explain,
    full_upgrade,
    is_security,
    parse_progress,
    parse_room,
    parse_simulation,
    pin,
    private_state,
    selected_upgrade,
    unattended,
)
from ansible_collections.kvm.fleet.plugins.module_utils._clock import SystemClock
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    DependencyConflict,
    DiskFull,
    FleetError,
    MaintainerScriptFailed,
    PackageListsFailed,
    PackageManagerLocked,
    PackageStateInterrupted,
    RepositoryUnreachable,
    RepositoryUntrusted,
    UpgradeFailed,
)
from ansible_collections.kvm.fleet.plugins.module_utils._exec import Command, run_command
from ansible_collections.kvm.fleet.plugins.module_utils._manager import Failure, Progress, Shell, UpgradeOptions
from ansible_collections.kvm.fleet.plugins.module_utils._packages import (
    KeptBack,
    KeptReason,
    PackageChange,
    Prediction,
    Room,
)
from tests.unit.host_agent import HostAgent
from tests.unit.real_apt import RealApt, offered
from tests.unit.recorded import recorded

# --- simulations ---------------------------------------------------------------------------------

BASH = PackageChange("bash", "amd64", "5.2.15-2+b7", "5.2.15-2+b8")
LIBC = PackageChange("libc6", "amd64", "2.36-9+deb12u9", "2.36-9+deb12u10", security=True)
FOREIGN_LIBC = PackageChange("libc6", "i386", "2.36-9+deb12u9", "2.36-9+deb12u10", security=True)
LIBSSL = PackageChange("libssl3", "amd64", "3.0.14-1~deb12u1", "3.0.16-1~deb12u1", security=True)
NEW_KERNEL = PackageChange("linux-image-6.1.0-37-amd64", "amd64", None, "6.1.140-1")
KERNEL = PackageChange("linux-image-amd64", "amd64", "6.1.137-1", "6.1.140-1")
OLD_KERNEL = PackageChange("linux-image-6.1.0-35-amd64", "", "6.1.137-1", None)
OPENSSL = PackageChange("openssl", "amd64", "3.0.14-1~deb12u1", "3.0.16-1~deb12u1", security=True)
TZDATA = PackageChange("tzdata", "all", "2024b-0+deb12u1", "2025b-0+deb12u1")

KEPT = (KeptBack("breaker", KeptReason.DEPENDENCIES), KeptBack("held", KeptReason.DEPENDENCIES))

SIMULATIONS = [
    (
        "apt-2.6-upgrade",
        Prediction((BASH, LIBC, FOREIGN_LIBC, LIBSSL, NEW_KERNEL, KERNEL, OPENSSL, TZDATA), KEPT),
    ),
    (
        "apt-2.6-upgrade-autoremove",
        Prediction((NEW_KERNEL, KERNEL, OLD_KERNEL, BASH, LIBC, FOREIGN_LIBC, LIBSSL, OPENSSL, TZDATA), KEPT),
    ),
    (
        "apt-2.6-ubuntu-archives",
        Prediction((BASH, LIBC, FOREIGN_LIBC, LIBSSL, NEW_KERNEL, KERNEL, OPENSSL, TZDATA), KEPT),
    ),
    ("apt-2.6-security-only", Prediction((LIBSSL, OPENSSL))),
    (
        "apt-2.6-purge",
        Prediction(
            (
                PackageChange("libc6", "", "2.36-9+deb12u9", None),
                PackageChange("tzdata", "", "2024b-0+deb12u1", None),
            )
        ),
    ),
    ("apt-2.6-nothing-to-do", Prediction(())),
]


@pytest.mark.parametrize(("recording", "expected"), SIMULATIONS, ids=[name for name, _expected in SIMULATIONS])
def test_a_recorded_simulation_is_read_whole(recording: str, expected: Prediction) -> None:
    assert parse_simulation(recorded(recording)) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Inst a [1] (2 Debian:12/stable [all])", PackageChange("a", "all", "1", "2")),
        ("Inst a (2 Debian:12/stable [all])", PackageChange("a", "all", None, "2")),
        ("Inst a [1] (2 [amd64])", PackageChange("a", "amd64", "1", "2", security=None)),
        (
            "Inst a [1] (2 My [odd] (label):1/x [amd64])",
            PackageChange("a", "amd64", "1", "2", security=None),
        ),
        ("Inst a [1:2~rc1-1] (1:2-1 local [all]) []", PackageChange("a", "all", "1:2~rc1-1", "1:2-1", security=None)),
        (
            "Inst a [1] (2 Ubuntu:24.04/noble-updates, Ubuntu:24.04/noble-security [amd64])",
            PackageChange("a", "amd64", "1", "2", security=True),
        ),
        ("Remv a [1]", PackageChange("a", "", "1", None)),
        ("Remv a:i386 [1] [b:amd64 ]", PackageChange("a", "", "1", None)),
        ("Purg a [1]", PackageChange("a", "", "1", None)),
    ],
)
def test_each_form_of_a_line_is_read(line: str, expected: PackageChange) -> None:
    assert parse_simulation(f"{line}\n").changes == (expected,)


@pytest.mark.parametrize(
    "line",
    [
        "Conf a (2 Debian:12/stable [all])",
        " Inst a [1] (2 x [all])",
        "Instead a [1] (2 x [all])",
        "Inst a",
        "Inst a [1] (2 x)",
        "Remv a",
        "",
    ],
)
def test_other_lines_are_no_changes(line: str) -> None:
    assert parse_simulation(f"{line}\n") == Prediction(())


def test_a_package_that_is_phased_is_told_from_one_whose_dependencies_forbid_it() -> None:
    output = (
        "The following upgrades have been deferred due to phasing:\n  a b\n"
        "The following packages have been kept back:\n  c\nThe following packages will be upgraded:\n  d\n"
    )
    assert parse_simulation(output).kept_back == (
        KeptBack("a", KeptReason.PHASED),
        KeptBack("b", KeptReason.PHASED),
        KeptBack("c", KeptReason.DEPENDENCIES),
    )


def test_kept_back_packages_may_fill_several_lines_and_end_with_them() -> None:
    output = (
        "The following packages have been kept back:\n  a b\n  c\nThe following packages will be upgraded:\n  d e\n"
    )
    assert [kept.name for kept in parse_simulation(output).kept_back] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("origins", "expected"),
    [
        ("Debian-Security:12/stable-security", True),
        ("Debian-Security:13/testing", True),
        ("Debian:12.9/stable, Debian-Security:12/stable-security", True),
        ("Ubuntu:24.04/noble-updates, Ubuntu:24.04/noble-security", True),
        ("Linux Mint:22/wilma-security", True),
        ("Docker:stable/noble, Ubuntu:24.04/noble-security", True),
        ("Debian:12.9/stable", False),
        ("Debian:12-updates/stable-updates", False),
        ("Debian Backports:12/stable-backports", False),
        ("Ubuntu:24.04/noble-updates", False),
        ("Ubuntu:24.04/noble-security-testing", False),
        ("Docker CE:12/bookworm, Debian:12.9/stable", False),
        ("Docker CE:12/bookworm", None),
        ("Not-Debian-Security:12/stable", None),
        ("Debian-Security-Mirror:12/stable", None),
        ("/now", None),
        ("", None),
    ],
)
def test_whether_an_update_is_a_security_update_is_yes_no_or_untold(origins: str, expected: bool | None) -> None:
    """A label that is neither distribution's tells nothing: such a repository brings security updates among others."""
    assert is_security(origins) is expected


# --- command lines -------------------------------------------------------------------------------


def test_new_dependencies_are_installed_and_leftovers_removed_only_when_asked() -> None:
    assert full_upgrade(UpgradeOptions()) == ("--with-new-pkgs", "upgrade")
    assert full_upgrade(UpgradeOptions(autoremove=True)) == ("--with-new-pkgs", "--autoremove", "upgrade")


@pytest.mark.parametrize(("autoremove", "first"), [(False, ()), (True, ("--autoremove",))])
def test_selected_packages_are_pinned_to_their_versions_and_removals_are_not_asked_for(
    autoremove: bool, first: tuple[str, ...]
) -> None:
    arguments = selected_upgrade([OPENSSL, OLD_KERNEL, LIBSSL], UpgradeOptions(autoremove=autoremove))
    pinned = ("openssl:amd64=3.0.16-1~deb12u1", "libssl3:amd64=3.0.16-1~deb12u1")
    assert arguments == (*first, "install", "--only-upgrade", *pinned)


def test_a_package_for_all_architectures_is_named_without_one_and_a_new_one_is_not_named_at_all() -> None:
    changes = [PackageChange("tzdata", "all", "1", "2"), PackageChange("fresh", "amd64", None, "1")]
    assert selected_upgrade(changes, UpgradeOptions()) == ("install", "--only-upgrade", "tzdata=2")


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        (LIBSSL, "libssl3:amd64=3.0.14-1~deb12u1"),
        (TZDATA, "tzdata=2024b-0+deb12u1"),
        (NEW_KERNEL, "linux-image-6.1.0-37-amd64:amd64-"),
    ],
)
def test_a_package_is_pinned_to_its_old_version_and_a_new_one_to_its_absence(
    change: PackageChange, argument: str
) -> None:
    assert pin(change) == argument


@pytest.mark.parametrize(
    ("conffiles", "forces"),
    [("keep", ["--force-confdef", "--force-confold"]), ("replace", ["--force-confnew"])],
)
def test_an_unattended_run_waits_for_the_lock_and_asks_nothing_about_configuration_files(
    conffiles: str, forces: list[str]
) -> None:
    assert unattended(UpgradeOptions(conffiles=conffiles, lock_retries=3, lock_delay=30)) == (
        *("-y", "-q", "-o", "Dpkg::Use-Pty=0", "-o", "DPkg::Lock::Timeout=90", "-o", "APT::Status-Fd=3"),
        *(word for force in forces for word in ("-o", f"Dpkg::Options::={force}")),
    )


def test_what_was_predicted_is_what_is_asked_for() -> None:
    prediction = Prediction((BASH,), arguments=("--with-new-pkgs", "upgrade", "tzdata=1"))
    command = Apt().command(prediction, UpgradeOptions())
    assert command[:3] == ("env", "UCF_FORCE_CONFFOLD=1", "apt-get")
    assert command[-3:] == ("--with-new-pkgs", "upgrade", "tzdata=1")
    assert Apt().command(prediction, UpgradeOptions(conffiles="replace"))[1] == "UCF_FORCE_CONFFNEW=1"


CERTIFICATES = "Updating certificates in /etc/ssl/certs...\nProcessing triggers for ca-certificates (20230311) ...\n"


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        (f"{recorded('apt-2.6-upgrade-postinst-failed')}{CERTIFICATES}", MaintainerScriptFailed),
        (f"{CERTIFICATES}E: Sub-process /usr/bin/dpkg returned an error code (1)\n", UpgradeFailed),
        (
            "dpkg: error: dpkg frontend lock was locked by another process with pid 4711\nNote: removing the lock\n",
            PackageManagerLocked,
        ),
    ],
)
def test_a_failure_is_told_by_its_own_words(output: str, kind: type[FleetError]) -> None:
    error = explain(Failure("upgrade", 2, output))
    assert isinstance(error, kind)
    assert kind is not PackageManagerLocked or error.evidence["holder_pid"] == 4711


def test_a_refresh_of_an_old_apt_that_calls_it_a_success_is_none(host: HostAgent) -> None:
    """Before 2.1.16 it only warns of what it did not get."""
    host.install(
        "apt-get", "echo 'Err:1 file:/gone ./ InRelease'; echo 'W: Failed to fetch file:/gone/InRelease' >&2\n"
    )
    with pytest.raises(RepositoryUnreachable, match="file:/gone"):
        Apt().refresh(Shell(GuestAgent(host, SystemClock()), {}), "")


REPAIRED = """\
echo "$*" >>{calls}
[ "$(wc -l <{calls})" -gt 2 ] || {{ echo 'dpkg: error: dpkg frontend lock was locked by another process' >&2; exit 2; }}
"""


@pytest.mark.parametrize(("patience", "code"), [(60, 0), (0, 2)])
def test_a_repair_waits_for_the_lock_that_dpkg_itself_does_not_wait_for(
    host: HostAgent, tmp_path: Path, patience: int, code: int
) -> None:
    calls = tmp_path / "calls"
    host.install("dpkg", REPAIRED.format(calls=calls))
    host.install("apt-get", "echo apt-get\n")
    host.install("sleep", "exit 0\n")
    options = UpgradeOptions(lock_retries=1, lock_delay=patience)
    argv = Apt().repair(options)
    outcome = run_command(GuestAgent(host, SystemClock()), Command(argv, timeout=60))
    assert (outcome.exit_code, outcome.stdout) == (code, "apt-get\n" if code == 0 else "")
    assert ("locked by another process" in outcome.stderr) == (code != 0)
    assert len(calls.read_text(encoding="utf-8").splitlines()) == (3 if code == 0 else 1)


def test_a_simulation_writes_only_below_its_own_directory() -> None:
    assert private_state("/var/tmp/x") == (
        *("-c", "/var/tmp/x/apt.conf"),
        *("-o", "Dir::State::Lists=/var/tmp/x/lists", "-o", "Dir::Cache=/var/tmp/x/cache", "-o", "Dir::Log=/var/tmp/x"),
    )


# --- simulations by the real apt -----------------------------------------------------------------


@pytest.fixture
def apt(host: HostAgent, tmp_path: Path) -> RealApt:
    """A guest that has some of everything: security updates, another repository, what cannot be upgraded."""
    apt = RealApt(host, tmp_path / "apt")
    for name in ("bash", "liba", "ssl", "third", "broken", "secdep"):
        apt.install(name, "1", Installed_Size=10)
    apt.install("held", "1", want="hold")
    apt.install("kernel", "1", Depends="kernel-1")
    apt.install("kernel-1", "1")
    apt.install("app", "1", Depends="liba (>= 1)")
    apt.publish(
        *("Debian", "stable"),
        offered("bash", "2", Installed_Size=30),
        offered("liba", "2"),
        offered("held", "2"),
        offered("broken", "2", Depends="nowhere"),
        offered("kernel", "2", Depends="kernel-2"),
        offered("kernel-2", "2"),
        offered("app", "2", Depends="liba (>= 2)"),
    )
    apt.publish(
        *("Debian-Security", "stable-security"),
        offered("ssl", "2"),
        offered("secdep", "2", Depends="liba (>= 2)"),
    )
    apt.publish("Docker CE", "bookworm", offered("third", "2"))
    return apt


def simulated(host: HostAgent, **options: Any) -> Prediction:
    shell = Shell(GuestAgent(host, SystemClock()), Apt().environment)
    Apt().refresh(shell, "")
    return Apt().simulate(shell, UpgradeOptions(**options), "")


def named(prediction: Prediction) -> set[str]:
    return {change.name for change in prediction.changes}


def reasons(prediction: Prediction) -> dict[str, str]:
    return {kept.name: kept.reason.value for kept in prediction.kept_back}


def test_everything_that_can_be_upgraded_is_and_the_rest_is_kept_back_for_a_reason(
    host: HostAgent, apt: RealApt
) -> None:
    found = simulated(host)
    security = {change.name: change.security for change in found.changes}
    assert security == {
        **dict.fromkeys(["app", "bash", "kernel", "kernel-2", "liba"], False),
        **dict.fromkeys(["secdep", "ssl"], True),
        "third": None,
    }
    assert reasons(found) == {"broken": "dependencies", "held": "held"}
    # 1000 bytes for each package, and it grows by bash's 20 KiB and what else had told no size.
    assert found.room.download == 8000
    assert apt.root.joinpath("dpkg/status").read_text(encoding="utf-8").count("Version: 2") == 0


@pytest.mark.parametrize(
    ("exclude", "left", "kept"),
    [
        (("bash",), {"bash"}, {"bash": "excluded"}),
        (("kernel*",), {"kernel", "kernel-2"}, {"kernel": "excluded", "kernel-2": "excluded"}),
        # What a new kernel's package is excluded from cannot be upgraded either.
        (("kernel-*",), {"kernel", "kernel-2"}, {"kernel": "dependencies", "kernel-2": "excluded"}),
        (
            ("liba",),
            {"liba", "app", "secdep"},
            {"liba": "excluded", "app": "dependencies", "secdep": "dependencies"},
        ),
        # What cannot be upgraded anyway is told for the user's own reason.
        (("held", "nothing-like-it"), set(), {"held": "excluded"}),
        (
            ("*",),
            {"app", "bash", "kernel", "kernel-2", "liba", "secdep", "ssl", "third"},
            dict.fromkeys(
                ["app", "bash", "broken", "held", "kernel", "kernel-2", "liba", "secdep", "ssl", "third"], "excluded"
            ),
        ),
    ],
)
def test_what_is_excluded_stays_as_it_is_and_so_does_what_depends_on_it(
    host: HostAgent, apt: RealApt, exclude: tuple[str, ...], left: set[str], kept: dict[str, str]
) -> None:
    found = simulated(host, exclude=exclude)
    assert named(found) == named(simulated(host)) - left
    assert reasons(found) == {"broken": "dependencies", "held": "held", **kept}
    status = (apt.root / "dpkg" / "status").read_text(encoding="utf-8")
    assert "Version: 2" not in status


def test_what_takes_the_place_of_something_excluded_is_excluded_in_its_turn(host: HostAgent, apt: RealApt) -> None:
    """Only a second simulation shows that apt then takes the other one."""
    apt.install("x", "1")
    alternatives = [offered(f"new-{one}", "1") for one in "abcd"]
    apt.publish("Debian", "main", offered("x", "2", Depends="new-a | new-b | new-c | new-d"), *alternatives)
    assert "new-b" in named(simulated(host, exclude=("new-a",)))
    found = simulated(host, exclude=("new-*",))
    assert not {"x", "new-a", "new-b", "new-c", "new-d"} & named(found)
    assert reasons(found)["x"] == "dependencies"
    assert {"new-a", "new-b"} <= {name for name, reason in reasons(found).items() if reason == "excluded"}


def test_security_updates_come_with_what_they_depend_on_and_nothing_else(host: HostAgent, apt: RealApt) -> None:
    found = simulated(host, security_only=True)
    assert named(found) == {"ssl", "secdep", "liba"}
    assert reasons(found)["third"] == "security_unknown"
    assert "bash" not in reasons(found)
    assert named(simulated(host, security_only=True, exclude=("liba",))) == {"ssl"}
    assert apt.root.is_dir()


def test_an_update_that_supersedes_a_security_update_is_one(host: HostAgent, apt: RealApt) -> None:
    """Its newest version comes from where all updates do, as is usual on Ubuntu."""
    for name in ("superseded", "foreign", "older"):
        apt.install(name, "2", **({"Architecture": "i386"} if name == "foreign" else {}))
    apt.publish(
        *("Ubuntu", "noble-updates"),
        *(
            offered(name, "4", **({"Architecture": "i386"} if name == "foreign" else {}))
            for name in ("superseded", "foreign")
        ),
        offered("older", "4"),
    )
    apt.publish(
        *("Ubuntu", "noble-security"),
        offered("superseded", "3"),
        offered("foreign", "3", Architecture="i386"),
        offered("older", "1"),
    )
    security = {change.name: (change.security, change.new) for change in simulated(host).changes}
    assert (security["superseded"], security["foreign"], security["older"]) == ((True, "4"), (True, "4"), (False, "4"))
    only = {change.name: (change.security, change.new) for change in simulated(host, security_only=True).changes}
    assert (only["superseded"], only["foreign"]) == ((True, "4"), (True, "4"))
    assert "older" not in only


@pytest.mark.parametrize("status", ["unpacked", "half-configured", "triggers-pending"])
def test_what_somebody_else_has_left_half_done_is_interrupted(host: HostAgent, apt: RealApt, status: str) -> None:
    """apt-get itself only says what it would configure."""
    trigger = {"Triggers_Pending": "x"} if status == "triggers-pending" else {}
    apt.install("half", "1", status=status, **trigger)
    with pytest.raises(PackageStateInterrupted) as raised:
        simulated(host)
    assert raised.value.evidence["packages"] == ["half"]


@pytest.mark.parametrize("status", ["unpacked", "half-installed"])
def test_what_is_to_be_unpacked_once_more_is_named_with_the_command_for_it(
    host: HostAgent, apt: RealApt, status: str
) -> None:
    apt.install("half", "1", flag="reinstreq", status=status)
    with pytest.raises(PackageStateInterrupted) as raised:
        simulated(host)
    assert raised.value.evidence["packages"] == ["half"]
    assert "'apt-get -f --reinstall install half'" in raised.value.remedy


@pytest.mark.parametrize("status", ["unpacked", "half-configured", "half-installed"])
@pytest.mark.parametrize("version", ["1", "2"])
def test_a_repair_unpacks_what_lost_power_while_its_files_were_replaced(
    host: HostAgent, tmp_path: Path, status: str, version: str
) -> None:
    """dpkg does not configure it, and 'apt-get -f install' by itself would leave it so."""
    apt = RealApt(host, tmp_path / "apt")
    apt.install("half", version, flag="reinstreq", status=status)
    apt.install("whole", "1")
    apt.publish("Debian", "stable", apt.build("half", "2"), offered("whole", "2"))
    Apt().refresh(Shell(GuestAgent(host, SystemClock()), {}), "")
    outcome = run_command(GuestAgent(host, SystemClock()), Command(Apt().repair(UpgradeOptions()), timeout=60))
    assert outcome.exit_code == 0, outcome
    assert apt.states() == {"half": "install ok installed 2", "whole": "install ok installed 1"}


def test_a_repair_for_which_a_package_is_missing_fails(host: HostAgent, tmp_path: Path) -> None:
    apt = RealApt(host, tmp_path / "apt")
    apt.install("half", "3", flag="reinstreq", status="half-installed")
    apt.publish("Debian", "stable", offered("half", "2"))
    Apt().refresh(Shell(GuestAgent(host, SystemClock()), {}), "")
    outcome = run_command(GuestAgent(host, SystemClock()), Command(Apt().repair(UpgradeOptions()), timeout=60))
    assert outcome.exit_code == 100
    assert "half needs to be reinstalled" in outcome.stderr


def test_what_dpkg_has_not_put_into_its_database_yet_is_interrupted(host: HostAgent, apt: RealApt) -> None:
    (apt.root / "dpkg" / "updates" / "0001").write_text("", encoding="ascii")
    with pytest.raises(PackageStateInterrupted):
        simulated(host)


def test_what_a_security_update_depends_on_is_not_kept_back_whatever_its_repository_tells(
    host: HostAgent, apt: RealApt
) -> None:
    apt.install("ssh", "1")
    apt.publish("Debian-Security", "more-security", offered("ssh", "2", Depends="third (>= 2)"))
    found = simulated(host, security_only=True)
    assert {"ssh", "third"} <= named(found)
    assert "third" not in reasons(found)


def test_where_no_security_update_is_offered_nothing_is_done_but_the_unknown_is_told(
    host: HostAgent, tmp_path: Path
) -> None:
    apt = RealApt(host, tmp_path / "apt")
    apt.install("third", "1")
    apt.publish("Docker CE", "bookworm", offered("third", "2"))
    found = simulated(host, security_only=True, autoremove=True)
    assert (found.changes, reasons(found)) == ((), {"third": "security_unknown"})


def test_leftovers_are_removed_only_when_asked_and_never_what_is_excluded(host: HostAgent, apt: RealApt) -> None:
    apt.mark_auto("kernel-1", "kernel-2")
    assert "kernel-1" not in named(simulated(host))
    assert PackageChange("kernel-1", "", "1", None) in simulated(host, autoremove=True).changes
    assert "kernel-1" not in named(simulated(host, autoremove=True, exclude=("kernel-1",)))


def test_what_is_said_of_packages_survives_a_private_state(host: HostAgent, apt: RealApt, tmp_path: Path) -> None:
    """A look ahead sees what the upgrade does, and writes nothing but in its own directory."""
    state = tmp_path / "private"
    shell = Shell(GuestAgent(host, SystemClock()), Apt().environment)
    assert shell.script(Apt().state_script, str(state)).exit_code == 0
    Apt().refresh(shell, str(state))
    before = {path for path in apt.root.rglob("*") if not path.is_symlink()}
    ahead = Apt().simulate(shell, UpgradeOptions(exclude=("bash",)), str(state))
    assert {path for path in apt.root.rglob("*") if not path.is_symlink()} == before
    assert not list(apt.root.rglob("*_Packages"))
    done = simulated(host, exclude=("bash",))
    assert (ahead.changes, ahead.kept_back, ahead.room) == (done.changes, done.kept_back, done.room)


def test_a_simulation_that_cannot_be_made_is_told_by_its_cause(host: HostAgent, apt: RealApt) -> None:
    apt.install("needy", "1", Depends="liba (>= 9)")
    with pytest.raises(DependencyConflict):
        simulated(host)


def test_a_repository_that_is_gone_is_told(host: HostAgent, apt: RealApt) -> None:
    (apt.root / "Debian-stable" / "Release").unlink()
    (apt.root / "Debian-stable" / "Packages").unlink()
    with pytest.raises(FleetError) as raised:
        simulated(host)
    assert raised.value.error_code in ("repository_unreachable", "package_lists_failed")


# --- records -------------------------------------------------------------------------------------


def test_packages_whose_files_are_there_are_on_record() -> None:
    lines = [
        "bash\tamd64\t5.2.15-2+b7\tinstalled",
        "libc6\tamd64\t2.36-9\tinstalled",
        "libc6\ti386\t2.36-9\tinstalled",
        "gone\tall\t1.0\tconfig-files",
        "never\tall\t\tnot-installed",
        "half\tall\t1.0\thalf-configured",
        "waiting\tall\t1.0\ttriggers-pending",
        "dpkg-query: warning: something",
        "too\tmany\tfields\tinstalled\there",
        "",
    ]
    assert Apt().parse_records(lines) == {
        ("bash", "amd64"): {"5.2.15-2+b7"},
        ("libc6", "amd64"): {"2.36-9"},
        ("libc6", "i386"): {"2.36-9"},
        ("half", "all"): {"1.0"},
        ("waiting", "all"): {"1.0"},
    }


# --- room and progress ---------------------------------------------------------------------------


def test_an_upgrade_needs_its_growth_and_the_room_of_its_largest_package() -> None:
    offered = (
        "Package: a\nInstalled-Size: 100\nSize: 2000\nDescription: Size: 9\n Installed-Size: 9\n\n"
        "Package: b\nSize: 500\nInstalled-Size: 40\n"
    )
    assert parse_room(offered, "90\n30\n") == Room(download=2500, unpacked=(20 + 100) * 1024)


@pytest.mark.parametrize(
    ("offered", "present", "room"),
    [
        ("Size: 10\nInstalled-Size: 5\n", "500\n", Room(10, 5 * 1024)),
        ("Size: 10\n", "", Room(10, 0)),
        ("Size: many\nInstalled-Size: -4\n", "none\n\n", Room()),
        ("", "500\n", Room()),
    ],
    ids=["shrinks", "size of no files", "no numbers", "nothing told"],
)
def test_what_is_not_told_needs_no_room(offered: str, present: str, room: Room) -> None:
    assert parse_room(offered, present) == room


@pytest.mark.parametrize(
    ("status", "progress"),
    [
        (["pmstatus:bash:42.8571:Unpacking bash (amd64)"], Progress(42, "bash", "Unpacking bash (amd64)")),
        (["pmstatus:libc6:i386:50:x"], Progress()),
        (["dlstatus:1:20.5:Retrieving file 1 of 5"], Progress(20, "", "Retrieving file 1 of 5")),
        (["pmstatus:a:1.0:first", "pmstatus:b:2.0:last"], Progress(2, "b", "last")),
        (["pmstatus:a:1.0:first", "pmerror:b:2.0:no", "", "pmstatus:c"], Progress(1, "a", "first")),
        (["pmstatus:a:1.0:first", "pmstatus:b:1.2.3:x"], Progress(1, "a", "first")),
        (["pmstatus:dpkg-exec:999:Running dpkg"], Progress(100, "dpkg-exec", "Running dpkg")),
        (["pmstatus:a:1:at 12:30:00"], Progress(1, "a", "at 12:30:00")),
        ([], Progress()),
    ],
)
def test_the_last_whole_line_tells_how_far_the_upgrade_is(status: list[str], progress: Progress) -> None:
    assert parse_progress(status) == progress
    assert Apt().progress(status, ["Unpacking x"]) == progress


@given(st.lists(st.text() | st.from_regex(r"(pm|dl)status:.*:[0-9.]*:.*")))
def test_whatever_apt_writes_is_progress_or_none(status: list[str]) -> None:
    percent = parse_progress(status).percent
    assert percent is None or 0 <= percent <= 100


# --- failures ------------------------------------------------------------------------------------

BROKEN_PACKAGE = """\
Setting up lab-broken:amd64 (2.0) ...
postinst: no
dpkg: error processing package lab-broken:amd64 (--configure):
 installed lab-broken package post-installation script subprocess returned error exit status 1
dpkg: error processing archive /tmp/apt-dpkg-install-x1/4-lab-config_1.1_all.deb (--unpack):
 trying to overwrite '/etc/lab', which is also in package lab-app 1.0
dpkg: error processing archive /var/cache/apt/archives/lab-app_2.0_all.deb (--unpack):
 unable to sync
Errors were encountered while processing:
 lab-broken
E: Sub-process /usr/bin/dpkg returned an error code (1)
"""


@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        (
            Failure("refresh", 100, recorded("apt-2.6-update-locked")),
            PackageManagerLocked,
            "/var/lib/apt/lists/lock is locked by process 4242 (unattended-upgr) in the guest",
        ),
        (
            Failure("upgrade", 100, "E: Could not get lock /var/lib/dpkg/lock - open (11: Resource unavailable)\n"),
            PackageManagerLocked,
            "/var/lib/dpkg/lock is locked in the guest",
        ),
        (
            Failure("upgrade", 100, recorded("apt-2.6-interrupted")),
            PackageStateInterrupted,
            "an earlier package operation in the guest was interrupted",
        ),
        (
            Failure("refresh", 100, recorded("apt-2.6-update-unreachable")),
            RepositoryUnreachable,
            (
                "the guest does not reach one of its repositories: E: Failed to fetch "
                "http://127.0.0.1:9/main/./InRelease  Could not connect to 127.0.0.1:9 (127.0.0.1). - connect "
                "(111: Connection refused)"
            ),
        ),
        (
            Failure("upgrade", 100, BROKEN_PACKAGE),
            MaintainerScriptFailed,
            (
                "a maintainer script failed in the guest at lab-app, lab-broken, lab-config: installed lab-broken "
                "package post-installation script subprocess returned error exit status 1"
            ),
        ),
        (
            Failure("upgrade", 100, "E: You don't have enough free space in /var/cache/apt/archives/.\n"),
            DiskFull,
            "a file system of the guest is full: E: You don't have enough free space in /var/cache/apt/archives/.",
        ),
        (
            Failure("upgrade", 1, "something\nlast words\n"),
            UpgradeFailed,
            "apt-get upgrade failed in the guest: last words",
        ),
        (Failure("refresh", None, ""), PackageListsFailed, "apt-get update failed in the guest: it printed nothing"),
    ],
    ids=["lists locked", "old wording", "interrupted", "unreachable", "broken", "disk full", "no E:", "silent"],
)
def test_a_failure_becomes_the_error_behind_it(failure: Failure, kind: type[FleetError], message: str) -> None:
    error = explain(failure)
    assert error.__class__ is kind
    assert error.message == message
    assert error.evidence["exit_code"] == failure.exit_code
    assert error.evidence["output"] == failure.output.splitlines()[-20:]


@pytest.mark.parametrize(
    ("recording", "action", "kind"),
    [
        ("update-no-key", "refresh", RepositoryUntrusted),
        ("update-expired", "refresh", RepositoryUntrusted),
        ("update-not-valid-yet", "refresh", RepositoryUntrusted),
        ("update-hash-mismatch", "refresh", RepositoryUnreachable),
        ("update-unsigned", "refresh", RepositoryUntrusted),
        ("update-no-release", "refresh", RepositoryUnreachable),
        ("update-unresolvable", "refresh", RepositoryUnreachable),
        ("upgrade-unmet", "upgrade", DependencyConflict),
        ("upgrade-held-broken", "upgrade", DependencyConflict),
        ("upgrade-postinst-failed", "upgrade", MaintainerScriptFailed),
        ("upgrade-unpack-disk-full", "upgrade", DiskFull),
    ],
)
def test_a_recorded_failure_is_explained(recording: str, action: str, kind: type[FleetError]) -> None:
    error = explain(Failure(action, 100, recorded(f"apt-2.6-{recording}")))
    assert error.__class__ is kind
    assert any(words in error.message for words in ("E: ", "post-installation", "No space left on device"))


@given(st.sampled_from(["refresh", "upgrade"]), st.none() | st.integers(0, 255), st.text())
def test_whatever_apt_prints_is_explained(action: str, code: int | None, output: str) -> None:
    error = explain(Failure(action, code, output))
    assert error.message
    assert error.remedy
    assert error.evidence["exit_code"] == code


def test_a_lock_is_reported_with_its_holder() -> None:
    evidence = explain(Failure("refresh", 100, recorded("apt-2.6-update-locked"))).evidence
    assert (evidence["lock"], evidence["holder_pid"], evidence["holder"]) == (
        *("/var/lib/apt/lists/lock", 4242, "unattended-upgr"),
    )


def test_broken_packages_are_evidence() -> None:
    assert explain(Failure("upgrade", 100, BROKEN_PACKAGE)).evidence["packages"] == [
        *("lab-app", "lab-broken", "lab-config"),
    ]


def test_a_lock_that_was_waited_for_in_vain_is_a_lock() -> None:
    error = explain(Failure("upgrade", 100, recorded("apt-2.6-upgrade-locked")))
    assert isinstance(error, PackageManagerLocked)
    assert error.evidence["lock"] == "/var/lib/dpkg/lock-frontend"


def test_a_lock_that_was_waited_for_and_got_is_not_what_failed() -> None:
    error = explain(Failure("upgrade", 100, recorded("apt-2.6-waited-for-lock-then-failed")))
    assert isinstance(error, RepositoryUnreachable)
