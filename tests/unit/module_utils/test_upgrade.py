# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Upgrades: what runs in the guest, under the real shell with made-up package managers, and what is read from it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvm.fleet.plugins.module_utils import _job, _upgrade
from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._apt import RECORDS_FORMAT, Apt
from ansible_collections.kvm.fleet.plugins.module_utils._clock import SystemClock
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    AgentSilent,
    DiskFull,
    FleetError,
    GuestUnsupported,
    PackageManagerLocked,
    PackageStateInterrupted,
    RepositoryUnreachable,
    UpgradeFailed,
    UpgradeInterrupted,
    UpgradeTimeout,
)
from ansible_collections.kvm.fleet.plugins.module_utils._job import JobLook, JobState
from ansible_collections.kvm.fleet.plugins.module_utils._manager import Progress, UpgradeOptions
from ansible_collections.kvm.fleet.plugins.module_utils._packages import (
    KeptBack,
    KeptReason,
    PackageChange,
    Prediction,
)
from ansible_collections.kvm.fleet.plugins.module_utils._upgrade import (
    STOP_TIMEOUT,
    Guest,
    Preview,
    Told,
    Underway,
    Upgraded,
    forget,
    predict,
    preview,
    upgrade,
)
from tests.unit.fake_agent import Ending
from tests.unit.fake_clock import FakeClock
from tests.unit.host_agent import HostAgent
from tests.unit.upgrading_guest import NEW, OLD, PRIVATE, SIMULATED, Stop, UpgradingGuest, job_in, told_by

BASH = PackageChange("bash", "amd64", "1", "2")
LIBSSL = PackageChange("libssl3", "amd64", "1", "2", security=True)
BOTH = (BASH, LIBSSL)


# --- the job, under the real shell ---------------------------------------------------------------


@dataclass
class RealGuest:
    """A guest whose package database is a file, and whose job has a directory and an /etc."""

    host: HostAgent
    database: Path
    directory: Path
    etc: Path

    def run(
        self,
        *command: str,
        kind: str = "upgrade",
        options: UpgradeOptions | None = None,
        prediction: Prediction | None = None,
    ) -> None:
        """Run the job as its unit does."""
        job = _upgrade._job_of(Apt(), options or UpgradeOptions(), kind, command, prediction or Prediction())
        subprocess.run(
            ["/bin/sh", "-s", str(self.directory), "unit"],
            input=_job.job_script(job).replace("find /etc ", f"find {self.etc} "),
            text=True,
            env={"PATH": f"{self.host.path}:/usr/bin:/bin"},
            check=False,
        )

    def file(self, name: str) -> str:
        return (self.directory / name).read_text(encoding="utf-8")

    @property
    def exit_code(self) -> int:
        return int(self.file("exit"))

    @property
    def told(self) -> Told:
        return Told.parse(self.file("predictions").splitlines())


@pytest.fixture
def real(host: HostAgent, tmp_path: Path) -> RealGuest:
    guest = RealGuest(host, tmp_path / "database", tmp_path / "job", tmp_path / "etc")
    guest.directory.mkdir()
    guest.etc.mkdir()
    guest.database.write_text("bash\tamd64\t1\tinstalled\n", encoding="utf-8")
    host.install("apt-mark", f'[ "$1" = auto ] && echo "marked $*" || cat {tmp_path}/auto 2>/dev/null\nexit 0\n')
    host.install("dpkg-query", f"[ \"$*\" = '-W -f={RECORDS_FORMAT}' ] && cat {guest.database}\n")
    host.install(
        "dpkg", f'echo "$*" >>{tmp_path}/dpkg-calls\n[ "$1" != --audit ] || cat {tmp_path}/audit 2>/dev/null\n'
    )
    host.install(
        "apt-get",
        f'echo "$*" >>{tmp_path}/apt-calls\n'
        f'[ "$1" = clean ] && exit 0\n'
        f"printf 'bash\\tamd64\\t2\\tinstalled\\n' >{guest.database}\n"
        f'echo "upgrading $LC_ALL $DEBIAN_FRONTEND $NEEDRESTART_SUSPEND"; echo warning >&2; cat\n',
    )
    return guest


def test_a_job_leaves_its_baseline_its_result_its_log_and_its_exit_code(real: RealGuest) -> None:
    kept = (KeptBack("held", KeptReason.HELD),)
    real.run("apt-get", "-y", "upgrade", prediction=Prediction(BOTH, kept))
    assert {path.name for path in real.directory.iterdir()} == {
        *("after", "auto", "before", "exit", "kind", "lock", "log", "predictions", "progress", "review", "started"),
    }
    assert real.file("before") == "bash\tamd64\t1\tinstalled\n"
    assert real.file("after") == "bash\tamd64\t2\tinstalled\n"
    assert real.file("kind") == "upgrade\n"
    assert real.told == Told({"libssl3": True}, kept)
    assert real.file("log") == "upgrading C noninteractive 1\nwarning\n"
    assert real.exit_code == 0


