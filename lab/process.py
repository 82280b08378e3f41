# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Processes of this machine, told apart from later ones that reuse their id."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lab.clock import wait_until
from lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterator

PROC = Path("/proc")
KILLED_WITHIN_S = 30


@dataclass(frozen=True)
class Process:
    """One process: its id, and its start in clock ticks after the machine's boot."""

    pid: int
    started: int

    def alive(self) -> bool:
        """Whether this very process still runs."""
        return observe(self.pid) == self

    def has_lost_its_executable(self) -> bool:
        """Whether the file that it runs has been replaced, or removed, since it started."""
        return executable(self.pid).endswith(" (deleted)")

    def stop(self, deadline_s: float = 15) -> None:
        """Ask it to end, and kill it if it has not within the deadline."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not self.alive():
                return
            os.kill(self.pid, number)
            if wait_until(lambda: not self.alive(), deadline_s, every_s=0.05):
                return

    def kill(self) -> None:
        """End it at once, unasked. A namespace's first process takes all others of the namespace with it."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        if not wait_until(lambda: not self.alive(), KILLED_WITHIN_S, every_s=0.02):
            raise LabError(f"process {self.pid} was killed and is still there", "see what it waits for: ps -l")


def parse_stat(text: str) -> tuple[str, int]:
    """State letter and start time of a /proc/PID/stat; its second field may hold anything."""
    after_name = text.rpartition(")")[2].split()
    return after_name[0], int(after_name[19])


def observe(pid: int) -> Process | None:
    """The process that has this id now, if it is one that still does anything."""
    try:
        state, started = parse_stat((PROC / str(pid) / "stat").read_text(errors="replace"))
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else Process(pid, started)


def this_process() -> Process:
    """The process that asks."""
    process = observe(os.getpid())
    if process is None:
        raise RuntimeError("/proc does not show this very process: is it mounted?")
    return process


def executable(pid: int) -> str:
    """The file that a process runs, with ' (deleted)' if it is no more; empty if it has gone."""
    try:
        return os.readlink(PROC / str(pid) / "exe")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def command_line(pid: int) -> tuple[str, ...]:
    """The words a process was started with; none if it has gone."""
    try:
        raw = (PROC / str(pid) / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return ()
    return tuple(word.decode(errors="replace") for word in raw.rstrip(b"\0").split(b"\0"))


def option_of(pid: int, option: str) -> str:
    """The word after `option` on a command line; empty if there is none."""
    words = command_line(pid)
    return words[words.index(option) + 1] if option in words[:-1] else ""


def users_of(path: Path) -> list[Process]:
    """Every other process that has a file open."""
    name = str(path.resolve())
    pids = [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]
    found = [observe(pid) for pid in pids if pid != os.getpid() and name in _open_files(pid)]
    return [process for process in found if process is not None]


def _open_files(pid: int) -> Iterator[str]:
    # It may have gone, or be none that even root may look into.
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for link in (PROC / str(pid) / "fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                yield os.readlink(link)


def running_with(*words: str) -> list[Process]:
    """Every process whose command line has each of these words, as whole words."""
    found = []
    for entry in PROC.iterdir():
        if entry.name.isdigit() and set(words) <= set(command_line(int(entry.name))):
            process = observe(int(entry.name))
            if process is not None:
                found.append(process)
    return found
