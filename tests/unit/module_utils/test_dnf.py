# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""dnf's words: what a simulation, a log and a failure mean. Recordings are of the named dnf's real output."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvm.fleet.plugins.module_utils import _dnf
from ansible_collections.kvm.fleet.plugins.module_utils import _rpm as rpm
from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._dnf import (
    Dnf,
    Facts,
    Row,
    Told,
    changes_of,
    explain,
    parse_advisories,
    parse_facts,
    parse_progress,
    parse_room,
    parse_simulation,
    private_state,
)
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
from ansible_collections.kvm.fleet.plugins.module_utils._manager import Failure, Progress, Shell, UpgradeOptions
from ansible_collections.kvm.fleet.plugins.module_utils._packages import (
    KeptBack,
    KeptReason,
    PackageChange,
    Prediction,
    Room,
)
from tests.unit.fake_agent import Call, Ending, FakeAgent
from tests.unit.fake_clock import FakeClock
from tests.unit.recorded import recorded

UNTOLD = Told(frozenset(), frozenset())


# --- simulations ---------------------------------------------------------------------------------

UPGRADES = (
    Row("upgrade", "lab-app", "noarch", "2.0-1", "lab"),
    Row("upgrade", "lab-config", "noarch", "1.1-1", "lab"),
    Row("upgrade", "lab-kernel", "noarch", "1.1-1", "lab"),
    Row("upgrade", "lab-library", "noarch", "1.1-1", "lab"),
    Row("upgrade", "qemu-guest-agent", "x86_64", "2:1.1-1", "lab"),
    Row("install", "lab-plugin", "noarch", "1.0-1", "lab"),
)
LIBRARY = UPGRADES[3]
BEFORE = {
    ("lab-app", "noarch"): frozenset({"1.0-1"}),
    ("lab-config", "noarch"): frozenset({"1.0-1"}),
    ("lab-kernel", "noarch"): frozenset({"1.0-1"}),
    ("lab-library", "noarch"): frozenset({"1.0-1"}),
    ("lab-obsolete", "noarch"): frozenset({"1.0-1"}),
    ("qemu-guest-agent", "x86_64"): frozenset({"2:1.0-1"}),
}
LONG_NAME = "lab-library-with-a-name-that-is-longer-than-any-column"