def test_a_failed_job_leaves_the_same_and_its_own_exit_code(real: RealGuest, tmp_path: Path) -> None:
    real.host.install("apt-get", f'echo "$*" >>{tmp_path}/apt-calls\nexit 100\n')
    real.run("apt-get", "-y", "upgrade", options=UpgradeOptions(clean=True))
    assert real.exit_code == 100
    assert real.file("after") == "bash\tamd64\t1\tinstalled\n"
    assert (tmp_path / "apt-calls").read_text(encoding="utf-8") == "-y upgrade\n"


def test_the_baseline_of_an_earlier_job_stays_and_all_predictions_do(real: RealGuest) -> None:
    real.run("apt-get", "-y", "upgrade", prediction=Prediction((LIBSSL,)))
    real.run(
        "apt-get", "-y", "upgrade", prediction=Prediction((PackageChange("late", "all", "1", "2", security=None),))
    )
    assert real.file("before") == "bash\tamd64\t1\tinstalled\n"
    assert real.told.security == {"libssl3": True, "late": None}


def test_a_job_that_cannot_begin_leaves_nothing_of_the_last_ones_result(real: RealGuest) -> None:
    """Or the records before it would pass for those after it."""
    real.run("apt-get", "-y", "upgrade")
    real.host.install("apt-mark", "exit 1\n")
    (real.directory / "auto").unlink()
    (real.directory / "before").unlink()
    real.host.install("dpkg-query", "exit 2\n")
    real.run("apt-get", "-y", "upgrade")
    assert not (real.directory / "after").exists()
    assert not (real.directory / "review").exists()


def test_packages_that_came_in_by_themselves_stay_marked_so(real: RealGuest, tmp_path: Path) -> None:
    marks = tmp_path / "auto"
    marks.write_text("liba\nlibb\n", encoding="utf-8")
    real.host.install("apt-get", f"echo libb >{marks}\n")
    real.run("apt-get", "-y", "install", "--only-upgrade", "liba=2")
    assert real.file("log") == "marked auto liba\n"
    assert real.exit_code == 0


@pytest.mark.parametrize("program", ["dpkg-query", "base64"])
def test_without_a_baseline_or_what_was_predicted_nothing_is_upgraded(
    real: RealGuest, tmp_path: Path, program: str
) -> None:
    real.host.install(program, "exit 2\n")
    real.run("apt-get", "-y", "upgrade")
    assert not (tmp_path / "apt-calls").exists()
    assert real.exit_code == 1


def test_progress_goes_to_the_journal(real: RealGuest) -> None:
    real.host.install("apt-get", "echo pmstatus:bash:50.0:Unpacking >&3\n")
    real.run("apt-get", "-y", "upgrade")
    assert real.file("progress") == "pmstatus:bash:50.0:Unpacking\n"
    assert real.file("log") == ""


def test_arguments_reach_the_package_manager_as_they_were_given(real: RealGuest, tmp_path: Path) -> None:
    real.host.install("apt-get", f'for word; do echo "<$word>"; done >{tmp_path}/words\n')
    real.run("apt-get", "-o", "Dpkg::Options::=--force-confold", "a b", "$(id)", "*", "'", "\n")
    assert (tmp_path / "words").read_text(encoding="utf-8") == (
        "<-o>\n<Dpkg::Options::=--force-confold>\n<a b>\n<$(id)>\n<*>\n<'>\n<\n>\n"
    )


HOSTILE = [
    "$(touch witness)",
    "`touch witness`",
    "'; touch witness; '",
    '"; touch witness; "',
    "a\nEND\ntouch witness\n",
    "END",
    "{records}",
    "{prepare}{kind}{finish}{review}",
    "\\",
    "ü\t\x1b[2J",
    "x" * 200,
]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_mean_something_to_a_shell_arrive_as_data(real: RealGuest, name: str) -> None:
    """They come from the guest's repositories."""
    change = PackageChange(name, "all", "1", "2", security=True)
    real.run("apt-get", "upgrade", prediction=Prediction((change,), (KeptBack(name, KeptReason.PHASED),)))
    assert real.told == Told({name: True}, (KeptBack(name, KeptReason.PHASED),))
    assert not list(real.directory.parent.rglob("witness"))
    assert real.exit_code == 0


@pytest.mark.parametrize(
    ("options", "kind", "calls"),
    [
        (UpgradeOptions(), "upgrade", "-y upgrade\n"),
        (UpgradeOptions(clean=True), "upgrade", "-y upgrade\nclean\n"),
        (UpgradeOptions(clean=True), "repair", "-y upgrade\n"),
    ],
)
def test_the_cache_is_emptied_only_when_asked_and_only_after_an_upgrade(
    real: RealGuest, tmp_path: Path, options: UpgradeOptions, kind: str, calls: str
) -> None:
    real.run("apt-get", "-y", "upgrade", kind=kind, options=options)
    assert (tmp_path / "apt-calls").read_text(encoding="utf-8") == calls
    assert real.file("kind") == f"{kind}\n"


