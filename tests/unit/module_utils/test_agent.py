# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The agent's protocol, strictly: what a guest answers is untrusted."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent, ProcessStatus
from ansible_collections.kvm.fleet.plugins.module_utils._clock import Deadline
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    AgentProtocolError,
    AgentSilent,
    CommandResultLost,
    CommandTimeout,
    FleetError,
    PackageManagerLocked,
)
from tests.unit.fake_agent import NEVER, Call, Ending, FakeAgent, in_turn
from tests.unit.fake_clock import FakeClock


class Recorded:
    """A channel on which a recorded answer comes, whatever is asked."""

    def __init__(self, reply: str) -> None:
        self.reply = reply
        self.request = ""

    def exchange(self, request: str, timeout: int) -> str:
        assert timeout > 0
        self.request = request
        return self.reply


Ask = Callable[[GuestAgent], object]


def ping(agent: GuestAgent) -> object:
    agent.ping()
    return None


def info(agent: GuestAgent) -> object:
    return agent.info()


def start(agent: GuestAgent) -> object:
    return agent.start(["/bin/true"])


def status(agent: GuestAgent) -> object:
    return agent.status(7)


def os_info(agent: GuestAgent) -> object:
    return agent.os_info()


def file_systems(agent: GuestAgent) -> object:
    return agent.file_systems()


def read_file(agent: GuestAgent) -> object:
    return agent.read_file("/x", 10)


def read_part(agent: GuestAgent) -> object:
    """As read_file does once the file is open."""
    return agent._read_part(1000, 10)


def write_part(agent: GuestAgent) -> object:
    agent._write_part(1000, b"ab")
    return None


@pytest.mark.parametrize(
    ("ask", "reply"),
    [
        (ping, ""),
        (ping, "not json"),
        (ping, '{"return": {}'),
        (ping, "[]"),
        (ping, "null"),
        (ping, '{"error": {"desc": "x"}}'),
        (info, '{"return": []}'),
        (info, '{"return": {"version": "7"}}'),
        (info, '{"return": {"version": 7, "supported_commands": []}}'),
        (info, '{"return": {"version": "7", "supported_commands": {}}}'),
        (info, '{"return": {"version": "7", "supported_commands": ["guest-ping"]}}'),
        (info, '{"return": {"version": "7", "supported_commands": [{"name": 1, "enabled": true}]}}'),
        (start, '{"return": {}}'),
        (start, '{"return": {"pid": "7"}}'),
        (start, '{"return": {"pid": true}}'),
        (start, '{"return": {"pid": 7.5}}'),
        (start, '{"return": [7]}'),
        (status, '{"return": 0}'),
        (status, '{"return": {"exited": true, "exitcode": "0"}}'),
        (status, '{"return": {"exited": true, "exitcode": false}}'),
        (status, '{"return": {"exited": true, "signal": null}}'),
        (status, '{"return": {"exited": true, "exitcode": 0, "out-data": 5}}'),
        (status, '{"return": {"exited": true, "exitcode": 0, "out-data": "*"}}'),
        (status, '{"return": {"exited": true, "exitcode": 0, "err-data": "YQ"}}'),
        (status, '{"return": {"exited": true, "exitcode": 0, "err-data": "ä"}}'),
        (os_info, '{"return": []}'),
        (os_info, '{"return": {"id": 7}}'),
        (os_info, '{"return": {"kernel-release": null}}'),
        (file_systems, '{"return": {}}'),
        (file_systems, '{"return": ["/"]}'),
        (file_systems, '{"return": [{"mountpoint": "/"}]}'),
        (file_systems, '{"return": [{"mountpoint": "/", "type": "ext4", "used-bytes": "7"}]}'),
        (file_systems, '{"return": [{"mountpoint": "/", "type": "ext4", "total-bytes": 1.5}]}'),
        (read_file, '{"return": {}}'),
        (read_file, '{"return": "1000"}'),
        (read_file, '{"return": true}'),
        (read_part, '{"return": 7}'),
        (read_part, '{"return": {}}'),
        (read_part, '{"return": {"count": 0, "buf-b64": "", "eof": false}}'),
        (read_part, '{"return": {"count": 11, "buf-b64": "MDEyMzQ1Njc4OTA=", "eof": true}}'),
        (read_part, '{"return": {"count": 1, "buf-b64": "*", "eof": true}}'),
        (write_part, '{"return": {}}'),
        (write_part, '{"return": {"count": "2"}}'),
    ],
)
def test_an_answer_outside_the_protocol_is_an_error(clock: FakeClock, ask: Ask, reply: str) -> None:
    with pytest.raises(AgentProtocolError, match=r"\Athe guest agent's answer to guest-[a-z-]+ is not of its protocol"):
        ask(GuestAgent(Recorded(reply), clock))


