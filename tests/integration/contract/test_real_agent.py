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
from ansible_collections.kvm.fleet.plugins.module_utils._clock import SystemClock
from ansible_collections.kvm.fleet.plugins.module_utils._errors import AgentCommandFailed, CommandResultLost
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


class TestRealAgent(AgentContract):
    pass


def test_an_agent_that_restarts_forgets_its_processes(open_agent: OpenAgent) -> None:
    pid = open_agent().start(["/bin/true"])
    with pytest.raises(CommandResultLost):
        open_agent().status(pid)