def test_a_cache_that_cannot_be_emptied_is_a_failure_whose_records_are_there(real: RealGuest) -> None:
    real.host.install("apt-get", "[ $1 != clean ] || exit 7\n")
    real.run("apt-get", "-y", "upgrade", options=UpgradeOptions(clean=True))
    assert real.exit_code == 7
    assert real.file("after")


@pytest.mark.parametrize(
    ("stopped", "audit", "configured"),
    [(True, "bash is half configured\n", True), (True, "", False), (False, "bash is half configured\n", False)],
)
def test_what_a_gentle_stop_left_half_done_is_configured(
    real: RealGuest, tmp_path: Path, stopped: bool, audit: str, configured: bool
) -> None:
    """apt-get ends between two calls of dpkg: packages may be unpacked and not configured."""
    (tmp_path / "audit").write_text(audit, encoding="utf-8")
    note = f": >{real.directory}/stop" if stopped else ""
    real.host.install("apt-get", f"{note}\nexit 130\n")
    real.run("apt-get", "-y", "upgrade")
    calls = tmp_path / "dpkg-calls"
    asked = calls.read_text(encoding="utf-8") if calls.exists() else ""
    assert ("--force-confdef --force-confold --configure -a\n" in asked) is configured
    assert real.exit_code == 130


def test_configuration_files_that_were_put_beside_others_are_listed_and_older_ones_are_not(real: RealGuest) -> None:
    (real.etc / "old.dpkg-dist").touch()
    names = ("a.dpkg-dist", "b.dpkg-old", "c.ucf-dist", "d.rpmnew", "e.rpmsave", "changed.conf", "f.dpkg-dist.bak")
    created = " ".join(f'"{real.etc}/{name}"' for name in names)
    # Their content's time is the package's, which is long ago.
    real.host.install("apt-get", f"sleep 0.02; touch {created}; touch -d 2001-01-01 {created}\n")
    real.run("apt-get", "-y", "upgrade")
    assert sorted(real.file("review").splitlines()) == [f"{real.etc}/{name}" for name in names[:5]]


def test_without_its_directory_nothing_is_upgraded(real: RealGuest, tmp_path: Path) -> None:
    real.directory.rmdir()
    real.run("apt-get", "-y", "upgrade")
    assert not (tmp_path / "apt-calls").exists()


# --- predictions ---------------------------------------------------------------------------------

UPDATE = "apt-get -o APT::Update::Error-Mode=any update"


def test_a_prediction_is_made_from_fresh_lists(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock)
    prediction = predict(guest.port, UpgradeOptions(autoremove=True))
    assert prediction.changes == BOTH
    assert prediction.arguments == ("--with-new-pkgs", "--autoremove", "upgrade")
    assert guest.programs("apt-get") == [UPDATE, "apt-get --simulate --with-new-pkgs --autoremove upgrade"]


def test_a_prediction_of_security_updates_simulates_just_these(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock)
    prediction = predict(guest.port, UpgradeOptions(security_only=True))
    assert prediction.changes == (LIBSSL,)
    assert guest.programs("apt-get")[2:] == ["apt-get --simulate install --only-upgrade libssl3:amd64=2"]


def test_where_no_update_is_a_security_update_nothing_is_predicted(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock, simulated=SIMULATED[:1])
    assert predict(guest.port, UpgradeOptions(security_only=True)) == Prediction()


def test_an_upgrade_without_room_is_refused_before_anything_has_changed(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock)
    guest.free = b"free 100 /dev/vda1 /\nfree 100 /dev/vda1 /\nfree 100 /dev/vda1 /\nkernel 0\n"
    with pytest.raises(DiskFull) as raised:
        upgrade(guest.port, UpgradeOptions())
    assert raised.value.evidence["mount"] == "/"
    assert (guest.jobs, guest.packages) == ([], OLD)


def test_the_guests_own_lists_stay_as_they_are_in_a_look_ahead(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock)
    preview(guest.port, UpgradeOptions())
    places = f"-o Dir::State::Lists={PRIVATE}/lists -o Dir::Cache={PRIVATE}/cache -o Dir::Log={PRIVATE}"
    private = f"-c {PRIVATE}/apt.conf {places}"
    assert guest.programs("apt-get") == [
        f"apt-get {private} -o APT::Update::Error-Mode=any update",
        f"apt-get --simulate {private} --with-new-pkgs upgrade",
    ]
    assert guest.commands[-1] == f"rm -rf -- {PRIVATE}"


def test_the_private_lists_are_removed_after_a_failure_too(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock)
    guest.update = Ending(100, stderr=b"E: Failed to fetch http://x/InRelease\n")
    with pytest.raises(RepositoryUnreachable):
        preview(guest.port, UpgradeOptions())
    assert guest.commands[-1] == f"rm -rf -- {PRIVATE}"