def without_replaced(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """dnf 5 tells what each package replaces, its own old version too."""
    return tuple(Row(row.action, row.name, row.arch, row.version, row.repository) for row in rows)


@pytest.mark.parametrize(
    ("recording", "rows", "skipped"),
    [
        ("dnf-4.14-simulate", UPGRADES, ()),
        ("dnf-4.14-simulate-security", (LIBRARY,), ()),
        ("dnf-4.14-simulate-security-no-advisories", (), ()),
        ("dnf-4.14-simulate-autoremove", (Row("remove", "lab-obsolete", "noarch", "1.0-1", "@System"),), ()),
        (
            "dnf-4.14-simulate-long-names",
            (LIBRARY, Row("upgrade", LONG_NAME, "noarch", "3:2.0~rc1.20250101git0123456789abcdef-1", "lab")),
            (),
        ),
        (
            "dnf-4.14-simulate-conflict",
            (Row("upgrade", "lab-library", "noarch", "1.2-1", "lab"),),
            ("lab-app",),
        ),
        ("dnf-4.14-nothing-to-do", (), ()),
        ("dnf-5.4-simulate", UPGRADES, ()),
        ("dnf-5.4-simulate-security", (LIBRARY,), ()),
        ("dnf-5.4-simulate-autoremove", (Row("remove", "lab-obsolete", "noarch", "1.0-1", "<unknown>"),), ()),
        ("dnf-5.4-simulate-conflict", (), ("lab-app",)),
        ("dnf-5.4-nothing-to-do", (), ()),
    ],
)
def test_a_recorded_simulation_is_read_whole(recording: str, rows: tuple[Row, ...], skipped: tuple[str, ...]) -> None:
    simulation = parse_simulation(recorded(recording))
    assert without_replaced(simulation.rows) == rows
    assert simulation.skipped == skipped


@pytest.mark.parametrize("recording", ["dnf-4.14-simulate", "dnf-5.4-simulate"])
def test_both_tell_the_same_changes(recording: str) -> None:
    told = Told(frozenset({"lab"}), frozenset({("lab-library", "noarch")}))
    assert list(changes_of(parse_simulation(recorded(recording)), BEFORE, told)) == [
        PackageChange("lab-app", "noarch", "1.0-1", "2.0-1"),
        PackageChange("lab-config", "noarch", "1.0-1", "1.1-1"),
        PackageChange("lab-kernel", "noarch", "1.0-1", "1.1-1"),
        PackageChange("lab-library", "noarch", "1.0-1", "1.1-1", security=True),
        PackageChange("qemu-guest-agent", "x86_64", "2:1.0-1", "2:1.1-1"),
        PackageChange("lab-plugin", "noarch", None, "1.0-1"),
    ]


WRAPPED = """\
Upgrading:
 python3-a-very-long-name-that-fills-its-column
                   noarch   1:2.0-1.el8   updates    6.0 k
 b                 x86_64   2-1           a-very-long-repository
                                                     830
     replacing  c.x86_64 1.0-1
     replacing  d.noarch 0:3-1
Installing dependencies:
 kernel-core       x86_64   6.2-1         updates     17 M
Enabling module streams:
 postgresql                 15
Skipping packages with conflicts:
(add '--best --allowerasing' to command line to force their upgrade):
 e                 noarch   2-1           updates    1.0 k
Skipping packages with broken dependencies or part of a group:
 f                 noarch   2-1           updates    1.0 k
Removing dependent packages:
 g                 noarch   0:1-1         @System    1.0 k

Transaction Summary
================================================================================
Upgrade  2 Packages

Total download size: 18 M
Installed size: 53 k
"""


def test_wrapped_rows_are_put_together_and_sections_told_apart() -> None:
    simulation = parse_simulation(WRAPPED)
    assert simulation.rows == (
        Row("upgrade", "python3-a-very-long-name-that-fills-its-column", "noarch", "1:2.0-1.el8", "updates"),
        Row(
            *("upgrade", "b", "x86_64", "2-1", "a-very-long-repository"),
            replaces=(("c", "x86_64", "1.0-1"), ("d", "noarch", "3-1")),
        ),
        Row("install", "kernel-core", "x86_64", "6.2-1", "updates"),
        Row("remove", "g", "noarch", "1-1", "@System"),
    )
    assert simulation.skipped == ("e", "f")
    assert simulation.room == Room(18 * 1024**2, 53 * 1024)


def test_what_is_obsoleted_goes_and_old_versions_are_those_on_record() -> None:
    present = {
        ("python3-a-very-long-name-that-fills-its-column", "x86_64"): frozenset({"1-1"}),
        ("b", "x86_64"): frozenset({"1-1"}),
        ("kernel-core", "x86_64"): frozenset({"6.1-1"}),
    }
    assert list(changes_of(parse_simulation(WRAPPED), present, UNTOLD)) == [
        PackageChange("python3-a-very-long-name-that-fills-its-column", "noarch", "1-1", "1:2.0-1.el8", None),
        PackageChange("b", "x86_64", "1-1", "2-1", None),
        PackageChange("c", "x86_64", "1.0-1", None),
        PackageChange("d", "noarch", "3-1", None),
        # Installed beside the old one.
        PackageChange("kernel-core", "x86_64", None, "6.2-1", None),
        PackageChange("g", "noarch", "1-1", None),
    ]


def test_only_a_repository_with_advisories_tells_what_is_no_security_update() -> None:
    told = Told(frozenset({"lab"}), frozenset({("lab-library", "noarch")}))
    assert told.about(LIBRARY) is True
    assert told.about(Row("upgrade", "lab-library", "x86_64", "1.1-1", "lab")) is False
    assert told.about(Row("upgrade", "lab-app", "noarch", "2.0-1", "other")) is None


@pytest.mark.parametrize(
    ("output", "room"),
    [
        ("Total download size: 6.0 k\n", Room(6144)),
        ("Total size: 37 k\nTotal download size: 1.5 M\nInstalled size: 830  \n", Room(1572864, 830)),
        ("Total download size: 2.0 G", Room(2 * 1024**3)),
        ("Total size of inbound packages is 37 KiB. Need to download 31 KiB.\n", Room(31 * 1024)),
        ("After this operation, 4 MiB extra will be used (install 70 B, remove 66 B).\n", Room(0, 4 * 1024**2)),
        ("After this operation, 35 B will be freed (install 8 B, remove 43 B).\n", Room()),
        ("Total size: 37 k\n", Room()),
        ("", Room()),
    ],
)
def test_room_is_told_in_units(output: str, room: Room) -> None:
    assert parse_room(output) == room


@pytest.mark.parametrize("recording", ["dnf-4.14-updateinfo-security", "dnf-5.4-advisory-security"])
def test_advisories_name_packages(recording: str) -> None:
    assert parse_advisories(recorded(recording)) == {("lab-library", "noarch")}


def test_advisories_of_names_with_dashes_and_epochs() -> None:
    line = "RHSA-2024:1234 Moderate/Sec.  python3-requests-toolbelt-1:0.9.1-2.el9_4.x86_64\n"
    assert parse_advisories(line) == {("python3-requests-toolbelt", "x86_64")}


def test_facts_of_a_guest() -> None:
    lines = ["five", "advisories lab-ef5e47bcde1ad3be", "advisories with-dash-0123456789abcdef", "advisories odd"]
    assert parse_facts(lines) == Facts(five=True, held=False, advising=frozenset({"lab", "with-dash"}))
    assert parse_facts(["held"]) == Facts(five=False, held=True, advising=frozenset())


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,60}", fullmatch=True)
VERSIONS = st.from_regex(r"([1-9]:)?[A-Za-z0-9.~^+]{1,30}-[A-Za-z0-9.~^_]{1,20}", fullmatch=True)
ROWS = st.builds(
    Row,
    action=st.sampled_from(["install", "upgrade", "remove"]),
    name=NAMES.filter(lambda name: name != "replacing"),
    arch=st.sampled_from(["noarch", "x86_64", "i686"]),
    version=VERSIONS,
    repository=st.from_regex(r"[a-z][a-z0-9:._-]{0,30}", fullmatch=True),
)
HEADINGS = {"install": "Installing dependencies:", "upgrade": "Upgrading:", "remove": "Removing:"}


