# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Lines at the foot of a terminal that stay there while everything else scrolls above them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_SAVE, _RESTORE = "\x1b7", "\x1b8"
# A terminal's standard output of Python is written out at a line's end or a carriage return, and this has neither else.
_WRITE_OUT = "\r"
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"
_ERASE_LINE, _ERASE_BELOW = "\x1b[2K", "\x1b[J"
_DOWN = "\x1bD"


class Panel:
    """What to write to a terminal so that its lowest lines are these.

    They are kept out of the part that scrolls (DECSTBM), and the cursor is put back to where it was. So whoever else
    writes to the terminal, be it another process, writes above them and needs to know nothing of it.
    """

    def __init__(self) -> None:
        self._rows = 0
        self._height = 0

    @staticmethod
    def room(height: int) -> int:
        """How many lines a panel may have in a window of this height; the rest is for all other output."""
        return height // 2

    def draw(self, lines: Sequence[str], height: int) -> str:
        """Show these instead of those before, of which there may be more or fewer."""
        lines = lines[: self.room(height)]
        written = self._resize(len(lines), height)
        if not lines:
            return written
        top = height - len(lines) + 1
        rows = "".join(f"\x1b[{top + number};1H{_ERASE_LINE}{line}" for number, line in enumerate(lines))
        return f"{written}{_SAVE}{_WRITE_OUT}{_NO_WRAP}{rows}{_WRAP}{_RESTORE}"

    def close(self) -> str:
        """Leave the terminal as it was found."""
        return self._resize(0, self._height)

    def _resize(self, rows: int, height: int) -> str:
        written = ""
        if height != self._height:
            # What a terminal makes of the lines and the margins when its window changes, nobody knows. So the panel is
            # taken for gone, and what is left of it below the cursor is erased.
            written = f"{_SAVE}{_WRITE_OUT}\x1b[r{_RESTORE}{_ERASE_BELOW}" if self._rows else ""
            self._rows, self._height = 0, height
        more = rows - self._rows
        if more == 0:
            return written
        if more > 0:
            # The cursor may be where the panel is going to be: what is above it moves up.
            written += f"{_DOWN * more}\x1b[{more}A"
        freed = "".join(f"\x1b[{row};1H{_ERASE_LINE}" for row in range(height - self._rows + 1, height - rows + 1))
        self._rows = rows
        # To set the margins moves the cursor.
        margins = f"\x1b[1;{height - rows}r" if rows else "\x1b[r"
        return f"{written}{_SAVE}{_WRITE_OUT}{freed}{margins}{_RESTORE}"


def columns(text: str) -> int:
    """How many columns of a terminal a text takes: some letters take two."""
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def clip(text: str, width: int) -> str:
    """As much of a text as so many columns hold."""
    if columns(text) <= width:
        return text
    kept, left = "", width - 1
    for character in text:
        left -= _columns(character)
        if left < 0:
            break
        kept += character
    return f"{kept}…" if width > 0 else ""