@pytest.mark.parametrize(
    "made",
    [
        Ending(1, stderr=b"mktemp: No space left on device\n"),
        Ending(0, stdout=b"/etc\n"),
        Ending(0, stdout=b""),
        Ending(None, signal=9, stdout=f"{PRIVATE}\n".encode()),
    ],
)
def test_a_directory_that_was_not_made_is_neither_used_nor_removed(clock: FakeClock, made: Ending) -> None:
    guest = UpgradingGuest(clock)
    guest.made = made
    with pytest.raises(GuestUnsupported, match="no directory for a simulation could be made"):
        preview(guest.port, UpgradeOptions())
    assert guest.programs("apt-get") == guest.programs("rm") == []


def test_the_private_directory_really_is_made_and_removed(host: HostAgent) -> None:
    """Under the real shell: apt is told of a directory that it can use, which is gone afterwards."""
    host.install(
        "apt-get",
        'while [ "$1" != -c ]; do shift; done; conf=$2; directory=${conf%/*}\n'
        '[ -s "$conf" ] && [ -d "$directory/lists/partial" ] || exit 100\n'
        'echo "Inst witness (1 $directory [all])"\n',
    )
    guest = Guest(GuestAgent(host, SystemClock()), SystemClock(), Apt())
    [change] = preview(guest, UpgradeOptions()).prediction.changes
    assert change.name == "witness"
    assert not list(Path("/var/tmp").glob("kvm-fleet.*"))


def test_what_is_no_lock_is_not_tried_again(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock)
    guest.update = Ending(100, stderr=b"E: The repository 'x' does not have a Release file.\n")
    with pytest.raises(RepositoryUnreachable):
        predict(guest.port, UpgradeOptions())
    assert guest.programs("apt-get") == [UPDATE]


# --- locks ---------------------------------------------------------------------------------------


@given(retries=st.integers(0, 20), delay=st.integers(0, 600))
def test_a_lock_that_stays_is_given_up_once_it_was_held_for_all_of_the_time(retries: int, delay: int) -> None:
    """No pause is longer than asked for, and the pauses grow; each is shortened at random."""
    clock = FakeClock()
    guest = UpgradingGuest(clock, locked_for=10**9)
    with pytest.raises(PackageManagerLocked):
        predict(guest.port, UpgradeOptions(lock_retries=retries, lock_delay=delay))
    pauses = pauses_of(guest)
    assert sum(pauses) == pytest.approx(retries * delay, abs=1e-3)
    limits = [min(delay / 4 * 2**number, delay) for number, _pause in enumerate(pauses)]
    assert all(pause <= limit + 1e-3 for pause, limit in zip(pauses, limits, strict=True))
    assert all(pause >= limit / 2 - 1e-3 for pause, limit in zip(pauses[:-1], limits[:-1], strict=True))


def pauses_of(guest: UpgradingGuest) -> list[float]:
    """The seconds between two tries of a refresh."""
    return [later - earlier for earlier, later in pairwise(guest.tries)]


def test_two_guests_that_meet_the_same_lock_do_not_meet_again(clock: FakeClock) -> None:
    guests = [UpgradingGuest(clock, locked_for=3) for _number in range(2)]
    for guest in guests:
        predict(guest.port, UpgradeOptions())
    assert pauses_of(guests[0]) != pytest.approx(pauses_of(guests[1]), abs=1e-3)


def test_a_lock_that_is_let_go_is_got_at_the_next_try(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock, locked_for=2)
    assert predict(guest.port, UpgradeOptions()).changes == BOTH
    assert guest.programs("apt-get")[:3] == [UPDATE] * 3
    assert len(guest.tries) == 3


HELD = b"/var/lib/dpkg/lock-frontend\t7\t100000\t1600.5\tunattended-upgr\n"


def test_a_lock_that_stays_is_told_with_who_holds_it_and_for_how_long_he_has_been_running(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock, locked_for=99)
    guest.held = HELD
    with pytest.raises(PackageManagerLocked) as raised:
        predict(guest.port, UpgradeOptions(lock_retries=2, lock_delay=10))
    assert raised.value.message == (
        "/var/lib/dpkg/lock-frontend is locked in the guest by process 7 (unattended-upgr), which has been running "
        "for 600 s; it was waited for for 20 s"
    )
    told = {key: raised.value.evidence[key] for key in ("lock", "holder_pid", "holder", "holder_age")}
    assert told == {
        "lock": "/var/lib/dpkg/lock-frontend",
        "holder_pid": 7,
        "holder": "unattended-upgr",
        "holder_age": 600.5,
    }


@pytest.mark.parametrize("held", [b"", None], ids=["gone by now", "cannot be asked"])
def test_a_lock_is_told_even_where_nobody_can_be_named(clock: FakeClock, held: bytes | None) -> None:
    guest = UpgradingGuest(clock, locked_for=99)
    guest.held = held
    with pytest.raises(PackageManagerLocked, match=r"is locked by process 7 \(apt\)"):
        predict(guest.port, UpgradeOptions(lock_retries=0))


