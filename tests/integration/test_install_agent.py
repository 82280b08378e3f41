# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbook install_agent on real guests that no agent answers from."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from lab.clock import wait_until
from lab.guests import READY_WITHIN_S
from lab.packages import REPACKED_SUFFIX
from tests.integration import background
from tests.integration.proof import SILENT_WITHIN_S, make_fresh, remove_agent, wait_until_booted
from tests.integration.repository import repository_of
from tests.integration.runs import listing, literal, module, playbook

if TYPE_CHECKING:
    from pathlib import Path

    from lab.fixtures import MakeGuest
    from lab.guests import Guest


def test_guests_get_their_channel_as_they_run_or_by_a_restart_and_their_agents_answer(make_guest: MakeGuest) -> None:
    plugged, restarted = (make_guest(wait=False, agent_channel=False, serial_bus=bus) for bus in (True, False))
    guests = [plugged, restarted]
    for guest in guests:
        wait_until_booted(guest)
    processes = [guest.process() for guest in guests]
    names = [guest.name for guest in guests]

    run = playbook("install_agent", "--check", guests=names)
    assert run.exit_code == 0, run.output
    assert [run.records[name]["outcome"] for name in names] == ["changed", "restarted"]
    assert [guest.process() for guest in guests] == processes
    looks = module("domain_info", names=names)["domains"]
    assert [(look["agent_channel"], look["run"]) for look in looks] == [("absent", None)] * 2

    run = playbook("install_agent", guests=names, variables={"fleet_batch": 2})
    assert run.exit_code == 0, run.output
    assert [run.records[name]["outcome"] for name in names] == ["changed", "restarted"]
    assert [run.records[name]["agent"] for name in names] == ["answering"] * 2
    assert [run.records[name]["installed"] for name in names] == [""] * 2
    assert all(wait_until(guest.answers, READY_WITHIN_S) for guest in guests)
    assert plugged.process() == processes[0]
    assert restarted.process() not in (None, processes[1])
    assert run.paragraph(plugged.name)[1:4] == ["  Agent's channel: added", "  Restarted: no", "  Agent: answering"]
    assert "  Agent's channel: added (running domain: needs restart)" in run.paragraph(restarted.name)

    processes = [guest.process() for guest in guests]
    run = playbook("install_agent", guests=names, variables={"fleet_batch": 2})
    assert run.exit_code == 0, run.output
    assert [run.records[name]["outcome"] for name in names] == ["unchanged"] * 2
    assert [guest.process() for guest in guests] == processes
    # Nobody has it any more.
    assert [look["run"]["lease"] for look in module("domain_info", names=names)["domains"]] == [None] * 2


def test_guests_without_an_agent_are_found_and_refused_where_no_way_is_open(
    make_guest: MakeGuest, tmp_path: Path
) -> None:
    silent, needs_restart, off = (
        make_guest(wait=False, agent_service=False),
        make_guest(wait=False, agent_channel=False),
        make_guest(start=False, agent_channel=False),
    )
    processes = [guest.process() for guest in (silent, needs_restart)]
    inventory = listing(tmp_path, {guest.name: {} for guest in (silent, needs_restart, off)})
    run = playbook(
        "install_agent",
        inventory=inventory,
        variables={
            "agent_restart": False,
            "agent_probe_timeout": 1,
            "fleet_batch": "100%",
            "fleet_max_fail_percentage": 100,
        },
    )
    assert run.exit_code != 0
    # One that is off has no agent to miss.
    assert set(run.records) == {silent.name, needs_restart.name}
    for guest, words in ((silent, "nobody answers"), (needs_restart, "may not be restarted")):
        record = run.records[guest.name]
        assert (record["outcome"], record["error"]["error_code"]) == ("refused", "no_way_open")
        assert words in record["error"]["msg"]
        assert record["error"]["remedy"]
    assert [guest.process() for guest in (silent, needs_restart)] == processes
    assert module("domain_info", names=[needs_restart.name])["domains"][0]["agent_channel"] == "absent"


def test_a_guest_that_ansible_cannot_log_in_to_is_refused_by_name_and_let_go_of(
    make_guest: MakeGuest, tmp_path: Path
) -> None:
    guest = make_guest(wait=False, agent_service=False)
    # Nobody listens at this address of this very machine.
    inventory = listing(tmp_path, {guest.name: {"ansible_host": "127.0.0.1", "ansible_port": 9}})
    run = playbook("install_agent", inventory=inventory, variables={"agent_probe_timeout": 1})
    assert run.exit_code != 0
    record = run.records[guest.name]
    assert (record["outcome"], record["error"]["error_code"]) == ("refused", "no_way_open")
    assert "; ssh: Ansible cannot log in: " in record["error"]["msg"]
    assert record["installed"] == ""
    (look,) = module("domain_info", names=[guest.name])["domains"]
    assert (look["run"]["lease"], look["run"]["ended"]["outcome"]) == (None, "refused")


