# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Deadlines and locks."""

from __future__ import annotations

import fcntl
import subprocess
from pathlib import Path

import pytest

from lab.clock import wait_until
from lab.locks import exclusive


def test_waiting_asks_at_least_once_and_no_longer_than_told() -> None:
    answers = iter([False, False, True])
    assert wait_until(lambda: next(answers), deadline_s=5, every_s=0)
    assert wait_until(lambda: True, deadline_s=-1)
    assert not wait_until(lambda: False, deadline_s=0.01, every_s=0.001)


def test_a_lock_is_held_by_whoever_inherits_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    with exclusive(path, "nobody") as descriptor:
        child = subprocess.Popen(["sleep", "60"], pass_fds=[descriptor])
    with child, path.open() as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        child.kill()
        child.wait()
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
