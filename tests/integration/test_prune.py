# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshots that have had their time, on real disks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.proof import snapshots
from tests.integration.runs import module, playbook

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.guests import Guest
    from lab.session import Session


@pytest.fixture
def guest(lab: Session) -> Iterator[Guest]:
    """A guest that is off, with a snapshot that somebody else has made."""
    with lab.guest(start=False) as made:
        made.domain.snapshotCreateXML("<domainsnapshot><name>theirs</name></domainsnapshot>")
        yield made


def take(guest: Guest, name: str) -> None:
    assert not module("domain_snapshot", name=guest.name, snapshot=name)["failed"]


def end_a_run(guest: Guest, outcome: str) -> None:
    """Have a run end so on the guest."""
    for said in ({"owner": "a test"}, {"state": "absent", "outcome": outcome}):
        assert not module("guest_lease", check=False, name=guest.name, run="by-a-test", **said)["failed"]


def test_only_ours_go_of_a_guest_that_is_well_and_check_mode_tells_them(guest: Guest) -> None:
    take(guest, "first")
    take(guest, "second")
    options = {"prune_days": 0, "prune_keep": 1}

    unknown = playbook("prune_snapshots", guests=[guest.name], variables=options)
    assert unknown.exit_code == 0
    assert unknown.records[guest.name]["outcome"] == "unchanged"
    end_a_run(guest, "failed")
    assert playbook("prune_snapshots", guests=[guest.name], variables=options).exit_code == 0
    assert snapshots(guest) == ("first", "second", "theirs")

    end_a_run(guest, "upgraded")
    predicted = playbook("prune_snapshots", "--check", guests=[guest.name], variables=options)
    assert predicted.exit_code == 0
    assert snapshots(guest) == ("first", "second", "theirs")
    assert any(line.startswith("  To be deleted: ") for line in predicted.paragraph(guest.name))

    done = playbook("prune_snapshots", guests=[guest.name], variables=options)
    assert (done.exit_code, done.records[guest.name]["outcome"]) == (0, "changed")
    told = [one["name"] for one in done.records[guest.name]["pruned"]]
    assert told == [one["name"] for one in predicted.records[guest.name]["pruned"]]
    assert len(told) == 1
    assert set(snapshots(guest)) == {"first", "second", "theirs"} - set(told)


@pytest.mark.thorough
def test_the_ram_of_live_snapshots_is_counted_and_given_back(pristine_guest: Guest) -> None:
    """Neither is old, and the newest of all stays whatever its size."""
    take(pristine_guest, "first")
    take(pristine_guest, "second")
    end_a_run(pristine_guest, "upgraded")

    def prune(*, check: bool) -> dict[str, Any]:
        return module("domain_snapshot_prune", check=check, name=pristine_guest.name, budget="1M", days=30)

    predicted = prune(check=True)
    assert [one["name"] for one in predicted["pruned"]] == ["first"], predicted
    assert predicted["freed"] > 10 << 20
    done = prune(check=False)
    assert done["pruned"] == predicted["pruned"]
    assert done["freed"] > predicted["freed"] // 2
    assert snapshots(pristine_guest) == ("second",)
