# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest agent whose guest is the machine that runs the tests: what it is asked to run, it really runs."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.unit.fake_agent import COMMANDS, refusal


class _Process:
    """A process whose output is read to its end, as the agent does."""

    def __init__(self, argv: list[str], stdin: bytes, environment: Mapping[str, str]) -> None:
        self.popen = subprocess.Popen(
            argv, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.output = (b"", b"")
        self._reader = threading.Thread(target=self._read, args=(stdin,), daemon=True)
        self._reader.start()

    def _read(self, stdin: bytes) -> None:
        self.output = self.popen.communicate(stdin)

    @property
    def ended(self) -> bool:
        return not self._reader.is_alive()

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.kill()
        self._reader.join()


class HostAgent:
    """Answers like qemu-ga, with programs in ``path`` before those of the system."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environment = {"PATH": f"{path}:/usr/sbin:/usr/bin:/sbin:/bin"}
        self.on_end: Callable[[], None] | None = None
        """Called in place of the next answer about a process that has ended, which is lost for good."""
        self._processes: dict[int, _Process] = {}

    def exchange(self, request: str, timeout: int) -> str:
        assert timeout > 0
        message = json.loads(request)
        return json.dumps({"return": self._answer(message["execute"], message.get("arguments", {}))})

    def install(self, name: str, script: str) -> None:
        """Put a program for /bin/sh into the guest's PATH."""
        program = self.path / name
        program.write_text(f"#!/bin/sh\n{script}", encoding="utf-8")
        program.chmod(0o755)

    def end(self) -> None:
        """End whatever a test has left running."""
        for process in self._processes.values():
            process.end()

    def _answer(self, command: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if command == "guest-info":
            return {"version": "0", "supported_commands": [{"name": name, "enabled": True} for name in COMMANDS]}
        if command == "guest-exec":
            stdin = base64.b64decode(arguments.get("input-data", ""))
            process = _Process([arguments["path"], *arguments["arg"]], stdin, self.environment)
            self._processes[process.popen.pid] = process
            return {"pid": process.popen.pid}
        assert command == "guest-exec-status"
        if arguments["pid"] not in self._processes:
            raise refusal(command, "Invalid parameter 'pid'")
        return self._status(arguments["pid"])

    def _status(self, pid: int) -> dict[str, Any]:
        process = self._processes[pid]
        if not process.ended:
            return {"exited": False}
        del self._processes[pid]
        if self.on_end:
            lost, self.on_end = self.on_end, None
            lost()
            raise refusal("guest-exec-status", "Invalid parameter 'pid'")
        code = process.popen.returncode
        stdout, stderr = (base64.b64encode(stream).decode("ascii") for stream in process.output)
        return {
            "exited": True,
            **({"exitcode": code} if code >= 0 else {"signal": -code}),
            **({"out-data": stdout} if stdout else {}),
            **({"err-data": stderr} if stderr else {}),
        }


@contextmanager
def host_agent(path: Path) -> Iterator[HostAgent]:
    path.mkdir()
    agent = HostAgent(path)
    try:
        yield agent
    finally:
        agent.end()