def test_a_look_ahead_meets_the_locks_that_an_upgrade_would_meet(clock: FakeClock) -> None:
    """apt's simulation needs no lock, and would promise what the run then waits for in vain."""
    guest = UpgradingGuest(clock)
    guest.held = HELD
    with pytest.raises(PackageManagerLocked, match=r"by process 7 \(unattended-upgr\)"):
        preview(guest.port, UpgradeOptions(lock_retries=1, lock_delay=10))
    assert guest.programs("apt-get") == []
    guest.held = b""
    assert preview(guest.port, UpgradeOptions()).prediction.changes == BOTH


def test_a_look_ahead_waits_for_a_lock_too(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock)
    guest.held = HELD
    clock.after(15, lambda: setattr(guest, "held", b""))
    assert preview(guest.port, UpgradeOptions()).prediction.changes == BOTH


# --- the whole upgrade ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "environment", "words"),
    [
        (UpgradeOptions(), ("no", "no", "keep"), ["--with-new-pkgs", "upgrade"]),
        (
            UpgradeOptions(autoremove=True, clean=True, conffiles="replace"),
            ("yes", "yes", "replace"),
            ["--with-new-pkgs", "--autoremove", "upgrade"],
        ),
        (
            UpgradeOptions(security_only=True),
            ("no", "no", "keep"),
            ["install", "--only-upgrade", "libssl3:amd64=2"],
        ),
        (
            UpgradeOptions(exclude=("ba*",)),
            ("no", "no", "keep"),
            ["--with-new-pkgs", "upgrade", "bash:amd64=1"],
        ),
    ],
)
def test_what_was_predicted_is_carried_out_as_one_job(
    clock: FakeClock, options: UpgradeOptions, environment: tuple[str, ...], words: list[str]
) -> None:
    guest = UpgradingGuest(clock)
    upgrade(guest.port, options)
    [job] = guest.jobs
    names = ("KVM_FLEET_AUTOREMOVE", "KVM_FLEET_CLEAN", "KVM_FLEET_CONFFILES")
    assert tuple(job.environment[name] for name in names) == environment
    assert job.environment["LC_ALL"] == "C"
    assert job.command[2] == "apt-get"
    assert {"DPkg::Lock::Timeout=90", "APT::Status-Fd=3"} <= set(job.command)
    assert list(job.command[-len(words) :]) == words


def test_what_changed_is_told_by_the_records_and_what_was_kept_back_by_the_prediction(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock)
    guest.review = ["/etc/bash.bashrc.dpkg-dist"]
    assert upgrade(guest.port, UpgradeOptions(exclude=("libssl*",))) == Upgraded(
        (BASH,), (KeptBack("libssl3", KeptReason.EXCLUDED),), ("/etc/bash.bashrc.dpkg-dist",)
    )


def test_the_journal_is_kept_until_it_is_forgotten(clock: FakeClock) -> None:
    """A result that gets lost on its way can be had again."""
    guest = UpgradingGuest(clock)
    options = UpgradeOptions(run="mine")
    first = upgrade(guest.port, options)
    assert guest.look.state is JobState.ENDED
    assert upgrade(guest.port, options) == first
    assert len(guest.jobs) == 1
    forget(guest.port)
    assert guest.look == JobLook(JobState.NONE)


def test_a_result_that_is_had_again_has_what_was_kept_back(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock)
    options = UpgradeOptions(run="mine", exclude=("bash",))
    assert upgrade(guest.port, options) == upgrade(guest.port, options)


def test_where_nothing_is_to_be_upgraded_no_job_is_started(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock)
    guest.packages = dict(NEW)
    assert upgrade(guest.port, UpgradeOptions()) == Upgraded()
    assert guest.jobs == []


def test_runs_without_an_id_are_told_apart(clock: FakeClock) -> None:
    runs = set()
    for _run in range(2):
        guest = UpgradingGuest(clock)
        upgrade(guest.port, UpgradeOptions())
        runs.add(guest.jobs[0].run)
    assert len(runs) == 2


# --- what was left behind ------------------------------------------------------------------------


def test_an_upgrade_that_still_runs_is_waited_for_and_its_result_told(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock, left="running", duration=100)
    result = upgrade(guest.port, UpgradeOptions())
    assert isinstance(result, Upgraded)
    assert [change.name for change in result.changes] == ["bash", "libssl3"]
    assert guest.jobs == []
    assert clock.monotonic() >= 1100


def test_an_upgrade_that_ended_unasked_is_told_and_what_came_since_is_upgraded(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock, left="ended 0")
    guest.packages = {"bash": "2", "libssl3": "1"}
    result = upgrade(guest.port, UpgradeOptions())
    assert isinstance(result, Upgraded)
    assert [change.name for change in result.changes] == ["bash", "libssl3"]
    assert guest.kinds == ["upgrade"]


@pytest.mark.parametrize("left", ["cut_off", "ended 100"])
def test_what_another_run_left_cut_off_or_failed_is_repaired_before_anything_else(clock: FakeClock, left: str) -> None:
    guest = UpgradingGuest(clock, left=left, interrupted=True)
    result = upgrade(guest.port, UpgradeOptions(run="mine"))
    assert isinstance(result, Upgraded)
    assert len(result.changes) == 2
    assert guest.kinds == ["repair", "upgrade"]