@pytest.mark.thorough
def test_a_guest_that_a_killed_run_has_left_off_is_found_and_brought_back(
    make_guest: MakeGuest, tmp_path: Path
) -> None:
    guest = make_guest(wait=False, agent_channel=False)
    wait_until_booted(guest)
    said = literal({"fleet_guests": [guest.name]})
    with background.running("ansible-playbook", "--extra-vars", said, "kvm.fleet.install_agent") as controller:
        background.wait_for(background.reached(guest, "restart", "open"), "the shutdown for the channel")
        time.sleep(1)  # it is on record before the guest is asked, which shuts down for some seconds then
        background.kill(controller)
    dead = background.record_of(guest)["lease"]["run"]
    background.wait_for(lambda: not guest.domain.isActive(), "the shutdown")

    # Nobody names it.
    inventory = listing(tmp_path, {guest.name: {}})
    predicted = playbook("install_agent", "--check", inventory=inventory)
    assert predicted.exit_code == 0, predicted.output
    assert predicted.records[guest.name]["outcome"] == "restarted"
    assert not guest.domain.isActive()

    run = playbook("install_agent", inventory=inventory)
    assert run.exit_code == 0, run.output
    record = run.records[guest.name]
    assert (record["outcome"], record["restarted"], record["agent"]) == ("restarted", True, "answering")
    assert record["resumed"] == {"run": dead, "cut_off": "during the restart"}
    assert guest.answers()
    (look,) = module("domain_info", names=[guest.name])["domains"]
    assert (look["run"]["unfinished"], look["run"]["lease"]) == (False, None)


@pytest.mark.thorough
def test_an_agent_that_was_removed_is_installed_in_the_image_where_ssh_is_not_open(
    make_guest: MakeGuest, tmp_path: Path
) -> None:
    guest = make_guest()
    # Nobody listens at this address of this very machine.
    inventory = listing(tmp_path, {guest.name: {"ansible_host": "127.0.0.1", "ansible_port": 9}})
    variables = {"agent_ways": ["ssh", "offline"], "agent_probe_timeout": 1}
    with repository_of(guest, tmp_path / "repository") as served:
        guest.write_file("/etc/apt/sources.list.d/lab.list", f"deb [trusted=yes] {served.address} ./\n".encode())
        guest.offer_newer_agent(offered=False)
        guest.output("/bin/rm", "--recursive", "/srv/lab")
        remove_agent(guest)
        process = guest.process()

        predicted = playbook("install_agent", "--check", inventory=inventory, variables=variables)
        assert predicted.exit_code == 0, predicted.output
        record = predicted.records[guest.name]
        assert (record["outcome"], record["installed"], set(record["closed"])) == ("restarted", "offline", {"ssh"})
        assert (guest.process(), served.requests) == (process, [])

        run = playbook("install_agent", inventory=inventory, variables=variables)
    assert run.exit_code == 0, run.output
    record = run.records[guest.name]
    assert (record["outcome"], record["installed"], record["agent"]) == ("restarted", "offline", "answering")
    assert "cannot log in" in record["closed"]["ssh"]
    assert "  Agent installed: offline" in run.paragraph(guest.name)
    assert any("/qemu-guest-agent_" in request for request in served.requests)
    assert guest.process() not in (None, process)
    assert guest.package_versions()["qemu-guest-agent"].endswith(REPACKED_SUFFIX)


def test_an_agent_that_hangs_is_told_from_one_that_is_missing_and_its_guest_left_alone(pristine_guest: Guest) -> None:
    guest = pristine_guest
    make_fresh(guest)
    guest.output(
        *("/usr/bin/systemd-run", "--collect", "--on-active=100ms", "--timer-property=AccuracySec=10ms"),
        *("/usr/bin/systemctl", "kill", "--signal=STOP", "qemu-guest-agent.service"),
    )
    assert wait_until(lambda: not guest.answers(), SILENT_WITHIN_S)
    process = guest.process()
    run = playbook("install_agent", guests=[guest.name], variables={"agent_probe_timeout": 1})
    assert run.exit_code != 0
    record = run.records[guest.name]
    assert (record["outcome"], record["error"]["error_code"]) == ("refused", "agent_silent")
    assert "has the agent's channel open and does not answer" in record["error"]["msg"]
    assert "systemctl restart qemu-guest-agent" in record["error"]["remedy"]
    assert guest.process() == process
