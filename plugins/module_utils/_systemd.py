# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reads systemd's units and environment files as systemd does, and keeps track of where each character stands.

The rules are those of systemd.syntax(7), systemd.exec(5) and systemd.service(5), and of the source where these are
silent. Whatever is beyond them is refused by file and line, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ansible_collections.kvm.fleet.plugins.module_utils._traced import (
    Place,
    Traced,
    TracedBuilder,
    Unset,
    unsupported,
    whole,
)

NEWLINES = "\n\r"
WHITESPACE = " \t\n\r"
_ESCAPES = {"s": " ", "t": "\t", "n": "\n", "r": "\r", "\\": "\\", '"': '"', "'": "'", ";": ";"}
_NEED_ESCAPE = '"\\`$'
"""What systemd takes the backslash from within double quotes of an environment file."""


@dataclass(frozen=True)
class Assignment:
    """A name and its value. ``section`` is that of a unit, empty elsewhere."""

    section: str
    name: str
    value: Traced


# --- units ---------------------------------------------------------------------------------------


def parse_unit(path: str, text: str) -> list[Assignment]:
    """The assignments of a unit, or of a drop-in, in their order."""
    found, section = [], ""
    for line in _logical_lines(path, text):
        if line.text.startswith("[") and line.text.endswith("]"):
            section = line.text[1:-1]
            continue
        name, equals, _value = line.text.partition("=")
        if equals and section:  # systemd warns of any other line, and goes on
            found.append(Assignment(section, name.strip(), line.piece(len(name) + 1).stripped()))
    return found


def _logical_lines(path: str, text: str) -> Iterator[Traced]:
    """Lines without comments; what a backslash continues is one line. A comment within that is passed over."""
    builder: TracedBuilder | None = None
    for line in _lines(path, text):
        bare = line.piece(len(line.text) - len(line.text.lstrip()))
        if bare.text.startswith(("#", ";")):
            continue
        if builder is None:
            builder = TracedBuilder(bare.start)
        trailing = len(bare.text) - len(bare.text.rstrip("\\"))
        if trailing % 2:
            builder.extend(bare.piece(0, len(bare.text) - 1))
            builder.add(" ", bare.places[-1])
            continue
        builder.extend(bare)
        yield builder.build().stripped()
        builder = None
    if builder is not None:
        yield builder.build().stripped()


def _lines(path: str, text: str) -> Iterator[Traced]:
    everything, start = whole(path, text), 0
    for offset, character in enumerate(text):
        if character in NEWLINES:
            yield everything.piece(start, offset)
            start = offset + 1
    if start < len(text):
        yield everything.piece(start)


# --- environment files ---------------------------------------------------------------------------


def parse_environment(path: str, text: str) -> list[Assignment]:
    """The assignments of an EnvironmentFile, in their order."""
    return _EnvironmentParser(path, text).parse()


class _EnvironmentParser:
    """systemd's own little machine: it looks at one character after the other."""

    def __init__(self, path: str, text: str) -> None:
        self._path = path
        self._text = text
        self._at = 0
        self._found: list[Assignment] = []

    def parse(self) -> list[Assignment]:
        while self._at < len(self._text):
            character = self._text[self._at]
            if character in WHITESPACE:
                self._at += 1
            elif character in "#;":
                self._skip_comment()
            else:
                self._assignment()
        return self._found

    def _skip_comment(self) -> None:
        start, self._at = self._at, self._end_of_line()
        if self._text[start : self._at].endswith("\\") and "=" in self._text[self._at : self._end_of_line(1)]:
            # systemd before 254 takes the next line for a part of the comment, and later ones do not.
            raise unsupported(self._path, self._text, start, "a comment ends with a backslash")

    def _end_of_line(self, skip: int = 0) -> int:
        ends = [self._text.find(newline, self._at + skip) for newline in NEWLINES]
        return min((end for end in ends if end >= 0), default=len(self._text))

    def _assignment(self) -> None:
        end = self._end_of_line()
        name, equals, _rest = self._text[self._at : end].partition("=")
        if not equals:
            self._at = end
            return
        self._at += len(name) + 1
        self._found.append(Assignment("", name.strip(), self._value()))

    def _place(self) -> Place:
        return Place(self._path, self._at)

    def _value(self) -> Traced:
        """Quoted parts and white space between them, then, from the first character that is neither, the rest."""
        builder = TracedBuilder(self._place())
        while self._at < len(self._text):
            character = self._text[self._at]
            if character in NEWLINES:
                break
            if character in "\"'":
                builder.extend(self._quoted(character))
            elif character in WHITESPACE:
                self._at += 1
            else:
                builder.extend(self._unquoted())
                break
        return builder.build()

    def _quoted(self, quote: str) -> Traced:
        opened = self._at
        self._at += 1
        builder = TracedBuilder(self._place())
        while self._at < len(self._text):
            character = self._text[self._at]
            if character == quote:
                self._at += 1
                return builder.build()
            if character == "\\" and quote == '"':
                self._escaped(builder)
            else:
                builder.add(character, self._place())
                self._at += 1
        raise unsupported(self._path, self._text, opened, "a quotation has no end")

    def _escaped(self, builder: TracedBuilder) -> None:
        """A backslash within double quotes."""
        following = self._text[self._at + 1 : self._at + 2]
        if following not in _NEED_ESCAPE and following != "\n":
            builder.add("\\", self._place())
        self._at += 1
        if following and following != "\n":
            builder.add(following, self._place())
        self._at += len(following)

    def _unquoted(self) -> Traced:
        builder = TracedBuilder(self._place())
        while self._at < len(self._text):
            character = self._text[self._at]
            if character in NEWLINES:
                break
            if character == "\\":
                self._at += 1
                character = self._text[self._at : self._at + 1]
            if character not in ("", "\n"):
                builder.add(character, self._place())
            self._at += 1
        builder.drop_trailing(WHITESPACE)
        return builder.build()


