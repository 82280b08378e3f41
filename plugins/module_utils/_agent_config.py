# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What decides a guest agent's RPC filter, read from its files and evaluated as systemd and qemu-ga do it.

qemu-ga adds up lists: those of its configuration file and those of its command line. Where the allow lists together
name anything, all else is blocked; what a block list names is blocked on top of that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from posixpath import basename

from ansible_collections.kvm.fleet.plugins.module_utils._errors import PolicyUnsupported
from ansible_collections.kvm.fleet.plugins.module_utils._guest_files import GuestFiles
from ansible_collections.kvm.fleet.plugins.module_utils._systemd import (
    Assignment,
    CommandLine,
    parse_command,
    parse_environment,
    parse_unit,
    split_words,
)
from ansible_collections.kvm.fleet.plugins.module_utils._traced import (
    Place,
    Traced,
    Unset,
    decode,
    line_at,
    line_text,
    unsupported,
    whole,
)

UNIT = "qemu-guest-agent.service"
TEMPLATE = "qemu-ga@.service"
"""What SUSE has instead up to SLE 15 SP3 and Leap 15.3."""
INSTANCE = r"qemu-ga@virtio\x2dports-org.qemu.guest_agent.0.service"
"""The one of them that udev starts for the port by which libvirt knows the agent."""
UNIT_DIRECTORIES = (
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
)
USUAL_DROP_IN = "override.conf"
"""What ``systemctl edit`` makes. It is looked for where a directory cannot be listed."""
INIT_SCRIPT = "/etc/init.d/qemu-guest-agent"
INIT_DEFAULTS = "/etc/default/qemu-guest-agent"
INIT_VARIABLE = "DAEMON_ARGS"
FIRST_PROCESS = "/proc/1/comm"
SYSVINIT_TABLE = "/etc/inittab"
OS_RELEASE = "/etc/os-release"
CONFIG_FILE = "/etc/qemu/qemu-ga.conf"
CONFIG_FILE_OF_RHEL = "/etc/qemu-kvm/qemu-ga.conf"

UNIT_PATHS = tuple(f"{directory}/{UNIT}" for directory in UNIT_DIRECTORIES)
INSTANCE_PATHS = tuple(f"{directory}/{unit}" for unit in (INSTANCE, TEMPLATE) for directory in UNIT_DIRECTORIES)


def _drop_ins(*kinds: str) -> tuple[str, ...]:
    """In systemd's order: by the directories first, and what is for all services last of all."""
    own = (f"{directory}/{kind}" for directory in UNIT_DIRECTORIES for kind in kinds)
    return (*own, *(f"{directory}/service.d" for directory in UNIT_DIRECTORIES))


DROP_INS = {
    UNIT: _drop_ins(f"{UNIT}.d", "qemu-guest-.service.d", "qemu-.service.d"),
    INSTANCE: _drop_ins(f"{INSTANCE}.d", f"{TEMPLATE}.d", "qemu-.service.d"),
}
DROP_IN_DIRECTORIES = tuple(dict.fromkeys((*DROP_INS[UNIT], *DROP_INS[INSTANCE])))
USUAL_FILES = (
    *UNIT_PATHS,
    *INSTANCE_PATHS,
    *(FIRST_PROCESS, SYSVINIT_TABLE, INIT_SCRIPT, INIT_DEFAULTS),
    *(OS_RELEASE, CONFIG_FILE, CONFIG_FILE_OF_RHEL),
)
"""What may be looked at in any guest, for who wants to fetch it at once; with DROP_IN_DIRECTORIES."""

Version = tuple[int, int]
"""Major and minor version of an agent."""


class ListKind(str, Enum):
    BLOCK = "block"
    ALLOW = "allow"


@dataclass(frozen=True)
class RpcList:
    """One list of RPCs. ``option`` is what has to go with it once it is empty, as the -b in '-b guest-exec'."""

    kind: ListKind
    names: Traced
    on_command_line: bool
    option: Traced | None = None

    def items(self) -> list[Traced]:
        return [self.names.piece(start, stop) for start, stop in self.names.split(",")]


@dataclass(frozen=True)
class Setting:
    """A line of a file in the guest, and what it does to an RPC."""

    path: str
    line: int
    text: str
    effect: str

    def facts(self) -> dict[str, object]:
        """As results and evidence have it."""
        return {"path": self.path, "line": self.line, "text": self.text, "effect": self.effect}


