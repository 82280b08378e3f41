# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The real qemu-ga keeps the contract that the unit tests' fake keeps."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._agent_files import AgentFiles
from ansible_collections.kvm.fleet.plugins.module_utils._clock import SystemClock
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    AgentCommandFailed,
    CommandResultLost,
    GuestUnsupported,
)
from lab.agent import local_agent
from tests.unit.contract.agent import AgentContract, OpenAgent


class SocketChannel:
    """An agent's channel as a unix socket. An error of the agent leaves as libvirt would hand it on."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def exchange(self, request: str, timeout: int) -> str:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(str(self._path))
            connection.sendall(f"{request}\n".encode())
            with connection.makefile(encoding="utf-8") as answers:
                reply = answers.readline()
        answer = json.loads(reply)
        if "error" in answer:
            raise AgentCommandFailed(answer["error"]["desc"], remedy="See libvirt's log.")
        return reply


@pytest.fixture
def open_agent() -> Iterator[OpenAgent]:
    with ExitStack() as agents:

        def open_one(*blocked: str) -> GuestAgent:
            return GuestAgent(SocketChannel(agents.enter_context(local_agent(blocked))), SystemClock())

        yield open_one


class HostDisk:
    """The agent's guest is this machine."""

    def __init__(self, directory: Path) -> None:
        self.directory = str(directory)

    def put(self, path: str, content: bytes) -> None:
        Path(path).write_bytes(content)

    def content(self, path: str) -> bytes | None:
        return Path(path).read_bytes() if Path(path).exists() else None


class TestRealAgent(AgentContract):
    @pytest.fixture
    def disk(self, tmp_path: Path) -> HostDisk:
        return HostDisk(tmp_path)


def test_an_agent_that_restarts_forgets_its_processes(open_agent: OpenAgent) -> None:
    pid = open_agent().start(["/bin/true"])
    with pytest.raises(CommandResultLost):
        open_agent().status(pid)


def test_a_file_that_it_makes_can_be_changed_by_everybody(open_agent: OpenAgent, tmp_path: Path) -> None:
    """Why AgentFiles makes none."""
    open_agent().write_file(str(tmp_path / "new"), b"x", in_place=False)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o666


def test_an_existing_file_keeps_its_mode(open_agent: OpenAgent, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"longer")
    path.chmod(0o640)
    before, files = path.stat(), AgentFiles(open_agent())
    for content in (b"short", b"longer than before"):
        files.write(str(path), content)
        after = path.stat()
        assert (after.st_mode, after.st_ino, after.st_uid) == (before.st_mode, before.st_ino, before.st_uid)


def test_a_disk_that_is_full_is_told(open_agent: OpenAgent) -> None:
    with pytest.raises(AgentCommandFailed, match="No space left on device"):
        open_agent().write_file("/dev/full", b"x", in_place=True)


def test_what_has_no_end_is_not_read_for_ever(open_agent: OpenAgent) -> None:
    with pytest.raises(GuestUnsupported):
        open_agent().read_file("/dev/zero", 1000)