# --- command lines -------------------------------------------------------------------------------


@dataclass(frozen=True)
class CommandLine:
    """The words of a command, and the variables in it that may hold any number of them, by name with their end."""

    words: tuple[Traced, ...]
    splittable: Mapping[str, Traced]


def parse_command(value: Traced, environment: Mapping[str, Traced], text: str) -> CommandLine:
    """The command of an ExecStart, with its variables put in. ``text`` is that of the file it stands in."""
    prefix = len(value.text) - len(value.text.lstrip("@-:+!|"))
    flags, words = value.text[:prefix], split_words(value.piece(prefix), text)
    if "@" in flags:
        del words[1:2]  # it is the process's name for itself
    for number, word in enumerate(words):
        if word.text == ";":
            del words[number:]
            break
    if ":" in flags:
        return CommandLine(tuple(words), {})
    expanded: list[Traced] = []
    splittable: dict[str, Traced] = {}
    for word in words:
        name = word.text[1:]
        if word.text.startswith("$") and name.isidentifier():
            splittable[name] = environment.get(name, Traced("", (), Unset(name)))
            expanded += split_words(splittable[name], None)
        else:
            expanded.append(_with_variables(word, environment))
    return CommandLine(tuple(expanded), splittable)


def _with_variables(word: Traced, environment: Mapping[str, Traced]) -> Traced:
    builder, at = TracedBuilder(word.start), 0
    while at < len(word.text):
        close = word.text.find("}", at)
        name = word.text[at + 2 : close]
        if word.text.startswith("${", at) and close > 0 and name.isidentifier():
            builder.extend(environment.get(name, Traced("", (), Unset(name))))
            at = close + 1
            continue
        builder.add(word.text[at], word.places[at])
        at += 2 if word.text.startswith("$$", at) else 1
    return builder.build()


def split_words(value: Traced, text: str | None) -> list[Traced]:
    """The words of a value, without their quotes.

    ``text`` is that of the file for errors. Without it the rules are those for a variable's value: an open quotation
    ends with it, and a backslash only takes the meaning from the next character.
    """
    words: list[Traced] = []
    at = 0
    while True:
        while at < len(value.text) and value.text[at] in WHITESPACE:
            at += 1
        if at >= len(value.text):
            return words
        word, at = _word(value, at, text)
        words.append(word)


def _word(value: Traced, at: int, text: str | None) -> tuple[Traced, int]:
    builder, quote = TracedBuilder(value.places[at]), ""
    while at < len(value.text):
        character = value.text[at]
        if quote and character == quote:
            quote = ""
        elif not quote and character in "\"'":
            quote = character
        elif character == "\\":
            at += 1
            _unescape(builder, value, at, text)
        elif not quote and character in WHITESPACE:
            break
        else:
            builder.add(character, value.places[at])
        at += 1
    if quote and text is not None:
        place = value.places[-1]
        raise unsupported(place.path, text, place.offset, "a quotation has no end")
    return builder.build(), at


def _unescape(builder: TracedBuilder, value: Traced, at: int, text: str | None) -> None:
    character = value.text[at : at + 1]
    if text is not None and character not in _ESCAPES:
        place = value.places[at - 1]
        raise unsupported(place.path, text, place.offset, "it has an escape sequence that is not known here")
    if character:
        builder.add(character if text is None else _ESCAPES[character], value.places[at])
