# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a guest asks for a reboot."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._errors import CommandKilled
from ansible_collections.kvm.fleet.plugins.module_utils._reboot import (
    LOOK,
    RebootState,
    parse_reboot_facts,
    reboot_state,
)
from tests.unit.fake_agent import Ending, FakeAgent, in_turn
from tests.unit.fake_clock import FakeClock


@pytest.mark.parametrize(
    ("lines", "reasons"),
    [
        ([], ()),
        (["running 6.1.0-35", "kernel 6.1.0-35"], ()),
        (["running 6.1.0-35", "kernel 6.1.0-37"], ("kernel 6.1.0-37 is installed, 6.1.0-35 runs",)),
        (["running 6.1.0-35"], ()),
        (["kernel 6.1.0-37"], ()),
        (["running 6.1.0-35-amd64", "kernel 6.1.0-35-amd64", "kernel 6.1.0-37-cloud-amd64"], ()),
        (
            ["running 6.1.0-35-amd64", "kernel 6.1.0-35-amd64", "kernel 6.1.0-37-amd64"],
            ("kernel 6.1.0-37-amd64 is installed, 6.1.0-35-amd64 runs",),
        ),
        (["running 6.12.9+bpo-amd64", "kernel 6.1.0-35-amd64", "kernel 6.12.9+bpo-amd64"], ()),
        (["flag"], ("/run/reboot-required",)),
        (
            ["flag", "package linux-base", "package dbus", "package linux-base"],
            ("/run/reboot-required (linux-base, dbus)",),
        ),
        (["package dbus"], ()),
        (
            ["flag", "running 1", "kernel 2"],
            ("/run/reboot-required", "kernel 2 is installed, 1 runs"),
        ),
        (["needed"], ("/run/reboot-needed",)),
        (
            ["booted 1000", "installed 1001 kernel-core", "installed 900 kernel-core", "installed 2000 glibc"],
            ("installed since the boot: glibc, kernel-core",),
        ),
        (["booted 1000", "installed 1000 glibc", "installed (none) glibc", "installed"], ()),
        (["installed 2000 glibc"], ()),
        (["booted soon", "installed 2000 glibc"], ()),
        (["nonsense", "flagged", ""], ()),
    ],
)
def test_a_reboot_is_asked_for_by_the_flag_or_by_a_newer_kernel(lines: list[str], reasons: tuple[str, ...]) -> None:
    assert parse_reboot_facts(lines) == RebootState(bool(reasons), reasons)


def test_services_that_run_replaced_code_are_told_once_and_ask_for_no_reboot() -> None:
    lines = [
        "cgroup /system.slice/ssh.service",
        "cgroup /system.slice/system-getty.slice/getty@tty1.service",
        "cgroup /system.slice/ssh.service",
        "cgroup /system.slice/docker.service/inner.service",
        "cgroup /user.slice/user-0.slice/user@0.service/app.slice/theirs.service",
        "cgroup /user.slice/user-0.slice/session-1.scope",
        "cgroup /init.scope",
        "cgroup /",
        "cgroup",
    ]
    found = parse_reboot_facts(lines)
    assert found == RebootState(False, (), ("docker.service", "getty@tty1.service", "ssh.service"))


@given(
    st.lists(st.text() | st.sampled_from(["booted 1", "booted", "installed 2", "installed 2 x", "cgroup /.service"]))
)
def test_whatever_a_guest_tells_is_read(lines: list[str]) -> None:
    parse_reboot_facts(lines)


def test_the_script_finds_replaced_code_of_packages_only(tmp_path: Path) -> None:
    maps = [
        "7f00-7f01 r-xp 00000000 fd:00 12 /usr/lib64/libssl.so.3 (deleted)",
        "7f00-7f01 r-xp 00000000 fd:00 12    /lib/x86_64-linux-gnu/libc.so.6 (deleted)",
    ]
    others = [
        "7f00-7f01 r--p 00000000 fd:00 12 /usr/lib64/libssl.so.3 (deleted)",
        "7f00-7f01 r-xp 00000000 fd:00 12 /usr/lib64/libssl.so.3",
        "7f00-7f01 r-xp 00000000 00:01 12 /memfd:usr/lib (deleted)",
        "7f00-7f01 r-xp 00000000 00:01 12 /tmp/ffi/usr/lib/x (deleted)",
        "7f00-7f01 rwxs 00000000 00:01 12 /dev/zero (deleted)",
    ]
    for number, line in enumerate([*maps, *others]):
        (tmp_path / str(number)).write_text(f"{line}\n")
    (pattern,) = re.findall(r"grep -lsE '(.*)' /proc", LOOK)
    found = subprocess.run(["grep", "-lE", pattern, *sorted(tmp_path.iterdir())], capture_output=True, check=True)
    assert found.stdout.decode().split() == [str(tmp_path / str(number)) for number in range(len(maps))]


def test_the_script_runs_here() -> None:
    told = subprocess.run(["/bin/sh", "-c", LOOK], capture_output=True, encoding="utf-8", check=True)
    kinds = {"flag", "package", "needed", "running", "kernel", "booted", "installed", "cgroup"}
    assert {line.partition(" ")[0] for line in told.stdout.splitlines()} <= kinds


def test_what_rpm_says_of_packages_that_are_not_installed_is_no_fact(tmp_path: Path) -> None:
    says = "installed 1700000000 glibc\npackage kernel is not installed\n"
    for name in ("rpm", "dnf"):
        (tmp_path / name).write_text(f"#!/bin/sh\ncat <<'END'\n{says}END\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin"}
    told = subprocess.run(["/bin/sh", "-c", LOOK], capture_output=True, encoding="utf-8", check=True, env=environment)
    assert "installed 1700000000 glibc" in told.stdout
    assert "kernel is not installed" not in told.stdout


def test_the_guest_is_asked(clock: FakeClock) -> None:
    agent = FakeAgent(clock, in_turn([Ending(stdout=b"flag\npackage dbus\nrunning 1\nnewest 1\n")]))
    assert reboot_state(GuestAgent(agent, clock)) == RebootState(True, ("/run/reboot-required (dbus)",))


def test_a_guest_that_could_not_answer_is_not_taken_for_one_that_needs_none(clock: FakeClock) -> None:
    agent = FakeAgent(clock, in_turn([Ending(None, signal=9)]))
    with pytest.raises(CommandKilled):
        reboot_state(GuestAgent(agent, clock))