@dataclass(frozen=True)
class AgentConfig:
    """All that was read of a guest, and what it comes to.

    ``unit`` is what systemctl knows the agent's service by. ``contents`` has every file that was looked for,
    ``listings`` every directory, None where that could not be told.
    ``environment_files`` are in the order that they are read in, and a later one wins.
    """

    contents: Mapping[str, bytes | None]
    listings: Mapping[str, Sequence[str] | None]
    version: Version | None
    systemd: bool
    unit: str
    environment_files: tuple[str, ...]
    config_file: str
    lists: tuple[RpcList, ...]
    arguments: tuple[str, ...]
    splittable: Mapping[str, Traced]

    def text(self, path: str) -> str:
        """A file's text; empty where there is none."""
        return decode(self.contents.get(path) or b"")

    def of_kind(self, kind: ListKind) -> list[RpcList]:
        return [found for found in self.lists if found.kind is kind]

    def named(self, kind: ListKind) -> set[str]:
        """The RPCs that the lists of this kind name."""
        return {item.text for found in self.of_kind(kind) for item in found.items()}

    def allows(self, rpc: str) -> bool:
        """Whether these settings let an RPC through. An allow list without a name in it is none."""
        allowed = self.named(ListKind.ALLOW)
        return (not allowed or rpc in allowed) and rpc not in self.named(ListKind.BLOCK)

    def settings_against(self, rpc: str) -> list[Setting]:
        """The lines that block an RPC; none where nothing does."""
        found = [
            self.setting_at(item.start, "blocks it")
            for blocks in self.of_kind(ListKind.BLOCK)
            for item in blocks.items()
            if item.text == rpc
        ]
        allowed = self.named(ListKind.ALLOW)
        if allowed and rpc not in allowed:
            effect = "allows others only"
            found += [self.setting_at(allows.names.start, effect) for allows in self.of_kind(ListKind.ALLOW)]
        return [setting for setting in found if setting is not None]

    def setting_at(self, place: Place | Unset, effect: str) -> Setting | None:
        """The line that a place is in. None of a variable that is set nowhere."""
        if isinstance(place, Unset):
            return None
        text = self.text(place.path)
        line = line_at(text, place.offset)
        return Setting(place.path, line, line_text(text, line), effect)

    @property
    def unseen(self) -> list[str]:
        """Directories that could not be listed: a file in one of them may change everything here."""
        return sorted(path for path, names in self.listings.items() if names is None)

    @property
    def mixes_lists(self) -> bool:
        """Whether block and allow lists stand side by side, where QEMU 8.1 to 9.0 refuse to start."""
        kinds = [{found.kind for found in self.lists if found.on_command_line is where} for where in (True, False)]
        return any(len(there) > 1 for there in kinds)


def parse_version(text: str) -> Version | None:
    """The version that an agent says it has."""
    match = re.match(r"(\d{1,4})\.(\d{1,4})", text)
    return (int(match[1]), int(match[2])) if match else None


def read_config(files: GuestFiles, version: Version | None) -> AgentConfig:
    """Read what decides the RPC filter of a guest's agent. ``version`` is the agent's, where it is known.

    Raises PolicyUnsupported, naming file and line, for what cannot be understood, and what ``files`` raises.
    """
    return _Reader(files, version).read()


KEYS: Mapping[str, tuple[ListKind, Version, Version]] = {
    "blacklist": (ListKind.BLOCK, (0, 0), (9, 1)),
    "block-rpcs": (ListKind.BLOCK, (7, 2), (99, 0)),
    "allow-rpcs": (ListKind.ALLOW, (8, 1), (99, 0)),
}
"""The keys of the configuration file, and the options of the command line, with the versions from and to which they
exist. A key that is not known is passed over."""

