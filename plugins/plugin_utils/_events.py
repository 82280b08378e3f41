# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What happens in a run, in objects that a machine reads.

No field holds text that a guest or a task has written, so there is nothing in it that would have to be hidden.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.kvm.fleet.plugins.module_utils._record import HEALTHY
from ansible_collections.kvm.fleet.plugins.plugin_utils._progress import (
    SKIPPED_WITHIN_S,
    error_code_of,
    is_written_ahead,
)

Event = dict[str, Any]

_CODE = re.compile(r"[a-z][a-z_]{0,63}")
# Of the tasks of a step, the one that counts comes last.
_RESULTS = ("ok", "changed", "failed", "unreachable")


def code_of(result: Mapping[str, Any]) -> str:
    """The error code of a failed task, by its result. One that is hidden or of another collection has none."""
    code = result.get("error_code")
    return str(code) if isinstance(code, str) and _CODE.fullmatch(code) else "task_failed"


@dataclass
class _Step:
    name: str
    began: float
    result: str = "ok"
    error_code: str | None = None


@dataclass
class _Guest:
    """``coming`` is a step whose first task may still be skipped."""

    hypervisor: str | None
    step: _Step | None = None
    coming: _Step | None = None


@dataclass
class Events:
    """Makes the events of one run from what is told of its tasks. Times are seconds of a clock that only goes forward.

    What it returns happens at that moment, and has every field but ``ts``.
    """

    run: str
    began: float
    check_mode: bool = False
    _guests: dict[str, _Guest] = field(default_factory=dict)
    _noted: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    _ended: set[str] = field(default_factory=set)
    _is_started: bool = False
    _is_ended: bool = True

    def begin(self, guest: str, hypervisor: str | None, step: str, now: float) -> None:
        """A task of this step has begun."""
        known = self._guests.setdefault(guest, _Guest(hypervisor))
        known.coming = None if known.step and known.step.name == step else _Step(step, now)

    def skip(self, guest: str) -> None:
        """The task was skipped: what was before it goes on."""
        if guest in self._guests:
            self._guests[guest].coming = None

    def settle(self, now: float) -> list[Event]:
        """Time has passed. A task that would be skipped has been by now."""
        return [
            event
            for guest, known in self._guests.items()
            if known.coming and now - known.coming.began >= SKIPPED_WITHIN_S
            for event in self._start_step(guest)
        ]

    def result(self, guest: str, result: str, now: float, error_code: str | None = None) -> list[Event]:
        """A task that is part of a guest's step, whichever that is, has come to ``ok``, ``changed`` or a failure.

        A failure ends the step.
        """
        if guest not in self._guests:
            return []
        events = self._start_step(guest)
        step = self._guests[guest].step
        if step is None:
            return events
        step.result = max(step.result, result, key=_RESULTS.index)
        step.error_code = error_code
        return [*events, *(self._end_step(guest, now) if result in ("failed", "unreachable") else [])]

    def note(self, guest: str, record: Mapping[str, Any], now: float) -> list[Event]:
        """This is what became of the guest, unless there comes another word. A last one ends its step."""
        self._noted[guest] = {**record, "guest": guest}
        return [] if is_written_ahead(record) or guest not in self._guests else self._end_step(guest, now)

    def end_batch(self, now: float) -> list[Event]:
        """Nobody works any more on the guests that were worked on."""
        events = [event for guest in self._guests for event in self._end_step(guest, now)]
        events += self._end_guests(self._noted.values())
        self._noted.clear()
        return events

    def end_run(self, records: Iterable[Mapping[str, Any]], now: float, *, failed: bool) -> list[Event]:
        """A playbook has ended, of which a run may have several.

        ``records`` are those of all guests so far, of which some may not have ended before.
        """
        events = self.end_batch(now)
        events += self._end_guests(record for record in records if record["guest"] not in self._ended)
        if self._is_ended:
            return []
        events.append(self._event("run_ended", duration=now - self.began, result="failed" if failed else "ok"))
        self._is_ended = True
        return events

    def _start_step(self, guest: str) -> list[Event]:
        known = self._guests[guest]
        coming, known.coming = known.coming, None
        if coming is None:
            return []
        events = self._end_step(guest, coming.began)
        known.step = coming
        return [*events, *self._started(), self._event("step_started", guest=guest, step=coming.name)]

    def _end_step(self, guest: str, now: float) -> list[Event]:
        known = self._guests[guest]
        step, known.step = known.step, None
        if step is None:
            return []
        return [
            self._event(
                "step_ended",
                guest=guest,
                step=step.name,
                duration=now - step.began,
                result=step.result,
                error_code=step.error_code,
            )
        ]

    def _end_guests(self, records: Iterable[Mapping[str, Any]]) -> list[Event]:
        events = []
        for record in records:
            guest = str(record["guest"])
            self._ended.add(guest)
            events += self._started()
            event = self._event(
                "guest_ended",
                guest=guest,
                duration=record.get("duration"),
                result=str(record["outcome"]),
                error_code=error_code_of(record),
            )
            events.append({**event, "hypervisor": record.get("hypervisor") or event["hypervisor"]})
        return events

    def _started(self) -> list[Event]:
        """The first event of the run, before any other."""
        if self._is_started:
            return []
        self._is_started = True
        return [self._event("run_started", result="check_mode" if self.check_mode else None)]

    def _event(
        self,
        event: str,
        *,
        guest: str | None = None,
        step: str | None = None,
        duration: float | None = None,
        result: str | None = None,
        error_code: str | None = None,
    ) -> Event:
        self._is_ended = False
        known = self._guests.get(guest) if guest else None
        return {
            "level": _level(result, error_code),
            "event": event,
            "run": self.run,
            "guest": guest,
            "hypervisor": known.hypervisor if known else None,
            "step": step,
            "duration": None if duration is None else round(duration, 1),
            "result": result,
            "error_code": error_code,
        }


def _level(result: str | None, error_code: str | None) -> str:
    if result == "rolled_back" and error_code:  # not because somebody wanted it, but because it had failed
        return "error"
    if result in (None, "ok", "changed", "check_mode") or result in HEALTHY:
        return "info"
    return "warning" if result == "not_attempted" else "error"
