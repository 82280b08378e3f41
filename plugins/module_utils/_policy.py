# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What to change in a guest's files, so that its agent allows or blocks certain RPCs and all else stays as it is.

An edit is made where the list stands. Before a plan leaves here it is tried: the files are evaluated again with the
edits in them, and unless that gives exactly what is wanted, and nothing else, the next place is tried, or none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from ansible_collections.kvm.fleet.plugins.module_utils._agent_config import (
    AgentConfig,
    ListKind,
    RpcList,
    read_config,
)
from ansible_collections.kvm.fleet.plugins.module_utils._errors import InvalidRequest, PolicyUnsupported
from ansible_collections.kvm.fleet.plugins.module_utils._systemd import parse_environment
from ansible_collections.kvm.fleet.plugins.module_utils._traced import (
    Edit,
    Place,
    Traced,
    Unset,
    decode,
    deletions,
    edited,
    encode,
    line_text,
    unsupported,
)

EXEC_RPCS = ("guest-exec", "guest-exec-status")
LIFELINES = ("guest-sync", "guest-sync-delimited", "guest-ping", "guest-info")
"""Without these libvirt cannot speak to an agent, and nobody could find out that it is there."""

OPTION_VARIABLES = ("FILTER_RPC_ARGS", "QEMU_GA_ARGS", "DAEMON_ARGS")
"""Variables that the units and the init script of distributions give to the agent as any number of options."""

_RPC = re.compile(r"\Aguest-[a-z0-9]+(-[a-z0-9]+)*\Z")


@dataclass(frozen=True)
class Wanted:
    """What is wanted of which RPCs."""

    rpcs: tuple[str, ...]
    allowed: bool

    def check(self) -> None:
        """Raise InvalidRequest for what is no RPC, and for what would shut everybody out."""
        wrong = [rpc for rpc in self.rpcs if not _RPC.match(rpc)]
        if wrong or not self.rpcs:
            raise InvalidRequest(
                f"{wrong[0]!r} is no command of a guest agent" if wrong else "there is no RPC to allow or block",
                remedy="Name commands of the guest agent, such as guest-exec.",
            )
        if not self.allowed and set(self.rpcs) & set(LIFELINES):
            raise InvalidRequest(
                f"without {', '.join(LIFELINES)} nobody could speak to the agent any more",
                remedy="Leave them out; stop and mask the agent's service where it is to be gone.",
            )

    def met_by(self, allows: Callable[[str], bool]) -> bool:
        return all(allows(rpc) == self.allowed for rpc in self.rpcs)


@dataclass(frozen=True)
class ChangedLine:
    """A line that is another one afterwards. None on the side where there is no such line."""

    before: str | None
    after: str | None


@dataclass(frozen=True)
class FileChange:
    """One file, before and after. ``before`` is None where it does not exist."""

    path: str
    before: bytes | None
    after: bytes

    def lines(self) -> list[ChangedLine]:
        """The lines that change. Nothing that is planned here moves a line away from its neighbours."""
        before, after = (_lines(content) for content in (self.before, self.after))
        ahead = _common(before, after)
        behind = _common(before[ahead:][::-1], after[ahead:][::-1])
        old, new = before[ahead : len(before) - behind], after[ahead : len(after) - behind]
        return [ChangedLine(*pair) for pair in zip_longest(old, new) if pair[0] != pair[1]]


def _lines(content: bytes | None) -> list[str]:
    lines = decode(content or b"").split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def _common(before: Sequence[str], after: Sequence[str]) -> int:
    """How many lines both begin with."""
    count = 0
    for old, new in zip(before, after):
        if old != new:
            break
        count += 1
    return count


def plan(config: AgentConfig, wanted: Wanted) -> tuple[FileChange, ...]:
    """The edits that bring about what is wanted; none where the files say so already.

    Raises PolicyUnsupported, naming file and line, where what decides cannot be edited, and InvalidRequest.
    """
    wanted.check()
    if wanted.met_by(config.allows):
        return ()
    choices = _enabling(config, wanted.rpcs) if wanted.allowed else _disabling(config, wanted.rpcs)
    refusal: PolicyUnsupported | None = None
    for changes in choices:
        try:
            edits = _Edits(config, changes)
            planned = edits.files()
            _verify(config, wanted, planned)
        except PolicyUnsupported as error:
            refusal = refusal or error
        else:
            return planned
    raise refusal or PolicyUnsupported(
        "no place was found in which this agent's RPC filter could be changed",
        remedy="Change its options in the guest by hand; the evidence lists the files that were read.",
        evidence={"files": sorted(path for path, content in config.contents.items() if content is not None)},
    )


# --- what might be changed -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Assign:
    """Gives a variable that is set nowhere a value."""

    variable: str
    value: str


@dataclass(frozen=True)
class _AddKey:
    """Puts a key into [general] of the agent's configuration file."""

    name: str
    value: str


_Change = object
"""An Edit, an _Assign or an _AddKey."""


