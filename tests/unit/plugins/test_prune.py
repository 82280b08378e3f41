# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""domain_snapshot_prune on a hypervisor with a memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils import _prune
from ansible_collections.kvm.fleet.plugins.module_utils._errors import LibvirtFailed
from ansible_collections.kvm.fleet.plugins.module_utils._snapshot_xml import STAMP

if TYPE_CHECKING:
    from tests.unit.fake_hypervisor import FakeDomain, FakeHypervisor
    from tests.unit.plugins.conftest import Run

DAY = 24 * 3600


@pytest.fixture
def aged(hypervisor: FakeHypervisor, domain: FakeDomain, monkeypatch: pytest.MonkeyPatch) -> FakeDomain:
    """A guest with snapshots of 10 days and of one, ours and others', each with 100 bytes of RAM."""
    domain.add_snapshot("theirs-old", "made by hand")
    domain.add_snapshot("ours-old", f"{STAMP} x")
    hypervisor.clock.advance(9 * DAY)
    domain.add_snapshot("ours-new", f"{STAMP} x")
    domain.add_snapshot("theirs-new", "")
    hypervisor.clock.advance(DAY)
    monkeypatch.setattr(
        _prune, "snapshot_sizes", lambda _image: {snapshot.name: 100 for snapshot in domain.snapshots()}
    )
    return domain


def has_gone(run: Run, outcome: str) -> None:
    """A run on the guest ends so."""
    assert "msg" not in run("guest_lease", name="web1", run="a", owner="root@a")
    assert "msg" not in run("guest_lease", name="web1", run="a", state="absent", outcome=outcome)


def names(domain: FakeDomain) -> list[str]:
    return sorted(snapshot.name for snapshot in domain.snapshots())


ALL = ["ours-new", "ours-old", "theirs-new", "theirs-old"]


def test_of_a_guest_that_is_well_what_is_old_and_ours_goes(run: Run, aged: FakeDomain) -> None:
    has_gone(run, "upgraded")
    predicted = run("domain_snapshot_prune", name="web1", check=True)
    assert (names(aged), aged.changes) == (ALL, [])
    done = run("domain_snapshot_prune", name="web1")
    assert names(aged) == ["ours-new", "theirs-new", "theirs-old"]
    for told in ("changed", "pruned", "kept", "diff"):
        assert predicted[told] == done[told]
    assert [(one["name"], one["size"], one["reason"]) for one in done["pruned"]] == [
        ("ours-old", 100, "older than 7 days")
    ]
    assert [(one["name"], one["reason"]) for one in done["kept"]] == [("ours-new", "younger than 7 days")]
    assert (predicted["freed"], done["freed"]) == (100, 0)
    assert run("domain_snapshot_prune", name="web1")["changed"] is False


def test_a_budget_is_given_as_people_write_it(run: Run, aged: FakeDomain) -> None:
    has_gone(run, "unchanged")
    assert run("domain_snapshot_prune", name="web1", days=30, budget="0.1K")["pruned"][0]["reason"] == "over the budget"
    assert names(aged) == ["ours-new", "theirs-new", "theirs-old"]


@pytest.mark.parametrize("outcome", ["failed", "refused"])
def test_nothing_goes_of_a_guest_whose_last_run_did_not_go_well(run: Run, aged: FakeDomain, outcome: str) -> None:
    has_gone(run, outcome)
    result = run("domain_snapshot_prune", name="web1", days=0)
    assert (result["changed"], aged.changes) == (False, [])
    assert {one["reason"] for one in result["kept"]} == {f"the last run on the guest ended as {outcome}"}


def test_a_guest_under_a_lease_is_refused(run: Run, aged: FakeDomain) -> None:
    has_gone(run, "upgraded")
    run("guest_lease", name="web1", run="b", owner="root@b")
    for check in (True, False):
        result = run("domain_snapshot_prune", name="web1", check=check)
        assert result["error_code"] == "guest_leased"
    assert names(aged) == ALL


def test_what_was_deleted_before_an_error_is_told(run: Run, aged: FakeDomain, monkeypatch: pytest.MonkeyPatch) -> None:
    has_gone(run, "upgraded")
    real = aged.delete_snapshot

    def delete(name: str) -> None:
        if name == "ours-new":
            raise LibvirtFailed("it is in use", remedy="See.")
        real(name)

    monkeypatch.setattr(aged, "delete_snapshot", delete)
    result = run("domain_snapshot_prune", name="web1", days=0)
    assert (result["error_code"], result["evidence"]["pruned"]) == ("libvirt_failed", ["ours-old"])


def test_numbers_that_cannot_be_meant_are_refused(run: Run, domain: FakeDomain) -> None:
    assert run("domain_snapshot_prune", name=domain.name, keep=-1)["error_code"] == "invalid_request"
