# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Time as the collection sees it: one protocol, so that tests can bring their own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Protocol


class Clock(Protocol):
    """What waits, and what says how late it is."""

    def monotonic(self) -> float:
        """Seconds on a clock that never jumps."""

    def now(self) -> datetime:
        """The date and time, in UTC."""

    def wait(self, seconds: float) -> None:
        """Return after ``seconds``, or earlier when something happened that is worth another look."""


class SystemClock:
    """The machine's own clocks, waiting by sleep."""

    def monotonic(self) -> float:
        return time.monotonic()

    def now(self) -> datetime:
        return datetime.now(timezone.utc)

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)


class Deadline:
    """A point in time that a wait must not pass."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.seconds = seconds
        self._clock = clock
        self._started = clock.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the deadline was set."""
        return self._clock.monotonic() - self._started

    @property
    def remaining(self) -> float:
        """Seconds left, never below zero."""
        return max(0.0, self.seconds - self.elapsed)

    @property
    def passed(self) -> bool:
        return self.elapsed >= self.seconds


def ticks(deadline: Deadline, clock: Clock, *, first: float = 0.1, longest: float = 2.0) -> Iterator[None]:
    """Yield at once, then again and again at growing intervals, until the deadline has passed.

    ``first`` and ``longest`` are the shortest and the longest pause in seconds. The last round comes at the deadline
    itself, so that what happens just before it is still seen.
    """
    pause = first
    yield
    while not deadline.passed:
        clock.wait(min(pause, deadline.remaining))
        pause = min(pause * 1.5, longest)
        yield


def pause(clock: Clock, seconds: float) -> None:
    """Wait for the whole time, whatever happens meanwhile."""
    deadline = Deadline(clock, seconds)
    while not deadline.passed:
        clock.wait(deadline.remaining)


def timestamp(moment: datetime) -> str:
    """ISO 8601 in UTC, to the second, as every result of the collection prints times."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_timestamp(text: str) -> datetime:
    """Read what ``timestamp`` writes. Raises ValueError for anything else."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
