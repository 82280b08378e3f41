# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs at work in the background, to be killed as a power failure of their controller would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lab.errors import AgentFailed
from tests.integration.runs import HYPERVISORS, command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from lab.guests import Guest

PATIENCE_S = 900
LOG = "/var/lib/kvm-fleet/upgrade/log"


@contextmanager
def running(
    program: str, *arguments: str, output: IO[bytes] | None = None, inventory: Path = HYPERVISORS
) -> Iterator[subprocess.Popen[bytes]]:
    """A program of Ansible's, for as long as the context lasts."""
    words, environment = command(program, inventory=inventory)
    with subprocess.Popen(
        [*words, *arguments],
        env=environment,
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
        start_new_session=True,
    ) as controller:
        try:
            yield controller
        finally:
            kill(controller)


def kill(controller: subprocess.Popen[bytes]) -> None:
    """End a run with its worker and its module.

    No process group has them all: since 2.19, Ansible's workers lead sessions of their own.
    """
    if controller.poll() is None:
        kill_all([controller.pid])
        controller.wait()


def kill_all(pids: Iterable[int]) -> None:
    """End these processes and all below them."""
    # Stopped first, until no new one is found: who goes on may start another that nobody has seen.
    roots, stopped = [*pids], set[int]()
    while found := {each for pid in roots for each in (pid, *_descendants(pid))} - stopped:
        _send(signal.SIGSTOP, found)
        stopped |= found
    _send(signal.SIGKILL, stopped)


def _send(sent: signal.Signals, pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, sent)


def _descendants(pid: int) -> list[int]:
    """The children of a process, their children, and so on."""
    own = children(pid)
    return own + [found for child in own for found in _descendants(child)]


def children(pid: int) -> list[int]:
    """The children of a process."""
    with suppress(FileNotFoundError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]
    return []


def record_of(guest: Guest) -> dict[str, Any]:
    """What is on record of a guest, read as anybody can."""
    path = guest.run_record
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {"steps": [], "lease": None}
    return found


def steps(guest: Guest) -> list[tuple[str, str]]:
    """The steps on record, with how far each is."""
    return [(step["name"], step["status"]) for step in record_of(guest)["steps"]]


def reached(guest: Guest, name: str, status: str) -> Callable[[], bool]:
    """Whether the latest step on record is this one."""
    return lambda: steps(guest)[-1:] == [(name, status)]


def logged(guest: Guest, text: str) -> bool:
    """Whether the upgrade's log in a guest has some text. Asked while the agent is restarted, so patiently."""
    try:
        return text in guest.run("/bin/cat", LOG).stdout
    except AgentFailed:
        return False


def wait_for(happened: Callable[[], bool], what: str) -> None:
    """Wait until something has happened, with patience."""
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, f"{what} has not happened after {PATIENCE_S} s"
        time.sleep(0.1)
