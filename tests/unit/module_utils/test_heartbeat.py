# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest's own measurement of its absence. The loop is run for real, on this machine."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils import _heartbeat
from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._clock import SystemClock
from ansible_collections.kvm.fleet.plugins.module_utils._heartbeat import largest_gap
from tests.unit.host_agent import HostAgent

T = 1_772_330_400


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        (f"{T}000000000\n", None),
        (f"{T}000000000\n{T}200000000\n{T + 7}400000000\n{T + 7}600000000\n", 7.2),
        (f"{T}\n{T + 1}\n{T + 6}\n", 5.0),
        (f"{T}000000000\n{T - 60}000000000\n{T - 59}000000000\n", 1.0),
        (f"{T}000000000\nno beat\n\n{'9' * 40}\n-5\n{T + 2}000000000\n{T + 3}", 2.0),
    ],
    ids=["nothing", "one", "nanoseconds", "seconds", "set back", "rubbish"],
)
def test_the_largest_gap_counts(text: str, expected: float | None) -> None:
    assert largest_gap(text) == (None if expected is None else pytest.approx(expected))


@pytest.fixture
def beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "kvm-fleet" / "heartbeat"
    monkeypatch.setattr(_heartbeat, "BEATS", str(path))
    return path


def beaten(path: Path) -> int:
    return len(path.read_text("ascii").splitlines()) if path.exists() else 0


def wait_for(path: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while beaten(path) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_heart_beats_until_it_is_stopped_and_leaves_nothing(host: HostAgent, beats: Path) -> None:
    agent = GuestAgent(host, SystemClock())
    assert _heartbeat.start(agent)
    wait_for(beats, 3)
    gap = _heartbeat.stop(agent)
    assert gap is not None
    assert gap > 0
    assert not beats.parent.exists()
    assert _heartbeat.stop(agent) is None


def test_a_heart_that_has_ended_by_itself_saw_no_gap_at_its_end(
    host: HostAgent, beats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_heartbeat, "MOST_BEATS", 3)
    agent = GuestAgent(host, SystemClock())
    assert _heartbeat.start(agent)
    wait_for(beats, 4)
    text = beats.read_text(encoding="ascii")
    assert _heartbeat.largest_gap(text) is not None
    assert _heartbeat.stop(agent) is None
    assert not beats.exists()


def test_a_second_heart_ends_the_first(host: HostAgent, beats: Path) -> None:
    agent = GuestAgent(host, SystemClock())
    assert _heartbeat.start(agent)
    wait_for(beats, 2)
    old = beats.with_name("old")
    old.hardlink_to(beats)
    assert _heartbeat.start(agent)
    wait_for(beats, 3)
    ended = beaten(old)
    wait_for(beats, 6)
    assert beaten(old) <= ended + 1
    _heartbeat.stop(agent)
    assert list(beats.parent.iterdir()) == [old], "what is somebody else's stays"


def test_a_guest_in_which_no_heart_can_beat_is_none_the_worse(host: HostAgent, beats: Path) -> None:
    beats.parent.write_text("a file where its directory should be", encoding="ascii")
    agent = GuestAgent(host, SystemClock())
    assert not _heartbeat.start(agent)
    assert _heartbeat.stop(agent) is None