def rendered(rows: list[Row], breaks: list[int]) -> str:
    """A table as dnf 4 makes it, in which some rows go on in the next line."""
    lines = ["Dependencies resolved.", "=" * 80, " Package  Architecture  Version  Repository  Size", "=" * 80]
    for number, row in enumerate(rows):
        cells = [row.name, row.arch, row.version, row.repository, "6.0 k"]
        at = breaks[number % len(breaks)] if breaks else len(cells)
        lines += [HEADINGS[row.action], f" {'  '.join(cells[:at])}"]
        lines += [f"{' ' * 20}{'  '.join(cells[at:])}"] if at < len(cells) else []
    return "\n".join([*lines, "", "Transaction Summary", "=" * 80, "Operation aborted.", ""])


@given(st.lists(ROWS), st.lists(st.integers(1, 5)))
def test_a_table_of_any_packages_is_read_back(rows: list[Row], breaks: list[int]) -> None:
    assert parse_simulation(rendered(rows, breaks)).rows == tuple(rows)


WORDS = st.sampled_from(
    [
        "Upgrading:",
        "Removing:",
        "Skipping packages",
        " a",
        "  b",
        "replacing",
        " replacing",
        "0:1-1",
        "\n",
        "[1/0] ",
        ":",
    ]
)


@given(st.one_of(st.text(), st.lists(WORDS).map(" ".join), st.lists(WORDS).map("".join)))
def test_whatever_dnf_prints_is_read_or_left(output: str) -> None:
    list(changes_of(parse_simulation(output), BEFORE, UNTOLD))
    parse_advisories(output)
    parse_facts(output.splitlines())
    parse_progress(output.splitlines())
    explain(Failure("upgrade", 1, output))
    explain(Failure("refresh", 200, output))


# --- a guest's answers ---------------------------------------------------------------------------

RECORDS = "".join(f"{name}\t{arch}\t{version}\n" for (name, arch), (version,) in BEFORE.items())


class FakeDnf:
    """A guest whose dnf answers as recorded: the first answer of which all words are in the command line."""

    def __init__(self, answers: Mapping[tuple[str, ...], Ending], facts: str = "", records: str = RECORDS) -> None:
        self.commands: list[list[str]] = []
        self._answers = answers
        self._facts = facts
        self._records = records

    def __call__(self, call: Call) -> Ending:
        command = call.command
        if "-c" in command and _dnf._FACTS in command:
            return Ending(stdout=self._facts.encode())
        if "-c" in command and rpm.RECORDS in command:
            return Ending(stdout=self._records.encode())
        self.commands.append(command)
        return next(ending for words, ending in self._answers.items() if set(words).issubset(command))


def aborted(name: str) -> Ending:
    return Ending(1, stdout=recorded(name).encode(), stderr=b"Operation aborted.\n")


NOTHING = Ending(stdout=recorded("dnf-4.14-nothing-to-do").encode())
ADVISORIES = Ending(stdout=recorded("dnf-4.14-updateinfo-security").encode())
ANSWERS = {
    ("updateinfo",): ADVISORIES,
    ("upgrade", "--security"): aborted("dnf-4.14-simulate-security"),
    ("autoremove",): aborted("dnf-4.14-simulate-autoremove"),
    ("upgrade",): aborted("dnf-4.14-simulate"),
}


def predicted(fake: FakeDnf, clock: FakeClock, options: UpgradeOptions | None = None, state: str = "") -> Prediction:
    shell = Shell(GuestAgent(FakeAgent(clock, fake), clock), Dnf().environment)
    return Dnf().simulate(shell, options or UpgradeOptions(), state)


def test_a_simulation_asks_once_and_for_advisories(clock: FakeClock) -> None:
    fake = FakeDnf(ANSWERS, "advisories lab-ef5e47bcde1ad3be\n")
    prediction = predicted(fake, clock, state="/var/tmp/x")
    assert [change.name for change in prediction.changes] == [row.name for row in UPGRADES]
    assert [change.security for change in prediction.changes] == [False, False, False, True, False, False]
    assert (prediction.kept_back, prediction.arguments) == ((), ("upgrade",))
    assert [command[0] for command in fake.commands] == ["dnf", "dnf"]
    for command in fake.commands:
        assert set(private_state("/var/tmp/x")).issubset(command)


def test_nothing_to_do_needs_no_advisories(clock: FakeClock) -> None:
    fake = FakeDnf({("upgrade",): NOTHING})
    assert predicted(fake, clock, UpgradeOptions(security_only=True)).changes == ()
    assert len(fake.commands) == 1


def test_what_nobody_knows_of_is_kept_back_from_a_security_upgrade(clock: FakeClock) -> None:
    fake = FakeDnf({("upgrade", "--security"): NOTHING, ("upgrade",): ANSWERS[("upgrade",)]})
    prediction = predicted(fake, clock, UpgradeOptions(security_only=True))
    assert prediction.changes == ()
    assert prediction.kept_back == tuple(
        KeptBack(row.name, KeptReason.SECURITY_UNKNOWN) for row in UPGRADES if row.action == "upgrade"
    )