@pytest.mark.parametrize(("left", "error"), [("cut_off", UpgradeInterrupted), ("ended 100", UpgradeFailed)])
def test_what_became_of_ones_own_upgrade_is_told_and_not_repaired(
    clock: FakeClock, left: str, error: type[FleetError]
) -> None:
    """The task before this one has not told it, or the run has not ended there."""
    guest = UpgradingGuest(clock, left=left, left_by="mine")
    with pytest.raises(error):
        upgrade(guest.port, UpgradeOptions(run="mine"))
    assert guest.jobs == []


def test_a_repair_of_ones_own_that_ended_well_is_gone_on_from(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock, left="ended 0", left_by="mine", left_kind="repair")
    result = upgrade(guest.port, UpgradeOptions(run="mine"))
    assert isinstance(result, Upgraded)
    assert result.changes == BOTH
    assert guest.kinds == ["upgrade"]


def test_a_repair_of_ones_own_that_failed_is_told_as_what_it_is(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock, left="ended 1", left_by="mine", left_kind="repair")
    with pytest.raises(PackageStateInterrupted, match="could not be repaired"):
        upgrade(guest.port, UpgradeOptions(run="mine"))


def test_what_somebody_else_left_interrupted_is_repaired(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock, interrupted=True)
    result = upgrade(guest.port, UpgradeOptions())
    assert isinstance(result, Upgraded)
    assert len(result.changes) == 2
    assert guest.kinds == ["repair", "upgrade"]


def test_a_repair_neither_removes_nor_cleans(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock, interrupted=True)
    upgrade(guest.port, UpgradeOptions(autoremove=True, clean=True))
    repair, _upgrade_job = guest.jobs
    assert (repair.environment["KVM_FLEET_AUTOREMOVE"], repair.environment["KVM_FLEET_CLEAN"]) == ("no", "no")


# --- failures ------------------------------------------------------------------------------------


def test_a_repair_that_fails_is_reported_as_what_it_is(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock, "ended 1", interrupted=True)
    guest.log = b"dpkg: error processing package ssl (--configure):\n"
    with pytest.raises(PackageStateInterrupted) as raised:
        upgrade(guest.port, UpgradeOptions())
    assert "could not be repaired" in raised.value.message
    assert raised.value.evidence["packages"] == ["ssl"]
    assert guest.kinds == ["repair"]


def test_an_upgrade_that_is_cut_off_says_that_the_next_run_repairs_it(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock, "cut_off")
    guest.log = b"Unpacking bash\n"
    with pytest.raises(UpgradeInterrupted) as raised:
        upgrade(guest.port, UpgradeOptions())
    assert raised.value.evidence == {"journal": _job.JOURNAL, "output": ["Unpacking bash"]}


def test_a_failed_upgrade_tells_what_had_changed_and_keeps_the_journal(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock, "ended 100")
    guest.log = b"dpkg: error processing package libssl3 (--configure):\nE: Sub-process returned an error\n"
    guest.partly = {"bash": "2"}
    with pytest.raises(UpgradeFailed) as raised:
        upgrade(guest.port, UpgradeOptions())
    evidence = raised.value.evidence
    assert evidence["packages"] == ["libssl3"]
    assert evidence["exit_code"] == 100
    assert evidence["changes"] == [{"name": "bash", "arch": "amd64", "old": "1", "new": "2", "security": False}]
    assert guest.look.state is JobState.ENDED


# --- following -----------------------------------------------------------------------------------


def test_after_the_interval_an_upgrade_is_underway_and_the_next_call_follows_it_further(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock, duration=100)
    guest.progress = ["pmstatus:bash:42.8:Unpacking bash (amd64)"]
    options = UpgradeOptions(run="mine", interval=30)
    found: list[Upgraded | Underway] = []
    while not found or isinstance(found[-1], Underway):
        found.append(upgrade(guest.port, options))
    *underway, done = found
    assert [type(one) for one in underway] == [Underway] * 3
    assert isinstance(done, Upgraded)
    assert done.changes == BOTH
    assert len(guest.jobs) == 1
    for number, one in enumerate(underway, start=1):
        assert isinstance(one, Underway)
        assert one.progress == Progress(42, "bash", "Unpacking bash (amd64)")
        assert one.elapsed == pytest.approx(30 * number, abs=1)


def test_an_interval_that_is_over_before_the_first_look_still_tells_how_far_it_is(clock: FakeClock) -> None:
    """On a slow guest, asking for the job may take longer than the interval."""
    guest = UpgradingGuest(clock, duration=100)
    guest.progress = ["pmstatus:bash:42.8:Unpacking bash (amd64)"]
    options = UpgradeOptions(run="mine", interval=0)
    upgrade(guest.port, options)
    found = upgrade(guest.port, options)
    assert isinstance(found, Underway)
    assert found.progress == Progress(42, "bash", "Unpacking bash (amd64)")


