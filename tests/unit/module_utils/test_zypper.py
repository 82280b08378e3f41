# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""zypper's words: what a simulation, a log and a failure mean; and what is run. Recordings are of a real zypper's."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import xml.etree.ElementTree as ET
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvm.fleet.plugins.module_utils import _locks, _zypper
from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
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
from ansible_collections.kvm.fleet.plugins.module_utils._job import JOURNAL
from ansible_collections.kvm.fleet.plugins.module_utils._manager import Failure, Progress, Shell, UpgradeOptions
from ansible_collections.kvm.fleet.plugins.module_utils._packages import (
    KeptBack,
    KeptReason,
    PackageChange,
    Prediction,
    Room,
)
from ansible_collections.kvm.fleet.plugins.module_utils._zypper import (
    Zypper,
    explain,
    parse_locks,
    parse_patches,
    parse_progress,
    parse_simulation,
    parse_unneeded,
    parse_updates,
)
from tests.unit import recorded as recordings
from tests.unit.fake_agent import Call, Ending, FakeAgent
from tests.unit.fake_clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def recorded(name: str) -> str:
    return recordings.recorded(f"zypper-1.14-{name}")


# --- simulations ---------------------------------------------------------------------------------

APP = PackageChange("lab-app", "noarch", "1.0-1", "2.0-1")
CONFIG = PackageChange("lab-config", "noarch", "1.0-1", "1.1-1")
KERNEL = PackageChange("lab-kernel", "noarch", "1.0-1", "1.1-1")
LIBRARY = PackageChange("lab-library", "noarch", "1.0-1", "1.1-1")
AGENT = PackageChange("qemu-guest-agent", "x86_64", "2:1.0-1", "2:1.1-1")
PLUGIN = PackageChange("lab-plugin", "noarch", None, "1.0-1")
OBSOLETE = PackageChange("lab-obsolete", "noarch", "1.0-1", None)

SIMULATIONS = [
    ("simulate-xml", Prediction((APP, CONFIG, KERNEL, LIBRARY, AGENT, PLUGIN), room=Room(37667, 4))),
    ("simulate-locked-package-xml", Prediction((APP, KERNEL, LIBRARY, AGENT, PLUGIN), room=Room(31308, 4))),
    ("simulate-security-xml", Prediction((LIBRARY,), room=Room(6163))),
    ("simulate-reboot-xml", Prediction((KERNEL, LIBRARY), room=Room(12583))),
    ("remove-xml", Prediction((OBSOLETE,))),
    ("nothing-to-do-xml", Prediction()),
]


@pytest.mark.parametrize(("recording", "expected"), SIMULATIONS, ids=[name for name, _expected in SIMULATIONS])
def test_a_recorded_simulation_is_read_whole(recording: str, expected: Prediction) -> None:
    assert parse_simulation(recorded(recording)) == expected


def summary(*sections: tuple[str, Sequence[Mapping[str, str]]], **attributes: str) -> str:
    """What zypper prints of a transaction, in its own form."""
    stream = ET.Element("stream")
    ET.SubElement(stream, "message", type="info").text = "Reading installed packages..."
    told = ET.SubElement(stream, "install-summary", attributes)
    for name, solvables in sections:
        section = ET.SubElement(told, name)
        for solvable in solvables:
            ET.SubElement(ET.SubElement(section, "solvable", dict(solvable)), "description").text = "Long."
    return "<?xml version='1.0'?>\n" + ET.tostring(stream, encoding="unicode")


def package(name: str, edition: str, arch: str = "x86_64", **more: str) -> dict[str, str]:
    return {
        "type": "package", "name": name, "edition": edition, "arch": arch,
        **{key.replace("_", "-"): value for key, value in more.items()},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("section", "solvable", "expected"),
    [
        ("to-install", package("a", "2-1"), [PackageChange("a", "x86_64", None, "2-1")]),
        ("to-remove", package("a", "1-1"), [PackageChange("a", "x86_64", "1-1", None)]),
        ("to-downgrade", package("a", "1-1", edition_old="2-1"), [PackageChange("a", "x86_64", "2-1", "1-1")]),
        ("to-reinstall", package("a", "1-1", edition_old="1-1", arch_old="x86_64"), []),
        (
            "to-upgrade-change-arch",
            package("a", "2-1", "noarch", edition_old="1-1", arch_old="x86_64"),
            [PackageChange("a", "x86_64", "1-1", None), PackageChange("a", "noarch", None, "2-1")],
        ),
        ("to-install", {**package("SUSE-1", "1"), "type": "patch"}, []),
        ("to-upgrade", {**package("Leap", "15.7"), "type": "product"}, []),
        ("to-install", {"type": "package", "edition": "1-1"}, []),
    ],
)
def test_each_kind_of_change_is_read(section: str, solvable: dict[str, str], expected: list[PackageChange]) -> None:
    assert list(parse_simulation(summary((section, [solvable]))).changes) == expected


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"download-size": "1", "space-usage-diff": "2"}, Room(1, 2)),
        ({"download-size": "1", "space-usage-diff": "-2"}, Room(1, 0)),
        ({"download-size": "much", "space-usage-diff": "9" * 40}, Room()),
        ({}, Room()),
    ],
)
def test_room_is_told_in_bytes_and_what_shrinks_needs_none(told: dict[str, str], expected: Room) -> None:
    assert parse_simulation(summary(**told)).room == expected


NAMES = st.text("abcxyz0189+-._", min_size=1, max_size=12)
EDITIONS = st.tuples(NAMES, NAMES).map("-".join)