def test_a_security_upgrade_keeps_quiet_about_what_is_known_to_be_none(clock: FakeClock) -> None:
    fake = FakeDnf(ANSWERS, "advisories lab-ef5e47bcde1ad3be\n")
    prediction = predicted(fake, clock, UpgradeOptions(security_only=True))
    assert prediction.changes == (PackageChange("lab-library", "noarch", "1.0-1", "1.1-1", security=True),)
    assert (prediction.kept_back, prediction.arguments) == ((), ("upgrade", "--security"))


def test_what_is_left_out_by_an_exclusion_is_told(clock: FakeClock) -> None:
    excluding = aborted("dnf-4.14-simulate-security")
    fake = FakeDnf({("--exclude=lab-[a-k]*", "--exclude=qemu*"): excluding, **ANSWERS})
    prediction = predicted(fake, clock, UpgradeOptions(exclude=("lab-[a-k]*", "qemu*")))
    assert [change.name for change in prediction.changes] == ["lab-library"]
    assert {kept.name for kept in prediction.kept_back} == {"lab-app", "lab-config", "lab-kernel", "qemu-guest-agent"}
    assert {kept.reason for kept in prediction.kept_back} == {KeptReason.EXCLUDED}
    assert prediction.arguments == ("upgrade", "--exclude=lab-[a-k]*", "--exclude=qemu*")


@pytest.mark.parametrize(
    ("facts", "free"),
    [
        ("held\n", ("--disableexcludes=all", "--disableplugin=versionlock")),
        ("five\nheld\n", ("--setopt=disable_excludes=*",)),
    ],
)
def test_what_somebody_holds_is_told(clock: FakeClock, facts: str, free: tuple[str, ...]) -> None:
    everything = ANSWERS[("upgrade",)]
    fake = FakeDnf({free: everything, **ANSWERS, ("upgrade",): aborted("dnf-4.14-simulate-security")}, facts)
    kept = predicted(fake, clock).kept_back
    assert {one.name for one in kept} == {"lab-app", "lab-config", "lab-kernel", "qemu-guest-agent"}
    assert {one.reason for one in kept} == {KeptReason.HELD}


def test_what_is_held_for_its_dependencies_does_not_fail_the_rest(clock: FakeClock) -> None:
    conflict = Ending(1, stderr=recorded("dnf-4.14-simulate-conflict-best").encode())
    fake = FakeDnf({("--disableexcludes=all",): conflict, **ANSWERS}, "held\n")
    assert predicted(fake, clock).kept_back == ()


def test_skipped_packages_are_kept_back_for_their_dependencies(clock: FakeClock) -> None:
    fake = FakeDnf({**ANSWERS, ("upgrade",): aborted("dnf-4.14-simulate-conflict")})
    prediction = predicted(fake, clock)
    assert [change.name for change in prediction.changes] == ["lab-library"]
    assert prediction.kept_back == (KeptBack("lab-app", KeptReason.DEPENDENCIES),)


def test_what_is_not_needed_any_more_goes_with_the_upgrade(clock: FakeClock) -> None:
    changes = predicted(FakeDnf(ANSWERS), clock, UpgradeOptions(autoremove=True)).changes
    assert changes[-1] == PackageChange("lab-obsolete", "noarch", "1.0-1", None)
    assert len(changes) == len(UPGRADES) + 1


def test_a_conflict_is_an_error(clock: FakeClock) -> None:
    fake = FakeDnf({("upgrade",): Ending(1, stderr=recorded("dnf-4.14-simulate-conflict-best").encode())})
    with pytest.raises(DependencyConflict):
        predicted(fake, clock)


TWICE = RECORDS + "lab-app\tnoarch\t2.0-1\n"


def test_a_package_that_is_there_twice_was_interrupted(clock: FakeClock) -> None:
    fake = FakeDnf(
        {("--duplicates",): Ending(stdout=b"lab-app-0:1.0-1.noarch\nlab-app-0:2.0-1.noarch\n")}, records=TWICE
    )
    with pytest.raises(PackageStateInterrupted) as caught:
        predicted(fake, clock)
    assert caught.value.evidence["packages"] == ["lab-app-0:1.0-1.noarch", "lab-app-0:2.0-1.noarch"]


def test_a_package_that_is_meant_to_be_there_twice_was_not(clock: FakeClock) -> None:
    fake = FakeDnf({("--duplicates",): Ending(), **ANSWERS}, records=TWICE)
    assert len(predicted(fake, clock).changes) == len(UPGRADES)


def test_a_package_database_that_cannot_be_read_was_interrupted(clock: FakeClock) -> None:
    def program(_call: Call) -> Ending:
        return Ending(1, stderr=b"error: cannot open Packages database in /var/lib/rpm\n")

    shell = Shell(GuestAgent(FakeAgent(clock, program), clock), {})
    with pytest.raises(PackageStateInterrupted):
        Dnf().simulate(shell, UpgradeOptions(), "")


