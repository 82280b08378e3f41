# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Waiting until something holds, with a deadline."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def wait_until(holds: Callable[[], bool], deadline_s: float, every_s: float = 0.25) -> bool:
    """Ask until `holds()`; False when `deadline_s` passed first. Asks at least once."""
    end = time.monotonic() + deadline_s
    while not holds():
        if time.monotonic() >= end:
            return False
        time.sleep(every_s)
    return True