@given(st.lists(st.tuples(NAMES, EDITIONS, EDITIONS, st.sampled_from(["x86_64", "noarch", "aarch64"])), max_size=5))
def test_a_summary_that_is_rendered_is_read_back(updates: list[tuple[str, str, str, str]]) -> None:
    solvables = [package(name, new, arch, edition_old=old) for name, old, new, arch in updates]
    expected = tuple(PackageChange(name, arch, old, new) for name, old, new, arch in updates if old != new)
    assert parse_simulation(summary(("to-upgrade", solvables))).changes == expected


HOSTILE = [
    "",
    "<stream>",
    "<stream></stream><stream></stream>",
    "Loading repository data...\n",
    "<stream><install-summary></stream>",
    "<stream>&undefined;</stream>",
    "<?xml version='1.0' encoding='no-such'?><stream/>",
    '<!DOCTYPE stream [<!ENTITY a "b">]><stream><install-summary/>&a;</stream>',
    "<stream>\ud800</stream>",
    "<stream/>",
]


@pytest.mark.parametrize("output", HOSTILE)
def test_what_is_no_simulation_is_a_typed_error(output: str) -> None:
    with pytest.raises(UpgradeFailed):
        parse_simulation(output)


def test_a_control_character_in_a_summary_spoils_nothing() -> None:
    output = summary(("to-install", [package("a", "1-1", summary="bell")])).replace("bell", "\x07\ufffe")
    assert [change.name for change in parse_simulation(output).changes] == ["a"]


MARKUP = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from(
            [
                "<stream>", "</stream>", "<install-summary>", "</install-summary>", "<to-upgrade>", "</to-upgrade>",
                '<solvable type="package" name="a"/>', '<update kind="package"/>', "<match/>", "i | a | b | c | d\n",
                "(1/0) Installing: a", "Retrieving package a (1/2)", "\n", "&", "%post(a) scriptlet failed",
                "Problem: a", "In order to install 'a'",
                "System management is locked by the application with pid 1 (a)",
            ]
        ),
    )
).map("".join)  # fmt: skip


@given(MARKUP)
def test_whatever_zypper_prints_is_read_or_a_typed_error(output: str) -> None:
    for parse in (parse_simulation, parse_patches, parse_updates, parse_locks):
        with suppress(UpgradeFailed):
            parse(output)
    parse_unneeded(output)
    parse_progress(output.splitlines())
    for action in ("refresh", "upgrade"):
        for code in (None, 4, 8, 106, 107):
            assert isinstance(explain(Failure(action, code, output)), FleetError)


# --- patches, updates, locks, leftovers ----------------------------------------------------------


def test_security_patches_are_told_by_their_category() -> None:
    assert parse_patches(recorded("list-patches-xml")) == ("LAB-2025-1",)


def test_a_guest_whose_repositories_have_no_patches_is_another_than_one_that_needs_none() -> None:
    stream = "<stream><update-status><update-list>{}</update-list></update-status></stream>"
    assert parse_patches(stream.format('<appletinfo status="no-update-repositories"/>')) is None
    assert parse_patches(stream.format("")) == ()


UPDATES = """<stream><update-list>
<update kind="package" name="a" edition="2-1" arch="x86_64" edition-old="1-1"><summary>A</summary></update>
<update kind="package" name="b" edition="2-1" arch="x86_64" edition-old="1-1"/><update kind="patch" name="c"/>
<update kind="package" name="a" edition="2-1" arch="i586" edition-old="1-1"/>
</update-list></stream>"""


def test_newer_packages_are_listed_once() -> None:
    assert parse_updates(UPDATES) == ("a", "b")


LOCKS = """<stream><locks size="2"><lock number="1"><name>P</name><type>patch</type><matches size="0"/></lock>
<lock number="2"><name>lab-con*</name><type>package</type><matches size="2">
<match kind="package" name="lab-config" edition="1.1-1" arch="noarch" installed="false" repo="lab"></match>
<match kind="package" name="lab-config" edition="1.0-1" arch="noarch" installed="true" repo="@System"></match>
<match kind="pattern" name="base"/></matches></lock></locks></stream>"""


def test_locked_packages_are_those_that_a_lock_matches() -> None:
    assert parse_locks(LOCKS) == {"lab-config"}


def test_unneeded_packages_are_told_by_a_table() -> None:
    assert parse_unneeded(recorded("unneeded")) == (OBSOLETE,)
    several = (
        "S  | Repository | Name | Version | Arch\n---+-----\n"
        "i+ | Main       | a    | 1-1     | x86_64\ni | Up | date | a | 1-1 | x86_64\nv | Main | b | 1 | noarch\n"
    )
    assert parse_unneeded(several) == (PackageChange("a", "x86_64", "1-1", None),)


# --- progress ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "(4/5) Installing: qemu-guest-agent-2:1.1-1.x86_64 [......done]",
            Progress(80, "qemu-guest-agent", "Installing qemu-guest-agent-2:1.1-1.x86_64"),
        ),
        (
            "(1/1) Removing lab-obsolete-1.0-1.noarch [.....done]",
            Progress(100, "lab-obsolete", "Removing lab-obsolete-1.0-1.noarch"),
        ),
        ("(1/1) Removing: a-1-1.noarch [done]", Progress(100, "a", "Removing a-1-1.noarch")),
        (
            "Retrieving package lab-app-2.0-1.noarch (5/5),   6.0 KiB (    4   B unpacked)",
            Progress(100, "lab-app", "Retrieving lab-app-2.0-1.noarch"),
        ),
        ("Retrieving: a-2-1.noarch (Main) (1/4),   6.0 KiB", Progress(25, "a", "Retrieving a-2-1.noarch")),
        ("(1/0) Installing: a-1-1.noarch", Progress(None, "a", "Installing a-1-1.noarch")),
        ("Additional rpm output:", Progress()),
    ],
)
def test_a_line_of_the_log_tells_how_far_it_is(line: str, expected: Progress) -> None:
    assert parse_progress(["(1/9) Installing: z-1-1.noarch", line] if expected.activity else [line]) == expected


