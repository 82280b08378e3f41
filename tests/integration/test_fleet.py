# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A run over several guests: in which batches they are worked on, and what one's failure means for others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import libvirt
import pytest

from tests.integration.proof import make_fresh
from tests.integration.runs import PlaybookRun, listing, module, playbook

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lab.fixtures import Kept
    from lab.guests import Guest
    from lab.process import Process
    from lab.session import Session
    from tests.integration.conftest import Pair

NAMESPACE = "https://kvm.fleet/xmlns/guest/1"
SAID = "<guest><tag>web</tag><depends-on>db1</depends-on></guest>"


@dataclass(frozen=True)
class Fleet:
    """web1 depends on db1, by its domain's metadata, and app1 on off1, by the inventory; off1 is off."""

    web: Guest
    db: Guest
    app: Guest
    off: Guest
    inventory: Path

    @property
    def processes(self) -> list[Process | None]:
        return [guest.process() for guest in (self.web, self.db, self.app, self.off)]


@pytest.fixture(scope="module")
def fleet(lab: Session, pair: Pair, kept_guest: Kept, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    for guest in pair:
        make_fresh(guest)
    app = kept_guest.as_new()
    web, db = pair
    flags = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG
    web.domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, SAID, "fleet", NAMESPACE, flags)
    with lab.guest(start=False) as off:
        hosts: dict[str, dict[str, object]] = {
            "web1": {"kvm_domain": web.name},
            "app1": {"kvm_domain": app.name, "kvm_depends_on": ["off1"]},
            "off1": {"kvm_domain": off.name},
            "db1": {"kvm_domain": db.name},
        }
        yield Fleet(web, db, app, off, listing(tmp_path_factory.mktemp("fleet"), hosts))
    web.domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, "<guest/>", "fleet", NAMESPACE, flags)


def extended(directory: Path, text: str) -> tuple[str, str]:
    """What adds an inventory to the fleet's own."""
    more = directory / "more.yml"
    more.write_text(text, encoding="utf-8")
    return "--inventory", str(more)


def not_attempted(run: PlaybookRun) -> dict[str, str]:
    return {
        name: record["error"]["msg"] for name, record in run.records.items() if record["outcome"] == "not_attempted"
    }


def test_metadata_is_read_as_virsh_writes_it(fleet: Fleet) -> None:
    [domain] = module("domain_info", names=[fleet.web.name])["domains"]
    assert (domain["hints"], domain["hints_problem"]) == ({"tags": ["web"], "depends_on": ["db1"]}, None)


def test_a_plan_is_printed_and_nothing_is_changed(fleet: Fleet) -> None:
    before = fleet.processes
    variables = {"fleet_batch": "50%", "fleet_canary": 1}
    run = playbook("plan", guests=["all"], variables=variables, inventory=fleet.inventory)
    assert run.exit_code == 0, run.output
    assert run.summary[1] == "PLAN: 4 VM(s) in 4 batch(es); nothing was changed"
    assert run.summary[3:-3] == [
        *("Batch 1", "  db1 on localhost", ""),
        *("Batch 2", "  web1 on localhost, canary, after db1", ""),
        *("Batch 3", "  off1 on localhost", ""),
        *("Batch 4", "  app1 on localhost, after off1", ""),
    ]
    assert fleet.processes == before


def test_what_cannot_be_planned_is_refused_before_anything_starts(fleet: Fleet, tmp_path: Path) -> None:
    before = fleet.processes
    circle = extended(tmp_path, "kvm_guests: {hosts: {off1: {kvm_depends_on: app1}}}\n")
    run = playbook("restart", *circle, guests=["all"], inventory=fleet.inventory)
    assert run.exit_code != 0
    assert "guests depend on each other: app1 → off1 → app1" in run.output
    run = playbook("restart", guests=["all"], variables={"fleet_pause": "soon"}, inventory=fleet.inventory)
    assert run.exit_code != 0
    assert "fleet_pause: 'soon' is no number of seconds" in run.output
    variables = {"fleet_max_fail_percentage": 250}
    run = playbook("restart", guests=["all"], variables=variables, inventory=fleet.inventory)
    assert run.exit_code != 0
    assert "fleet_max_fail_percentage: '250' is no percentage from 0 to 100" in run.output
    assert fleet.processes == before


def test_a_batch_that_is_not_the_planned_one_is_not_begun(fleet: Fleet, tmp_path: Path) -> None:
    before = fleet.processes
    foreign = extended(tmp_path, "fleet_batch_001: {hosts: {stranger: {}}}\n")
    run = playbook("restart", *foreign, guests=["db1", "web1"], inventory=fleet.inventory)
    assert run.exit_code != 0
    assert "Planned was stranger, db1 as fleet_batch_001, and Ansible has db1, web1 instead" in run.output
    assert fleet.processes == before


@pytest.mark.thorough
def test_a_canary_that_fails_holds_back_all_others(fleet: Fleet, tmp_path: Path) -> None:
    before = fleet.processes
    canary = extended(tmp_path, "kvm_guests: {hosts: {off1: {kvm_canary: true}}}\n")
    variables = {"fleet_batch": 4, "fleet_continue_on_error": True}
    run = playbook("restart", *canary, guests=["all"], variables=variables, inventory=fleet.inventory)
    assert run.exit_code != 0
    assert run.records["off1"]["error"]["error_code"] == "domain_not_running"
    because = ", and off1 has failed, was refused or was lost in this run"
    assert not_attempted(run) == {
        "db1": f"it comes after the canary off1{because}",
        "web1": f"it depends on db1{because}",
        "app1": f"it depends on off1{because}",
    }
    assert fleet.processes == before


def test_a_run_goes_on_after_a_failure_but_not_to_what_depends_on_it(fleet: Fleet) -> None:
    app, off, boots = fleet.app.process(), fleet.off.process(), [fleet.db.boot_id(), fleet.web.boot_id()]
    variables = {"fleet_batch": 4, "fleet_continue_on_error": True, "fleet_pause": 1}
    run = playbook("restart", guests=["all"], variables=variables, inventory=fleet.inventory)
    assert run.exit_code != 0
    assert {name: record["outcome"] for name, record in run.records.items()} == {
        "db1": "restarted",
        "off1": "refused",
        "web1": "restarted",
        "app1": "not_attempted",
    }
    assert run.paragraph("app1")[:2] == [
        "- app1",
        "  Not attempted: it depends on off1, and off1 has failed, was refused or was lost in this run",
    ]
    assert run.summary[1] == "RESTART SUMMARY: 3 VM(s) processed, 1 not attempted"
    assert "Pausing for 1 seconds" in run.output
    assert (fleet.app.process(), fleet.off.process()) == (app, off)
    db, web = fleet.db.process(), fleet.web.process()
    assert db is not None
    assert web is not None
    assert web.started > db.started
    # In a later batch: not begun before the agent of the other had answered again.
    _looks, _title, work = run.output.partition("PLAY [Restart the guests")
    assert work.index("[web1 -> localhost]") > work.rindex("[db1 -> localhost]")
    assert not {fleet.db.boot_id(), fleet.web.boot_id()} & {*boots}
