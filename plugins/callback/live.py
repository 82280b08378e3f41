# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: live
type: aggregate
short_description: Tell how far each guest is while a run goes on
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Shows a line for each guest at work, with its step, how much of an upgrade is done, and for how long it has been
    worked on.
  - On a terminal these lines stay at its foot, below what Ansible prints, and are redrawn in place. Elsewhere, in AWX
    and on a terminal that has no size, a line is printed when a guest's step has changed, and for each ten percent of
    an upgrade.
  - The collection's own playbooks bring it along. Enable it for playbooks of your own that use its roles.
  - A run that is ended by SIGTERM or SIGKILL on a terminal leaves the lines there. C(reset) tidies that terminal up.
extends_documentation_fragment:
  - kvm.fleet.callback.live
requirements:
  - enable in configuration (C(callbacks_enabled = kvm.fleet.live)), unless one of the collection's playbooks is run
"""

import atexit
import os
import sys
import time
from threading import Lock
from typing import Any

from ansible.plugins.callback import CallbackBase

from ansible_collections.kvm.fleet.plugins.plugin_utils._panel import Panel
from ansible_collections.kvm.fleet.plugins.plugin_utils._progress import (
    Board,
    error_code_of,
    is_written_ahead,
    noted_guests,
    step_of,
)
from ansible_collections.kvm.fleet.plugins.plugin_utils._ticker import Ticker


def on_a_terminal() -> bool:
    """Whether a person looks at the standard output, in a window with room for lines at its foot.

    AWX has a terminal too, of which it keeps what was written. Others, as of ``docker -t``, may have no lines at all.
    """
    awx = os.environ.get("ANSIBLE_STDOUT_CALLBACK") == "awx_display"
    if awx or os.environ.get("TERM", "dumb") == "dumb" or not sys.stdout.isatty():
        return False
    width, height = os.get_terminal_size(sys.stdout.fileno())
    return width > 0 and Panel.room(height) > 0


class CallbackModule(CallbackBase):
    """Reads the steps from the tasks, the progress from their results and the outcomes from what the roles note.

    A thread of its own redraws the lines each second, since a task may take minutes. Everything is written through
    Ansible's display, whose lock keeps it apart from other output, and from the fork of a worker.
    """

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "kvm.fleet.live"
    CALLBACK_NEEDS_ENABLED = True

    # Enabled in the configuration and brought along by a playbook, it is loaded twice; one is enough.
    _speaker: CallbackModule | None = None

    def __init__(self) -> None:
        super().__init__()
        self._board = Board()
        self._panel: Panel | None = None
        self._lock = Lock()
        self._ticker = Ticker(self._redraw)

    def set_options(self, task_keys: Any = None, var_options: Any = None, direct: Any = None) -> None:
        base: Any = super()  # not annotated
        base.set_options(task_keys=task_keys, var_options=var_options, direct=direct)
        mode = base.get_option("mode")
        CallbackModule._speaker = CallbackModule._speaker or self
        self.disabled = mode == "off" or CallbackModule._speaker is not self
        if mode == "auto" and on_a_terminal() and not self.disabled:
            self._panel = Panel()
            atexit.register(self._close)  # a run that is interrupted has no statistics

    def v2_playbook_on_play_start(self, play: Any) -> None:
        del play  # a batch is one of its own
        with self._lock:
            self._board.clear()
            self._show()

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        step = step_of(task.get_vars())
        if step is not None:
            with self._lock:
                self._board.begin(host.get_name(), step, time.monotonic())
                self._show()
            self._ticker.start()

    def v2_runner_on_skipped(self, result: Any) -> None:
        with self._lock:
            self._board.skip(result._host.get_name())
            self._show()

    def v2_runner_retry(self, result: Any) -> None:
        progress = result._result.get("progress")
        with self._lock:
            self._board.settle(result._host.get_name())
            if isinstance(progress, dict):
                self._board.advance(result._host.get_name(), progress)
            self._show()

    def v2_runner_on_ok(self, result: Any) -> None:
        with self._lock:
            self._board.settle(result._host.get_name())
            for guest, record in noted_guests(result._result).items():
                if not is_written_ahead(record):
                    code = error_code_of(record)
                    outcome = f"{record['outcome']} ({code})" if code else str(record["outcome"])
                    self._board.end(guest, outcome, time.monotonic())
            self._show()

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        del ignore_errors  # what becomes of the guest is for the role to say
        with self._lock:
            self._board.settle(result._host.get_name())
            self._show()

    def v2_runner_on_unreachable(self, result: Any) -> None:
        if not result._task.ignore_unreachable:
            with self._lock:
                self._board.end(result._host.get_name(), "lost (hypervisor unreachable)", time.monotonic())
                self._show()

    def v2_playbook_on_stats(self, stats: Any) -> None:
        del stats  # that is for the summary
        self._close()

    def _show(self) -> None:
        if self._panel is None:
            for line in self._board.news(time.monotonic()):
                self._display.display(line)
            return
        width, height = os.get_terminal_size(sys.stdout.fileno())
        lines = self._board.table(time.monotonic(), width, self._panel.room(height))
        self._write(self._panel.draw(lines, height))

    def _write(self, text: str) -> None:
        if text:
            self._display.display(text, screen_only=True, newline=False)

    def _redraw(self) -> None:
        with self._lock:
            self._show()

    def _close(self) -> None:
        self._ticker.stop()
        if self._panel is not None:
            with self._lock:
                self._write(self._panel.close())
