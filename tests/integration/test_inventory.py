# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guests of a hypervisor as hosts of an inventory, beside a hypervisor that does not answer, and a run on them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.proof import make_fresh
from tests.integration.runs import HYPERVISORS, inventory_of, playbook

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lab.guests import Guest
    from lab.session import Session
    from tests.integration.conftest import Pair

UNTOUCHED: dict[str, object] = {"upgrade_packages": False, "upgrade_snapshot": False}


@dataclass(frozen=True)
class Fleet:
    """Four guests on this machine. The one whose agent is blocked has a name that templates and shells stumble over."""

    drifted: Guest
    blocked: Guest
    mute: Guest
    off: Guest
    sources: tuple[Path, ...]

    @property
    def guests(self) -> tuple[Guest, ...]:
        return self.drifted, self.blocked, self.mute, self.off


@pytest.fixture(scope="module")
def fleet(lab: Session, pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    make_fresh(pair.plain, drifted=True)
    make_fresh(pair.nasty)
    pair.nasty.block_agent_commands("guest-exec", "guest-exec-status")
    directory = tmp_path_factory.mktemp("inventory")
    broken, config = directory / "broken.yml", directory / "fleet.kvm.yml"
    nobody = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    broken.write_text(json.dumps({"kvm_hypervisors": {"hosts": {"broken": nobody}}}), encoding="utf-8")
    with lab.guest(wait=False, agent_channel=False) as mute, lab.guest(start=False) as off:
        ours = [guest.uuid for guest in (*pair, mute, off)]
        options = {
            "plugin": "kvm.fleet.guests",
            "ask_guests": True,
            "timeout": 600,  # for the guests of other tests as well
            "keyed_groups": [{"prefix": "os", "key": "kvm_guest_os.id"}],
            # Others may be there for other tests.
            "filters": [f"kvm_uuid in {ours}"],
        }
        config.write_text(json.dumps(options), encoding="utf-8")
        yield Fleet(*pair, mute, off, (HYPERVISORS, broken, config))


def members(found: dict[str, Any], group: str) -> set[str]:
    return set(found.get(group, {}).get("hosts", []))


def test_guests_are_in_the_groups_that_are_true_of_them(fleet: Fleet) -> None:
    found, _warnings = inventory_of(*fleet.sources)
    assert members(found, "kvm_guests") == {guest.name for guest in fleet.guests}
    assert members(found, "off") == {fleet.off.name}
    assert members(found, "running") == {fleet.drifted.name, fleet.blocked.name, fleet.mute.name}
    assert members(found, "drifted") == {fleet.drifted.name}
    assert members(found, "drift_unknown") == set()
    assert members(found, "agent_missing") == {fleet.mute.name}
    assert members(found, "guest_exec_blocked") == {fleet.blocked.name}
    # The files that tell more than the agent itself does are read by commands that are allowed still.
    assert members(found, "os_debian") >= {fleet.drifted.name}


def test_a_guest_has_variables_of_its_process_and_of_its_own_words(fleet: Fleet) -> None:
    found, _warnings = inventory_of(*fleet.sources)
    told = found["_meta"]["hostvars"][fleet.drifted.name]
    assert told["kvm_uuid"] == {"__ansible_unsafe": fleet.drifted.uuid}
    assert [reason["kind"]["__ansible_unsafe"] for reason in told["kvm_drift_reasons"]] == ["binary_replaced"]
    assert told["kvm_guest_os"]["id"] == {"__ansible_unsafe": "debian"}
    assert told["kvm_guest_exec"] is True
    nasty = found["_meta"]["hostvars"][fleet.blocked.name]
    assert nasty["kvm_domain"] == {"__ansible_unsafe": fleet.blocked.name}
    assert nasty["kvm_guest_exec"] is False


def test_a_hypervisor_that_does_not_answer_is_told_of_and_hides_no_others(fleet: Fleet) -> None:
    found, warnings = inventory_of(*fleet.sources)
    assert members(found, "unreachable_hypervisors") == {"broken"}
    assert "broken could not be looked at" in warnings
    assert "(hypervisor_unreachable)" in warnings
    assert len(members(found, "kvm_guests")) == 4


@pytest.mark.thorough
def test_a_run_is_limited_to_the_guests_that_drift(fleet: Fleet) -> None:
    first, *more = fleet.sources
    before = [guest.process() for guest in fleet.guests]
    sources = [word for source in more for word in ("--inventory", str(source))]
    run = playbook("upgrade", *sources, "--limit", "drifted", variables=UNTOUCHED, inventory=first)
    assert run.exit_code == 0, run.output
    assert {name: record["outcome"] for name, record in run.records.items()} == {fleet.drifted.name: "restarted"}
    assert fleet.drifted.drifted() is False
    after = [guest.process() for guest in fleet.guests]
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, True, True, True]
    found, _warnings = inventory_of(*fleet.sources)
    assert members(found, "drifted") == set()
