# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What happens inside a guest, asked of its agent: the lab's own proof, apart from the product.

It shares no code with the collection, so that a mistake there cannot confirm itself here.
"""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import libvirt
import libvirt_qemu

from lab.errors import AgentFailed, CommandFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

ANSWER_WITHIN_S = 10
FILE_CHUNK = 48 * 1024


@dataclass(frozen=True)
class Outcome:
    """How a command inside a guest ended: `returncode`, or the `signal` that killed it."""

    returncode: int | None
    signal: int | None
    stdout: str
    stderr: str


def ask(domain: libvirt.virDomain, command: str, deadline_s: int = ANSWER_WITHIN_S, **arguments: Any) -> Any:
    """Send one agent command and return what it returns. Raises AgentFailed."""
    request = {"execute": command, "arguments": arguments}
    try:
        return json.loads(libvirt_qemu.qemuAgentCommand(domain, json.dumps(request), deadline_s, 0))["return"]
    except libvirt.libvirtError as error:
        raise AgentFailed(
            f"the agent of {domain.name()!r} did not do {command}: {error}",
            "look at the guest's console log and at its qemu-guest-agent.service",
        ) from error


def answers(domain: libvirt.virDomain) -> bool:
    """Whether the agent answers a ping now."""
    try:
        ask(domain, "guest-ping", deadline_s=2)
    except AgentFailed:
        return False
    return True


def execute(domain: libvirt.virDomain, argv: Sequence[str], stdin: bytes, deadline_s: float) -> Outcome:
    """Run a command and wait for its end. Raises AgentFailed past the deadline."""
    end = time.monotonic() + deadline_s
    program: dict[str, Any] = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
    if stdin:
        program["input-data"] = base64.b64encode(stdin).decode()
    pid = ask(domain, "guest-exec", **program)["pid"]
    pause = 0.02
    while True:
        status = ask(domain, "guest-exec-status", pid=pid)
        if status["exited"]:
            return Outcome(
                status.get("exitcode"),
                status.get("signal"),
                _text(status.get("out-data", "")),
                _text(status.get("err-data", "")),
            )
        if time.monotonic() >= end:
            raise AgentFailed(
                f"{' '.join(argv)} still runs in {domain.name()!r} after {deadline_s:.0f} s",
                "see what it waits for inside the guest",
            )
        time.sleep(pause)
        pause = min(2 * pause, 0.5)


def output(domain: libvirt.virDomain, argv: Sequence[str], deadline_s: float = 60) -> str:
    """The stdout of a command that has to succeed."""
    outcome = execute(domain, argv, b"", deadline_s)
    if outcome.returncode != 0:
        raise CommandFailed(f"in {domain.name()!r}: {' '.join(argv)}: {outcome}", "read what it complains about")
    return outcome.stdout


def read_file(domain: libvirt.virDomain, path: str) -> bytes:
    """The content of a file in the guest."""
    handle = ask(domain, "guest-file-open", path=path, mode="r")
    chunks = []
    try:
        while True:
            part = ask(domain, "guest-file-read", handle=handle, count=FILE_CHUNK)
            chunks.append(base64.b64decode(part["buf-b64"]))
            if part["eof"]:
                return b"".join(chunks)
    finally:
        ask(domain, "guest-file-close", handle=handle)


def write_file(domain: libvirt.virDomain, path: str, content: bytes) -> None:
    """Put a file in the guest."""
    handle = ask(domain, "guest-file-open", path=path, mode="w")
    try:
        for start in range(0, len(content), FILE_CHUNK):
            part = base64.b64encode(content[start : start + FILE_CHUNK]).decode()
            ask(domain, "guest-file-write", **{"handle": handle, "buf-b64": part})
    finally:
        ask(domain, "guest-file-close", handle=handle)


def package_versions(domain: libvirt.virDomain) -> dict[str, str]:
    """Every installed package and its version, from dpkg's own records."""
    lines = output(
        domain,
        ["/usr/bin/dpkg-query", "-W", "-f=${Package} ${Version} ${db:Status-Abbrev}\n"],
    ).splitlines()
    return {fields[0]: fields[1] for fields in map(str.split, lines) if fields[2] == "ii"}


def rpm_versions(domain: libvirt.virDomain) -> dict[str, str]:
    """Every package that was installed as an RPM and its version, from rpm's own records."""
    lines = output(domain, ["/usr/bin/rpm", "--query", "--all", "--queryformat=%{NAME} %{EVR}\n"]).splitlines()
    return dict(line.split() for line in lines)


def _text(data: str) -> str:
    return base64.b64decode(data).decode(errors="replace")
