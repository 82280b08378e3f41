# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which guests a run is about, and what is refused before any guest is touched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lab import drift
from tests.integration.runs import PlaybookRun, listing, playbook

if TYPE_CHECKING:
    from pathlib import Path

    from lab.fixtures import MakeGuest
    from lab.guests import Guest
    from tests.integration.conftest import Pair

LEAVE_PACKAGES: dict[str, object] = {"upgrade_packages": False}


def chosen(run: PlaybookRun) -> set[str]:
    return set(run.statistics["targets"])


def untouched(run: PlaybookRun, guest: Guest) -> bool:
    """Whether no play of the run came as far as this guest. Its name is in the output, so that is no empty search."""
    return guest.name not in run.recap and "TASK [kvm.fleet.upgrade : " not in run.output


def test_guests_that_drift_are_chosen_by_default(make_guest: MakeGuest, pair: Pair) -> None:
    drifting = make_guest(wait=False, private_emulator=True)
    off = make_guest(start=False)
    drift.replace_emulator(drifting)
    pair.plain.reset()
    run = playbook("find_guests")
    assert run.exit_code == 0, run.output
    assert drifting.name in chosen(run)
    assert off.name not in chosen(run)
    assert pair.plain.name not in chosen(run)


def test_guests_are_chosen_by_name_exactly(make_guest: MakeGuest) -> None:
    one, ten = make_guest("fleet-vm1", start=False), make_guest("fleet-vm10", start=False)
    run = playbook("find_guests", variables={"fleet_guests": one.name})
    assert chosen(run) == {one.name}
    run = playbook("find_guests", variables={"fleet_guests": f"{ten.name}, {one.name}"})
    assert chosen(run) == {one.name, ten.name}


def test_guests_are_chosen_by_group(make_guest: MakeGuest, shared_guest: Guest, tmp_path: Path) -> None:
    off = make_guest(start=False)
    inventory = listing(tmp_path, {"web1": {"kvm_domain": shared_guest.name}, "db1": {"kvm_domain": off.name}})
    (tmp_path / "groups.yml").write_text("web: {hosts: {web1: {}}}\n", encoding="utf-8")
    run = playbook(
        "upgrade",
        "--inventory",
        str(tmp_path / "groups.yml"),
        guests=["web"],
        variables=LEAVE_PACKAGES,
        inventory=inventory,
    )
    assert run.exit_code == 0, run.output
    assert {name: record["outcome"] for name, record in run.records.items()} == {"web1": "unchanged"}
    assert run.records["web1"]["domain"] == shared_guest.name


def test_limit_chooses_among_listed_guests(make_guest: MakeGuest, shared_guest: Guest, tmp_path: Path) -> None:
    off = make_guest(start=False)
    inventory = listing(tmp_path, {"web1": {"kvm_domain": shared_guest.name}, "db1": {"kvm_domain": off.name}})
    run = playbook("upgrade", "--limit", "web1", guests=["all"], variables=LEAVE_PACKAGES, inventory=inventory)
    assert run.exit_code == 0, run.output
    assert list(run.records) == ["web1"]


def test_limit_that_would_leave_out_discovered_guests_is_explained(make_guest: MakeGuest) -> None:
    guest = make_guest(start=False)
    run = playbook("upgrade", "--limit", "localhost", guests=[guest.name])
    assert run.exit_code != 0
    assert f"--limit localhost leaves out {guest.name}" in run.output
    assert "fleet_selected" in run.output
    assert untouched(run, guest)


@pytest.mark.parametrize("name", ["upgrade", "restart", "status"])
def test_an_unknown_guest_is_named_before_anything_changes(shared_guest: Guest, name: str) -> None:
    before = shared_guest.process()
    run = playbook(name, guests=[shared_guest.name, "fleet-nobody"])
    assert run.exit_code != 0
    assert "nothing is named 'fleet-nobody'" in run.output
    assert shared_guest.name in run.output
    assert untouched(run, shared_guest)
    assert shared_guest.process() == before


@pytest.mark.parametrize("size", ["0", "0%", "101%", "some", -1])
def test_an_impossible_batch_size_is_refused(shared_guest: Guest, size: object) -> None:
    before = shared_guest.process()
    run = playbook("upgrade", guests=[shared_guest.name], variables={"fleet_batch": size, **LEAVE_PACKAGES})
    assert run.exit_code != 0
    assert f"fleet_batch: '{size}' is no batch size" in run.output
    assert untouched(run, shared_guest)
    assert shared_guest.process() == before


def test_a_guest_that_is_off_is_refused_not_passed_over(make_guest: MakeGuest) -> None:
    guest = make_guest('Übung <off> & "quoted"', start=False)
    run = playbook("upgrade", guests=[guest.name])
    assert run.exit_code != 0
    record = run.records[guest.name]
    assert (record["outcome"], record["error"]["error_code"]) == ("refused", "domain_not_running")
    assert "is shut off" in record["error"]["msg"]
    assert guest.process() is None
    assert run.summary[-2] == "Success: 0  Failed: 1  Drift Resolved: 0"


def test_a_guest_that_only_the_inventory_knows_is_refused(make_guest: MakeGuest, tmp_path: Path) -> None:
    off = make_guest(start=False)
    inventory = listing(tmp_path, {"ghost": {"kvm_domain": f"{off.name}0"}})
    run = playbook("upgrade", guests=["ghost"], inventory=inventory)
    assert run.exit_code != 0
    record = run.records["ghost"]
    assert (record["outcome"], record["error"]["error_code"]) == ("refused", "domain_not_found")


def test_a_hypervisor_whose_libvirt_does_not_answer(tmp_path: Path) -> None:
    inventory = listing(tmp_path, {"web1": {}})
    uri = "qemu+unix:///system?socket=/nonexistent/libvirt-sock"
    run = playbook("status", inventory=inventory, variables={"kvm_uri": uri})
    assert run.exit_code != 0
    assert "hypervisor_unavailable" in run.output


def test_nothing_to_do_is_a_success(shared_guest: Guest, tmp_path: Path) -> None:
    run = playbook("upgrade", inventory=listing(tmp_path, {"web1": {"kvm_domain": shared_guest.name}}))
    assert run.exit_code == 0, run.output
    assert run.summary[1] == "UPGRADE SUMMARY: 0 VM(s) processed"
    assert run.summary[-2] == "Success: 0  Failed: 0  Drift Resolved: 0"