def test_the_last_step_of_a_recorded_log_counts() -> None:
    assert Zypper().progress((), recorded("upgrade").splitlines()) == Progress(
        100, "lab-app", "Installing lab-app-2.0-1.noarch"
    )


# --- failures ------------------------------------------------------------------------------------

LICENCE = """<stream><message type="info">In order to install &apos;lab-library&apos;, you must agree to terms of the
following license agreement:</message><message type="info">Aborting installation due to the need for license
confirmation.</message></stream>"""

CONFLICT = """\
Resolving package dependencies...

Problem: patch:LAB-2025-1-1.noarch conflicts with lab-library < 1.1-1 provided by lab-library-1.0-1.noarch
 Solution 1: remove lock to allow removal of lab-library-1.0-1.noarch
Choose from above solutions by number or cancel [1/2/c/d/?] (c): c
"""

FAILURES: list[tuple[str, Failure, type[FleetError], str]] = [
    (
        "zypp locked",
        Failure("refresh", 7, recorded("upgrade-locked")),
        PackageManagerLocked,
        "/run/zypp.pid is locked by process 233 (zypper) in the guest",
    ),
    (
        "zypp locked, in XML",
        Failure("upgrade", 7, recorded("upgrade-locked-xml")),
        PackageManagerLocked,
        "/run/zypp.pid is locked by process 233 (zypper) in the guest",
    ),
    (
        "rpm locked",
        Failure("upgrade", 8, recorded("upgrade-rpm-locked")),
        PackageManagerLocked,
        "/var/lib/rpm/.rpm.lock is locked in the guest",
    ),
    (
        "database",
        Failure("upgrade", 4, "Target initialization failed:\ndatabase disk image is malformed\n"),
        PackageStateInterrupted,
        "the guest's package database was left half written",
    ),
    (
        "disk full",
        Failure("upgrade", 8, recorded("upgrade-disk-full")),
        DiskFull,
        (
            "a file system of the guest is full: Installation of lab-config-1.1-1.noarch failed: Error: "
            "Subprocess failed. Error: RPM failed: \tinstalling package lab-config-1.1-1.noarch needs "
            "16KB more space on the / filesystem"
        ),
    ),
    (
        "repository gone",
        Failure("refresh", 4, recorded("repository-gone")),
        RepositoryUnreachable,
        (
            "the guest does not reach one of its repositories: Problem retrieving files from 'lab'. Specified path "
            "'/srv/repos/gone' is not a directory: file:/srv/repos/gone"
        ),
    ),
    (
        "repository gone, upgrade",
        Failure("upgrade", 106, recorded("repository-gone-xml")),
        RepositoryUnreachable,
        (
            "the guest does not reach one of its repositories: Problem retrieving files from 'lab'. Specified path "
            "'/srv/repos/gone' is not a directory: file:/srv/repos/gone"
        ),
    ),
    (
        "unreachable",
        Failure("refresh", 4, recorded("repository-unreachable-xml")),
        RepositoryUnreachable,
        (
            "the guest does not reach one of its repositories: Repository 'lab' is invalid. "
            "[lab|http://127.0.0.1:8000/] Valid metadata not found at specified URL"
        ),
    ),
    (
        "repository unsigned",
        Failure("refresh", 4, recorded("repository-unsigned-xml")),
        RepositoryUntrusted,
        (
            "the guest does not trust one of its repositories: Repository 'lab' is invalid. [lab|file:/srv/lab/rpm] "
            "Valid metadata not found at specified URL"
        ),
    ),
    (
        "certificate",
        Failure("refresh", 4, recorded("repository-untrusted-certificate-xml")),
        RepositoryUntrusted,
        (
            "the guest does not trust one of its repositories: Repository 'lab' is invalid. "
            "[lab|https://127.0.0.1:8443/] Valid metadata not found at specified URL"
        ),
    ),
    (
        "a package called after certificates",
        Failure("upgrade", 8, recorded("upgrade-ca-certificates-terminated")),
        UpgradeFailed,
        (
            "zypper upgrade failed in the guest: (1/2) Installing: ca-certificates-2024.2-1.noarch [....done]"
        ),
    ),
    (
        "package unsigned",
        Failure("upgrade", 8, recorded("upgrade-unsigned")),
        RepositoryUntrusted,
        (
            "the guest does not trust one of its repositories: lab-config-1.1-1.noarch (lab): Signature verification "
            "failed [6-File is unsigned]"
        ),
    ),
    (
        "checksum",
        Failure("upgrade", 8, recorded("upgrade-bad-checksum")),
        RepositoryUntrusted,
        (
            "the guest does not trust one of its repositories: Warning: Digest verification failed for file "
            "'lab-app-2.0-1.noarch.rpm'"
        ),
    ),
    (
        "post",
        Failure("upgrade", 107, recorded("upgrade-post-failed")),
        MaintainerScriptFailed,
        (
            "a script of a package failed in the guest at lab-library: %post(lab-library-1.1-1.noarch) "
            "scriptlet failed, exit status 1"
        ),
    ),
    (
        "pre",
        Failure("upgrade", 8, recorded("upgrade-pre-failed")),
        MaintainerScriptFailed,
        (
            "a script of a package failed in the guest at lab-library: %prein(lab-library-1.1-1.noarch) "
            "scriptlet failed, exit status 1"
        ),
    ),
    (
        "some script",
        Failure("upgrade", 107, "(1/1) Installing: a [done]\n"),
        MaintainerScriptFailed,
        "a script of a package failed in the guest: (1/1) Installing: a [done]",
    ),
    (
        "conflict",
        Failure("upgrade", 4, CONFLICT),
        DependencyConflict,
        (
            "the dependencies of the guest's packages cannot be satisfied: Problem: "
            "patch:LAB-2025-1-1.noarch conflicts with lab-library < 1.1-1 provided by lab-library-1.0-1.noarch"
        ),
    ),
    (
        "licence",
        Failure("upgrade", 4, LICENCE),
        UpgradeFailed,
        "a licence has to be agreed to in the guest before its packages can be upgraded: lab-library",
    ),
    (
        "lists",
        Failure("refresh", 6, "No repositories\n"),
        PackageListsFailed,
        "zypper refresh failed in the guest: No repositories",
    ),
    ("silent", Failure("upgrade", None, ""), UpgradeFailed, "zypper upgrade failed in the guest: it printed nothing"),
    (
        "another restart",
        Failure("upgrade", 103, recorded("patch-restart")),
        UpgradeFailed,
        (
            "zypper upgrade failed in the guest: Warning: One of the installed patches affects the "
            "package manager itself. Run this command once more to install any other needed patches."
        ),
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("failure", "kind", "message"), [one[1:] for one in FAILURES], ids=[one[0] for one in FAILURES]
)
def test_a_failure_becomes_the_error_behind_it(failure: Failure, kind: type[FleetError], message: str) -> None:
    error = explain(failure)
    assert (error.__class__, error.message) == (kind, message)
    assert error.evidence["exit_code"] == failure.exit_code
    assert error.remedy


def test_a_lock_is_reported_with_its_holder() -> None:
    evidence = explain(Failure("upgrade", 7, recorded("upgrade-locked"))).evidence
    assert (evidence["lock"], evidence["holder_pid"], evidence["holder"]) == ("/run/zypp.pid", 233, "zypper")


def test_packages_whose_scripts_failed_are_evidence() -> None:
    assert explain(Failure("upgrade", 107, recorded("upgrade-post-failed"))).evidence["packages"] == ["lab-library"]
    assert explain(Failure("upgrade", 8, recorded("upgrade-pre-failed"))).evidence["packages"] == ["lab-library"]
    assert explain(Failure("upgrade", 4, LICENCE)).evidence["packages"] == ["lab-library"]


@pytest.mark.parametrize("code", [103, 105])
def test_who_runs_again_after_what_was_cut_short_goes_on(code: int) -> None:
    assert explain(Failure("upgrade", code, "")).remedy.startswith("Run again: ")


# --- simulating ----------------------------------------------------------------------------------


class Answers:
    """A guest whose zypper answers each of its commands with what is given for it; others with nothing to do."""

    def __init__(self, **answers: str | Ending) -> None:
        self.answers: dict[str, str | Ending] = answers
        self.asked: list[tuple[str, list[str]]] = []
        self.locks = ""
        self.facts = ""
        self.agent = FakeAgent(FakeClock(), self._program)
        self.shell = Shell(GuestAgent(self.agent, FakeClock()), Zypper().environment)

    def _program(self, call: Call) -> Ending:
        _shell, _c, text, _sh, *arguments = call.command
        if text == _locks.LOOK:
            return Ending(stdout=self.locks.encode())
        if text == _zypper._FACTS:
            return Ending(stdout=self.facts.encode())
        assert text == _zypper._LOOK
        state, locks, patterns, *words = arguments
        self.asked.append((f"{state} {locks} {' '.join(patterns.split())}".strip(), words))
        if words[0] == "--no-refresh":
            words = words[1:]
        answer = self.answers.get(words[0].replace("-", "_"), "<stream><install-summary/></stream>")
        return answer if isinstance(answer, Ending) else Ending(stdout=answer.encode())

    def simulate(self, **options: Any) -> Prediction:
        return Zypper().simulate(self.shell, UpgradeOptions(**options), "/private")


def updates(*names: str) -> str:
    listed = "".join(f'<update kind="package" name="{name}"/>' for name in names)
    return f"<stream><update-status><update-list>{listed}</update-list></update-status></stream>"


ALL = ("lab-app", "lab-config", "lab-kernel", "lab-library", "qemu-guest-agent")
NO_PATCHES = '<stream><update-list><appletinfo status="no-update-repositories"/></update-list></stream>'


def usual(**answers: str | Ending) -> Answers:
    given: dict[str, str | Ending] = {
        "update": recorded("simulate-xml"),
        "list_patches": recorded("list-patches-xml"),
        "install": recorded("simulate-security-xml"),
        "list_updates": updates(*ALL),
    }
    return Answers(**{**given, **answers})


def judged(change: PackageChange, *, security: bool | None) -> PackageChange:
    return PackageChange(change.name, change.arch, change.old, change.new, security)


def test_everything_is_upgraded_and_security_updates_are_told_by_their_patches() -> None:
    guest = usual()
    found = guest.simulate()
    assert found.arguments == ("update",)
    assert [(change.name, change.security) for change in found.changes] == [
        ("lab-app", False),
        ("lab-config", False),
        ("lab-kernel", False),
        ("lab-library", True),
        ("qemu-guest-agent", False),
        ("lab-plugin", False),
    ]
    assert found.kept_back == ()
    assert guest.asked == [
        ("/private own", ["--no-refresh", "update", "--dry-run"]),
        ("/private own", ["--no-refresh", "list-patches"]),
        ("/private no", ["--no-refresh", "install", "--dry-run", "--", "patch:LAB-2025-1"]),
        ("/private own", ["--no-refresh", "list-updates", "--all"]),
    ]


def test_what_has_no_releases_is_upgraded_as_from_one_to_the_next() -> None:
    guest = usual(update="", dist_upgrade=recorded("simulate-dist-upgrade-xml"))
    guest.facts = "rolling\n"
    found = guest.simulate()
    assert found.arguments == ("dist-upgrade",)
    # What would be installed again is no change.
    sub = PackageChange("lab-sub", "noarch", "1.0-1", "1.1-1")
    assert [(change.name, change.new) for change in found.changes] == [
        (change.name, change.new) for change in (APP, CONFIG, KERNEL, LIBRARY, sub, PLUGIN)
    ]
    assert guest.asked[0] == ("/private own", ["--no-refresh", "dist-upgrade", "--dry-run"])


def test_packages_that_are_there_twice_were_interrupted_by_whomever() -> None:
    guest = usual(verify=recorded("verify-duplicates-xml"))
    guest.facts = "twice lab-alone.noarch\ntwice lab-library.noarch\n"
    with pytest.raises(PackageStateInterrupted, match=r"there twice: lab-alone, lab-library$"):
        guest.simulate()
    assert guest.asked == [("/private own", ["--no-refresh", "verify", "--dry-run"])]


@pytest.mark.parametrize(
    "verify",
    ["<stream><install-summary/></stream>", recorded("verify-duplicates-xml"), Ending(4, stdout=CONFLICT.encode())],
)
def test_packages_that_may_be_there_twice_or_cannot_be_mended_keep_nobody_from_asking(verify: str | Ending) -> None:
    guest = usual(verify=verify)
    guest.facts = "twice lab-several.x86_64\n"
    assert len(guest.simulate().changes) == 6


def test_nobody_can_tell_security_updates_without_patches() -> None:
    assert {change.security for change in usual(list_patches=NO_PATCHES).simulate().changes} == {None}


def test_a_security_patch_that_cannot_be_installed_keeps_nobody_from_upgrading() -> None:
    guest = usual(install=Ending(4, stdout=CONFLICT.encode()))
    assert {change.security for change in guest.simulate().changes} == {None}
    with pytest.raises(DependencyConflict):
        guest.simulate(security_only=True)


def test_with_no_security_patch_needed_no_change_is_a_security_update() -> None:
    guest = usual(list_patches=updates())
    assert {change.security for change in guest.simulate().changes} == {False}
    found = guest.simulate(security_only=True)
    assert (found.changes, found.kept_back) == ((), ())


def test_what_is_not_upgraded_is_told_with_its_reason() -> None:
    guest = usual(update=recorded("simulate-conflict-xml"), locks=LOCKS)
    found = guest.simulate(exclude=("lab-k*",))
    assert found.kept_back == (
        KeptBack("lab-app", KeptReason.DEPENDENCIES),
        KeptBack("lab-config", KeptReason.HELD),
        KeptBack("lab-kernel", KeptReason.EXCLUDED),
        KeptBack("qemu-guest-agent", KeptReason.DEPENDENCIES),
    )
    assert guest.asked[0] == ("/private own lab-k*", ["--no-refresh", "update", "--dry-run"])


def test_security_patches_alone_by_zyppers_own_command() -> None:
    found = usual().simulate(security_only=True)
    assert found.changes == (judged(LIBRARY, security=True),)
    assert found.arguments == ("patch", "--category", "security", "--with-interactive")


def test_the_rest_of_a_patch_is_upgraded_by_name_where_one_of_its_packages_must_not_change() -> None:
    guest = usual(install=recorded("simulate-reboot-xml"), update=recorded("simulate-security-xml"), locks=LOCKS)
    found = guest.simulate(security_only=True, exclude=("lab-kernel",))
    assert found.changes == (judged(LIBRARY, security=True),)
    assert found.arguments == ("update", "--", "lab-library")
    assert guest.asked[-1] == ("/private own lab-kernel", ["--no-refresh", "update", "--dry-run", "--", "lab-library"])


def test_no_security_update_is_left_where_all_of_them_must_not_change() -> None:
    found = usual().simulate(security_only=True, exclude=("lab-library",))
    assert found.changes == ()
    assert found.arguments == ("patch", "--category", "security", "--with-interactive")


def test_security_only_keeps_back_everything_where_nobody_can_tell() -> None:
    found = usual(list_patches=NO_PATCHES).simulate(security_only=True)
    assert found.changes == ()
    assert {kept.reason for kept in found.kept_back} == {KeptReason.SECURITY_UNKNOWN}
    assert {kept.name for kept in found.kept_back} == {*ALL, "lab-plugin"}


def test_what_nothing_needs_is_removed_only_if_asked() -> None:
    guest = usual(update=recorded("nothing-to-do-xml"), list_updates=updates(), packages=recorded("unneeded"))
    assert guest.simulate().changes == ()
    assert guest.simulate(autoremove=True, exclude=("a",)).changes == (OBSOLETE,)
    assert guest.asked[-1] == ("/private own a", ["--no-refresh", "packages", "--unneeded"])


@pytest.mark.parametrize("code", [4, 106, None])
def test_a_simulation_that_fails_or_leaves_out_a_repository_is_an_error(code: int | None) -> None:
    ending = Ending(code, 9 if code is None else None, stdout=recorded("repository-gone-xml").encode())
    with pytest.raises(RepositoryUnreachable):
        usual(update=ending).simulate()


def test_an_answer_that_is_cut_is_not_believed() -> None:
    with pytest.raises(UpgradeFailed, match="longer than any"):
        usual(update=Ending(stdout=b"x" * 1_500_001)).simulate()


# --- refreshing ----------------------------------------------------------------------------------


def test_a_refresh_writes_to_the_state_and_may_take_a_repository_for_gone() -> None:
    guest = Answers(refresh="<stream/>")
    Zypper().refresh(guest.shell, "/private")
    assert guest.asked == [("/private own", ["refresh"])]
    guest.answers["refresh"] = Ending(4, stdout=recorded("repository-unsigned-xml").encode())
    with pytest.raises(RepositoryUntrusted):
        Zypper().refresh(guest.shell, "")


def test_a_lock_of_rpms_is_waited_for_before_anything_is_begun() -> None:
    guest = Answers()
    guest.locks = "/var/lib/rpm/.rpm.lock\t77\t100\t5.0\tdnf\n"
    with pytest.raises(PackageManagerLocked, match=r"/var/lib/rpm/\.rpm\.lock is locked"):
        Zypper().refresh(guest.shell, "")
    assert guest.asked == []


# --- what is run ---------------------------------------------------------------------------------

SHELLS = [shell for shell in ("/bin/dash", "/bin/bash") if Path(shell).exists()]

# Notes what it was called with, and exits as the next line of 'exits' says; 0 when there is none left.
ZYPPER = """\
#!/bin/sh
printf '%s;%s;%s\\n' "$*" "${ZYPP_LOCK_TIMEOUT-}" "${ZYPP_CONF:+conf}" >>"$STUBS/called"
case $* in *unneeded*) [ ! -e "$STUBS/unneeded" ] || cat "$STUBS/unneeded" ;; esac
[ ! -e "$STUBS/slow" ] || { : >"$STUBS/begun"; sleep 1; }
read -r code <"$STUBS/exits" || code=0
sed -i 1d "$STUBS/exits"
exit "$code"
"""

RPM = """\
#!/bin/sh
case $* in
  *whatprovides*INSTALLTIME*) cat "$STUBS/kernels" ;;
  *whatprovides*) cut -d = -f 1 "$STUBS/kernels" ;;
  *) cat "$STUBS/installed" ;;
esac
"""


class Stubs:
    """A guest's journal and programs in a directory."""

    def __init__(self, root: Path, shell: str) -> None:
        self.root, self.journal, self.etc, self._shell = root, root / "journal", root / "etc", shell
        self.journal.mkdir()
        self.etc.mkdir()
        (root / "bin").mkdir()
        for name, text in (("zypper", ZYPPER), ("rpm", RPM)):
            (root / "bin" / name).write_text(text)
            (root / "bin" / name).chmod(0o755)
        for name in ("called", "exits", "kernels", "installed"):
            (root / name).touch()
        self.environment = {"PATH": f"{root}/bin:/usr/bin:/bin", "STUBS": str(root), "LC_ALL": "C"}

    def here(self, text: str) -> str:
        """A script with the guest's paths in it."""
        return text.replace(JOURNAL, str(self.journal)).replace("/etc/zypp", f"{self.etc}/zypp")

    def exits(self, *codes: int) -> None:
        (self.root / "exits").write_text("".join(f"{code}\n" for code in codes))

    @property
    def called(self) -> list[str]:
        return (self.root / "called").read_text().splitlines()

    def begin(self, command: Sequence[str]) -> subprocess.Popen[str]:
        words = [self._shell, *(self.here(word) for word in command[1:])]
        return subprocess.Popen(
            words, cwd=self.journal, env=self.environment, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )

    def run(self, command: Sequence[str]) -> int:
        process = self.begin(command)
        process.communicate(timeout=60)
        return process.returncode

    def finish(self, code: int = 0, stopped: str = "no", **variables: str) -> int:
        self.environment |= {"KVM_FLEET_AUTOREMOVE": "no", "KVM_FLEET_CLEAN": "no", "KVM_FLEET_CONFFILES": "keep"}
        self.environment |= {f"KVM_FLEET_{name.upper()}": value for name, value in variables.items()}
        text = f"code={code} stopped={stopped}\n{Zypper().finish}exit $code"
        return self.run(("/bin/sh", "-c", text))


@pytest.fixture(params=SHELLS)
def stubs(tmp_path: Path, request: pytest.FixtureRequest) -> Stubs:
    return Stubs(tmp_path, request.param)


BASE = "--non-interactive --no-refresh"
PATCH = "patch --category security --with-interactive"


def test_an_upgrade_waits_for_the_lock_and_asks_nothing(stubs: Stubs) -> None:
    stubs.exits(102)
    options = UpgradeOptions(lock_retries=3, lock_delay=0.5)
    assert stubs.run(Zypper().command(Prediction(arguments=("update",)), options)) == 102
    assert stubs.called == [f"{BASE} update;2;"]


def test_licences_are_never_agreed_to() -> None:
    texts = [_zypper._COMMAND, _zypper._FINISH, _zypper._REPAIR, _zypper._LOOK, *_zypper._SECURITY_PATCHES]
    assert not any("agree" in text for text in texts)


def test_patches_for_zypper_itself_come_first(stubs: Stubs) -> None:
    stubs.exits(103, 103, 102, 0)
    assert stubs.run(Zypper().command(Prediction(), UpgradeOptions(lock_retries=0))) == 0
    assert stubs.called == [*[f"{BASE} {PATCH} --updatestack-only;0;"] * 3, f"{BASE} {PATCH};0;"]


@pytest.mark.parametrize(("codes", "count"), [((4,), 1), ((103, 8), 2), ((103, 103, 103), 3)])
def test_patches_are_not_begun_after_zyppers_own_have_failed_or_do_not_end(
    stubs: Stubs, codes: tuple[int, ...], count: int
) -> None:
    stubs.exits(*codes)
    assert stubs.run(Zypper().command(Prediction(), UpgradeOptions())) == codes[-1]
    assert len(stubs.called) == count


def interrupt(stubs: Stubs, command: Sequence[str], calls: int) -> int:
    """Send SIGINT to a command alone while its zypper runs for the given time."""
    (stubs.root / "slow").touch()
    process = stubs.begin(command)
    deadline = time.monotonic() + 30
    while len(stubs.called) < calls or not (stubs.root / "begun").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    return process.returncode


def test_a_stop_lets_patches_for_zypper_itself_end_and_begins_no_others(stubs: Stubs) -> None:
    stubs.exits(103)
    assert interrupt(stubs, Zypper().command(Prediction(), UpgradeOptions()), 1) == 105
    assert len(stubs.called) == 1


def test_a_stop_reaches_zypper_itself(stubs: Stubs) -> None:
    command = Zypper().command(Prediction(arguments=("update",)), UpgradeOptions())
    process = stubs.begin([*command[:2], command[2].replace("exec zypper", "exec sleep 60 #"), *command[3:]])
    deadline = time.monotonic() + 30
    while Path(f"/proc/{process.pid}/comm").read_text().strip() != "sleep":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT


def test_excluded_packages_are_locked_beside_the_guests_own_locks(stubs: Stubs) -> None:
    (stubs.etc / "zypp").mkdir()
    (stubs.etc / "zypp/zypp.conf").write_text("[main]\nsolver.onlyRequires = true\nlocksfile.path = /elsewhere")
    (stubs.etc / "zypp/zypp.conf.d").mkdir()
    own = stubs.root / "own locks"
    own.write_text("type: package\nsolvable_name: held")
    (stubs.etc / "zypp/zypp.conf.d/50-site.conf").write_text(f"[main]\nlocksfile.path = {own}\n")
    options = UpgradeOptions(exclude=("kernel-*", "it's%s\\n$(id)"), lock_retries=0)
    assert stubs.run(Zypper().command(Prediction(arguments=("update",)), options)) == 0
    assert stubs.called == [f"{BASE} update;0;conf"]
    assert (stubs.journal / "zypp.conf").read_text() == (
        "[main]\nsolver.onlyRequires = true\nlocksfile.path = /elsewhere\n"
        f"[main]\nlocksfile.path = {own}\n\n"
        f"[main]\nlocksfile.path = {stubs.journal}/zypp.locks\nlocksfile.apply = true\n"
    )
    package_lock = "type: package\nmatch_type: glob\ncase_sensitive: on\nsolvable_name: "
    assert (stubs.journal / "zypp.locks").read_text() == (
        f"type: package\nsolvable_name: held\n{package_lock}kernel-*\n\n{package_lock}it's%s\\n$(id)\n\n"
    )


def test_locks_of_an_earlier_upgrade_are_forgotten(stubs: Stubs) -> None:
    for name in ("zypp.conf", "zypp.locks"):
        (stubs.journal / name).touch()
    assert stubs.run(("/bin/sh", "-c", Zypper().prepare)) == 0
    assert [path.name for path in stubs.journal.iterdir()] == ["since"]


def look(stubs: Stubs, *arguments: str) -> tuple[int, str]:
    process = stubs.begin(("/bin/sh", "-c", _zypper._LOOK, "sh", *arguments))
    output, _errors = process.communicate(timeout=60)
    return process.returncode, output


def test_a_look_ahead_writes_to_the_private_state(stubs: Stubs) -> None:
    assert look(stubs, "/private", "own", "", "refresh")[0] == 0
    assert stubs.called == ["--non-interactive --xmlout --cache-dir /private/cache refresh;10;"]


@pytest.mark.parametrize(("locks", "patterns"), [("no", ""), ("own", "a\nb"), ("no", "a")])
def test_a_look_with_other_locks_leaves_none_of_them(stubs: Stubs, locks: str, patterns: str) -> None:
    stubs.environment["TMPDIR"] = str(stubs.root / "tmp")
    (stubs.root / "tmp").mkdir()
    stubs.exits(103)
    assert look(stubs, "", locks, patterns, "--no-refresh", "update")[0] == 103
    assert stubs.called == ["--non-interactive --xmlout --no-refresh update;10;conf"]
    assert list((stubs.root / "tmp").iterdir()) == []


def test_what_went_well_is_told_without_descriptions(stubs: Stubs) -> None:
    told = '<stream>\n<a b="c"><description>Long &lt;and\nlonger</description></a>\ni | x | y | 1 | z\n</stream>\n'
    (stubs.root / "unneeded").write_text(told)
    assert look(stubs, "", "own", "", "unneeded") == (
        0,
        '<stream>\n<a b="c">\n<description>\n</description>\n</a>\ni | x | y | 1 | z\n</stream>\n',
    )
    stubs.exits(4)
    assert look(stubs, "", "own", "", "unneeded") == (4, told)


@pytest.mark.parametrize(("code", "ends"), [(0, 0), (102, 0), (103, 103), (4, 4), (8, 8), (106, 106), (107, 107)])
def test_a_needed_reboot_is_no_failure(stubs: Stubs, code: int, ends: int) -> None:
    (stubs.journal / "log").write_text("a\nwarning: %post(a-1-1.noarch) scriptlet failed, exit status 1\nb\n")
    assert stubs.finish(code, clean="yes") == ends
    assert stubs.called == (["--non-interactive clean;60;"] if ends == 0 else [])


def test_a_failed_script_is_told_again_at_the_logs_end(stubs: Stubs) -> None:
    (stubs.journal / "log").write_text("a\nwarning: %post(a-1-1.noarch) scriptlet failed, exit status 1\nb\n")
    text = f"code=107 stopped=no\n{Zypper().finish}exit $code"
    output, _errors = stubs.begin(("/bin/sh", "-c", text)).communicate(timeout=60)
    assert output == "warning: %post(a-1-1.noarch) scriptlet failed, exit status 1\n"


def test_what_nothing_needs_any_more_is_removed_by_its_version(stubs: Stubs) -> None:
    (stubs.root / "unneeded").write_text(recorded("unneeded") + "i+ | Main | lib2  | 2:1-1 | x86_64\n")
    (stubs.journal / "zypp.conf").touch()
    stubs.exits(0, 102)
    assert stubs.finish(autoremove="yes") == 0
    assert stubs.called == [
        f"{BASE} packages --unneeded;60;conf",
        f"{BASE} remove -- lab-obsolete.noarch=1.0-1 lib2.x86_64=2:1-1;60;conf",
    ]


@pytest.mark.parametrize(("code", "stopped"), [(8, "no"), (0, "yes")])
def test_nothing_is_removed_after_an_upgrade_that_failed_or_was_stopped(stubs: Stubs, code: int, stopped: str) -> None:
    assert stubs.finish(code, stopped, autoremove="yes") == code
    assert stubs.called == []


# --- repairing -----------------------------------------------------------------------------------


def test_a_repair_of_nothing_asks_only(stubs: Stubs) -> None:
    (stubs.root / "installed").write_text("a.noarch\nb.x86_64\nb.i586\ngpg-pubkey.(none)\ngpg-pubkey.(none)\n")
    assert stubs.run(Zypper().repair(UpgradeOptions(lock_retries=0))) == 0
    assert stubs.called == [f"{BASE} verify;0;"]


def test_a_package_that_was_cut_off_is_installed_again_and_so_is_a_fresh_kernel(stubs: Stubs) -> None:
    (stubs.journal / "since").touch()
    os.utime(stubs.journal / "since", (1000, 1000))
    (stubs.root / "kernels").write_text("kernel.x86_64=6.1-1 999\nkernel.x86_64=6.2-1 1000\n")
    (stubs.root / "installed").write_text("a.noarch\nkernel.x86_64\nkernel.x86_64\na.noarch\nb.noarch\n")
    stubs.exits(0, 104, 103)
    assert stubs.run(Zypper().repair(UpgradeOptions(lock_retries=0))) == 0
    assert stubs.called == [
        f"{BASE} verify;0;",
        f"{BASE} install --force -- a.noarch;0;",
        f"{BASE} install --force -- kernel.x86_64=6.2-1;0;",
    ]


def locked(stubs: Stubs) -> list[str]:
    lines = (stubs.journal / "zypp.locks").read_text().splitlines()
    return [line.split(": ")[1] for line in lines if line.startswith("solvable_name: ")]


def test_a_repair_leaves_alone_what_is_excluded(stubs: Stubs) -> None:
    assert stubs.run(Zypper().repair(UpgradeOptions(exclude=("a*", "$(id)"), lock_retries=0))) == 0
    assert stubs.called == [f"{BASE} verify;0;conf"]
    assert locked(stubs) == ["a*", "$(id)"]


def test_what_was_cut_off_is_finished_although_it_is_excluded(stubs: Stubs) -> None:
    (stubs.journal / "since").touch()
    os.utime(stubs.journal / "since", (1000, 1000))
    (stubs.root / "kernels").write_text("kernel.x86_64=6.2-1 1000\n")
    (stubs.root / "installed").write_text("lib.so.noarch\nlib.so.noarch\nkernel.x86_64\n")
    exclude = ("lib.[s]o", "lib.s", "kernel*", "kernel.x86_64", "other")
    assert stubs.run(Zypper().repair(UpgradeOptions(exclude=exclude, lock_retries=0))) == 0
    assert locked(stubs) == ["lib.s", "kernel.x86_64", "other"]
    assert [call.split(" -- ")[-1] for call in stubs.called[1:]] == [
        "lib.so.noarch;0;conf",
        "kernel.x86_64=6.2-1;0;conf",
    ]


def test_facts_of_a_guest(stubs: Stubs) -> None:
    (stubs.root / "kernels").write_text("kernel.x86_64=6.1-1 1\n")
    (stubs.root / "installed").write_text("a.noarch\na.noarch\nb.i586\nb.x86_64\nkernel.x86_64\nkernel.x86_64\n")
    release = stubs.root / "os-release"
    release.write_text('NAME="openSUSE Tumbleweed"\nID="opensuse-tumbleweed"\n')
    text = _zypper._FACTS.replace("/etc/os-release", str(release))
    assert stubs.begin(("/bin/sh", "-c", text)).communicate(timeout=60)[0] == "rolling\ntwice a.noarch\n"
    release.write_text("ID=opensuse-leap\n")
    assert stubs.begin(("/bin/sh", "-c", text)).communicate(timeout=60)[0] == "twice a.noarch\n"


@pytest.mark.parametrize(("installed", "code", "ends"), [("a", 4, 0), ("a\na", 4, 4), ("a", 7, 7), ("a\na", 102, 0)])
def test_dependencies_that_were_broken_all_along_are_not_the_repairs_business(
    stubs: Stubs, installed: str, code: int, ends: int
) -> None:
    (stubs.root / "installed").write_text(f"{installed}\n")
    stubs.exits(code)
    assert stubs.run(Zypper().repair(UpgradeOptions())) == ends


def test_a_package_that_cannot_be_installed_again_is_a_failure(stubs: Stubs) -> None:
    (stubs.root / "installed").write_text("a\na\n")
    stubs.exits(0, 8)
    assert stubs.run(Zypper().repair(UpgradeOptions())) == 8


def test_a_repair_without_a_journal_takes_no_kernel_for_fresh(stubs: Stubs) -> None:
    (stubs.root / "kernels").write_text("kernel.x86_64=6.2-1 1000\n")
    assert stubs.run(Zypper().repair(UpgradeOptions())) == 0
    assert len(stubs.called) == 1
