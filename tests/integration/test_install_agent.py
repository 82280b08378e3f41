# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbook install_agent on real guests that no agent answers from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.integration.proof import wait_until_booted
from tests.integration.runs import listing, module, playbook

if TYPE_CHECKING:
    from pathlib import Path

    from lab.fixtures import MakeGuest


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
    assert all(guest.answers() for guest in guests)
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


def test_a_guest_that_ansible_cannot_log_in_to_fails_by_name_and_is_let_go_of(
    make_guest: MakeGuest, tmp_path: Path
) -> None:
    guest = make_guest(wait=False, agent_service=False)
    # Nobody listens at this address of this very machine.
    inventory = listing(tmp_path, {guest.name: {"ansible_host": "127.0.0.1", "ansible_port": 9}})
    run = playbook("install_agent", inventory=inventory, variables={"agent_probe_timeout": 1})
    assert run.exit_code != 0
    record = run.records[guest.name]
    assert (record["outcome"], record["error"]["error_code"]) == ("failed", "no_way_open")
    assert f"cannot log in to guest {guest.name}" in record["error"]["msg"]
    assert record["installed"] == ""
    (look,) = module("domain_info", names=[guest.name])["domains"]
    assert (look["run"]["lease"], look["run"]["ended"]["outcome"]) == (None, "failed")
