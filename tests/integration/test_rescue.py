# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbook that rescues guests: whatever becomes of the repair, a guest that ran runs again."""

from __future__ import annotations

import os
import pty
import re
import shlex
import signal
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import libvirt
import pytest

from lab import inside
from lab.errors import AgentFailed
from tests.integration.background import PATIENCE_S, kill, reached, running, wait_for
from tests.integration.proof import make_fresh
from tests.integration.runs import HYPERVISORS, literal, module, playbook
from tests.integration.runs import command as command_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.fixtures import MakeGuest
    from lab.guests import Guest

BREAK = "sed -i '/^Package: lab-config$/,/^$/s/^Status: .*/Status: install ok half-configured/' /var/lib/dpkg/status"


CONF = "/etc/qemu/qemu-ga.conf"
BLOCKING = (
    b"# of ours\n[general]\n"
    b"block-rpcs=guest-exec,guest-exec-status,guest-get-time,guest-file-open,guest-file-read,guest-file-write\n"
)


def refuses_commands(guest: Guest) -> bool:
    """Whether the agent answers and runs nothing."""
    try:
        told = inside.ask(guest.domain, "guest-info")
    except AgentFailed:
        return False
    return not {command["name"]: command["enabled"] for command in told["supported_commands"]}["guest-exec"]


def off(guest: Guest) -> bool:
    return guest.state() == libvirt.VIR_DOMAIN_SHUTOFF


def last_outcome(guest: Guest) -> dict[str, Any]:
    [info] = module("domain_info", names=[guest.name])["domains"]
    assert info["run"]["lease"] is None
    ended: dict[str, Any] = info["run"]["ended"]
    return ended


def test_a_guest_is_shut_down_repaired_and_started_again(pristine_guest: Guest) -> None:
    guest = pristine_guest
    make_fresh(guest)
    guest.output("/bin/sh", "-c", BREAK)
    before, boot_id = guest.process(), guest.boot_id()

    predicted = playbook("rescue", "--check", guests=[guest.name])
    assert predicted.exit_code == 0, predicted.output
    assert (guest.process(), guest.boot_id()) == (before, boot_id)
    assert predicted.records[guest.name]["outcome"] == "restarted"

    run = playbook("rescue", guests=[guest.name])
    assert run.exit_code == 0, run.output
    record = run.records[guest.name]
    assert (record["outcome"], record["restarted"], record["forced_off"]) == ("repaired", True, False)
    assert [(one["name"], one["changed"]) for one in record["repairs"]] == [("fsck", False), ("packages", True)]
    assert "  Repaired: fsck (nothing to repair), packages" in run.paragraph(guest.name)
    assert guest.process() not in (None, before)
    assert guest.boot_id() != boot_id
    assert guest.output("/usr/bin/dpkg", "--audit") == ""
    assert last_outcome(guest)["outcome"] == "repaired"


@pytest.mark.thorough
def test_a_script_that_fails_is_told_though_the_start_fails_as_well_and_the_guest_runs_again(
    pristine_guest: Guest,
) -> None:
    guest = pristine_guest
    make_fresh(guest)
    before = guest.process()
    # Nothing boots and answers within a second.
    broken = {"rescue_repairs": [], "rescue_script": "echo no such luck >&2; exit 7", "rescue_agent_timeout": 1}
    run = playbook("rescue", guests=[guest.name], variables=broken)
    assert run.exit_code != 0
    assert run.records[guest.name]["outcome"] == "failed"
    error = run.records[guest.name]["error"]
    assert (error["task"], error["error_code"]) == (
        "Repair the image, and start the guest again",
        "image_failed",
    )
    assert error["evidence"]["stderr"] == ["no such luck"]
    assert error["evidence"]["start"]["error_code"] == "agent_silent"
    assert "After that, its start failed: " in error["remedy"]
    assert last_outcome(guest)["error"]["error_code"] == "image_failed"
    assert guest.process() not in (None, before)
    guest.wait_until_ready()


