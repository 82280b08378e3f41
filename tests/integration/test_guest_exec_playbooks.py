# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""enable_guest_exec and disable_guest_exec, also for guests that do not answer, are off, or were left off by a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lab.clock import wait_until
from tests.integration import background
from tests.integration.background import wait_for
from tests.integration.proof import SILENT_WITHIN_S, wait_until_booted
from tests.integration.runs import PlaybookRun, listing, literal, module, playbook
from tests.integration.test_guest_agent_policy import CONF, EXEC, FILES, audited, enabled

if TYPE_CHECKING:
    from pathlib import Path

    from lab.fixtures import MakeGuest
    from lab.guests import Guest

NO_POWER_CYCLE = {"agent_policy_power_cycle": False}


def on_record(guest: Guest) -> dict[str, Any]:
    """What is on record of the work on a guest."""
    [info] = module("domain_info", names=[guest.name])["domains"]
    run: dict[str, Any] = info["run"]
    return run


def outcome(run: PlaybookRun, guest: Guest) -> tuple[str, str]:
    """What the run says of a guest: its outcome, and the code of the error if there is one."""
    record = run.records[guest.name]
    error = record["error"]
    assert not error or error["remedy"]
    return record["outcome"], error["error_code"] if error else ""


def allows_exec(guest: Guest) -> bool:
    return all(enabled(guest)[rpc] for rpc in EXEC)


# --- runs that die -------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_guest_that_a_killed_run_has_left_off_is_found_brought_back_and_set_up(
    make_guest: MakeGuest, tmp_path: Path
) -> None:
    guest = make_guest()
    guest.block_agent_commands(*EXEC, *FILES)
    said = literal({"fleet_guests": [guest.name]})
    log = tmp_path / "log"
    with (
        log.open("wb") as output,
        background.running(
            "ansible-playbook", "--extra-vars", said, "kvm.fleet.enable_guest_exec", output=output
        ) as controller,
    ):
        # Its image is opened then, which takes far longer than to kill whoever does it.
        wait_for(lambda: not guest.domain.isActive() or controller.poll() is not None, "the shutdown")
        background.kill(controller)
    print(log.read_text("utf-8"))  # pytest shows it when the test fails
    assert not guest.domain.isActive()
    left = on_record(guest)
    assert (left["unfinished"], left["shut_down"]) == (True, True)
    assert [(entry["event"], entry["run"]) for entry in audited(guest)] == [("restarting", left["lease"]["run"])]
    assert audited(guest)[0]["owner"] == left["lease"]["owner"]

    # Nobody names it.
    inventory = listing(tmp_path, {guest.name: {}})
    predicted = playbook("enable_guest_exec", "--check", inventory=inventory)
    assert predicted.exit_code == 0, predicted.output
    assert outcome(predicted, guest) == ("restarted", "")
    assert not guest.domain.isActive()

    run = playbook("enable_guest_exec", inventory=inventory)
    assert run.exit_code == 0, run.output
    assert outcome(run, guest) == ("changed", "")
    assert run.records[guest.name]["resumed"]["run"] == left["lease"]["run"]
    assert any(line.startswith("  Resumed: ") for line in run.paragraph(guest.name))
    assert allows_exec(guest)
    ended = on_record(guest)
    assert (ended["lease"], ended["unfinished"], ended["ended"]["outcome"]) == (None, False, "changed")


# --- guests that are off -------------------------------------------------------------------------


def test_guest_exec_is_blocked_where_it_can_be_and_what_is_off_is_named_as_not_attempted(
    make_guest: MakeGuest, pristine_guest: Guest, tmp_path: Path
) -> None:
    guest, off = pristine_guest, make_guest(start=False)
    # Without a list in its files nobody knows how the agent of a guest that is off calls one.
    script = f"mkdir -p /etc/qemu && printf '[general]\\nblock-rpcs=guest-fstrim\\n' >{CONF}"
    assert not module("guest_repair", name=off.name, repairs=[], script=script)["failed"]
    process, known = guest.process(), len(audited(guest))
    inventory = listing(tmp_path, {guest.name: {}, off.name: {}})

    predicted = playbook("disable_guest_exec", "--check", "--diff", inventory=inventory)
    assert predicted.exit_code == 0, predicted.output
    assert "+block-rpcs=guest-exec,guest-exec-status" in predicted.output
    assert allows_exec(guest)

    run = playbook("disable_guest_exec", inventory=inventory)
    assert run.exit_code == 0, run.output
    assert outcome(run, guest) == ("changed", "")
    assert run.paragraph(guest.name)[1:4] == [
        "  Agent: blocks guest-exec, guest-exec-status",
        "  Way: exec",
        f"  Changed: {CONF}",
    ]
    assert not any(enabled(guest)[rpc] for rpc in EXEC)
    assert guest.process() == process
    events = [
        (entry["event"], entry["owner"].split(" (pid ")[0], bool(entry["run"])) for entry in audited(guest)[known:]
    ]
    assert [event for event, _owner, _run in events] == ["changing", "changed"]
    assert all("@" in owner and of_a_run for _event, owner, of_a_run in events)

    assert run.summary[1] == "DISABLE GUEST-EXEC SUMMARY: 1 VM(s) processed, 1 not attempted"
    assert outcome(run, off) == ("not_attempted", "domain_not_running")
    mark, reason, remedy = run.paragraph(off.name)
    assert (mark, reason) == (f"- {off.name}", "  Not attempted: it is off, so that nobody could ask its agent")
    assert remedy.endswith(f"name it to have its image edited while it is off: -e fleet_guests={off.name}")
    assert (off.domain.isActive(), audited(off)) == (0, [])

    # As the summary says.
    run = playbook("disable_guest_exec", guests=[off.name], inventory=inventory)
    assert run.exit_code == 0, run.output
    assert (outcome(run, off), run.records[off.name]["way"]) == (("changed", ""), "offline")
    assert not off.domain.isActive()
    again = playbook("disable_guest_exec", guests=[guest.name, off.name], inventory=inventory)
    assert again.exit_code == 0, again.output
    assert [outcome(again, one) for one in (guest, off)] == [("unchanged", "")] * 2
    off.start()
    assert wait_until(off.answers, 300)
    assert not any(enabled(off)[rpc] for rpc in EXEC)


