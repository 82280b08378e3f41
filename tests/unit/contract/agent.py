# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the collection relies on in a guest agent. The same tests run against the fake and against the real qemu-ga."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent, ProcessStatus
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    AgentCommandBlocked,
    AgentCommandFailed,
    CommandResultLost,
    CommandTimeout,
)

OpenAgent = Callable[..., GuestAgent]
"""Opens an agent that refuses the named commands."""


class AgentContract:
    """Needs the fixture ``open_agent``, an OpenAgent."""

    def test_it_answers_a_ping(self, open_agent: OpenAgent) -> None:
        open_agent().ping()

    def test_it_tells_which_commands_it_allows(self, open_agent: OpenAgent) -> None:
        info = open_agent("guest-exec").info()
        assert info.version
        assert info.commands["guest-ping"] is True
        assert info.commands["guest-exec"] is False
        assert "guest-no-such-command" not in info.commands

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
