# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Taking the lab down, beside test sessions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lab import bed, emulator, fleets, image
from lab.errors import LabError

SESSION = """\
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from lab.locks import present
with present(Path(sys.argv[2])):
    print("present", flush=True)
    sys.stdin.read()
"""
TOP = Path(bed.__file__).parent.parent


@pytest.fixture
def removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What was removed, of a lab that is nowhere but here."""
    done: list[str] = []
    monkeypatch.setattr(bed, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(bed, "SESSIONS", tmp_path / "sessions")
    monkeypatch.setattr(fleets, "FLEETS", tmp_path / "fleets")
    monkeypatch.setattr(fleets, "remove_all", lambda _fleets: done.append("fleets"))
    monkeypatch.setattr(bed, "answering", lambda: True)
    monkeypatch.setattr(bed, "_remove_guests", lambda: done.append("guests"))
    monkeypatch.setattr(emulator, "remove_all", lambda: done.append("emulator"))
    monkeypatch.setattr(image, "purge", lambda: done.append("image"))
    return done


def test_a_lab_that_a_test_session_uses_stays_up_and_the_session_is_named(removed: list[str], tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SESSION, TOP, tmp_path / "sessions"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as session:
        assert session.stdout is not None
        assert session.stdout.readline() == b"present\n"
        with pytest.raises(LabError, match=rf"the lab is in use: process {session.pid} \("):
            bed.down(purge=True)
        assert removed == []
        session.communicate()
    bed.down(purge=True)
    assert removed == ["fleets", "guests", "emulator", "image"]
