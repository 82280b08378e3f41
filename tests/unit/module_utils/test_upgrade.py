# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Upgrades: what runs in the guest, under the real shell with made-up package managers, and what is read from it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils import _job, _upgrade
from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._apt import RECORDS_FORMAT
from ansible_collections.kvm.fleet.plugins.module_utils._clock import SystemClock
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    GuestUnsupported,
    PackageListsFailed,
    PackageManagerLocked,
    PackageManagerUnknown,
    PackageStateInterrupted,
    UpgradeFailed,
    UpgradeInterrupted,
)
from ansible_collections.kvm.fleet.plugins.module_utils._job import JobState
from ansible_collections.kvm.fleet.plugins.module_utils._packages import PackageChange, Prediction
from ansible_collections.kvm.fleet.plugins.module_utils._upgrade import (
    Preview,
    UpgradeOptions,
    predict,
    preview,
    require_package_manager,
    upgrade,
)
from tests.unit.fake_agent import Call, Ending, FakeAgent, in_turn
from tests.unit.fake_clock import FakeClock
from tests.unit.host_agent import HostAgent

# --- the script that upgrades, under the real shell ----------------------------------------------


@dataclass
class Guest:
    """A guest whose package database is a file, and whose job has a directory."""

    host: HostAgent
    database: Path
    directory: Path

    def run(self, *command: str, clean: str = "no", security: str = "") -> None:
        """Run the job as its unit does."""
        subprocess.run(
            ["/bin/sh", "-s", str(self.directory), clean, security, *command],
            input=_upgrade._SCRIPT,
            text=True,
            env={"PATH": f"{self.host.path}:/usr/bin:/bin"},
            check=False,
        )

    def file(self, name: str) -> str:
        return (self.directory / name).read_text(encoding="utf-8")


@pytest.fixture
def guest(host: HostAgent, tmp_path: Path) -> Guest:
    guest = Guest(host, tmp_path / "database", tmp_path / "job")
    guest.directory.mkdir()
    guest.database.write_text("bash\tamd64\t1\tinstalled\n", encoding="utf-8")
    host.install("apt-mark", f'[ "$1" = auto ] && echo "marked $*" || cat {tmp_path}/auto 2>/dev/null\n')
    host.install("dpkg-query", f"[ \"$*\" = '-W -f={RECORDS_FORMAT}' ] && cat {guest.database}\n")
    host.install(
        "apt-get",
        f'echo "$*" >>{tmp_path}/apt-calls\n'
        f'[ "$1" = clean ] && exit 0\n'
        f"printf 'bash\\tamd64\\t2\\tinstalled\\n' >{guest.database}\n"
        f'echo "upgrading $LC_ALL $DEBIAN_FRONTEND $NEEDRESTART_SUSPEND"; echo warning >&2; cat\n',
    )
    return guest


def test_an_upgrade_leaves_its_baseline_its_log_and_its_exit_code(guest: Guest) -> None:
    guest.run("apt-get", "-y", "upgrade", security="bash ssl")
    assert {path.name for path in guest.directory.iterdir()} == {
        "auto",
        "before",
        "security",
        "progress",
        "log",
        "exit",
    }
    assert guest.file("before") == "bash\tamd64\t1\tinstalled\n"
    assert guest.file("security") == "bash\nssl\n"
    assert guest.file("log") == "upgrading C noninteractive 1\nwarning\n"
    assert guest.file("exit") == "0\n"


def test_a_failed_upgrade_leaves_the_same_and_its_own_exit_code(guest: Guest) -> None:
    guest.host.install("apt-get", "exit 100\n")
    guest.run("apt-get", "-y", "upgrade", clean="yes")
    assert guest.file("exit") == "100\n"


def test_the_baseline_of_an_earlier_job_stays(guest: Guest) -> None:
    guest.run("apt-get", "-y", "upgrade")
    guest.run("apt-get", "-y", "upgrade", security="late")
    assert guest.file("before") == "bash\tamd64\t1\tinstalled\n"
    assert guest.file("security") == "late\n"


def test_packages_that_came_in_by_themselves_stay_marked_so(guest: Guest, tmp_path: Path) -> None:
    marks = tmp_path / "auto"
    marks.write_text("liba\nlibb\n", encoding="utf-8")
    guest.host.install("apt-get", f"echo libb >{marks}\n")
    guest.run("apt-get", "-y", "install", "--only-upgrade", "liba=2")
    assert guest.file("log") == "marked auto liba\n"
    assert guest.file("exit") == "0\n"


