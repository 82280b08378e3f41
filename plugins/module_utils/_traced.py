# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Text that knows where it comes from.

What a guest agent is started with is put together from several files, by rules of quoting and of variables. To change
one word of it, and nothing else, each character is followed from its file through all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Union

from ansible_collections.kvm.fleet.plugins.module_utils._errors import PolicyUnsupported


@dataclass(frozen=True)
class Place:
    """A character of a file, counted from its beginning; or its end."""

    path: str
    offset: int


@dataclass(frozen=True)
class Unset:
    """Instead of a place: a variable that has no value in any file."""

    variable: str


Origin = Union[Place, Unset]


@dataclass(frozen=True)
class Traced:
    """A text with the place of each of its characters, and that of what would be put behind the last one."""

    text: str
    places: tuple[Place, ...]
    end: Origin

    def piece(self, start: int, stop: int | None = None) -> Traced:
        """The characters from ``start`` up to ``stop``."""
        stop = len(self.text) if stop is None else stop
        places = self.places[start:stop]
        if stop == len(self.text):
            end = self.end
        elif places:
            end = _behind(places[-1])
        else:
            end = self.places[stop]
        return Traced(self.text[start:stop], places, end)

    def stripped(self) -> Traced:
        """Without white space at either end."""
        left = len(self.text) - len(self.text.lstrip())
        return self.piece(left, max(left, len(self.text.rstrip())))

    def split(self, separator: str) -> list[tuple[int, int]]:
        """Where each of the parts between the separators begins and ends; none of an empty text."""
        spans, start = [], 0
        for part in self.text.split(separator) if self.text else []:
            spans.append((start, start + len(part)))
            start += len(part) + 1
        return spans

    @property
    def start(self) -> Origin:
        """Where it begins."""
        return self.places[0] if self.places else self.end


class TracedBuilder:
    """Puts a traced text together. ``end`` is where an empty one is."""

    def __init__(self, end: Origin) -> None:
        self._text: list[str] = []
        self._places: list[Place] = []
        self._end = end

    def add(self, character: str, place: Place) -> None:
        self._text.append(character)
        self._places.append(place)
        self._end = _behind(place)

    def extend(self, more: Traced) -> None:
        self._text.extend(more.text)
        self._places.extend(more.places)
        self._end = more.end

    def drop_trailing(self, characters: str) -> None:
        """Remove these characters from its end."""
        while self._text and self._text[-1] in characters:
            self._text.pop()
            self._end = self._places.pop()

    def build(self) -> Traced:
        return Traced("".join(self._text), tuple(self._places), self._end)


def whole(path: str, text: str) -> Traced:
    """All of a file."""
    return Traced(text, tuple(Place(path, offset) for offset in range(len(text))), Place(path, len(text)))


def _behind(place: Place) -> Place:
    return Place(place.path, place.offset + 1)


def decode(content: bytes) -> str:
    """A file's text, from which ``encode`` makes the same bytes again, whatever they are."""
    return content.decode("utf-8", "surrogateescape")


def encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def line_at(text: str, offset: int) -> int:
    """The number of the line that a character is in, from 1."""
    return text.count("\n", 0, offset) + 1


def line_text(text: str, line: int) -> str:
    """A line by its number, as it may be shown: a guest may have put anything into it."""
    lines = text.split("\n")
    return shown(lines[line - 1]) if line <= len(lines) else ""


MAX_SHOWN = 500


def shown(text: str) -> str:
    """A text of a guest's without what a terminal would obey, and not too long. Its indentation stays."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return printable.rstrip()[:MAX_SHOWN]


def unsupported(path: str, text: str, offset: int, why: str) -> PolicyUnsupported:
    """The refusal of what is not understood, or not edited, at a place of a file."""
    line = line_at(text, offset)
    return PolicyUnsupported(
        f"{path}, line {line}: {why}",
        remedy="Change this file in the guest by hand, or move the setting to where the agent's package has it.",
        evidence={"file": path, "line": line, "text": line_text(text, line)},
    )


@dataclass(frozen=True)
class Edit:
    """Puts ``text`` in the place of the characters from ``start`` up to ``stop`` of a file."""

    path: str
    start: int
    stop: int
    text: str


def deletions(places: Iterable[Place]) -> Iterator[Edit]:
    """The edits that remove these characters."""
    for place in places:
        yield Edit(place.path, place.offset, place.offset + 1, "")


def edited(texts: Mapping[str, str], edits: Iterable[Edit]) -> dict[str, str]:
    """The files that the edits change, after them. No two of the edits may overlap; the same deletion counts once."""
    result: dict[str, str] = {}
    for edit in sorted(set(edits), key=lambda edit: (edit.path, edit.start, edit.stop), reverse=True):
        text = result.get(edit.path, texts[edit.path])
        result[edit.path] = text[: edit.start] + edit.text + text[edit.stop :]
    return result