@pytest.mark.parametrize("state", ["", "/var/tmp/x"])
def test_a_refresh_insists_on_each_repository(clock: FakeClock, state: str) -> None:
    fake = FakeDnf({("makecache",): Ending()})
    Dnf("yum").refresh(Shell(GuestAgent(FakeAgent(clock, fake), clock), {}), state)
    (command,) = fake.commands
    assert {"yum", "makecache", "--refresh", "--setopt=*.skip_if_unavailable=False"}.issubset(command)
    assert (command[0] == "yum") is bool(state)


@pytest.mark.parametrize("state", ["", "/var/tmp/x"])
def test_a_refresh_takes_a_repositorys_key_from_where_it_is_configured(clock: FakeClock, state: str) -> None:
    fake = FakeDnf({("makecache",): Ending()})
    Dnf().refresh(Shell(GuestAgent(FakeAgent(clock, fake), clock), {}), state)
    assert "-y" in fake.commands[0]


def test_a_refresh_that_fails_is_explained(clock: FakeClock) -> None:
    gone = Ending(1, stderr=recorded("dnf-4.14-repository-gone").encode())
    shell = Shell(GuestAgent(FakeAgent(clock, lambda _call: gone), clock), {})
    with pytest.raises(RepositoryUnreachable):
        Dnf().refresh(shell, "/var/tmp/x")


# --- command lines -------------------------------------------------------------------------------


def test_a_private_state_is_all_in_its_directory() -> None:
    assert private_state("") == ()
    assert [option for option in private_state("/x") if "=/x/" not in option] == [
        "--disableplugin=generate_completion_cache"
    ]


def test_an_upgrade_is_unattended_and_waits_for_locks() -> None:
    options = UpgradeOptions(lock_retries=3, lock_delay=0.5)
    command = Dnf("dnf5").command(Prediction(arguments=("upgrade", "--exclude=a b")), options)
    assert command[:2] == ("/bin/sh", "-c")
    assert command[3:6] == ("sh", "2", "dnf5")
    assert command[-3:] == ("-y", "upgrade", "--exclude=a b")
    assert Dnf("dnf5").repair(options)[3:6] == ("sh", "2", "dnf5")


def shell_syntax(text: str) -> int:
    return subprocess.run(["/bin/sh", "-n", "-c", text], check=False).returncode


