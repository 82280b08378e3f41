# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one place that speaks the QEMU guest agent's protocol.

What a guest answers is untrusted: it is parsed strictly, and an answer outside the protocol is an error.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping, Sequence
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
)

T = TypeVar("T")

REPLY_TIMEOUT = 15
"""Seconds that one answer may take. Every request used here is answered at once by an agent that is alive."""


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
        """Raise AgentCommandBlocked unless the agent allows each of ``commands``."""
        allowed = self.info().commands
        blocked = [command for command in commands if not allowed.get(command, False)]
        if blocked:
            raise AgentCommandBlocked(
                f"the guest agent does not allow {', '.join(blocked)}",
                remedy="Allow it in the guest (--allow-rpcs or --block-rpcs in /etc/sysconfig/qemu-ga, DAEMON_ARGS in "
                "/etc/default/qemu-guest-agent, or /etc/qemu/qemu-ga.conf) and restart the agent there.",
                evidence={"blocked": blocked},
            )

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
            stdout=_bytes(answer, "out-data"),
            stderr=_bytes(answer, "err-data"),
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


def _bytes(answer: Mapping[str, object], key: str) -> bytes:
    if key not in answer:
        return b""
    try:
        return base64.b64decode(_text(answer, key, "guest-exec-status"), validate=True)
    except binascii.Error as error:
        raise _protocol_error("guest-exec-status", answer) from error


def _protocol_error(command: str, answer: object) -> AgentProtocolError:
    return AgentProtocolError(
        f"the guest agent's answer to {command} is not of its protocol",
        remedy="See which program answers on the channel in the guest; it may be damaged or hostile.",
        evidence={"answer": repr(answer)[:500]},
    )
