# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What real package managers printed, each in a file of its own, unchanged."""

from __future__ import annotations

from pathlib import Path

RECORDINGS = Path(__file__).parent / "recordings"


def recorded(name: str) -> str:
    """The recording of this name."""
    return (RECORDINGS / f"{name}.txt").read_text(encoding="utf-8")