def test_without_a_baseline_nothing_is_upgraded(guest: Guest, tmp_path: Path) -> None:
    guest.host.install("dpkg-query", "exit 2\n")
    guest.run("apt-get", "-y", "upgrade")
    assert not (tmp_path / "apt-calls").exists()
    assert not (guest.directory / "exit").exists()


def test_progress_goes_to_the_journal(guest: Guest) -> None:
    guest.host.install("apt-get", "echo pmstatus:bash:50.0:Unpacking >&3\n")
    guest.run("apt-get", "-y", "upgrade")
    assert guest.file("progress") == "pmstatus:bash:50.0:Unpacking\n"
    assert guest.file("log") == ""


def test_arguments_reach_the_package_manager_as_they_were_given(guest: Guest, tmp_path: Path) -> None:
    guest.host.install("apt-get", f'for word; do echo "<$word>"; done >{tmp_path}/words\n')
    guest.run("apt-get", "-o", "Dpkg::Options::=--force-confold", "a b", "$(id)", "*")
    assert (tmp_path / "words").read_text(encoding="utf-8") == (
        "<-o>\n<Dpkg::Options::=--force-confold>\n<a b>\n<$(id)>\n<*>\n"
    )


@pytest.mark.parametrize(("clean", "calls"), [("no", "-y upgrade\n"), ("yes", "-y upgrade\nclean\n")])
def test_the_cache_is_emptied_only_when_asked(guest: Guest, tmp_path: Path, clean: str, calls: str) -> None:
    guest.run("apt-get", "-y", "upgrade", clean=clean)
    assert (tmp_path / "apt-calls").read_text(encoding="utf-8") == calls


def test_without_its_directory_nothing_is_upgraded(guest: Guest, tmp_path: Path) -> None:
    guest.directory.rmdir()
    guest.run("apt-get", "-y", "upgrade")
    assert not (tmp_path / "apt-calls").exists()


# --- predictions ---------------------------------------------------------------------------------

SIMULATED = b"""\
Inst bash [1] (2 Debian:12/stable [amd64])
Inst libssl3 [1] (2 Debian-Security:12/stable-security [amd64])
"""
BASH = PackageChange("bash", "amd64", "1", "2")
LIBSSL = PackageChange("libssl3", "amd64", "1", "2", security=True)


class AptGuest:
    """A guest with apt, whose lists are locked for so many tries."""

    def __init__(self, clock: FakeClock, *, simulated: bytes = SIMULATED, locked_for: int = 0) -> None:
        self.agent = FakeAgent(clock, self._program)
        self.port = GuestAgent(self.agent, clock)
        self.locked_for = locked_for
        self.update = Ending()
        self.made = Ending(stdout=b"/var/tmp/kvm-fleet.abcdefgh\n")
        self._simulated = simulated

    def _program(self, call: Call) -> Ending:
        if call.command[0] == "/bin/sh":
            return self.made
        if call.command[0] == "rm":
            return Ending()
        if "--simulate" in call.command:
            wanted = [line for line in self._simulated.splitlines(keepends=True) if self._asked_for(call, line)]
            return Ending(stdout=b"".join(wanted))
        if self.locked_for:
            self.locked_for -= 1
            return Ending(100, stderr=b"E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt)\n")
        return self.update

    def _asked_for(self, call: Call, line: bytes) -> bool:
        name = line.split()[1].decode()
        return "install" not in call.command or any(word.startswith((f"{name}=", f"{name}:")) for word in call.command)

    @property
    def commands(self) -> list[str]:
        return [" ".join(call.command) for call in self.agent.calls]


UPDATE = "apt-get -o APT::Update::Error-Mode=any update"


def test_a_prediction_is_made_from_fresh_lists(clock: FakeClock) -> None:
    guest = AptGuest(clock)
    prediction = predict(guest.port, clock, UpgradeOptions(autoremove=True), keep_lists=False)
    assert prediction == Prediction((BASH, LIBSSL))
    assert guest.commands == [UPDATE, "apt-get --simulate --with-new-pkgs --autoremove upgrade"]


def test_a_prediction_of_security_updates_simulates_just_these(clock: FakeClock) -> None:
    guest = AptGuest(clock)
    prediction = predict(guest.port, clock, UpgradeOptions(security_only=True), keep_lists=False)
    assert prediction == Prediction((LIBSSL,))
    assert guest.commands[2:] == ["apt-get --simulate install --only-upgrade libssl3:amd64=2"]