def test_all_shell_texts_are_ones() -> None:
    dnf = Dnf()
    texts = [dnf.state_script, dnf.records, dnf.prepare, dnf.finish, _dnf._FACTS, _dnf._REFRESH]
    options = UpgradeOptions(autoremove=True, exclude=("it's",))
    texts += [dnf.command(Prediction(), options)[2], dnf.repair(options)[2]]
    assert [shell_syntax(text) for text in texts] == [0] * len(texts)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Where a test puts what stands for dnf."""
    path = tmp_path / "dnf"
    path.touch(0o755)
    return path


NOW = UpgradeOptions(lock_retries=0)


def started(
    program: Path, script: str, log: Path, shell: str = "/bin/sh", options: UpgradeOptions = NOW
) -> subprocess.Popen[bytes]:
    """Start an upgrade as a job does, with a script in dnf's place; the locks are this machine's, nobody holds them."""
    program.write_text(f"#!/bin/sh\n{script}")
    command = (shell, *Dnf(str(program)).command(Prediction(arguments=("upgrade",)), options)[1:])
    with log.open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)


def wait_for(log: Path, word: str) -> None:
    end = time.monotonic() + 30
    while word not in log.read_text():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_upgrade_ends_as_its_dnf_does(program: Path, tmp_path: Path) -> None:
    upgrade = started(program, 'echo "$@"; exit 7', tmp_path / "log")
    assert upgrade.wait(30) == 7
    assert (tmp_path / "log").read_text().endswith("-y upgrade\n")


# What sh is in Fedora, and in Debian.
SHELLS = [shell for shell in ("/bin/bash", "/bin/dash") if Path(shell).exists()]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_transaction_is_not_stopped(program: Path, tmp_path: Path, shell: str) -> None:
    log = tmp_path / "log"
    upgrade = started(program, "echo Running transaction\nsleep 1\necho done\n", log, shell)
    wait_for(log, "Running")
    upgrade.send_signal(signal.SIGINT)
    time.sleep(0.3)
    upgrade.send_signal(signal.SIGINT)
    assert upgrade.wait(30) == 0
    assert log.read_text().endswith("done\n")


@pytest.mark.parametrize("shell", SHELLS)
def test_what_comes_before_a_transaction_is_stopped_at_once(program: Path, tmp_path: Path, shell: str) -> None:
    log = tmp_path / "log"
    upgrade = started(program, f"echo $$ >{tmp_path}/pid\necho Running transaction check\nexec sleep 600\n", log, shell)
    wait_for(log, "Running")
    upgrade.send_signal(signal.SIGINT)
    assert upgrade.wait(30) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_lock_that_dnf_met_is_waited_for_no_longer_than_allowed(program: Path, tmp_path: Path) -> None:
    assert started(program, "exit 200", tmp_path / "log").wait(30) == 200


UNNEEDED = replace(NOW, autoremove=True, exclude=("a b*", "c'd"))


def test_what_is_not_needed_any_more_is_removed_after_the_upgrade(program: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert started(program, "printf '%s\\n' \"$@\" ---", log, options=UNNEEDED).wait(30) == 0
    upgrade, autoremove, _rest = log.read_text().split("---\n")
    assert upgrade.endswith("-y\nupgrade\n")
    assert autoremove.endswith("-y\nautoremove\n--exclude=a b*\n--exclude=c'd\n")


@pytest.mark.parametrize(
    ("script", "code"),
    [("echo once; exit 3", 3), ("echo once; echo 'warning: %post(a-1-1.noarch) scriptlet failed, signal 15'", 0)],
)
def test_nothing_is_removed_after_an_upgrade_that_did_not_go_well(
    program: Path, tmp_path: Path, script: str, code: int
) -> None:
    log = tmp_path / "log"
    assert started(program, script, log, options=UNNEEDED).wait(30) == code
    assert log.read_text().splitlines().count("once") == 1


def test_nothing_is_removed_after_a_stop(program: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    upgrade = started(program, "echo Running transaction\nsleep 1\necho once\n", log, options=UNNEEDED)
    wait_for(log, "Running")
    upgrade.send_signal(signal.SIGINT)
    assert upgrade.wait(30) == 0
    assert log.read_text().splitlines().count("once") == 1


def finished(journal: Path, log: str, code: int = 0, /, **options: str) -> tuple[int, str]:
    """The exit code that 'finish' leaves, and what it had dnf do."""
    (journal / "log").write_text(log)
    (journal / "since").touch()
    dnf = journal / "dnf"
    dnf.write_text(f'#!/bin/sh\nfor last; do :; done\necho "$last" >>{journal}/called\n')
    dnf.chmod(0o755)
    settings = {"KVM_FLEET_CLEAN": "no", "KVM_FLEET_CONFFILES": "keep", **options}
    text = f'code={code}\n{Dnf().finish}\nexit "$code"'
    environment = {"PATH": f"{journal}:/usr/bin:/bin", **settings}
    ran = subprocess.run(["/bin/sh", "-c", text], cwd=journal, env=environment, check=False)
    called = journal / "called"
    return ran.returncode, called.read_text() if called.exists() else ""


@pytest.mark.parametrize(
    ("log", "options", "expected"),
    [
        ("Complete!\n", {}, (0, "")),
        ("Complete!\n", {"KVM_FLEET_CLEAN": "yes"}, (0, "packages\n")),
        ("warning: %post(a-1-1.noarch) scriptlet failed, exit status 1\n", {"KVM_FLEET_CLEAN": "yes"}, (1, "")),
    ],
)
def test_what_is_left_to_do_is_done_if_all_went_well(
    tmp_path: Path, log: str, options: dict[str, str], expected: tuple[int, str]
) -> None:
    assert finished(tmp_path, log, **options) == expected


def test_a_failed_upgrade_keeps_its_code(tmp_path: Path) -> None:
    log = "%post(a-1-1.noarch) scriptlet failed, signal 15\n"
    assert finished(tmp_path, log, 3, KVM_FLEET_CLEAN="yes") == (3, "")


# --- repairing -----------------------------------------------------------------------------------

# Each query names what is there twice until something was done about it.
TWICE_INSTALLED = """\
case $* in
  *"remove --help") cat "$ROOT/help"; exit ;;
  *repoquery*)
    [ -e "$ROOT/mended" ] || case $* in
      *latest-limit=1) echo b-0:2-1.noarch; echo c-3:2-1.x86_64 ;;
      *latest-limit=-1) echo b-0:1-1.noarch ;;
      *) echo b-0:1-1.noarch; echo b-0:2-1.noarch ;;
    esac ;;
  *) echo "dnf $*" >>"$ROOT/called"; [ "${0##*/}" = "$MENDED_BY" ] && : >"$ROOT/mended" ;;
esac
exit 0
"""
RPM_ERASES = """\
#!/bin/sh
case $1 in -qa) exit ;; esac
echo "rpm $*" >>"$ROOT/called"
[ "$MENDED_BY" != rpm ] || : >"$ROOT/mended"
"""
OLD_HELP = "".join(
    line for line in recorded("dnf-5.4-remove-help").splitlines(keepends=True) if "--duplicates" not in line
)
REINSTALLED = "reinstall --skip-unavailable b-0:2-1.noarch c-3:2-1.x86_64"


def repaired(program: Path, told: str, mended_by: str) -> tuple[int, list[str]]:
    """The exit code of a repair where packages are there twice, and what it did, without dnf's usual options."""
    root = program.parent
    program.write_text(f"#!/bin/sh\n{TWICE_INSTALLED}")
    (root / "rpm").write_text(RPM_ERASES)
    (root / "rpm").chmod(0o755)
    (root / "help").write_text(told)
    environment = {"PATH": f"{root}:/usr/bin:/bin", "ROOT": str(root), "MENDED_BY": mended_by}
    command = Dnf(str(program)).repair(NOW)
    ran = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=False)
    called = (root / "called").read_text().splitlines()
    return ran.returncode, [" ".join(word for word in line.split() if "--set" not in word) for line in called]


