# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who runs a playbook, and whether that process is still there."""

from __future__ import annotations

import getpass
import multiprocessing
import os
import pty
import re
import subprocess
import time
from datetime import datetime
from pathlib import Path

import pytest

from ansible_collections.kvm.fleet.plugins.filter.dead_run import dead_run
from ansible_collections.kvm.fleet.plugins.lookup.this_run import LookupModule
from ansible_collections.kvm.fleet.plugins.plugin_utils._controller import (
    awx_job,
    has_terminal,
    owner_is_gone,
    owner_of,
    playbook_pid,
    run_of,
)
from tests.unit.fake_proc import FakeProc

NOW = datetime.fromisoformat("2026-11-24T00:30:00+00:00")


@pytest.fixture
def controller(proc: FakeProc) -> FakeProc:
    """The /proc of a controller on which a process runs a playbook. No process of this machine has its number."""
    (proc.path / "self" / "ns").mkdir(parents=True)
    (proc.path / "sys" / "kernel" / "random").mkdir(parents=True)
    be_in(proc, "pid:[1]", "boot-1")
    proc.start(4999999, ["ansible-playbook"], proc.install("usr/bin/python3"), ticks=500)
    return proc


def be_in(proc: FakeProc, namespace: str, boot: str) -> None:
    """Be in another container, or in another boot of the machine."""
    link = proc.path / "self" / "ns" / "pid"
    link.unlink(missing_ok=True)
    link.symlink_to(namespace)
    (proc.path / "sys" / "kernel" / "random" / "boot_id").write_text(f"{boot}\n", encoding="ascii")


def restarted_as(proc: FakeProc, ticks: int) -> None:
    proc.end(4999999)
    proc.start(4999999, ["bash"], proc.install("usr/bin/bash"), ticks=ticks)


def test_an_owner_is_named_with_what_makes_its_process_unique(controller: FakeProc) -> None:
    owner = owner_of(4999999, controller.path)
    assert re.fullmatch(r"\S+@\S+ \(pid 4999999, started 500, in pid:\[1\], boot boot-1\)", owner)


def test_a_process_that_runs_is_not_gone(controller: FakeProc) -> None:
    assert not owner_is_gone(owner_of(4999999, controller.path), controller.path)


def test_a_process_that_has_ended_is_gone(controller: FakeProc) -> None:
    owner = owner_of(4999999, controller.path)
    controller.end(4999999)
    assert owner_is_gone(owner, controller.path)


def test_a_process_that_has_ended_and_was_not_reaped_is_gone(controller: FakeProc) -> None:
    owner = owner_of(4999999, controller.path)
    stat = controller.path / "4999999" / "stat"
    stat.write_text(stat.read_text(encoding="ascii").replace(") S ", ") Z "), encoding="ascii")
    assert owner_is_gone(owner, controller.path)


def test_a_process_whose_pid_was_given_to_another_is_gone(controller: FakeProc) -> None:
    owner = owner_of(4999999, controller.path)
    restarted_as(controller, 501)
    assert owner_is_gone(owner, controller.path)


@pytest.mark.parametrize(("namespace", "boot"), [("pid:[2]", "boot-1"), ("pid:[1]", "boot-2"), ("pid:[1]", "")])
def test_of_a_process_elsewhere_nobody_can_tell(controller: FakeProc, namespace: str, boot: str) -> None:
    """A machine that was rebooted looks like any other: a run of the boot before is left to the lease's own time."""
    owner = owner_of(4999999, controller.path)
    controller.end(4999999)
    be_in(controller, namespace, boot)
    assert not owner_is_gone(owner, controller.path)


@pytest.mark.parametrize(
    "owner", ["", "root@elsewhere", "root@elsewhere (pid 4999999)", "a (pid x, started 1, in b, boot c)"]
)
def test_of_an_owner_that_is_only_a_name_nobody_can_tell(controller: FakeProc, owner: str) -> None:
    assert not owner_is_gone(owner, controller.path)


def test_without_proc_an_owner_is_only_a_name(tmp_path: Path) -> None:
    owner = owner_of(4999999, tmp_path)
    assert owner.endswith(" (pid 4999999)")
    assert not owner_is_gone(owner, tmp_path)
    first, second = (run_of(owner, 4999999, moment, tmp_path) for moment in (NOW, NOW.replace(microsecond=1)))
    assert re.fullmatch(r"20261124-003000-[0-9a-f]{8}", first)
    assert first != second