def test_where_no_update_is_a_security_update_nothing_is_predicted(clock: FakeClock) -> None:
    guest = AptGuest(clock, simulated=SIMULATED.splitlines(keepends=True)[0])
    assert predict(guest.port, clock, UpgradeOptions(security_only=True), keep_lists=False) == Prediction(())


def test_the_guests_own_lists_stay_as_they_are_when_asked(clock: FakeClock) -> None:
    guest = AptGuest(clock)
    predict(guest.port, clock, UpgradeOptions(), keep_lists=True)
    directory = "/var/tmp/kvm-fleet.abcdefgh"
    private = f"-c {directory}/apt.conf -o Dir::State::Lists={directory}/lists -o Dir::Cache={directory}/cache"
    assert guest.commands[1:] == [
        f"apt-get {private} -o APT::Update::Error-Mode=any update",
        f"apt-get --simulate {private} --with-new-pkgs upgrade",
        f"rm -rf -- {directory}",
    ]


def test_the_private_lists_are_removed_after_a_failure_too(clock: FakeClock) -> None:
    guest = AptGuest(clock)
    guest.update = Ending(100, stderr=b"E: Failed to fetch http://x/InRelease\n")
    with pytest.raises(PackageListsFailed):
        predict(guest.port, clock, UpgradeOptions(), keep_lists=True)
    assert guest.commands[-1] == "rm -rf -- /var/tmp/kvm-fleet.abcdefgh"


@pytest.mark.parametrize(
    "made",
    [
        Ending(1, stderr=b"mktemp: No space left on device\n"),
        Ending(0, stdout=b"/etc\n"),
        Ending(0, stdout=b""),
        Ending(None, signal=9, stdout=b"/var/tmp/kvm-fleet.abcdefgh\n"),
    ],
)
def test_a_directory_that_was_not_made_is_neither_used_nor_removed(clock: FakeClock, made: Ending) -> None:
    guest = AptGuest(clock)
    guest.made = made
    with pytest.raises(GuestUnsupported, match="no directory for a simulation could be made"):
        predict(guest.port, clock, UpgradeOptions(), keep_lists=True)
    assert len(guest.commands) == 1


@pytest.mark.parametrize(("retries", "locked_for", "pauses"), [(3, 3, 3), (3, 1, 1), (0, 0, 0)])
def test_a_lock_is_tried_again_as_often_as_asked(clock: FakeClock, retries: int, locked_for: int, pauses: int) -> None:
    guest = AptGuest(clock, locked_for=locked_for)
    options = UpgradeOptions(lock_retries=retries, lock_delay=30)
    assert predict(guest.port, clock, options, keep_lists=False).changes == (BASH, LIBSSL)
    assert clock.waits == [30] * pauses


@pytest.mark.parametrize("retries", [0, 2])
def test_a_lock_that_stays_is_reported_after_the_last_try(clock: FakeClock, retries: int) -> None:
    guest = AptGuest(clock, locked_for=99)
    with pytest.raises(PackageManagerLocked, match=r"is locked by process 7 \(apt\)"):
        predict(guest.port, clock, UpgradeOptions(lock_retries=retries), keep_lists=False)
    assert len(guest.commands) == retries + 1


def test_what_is_no_lock_is_not_tried_again(clock: FakeClock) -> None:
    guest = AptGuest(clock)
    guest.update = Ending(100, stderr=b"E: The repository has no Release file\n")
    with pytest.raises(PackageListsFailed):
        predict(guest.port, clock, UpgradeOptions(), keep_lists=False)
    assert guest.commands == [UPDATE]


def test_the_private_directory_really_is_made_and_removed(host: HostAgent) -> None:
    """Under the real shell: apt is told of a directory that it can use, which is gone afterwards."""
    host.install(
        "apt-get",
        'while [ "$1" != -c ]; do shift; done; conf=$2; directory=${conf%/*}\n'
        '[ -s "$conf" ] && [ -d "$directory/lists/partial" ] || exit 100\n'
        'echo "Inst witness (1 $directory [all])"\n',
    )
    [change] = predict(GuestAgent(host, SystemClock()), SystemClock(), UpgradeOptions(), keep_lists=True).changes
    assert change.name == "witness"
    assert not list(Path("/var/tmp").glob("kvm-fleet.*"))


# --- package managers ----------------------------------------------------------------------------


def test_a_guest_with_apt_is_accepted(clock: FakeClock) -> None:
    require_package_manager(GuestAgent(FakeAgent(clock), clock))