# qemu-ga's options, and whether each takes a value: 'maybe' only one that is attached to it.
_LONG = {
    **dict.fromkeys(("help", "version", "dump-conf", "verbose", "daemonize", "retry-path"), "no"),
    **dict.fromkeys(("confidential", "no-unrestricted", "no-user-auth"), "no"),
    **dict.fromkeys(("logfile", "pidfile", "method", "path", "service", "statedir", "config"), "yes"),
    **dict.fromkeys(("blacklist", "block-rpcs", "allow-rpcs"), "yes"),
    "fsfreeze-hook": "maybe",
}
_SHORT = {**dict.fromkeys("hVvdDriue", "no"), **dict.fromkeys("cmplfbast", "yes"), "F": "maybe"}
_MEANINGS = {"b": "block-rpcs", "a": "allow-rpcs", "c": "config"}


@dataclass
class _Options:
    lists: list[RpcList] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    config: Traced | None = None

    def take(self, name: str, value: Traced, option: Traced | None) -> None:
        name = _MEANINGS.get(name, name)
        if name in KEYS:
            self.lists.append(RpcList(KEYS[name][0], value, True, option))
            return
        if name == "config":
            self.config = value
        self.others.append(f"{name}={value.text}")


def parse_arguments(words: Sequence[Traced]) -> _Options:
    """qemu-ga's arguments as getopt_long takes them apart."""
    options, rest = _Options(), list(words)
    while rest:
        word = rest.pop(0)
        if word.text == "--":
            options.others += [other.text for other in rest]
            break
        if word.text.startswith("--"):
            _long_option(options, word, rest)
        elif word.text.startswith("-") and len(word.text) > 1:
            _short_options(options, word, rest)
        else:
            options.others.append(word.text)
    return options


def _long_option(options: _Options, word: Traced, rest: list[Traced]) -> None:
    given, equals, _value = word.text[2:].partition("=")
    # getopt_long takes any beginning of a name that is the beginning of no other.
    fitting = [given] if given in _LONG else [name for name in _LONG if name.startswith(given)]
    name = fitting[0] if len(fitting) == 1 else given
    if equals:
        options.take(name, word.piece(2 + len(given) + 1), None)
    elif _LONG.get(name) == "yes" and rest:
        options.take(name, rest.pop(0), word)
    else:
        options.others.append(word.text)


def _short_options(options: _Options, word: Traced, rest: list[Traced]) -> None:
    for at in range(1, len(word.text)):
        letter = word.text[at]
        needs = _SHORT.get(letter, "no")
        if needs == "no":
            options.others.append(f"-{letter}")
            continue
        option = word if at == 1 else word.piece(at, at + 1)
        if at + 1 < len(word.text):
            options.take(letter, word.piece(at + 1), word.piece(0 if at == 1 else at, at + 1))
        elif needs == "yes" and rest:
            options.take(letter, rest.pop(0), option)
        else:
            options.others.append(f"-{letter}")
        return


def parse_key_file(path: str, text: str) -> dict[str, Traced]:
    """The keys of [general] in qemu-ga.conf, as GLib reads them: the last one of a name counts."""
    found: dict[str, Traced] = {}
    everything, group, start = whole(path, text), None, 0
    for raw in text.split("\n"):
        line = everything.piece(start, start + len(raw.removesuffix("\r")))
        start += len(raw) + 1
        bare = line.piece(len(line.text) - len(line.text.lstrip(_GLIB_SPACE)))
        if not bare.text or bare.text.startswith("#"):
            continue
        if bare.text.startswith("[") and bare.text.rstrip(_GLIB_SPACE).endswith("]"):
            group = bare.text.rstrip(_GLIB_SPACE)[1:-1]
            continue
        name, equals, value = bare.text.partition("=")
        if not equals or not name or group is None:
            offset = bare.places[0].offset
            raise unsupported(path, text, offset, "the agent does not start with a line that is no key of a group")
        if group == "general":
            space = len(value) - len(value.lstrip(_GLIB_SPACE))
            found[name.rstrip(_GLIB_SPACE)] = bare.piece(len(name) + 1 + space)
    for name, traced in found.items():
        if name in KEYS and "\\" in traced.text:
            offset = traced.places[0].offset
            raise unsupported(path, text, offset, "it has an escape sequence that is not known here")
    return found


_GLIB_SPACE = " \t\n\r\f"