def _enabling(config: AgentConfig, rpcs: Sequence[str]) -> Iterator[list[_Change]]:
    """Out of every block list, and into one of the allow lists, which add up."""
    changes: list[_Change] = [
        change for blocks in config.of_kind(ListKind.BLOCK) for change in _without(config, blocks, rpcs)
    ]
    allowed = config.named(ListKind.ALLOW)
    missing = [rpc for rpc in rpcs if rpc not in allowed]
    if not allowed or not missing:
        yield changes
        return
    for allows in config.of_kind(ListKind.ALLOW):
        yield [*changes, *_with(allows, missing)]


def _disabling(config: AgentConfig, rpcs: Sequence[str]) -> Iterator[list[_Change]]:
    """Out of every allow list. Without one, into a block list, wherever this guest has or may have one."""
    allowed = config.named(ListKind.ALLOW)
    if allowed - set(rpcs):
        yield [change for allows in config.of_kind(ListKind.ALLOW) for change in _without(config, allows, rpcs)]
        return
    if allowed:
        place = config.of_kind(ListKind.ALLOW)[0].names.start
        if isinstance(place, Place):
            why = "an allow list that is left empty would allow everything"
            raise unsupported(place.path, config.text(place.path), place.offset, why)
    missing = [rpc for rpc in rpcs if rpc not in config.named(ListKind.BLOCK)]
    for blocks in config.of_kind(ListKind.BLOCK):
        yield _with(blocks, missing)
    if config.version is None:
        raise PolicyUnsupported(
            "the agent's version is not known, and by that the name that its block list has",
            remedy="Start the guest, so that its agent can be asked, and try again.",
        )
    name = "block-rpcs" if config.version >= (7, 2) else "blacklist"
    option = f"--{name}={','.join(missing)}"
    for variable in OPTION_VARIABLES:
        if variable in config.splittable:
            yield _with_option(config.splittable[variable], option)
    yield [_AddKey(name, ",".join(missing))]


def _with(names: RpcList, rpcs: Sequence[str]) -> list[_Change]:
    end, text = names.names.end, ",".join(rpcs)
    if isinstance(end, Unset):
        return [_Assign(end.variable, text)]
    return [Edit(end.path, end.offset, end.offset, f",{text}" if names.names.text else text)]


def _with_option(value: Traced, option: str) -> list[_Change]:
    if isinstance(value.end, Unset):
        return [_Assign(value.end.variable, option)]
    return [Edit(value.end.path, value.end.offset, value.end.offset, f" {option}" if value.text else option)]


def _without(config: AgentConfig, names: RpcList, rpcs: Sequence[str]) -> list[_Change]:
    """Each item goes with the comma before it, or the one after it where nothing is left before."""
    removed: list[Place] = []
    spans = names.names.split(",")
    is_kept = [names.names.text[start:stop] not in rpcs for start, stop in spans]
    if all(is_kept):
        return []
    if not any(is_kept) and names.option is not None:
        return _without_option(config, names.names, names.option)
    for number, (start, stop) in enumerate(spans):
        if is_kept[number]:
            continue
        behind_another = any(is_kept[:number])
        before_another = not behind_another and number + 1 < len(spans)
        removed += names.names.places[start - behind_another : stop + before_another]
    return list(deletions(removed))


def _without_option(config: AgentConfig, value: Traced, option: Traced) -> list[_Change]:
    """Without its list an option would take the next word for one, so it goes as well, with the blank before it."""
    first, last = option.places[0], value.places[-1]
    between = config.text(first.path)[option.places[-1].offset + 1 : value.places[0].offset]
    if first.path != last.path or between.strip() or not 0 <= first.offset < last.offset:
        raise unsupported(
            first.path, config.text(first.path), first.offset, "an option and its list do not stand together"
        )
    before = config.text(first.path)[: first.offset]
    blank = 1 if before.endswith((" ", "\t")) else 0
    return [Edit(first.path, first.offset - blank, last.offset + 1, "")]


# --- the files that this comes to ----------------------------------------------------------------


