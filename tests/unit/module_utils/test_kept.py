# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshots that libvirt does not know for a while are never lost, whoever dies meanwhile."""

from __future__ import annotations

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils import _kept
from ansible_collections.kvm.fleet.plugins.module_utils._domain import SnapshotDefinition
from ansible_collections.kvm.fleet.plugins.module_utils._errors import LibvirtFailed, SnapshotBlocked
from tests.unit.fake_hypervisor import FakeDomain, FakeHypervisor, libvirt_failed


@pytest.fixture
def domain(hypervisor: FakeHypervisor) -> FakeDomain:
    domain = hypervisor.add("web1")
    for name in ("a", "b", "größe <&>"):
        domain.add_snapshot(name, f"about {name}")
    domain.revert_to_snapshot("b")
    domain.changes.clear()
    return domain


def test_what_is_put_away_is_told_again(domain: FakeDomain) -> None:
    before = (list(domain.snapshots()), domain.snapshot_definitions())
    _kept.put_away(domain)
    assert (list(domain.snapshots()), domain.metadata(_kept.NAMESPACE) is None) == ([], False)
    _kept.tell_again(domain)
    assert (list(domain.snapshots()), domain.snapshot_definitions()) == before
    assert domain.metadata(_kept.NAMESPACE) is None


def test_children_are_forgotten_before_their_parents(domain: FakeDomain) -> None:
    _kept.put_away(domain)
    forgotten = [change for change in domain.changes if change.startswith("forget")]
    assert forgotten == ["forget_snapshot größe <&>", "forget_snapshot b", "forget_snapshot a"]


def test_a_domain_without_snapshots_is_left_as_it_is(hypervisor: FakeHypervisor) -> None:
    domain = hypervisor.add("web2")
    _kept.put_away(domain)
    _kept.tell_again(domain)
    assert domain.changes == []


def test_a_domain_is_still_started_at_a_boot(hypervisor: FakeHypervisor) -> None:
    domain = hypervisor.add("web2")
    domain.set_autostart(True)
    _kept.put_away(domain)
    domain.set_autostart(False)
    _kept.tell_again(domain)
    assert (domain.autostart(), domain.metadata(_kept.NAMESPACE)) == (True, None)


def test_a_snapshot_that_is_refused_does_not_keep_a_domain_from_being_started_at_a_boot(domain: FakeDomain) -> None:
    domain.set_autostart(True)
    _kept.put_away(domain)
    domain.set_autostart(False)
    domain.faults["redefine_snapshot"] = libvirt_failed("no")
    with pytest.raises(SnapshotBlocked):
        _kept.tell_again(domain)
    assert domain.autostart()
    assert domain.metadata(_kept.NAMESPACE) is not None


@pytest.mark.parametrize("method", ["set_metadata", "forget_snapshot"])
def test_snapshots_survive_whatever_fails_while_they_are_put_away(domain: FakeDomain, method: str) -> None:
    before = list(domain.snapshots())
    domain.passing_faults[method] = libvirt_failed("no")
    with pytest.raises(LibvirtFailed):
        _kept.put_away(domain)
    _kept.tell_again(domain)
    assert list(domain.snapshots()) == before


def test_snapshots_survive_a_death_in_the_middle_of_that(domain: FakeDomain) -> None:
    before = domain.snapshot_definitions()
    domain.set_metadata(_kept.NAMESPACE, _kept.PREFIX, _kept.as_text(_kept.Kept(before, autostart=False)))
    domain.forget_snapshot("größe <&>")
    _kept.tell_again(domain)
    assert {found.name: found for found in domain.snapshot_definitions()} == {found.name: found for found in before}


def test_what_fails_while_they_are_told_again_is_made_up_for_later(domain: FakeDomain) -> None:
    before = domain.snapshot_definitions()
    _kept.put_away(domain)
    domain.passing_faults["redefine_snapshot"] = libvirt_failed("no")
    with pytest.raises(SnapshotBlocked):
        _kept.tell_again(domain)
    _kept.tell_again(domain)
    assert domain.snapshot_definitions() == before


def test_what_libvirt_refuses_to_know_again_is_not_overwritten_by_the_next_migration(domain: FakeDomain) -> None:
    _kept.put_away(domain)
    domain.faults["redefine_snapshot"] = libvirt_failed("no")
    kept = domain.metadata(_kept.NAMESPACE)
    with pytest.raises(SnapshotBlocked) as caught:
        _kept.tell_again(domain)
    assert f"virsh metadata web1 {_kept.NAMESPACE}" in caught.value.remedy
    with pytest.raises(SnapshotBlocked):
        _kept.put_away(domain)
    assert domain.metadata(_kept.NAMESPACE) == kept


@pytest.mark.parametrize("autostart", [True, False])
def test_definitions_survive_as_text(*, autostart: bool) -> None:
    definitions = [
        SnapshotDefinition("a", "<domainsnapshot>\n <name>a</name>&lt;ü</domainsnapshot>", current=True),
        SnapshotDefinition('" <&>', "", current=False),
    ]
    kept = _kept.Kept(definitions, autostart)
    assert _kept.from_text(_kept.as_text(kept)) == kept


@pytest.mark.parametrize(
    ("parts", "external"),
    [
        ("<memory snapshot='internal'/><disks><disk name='vda' snapshot='internal'/></disks>", False),
        ("<memory snapshot='no'/><disks><disk name='vda' snapshot='external'/></disks>", True),
        ("<memory snapshot='external' file='/x'/><disks><disk name='vda' snapshot='internal'/></disks>", True),
    ],
)
def test_snapshots_in_files_of_their_own_are_told_from_others(parts: str, *, external: bool) -> None:
    definition = SnapshotDefinition("a", f"<domainsnapshot><name>a</name>{parts}</domainsnapshot>", current=False)
    assert _kept.in_files_of_their_own([definition]) == (["a"] if external else [])