def test_an_interval_that_passes_during_a_repair_leaves_the_upgrade_to_the_next_call(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock, interrupted=True, duration=40)
    options = UpgradeOptions(run="mine", interval=30)
    assert isinstance(upgrade(guest.port, options), Underway)
    assert guest.kinds == ["repair"]
    assert isinstance(upgrade(guest.port, options), Underway)
    assert guest.kinds == ["repair", "upgrade"]
    result = upgrade(guest.port, options)
    assert isinstance(result, Upgraded)
    assert result.changes == BOTH


def test_a_failure_between_two_calls_is_told_by_the_next_one(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock, "ended 100", duration=40)
    options = UpgradeOptions(run="mine", interval=30)
    assert isinstance(upgrade(guest.port, options), Underway)
    with pytest.raises(UpgradeFailed):
        upgrade(guest.port, options)


def test_an_agent_that_is_away_for_a_while_changes_nothing(clock: FakeClock) -> None:
    """The upgrade itself restarts it."""
    guest = UpgradingGuest(clock, duration=60)
    clock.after(10, lambda: setattr(guest.agent, "silent", True))
    clock.after(50, lambda: setattr(guest.agent, "silent", False))
    result = upgrade(guest.port, UpgradeOptions())
    assert isinstance(result, Upgraded)
    assert result.changes == BOTH


def test_an_agent_that_stays_away_is_told_after_the_upgrades_time(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock, duration=60)
    clock.after(10, lambda: setattr(guest.agent, "silent", True))
    with pytest.raises(AgentSilent):
        upgrade(guest.port, UpgradeOptions(timeout=100))


# --- the deadline --------------------------------------------------------------------------------


def test_at_the_deadline_the_upgrade_is_asked_to_stop_and_what_it_came_to_is_told(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock, duration=10_000, stop=Stop(20, "ended 130"))
    guest.progress = ["pmstatus:bash:42.8:Unpacking bash (amd64)"]
    guest.partly = {"bash": "2"}
    guest.log = b"Unpacking bash\n"
    with pytest.raises(UpgradeTimeout) as raised:
        upgrade(guest.port, UpgradeOptions(timeout=100))
    error = raised.value
    assert error.message == (
        "the upgrade had not ended after 100 s (it was last at: 42 %, Unpacking bash (amd64); packages done: 1); "
        "it was stopped between two steps, and what was half done was finished"
    )
    assert error.evidence == {
        "journal": _job.JOURNAL,
        "stopped": True,
        "percent": 42,
        "activity": "Unpacking bash (amd64)",
        "changes": [{"name": "bash", "arch": "amd64", "old": "1", "new": "2", "security": False}],
        "output": ["Unpacking bash"],
    }


def test_an_upgrade_that_does_not_stop_goes_on_in_the_guest(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock, duration=10_000)
    with pytest.raises(UpgradeTimeout) as raised:
        upgrade(guest.port, UpgradeOptions(timeout=100))
    assert raised.value.evidence["stopped"] is False
    assert raised.value.evidence["percent"] is None
    assert "has not ended 600 s later; it goes on in the guest" in raised.value.message
    assert "it was last at: nothing that it told" in raised.value.message
    assert guest.look.state is JobState.RUNNING
    assert clock.monotonic() == pytest.approx(1000 + 100 + STOP_TIMEOUT, abs=5)


def test_an_upgrade_that_was_done_when_it_was_stopped_is_a_success(clock: FakeClock) -> None:
    """It came to its end while it was asked to stop."""
    guest = UpgradingGuest(clock, duration=10_000, stop=Stop(20, "ended 0"))
    guest.partly = dict(NEW)
    result = upgrade(guest.port, UpgradeOptions(timeout=100))
    assert isinstance(result, Upgraded)
    assert result.changes == BOTH


def test_an_exit_code_of_zero_with_something_left_is_a_timeout(clock: FakeClock) -> None:
    """apt-get that is asked to stop between two calls of dpkg may end with 0."""
    guest = UpgradingGuest(clock, duration=10_000, stop=Stop(20, "ended 0"))
    guest.partly = {"bash": "2"}
    with pytest.raises(UpgradeTimeout) as raised:
        upgrade(guest.port, UpgradeOptions(timeout=100))
    assert raised.value.evidence["stopped"] is True
    assert "packages done: 1" in raised.value.message


def test_the_deadline_counts_from_the_upgrades_beginning_whoever_follows_it(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock, duration=10_000, stop=Stop(1, "ended 130"))
    options = UpgradeOptions(run="mine", timeout=100, interval=60)
    assert isinstance(upgrade(guest.port, options), Underway)
    with pytest.raises(UpgradeTimeout, match="had not ended after 100 s"):
        upgrade(guest.port, options)


def test_a_guest_that_never_says_how_long_it_has_been_at_it_is_not_waited_for_for_ever(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock, duration=10_000, stop=Stop(1, "ended 130"))
    guest.tells_its_uptime = False
    began = clock.monotonic()
    with pytest.raises(UpgradeTimeout):
        upgrade(guest.port, UpgradeOptions(timeout=100))
    assert clock.monotonic() - began < 200


