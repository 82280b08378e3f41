# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A clock whose time passes only when somebody waits."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from datetime import datetime, timedelta

START = datetime.fromisoformat("2026-03-01T02:00:00+00:00")


class FakeClock:
    """Waits cost nothing and are written down.

    What is due while somebody waits happens at its time, and ends that wait early, as an event of libvirt does.
    """

    def __init__(self) -> None:
        self.waits: list[float] = []
        self._elapsed = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []

    def monotonic(self) -> float:
        return 1000.0 + self._elapsed

    def now(self) -> datetime:
        return START + timedelta(seconds=self._elapsed)

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        # A real clock goes on however short the wait; what floating-point numbers leave over must not last for ever.
        end = self._elapsed + (max(seconds, 1e-6) if seconds > 0 else 0)
        if self._due and self._due[0][0] <= end:
            self._happen()
        else:
            self._elapsed = end

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Let something happen so many seconds from now."""
        heapq.heappush(self._due, (self._elapsed + seconds, len(self.waits) + len(self._due), action))

    def advance(self, seconds: float) -> None:
        """Let time pass without anybody waiting on this clock, as a call that blocks does."""
        end = self._elapsed + seconds
        while self._due and self._due[0][0] <= end:
            self._happen()
        self._elapsed = end

    def _happen(self) -> None:
        at, _order, action = heapq.heappop(self._due)
        self._elapsed = max(self._elapsed, at)
        action()
