# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A QEMU guest agent with a memory, as it looks from the hypervisor's end of its channel."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ansible_collections.kvm.fleet.plugins.module_utils._errors import AgentCommandFailed, AgentSilent
from ansible_collections.kvm.fleet.plugins.module_utils._exec import LAUNCHER, PLAIN_LAUNCHER
from tests.unit.fake_clock import FakeClock

COMMANDS = ("guest-ping", "guest-info", "guest-exec", "guest-exec-status")
FILE_COMMANDS = ("guest-file-open", "guest-file-read", "guest-file-write", "guest-file-flush", "guest-file-close")
LOOK_COMMANDS = ("guest-get-osinfo", "guest-get-fsinfo")
TIME_COMMANDS = ("guest-get-time", "guest-set-time")
SHUTDOWN = "guest-shutdown"
"""Asked for by libvirt, whose own function it is, and so only listed here."""
FREEZE_COMMANDS = ("guest-fsfreeze-status", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw")
WHILE_FROZEN = ("guest-fsfreeze-status", "guest-fsfreeze-thaw", "guest-info", "guest-ping")
"""What an agent of 7.2 allows, besides its guest-sync, while the guest is frozen."""
ALL_COMMANDS = (*COMMANDS, *FILE_COMMANDS, *LOOK_COMMANDS, *TIME_COMMANDS, *FREEZE_COMMANDS, SHUTDOWN)
DIRECTORIES = frozenset({"/", "/etc", "/etc/qemu", "/run"})


@dataclass(frozen=True)
class Call:
    """What guest-exec was asked to start."""

    argv: list[str]
    stdin: bytes

    @property
    def command(self) -> list[str]:
        """The command itself, behind the launcher and its 'env'."""
        if self.argv[2:3] not in ([LAUNCHER], [PLAIN_LAUNCHER]):
            return self.argv
        words = self.argv[6:]
        return list(itertools.dropwhile(lambda word: "=" in word, words[1:])) if words[0] == "env" else words


@dataclass(frozen=True)
class Ending:
    """How a process of the guest ends, and how many seconds after its start."""

    exit_code: int | None = 0
    signal: int | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    after: float = 0.0


NEVER = Ending(after=float("inf"))

Program = Callable[[Call], Ending]


def succeed(_call: Call) -> Ending:
    return Ending()


def in_turn(endings: Iterable[Ending]) -> Program:
    """A guest in which the processes end as listed, one after the other."""
    remaining = iter(endings)
    return lambda _call: next(remaining)


@dataclass
class _Handle:
    """An open file, and what was written to it and not flushed."""

    path: str
    mode: str
    position: int = 0
    written: bytes = b""


class FakeAgent:
    """Answers as qemu-ga does.

    A process that has ended is forgotten once its status was read, and all of them are when the agent restarts.
    ``program`` says how a process ends. An agent that is ``silent`` lets each request run into its timeout; of
    ``lost_answers`` many requests that it carries out, the answer gets lost on the way. ``files`` are the guest's by
    their paths; one that is None is there and may not be read. With ``disk_full`` no file of the guest can grow.
    Commands that are ``unknown`` its version does not have.
    The guest's clock is ahead of the hypervisor's by ``clock_offset`` seconds.
    """

    def __init__(self, clock: FakeClock, program: Program = succeed) -> None:
        self.program = program
        self.blocked: set[str] = set()
        self.unknown: set[str] = set()
        self.silent = False
        self.lost_answers = 0
        self.delay = 0.0
        self.made_up: dict[str, object] = {}
        self.requests: list[str] = []
        self.calls: list[Call] = []
        self.files: dict[str, bytes | None] = {}
        self.disk_full = False
        self.clock_offset = 0.0
        self.frozen = False
        self.os_info: dict[str, Any] = {
            "id": "debian",
            "name": "Debian GNU/Linux",
            "pretty-name": "Debian GNU/Linux 12 (bookworm)",
            "version-id": "12",
            "kernel-release": "6.1.0-37-amd64",
        }
        self.file_systems: list[dict[str, Any]] = [
            {"name": "vda", "mountpoint": "/", "type": "ext4", "total-bytes": 1000, "used-bytes": 400, "disk": []}
        ]
        self.handles: dict[int, _Handle] = {}
        self._next_handle = 1000
        self._clock = clock
        self._processes: dict[int, tuple[float, Ending]] = {}
        self._next_pid = 100

    def restart(self) -> None:
        self._processes.clear()
        self.handles.clear()

    def exchange(self, request: str, timeout: int) -> str:
        if self.silent or self.delay > timeout:
            raise self._silence(timeout)
        self._clock.advance(self.delay)
        message = json.loads(request)
        command, arguments = message["execute"], message.get("arguments", {})
        self.requests.append(command)
        if command in self.made_up:
            return json.dumps({"return": self.made_up[command]})
        if command not in ALL_COMMANDS or command in self.unknown:
            raise refusal(command, f"The command {command} has not been found")
        if command in self.blocked:
            raise refusal(command, f"Command {command} has been disabled")
        if self.frozen and command not in WHILE_FROZEN:
            raise refusal(command, f"Command {command} has been disabled: the agent is in frozen state")
        answers: dict[str, Callable[[], Any]] = {
            "guest-ping": dict,
            "guest-info": self._info,
            "guest-exec": lambda: self._exec(arguments),
            "guest-exec-status": lambda: self._status(arguments["pid"]),
            "guest-file-open": lambda: self._open(arguments["path"], arguments["mode"]),
            "guest-file-read": lambda: self._read(arguments["handle"], arguments["count"]),
            "guest-file-write": lambda: self._write(arguments["handle"], base64.b64decode(arguments["buf-b64"])),
            "guest-file-flush": lambda: self._flush("guest-file-flush", arguments["handle"]),
            "guest-file-close": lambda: self._close(arguments["handle"]),
            "guest-get-osinfo": lambda: self.os_info,
            "guest-get-fsinfo": lambda: self.file_systems,
            "guest-get-time": lambda: int((self._clock.now().timestamp() + self.clock_offset) * 1e9),
            "guest-set-time": lambda: self._set_time(arguments["time"]),
            "guest-fsfreeze-status": lambda: "frozen" if self.frozen else "thawed",
            "guest-fsfreeze-freeze": lambda: self._set_frozen(True),
            "guest-fsfreeze-thaw": lambda: self._set_frozen(False),
        }
        answer = answers[command]()
        if self.lost_answers:
            self.lost_answers -= 1
            raise self._silence(timeout)
        return json.dumps({"return": answer})

    def _silence(self, timeout: int) -> AgentSilent:
        self._clock.advance(timeout)
        return AgentSilent("Guest agent is not responding", remedy="See whether it runs.")

    def _info(self) -> dict[str, Any]:
        allowed = [name for name in (WHILE_FROZEN if self.frozen else ALL_COMMANDS) if name not in self.blocked]
        commands = [
            {"name": name, "enabled": name in allowed, "success-response": True}
            for name in ALL_COMMANDS
            if name not in self.unknown
        ]
        return {"version": "7.2.22", "supported_commands": commands}

    def _set_frozen(self, frozen: bool) -> int:
        was, self.frozen = self.frozen, frozen
        return int(was != frozen)

    def _set_time(self, nanoseconds: int) -> dict[str, Any]:
        self.clock_offset = nanoseconds / 1e9 - self._clock.now().timestamp()
        return {}

    def _exec(self, arguments: dict[str, Any]) -> dict[str, Any]:
        stdin = base64.b64decode(arguments.get("input-data", ""))
        call = Call([arguments["path"], *arguments.get("arg", [])], stdin)
        self.calls.append(call)
        ending = self.program(call)
        self._next_pid += 1
        self._processes[self._next_pid] = (self._clock.monotonic() + ending.after, ending)
        return {"pid": self._next_pid}

    def _status(self, pid: int) -> dict[str, Any]:
        if pid not in self._processes:
            raise refusal("guest-exec-status", "Invalid parameter 'pid'")
        ends_at, ending = self._processes[pid]
        if self._clock.monotonic() < ends_at:
            return {"exited": False}
        del self._processes[pid]
        answer: dict[str, Any] = {"exited": True}
        if ending.exit_code is not None:
            answer["exitcode"] = ending.exit_code
        if ending.signal is not None:
            answer["signal"] = ending.signal
        for key, output in (("out-data", ending.stdout), ("err-data", ending.stderr)):
            if output:
                answer[key] = base64.b64encode(output).decode("ascii")
        return answer

    def _open(self, path: str, mode: str) -> int:
        def cannot(why: str) -> AgentCommandFailed:
            return refusal("guest-file-open", f"failed to open file '{path}' (mode: '{mode}'): {why}")

        parent = path.rpartition("/")[0] or "/"
        if parent in self.files:
            raise cannot("Not a directory")
        if path not in self.files and path not in DIRECTORIES and (mode != "w" or parent not in DIRECTORIES):
            raise cannot("No such file or directory")
        if path in DIRECTORIES and mode != "r":
            raise cannot("Is a directory")
        if path in self.files and self.files[path] is None:
            raise cannot("Permission denied")
        if mode == "w":
            self.files[path] = b""
        self._next_handle += 1
        self.handles[self._next_handle] = _Handle(path, mode)
        return self._next_handle

    def _handle(self, command: str, handle: int) -> _Handle:
        if handle not in self.handles:
            raise refusal(command, f"handle '{handle}' has not been found")
        return self.handles[handle]

    def _read(self, handle: int, count: int) -> dict[str, Any]:
        opened = self._handle("guest-file-read", handle)
        content = self.files.get(opened.path)
        if content is None:
            raise refusal("guest-file-read", "failed to read file: Is a directory")
        part = content[opened.position : opened.position + count]
        opened.position += len(part)
        return {"count": len(part), "buf-b64": base64.b64encode(part).decode("ascii"), "eof": len(part) < count}

    def _write(self, handle: int, part: bytes) -> dict[str, Any]:
        opened = self._handle("guest-file-write", handle)
        if opened.mode == "r":
            raise refusal("guest-file-write", "failed to write to file: Bad file descriptor")
        opened.written += part
        return {"count": len(part), "eof": False}

    def _flush(self, command: str, handle: int) -> dict[str, Any]:
        opened = self._handle(command, handle)
        before, written = self.files.get(opened.path) or b"", opened.written
        if self.disk_full and opened.position + len(written) > len(before):
            opened.written = b""
            raise refusal(command, "failed to flush file: No space left on device")
        if opened.mode != "r":
            end = opened.position + len(written)
            self.files[opened.path] = before[: opened.position] + written + before[end:]
            opened.position, opened.written = end, b""
        return {}

    def _close(self, handle: int) -> dict[str, Any]:
        self._flush("guest-file-close", handle)
        del self.handles[handle]
        return {}


def refusal(command: str, words: str) -> AgentCommandFailed:
    """What becomes of an agent's error on its way through libvirt."""
    return AgentCommandFailed(
        f"internal error: unable to execute QEMU agent command '{command}': {words}", remedy="See libvirt's log."
    )
