# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How far each guest is while a run goes on, in the lines that a person reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._panel import clip, columns
from ansible_collections.kvm.fleet.plugins.plugin_utils._summary import duration_text, printable

SKIPPED_WITHIN_S = 1.0
"""Whether a task is skipped is told by its result, and at once. A step is not told of before that is known."""

_STEP = re.compile(r"[a-z][a-z_]{0,19}")
_LONGEST_NAME = 30
_LONGEST_ACTIVITY = 80


def step_of(variables: Mapping[str, Any]) -> str | None:
    """The step that a task says it is part of, by its variables as they were written, with nothing evaluated."""
    step = variables.get("fleet_step")
    return str(step) if isinstance(step, str) and _STEP.fullmatch(step) else None


def noted_guests(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The records of guests that a task has noted for the summary, by name, given the task's result."""
    data = (result.get("ansible_stats") or {}).get("data") or {}
    fleet = data.get("kvm_fleet") if isinstance(data, Mapping) else None
    guests = fleet.get("guests") if isinstance(fleet, Mapping) else None
    if not isinstance(guests, Mapping):
        return {}
    return {str(name): record for name, record in guests.items() if isinstance(record, Mapping) and "outcome" in record}


def is_written_ahead(record: Mapping[str, Any]) -> bool:
    """Whether a record is only true if nothing comes after it, as of a guest that is being worked on."""
    return error_code_of(record) == "run_ended"


def error_code_of(record: Mapping[str, Any]) -> str | None:
    """The error code of a guest's record, if it has one."""
    code = (record.get("error") or {}).get("error_code")
    return None if code is None else str(code)


@dataclass
class _Step:
    name: str
    percent: int | None = None
    activity: str = ""


@dataclass
class _Work:
    """A guest that is worked on. Its step is provisional while the step's first task may still be skipped."""

    began: float
    step: _Step
    step_began: float
    before: _Step | None = None
    provisional: bool = True
    outcome: str = ""
    ended: float = 0.0
    told: tuple[str, int] = ("", 0)


class Board:
    """The guests at work. Times are seconds of a clock that only goes forward."""

    def __init__(self) -> None:
        self._guests: dict[str, _Work] = {}

    def begin(self, guest: str, step: str, now: float) -> None:
        """A task of this step has begun."""
        work = self._guests.get(guest)
        if work is None:
            self._guests[guest] = _Work(now, _Step(step), now)
        elif work.step.name != step and not work.outcome:
            work.before = work.step
            work.step, work.step_began, work.provisional = _Step(step), now, True

    def skip(self, guest: str) -> None:
        """The task was skipped: what was before it goes on."""
        work = self._guests.get(guest)
        if work and work.provisional:
            if work.before:
                work.step, work.provisional = work.before, False
            else:
                del self._guests[guest]

    def settle(self, guest: str) -> None:
        """The task has brought a result: the step is one that is really done."""
        work = self._guests.get(guest)
        if work:
            work.provisional = False

    def advance(self, guest: str, progress: Mapping[str, Any]) -> None:
        """The step goes on; ``progress`` is as guest_upgrade returns it."""
        work = self._guests.get(guest)
        if work:
            percent = progress.get("percent")
            work.provisional = False
            work.step.percent = percent if isinstance(percent, int) else None
            work.step.activity = str(progress.get("activity") or "")[:_LONGEST_ACTIVITY]

    def end(self, guest: str, outcome: str, now: float) -> None:
        """This is what became of the guest."""
        work = self._guests.get(guest)
        if work:
            work.outcome, work.ended, work.provisional = outcome, now, False

    def clear(self) -> None:
        self._guests.clear()

    def news(self, now: float) -> list[str]:
        """A line for each guest with a step or outcome that was not told yet, or with another ten percent done."""
        lines = []
        for name, work in self._guests.items():
            if work.provisional and now - work.step_began < SKIPPED_WITHIN_S:
                continue
            state, tens = work.outcome or work.step.name, (work.step.percent or 0) // 10
            if state != work.told[0] or (tens > work.told[1] and not work.outcome):
                work.told = (state, tens)
                lines.append(_line(name, work, now))
        return lines

    def table(self, now: float, width: int, height: int) -> list[str]:
        """A line for each guest, in so many columns and lines. Where there are more guests, the last line says so.

        Those that are still at work come first then.
        """
        shown = list(self._guests.items())
        left = 0
        if len(shown) > height:
            shown.sort(key=lambda item: bool(item[1].outcome))
            left = len(shown) - max(height - 1, 0)
            shown = shown[: len(shown) - left]
        names = [clip(printable(name), _LONGEST_NAME) for name, _work in shown]
        widest = max(map(columns, names), default=0)
        lines = [
            clip(f"{name}{' ' * (widest - columns(name))}  {_row(work, now)}", width)
            for name, (_name, work) in zip(names, shown)
        ]
        return [*lines, clip(f"… and {left} more", width)][:height] if left else lines


def _elapsed(work: _Work, now: float) -> str:
    return duration_text((work.ended if work.outcome else now) - work.began)


def _line(name: str, work: _Work, now: float) -> str:
    """``web1: upgrade, 47 %, Unpacking libssl3 (amd64), after 1m20s``."""
    parts = [work.outcome or work.step.name]
    if not work.outcome:
        parts += [f"{work.step.percent} %"] if work.step.percent is not None else []
        parts += [work.step.activity] if work.step.activity else []
    return printable(f"{name}: {', '.join(parts)}, after {_elapsed(work, now)}")


def _row(work: _Work, now: float) -> str:
    """The same in columns."""
    percent = "" if work.outcome or work.step.percent is None else f"{work.step.percent} %"
    activity = "" if work.outcome else work.step.activity
    return printable(f"{work.outcome or work.step.name:<10}{percent:>5}  {_elapsed(work, now):>8}  {activity}".rstrip())
