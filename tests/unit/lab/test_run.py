# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one place that runs commands."""

from __future__ import annotations

import os

import pytest

from lab.errors import CommandFailed
from lab.run import run


def test_stdout_comes_back_and_stdin_is_closed() -> None:
    assert run(["cat"]) == ""
    assert run(["cat"], stdin="ä\n") == "ä\n"


def test_the_environment_is_clean_but_for_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD_OF_MINE", "1")
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    seen = dict(line.split("=", 1) for line in run(["env"], environment={"INITRD": "No"}).splitlines())
    assert "LD_PRELOAD_OF_MINE" not in seen
    assert seen["https_proxy"] == "http://proxy.example:3128"
    assert seen["INITRD"] == "No"
    assert seen["LC_ALL"] == "C.UTF-8"


def test_a_failure_tells_the_command_its_status_and_the_end_of_its_stderr() -> None:
    script = "seq 1 100 >&2; exit 3"
    with pytest.raises(CommandFailed) as failure:
        run(["sh", "-c", script])
    lines = failure.value.problem.splitlines()
    assert lines[0] == f"sh -c {script}: exit status 3"
    assert [line.strip() for line in lines[1:]] == [str(number) for number in range(81, 101)]


def test_a_command_that_says_all_on_stdout_is_quoted_too() -> None:
    with pytest.raises(CommandFailed, match="no such thing"):
        run(["sh", "-c", "echo no such thing; exit 1"])


def test_an_accepted_status_is_no_failure() -> None:
    assert run(["sh", "-c", "echo inactive; exit 3"], accept=(0, 3)) == "inactive\n"


def test_an_absent_command_is_told_with_the_way_to_get_it() -> None:
    with pytest.raises(CommandFailed, match="python -m lab packages"):
        run(["no-such-command-of-the-lab"])


def test_what_outlives_its_deadline_is_ended() -> None:
    with pytest.raises(CommandFailed, match=r"sleep 60: not done after 0 s"):
        run(["sleep", "60"], deadline_s=0.05)


def test_a_file_descriptor_is_inherited_only_when_asked() -> None:
    read, write = os.pipe()
    try:
        script = f"test -e /proc/self/fd/{write} && echo yes || echo no"
        assert run(["sh", "-c", script]) == "no\n"
        assert run(["sh", "-c", script], inherit=[write]) == "yes\n"
    finally:
        os.close(read)
        os.close(write)