# --- guests that do not answer -------------------------------------------------------------------


def hang(guest: Guest) -> None:
    """Have the agent of a guest hang, which would not allow guest-exec any more if it were started again."""
    guest.output("/bin/mkdir", "-p", "/etc/qemu")
    guest.write_file(CONF, f"[general]\nblock-rpcs={','.join(EXEC)}\n".encode())
    guest.output("/bin/sync")
    guest.do_to_agent("kill", "--signal=STOP")
    assert wait_until(lambda: not guest.answers(), SILENT_WITHIN_S)


def remove_agent(guest: Guest) -> None:
    """Have the agent's package removed in a guest, and wait until dpkg is done."""
    guest.output(
        *("/usr/bin/systemd-run", "--collect", "--on-active=1s"),
        *("/bin/sh", "-c", "dpkg --purge qemu-guest-agent && sync && echo the agent is removed >/dev/console"),
    )
    console = guest.console
    assert wait_until(lambda: b"the agent is removed" in console.read_bytes(), SILENT_WITHIN_S)


@pytest.mark.thorough
def test_an_agent_that_hangs_is_left_alone_without_a_power_cycle_and_set_up_on_the_image_with_one(
    make_guest: MakeGuest,
) -> None:
    guest = make_guest()
    hang(guest)
    process = guest.process()
    run = playbook("enable_guest_exec", guests=[guest.name], variables=NO_POWER_CYCLE)
    assert run.exit_code != 0
    assert outcome(run, guest) == ("refused", "no_way_open")
    assert set(run.records[guest.name]["error"]["evidence"]["ways"]) == {"exec", "files", "offline"}
    assert any(line.endswith(" (nothing was changed)") for line in run.paragraph(guest.name))
    assert (guest.process(), on_record(guest)["lease"], audited(guest)) == (process, None, [])

    run = playbook("enable_guest_exec", guests=[guest.name])
    assert run.exit_code == 0, run.output
    assert (outcome(run, guest), run.records[guest.name]["way"]) == (("changed", ""), "offline")
    assert guest.process() not in (None, process)
    assert allows_exec(guest)
    assert [entry["event"] for entry in audited(guest)] == ["restarting", "changing", "changed"]


@pytest.mark.thorough
def test_an_agent_that_hangs_is_logged_in_to_where_there_is_an_address(make_guest: MakeGuest, tmp_path: Path) -> None:
    """Nobody listens there, but that somebody tried shows that the role goes on to this way."""
    guest = make_guest()
    hang(guest)
    process = guest.process()
    inventory = listing(tmp_path, {guest.name: {"ansible_host": "127.0.0.1", "ansible_port": 9}})
    run = playbook("enable_guest_exec", guests=[guest.name], variables=NO_POWER_CYCLE, inventory=inventory)
    assert run.exit_code != 0
    assert outcome(run, guest) == ("refused", "no_way_open")
    told = run.records[guest.name]["error"]["msg"]
    assert told.startswith("Ansible could not do it in the guest: ")
    assert "offline: it needs a power cycle" in told
    assert (guest.process(), on_record(guest)["lease"], audited(guest)) == (process, None, [])


@pytest.mark.thorough
def test_a_guest_without_an_agent_is_refused_and_not_shut_down_for_nothing(make_guest: MakeGuest) -> None:
    guest = make_guest()
    remove_agent(guest)
    process = guest.process()
    for variables, code in ((NO_POWER_CYCLE, "no_way_open"), ({}, "policy_unsupported")):
        run = playbook("enable_guest_exec", guests=[guest.name], variables=variables)
        assert run.exit_code != 0
        assert outcome(run, guest) == ("refused", code)
    assert "whether qemu-guest-agent is installed" in run.records[guest.name]["error"]["remedy"]
    assert (guest.process(), audited(guest)) == (process, [])


@pytest.mark.thorough
def test_a_guest_without_a_channel_is_refused(make_guest: MakeGuest) -> None:
    guest = make_guest(wait=False, agent_channel=False)
    wait_until_booted(guest)
    process = guest.process()
    run = playbook("enable_guest_exec", guests=[guest.name])
    assert run.exit_code != 0
    assert outcome(run, guest) == ("refused", "no_agent_channel")
    assert (guest.process(), on_record(guest)["lease"], audited(guest)) == (process, None, [])
