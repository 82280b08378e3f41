# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The fake agent keeps the contract of the real one."""

from __future__ import annotations

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._errors import CommandResultLost
from tests.unit.contract.agent import AgentContract, OpenAgent
from tests.unit.fake_agent import NEVER, Call, Ending, FakeAgent, refusal
from tests.unit.fake_clock import FakeClock


def shell(call: Call) -> Ending:
    """As much of a shell as the contract asks for."""
    match call.argv:
        case ["/bin/cat"]:
            return Ending(stdout=call.stdin)
        case ["/bin/sleep", _seconds]:
            return NEVER
        case ["/bin/sh", "-c", "kill -9 $$"]:
            return Ending(None, signal=9)
        case ["/bin/sh", "-c", text] if text.endswith("exit 3"):
            return Ending(3, stdout=b"out\n", stderr=b"err\n")
        case [program, *_arguments] if program.startswith("/nonexistent"):
            raise refusal("guest-exec", f"Failed to execute child process '{program}' (No such file or directory)")
    return Ending()


class FakeDisk:
    """The files of all fake agents of a test."""

    directory = "/etc"

    def __init__(self) -> None:
        self.files: dict[str, bytes | None] = {}

    def put(self, path: str, content: bytes) -> None:
        self.files[path] = content

    def content(self, path: str) -> bytes | None:
        return self.files.get(path)


class TestFakeAgent(AgentContract):
    @pytest.fixture
    def disk(self) -> FakeDisk:
        return FakeDisk()

    @pytest.fixture
    def open_agent(self, clock: FakeClock, disk: FakeDisk) -> OpenAgent:
        def open_one(*blocked: str) -> GuestAgent:
            channel = FakeAgent(clock, shell)
            channel.files = disk.files
            channel.blocked.update(blocked)
            return GuestAgent(channel, clock)

        return open_one


def test_an_agent_that_restarts_forgets_its_processes(clock: FakeClock) -> None:
    channel = FakeAgent(clock)
    agent = GuestAgent(channel, clock)
    pid = agent.start(["/bin/true"])
    channel.restart()
    with pytest.raises(CommandResultLost):
        agent.status(pid)


def test_an_answer_that_gets_lost_takes_the_result_with_it(clock: FakeClock) -> None:
    channel = FakeAgent(clock, lambda _call: Ending(after=1))
    agent = GuestAgent(channel, clock)
    clock.after(1, lambda: setattr(channel, "lost_answers", 1))
    with pytest.raises(CommandResultLost):
        agent.run(["/bin/true"], timeout=60)
