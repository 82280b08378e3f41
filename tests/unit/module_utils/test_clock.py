# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Deadlines, ticks and pauses."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._clock import (
    Deadline,
    SystemClock,
    pause,
    ticks,
    timestamp,
)
from tests.unit.fake_clock import FakeClock


def test_a_deadline_counts_down_and_passes(clock: FakeClock) -> None:
    deadline = Deadline(clock, 10)
    seen = [(deadline.elapsed, deadline.remaining, deadline.passed)]
    for seconds in (4, 6, 5):
        clock.advance(seconds)
        seen.append((deadline.elapsed, deadline.remaining, deadline.passed))
    assert seen == [(0, 10, False), (4, 6, False), (10, 0, True), (15, 0, True)]


def test_ticks_come_at_once_then_at_growing_intervals_and_last_at_the_deadline(clock: FakeClock) -> None:
    deadline = Deadline(clock, 10)
    seen = [deadline.elapsed for _tick in ticks(deadline, clock, first=1, longest=3)]
    assert seen == [0, 1, 2.5, 4.75, 7.75, 10]


def test_a_deadline_of_zero_still_gives_one_look(clock: FakeClock) -> None:
    assert len(list(ticks(Deadline(clock, 0), clock))) == 1
    assert clock.waits == []


def test_an_event_brings_the_next_tick_early(clock: FakeClock) -> None:
    clock.after(0.25, lambda: None)
    deadline = Deadline(clock, 3)
    seen = [deadline.elapsed for _tick in ticks(deadline, clock, first=1, longest=10)]
    assert seen == [0, 0.25, 1.75, 3]


def test_a_pause_lasts_its_whole_time_whatever_happens_meanwhile(clock: FakeClock) -> None:
    clock.after(1, lambda: None)
    clock.after(3, lambda: None)
    deadline = Deadline(clock, 10)
    pause(clock, 10)
    assert deadline.elapsed == 10
    assert clock.waits == [10, 9, 7]


def test_a_pause_of_nothing_waits_for_nothing(clock: FakeClock) -> None:
    pause(clock, 0)
    assert clock.waits == []


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        (datetime.fromisoformat("2026-03-01T02:00:12.999999+00:00"), "2026-03-01T02:00:12Z"),
        (datetime.fromisoformat("2026-03-01T01:00:00+02:00"), "2026-02-28T23:00:00Z"),
    ],
)
def test_times_are_printed_in_utc_to_the_second(moment: datetime, expected: str) -> None:
    assert timestamp(moment) == expected


def test_the_system_clock_goes_forward_and_is_in_utc() -> None:
    clock = SystemClock()
    before = clock.monotonic()
    clock.wait(0.001)
    assert clock.monotonic() > before
    assert clock.now().utcoffset() == timedelta(0)
