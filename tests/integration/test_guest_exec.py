# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""guest_exec on a real guest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lab.clock import wait_until
from lab.guests import READY_WITHIN_S
from tests.integration.proof import stop_agent
from tests.integration.runs import module, refusal

if TYPE_CHECKING:
    from lab.fixtures import MakeGuest
    from lab.guests import Guest


def run(guest: Guest, *argv: str, **options: Any) -> dict[str, Any]:
    return module("guest_exec", name=guest.name, argv=list(argv), **options)


def script(guest: Guest, text: str, **options: Any) -> dict[str, Any]:
    return module("guest_exec", name=guest.name, script=text, **options)


# --- what a command is given and what it gives back ----------------------------------------------


def test_arguments_arrive_as_they_are(shared_guest: Guest) -> None:
    result = run(shared_guest, "printf", "%s\n", "two words", "$HOME", "*", "a'b\"c", "ä", "", "-n")
    assert result["stdout_lines"] == ["two words", "$HOME", "*", "a'b\"c", "ä", "", "-n"]
    assert (result["rc"], result["signal"], result["stderr"], result["changed"]) == (0, None, "", True)
    assert result["stdout_truncated"] is result["stderr_truncated"] is False
    assert 0 < result["duration"] < 30


def test_script_runs_in_a_shell(shared_guest: Guest) -> None:
    result = script(shared_guest, "for word in a b; do echo $word; done | tac; echo oops >&2")
    assert result["stdout_lines"] == ["b", "a"]
    assert result["stderr"] == "oops\n"


def test_standard_input(shared_guest: Guest) -> None:
    text = "zwei Wörter\n\nund kein Zeilenende"
    assert run(shared_guest, "cat", stdin=text)["stdout"] == text


def test_standard_input_is_empty_by_default(shared_guest: Guest) -> None:
    assert run(shared_guest, "wc", "-c")["stdout"] == "0\n"


def test_directory(shared_guest: Guest) -> None:
    assert run(shared_guest, "pwd", chdir="/usr/share")["stdout"] == "/usr/share\n"


def test_a_missing_directory_runs_nothing(shared_guest: Guest) -> None:
    result = refusal("guest_exec", name=shared_guest.name, script="echo ran", chdir="/nonexistent")
    assert (result["rc"], result["stdout"]) == (125, "")


def test_environment_is_added_to_the_agents(shared_guest: Guest) -> None:
    result = script(shared_guest, 'echo "$FLEET"; echo "$PATH"', environment={"FLEET": "a b'c\"$d"})
    first, path = result["stdout_lines"]
    assert first == "a b'c\"$d"
    assert "/usr/bin" in path


def test_output_that_is_no_text_is_replaced(shared_guest: Guest) -> None:
    result = run(shared_guest, "printf", r"a\377b\000c")
    assert result["stdout"] == "a\N{REPLACEMENT CHARACTER}b\0c"


def test_nothing_a_guest_prints_is_templated(shared_guest: Guest) -> None:
    assert run(shared_guest, "echo", "-n", "{{ 1 + 1 }}")["stdout"] == "{{ 1 + 1 }}"


def test_a_failed_command(shared_guest: Guest) -> None:
    result = refusal("guest_exec", name=shared_guest.name, script="echo out; echo err >&2; exit 3")
    assert (result["error_code"], result["rc"], result["signal"]) == ("command_failed", 3, None)
    assert (result["stdout"], result["stderr"]) == ("out\n", "err\n")


def test_a_command_that_does_not_exist(shared_guest: Guest) -> None:
    result = refusal("guest_exec", name=shared_guest.name, argv=["/nonexistent/program"])
    assert (result["error_code"], result["rc"]) == ("command_failed", 127)
    assert "/nonexistent/program" in result["stderr"]


def test_a_command_that_a_signal_ends(shared_guest: Guest) -> None:
    result = refusal("guest_exec", name=shared_guest.name, script="kill -KILL $$")
    assert (result["error_code"], result["rc"], result["signal"]) == ("command_killed", None, 9)


# --- limits --------------------------------------------------------------------------------------