@pytest.mark.thorough
def test_the_agent_is_allowed_what_is_needed_of_it(make_guest: MakeGuest) -> None:
    guest = make_guest()
    guest.output("/bin/mkdir", "-p", "/etc/qemu")
    guest.write_file(CONF, BLOCKING)
    guest.output("/bin/chmod", "640", CONF)
    guest.do_to_agent("restart")
    wait_for(lambda: refuses_commands(guest), "the agent's restart with its filter")
    run = playbook("rescue", guests=[guest.name], variables={"rescue_repairs": ["agent"]})
    assert run.exit_code == 0, run.output
    assert "  Repaired: agent" in run.paragraph(guest.name)
    guest.wait_until_ready()
    assert guest.read_file(CONF) == b"# of ours\n[general]\nblock-rpcs=guest-get-time\n"
    assert guest.read_file(f"{CONF}.kvm-fleet-backup") == BLOCKING
    for path in (CONF, f"{CONF}.kvm-fleet-backup"):
        assert guest.output("/usr/bin/stat", "-c", "%u %a", path) == "0 640\n"


@pytest.mark.thorough
def test_a_guest_is_not_shut_down_under_an_upgrade_whose_run_is_dead(pristine_guest: Guest) -> None:
    guest = pristine_guest
    make_fresh(guest)
    script = "/var/lib/dpkg/info/lab-config.prerm"
    guest.write_file(script, b"#!/bin/sh\nsleep 900\n")
    guest.output("/bin/chmod", "755", script)
    lease = module("guest_lease", name=guest.name, run="run-a", owner="somebody@elsewhere", ttl=1)
    assert not lease["failed"], lease
    assert module("guest_upgrade", name=guest.name, run="run-a", interval=1)["finished"] is False
    before, boot_id = guest.process(), guest.boot_id()
    run = playbook("rescue", guests=[guest.name], variables={"rescue_take_over": "run-a"})
    record = run.records[guest.name]
    assert (run.exit_code != 0, record["outcome"], record["error"]["error_code"]) == (
        True,
        "refused",
        "upgrade_running",
    )
    assert (guest.process(), guest.boot_id()) == (before, boot_id)


def test_a_run_that_is_cancelled_while_the_image_is_repaired_leaves_no_guest_off(pristine_guest: Guest) -> None:
    guest = pristine_guest
    make_fresh(guest)
    before = guest.process()
    said = literal({"fleet_guests": [guest.name], "rescue_repairs": [], "rescue_script": "touch /etc/repaired"})
    with running("ansible-playbook", "--extra-vars", said, "kvm.fleet.rescue") as controller:
        wait_for(lambda: off(guest), "the shutdown")
        os.killpg(controller.pid, signal.SIGINT)  # as Ctrl-C does
        controller.wait(PATIENCE_S)
        assert off(guest)  # what works on its image takes longer than that
        wait_for(reached(guest, "restart", "done"), "the end of the restart")
    assert guest.process() not in (None, before)
    assert guest.run("/usr/bin/test", "-e", "/etc/repaired").returncode == 0


@pytest.mark.thorough
def test_a_run_that_is_killed_while_the_guest_is_off_is_made_up_for_by_the_next_upgrade(
    pristine_guest: Guest,
) -> None:
    guest = pristine_guest
    make_fresh(guest)
    said = literal({"fleet_guests": [guest.name], "rescue_repairs": [], "rescue_script": "touch /etc/begun; sleep 900"})
    before = guest.process()
    with running("ansible-playbook", "--extra-vars", said, "kvm.fleet.rescue") as controller:
        wait_for(lambda: off(guest), "the shutdown")
        kill(controller)
    [left] = module("domain_info", names=[guest.name])["domains"]
    assert (left["state"], left["run"]["shut_down"]) == ("shut_off", True)
    run = playbook("upgrade", guests=[guest.name], variables={"upgrade_packages": False})
    assert run.exit_code == 0, run.output
    record = run.records[guest.name]
    assert (record["restarted"], record["resumed"]["run"]) == (True, left["run"]["lease"]["run"])
    assert guest.process() not in (None, before)
    assert last_outcome(guest)["error"] is None


@pytest.mark.thorough
def test_a_guest_that_does_not_go_down_is_left_running(pristine_guest: Guest) -> None:
    guest = pristine_guest
    make_fresh(guest)
    guest.output("/bin/mkdir", "-p", "/etc/systemd/logind.conf.d")
    guest.write_file("/etc/systemd/logind.conf.d/deaf.conf", b"[Login]\nHandlePowerKey=ignore\n")
    guest.output("/usr/bin/systemctl", "restart", "systemd-logind.service")
    before, boot_id = guest.process(), guest.boot_id()
    run = playbook("rescue", guests=[guest.name], variables={"rescue_shutdown_timeout": 6})
    assert run.exit_code != 0
    assert run.records[guest.name]["error"]["error_code"] == "shutdown_timeout"
    assert (guest.process(), guest.boot_id()) == (before, boot_id)


