# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A terminal as far as the panel needs one: what is written to it, and what a person then sees.

By ECMA-48 and DEC's VT100 manual, which xterm, tmux, screen and the Linux console follow in this.
"""

from __future__ import annotations

import re

_SEQUENCE = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])|\x1b([78D])")


class FakeTerminal:
    """Of so many columns and rows. ``scrolled`` is what has left it at the top while nothing held it."""

    def __init__(self, width: int = 40, height: int = 10) -> None:
        self.width, self.height = width, height
        self.rows = [""] * height
        self.row, self.column = 0, 0
        self.scrolled: list[str] = []
        self._top, self._bottom = 0, height - 1
        self._wraps = True
        self._saved = (0, 0)

    @property
    def screen(self) -> list[str]:
        return [row.rstrip() for row in self.rows]

    @property
    def text(self) -> list[str]:
        """All lines from the first to the last that have anything on them, those that have scrolled away first."""
        return [line for line in [*(row.rstrip() for row in self.scrolled), *self.screen] if line]

    @property
    def margins(self) -> tuple[int, int]:
        """The first and the last row that scroll, counted from 1."""
        return self._top + 1, self._bottom + 1

    def write(self, text: str) -> None:
        position = 0
        while position < len(text):
            match = _SEQUENCE.match(text, position)
            if match:
                self._obey(match)
                position = match.end()
            else:
                self._put(text[position])
                position += 1

    def resize(self, height: int) -> None:
        """As xterm does it: rows vanish at the top or come at the foot, and all of them scroll again."""
        gone = max(len(self.rows) - height, 0)
        self.rows = self.rows[gone:] + [""] * (height - len(self.rows))
        self.row = max(self.row - gone, 0)
        self.height, self._top, self._bottom = height, 0, height - 1

    def _put(self, character: str) -> None:
        if character == "\n":  # the kernel's line discipline makes both of it
            self._down()
            self.column = 0
        elif character == "\r":
            self.column = 0
        else:
            assert character.isprintable(), character
            if self.column == self.width:
                if not self._wraps:
                    return
                self._put("\n")
            row = self.rows[self.row].ljust(self.width)
            self.rows[self.row] = row[: self.column] + character + row[self.column + 1 :]
            self.column += 1

    def _down(self) -> None:
        if self.row == self._bottom:
            gone = self.rows.pop(self._top)
            self.rows.insert(self._bottom, "")
            if self._top == 0:
                self.scrolled.append(gone)
        else:
            self.row = min(self.row + 1, self.height - 1)

    def _obey(self, match: re.Match[str]) -> None:
        private, given, final, short = match.groups()
        numbers = [int(number or 0) for number in (given or "").split(";")]
        if short == "D":
            self._down()
        elif short == "7":
            self._saved = (self.row, self.column)
        elif short == "8":
            self.row, self.column = self._saved
        elif final == "A":
            self.row = max(self.row - numbers[0], self._top if self.row >= self._top else 0)
        elif final == "H":
            self.row, self.column = numbers[0] - 1, numbers[1] - 1
            assert 0 <= self.row < self.height
        elif (final, given) == ("K", "2"):
            self.rows[self.row] = ""
        elif (final, given) == ("J", ""):
            self.rows[self.row] = self.rows[self.row][: self.column]
            self.rows[self.row + 1 :] = [""] * (self.height - self.row - 1)
        elif final == "r":
            self._top, self._bottom = (numbers[0] - 1, numbers[1] - 1) if given else (0, self.height - 1)
            assert 0 <= self._top < self._bottom < self.height
            self.row, self.column = 0, 0
        else:
            assert (private, given) == ("?", "7"), match[0]
            assert final in "hl", match[0]
            self._wraps = final == "h"