@pytest.mark.parametrize("told", [recorded("dnf-5.4-remove-help"), recorded("dnf-4.14-remove-help")])
def test_packages_that_are_there_twice_are_mended_by_dnfs_own_means(program: Path, told: str) -> None:
    assert repaired(program, told, "dnf") == (0, ["dnf -y remove --duplicates"])


def test_a_dnf_that_cannot_remove_duplicates_installs_the_newest_again(program: Path) -> None:
    assert repaired(program, OLD_HELP, "dnf") == (0, [f"dnf -y {REINSTALLED}"])


def test_what_no_repository_has_any_more_is_left_to_rpm_which_removes_nothing_else(program: Path) -> None:
    assert repaired(program, OLD_HELP, "rpm") == (0, [f"dnf -y {REINSTALLED}", "rpm -e -- b-0:1-1.noarch"])


@pytest.mark.parametrize("told", [OLD_HELP, recorded("dnf-4.14-remove-help")])
def test_what_is_still_there_twice_is_a_failure(program: Path, told: str) -> None:
    assert repaired(program, told, "nobody")[0] == 1


# --- progress ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "progress"),
    [
        (
            "  Upgrading        : lab-library-1.1-1.noarch                               3/12 ",
            Progress(25, "lab-library", "Upgrading lab-library"),
        ),
        (
            "  Running scriptlet: qemu-guest-agent-2:1.1-1.x86_64                        3/9 ",
            Progress(33, "qemu-guest-agent", "Running scriptlet qemu-guest-agent"),
        ),
        (
            "  Verifying        : lab-library-1.1-1.noarch                               1/2 ",
            Progress(100, "lab-library", "Verifying lab-library"),
        ),
        (
            "(2/11): lab-app-2.0-1.noarch.rpm    1.2 MB/s | 6.0 kB     00:00    ",
            Progress(18, "lab-app", "Downloading lab-app"),
        ),
        (
            "[ 2/10] Installing lab-plugin-0:1.0-1.n 100% | 273.4 KiB/s | 280.0   B |  00m00s",
            Progress(20, "lab-plugin", "Installing lab-plugin"),
        ),
        (
            "[1/6] lab-plugin-0:1.0-1.noarch         100% |   0.0   B/s |   6.0 KiB |  00m00s",
            Progress(16, "lab-plugin", "Downloading lab-plugin"),
        ),
        ("[6/6] Total                             100% |   5.9 MiB/s |  18.3 KiB |  00m00s", Progress()),
        ("[1/0] Upgrading a-0:1-1.noarch 100% | 0 B", Progress(None, "a", "Upgrading a")),
        ("Running transaction", Progress()),
    ],
)
def test_a_line_of_the_log_tells_how_far_it_is(line: str, progress: Progress) -> None:
    assert parse_progress(["something", line, "what a script says", ""]) == progress


@pytest.mark.parametrize("recording", ["dnf-4.14-upgrade", "dnf-5.4-upgrade"])
def test_a_recorded_upgrade_goes_to_its_end(recording: str) -> None:
    log = recorded(recording).splitlines()
    percents = [parse_progress(log[:end]).percent for end in range(len(log))]
    assert percents[0] is None
    assert percents[-1] == 100


# --- failures ------------------------------------------------------------------------------------

NO_CANDIDATE = "Problem: cannot install the best update candidate for package lab-app-1.0-1.noarch"
POST_FAILED = "at lab-library: %post(lab-library-1.1-1.noarch) scriptlet failed, exit status 1"
PRE_FAILED = "at lab-library: %prein(lab-library-1.1-1.noarch) scriptlet failed, exit status 1"