@pytest.mark.parametrize(("told", "system"), [(b"centos\n", "centos"), (b"", "unknown")])
def test_another_package_manager_is_refused_by_the_systems_name(clock: FakeClock, told: bytes, system: str) -> None:
    agent = FakeAgent(clock, in_turn([Ending(1, stdout=told)]))
    with pytest.raises(PackageManagerUnknown) as raised:
        require_package_manager(GuestAgent(agent, clock))
    assert raised.value.message == (
        f"the guest (os-release: {system}) has no package manager that is known here; apt is"
    )


# --- the whole upgrade ---------------------------------------------------------------------------

OLD = {"bash": "1", "libssl3": "1"}
NEW = {"bash": "2", "libssl3": "2"}
BOTH = (BASH, LIBSSL)


def records(packages: dict[str, str], prefix: str = "") -> bytes:
    return "".join(f"{prefix}{name}\tamd64\t{version}\tinstalled\n" for name, version in packages.items()).encode()


class UpgradingGuest(AptGuest):
    """A guest with a package database and a journal; its jobs end as ``endings`` says, the last one again and again.

    A job that ends with 0 leaves every package at its new version. ``left`` is the state in which an earlier run has
    left its job; ``interrupted`` makes apt refuse to work until a repair has succeeded.
    """

    def __init__(self, clock: FakeClock, *endings: str, left: str = "none", interrupted: bool = False) -> None:
        super().__init__(clock)
        self.endings = list(endings or ["ended 0"])
        self.state, self.interrupted = left, interrupted
        self.packages = dict(OLD)
        self.before = None if left == "none" else dict(OLD)
        self.log = b""
        self.jobs: list[list[str]] = []

    def _program(self, call: Call) -> Ending:
        if call.stdin:
            assert call.stdin.decode() == _upgrade._SCRIPT
            self._job(call.command[6:])
            return Ending()
        match call.command:
            case [_shell, _flag, _job._LOOK, *_rest]:
                state = self.state
                if state == "running":
                    self.state = "ended 0"
                return Ending(stdout=f"{state}\n".encode())
            case [_shell, _flag, _script, "sh", _job.JOURNAL, *names]:
                return self._files(names)
            case ["rm", "-rf", "--", _job.JOURNAL]:
                self.state, self.before = "none", None
                return Ending()
        return self._apt(call)

    def _apt(self, call: Call) -> Ending:
        told = {"tail": self.log, "dpkg-query": records(self.packages)}.get(call.command[0])
        if told is not None:
            return Ending(stdout=told)
        simulating = call.command[:2] == ["apt-get", "--simulate"]
        if simulating and self.interrupted:
            return Ending(100, stderr=b"E: dpkg was interrupted, you must manually run 'dpkg --configure -a'\n")
        if simulating and self.packages == NEW:
            return Ending()
        return super()._program(call)

    def _files(self, names: list[str]) -> Ending:
        before = records(self.before, "before\t") if self.before else b""
        security = "".join(f"security\t{name}\n" for job in self.jobs for name in job[1].split()).encode()
        files = {"before": before, "security": security}
        return Ending(stdout=b"".join(files[name] for name in names))

    def _job(self, words: list[str]) -> None:
        self.jobs.append(words)
        self.before = self.before or dict(self.packages)
        self.state = self.endings.pop(0) if len(self.endings) > 1 else self.endings[0]
        repairing = words[2] == "/bin/sh"
        if self.state == "ended 0" and repairing:
            self.interrupted = False
        elif self.state == "ended 0":
            self.packages = dict(NEW)

    @property
    def kinds(self) -> list[str]:
        return ["repair" if job[2] == "/bin/sh" else "upgrade" for job in self.jobs]


@pytest.mark.parametrize(
    ("options", "job"),
    [
        (UpgradeOptions(), ["no", "libssl3", "apt-get", "--with-new-pkgs", "upgrade"]),
        (
            UpgradeOptions(autoremove=True, clean=True),
            ["yes", "libssl3", "apt-get", "--with-new-pkgs", "--autoremove", "upgrade"],
        ),
        (
            UpgradeOptions(security_only=True),
            ["no", "libssl3", "apt-get", "install", "--only-upgrade", "libssl3:amd64=2"],
        ),
    ],
)
def test_what_was_predicted_is_carried_out_as_one_job(
    clock: FakeClock, options: UpgradeOptions, job: list[str]
) -> None:
    guest = UpgradingGuest(clock)
    upgrade(guest.port, clock, options)
    [[clean, security, program, *arguments]] = guest.jobs
    assert "DPkg::Lock::Timeout=90" in arguments
    assert "APT::Status-Fd=3" in arguments
    assert [clean, security, program, *arguments[-len(job) + 3 :]] == job


