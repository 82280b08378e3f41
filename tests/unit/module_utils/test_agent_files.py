# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files through the agent when something goes wrong; the contract of the agent has the rest."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._agent_files import AgentFiles
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    AgentCommandFailed,
    AgentSilent,
    FleetError,
    GuestUnsupported,
    ProofFailed,
)
from ansible_collections.kvm.fleet.plugins.module_utils._guest_files import MAX_FILE
from tests.unit.fake_agent import FakeAgent, refusal
from tests.unit.fake_clock import FakeClock

PATH = "/etc/qemu/qemu-ga.conf"
OLD = b"[general]\nverbose=true\n"


class Meddled:
    """A channel on which something happens right before a request."""

    def __init__(self, agent: FakeAgent, before: Callable[[str], None]) -> None:
        self._agent = agent
        self._before = before

    def exchange(self, request: str, timeout: int) -> str:
        self._before(json.loads(request)["execute"])
        return self._agent.exchange(request, timeout)


@pytest.fixture
def agent(clock: FakeClock) -> FakeAgent:
    fake = FakeAgent(clock)
    fake.files[PATH] = OLD
    return fake


def test_a_file_that_cannot_grow_stays_as_it_is(agent: FakeAgent, clock: FakeClock) -> None:
    agent.disk_full = True
    with pytest.raises(AgentCommandFailed, match="No space left on device"):
        AgentFiles(GuestAgent(agent, clock)).write(PATH, OLD * 2)
    assert agent.files[PATH] == OLD
    assert not agent.handles


@pytest.mark.parametrize("error", [refusal("guest-file-write", "Input/output error"), AgentSilent("no", remedy="")])
@pytest.mark.parametrize("content", [b"", b"short", OLD * 2])
def test_a_write_that_fails_in_between_leaves_the_old_content(
    agent: FakeAgent, clock: FakeClock, error: FleetError, content: bytes
) -> None:
    left = [error]

    def fail_once(command: str) -> None:
        if command == "guest-file-flush" and left:
            raise left.pop()

    with pytest.raises(type(error)):
        AgentFiles(GuestAgent(Meddled(agent, fail_once), clock)).write(PATH, content)
    assert agent.files[PATH] == OLD
    assert not agent.handles


def test_an_agent_that_goes_away_for_good_is_told_by_its_first_error(agent: FakeAgent, clock: FakeClock) -> None:
    def vanish(command: str) -> None:
        agent.silent = agent.silent or command == "guest-file-write"

    with pytest.raises(AgentSilent):
        AgentFiles(GuestAgent(Meddled(agent, vanish), clock)).write(PATH, OLD * 2)
    assert agent.files[PATH] == OLD, "a file that grows is never empty"


def test_a_file_that_reads_differently_afterwards_is_no_success(agent: FakeAgent, clock: FakeClock) -> None:
    def meddle(command: str) -> None:
        if command == "guest-file-read" and agent.files[PATH] != OLD:
            agent.files[PATH] = b"somebody else's"

    with pytest.raises(ProofFailed, match=f"{PATH} was written in the guest, and reads differently now"):
        AgentFiles(GuestAgent(Meddled(agent, meddle), clock)).write(PATH, b"ours")
    assert agent.files[PATH] == b"somebody else's"


def test_a_file_that_may_not_be_read_is_not_written(agent: FakeAgent, clock: FakeClock) -> None:
    agent.files[PATH] = None
    with pytest.raises(AgentCommandFailed, match="Permission denied"):
        AgentFiles(GuestAgent(agent, clock)).write(PATH, b"x")
    assert "guest-file-write" not in agent.requests


def test_settings_without_end_are_refused(agent: FakeAgent, clock: FakeClock) -> None:
    agent.files[PATH] = b"x" * (MAX_FILE + 1)
    files = AgentFiles(GuestAgent(agent, clock))
    with pytest.raises(GuestUnsupported):
        files.read(PATH)
    agent.files[PATH] = b"x" * MAX_FILE
    assert files.read(PATH) == agent.files[PATH]