@pytest.mark.parametrize(
    ("recording", "kind", "told"),
    [
        ("dnf-4.14-upgrade-rpm-locked", PackageManagerLocked, "/var/lib/rpm/.rpm.lock is locked in the guest"),
        (
            "dnf-4.14-upgrade-disk-full",
            DiskFull,
            "installing package lab-library-1.1-1.noarch needs 12KB more space on",
        ),
        ("dnf-4.14-simulate-conflict-best", DependencyConflict, f"{NO_CANDIDATE} - nothing provides lab-absent needed"),
        ("dnf-5.4-simulate-conflict-best", DependencyConflict, f"{NO_CANDIDATE} - nothing provides lab-absent needed"),
        ("dnf-4.14-upgrade-post-failed", MaintainerScriptFailed, POST_FAILED),
        ("dnf-4.14-upgrade-pre-failed", MaintainerScriptFailed, PRE_FAILED),
        ("dnf-5.4-upgrade-post-failed", MaintainerScriptFailed, POST_FAILED),
        ("dnf-5.4-upgrade-pre-failed", MaintainerScriptFailed, PRE_FAILED),
        ("dnf-4.14-repository-gone", RepositoryUnreachable, "Failed to download metadata for repo 'lab'"),
        ("dnf-5.4-repository-gone", RepositoryUnreachable, 'for repository "lab": Usable URL not found'),
        ("dnf-4.14-repository-unsigned", RepositoryUntrusted, "GPG verification is enabled"),
        (
            "dnf-4.14-upgrade-bad-checksum",
            RepositoryUntrusted,
            "packages from local repository have incorrect checksum",
        ),
        ("dnf-5.4-upgrade-bad-checksum", RepositoryUntrusted, "Failed to download packages"),
        ("dnf-4.14-upgrade-unsigned", RepositoryUntrusted, "Error: GPG check FAILED"),
        ("dnf-5.4-upgrade-unsigned", RepositoryUntrusted, "Transaction failed: Signature verification failed."),
        (
            "dnf-4.14-repository-untrusted-certificate",
            RepositoryUntrusted,
            "Failed to download metadata for repo 'lab'",
        ),
        ("dnf-5.4-repository-untrusted-certificate", RepositoryUntrusted, 'for repository "lab": Usable URL not found'),
    ],
)
@pytest.mark.parametrize("action", ["refresh", "upgrade"])
def test_a_recorded_failure_becomes_the_error_behind_it(
    action: str, recording: str, kind: type[FleetError], told: str
) -> None:
    error = explain(Failure(action, 1, recorded(recording)))
    assert error.__class__ is kind
    assert told in error.message
    assert error.remedy
    assert error.evidence["exit_code"] == 1
    assert error.evidence["output"] == recorded(recording).splitlines()[-20:]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (recorded("dnf-4.14-upgrade-locked"), "RPMDB is locked by process 222 (dnf) in the guest"),
        (
            "/var/lib/dnf/system-repo.lock is locked by process 24 (dnf5)\n",
            "/var/lib/dnf/system-repo.lock is locked by process 24 (dnf5) in the guest",
        ),
        ("Metadata already locked by 7\n", "Metadata is locked by process 7 in the guest"),
        (
            "Malformed lock file found: /var/lib/dnf/rpmdb_lock.pid.\n",
            "/var/lib/dnf/rpmdb_lock.pid is locked in the guest",
        ),
        ("", "the package manager is locked in the guest"),
    ],
)
def test_a_lock_is_told_with_its_holder_where_dnf_names_it(output: str, message: str) -> None:
    error = explain(Failure("upgrade", 200, output))
    assert isinstance(error, PackageManagerLocked)
    assert error.message == message


@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        (Failure("upgrade", 1, "words\nlast\n"), UpgradeFailed, "dnf upgrade failed in the guest: last"),
        (Failure("refresh", 1, "words\nlast\n"), PackageListsFailed, "dnf makecache failed in the guest: last"),
        (Failure("upgrade", None, ""), UpgradeFailed, "dnf upgrade failed in the guest: it printed nothing"),
    ],
)
def test_what_is_not_known_is_told_in_dnfs_last_words(failure: Failure, kind: type[FleetError], message: str) -> None:
    error = explain(failure)
    assert error.__class__ is kind
    assert error.message == message


@pytest.mark.parametrize(
    "output",
    ["still installed twice: a-0:1-1.noarch\n", "error: cannot open Packages database in /var/lib/rpm\n"],
)
def test_packages_that_are_half_there_are_an_interruption(output: str) -> None:
    assert isinstance(explain(Failure("upgrade", 1, output)), PackageStateInterrupted)


def test_a_lock_is_reported_with_its_holder() -> None:
    evidence = explain(Failure("upgrade", 200, recorded("dnf-4.14-upgrade-locked"))).evidence
    assert (evidence["lock"], evidence["holder_pid"], evidence["holder"]) == ("RPMDB", 222, "dnf")


@pytest.mark.parametrize(
    "recording",
    [
        "dnf-4.14-upgrade-post-failed",
        "dnf-4.14-upgrade-pre-failed",
        "dnf-5.4-upgrade-post-failed",
        "dnf-5.4-upgrade-pre-failed",
    ],
)
def test_the_packages_whose_scripts_failed_are_evidence(recording: str) -> None:
    assert explain(Failure("upgrade", 1, recorded(recording))).evidence["packages"] == ["lab-library"]


@pytest.mark.parametrize(
    "met",
    ["(28): Timeout was reached", "(60): SSL peer certificate or SSH remote key was not OK for https://a/a.rpm"],
)
def test_a_mirror_that_failed_is_not_what_failed_in_the_end(met: str) -> None:
    output = f"[MIRROR] a.rpm: Curl error {met}\nError: Could not run transaction.\n"
    assert isinstance(explain(Failure("upgrade", 1, output)), UpgradeFailed)


@pytest.mark.parametrize(
    "recording", ["dnf-4.14-upgrade-ca-certificates-conflict", "dnf-5.4-upgrade-ca-certificates-conflict"]
)
def test_a_package_that_is_called_after_certificates_is_none(recording: str) -> None:
    assert explain(Failure("upgrade", 1, recorded(recording))).__class__ is UpgradeFailed


def test_a_script_that_met_rpms_lock_has_failed_itself() -> None:
    output = (
        "error: can't create transaction lock on /var/lib/rpm/.rpm.lock (Resource temporarily unavailable)\n"
        "warning: %post(a-1-1.noarch) scriptlet failed, exit status 1\n"
    )
    assert isinstance(explain(Failure("upgrade", 1, output)), MaintainerScriptFailed)
