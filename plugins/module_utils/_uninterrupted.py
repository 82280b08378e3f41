# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Lets a module bring to its end what must not be left halfway, whatever becomes of its controller meanwhile.

A controller that is cancelled takes its modules along: ansible-runner, and so AWX, kills its whole process group, sshd
hangs up the terminal that Ansible had asked for, and Ctrl-C reaches whatever runs at that terminal.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Be out of the controller's reach, and mind no signal that can wait before the context has ended."""
    leave_the_controller()
    with signals_wait():
        yield


def leave_the_controller() -> None:
    """Leave the process group and the terminal that this process shares with its controller, for good."""
    if os.getpgrp() != os.getpid():  # who leads a group shares it with nobody above, and may not leave it either
        os.setsid()


@contextmanager
def signals_wait() -> Iterator[None]:
    """Have the signals that come meanwhile do what they would have done, once each, when the context has ended.

    They are caught, not blocked: a child would inherit that, and could not be ended.
    """
    came: list[int] = []

    def note(signum: int, _frame: object) -> None:
        if signum not in came:
            came.append(signum)

    before = {signum: signal.signal(signum, note) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        for number in came:
            signal.raise_signal(number)
