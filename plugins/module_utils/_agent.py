# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one place that speaks the QEMU guest agent's protocol.

What a guest answers is untrusted: it is parsed strictly, and an answer outside the protocol is an error.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from ansible_collections.kvm.fleet.plugins.module_utils._clock import Clock, Deadline, ticks
from ansible_collections.kvm.fleet.plugins.module_utils._domain import AgentChannel
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    AgentCommandBlocked,
    AgentCommandFailed,
    AgentProtocolError,
    CommandResultLost,
    CommandTimeout,
    FleetError,
    GuestFrozen,
    GuestUnsupported,
    InvalidRequest,
)

T = TypeVar("T")

REPLY_TIMEOUT = 15
"""Seconds that one answer may take. Every request used here is answered at once by an agent that is alive."""


THAW_TIMEOUT = 60
"""That to a thaw, which may have scripts in the guest to run."""

FILE_CHUNK = 512 * 1024
"""Bytes of a file in one message. libvirt's RPC carries no string above 4 MiB, and these are in base64."""

READ_COMMANDS = ("guest-file-open", "guest-file-read", "guest-file-close")
WRITE_COMMANDS = ("guest-file-open", "guest-file-write", "guest-file-flush", "guest-file-close")

# ENOENT and ENOTDIR by strerror. The protocol has no code for them, and the agent never sets a locale, so these words
# are the same in every guest. They end the message, behind a path that may have them, too.
_NO_SUCH_FILE = (": No such file or directory", ": Not a directory")


@dataclass(frozen=True)
class AgentInfo:
    """The agent's version and, for each of its commands, whether its RPC filter lets it through."""

    version: str
    commands: Mapping[str, bool]


@dataclass(frozen=True)
class ProcessStatus:
    """A process of the guest as guest-exec-status tells it. Exactly one of the two is set once it has ended."""

    exited: bool
    exit_code: int | None = None
    signal: int | None = None
    stdout: bytes = b""
    stderr: bytes = b""


@dataclass(frozen=True)
class Finished:
    """A process of the guest that has ended, after ``duration`` seconds."""

    exit_code: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes
    duration: float


@dataclass(frozen=True)
class OsInfo:
    """The guest's operating system, as its os-release and its kernel say it; empty where they do not."""

    id: str
    name: str
    version: str
    kernel: str


@dataclass(frozen=True)
class FileSystem:
    """A mounted file system of the guest. Sizes are in bytes, as users other than root may use them; old agents do not
    tell them.
    """

    mountpoint: str
    type: str
    total: int | None
    used: int | None


