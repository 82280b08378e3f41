# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Signals that wait, and a process that its controller's end does not reach."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._uninterrupted import SIGNALS, signals_wait

AT_WORK = """\
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may ignore it
from ansible_collections.kvm.fleet.plugins.module_utils._uninterrupted import uninterrupted
with uninterrupted():
    print(os.getpgrp() == os.getpid(), os.getsid(0) == os.getpid(), flush=True)
    sys.stdin.readline()
    print("done", flush=True)
print("no signal came", flush=True)
sys.stdin.readline()
"""


def test_signals_wait_and_are_then_minded_once_each() -> None:
    minded: list[int] = []
    before = {signum: signal.signal(signum, lambda number, _frame: minded.append(number)) for signum in SIGNALS}
    try:
        with signals_wait():
            for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
                os.kill(os.getpid(), signum)
            assert minded == []
        assert minded == [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]
        os.kill(os.getpid(), signal.SIGHUP)
        assert minded[3:] == [signal.SIGHUP]
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def test_what_failed_meanwhile_is_told_where_no_signal_came() -> None:
    before = [signal.getsignal(signum) for signum in SIGNALS]
    with pytest.raises(KeyError), signals_wait():
        raise KeyError
    assert [signal.getsignal(signum) for signum in SIGNALS] == before


def test_a_signal_that_was_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_wait():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_child_can_be_ended_meanwhile() -> None:
    with signals_wait(), subprocess.Popen(["sleep", "60"]) as child:
        child.terminate()
        assert child.wait(timeout=30) == -signal.SIGTERM


@pytest.mark.parametrize("leads", [False, True])
def test_the_end_of_the_controllers_process_group_waits_for_what_is_begun(*, leads: bool) -> None:
    """By what ansible-runner and a hangup do: a signal to the whole group, and one to the process itself."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    code = [sys.executable, "-c", AT_WORK]
    # A shell of its own leads the group, unless the module itself does.
    command = code if leads else ["/bin/sh", "-c", '"$@"; exit', "sh", *code]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True, text=True
    ) as controller:
        assert controller.stdin is not None
        assert controller.stdout is not None
        assert controller.stdout.readline() == "True True\n"
        os.killpg(controller.pid, signal.SIGHUP if leads else signal.SIGKILL)
        controller.stdin.write("\n")
        controller.stdin.flush()
        assert controller.stdout.readline() == "done\n"
        if leads:
            assert controller.wait(timeout=30) == -signal.SIGHUP
            assert controller.stdout.read() == ""
