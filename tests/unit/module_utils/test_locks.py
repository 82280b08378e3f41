# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who holds a lock: what a guest tells, and how it is asked, under the real shell with real locks."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._clock import SystemClock
from ansible_collections.kvm.fleet.plugins.module_utils._locks import Holder, holders, parse_holders
from tests.unit.host_agent import HostAgent

# --- what a guest tells --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "holder"),
    [
        ("/var/lib/dpkg/lock\t7\t100050\t1600.55\tapt-get", Holder("/var/lib/dpkg/lock", 7, "apt-get", 600.0)),
        ("/a b\t7\t0\t1\t(sd-pam) x", Holder("/a b", 7, "(sd-pam) x", 1.0)),
        # The clock ticks between one look and the other.
        ("/a\t7\t200\t1.99\tx", Holder("/a", 7, "x", 0.0)),
        ("/a\t7\t100\t2\t" + "x" * 500, Holder("/a", 7, "x" * 64, 1.0)),
        ("/a\t7\t100\t2\t", Holder("/a", 7, "", 1.0)),
    ],
)
def test_a_holder_is_told_with_its_age(line: str, holder: Holder) -> None:
    assert parse_holders([line]) == (holder,)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "/a\t7\t\t\t",
        "/a\t\t100\t2\tx",
        "a\t7\t100\t2\tx",
        "/a\t-7\t100\t2\tx",
        "/a\t7\t100\tnan\tx",
        "/a\t7\t100\tinf\tx",
        "/a\t99999999999\t100\t2\tx",
        "/a\t7\t100\t2",
        "/a 7 100 2 x",
    ],
)
def test_a_line_of_a_process_that_ended_meanwhile_is_nobody(line: str) -> None:
    assert parse_holders([line]) == ()


@given(st.lists(st.text() | st.from_regex(r"\A/.*\t\d*\t\d*\t[0-9.]*\t.*\Z")))
def test_whatever_a_guest_tells_is_holders_or_nobody(lines: list[str]) -> None:
    assert all(holder.age >= 0 for holder in parse_holders(lines))


# --- how it is asked -----------------------------------------------------------------------------

_HOLD = """\
import fcntl, sys
with open(sys.argv[2], "a") as file:
    getattr(fcntl, sys.argv[1])(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(path: Path, how: str = "lockf") -> Iterator[int]:
    """A process that holds a lock, as package managers do (lockf) or with flock."""
    argv = [sys.executable, "-c", _HOLD, how, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        yield process.pid
        assert process.stdin
        process.stdin.close()


@pytest.fixture
def agent(host: HostAgent) -> GuestAgent:
    return GuestAgent(host, SystemClock())


def test_who_holds_a_lock_is_found_with_its_name_and_its_age(agent: GuestAgent, tmp_path: Path) -> None:
    free, lock, missing = tmp_path / "free", tmp_path / "lock", tmp_path / "missing"
    free.touch()
    with held(lock) as pid:
        began = time.monotonic()
        time.sleep(0.3)
        [holder] = holders(agent, [str(missing), str(free), str(lock)])
        took = time.monotonic() - began
    assert (holder.lock, holder.pid) == (str(lock), pid)
    assert holder.program.startswith("python")
    assert 0.2 <= holder.age <= took + 5


def test_a_lock_that_is_let_go_has_no_holder(agent: GuestAgent, tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with held(lock):
        assert len(holders(agent, [str(lock)])) == 1
    assert holders(agent, [str(lock)]) == ()


def test_a_file_that_is_only_open_is_not_locked(agent: GuestAgent, tmp_path: Path) -> None:
    """dpkg's lock files are there all the time."""
    with (tmp_path / "lock").open("a"):
        assert holders(agent, [str(tmp_path / "lock")]) == ()


def test_a_lock_for_reading_keeps_no_package_manager_away(agent: GuestAgent, tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    with lock.open() as file:
        fcntl.lockf(file, fcntl.LOCK_SH)
        assert holders(agent, [str(lock)]) == ()


def test_each_of_several_locks_is_told_with_its_own_holder(agent: GuestAgent, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other name $(id)"
    with held(one) as first, held(other, "flock") as second:
        found = holders(agent, [str(one), str(other)])
    assert [(holder.lock, holder.pid) for holder in found] == [(str(one), first), (str(other), second)]


def test_who_waits_for_a_lock_does_not_hold_it(agent: GuestAgent, tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    argv = [sys.executable, "-c", _HOLD, "lockf", str(lock)]
    with held(lock) as pid, subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as waiting:
        time.sleep(0.3)
        found = holders(agent, [str(lock)])
        waiting.kill()
    assert [holder.pid for holder in found] == [pid]


def test_a_file_of_another_name_with_the_same_number_elsewhere_is_another_file(
    agent: GuestAgent, tmp_path: Path
) -> None:
    """/proc/locks tells inodes, which each file system counts for itself: who holds it has to have it open."""
    lock = tmp_path / "lock"
    with held(lock), tmp_path.joinpath("other").open("w"):
        os.link(lock, tmp_path / "same file")
        assert holders(agent, [str(tmp_path / "other")]) == ()
        assert len(holders(agent, [str(tmp_path / "same file")])) == 1


@pytest.mark.parametrize(("content", "found"), [("{pid}\n", 1), ("{pid}", 1), ("4194999\n", 0), ("", 0), ("none\n", 0)])
def test_a_pid_file_names_its_process_if_that_lives(
    agent: GuestAgent, tmp_path: Path, content: str, found: int
) -> None:
    path = tmp_path / "zypp.pid"
    path.write_text(content.format(pid=os.getpid()), encoding="utf-8")
    assert [holder.pid for holder in holders(agent, [str(path)])] == [os.getpid()] * found


def test_a_process_may_be_called_anything(agent: GuestAgent, tmp_path: Path, host: HostAgent) -> None:
    """Its name has a place of its own in /proc/PID/stat, between parentheses, and may have some itself."""
    odd = host.path / ") R 1 (x"
    odd.symlink_to("/bin/sleep")
    with subprocess.Popen([odd, "60"]) as process:
        time.sleep(0.2)
        path = tmp_path / "odd.pid"
        path.write_text(f"{process.pid}\n", encoding="utf-8")
        [holder] = holders(agent, [str(path)])
        process.kill()
    assert (holder.program, holder.age < 60) == (") R 1 (x", True)