@contextmanager
def at_a_terminal(*command: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A program in the foreground of a terminal, and that terminal's other end."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        ["setsid", "--ctty", *command],
        env=command_line("ansible-playbook", inventory=HYPERVISORS)[1],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as program:
        os.close(theirs)
        try:
            yield program, ours
        finally:
            kill(program)
            os.close(ours)


def read_until(terminal: int, words: str) -> str:
    """What a program writes to its terminal, up to these words."""
    said = ""
    deadline = time.monotonic() + PATIENCE_S
    while words not in said:
        assert time.monotonic() < deadline, said
        try:
            said += os.read(terminal, 4096).decode("utf-8", "replace")
        except OSError as error:  # it has ended
            raise AssertionError(said) from error
    print(said)
    return said


@pytest.mark.thorough
def test_a_person_repairs_the_guest_in_a_shell_and_it_is_started_after_that(pristine_guest: Guest) -> None:
    guest = pristine_guest
    make_fresh(guest)
    before = guest.process()
    words, _environment = command_line("ansible-playbook", inventory=HYPERVISORS)
    extra = literal({"fleet_guests": [guest.name], "rescue_shell": True})
    with at_a_terminal(*words, "--extra-vars", extra, "kvm.fleet.rescue") as (playbook_run, terminal):
        said = read_until(terminal, "then press Enter")
        assert off(guest)
        told = re.search(r"(env LIBGUESTFS_BACKEND=[^\r\n]* -i)\W", said)
        assert told, said
        with at_a_terminal(*shlex.split(told.group(1))) as (shell, shells_terminal):
            read_until(shells_terminal, "><rescue>")
            os.write(shells_terminal, b"touch /sysroot/etc/by-hand; exit\n")
            shell.wait(PATIENCE_S)
        os.write(terminal, b"\n")
        summary = read_until(terminal, "Drift Resolved")
        playbook_run.wait(PATIENCE_S)
    assert f"✓ {guest.name}" in summary
    assert "  Repaired: shell" in summary
    assert guest.process() not in (None, before)
    assert guest.run("/usr/bin/test", "-e", "/etc/by-hand").returncode == 0
    assert playbook_run.returncode == 0


def test_what_cannot_be_done_is_refused_before_the_guest_is_shut_down(shared_guest: Guest) -> None:
    before = shared_guest.process()
    unnamed = playbook("rescue")
    assert unnamed.exit_code != 0
    assert "name the guests that this is to be done to" in unnamed.output
    # These tests run without a terminal, as AWX does.
    unattended = playbook("rescue", guests=[shared_guest.name], variables={"rescue_shell": True})
    record = unattended.records[shared_guest.name]
    assert (record["outcome"], record["error"]["error_code"]) == ("refused", "no_terminal")
    assert shared_guest.process() == before


@pytest.mark.thorough
def test_a_guest_that_is_off_is_repaired_and_stays_off_and_one_that_a_dead_run_left_off_comes_back(
    make_guest: MakeGuest,
) -> None:
    guest = make_guest(start=False)
    options = {"rescue_repairs": [], "rescue_script": "touch /etc/was-here"}
    run = playbook("rescue", guests=[guest.name], variables=options)
    assert run.exit_code == 0, run.output
    record = run.records[guest.name]
    assert (record["outcome"], record["restarted"]) == ("repaired", False)
    assert off(guest)

    guest.start()
    guest.wait_until_ready()
    assert guest.run("/usr/bin/test", "-e", "/etc/was-here").returncode == 0
    lease = module("guest_lease", name=guest.name, run="run-a", owner="somebody@elsewhere", ttl=1)
    assert not lease["failed"], lease
    assert not module("domain_power", name=guest.name, run="run-a", state="stopped")["failed"]
    assert off(guest)
    run = playbook("rescue", guests=[guest.name], variables=options)
    assert run.exit_code == 0, run.output
    assert run.records[guest.name]["resumed"]["run"] == "run-a"
    assert guest.answers()