class _Reader:
    """Remembers what it has read, so that the same can be evaluated again with a change in it."""

    def __init__(self, files: GuestFiles, version: Version | None) -> None:
        self._files = files
        self._version = version
        self._contents: dict[str, bytes | None] = {}
        self._listings: dict[str, Sequence[str] | None] = {}
        self._environment_files: list[str] = []

    def _read(self, path: str) -> str | None:
        if path not in self._contents:
            self._contents[path] = self._files.read(path)
        content = self._contents[path]
        return None if content is None else decode(content)

    def _text(self, path: str) -> str:
        return self._read(path) or ""

    def read(self) -> AgentConfig:
        main, unit = self._unit()
        systemd = self._has_systemd(main)
        if systemd and main is not None:
            environment, command = self._service(main, unit)
        elif self._read(INIT_SCRIPT) is not None:
            # Under systemd as well, where the agent's package has no unit, as in Ubuntu up to 18.04.
            environment, command = self._init_script()
        else:
            raise self._not_installed(systemd)
        options = parse_arguments(command.words[1:])
        for found in options.lists:
            self._plain(found.names)
        config_file = self._config_file(options, environment)
        keys = parse_key_file(config_file, self._text(config_file))
        in_file = [RpcList(KEYS[name][0], keys[name], False) for name in self._known(keys)]
        return AgentConfig(
            contents=self._contents,
            listings=self._listings,
            version=self._version,
            systemd=systemd,
            unit=unit,
            environment_files=tuple(self._environment_files),
            config_file=config_file,
            lists=(*options.lists, *in_file),
            arguments=tuple(options.others),
            splittable=command.splittable,
        )

    def _unit(self) -> tuple[str | None, str]:
        """The path of the agent's unit, if there is one, and its name."""
        for name, paths in ((UNIT, UNIT_PATHS), (INSTANCE, INSTANCE_PATHS)):
            for path in paths:
                if self._read(path) is not None:
                    return path, name
        return None, UNIT

    def _known(self, keys: Mapping[str, Traced]) -> list[str]:
        """The keys for lists that the agent's version takes notice of."""
        names = [name for name in KEYS if name in keys]
        if self._version is None:
            return names
        names = [name for name in names if KEYS[name][1] <= self._version < KEYS[name][2]]
        # For as long as there was the old name beside the new one, it took that one's place.
        return [name for name in names if name != "block-rpcs" or "blacklist" not in names]

    def _has_systemd(self, unit: str | None) -> bool:
        first_process = self._read(FIRST_PROCESS)
        if first_process:
            return first_process.strip() == "systemd"
        # An image has no processes. sysvinit has its table, nothing but comments in RHEL 7 and 8, and a script.
        entries = [line for line in self._text(SYSVINIT_TABLE).split("\n") if not line.startswith("#") and line.strip()]
        return unit is not None and not (entries and self._read(INIT_SCRIPT) is not None)

    def _not_installed(self, systemd: bool) -> PolicyUnsupported:
        return PolicyUnsupported(
            f"the guest has no {UNIT if systemd else INIT_SCRIPT}",
            remedy="See whether qemu-guest-agent is installed there; under another init system than systemd or "
            "sysvinit, change its options by hand.",
            evidence={"init": "systemd" if systemd else "other"},
        )

    # --- systemd ----------------------------------------------------------------------------------

    def _service(self, main: str, unit: str) -> tuple[dict[str, Traced], CommandLine]:
        paths = [main, *self._drop_ins(DROP_INS[unit])]
        service = [
            assignment
            for path in paths
            for assignment in parse_unit(path, self._text(path))
            if assignment.section == "Service"
        ]
        commands = _accumulated(service, "ExecStart")
        if len(commands) != 1:
            raise PolicyUnsupported(
                f"{main} has {len(commands)} commands to start the agent with; it is masked or not understood",
                remedy=f"Unmask it if it is masked. See in the guest: systemctl cat '{unit}'",
                evidence={"files": paths},
            )
        environment = self._environment(service)
        value = commands[0].value
        path = _path_of(value)
        command = parse_command(value, environment, self._text(path))
        if not command.words or basename(command.words[0].text) != "qemu-ga":
            raise unsupported(path, self._text(path), _offset_of(value), "this starts the agent by another program")
        return environment, command

    def _drop_ins(self, directories: Sequence[str]) -> list[str]:
        found: dict[str, str] = {}
        for directory in directories:
            self._listings[directory] = self._files.names(directory)
            for name in self._names(directory):
                if name.endswith(".conf"):
                    found.setdefault(name, f"{directory}/{name}")
        return [found[name] for name in sorted(found)]

    def _names(self, directory: str) -> Sequence[str]:
        names = self._listings[directory]
        if names is not None:
            return names
        return [USUAL_DROP_IN] if self._read(f"{directory}/{USUAL_DROP_IN}") is not None else []

    def _environment(self, service: Sequence[Assignment]) -> dict[str, Traced]:
        environment: dict[str, Traced] = {}
        for assignment in _accumulated(service, "Environment"):
            for word in split_words(assignment.value, self._text(_path_of(assignment.value))):
                name, equals, _value = word.text.partition("=")
                if equals:
                    environment[name] = word.piece(len(name) + 1)
        for assignment in _accumulated(service, "EnvironmentFile"):
            path = assignment.value.text.removeprefix("-")
            if set(path) & set("*?[%"):
                unit = _path_of(assignment.value)
                why = "a pattern or a specifier in the name of an EnvironmentFile is not understood here"
                raise unsupported(unit, self._text(unit), _offset_of(assignment.value), why)
            self._environment_files.append(path)
            environment.update({found.name: found.value for found in parse_environment(path, self._text(path))})
        return environment

    def _plain(self, value: Traced) -> str:
        """The text of a value that matters here. systemd puts others in the place of what begins with a %."""
        at = value.text.find("%")
        if at >= 0:
            place = value.places[at]
            why = "a specifier of systemd's is not understood here"
            raise unsupported(place.path, self._text(place.path), place.offset, why)
        return value.text

    # --- by the init script -----------------------------------------------------------------------

    def _init_script(self) -> tuple[dict[str, Traced], CommandLine]:
        """Debian's script sources the file of defaults, and gives the variable to the agent without quotes."""
        self._environment_files.append(INIT_DEFAULTS)
        text = self._text(INIT_DEFAULTS)
        value: Traced = Traced("", (), Unset(INIT_VARIABLE))
        for assignment in parse_environment(INIT_DEFAULTS, text):
            if assignment.name.removeprefix("export ").strip() == INIT_VARIABLE:
                value = assignment.value
                line = line_text(text, line_at(text, _offset_of(value)))
                if re.search(r"[$`\\;#&|<>()]", line):
                    raise unsupported(INIT_DEFAULTS, text, _offset_of(value), "this line is more than a plain value")
                bare = line.partition("=")[2].strip()
                if value.text and (bare[0] not in "\"'" or bare[0] != bare[-1]) and len(bare.split()) > 1:
                    raise unsupported(INIT_DEFAULTS, text, _offset_of(value), "a shell runs what follows the value")
        words = [value.piece(start, stop) for start, stop in _blank_separated(value.text)]
        program = whole(INIT_SCRIPT, "qemu-ga")
        return {}, CommandLine((program, *words), {INIT_VARIABLE: value})

    # --- qemu-ga.conf -----------------------------------------------------------------------------

    def _config_file(self, options: _Options, environment: Mapping[str, Traced]) -> str:
        if options.config is not None:
            return self._plain(options.config)
        if "QGA_CONF" in environment:
            return self._plain(environment["QGA_CONF"])
        # RHEL and its rebuilds build QEMU with the suffix qemu-kvm; Fedora does not. Oracle Linux (ol) is one of the
        # rebuilds, and says that it is like Fedora only.
        like = {
            word
            for assignment in parse_environment(OS_RELEASE, self._text(OS_RELEASE))
            if assignment.name in ("ID", "ID_LIKE")
            for word in assignment.value.text.split()
        }
        return CONFIG_FILE_OF_RHEL if like & {"rhel", "ol"} else CONFIG_FILE


def _accumulated(assignments: Sequence[Assignment], name: str) -> list[Assignment]:
    """All of the assignments to a name that adds up, since the last empty one."""
    found: list[Assignment] = []
    for assignment in assignments:
        if assignment.name == name:
            found = [*found, assignment] if assignment.value.text else []
    return found


def _blank_separated(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(r"\S+", text)]


def _path_of(value: Traced) -> str:
    return value.places[0].path


def _offset_of(value: Traced) -> int:
    return value.start.offset if isinstance(value.start, Place) else 0