def test_a_user_without_a_name_is_a_number(controller: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise KeyError("uid not found")

    monkeypatch.setattr("getpass.getuser", fail)
    assert owner_of(4999999, controller.path).startswith(f"{os.getuid()}@")


def test_a_run_is_named_after_when_its_process_began(controller: FakeProc) -> None:
    owner = owner_of(4999999, controller.path)
    run = run_of(owner, 4999999, NOW, controller.path)
    assert re.fullmatch(r"20260921-133325-[0-9a-f]{8}", run)
    assert run == run_of(owner, 4999999, NOW.replace(hour=5), controller.path)
    restarted_as(controller, 501)
    assert run != run_of(owner_of(4999999, controller.path), 4999999, NOW, controller.path)


def test_a_process_that_proc_hides_is_not_gone(controller: FakeProc) -> None:
    """Of the processes of others, as with the mount option hidepid."""
    with subprocess.Popen(["sleep", "60"]) as hidden:
        controller.start(hidden.pid, ["sleep"], controller.install("usr/bin/sleep"))
        owner = owner_of(hidden.pid, controller.path)
        controller.end(hidden.pid)
        assert not owner_is_gone(owner, controller.path)
        hidden.kill()
    assert owner_is_gone(owner, controller.path)


@pytest.mark.parametrize(
    ("variables", "job"),
    [
        ({}, ""),
        ({"awx_job_id": 99, "awx_user_name": "alice"}, "AWX job 99 of alice"),
        ({"tower_job_id": "99"}, "AWX job 99"),
    ],
)
def test_a_job_of_awx_is_named(variables: dict[str, object], job: str, controller: FakeProc) -> None:
    assert awx_job(variables) == job
    owner = owner_of(4999999, controller.path, awx_job(variables))
    assert owner.startswith(f"{job}, " if job else f"{getpass.getuser()}@")
    assert owner_is_gone(owner, controller.path) is False


# --- as playbooks use it -------------------------------------------------------------------------


def test_a_worker_tells_what_the_playbook_itself_tells() -> None:
    """Ansible evaluates templates in either."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(playbook_pid) == os.getpid() == playbook_pid()


def test_the_lookup_is_the_same_each_time() -> None:
    [first], [second] = LookupModule().run([], {}), LookupModule().run([], {})
    assert first == second
    assert set(first) == {"run", "owner", "terminal"}
    assert not owner_is_gone(first["owner"])


def test_a_run_of_this_machine_that_has_ended_is_dead() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        owner = owner_of(process.pid)
        lease = {"lease": {"run": "run-a", "owner": owner}}
        alive = dead_run(lease)
        process.kill()
    assert (alive, dead_run(lease)) == ("", "run-a")


@pytest.mark.parametrize("run", [None, {}, {"lease": None}, {"lease": {"run": "a", "owner": "root@elsewhere"}}])
def test_where_there_is_no_lease_nobody_is_dead(run: dict[str, object] | None) -> None:
    assert dead_run(run) == ""


# --- a terminal ----------------------------------------------------------------------------------


def test_a_person_can_be_asked_where_a_process_is_in_the_foreground_of_a_terminal() -> None:
    ours, theirs = pty.openpty()
    sleep, in_front = ["sleep", "60"], ["setsid", "--ctty", "sleep", "60"]
    try:
        assert has_terminal_while_it_runs(in_front, theirs)
        assert not has_terminal_while_it_runs(sleep, theirs)
        assert not has_terminal_while_it_runs(sleep, subprocess.DEVNULL)
        assert not has_terminal_while_it_runs(sleep, subprocess.PIPE)
    finally:
        os.close(ours)
        os.close(theirs)


def has_terminal_while_it_runs(command: list[str], stdin: int) -> bool:
    with subprocess.Popen(command, stdin=stdin) as program:
        comm = Path(f"/proc/{program.pid}/comm")
        while comm.read_text(encoding="ascii").strip() != "sleep":
            time.sleep(0.01)
        found = has_terminal(program.pid)
        program.kill()
    assert not has_terminal(program.pid)
    return found