def test_the_evidence_of_a_flood_is_short(clock: FakeClock) -> None:
    with pytest.raises(AgentProtocolError) as raised:
        GuestAgent(Recorded("x" * 1_000_000), clock).ping()
    assert len(str(raised.value.evidence)) < 600


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ('{"exited": false}', ProcessStatus(exited=False)),
        ('{"exited": "yes"}', ProcessStatus(exited=False)),
        ('{"exited": true, "exitcode": 3}', ProcessStatus(True, exit_code=3)),
        ('{"exited": true, "signal": 9}', ProcessStatus(True, signal=9)),
        (
            '{"exited": true, "exitcode": 0, "out-data": "YQ==", "err-data": "Yg==", "out-truncated": true}',
            ProcessStatus(True, exit_code=0, stdout=b"a", stderr=b"b"),
        ),
    ],
)
def test_a_process_status_is_read(clock: FakeClock, reply: str, expected: ProcessStatus) -> None:
    assert GuestAgent(Recorded(f'{{"return": {reply}}}'), clock).status(7) == expected


def test_what_is_started_is_handed_over_as_data(clock: FakeClock) -> None:
    channel = Recorded('{"return": {"pid": 7}}')
    assert GuestAgent(channel, clock).start(["/bin/echo", '"; rm', "ü"], stdin=b"\0\xff") == 7
    assert json.loads(channel.request) == {
        "execute": "guest-exec",
        "arguments": {"path": "/bin/echo", "arg": ['"; rm', "ü"], "capture-output": True, "input-data": "AP8="},
    }


def test_silence_is_waited_out_until_the_deadline(clock: FakeClock) -> None:
    """The agent is gone for a while in the middle of the command, and back before the deadline."""

    def program(_call: Call) -> Ending:
        clock.after(1, lambda: setattr(agent, "silent", True))
        clock.after(50, lambda: setattr(agent, "silent", False))
        return Ending(5, after=20)

    agent = FakeAgent(clock, program)
    finished = GuestAgent(agent, clock).run(["make"], timeout=100)
    assert finished.exit_code == 5
    assert 50 <= finished.duration <= 100


def test_an_agent_that_stays_silent_is_what_is_reported(clock: FakeClock) -> None:
    def program(_call: Call) -> Ending:
        clock.after(1, lambda: setattr(agent, "silent", True))
        return Ending(after=20)

    agent = FakeAgent(clock, program)
    with pytest.raises(AgentSilent):
        GuestAgent(agent, clock).run(["make"], timeout=100)


def test_a_result_that_is_lost_is_told_at_once(clock: FakeClock) -> None:
    """Waiting until the deadline would not bring it back."""
    agent = FakeAgent(clock, in_turn([Ending(after=60)]))
    clock.after(2, agent.restart)
    deadline = Deadline(clock, 3600)
    with pytest.raises(CommandResultLost):
        GuestAgent(agent, clock).run(["make"], timeout=3600)
    assert deadline.elapsed < 10


def test_a_command_that_does_not_end_is_a_timeout_with_its_pid(clock: FakeClock) -> None:
    with pytest.raises(CommandTimeout) as raised:
        GuestAgent(FakeAgent(clock, in_turn([NEVER])), clock).run(["sleep"], timeout=7.5)
    assert raised.value.message == "the command has not ended after 7.5 s"
    assert raised.value.evidence == {"pid": 101}


def test_a_command_that_ends_at_the_deadline_itself_is_still_seen(clock: FakeClock) -> None:
    agent = FakeAgent(clock, in_turn([Ending(3, after=10)]))
    assert GuestAgent(agent, clock).run(["make"], timeout=10).exit_code == 3


# --- patience ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        AgentSilent("no", remedy=""),
        CommandResultLost("no", remedy=""),
        PackageManagerLocked("no", remedy=""),
    ],
)
def test_what_passes_by_itself_is_tried_again_until_patience_ends(clock: FakeClock, error: FleetError) -> None:
    tries = []

    def attempt() -> str:
        tries.append(clock.monotonic())
        if clock.monotonic() < 1020:
            raise error
        return "done"

    assert GuestAgent(FakeAgent(clock), clock, patience=60).patiently(attempt) == "done"
    assert len(tries) == 21
    tries.clear()
    with pytest.raises(type(error)):
        GuestAgent(FakeAgent(clock), clock, patience=60).patiently(lambda: raising(error, tries))
    assert 60 <= len(tries) <= 62


def raising(error: FleetError, tries: list[float]) -> None:
    tries.append(0)
    raise error


@pytest.mark.parametrize("error", [CommandTimeout("no", remedy=""), AgentProtocolError("no", remedy="")])
def test_what_does_not_pass_is_told_at_once(clock: FakeClock, error: FleetError) -> None:
    tries: list[float] = []
    with pytest.raises(type(error)):
        GuestAgent(FakeAgent(clock), clock, patience=60).patiently(lambda: raising(error, tries))
    assert len(tries) == 1


def test_an_agent_without_patience_is_asked_once(clock: FakeClock) -> None:
    tries: list[float] = []
    with pytest.raises(AgentSilent):
        GuestAgent(FakeAgent(clock), clock).patiently(lambda: raising(AgentSilent("no", remedy=""), tries))
    assert (len(tries), clock.waits) == (1, [])