class _Edits:
    """Changes, brought into files that may be changed: those below /etc. What a vendor ships is overridden there."""

    def __init__(self, config: AgentConfig, changes: Sequence[_Change]) -> None:
        self._config = config
        self._edits = [change for change in changes if isinstance(change, Edit)]
        self._assigned = {change.variable: change.value for change in changes if isinstance(change, _Assign)}
        self._keys = [change for change in changes if isinstance(change, _AddKey)]
        self._texts: dict[str, str] = {}

    def files(self) -> tuple[FileChange, ...]:
        own = [edit for edit in self._edits if _is_own(edit.path)]
        self._texts = edited({edit.path: self._config.text(edit.path) for edit in own}, own)
        self._override([edit for edit in self._edits if not _is_own(edit.path)])
        for variable, value in self._assigned.items():
            self._assign(variable, value, self._last_environment_file())
        for key in self._keys:
            self._add_key(key)
        return tuple(
            FileChange(path, self._config.contents.get(path), encode(text))
            for path, text in sorted(self._texts.items())
        )

    def _text(self, path: str) -> str:
        return self._texts.get(path, self._config.text(path))

    def _override(self, edits: Sequence[Edit]) -> None:
        """Give the variables that a vendor's file sets their new value in a file that is read after it."""
        for edit in edits:
            if edit.path not in self._config.environment_files:
                why = "a vendor's file is not edited, and nothing that is read after it can change this list"
                raise unsupported(edit.path, self._config.text(edit.path), edit.start, why)
        for path, text in edited({edit.path: self._config.text(edit.path) for edit in edits}, edits).items():
            old, new = (_variables(path, version) for version in (self._config.text(path), text))
            for variable, value in new.items():
                if value != old.get(variable):
                    self._assign(variable, value, self._last_environment_file(behind=path))

    def _last_environment_file(self, behind: str | None = None) -> str:
        files = self._config.environment_files
        usable = [path for path in files[files.index(behind) + 1 if behind else 0 :] if _is_own(path)]
        if not usable:
            raise PolicyUnsupported(
                "the agent's service reads no file below /etc in which its options could be set",
                remedy=f"Give it an EnvironmentFile below /etc by a drop-in: systemctl edit '{self._config.unit}'",
                evidence={"environment_files": list(files)},
            )
        return usable[-1]

    def _assign(self, variable: str, value: str, path: str) -> None:
        escaped = re.sub(r'(["\\`$])', r"\\\1", value)
        self._texts[path] = _appended(self._text(path), f'{variable}="{escaped}"')

    def _add_key(self, key: _AddKey) -> None:
        path = self._config.config_file
        if not _is_own(path):
            raise PolicyUnsupported(
                f"the agent's configuration file {path} is not below /etc, so it is not edited",
                remedy="Change it in the guest by hand.",
                evidence={"file": path},
            )
        text, line = self._text(path), f"{key.name}={key.value}"
        header = _general(text)
        if header is None:
            self._texts[path] = _appended(_appended(text, "[general]"), line)
        else:
            newline = _newline(text)
            head, tail = text[:header], text[header:]
            joined = f"{newline}{line}" if not head.endswith("\n") else f"{line}{newline}"
            self._texts[path] = f"{head}{joined}{tail}"


def _is_own(path: str) -> bool:
    return path.startswith("/etc/") and ".." not in path.split("/")


def _variables(path: str, text: str) -> dict[str, str]:
    return {found.name: found.value.text for found in parse_environment(path, text)}


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _appended(text: str, line: str) -> str:
    """With a line more at its end, which has a line end only if the last one had."""
    newline = _newline(text)
    return f"{text}{newline}{line}" if text and not text.endswith("\n") else f"{text}{line}{newline}"


def _general(text: str) -> int | None:
    """Where the line after the header of the last [general] begins."""
    found = None
    for match in re.finditer(r"^[ \t]*\[general\][ \t\r]*(\n|\Z)", text, re.MULTILINE):
        found = match.end()
    return found


# --- proof ---------------------------------------------------------------------------------------


class _Changed:
    """The files that were read, with the planned ones in their place."""

    def __init__(self, config: AgentConfig, changes: Sequence[FileChange]) -> None:
        self._contents: dict[str, bytes | None] = {
            **config.contents,
            **{change.path: change.after for change in changes},
        }
        self._listings = config.listings

    def read(self, path: str) -> bytes | None:
        return self._contents.get(path)

    def write(self, path: str, content: bytes) -> None:
        self._contents[path] = content

    def names(self, directory: str) -> Sequence[str] | None:
        return self._listings.get(directory, ())


def after(config: AgentConfig, changes: Sequence[FileChange]) -> AgentConfig:
    """What the files would come to with the changes in them."""
    return read_config(_Changed(config, changes), config.version)


def _verify(config: AgentConfig, wanted: Wanted, changes: Sequence[FileChange]) -> None:
    """Raise PolicyUnsupported unless the changes bring about what is wanted, and nothing else."""
    new = after(config, changes)
    named = {rpc for there in (config, new) for kind in ListKind for rpc in there.named(kind)}
    others = {*named, *LIFELINES, "guest-unheard-of"} - set(wanted.rpcs)
    unwanted = sorted(rpc for rpc in others if config.allows(rpc) != new.allows(rpc))
    mixed = new.mixes_lists and not config.mixes_lists and (config.version is None or config.version < (9, 1))
    if wanted.met_by(new.allows) and not unwanted and not mixed and new.arguments == config.arguments:
        return
    refused = changes[0] if changes else FileChange(config.config_file, None, b"")
    lines = zip_longest(*(decode(content or b"").split("\n") for content in (refused.before, refused.after)))
    line = next((number for number, (old, fresh) in enumerate(lines, start=1) if old != fresh), 1)
    raise PolicyUnsupported(
        f"{refused.path}, line {line}: an edit here would not bring about what is wanted, or more than that",
        remedy="Change the agent's options in the guest by hand.",
        evidence={
            "file": refused.path,
            "line": line,
            "text": line_text(config.text(refused.path), line),
            "also_changed": unwanted,
        },
    )
