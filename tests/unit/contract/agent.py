# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the collection relies on in a guest agent. The same tests run against the fake and against the real qemu-ga."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._agent import (
    FILE_CHUNK,
    GuestAgent,
    ProcessStatus,
)
from ansible_collections.kvm.fleet.plugins.module_utils._agent_files import AgentFiles
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    AgentCommandBlocked,
    AgentCommandFailed,
    CommandResultLost,
    CommandTimeout,
    GuestUnsupported,
    InvalidRequest,
)

OpenAgent = Callable[..., GuestAgent]
"""Opens an agent that refuses the named commands."""


class GuestDisk(Protocol):
    """The files of the guest, apart from its agent."""

    directory: str
    """One that is there, and is empty but for what a test puts there."""

    def put(self, path: str, content: bytes) -> None: ...

    def content(self, path: str) -> bytes | None: ...


class AgentContract:
    """Needs the fixtures ``open_agent``, an OpenAgent, and ``disk``, a GuestDisk."""

    def test_it_answers_a_ping(self, open_agent: OpenAgent) -> None:
        open_agent().ping()

    def test_it_tells_which_commands_it_allows(self, open_agent: OpenAgent) -> None:
        info = open_agent("guest-exec").info()
        assert info.version
        assert info.commands["guest-ping"] is True
        assert info.commands["guest-exec"] is False
        assert "guest-no-such-command" not in info.commands

    def test_it_tells_that_nothing_is_frozen(self, open_agent: OpenAgent) -> None:
        assert open_agent().is_frozen() is False

    def test_a_missing_permission_is_named(self, open_agent: OpenAgent) -> None:
        agent = open_agent("guest-exec", "guest-exec-status")
        agent.require("guest-ping")
        with pytest.raises(AgentCommandBlocked) as raised:
            agent.require("guest-ping", "guest-exec", "guest-exec-status")
        assert raised.value.message == "the guest agent does not allow guest-exec, guest-exec-status"
        assert raised.value.evidence == {"blocked": ["guest-exec", "guest-exec-status"]}

    def test_a_blocked_exec_is_told_from_one_that_failed(self, open_agent: OpenAgent) -> None:
        with pytest.raises(AgentCommandBlocked):
            open_agent("guest-exec").start(["/bin/true"])

    def test_a_blocked_status_is_told_from_a_lost_result(self, open_agent: OpenAgent) -> None:
        with pytest.raises(AgentCommandBlocked):
            open_agent("guest-exec-status").status(1)

    def test_a_program_that_does_not_exist_is_no_question_of_permission(self, open_agent: OpenAgent) -> None:
        with pytest.raises(AgentCommandFailed):
            open_agent().start(["/nonexistent/program"])

    def test_it_tells_exit_code_and_both_streams(self, open_agent: OpenAgent) -> None:
        finished = open_agent().run(["/bin/sh", "-c", "echo out; echo err >&2; exit 3"], timeout=30)
        assert (finished.exit_code, finished.signal) == (3, None)
        assert (finished.stdout, finished.stderr) == (b"out\n", b"err\n")

    def test_a_killed_process_has_a_signal_and_no_exit_code(self, open_agent: OpenAgent) -> None:
        finished = open_agent().run(["/bin/sh", "-c", "kill -9 $$"], timeout=30)
        assert (finished.exit_code, finished.signal) == (None, 9)

    def test_it_hands_over_standard_input(self, open_agent: OpenAgent) -> None:
        finished = open_agent().run(["/bin/cat"], timeout=30, stdin=b"\0binary\xff\n")
        assert finished.stdout == b"\0binary\xff\n"

    def test_a_status_is_read_once(self, open_agent: OpenAgent) -> None:
        agent = open_agent()
        pid = agent.start(["/bin/true"])
        while (status := agent.status(pid)) == ProcessStatus(exited=False):
            pass
        assert status == ProcessStatus(exited=True, exit_code=0)
        with pytest.raises(CommandResultLost) as raised:
            agent.status(pid)
        assert raised.value.message == f"the guest agent no longer knows process {pid}"
        assert "Invalid parameter 'pid'" in str(raised.value.evidence["agent"])

    def test_a_process_that_runs_has_not_ended(self, open_agent: OpenAgent) -> None:
        agent = open_agent()
        pid = agent.start(["/bin/sleep", "1000"])
        assert agent.status(pid) == ProcessStatus(exited=False)
        with pytest.raises(CommandTimeout):
            agent.run(["/bin/sleep", "1000"], timeout=0.2)
        agent.run(["/bin/sh", "-c", "kill $(pgrep -x -P $PPID sleep)"], timeout=30)

    # --- files --------------------------------------------------------------------------------------

    @pytest.mark.parametrize("size", [0, 1, FILE_CHUNK - 1, FILE_CHUNK, FILE_CHUNK + 1])
    def test_a_file_is_read_as_it_is(self, open_agent: OpenAgent, disk: GuestDisk, size: int) -> None:
        path = f"{disk.directory}/a file"
        disk.put(path, content := bytes(range(256)) * (size // 256) + b"x" * (size % 256))
        agent = open_agent()
        assert agent.read_file(path, FILE_CHUNK * 2) == content
        assert agent.read_file(path, max(size, 1)) == content

    def test_a_file_that_is_longer_than_asked_for_is_refused(self, open_agent: OpenAgent, disk: GuestDisk) -> None:
        path = f"{disk.directory}/file"
        disk.put(path, b"12345")
        with pytest.raises(GuestUnsupported, match=r"/file in the guest has more than 4 bytes\Z"):
            open_agent().read_file(path, 4)

    @pytest.mark.parametrize("missing", ["no", "no/such", "file/below", "no: No such file or directory"])
    def test_a_file_that_is_not_there_is_told_from_one_that_cannot_be_read(
        self, open_agent: OpenAgent, disk: GuestDisk, missing: str
    ) -> None:
        disk.put(f"{disk.directory}/file", b"")
        agent = open_agent()
        assert agent.read_file(f"{disk.directory}/{missing}", 10) is None
        with pytest.raises(AgentCommandFailed, match="Is a directory"):
            agent.read_file(disk.directory, 10)

    @pytest.mark.parametrize("blocked", ["guest-file-open", "guest-file-read", "guest-file-close"])
    def test_a_blocked_read_is_told_from_one_that_failed(
        self, open_agent: OpenAgent, disk: GuestDisk, blocked: str
    ) -> None:
        path = f"{disk.directory}/file"
        disk.put(path, b"1")
        with pytest.raises(AgentCommandBlocked) as raised:
            open_agent(blocked).read_file(path, 10)
        assert raised.value.evidence == {"blocked": [blocked]}

    @pytest.mark.parametrize("blocked", ["guest-file-open", "guest-file-write", "guest-file-flush", "guest-file-close"])
    def test_a_blocked_write_changes_nothing(self, open_agent: OpenAgent, disk: GuestDisk, blocked: str) -> None:
        path = f"{disk.directory}/file"
        disk.put(path, b"1")
        with pytest.raises(AgentCommandBlocked):
            open_agent(blocked).write_file(path, b"2", in_place=False)
        assert disk.content(path) == b"1"

    @pytest.mark.parametrize(
        ("in_place", "expected"),
        [(False, b"new"), (True, b"newer")],
    )
    def test_a_file_is_written_from_its_beginning(
        self, open_agent: OpenAgent, disk: GuestDisk, in_place: bool, expected: bytes
    ) -> None:
        path = f"{disk.directory}/file"
        disk.put(path, b"older")
        open_agent().write_file(path, b"new", in_place=in_place)
        assert disk.content(path) == expected

    def test_what_is_to_be_written_over_has_to_be_there(self, open_agent: OpenAgent, disk: GuestDisk) -> None:
        with pytest.raises(AgentCommandFailed):
            open_agent().write_file(f"{disk.directory}/new", b"x", in_place=True)
        assert disk.content(f"{disk.directory}/new") is None

    @pytest.mark.parametrize("path", ["", "etc/passwd", "/etc/pass\0wd"])
    def test_a_path_that_the_agent_would_take_for_another_is_refused(self, open_agent: OpenAgent, path: str) -> None:
        agent = open_agent()
        with pytest.raises(InvalidRequest):
            agent.read_file(path, 10)
        with pytest.raises(InvalidRequest):
            agent.write_file(path, b"", in_place=True)

    @pytest.mark.parametrize("content", [b"", b"short", b"just as long", b"quite a bit longer", b"x" * FILE_CHUNK * 2])
    def test_settings_are_replaced(self, open_agent: OpenAgent, disk: GuestDisk, content: bytes) -> None:
        path = f"{disk.directory}/file"
        disk.put(path, b"just as long")
        files = AgentFiles(open_agent())
        files.write(path, content)
        assert disk.content(path) == files.read(path) == content

    @pytest.mark.parametrize("path", ["new", "no/such"])
    def test_no_file_is_made_that_everybody_could_write_to(
        self, open_agent: OpenAgent, disk: GuestDisk, path: str
    ) -> None:
        with pytest.raises(GuestUnsupported):
            AgentFiles(open_agent()).write(f"{disk.directory}/{path}", b"x")
        assert disk.content(f"{disk.directory}/{path}") is None

    def test_a_directory_cannot_be_listed(self, open_agent: OpenAgent, disk: GuestDisk) -> None:
        assert AgentFiles(open_agent()).names(disk.directory) is None

    # --- what it tells of the guest -----------------------------------------------------------------

    def test_it_tells_what_system_it_runs_on(self, open_agent: OpenAgent) -> None:
        told = open_agent().os_info()
        assert told.id
        assert told.name
        assert told.kernel[0].isdigit()

    def test_it_tells_how_much_room_there_is(self, open_agent: OpenAgent) -> None:
        [root] = [found for found in open_agent().file_systems() if found.mountpoint == "/"]
        assert root.total is not None
        assert root.used is not None
        assert 0 < root.used < root.total

    @pytest.mark.parametrize("command", ["guest-get-osinfo", "guest-get-fsinfo"])
    def test_what_it_may_not_tell_is_named(self, open_agent: OpenAgent, command: str) -> None:
        agent = open_agent(command)
        ask = agent.os_info if command == "guest-get-osinfo" else agent.file_systems
        with pytest.raises(AgentCommandBlocked) as raised:
            ask()
        assert raised.value.evidence == {"blocked": [command]}