def test_the_deadline_ends_a_command_with_its_children(shared_guest: Guest) -> None:
    # Two children, one of which ignores SIGTERM. The marks in their names are looked for afterwards.
    text = "sleep 4401 & (trap '' TERM; exec sleep 4402) & wait"
    result = refusal("guest_exec", name=shared_guest.name, script=text, timeout=2)
    assert result["error_code"] == "command_timeout"
    assert result["evidence"]["ended"] is True
    running = shared_guest.output("/bin/sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    assert "4401" not in running
    assert "4402" not in running


def test_long_output_is_cut_where_asked(shared_guest: Guest) -> None:
    result = script(shared_guest, "printf 0123456789; printf abc >&2", max_output=4)
    assert (result["stdout"], result["stdout_truncated"]) == ("0123", True)
    assert (result["stderr"], result["stderr_truncated"]) == ("abc", False)


def test_output_of_just_the_size_is_not_cut(shared_guest: Guest) -> None:
    result = script(shared_guest, "printf 0123", max_output=4)
    assert (result["stdout"], result["stdout_truncated"]) == ("0123", False)


def test_twenty_megabytes_of_output_do_not_break_the_agent(shared_guest: Guest) -> None:
    text = "head -c 20000000 /dev/zero | tr '\\0' x; head -c 20000000 /dev/zero | tr '\\0' y >&2; echo end >&2"
    result = script(shared_guest, text, max_output=1_500_000, timeout=300)
    assert result["rc"] == 0
    assert (result["stdout"], result["stdout_truncated"]) == ("x" * 1_500_000, True)
    assert (result["stderr"], result["stderr_truncated"]) == ("y" * 1_500_000, True)
    assert wait_until(shared_guest.answers, READY_WITHIN_S)


def test_a_background_child_does_not_keep_a_command_from_ending(shared_guest: Guest) -> None:
    result = script(shared_guest, "sleep 60 >/dev/null 2>&1 & echo started", timeout=30)
    assert (result["rc"], result["stdout"]) == (0, "started\n")


def test_no_pipe_is_left_in_the_guest(shared_guest: Guest) -> None:
    assert script(shared_guest, "true")["rc"] == 0
    assert shared_guest.output("/bin/sh", "-c", "ls -d /run/kvm-fleet* || true") == ""


# --- creates, removes, check mode ----------------------------------------------------------------


def test_creates_and_removes(pristine_guest: Guest) -> None:
    touch: dict[str, Any] = {"argv": ["touch", "/root/made here"], "creates": "/root/made h*"}
    remove: dict[str, Any] = {"argv": ["rm", "/root/made here"], "removes": "/root/made here"}

    def changed(options: dict[str, Any], *, check: bool = False) -> bool:
        result = module("guest_exec", check=check, name=pristine_guest.name, **options)
        assert not result["failed"], result
        return bool(result["changed"])

    def there() -> bool:
        return pristine_guest.run("/bin/test", "-e", "/root/made here").returncode == 0

    assert (changed(remove), there()) == (False, False)
    assert (changed(touch, check=True), there()) == (True, False)
    assert (changed(touch), there()) == (True, True)
    assert (changed(touch), there()) == (False, True)
    assert (changed(touch, check=True), there()) == (False, True)
    assert (changed(remove, check=True), there()) == (True, True)
    relative = {**remove, "chdir": "/root", "removes": "made here"}
    assert (changed({**relative, "chdir": "/"}), there()) == (False, True)
    assert (changed(relative), there()) == (True, False)


# --- why a command cannot be run -----------------------------------------------------------------


def test_a_guest_is_found_by_its_whole_name_only(make_guest: MakeGuest) -> None:
    make_guest("exec-vm10", start=False)
    result = refusal("guest_exec", name="exec-vm1", argv=["true"])
    assert result["error_code"] == "domain_not_found"
    assert "'exec-vm1'" in result["msg"]
    assert "exec-vm10" in result["evidence"]["domains"]


def test_a_guest_that_is_off(make_guest: MakeGuest) -> None:
    guest = make_guest(start=False)
    for check in (True, False):
        result = refusal("guest_exec", check=check, name=guest.name, argv=["true"])
        assert (result["error_code"], result["evidence"]["state"]) == ("domain_not_running", "shut_off")
        assert guest.process() is None


def test_a_guest_that_is_paused(pristine_guest: Guest) -> None:
    pristine_guest.domain.suspend()
    result = refusal("guest_exec", name=pristine_guest.name, argv=["true"])
    assert (result["error_code"], result["evidence"]["state"]) == ("domain_not_running", "paused")


def test_a_guest_without_an_agent_channel(make_guest: MakeGuest) -> None:
    guest = make_guest(wait=False, agent_channel=False)
    assert refusal("guest_exec", name=guest.name, argv=["true"])["error_code"] == "no_agent_channel"


def test_a_guest_whose_agent_is_silent(pristine_guest: Guest) -> None:
    stop_agent(pristine_guest)
    result = refusal("guest_exec", name=pristine_guest.name, argv=["true"])
    assert (result["error_code"], result["transient"]) == ("agent_silent", True)


def test_a_guest_whose_agent_refuses_commands(pristine_guest: Guest) -> None:
    pristine_guest.block_agent_commands("guest-exec")
    for check in (True, False):
        result = refusal("guest_exec", check=check, name=pristine_guest.name, argv=["true"])
        assert result["error_code"] == "agent_command_blocked"
        assert result["evidence"]["blocked"] == ["guest-exec"]


@pytest.mark.parametrize(
    "options",
    [
        {"argv": []},
        {"argv": ["true", "a\0b"]},
        {"argv": ["true"], "timeout": 0},
        {"argv": ["true"], "max_output": 1_500_001},
        {"argv": ["true"], "environment": {"not a name": "x"}},
    ],
)
def test_impossible_requests(options: dict[str, Any]) -> None:
    assert refusal("guest_exec", name="no such guest", **options)["error_code"] == "invalid_request"


def test_a_command_and_its_end_pass_through_the_runner_of_a_guest_that_has_one(pristine_guest: Guest) -> None:
    """What the runner is for, SELinux, no guest of the lab has; that everything goes through it is what can be seen."""
    runner = "/usr/libexec/kvm-fleet/run"
    pristine_guest.output("/bin/mkdir", "-p", "/usr/libexec/kvm-fleet")
    pristine_guest.write_file(runner, b'#!/bin/sh\necho "$$" >>/run/passed\nexport RAN_BY=runner\nexec "$@"\n')
    pristine_guest.output("/bin/chmod", "755", runner)
    result = module("guest_exec", name=pristine_guest.name, script='echo "<$RAN_BY>"; exit 3', environment={"A": "1"})
    assert (result["rc"], result["stdout"]) == (3, "<runner>\n")
    result = refusal("guest_exec", name=pristine_guest.name, argv=["sleep", "1000"], timeout=10)
    assert (result["error_code"], result["evidence"]["ended"]) == ("command_timeout", True)
    assert len(pristine_guest.read_file("/run/passed").splitlines()) == 3
