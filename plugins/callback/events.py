# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: events
type: aggregate
short_description: Write what happens in a run to a file, one JSON object a line
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Appends an object for the beginning and the end of the run, of each guest's steps, and for what became of each
    guest. Their fields are described in C(docs/events.md) of the collection.
  - Nothing that a guest or a task has written is in them, but for the names of guests and hypervisors.
  - A file that cannot be written is told of by a warning, and the run goes on without it.
  - The collection's own playbooks bring it along. Enable it for playbooks of your own that use its roles.
extends_documentation_fragment:
  - kvm.fleet.callback.events
requirements:
  - enable in configuration (C(callbacks_enabled = kvm.fleet.events)), unless one of the collection's playbooks is run
"""

import json
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from threading import Lock
from typing import Any

from ansible.plugins.callback import CallbackBase

from ansible_collections.kvm.fleet.plugins.plugin_utils._controller import awx_job, owner_of, playbook_pid, run_of
from ansible_collections.kvm.fleet.plugins.plugin_utils._events import Event, Events, code_of
from ansible_collections.kvm.fleet.plugins.plugin_utils._progress import noted_guests, step_of
from ansible_collections.kvm.fleet.plugins.plugin_utils._summary import records_of
from ansible_collections.kvm.fleet.plugins.plugin_utils._ticker import Ticker


class CallbackModule(CallbackBase):
    """Reads the steps from the tasks and the outcomes from what the roles note for the summary."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "kvm.fleet.events"
    CALLBACK_NEEDS_ENABLED = True

    # Enabled in the configuration and brought along by a playbook, it is loaded twice; one is enough.
    _writer: CallbackModule | None = None

    def __init__(self) -> None:
        super().__init__()
        self._began = time.monotonic()
        self._path: Path | None = None
        self._events: Events | None = None
        self._lock = Lock()
        self._ticker = Ticker(self._settle)

    def set_options(self, task_keys: Any = None, var_options: Any = None, direct: Any = None) -> None:
        base: Any = super()  # not annotated
        base.set_options(task_keys=task_keys, var_options=var_options, direct=direct)
        path = base.get_option("path")
        self._path = Path(path) if path else None
        CallbackModule._writer = CallbackModule._writer or self
        self.disabled = CallbackModule._writer is not self

    def v2_playbook_on_play_start(self, play: Any) -> None:
        if self._events is not None:
            with self._lock:
                self._write(self._events.end_batch(time.monotonic()))
            return
        variables = play.get_variable_manager().extra_vars
        path = variables.get("fleet_events")
        if path:
            self._path = Path(str(path)).expanduser()
        if self._path is None:
            self.disabled = True
            return
        pid = playbook_pid()
        owner = owner_of(pid, job=awx_job(variables))
        run = run_of(owner, pid, datetime.now(timezone.utc))
        self._events = Events(run, self._began, check_mode=bool(play.check_mode))

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        step = step_of(task.get_vars())
        if self._events is None or step is None:
            return
        # Of a guest that a playbook of the collection has found, always its literal name.
        hypervisor = host.get_vars().get("kvm_hypervisor")
        literal = str(hypervisor) if isinstance(hypervisor, str) and "{" not in hypervisor else None
        with self._lock:
            self._events.begin(host.get_name(), literal, step, time.monotonic())
        self._ticker.start()

    def v2_runner_on_ok(self, result: Any) -> None:
        self._take(result, "changed" if result._result.get("changed") else "ok")
        if self._events is not None:
            with self._lock:
                for guest, record in noted_guests(result._result).items():
                    self._write(self._events.note(guest, record, time.monotonic()))

    def v2_runner_on_skipped(self, result: Any) -> None:
        if self._events is not None:
            with self._lock:
                self._events.skip(result._host.get_name())

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        del ignore_errors  # what becomes of the guest is for the role to say
        self._take(result, "failed", code_of(result._result))

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._take(result, "unreachable")

    def v2_playbook_on_stats(self, stats: Any) -> None:
        self._ticker.stop()
        if self._events is not None:
            fleet = stats.custom.get("_run", {}).get("kvm_fleet") or {}
            lost = {*stats.dark, *stats.failures}
            # A plan is about guests that nobody meant to reach.
            records = [] if "plan" in fleet else records_of(fleet, lost)
            self._write(self._events.end_run(records, time.monotonic(), failed=bool(lost)))

    def _settle(self) -> None:
        if self._events is not None:
            with self._lock:
                self._write(self._events.settle(time.monotonic()))

    def _take(self, result: Any, word: str, error_code: str | None = None) -> None:
        if self._events is not None:
            with self._lock:
                self._write(self._events.result(result._host.get_name(), word, time.monotonic(), error_code))

    def _write(self, events: Iterable[Event]) -> None:
        """Each line by itself, so that it is there when it is true, and that runs may share a file."""
        if self._path is None:
            return
        at = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        lines = "".join(f"{json.dumps({'ts': at, **event})}\n" for event in events)
        if not lines:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="ascii") as file:
                file.write(lines)
        except OSError as error:
            self._display.warning(f"The events of this run are not written any more, to {self._path}: {error}")
            self._path = None
