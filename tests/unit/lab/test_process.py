# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Processes, told apart."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lab.process import Process, observe, option_of, parse_stat, running_with, this_process, users_of

SLEEP = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)", "-uuid", "lab-unit-test"]


def test_a_name_with_spaces_and_brackets_hides_nothing_in_stat() -> None:
    fields = " ".join(str(number) for number in range(4, 53))
    assert parse_stat(f"7 (a) b (c)) S {fields}\n") == ("S", 22)


def test_a_process_is_told_from_a_later_one_with_its_id() -> None:
    me = this_process()
    assert me.alive()
    assert not Process(me.pid, me.started + 1).alive()


def test_who_has_ended_is_not_alive() -> None:
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert observe(child.pid) is None, "a zombie does nothing any more"
    assert observe(child.pid) is None


def test_processes_are_found_by_whole_words_and_stopped() -> None:
    with subprocess.Popen(SLEEP, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        (found,) = running_with("-uuid", "lab-unit-test")
        assert found.pid == child.pid
        assert running_with("-uuid", "lab-unit") == []
        assert option_of(child.pid, "-uuid") == "lab-unit-test"
        assert option_of(child.pid, "lab-unit-test") == "", "nothing follows the last word"
        found.stop()
        assert child.wait() < 0


def test_a_process_whose_file_was_replaced_has_lost_it(tmp_path: Path) -> None:
    program = tmp_path / "sleep"
    shutil.copy("/bin/sleep", program)
    with subprocess.Popen([program, "60"]) as child:
        process = observe(child.pid)
        assert process is not None
        try:
            assert not process.has_lost_its_executable()
            shutil.copy("/bin/sleep", tmp_path / "new")
            (tmp_path / "new").rename(program)
            assert process.has_lost_its_executable()
        finally:
            child.kill()


@pytest.mark.parametrize("pid", [2**22 + 1])
def test_who_never_was_has_no_command_line(pid: int) -> None:
    assert option_of(pid, "-uuid") == ""


def test_who_else_has_a_file_open_is_found(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("wb") as file:
        assert users_of(path) == []
        with subprocess.Popen(SLEEP, stdin=file, stdout=subprocess.PIPE) as child:
            try:
                assert [user.pid for user in users_of(path)] == [child.pid]
            finally:
                child.kill()
        assert users_of(path) == []