class GuestAgent:
    """A guest's agent, behind a channel that reaches it.

    ``patience`` is how many seconds it may be away, as while it is itself upgraded, before ``patiently`` gives up.
    """

    def __init__(self, channel: AgentChannel, clock: Clock, patience: float = 0) -> None:
        self._channel = channel
        self._clock = clock
        self._patience = patience

    def patiently(self, attempt: Callable[[], T]) -> T:
        """Do what may be done twice, and do it again while the agent is away or forgets what it was asked to run."""
        deadline: Deadline | None = None
        while True:
            try:
                return attempt()
            except FleetError as error:
                # From the first failure on: what was attempted may take longer than the agent is away.
                deadline = deadline or Deadline(self._clock, self._patience)
                if deadline.passed or not (error.transient or isinstance(error, CommandResultLost)):
                    raise
                self._clock.wait(min(1, deadline.remaining))

    def ping(self, timeout: int = REPLY_TIMEOUT) -> None:
        """Return once the agent has answered. Raises AgentSilent."""
        self._call("guest-ping", timeout=timeout)

    def info(self) -> AgentInfo:
        """Ask which commands the agent knows and allows. The answer lists blocked commands as not enabled."""
        answer = _mapping(self._call("guest-info"), "guest-info")
        commands = answer.get("supported_commands")
        if not isinstance(commands, list):
            raise _protocol_error("guest-info", answer)
        allowed = {}
        for command in commands:
            entry = _mapping(command, "guest-info")
            allowed[_text(entry, "name", "guest-info")] = entry.get("enabled") is True
        return AgentInfo(version=_text(answer, "version", "guest-info"), commands=allowed)

    def require(self, *commands: str) -> None:
        """Raise AgentCommandBlocked unless the agent allows each of ``commands``; GuestFrozen while it is frozen."""
        allowed = self.info().commands
        blocked = [command for command in commands if not allowed.get(command, False)]
        if blocked:
            raise self.why_blocked(allowed, blocked)

    def why_blocked(self, allowed: Mapping[str, bool], blocked: Sequence[str]) -> FleetError:
        """What is in the way of commands that are not allowed: the agent's filter, or file systems that are frozen.

        While these are, the agent allows nothing but to thaw them.
        """
        if allowed.get("guest-fsfreeze-status") and not allowed.get("guest-file-open") and self.is_frozen():
            return frozen()
        return command_blocked(blocked)

    def is_frozen(self) -> bool:
        """Whether the guest's file systems are frozen."""
        answer = self._call("guest-fsfreeze-status")
        if answer not in ("frozen", "thawed"):
            raise _protocol_error("guest-fsfreeze-status", answer)
        return answer == "frozen"

    def thaw(self) -> None:
        """Thaw the guest's file systems."""
        self._call("guest-fsfreeze-thaw", timeout=THAW_TIMEOUT)

    def start(self, argv: Sequence[str], stdin: bytes | None = None) -> int:
        """Start a process and return its pid in the guest. Raises AgentCommandBlocked where guest-exec is forbidden."""
        arguments: dict[str, object] = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
        if stdin is not None:
            arguments["input-data"] = base64.b64encode(stdin).decode("ascii")
        try:
            answer = self._call("guest-exec", arguments)
        except AgentCommandFailed:
            # libvirt hands on the agent's words but not its error class, so the cause is asked for rather than read
            # out of the message.
            self.require("guest-exec", "guest-exec-status")
            raise
        return _number(_mapping(answer, "guest-exec"), "pid", "guest-exec")

    def status(self, pid: int) -> ProcessStatus:
        """Look at a process once. A process that has ended is forgotten by the agent when this has told its result.

        Raises CommandResultLost when the agent does not know the pid: it was restarted, or an earlier answer got lost.
        """
        try:
            answer = _mapping(self._call("guest-exec-status", {"pid": pid}), "guest-exec-status")
        except AgentCommandFailed as error:
            self.require("guest-exec-status")
            raise CommandResultLost(
                f"the guest agent no longer knows process {pid}",
                remedy="Look in the guest at what the command did; the agent was restarted while it ran, or its answer "
                "got lost on the way.",
                evidence={"agent": error.message},
            ) from error
        if answer.get("exited") is not True:
            return ProcessStatus(exited=False)
        return ProcessStatus(
            exited=True,
            exit_code=_number(answer, "exitcode", "guest-exec-status") if "exitcode" in answer else None,
            signal=_number(answer, "signal", "guest-exec-status") if "signal" in answer else None,
            stdout=_bytes(answer, "out-data", "guest-exec-status"),
            stderr=_bytes(answer, "err-data", "guest-exec-status"),
        )

    def run(self, argv: Sequence[str], *, timeout: float, stdin: bytes | None = None) -> Finished:
        """Run a process to its end.

        ``timeout`` is in seconds. Raises CommandTimeout, with the pid as evidence and the process still running, and
        CommandResultLost. An agent that falls silent in between, or a libvirt that does, is asked again until the
        deadline.
        """
        deadline = Deadline(self._clock, timeout)
        pid = self.start(argv, stdin)
        silence: FleetError | None = None
        for _tick in ticks(deadline, self._clock):
            try:
                status = self.status(pid)
            except FleetError as error:
                if not error.transient:
                    raise
                silence = error
                continue
            silence = None
            if status.exited:
                return Finished(status.exit_code, status.signal, status.stdout, status.stderr, deadline.elapsed)
        if silence:
            raise CommandResultLost(
                f"the command was started as process {pid}, and since then the guest agent has fallen silent",
                remedy="Look in the guest at what the command did before it is run again.",
                evidence={"pid": pid, "agent": silence.message},
            )
        raise CommandTimeout(
            f"the command has not ended after {timeout:g} s",
            remedy="Give it more time, or find out in the guest what it waits for.",
            evidence={"pid": pid},
        )

    def os_info(self) -> OsInfo:
        """Ask what system the guest runs. Raises AgentCommandBlocked."""
        answer = _mapping(self._permitted("guest-get-osinfo"), "guest-get-osinfo")

        def told(*keys: str) -> str:
            found = [_text(answer, key, "guest-get-osinfo") for key in keys if key in answer]
            return found[0] if found else ""

        return OsInfo(told("id"), told("pretty-name", "name"), told("version-id", "version"), told("kernel-release"))

    def file_systems(self) -> Sequence[FileSystem]:
        """Ask which file systems are mounted from disks. Raises AgentCommandBlocked."""
        answer = self._permitted("guest-get-fsinfo")
        if not isinstance(answer, list):
            raise _protocol_error("guest-get-fsinfo", answer)
        return [_file_system(_mapping(entry, "guest-get-fsinfo")) for entry in answer]

    def time(self) -> float:
        """What the guest's clock says, in seconds since the epoch. Raises AgentCommandBlocked."""
        answer = _mapping({"time": self._permitted("guest-get-time")}, "guest-get-time")
        return _number(answer, "time", "guest-get-time") / 1e9

    def set_time(self, seconds: float) -> None:
        """Set the guest's clock, in seconds since the epoch. Raises AgentCommandBlocked."""
        try:
            self._call("guest-set-time", {"time": int(seconds * 1e9)})
        except AgentCommandFailed:
            self.require("guest-set-time")
            raise

    def read_file(self, path: str, most: int) -> bytes | None:
        """All of a file, or None where there is none. One of more than ``most`` bytes is refused by GuestUnsupported.

        Raises AgentCommandBlocked, and AgentCommandFailed for what is there and cannot be read, as a directory.
        """
        _check_path(path)
        content = b""
        try:
            with self._opened(path, "r") as handle:
                ended = False
                while not ended and len(content) <= most:
                    part, ended = self._read_part(handle, min(FILE_CHUNK, most + 1 - len(content)))
                    content += part
        except AgentCommandFailed as error:
            if error.message.endswith(_NO_SUCH_FILE):
                return None
            self.require(*READ_COMMANDS)
            raise
        if len(content) > most:
            raise GuestUnsupported(
                f"{path} in the guest has more than {most} bytes",
                remedy="See in the guest what it is: a file that is read from here is small.",
                evidence={"path": path},
            )
        return content

    def write_file(self, path: str, content: bytes, *, in_place: bool) -> None:
        """Put ``content`` into a file from its beginning on, and have the guest's kernel take it.

        What stood there is cut off before; ``in_place`` writes over it instead, and keeps what is behind the end of
        ``content``. Only the first makes a file that is missing, with a mode that lets everybody write to it.
        Raises AgentCommandBlocked before anything is touched.
        """
        _check_path(path)
        self.require(*WRITE_COMMANDS)
        with self._opened(path, "r+" if in_place else "w") as handle:
            for start in range(0, len(content), FILE_CHUNK):
                self._write_part(handle, content[start : start + FILE_CHUNK])
            # Until now all of it may be in the agent's own buffer. A disk that is full is told here, or nowhere.
            self._call("guest-file-flush", {"handle": handle})

    @contextmanager
    def _opened(self, path: str, mode: str) -> Iterator[int]:
        answer = self._call("guest-file-open", {"path": path, "mode": mode})
        handle = _number({"handle": answer}, "handle", "guest-file-open")
        try:
            yield handle
        except FleetError:
            with suppress(FleetError):  # what went wrong first is what the user is told
                self._call("guest-file-close", {"handle": handle})
            raise
        self._call("guest-file-close", {"handle": handle})

    def _read_part(self, handle: int, count: int) -> tuple[bytes, bool]:
        """As much as there is, up to ``count`` bytes, and whether that was the end."""
        answer = _mapping(self._call("guest-file-read", {"handle": handle, "count": count}), "guest-file-read")
        part = _bytes(answer, "buf-b64", "guest-file-read")
        # Without either, the agent would be asked for ever.
        if len(part) > count or not (part or answer.get("eof") is True):
            raise _protocol_error("guest-file-read", answer)
        return part, answer.get("eof") is True

    def _write_part(self, handle: int, part: bytes) -> None:
        data = base64.b64encode(part).decode("ascii")
        answer = _mapping(self._call("guest-file-write", {"handle": handle, "buf-b64": data}), "guest-file-write")
        if _number(answer, "count", "guest-file-write") != len(part):
            raise AgentCommandFailed(
                "the guest agent has written a part of a file only",
                remedy="See whether the guest's file system has room left, and the file itself.",
                evidence={"bytes": len(part), "written": answer["count"]},
            )

    def _permitted(self, command: str) -> object:
        """The answer to a command that takes no arguments. Raises AgentCommandBlocked."""
        try:
            return self._call(command)
        except AgentCommandFailed:
            self.require(command)
            raise

    def _call(
        self, command: str, arguments: Mapping[str, object] | None = None, timeout: int = REPLY_TIMEOUT
    ) -> object:
        request: dict[str, object] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        reply = self._channel.exchange(json.dumps(request), timeout)
        try:
            answer = json.loads(reply)
        except ValueError as error:
            raise _protocol_error(command, reply) from error
        if not isinstance(answer, dict) or "return" not in answer:
            raise _protocol_error(command, answer)
        return answer["return"]