def test_what_a_stopped_upgrade_has_left_is_upgraded_by_the_next_run(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock, duration=10_000, stop=Stop(1, "ended 130"))
    guest.partly = {"bash": "2"}
    with pytest.raises(UpgradeTimeout):
        upgrade(guest.port, UpgradeOptions(run="first", timeout=100))
    guest.duration, guest.partly = 0, {}
    result = upgrade(guest.port, UpgradeOptions(run="second"))
    assert isinstance(result, Upgraded)
    assert result.changes == BOTH
    assert guest.kinds == ["upgrade", "repair", "upgrade"]


def test_an_upgrade_that_was_stopped_with_success_is_looked_at_again_before_it_is_told(clock: FakeClock) -> None:
    """Its exit code does not say that all is done."""
    guest = UpgradingGuest(clock, left="ended 0", left_by="mine", left_stopping=True)
    result = upgrade(guest.port, UpgradeOptions(run="mine"))
    assert isinstance(result, Upgraded)
    assert result.changes == BOTH
    assert guest.kinds == ["upgrade"]


# --- looking ahead -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "interrupted", "changes", "unfinished"),
    [
        ("none", False, BOTH, JobState.NONE),
        ("running", False, (), JobState.RUNNING),
        ("ended 0", False, BOTH, JobState.ENDED),
        ("cut_off", False, BOTH, JobState.CUT_OFF),
        ("cut_off", True, (), JobState.CUT_OFF),
        ("none", True, (), JobState.CUT_OFF),
    ],
)
def test_looking_ahead_tells_what_was_left_and_changes_nothing(
    clock: FakeClock, left: str, interrupted: bool, changes: tuple[PackageChange, ...], unfinished: JobState
) -> None:
    guest = UpgradingGuest(clock, left=left, interrupted=interrupted, duration=100)
    found = preview(guest.port, UpgradeOptions())
    assert (found.prediction.changes, found.unfinished) == (changes, unfinished)
    assert isinstance(found, Preview)
    assert guest.jobs == []
    assert guest.packages == OLD


# --- the journal's predictions -------------------------------------------------------------------


def test_predictions_add_up_and_the_last_one_says_what_was_kept_back() -> None:
    lines = [
        '{"security": ["a"], "unknown": ["b"], "kept_back": [["x", "held"]]}',
        '{"security": ["b"], "unknown": ["c"], "kept_back": [["y", "phased"], ["z", "excluded"]]}',
    ]
    kept = (KeptBack("y", KeptReason.PHASED), KeptBack("z", KeptReason.EXCLUDED))
    assert Told.parse(lines) == Told({"a": True, "b": True, "c": None}, kept)


def test_a_line_that_a_crash_has_cut_off_tells_nothing() -> None:
    whole = '{"security": ["a"], "unknown": [], "kept_back": [["x", "held"]]}'
    for length in range(len(whole)):
        assert Told.parse([whole[:length]]).kept_back == ()
    assert Told.parse([whole, whole[:20]]) == Told.parse([whole])


def test_a_line_without_bottom_tells_nothing() -> None:
    assert Told.parse(["[" * 100_000]) == Told({}, ())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
predictions = st.fixed_dictionaries({"security": json_values, "unknown": json_values, "kept_back": json_values})


@given(st.lists(st.text() | json_values.map(json.dumps) | predictions.map(json.dumps)))
def test_whatever_is_in_the_journal_is_predictions_or_nothing(lines: list[str]) -> None:
    told = Told.parse(lines)
    assert all(isinstance(kept.name, str) for kept in told.kept_back)
    assert set(told.security.values()) <= {True, None}


names = st.text(min_size=1)
changes = st.builds(
    PackageChange, names, st.just("all"), st.just("1"), st.just("2"), st.sampled_from([True, False, None])
)
kept = st.builds(KeptBack, names, st.sampled_from(KeptReason))


@given(st.lists(changes, unique_by=lambda change: change.name), st.lists(kept))
def test_what_was_predicted_is_read_again_whatever_its_packages_are_called(
    predicted: list[PackageChange], kept_back: list[KeptBack]
) -> None:
    prediction = Prediction(tuple(predicted), tuple(kept_back))
    job = _upgrade._job_of(Apt(), UpgradeOptions(), "upgrade", ["true"], prediction)
    told = Told.parse(told_by(job_in(_job.job_script(job))))
    assert told.kept_back == tuple(kept_back)
    expected: Mapping[str, bool | None] = {change.name: change.security for change in predicted}
    assert {name: told.security.get(name, False) for name in expected} == expected


def test_the_journal_is_a_guests_and_may_be_anything(clock: FakeClock) -> None:
    guest = UpgradingGuest(clock, left="ended 0", left_by="mine")
    guest.before_lines = ["", "a\tb", "\x1b[2J", "libssl3\tamd64\t1\tinstalled"]
    result = upgrade(guest.port, UpgradeOptions(run="mine"))
    assert isinstance(result, Upgraded)
    assert result.changes == (PackageChange("bash", "amd64", None, "1"),)
