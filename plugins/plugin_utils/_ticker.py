# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What happens again and again while Ansible waits for a task."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Ticker:
    """Calls ``action`` each second from a thread of its own, from when it is started until it is stopped.

    That may come again: a run of several playbooks has an end for each.
    """

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._thread is None:
            self._over.clear()
            self._thread = threading.Thread(target=self._run, name="kvm.fleet", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """After this, it is not called again."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while not self._over.wait(1):
            self._action()