def frozen() -> GuestFrozen:
    """What is told of a guest whose file systems are frozen."""
    return GuestFrozen(
        "the guest's file systems are frozen, so its agent does nothing but thaw them",
        remedy="A backup may be at work on it: run again when it has ended. 'virsh domfsthaw' thaws it if nothing is.",
    )


def command_blocked(commands: Sequence[str]) -> AgentCommandBlocked:
    """What a guest is told whose agent does not allow these."""
    return AgentCommandBlocked(
        f"the guest agent does not allow {', '.join(commands)}",
        remedy="Allow it with the playbook kvm.fleet.enable_guest_exec or the module kvm.fleet.guest_agent_policy, "
        "which find the setting that blocks it, in whichever file this guest has it; or with "
        "kvm.fleet.agent_policy_local in the guest itself.",
        evidence={"blocked": list(commands)},
    )


def _mapping(value: object, command: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise _protocol_error(command, value)
    return value


def _text(answer: Mapping[str, object], key: str, command: str) -> str:
    value = answer.get(key)
    if not isinstance(value, str):
        raise _protocol_error(command, answer)
    return value


def _number(answer: Mapping[str, object], key: str, command: str) -> int:
    value = answer.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _protocol_error(command, answer)
    return value


def _bytes(answer: Mapping[str, object], key: str, command: str) -> bytes:
    if key not in answer:
        return b""
    try:
        # Its ValueError is binascii's too: text that is not ASCII is no base64 either.
        return base64.b64decode(_text(answer, key, command), validate=True)
    except ValueError as error:
        raise _protocol_error(command, answer) from error


def _file_system(entry: Mapping[str, object]) -> FileSystem:
    command = "guest-get-fsinfo"
    total, used = (_number(entry, key, command) if key in entry else None for key in ("total-bytes", "used-bytes"))
    return FileSystem(_text(entry, "mountpoint", command), _text(entry, "type", command), total, used)


def _check_path(path: str) -> None:
    if not path.startswith("/") or "\0" in path:
        raise InvalidRequest(f"{path!r} is no path of a file in a guest", remedy="Give an absolute path without NUL.")


def _protocol_error(command: str, answer: object) -> AgentProtocolError:
    return AgentProtocolError(
        f"the guest agent's answer to {command} is not of its protocol",
        remedy="See which program answers on the channel in the guest; it may be damaged or hostile.",
        evidence={"answer": repr(answer)[:500]},
    )