def test_what_changed_is_told_by_the_records_and_the_journal_is_removed(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock)
    assert upgrade(guest.port, clock, UpgradeOptions()).changes == BOTH
    assert guest.state == "none"


def test_where_nothing_is_to_be_upgraded_no_job_is_started(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock)
    guest.packages = dict(NEW)
    assert upgrade(guest.port, clock, UpgradeOptions()) == Prediction(())
    assert guest.jobs == []


def test_an_upgrade_that_still_runs_is_waited_for_and_its_result_told(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock, left="running")
    guest.packages = dict(NEW)
    changes = upgrade(guest.port, clock, UpgradeOptions()).changes
    assert [change.name for change in changes] == ["bash", "libssl3"]
    assert guest.jobs == []
    assert guest.state == "none"


def test_an_upgrade_that_ended_unasked_is_told_and_what_came_since_is_upgraded(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock, left="ended 0")
    guest.packages = {"bash": "2", "libssl3": "1"}
    changes = upgrade(guest.port, clock, UpgradeOptions()).changes
    assert [change.name for change in changes] == ["bash", "libssl3"]
    assert guest.kinds == ["upgrade"]


@pytest.mark.parametrize("left", ["cut_off", "ended 100"])
def test_what_was_cut_off_or_failed_is_repaired_before_anything_else(clock: FakeClock, left: str) -> None:
    guest = UpgradingGuest(clock, left=left, interrupted=True)
    assert len(upgrade(guest.port, clock, UpgradeOptions()).changes) == 2
    assert guest.kinds == ["repair", "upgrade"]


def test_what_somebody_else_left_interrupted_is_repaired(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock, interrupted=True)
    assert len(upgrade(guest.port, clock, UpgradeOptions()).changes) == 2
    assert guest.kinds == ["repair", "upgrade"]


def test_a_repair_that_fails_is_reported_as_what_it_is(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock, "ended 1", interrupted=True)
    guest.log = b"dpkg: error processing package ssl (--configure):\n"
    with pytest.raises(PackageStateInterrupted) as raised:
        upgrade(guest.port, clock, UpgradeOptions())
    assert "could not be repaired" in raised.value.message
    assert raised.value.evidence["packages"] == ["ssl"]
    assert guest.kinds == ["repair"]


def test_an_upgrade_that_is_cut_off_says_that_the_next_run_repairs_it(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock, "cut_off")
    guest.log = b"Unpacking bash\n"
    with pytest.raises(UpgradeInterrupted) as raised:
        upgrade(guest.port, clock, UpgradeOptions())
    assert raised.value.evidence == {"journal": _job.JOURNAL, "log": ["Unpacking bash"]}


def test_a_failed_upgrade_tells_what_had_changed_and_keeps_the_journal(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock, "ended 100")
    guest.log = b"dpkg: error processing package libssl3 (--configure):\nE: Sub-process returned an error\n"
    guest.before, guest.packages = dict(OLD), {"bash": "2", "libssl3": "1"}
    with pytest.raises(UpgradeFailed) as raised:
        upgrade(guest.port, clock, UpgradeOptions())
    evidence = raised.value.evidence
    assert evidence["packages"] == ["libssl3"]
    assert evidence["exit_code"] == 100
    assert evidence["changes"] == [{"name": "bash", "arch": "amd64", "old": "1", "new": "2", "security": False}]
    assert guest.state == "ended 100"


# --- looking ahead -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "interrupted", "found"),
    [
        ("none", False, Preview(Prediction(BOTH), JobState.NONE)),
        ("running", False, Preview(Prediction(()), JobState.RUNNING)),
        ("ended 0", False, Preview(Prediction(BOTH), JobState.ENDED)),
        ("cut_off", False, Preview(Prediction(BOTH), JobState.CUT_OFF)),
        ("cut_off", True, Preview(Prediction(()), JobState.CUT_OFF)),
        ("none", True, Preview(Prediction(()), JobState.CUT_OFF)),
    ],
)
def test_looking_ahead_tells_what_was_left_and_changes_nothing(
    clock: FakeClock, left: str, interrupted: bool, found: Preview
) -> None:
    guest = UpgradingGuest(clock, left=left, interrupted=interrupted)
    assert preview(guest.port, clock, UpgradeOptions()) == found
    assert guest.jobs == []
    assert guest.before == (None if left == "none" else OLD)
