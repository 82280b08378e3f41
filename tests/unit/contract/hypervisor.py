# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the collection relies on in a hypervisor. The same tests run against the fake and libvirt's own test driver."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._domain import Domain, DomainState, Hypervisor
from ansible_collections.kvm.fleet.plugins.module_utils._errors import DomainNotFound, LibvirtFailed, SnapshotNotFound
from ansible_collections.kvm.fleet.plugins.module_utils._snapshot_xml import STAMP, build_snapshot

NASTY_NAMES = ["vm 1", "a<&>b", 'it\'s "quoted"', "-rf", "größe 日本", "a;$(id)`id`"]


def create(domain: Domain, *names: str) -> None:
    for name in names:
        domain.create_snapshot(build_snapshot(name, f"about {name}"))


def tree_of(domain: Domain) -> tuple[set[str], str | None]:
    """The snapshots' names, and the current one's."""
    snapshots = domain.snapshots()
    current = [snapshot.name for snapshot in snapshots if snapshot.current]
    return {snapshot.name for snapshot in snapshots}, current[0] if current else None


class HypervisorContract:
    """Needs the fixture ``port``, a hypervisor with the running domains 'vm1' and 'vm10' and those of NASTY_NAMES."""

    @pytest.fixture
    def domain(self, port: Hypervisor) -> Domain:
        return port.domain("vm1")

    # --- finding ------------------------------------------------------------------------------------

    @pytest.mark.parametrize("name", ["vm1", "vm10", *NASTY_NAMES])
    def test_a_domain_is_found_by_its_exact_name(self, port: Hypervisor, name: str) -> None:
        domain = port.domain(name)
        assert domain.name == name
        assert len(domain.uuid) == 36

    @pytest.mark.parametrize("name", ["vm", "vm100", "VM1", " vm1", "vm1 ", "vm*", "", "1"])
    def test_no_other_name_finds_it(self, port: Hypervisor, name: str) -> None:
        with pytest.raises(DomainNotFound, match=r"\Ano domain is named "):
            port.domain(name)

    def test_all_domains_are_listed_running_or_not(self, port: Hypervisor, domain: Domain) -> None:
        domain.destroy()
        assert {"vm1", "vm10", *NASTY_NAMES} <= {listed.name for listed in port.domains()}

    def test_domains_tell_apart_by_uuid(self, port: Hypervisor) -> None:
        assert len({domain.uuid for domain in port.domains()}) == len(port.domains())

    def test_a_domain_says_what_it_is(self, domain: Domain) -> None:
        assert domain.is_persistent()
        assert not domain.is_migrating()
        assert not domain.has_managed_save()
        assert domain.saved_xml() is None
        assert domain.memory_bytes() == 512 * 1024 * 1024
        assert "<name>vm1</name>" in domain.xml()
        assert "<name>vm1</name>" in domain.persistent_xml()

    def test_a_survey_tells_of_each_domain_what_it_says_itself(self, port: Hypervisor, domain: Domain) -> None:
        create(port.domain("vm10"), "a")
        domain.destroy()
        surveyed = port.survey()
        assert {told.domain.uuid for told in surveyed} == {domain.uuid for domain in port.domains()}
        for told in surveyed:
            said = told.domain
            assert (told.state, told.persistent, told.managed_save, told.has_snapshots) == (
                *(said.state(), said.is_persistent(), said.has_managed_save(), bool(said.snapshots())),
            )
        assert {told.state for told in surveyed} >= {DomainState.RUNNING, DomainState.SHUT_OFF}
        assert [told.domain.name for told in surveyed if told.has_snapshots] == ["vm10"]

    # --- lifecycle ----------------------------------------------------------------------------------

    def test_a_domain_is_destroyed_and_started(self, port: Hypervisor, domain: Domain) -> None:
        seen = [domain.state()]
        domain.destroy()
        seen.append(domain.state())
        domain.start()
        seen.append(domain.state())
        assert seen == [DomainState.RUNNING, DomainState.SHUT_OFF, DomainState.RUNNING]
        assert port.domain("vm10").state() is DomainState.RUNNING

    def test_a_running_domain_cannot_be_started(self, domain: Domain) -> None:
        with pytest.raises(LibvirtFailed, match="already running"):
            domain.start()

    def test_a_domain_that_is_off_cannot_be_destroyed(self, domain: Domain) -> None:
        domain.destroy()
        with pytest.raises(LibvirtFailed, match="domain is not running"):
            domain.destroy()

    def test_a_domain_is_saved_and_resumed_by_its_start(self, domain: Domain) -> None:
        domain.save(60)
        assert (domain.state(), domain.has_managed_save()) == (DomainState.SHUT_OFF, True)
        domain.start()
        assert (domain.state(), domain.has_managed_save()) == (DomainState.RUNNING, False)

    def test_a_domain_whose_image_was_removed_is_off_all_the_same(self, domain: Domain) -> None:
        domain.save(60)
        domain.remove_managed_save()
        assert (domain.state(), domain.has_managed_save()) == (DomainState.SHUT_OFF, False)

    def test_a_domain_that_is_off_cannot_be_saved(self, domain: Domain) -> None:
        domain.destroy()
        with pytest.raises(LibvirtFailed, match="domain is not running"):
            domain.save(60)

    # --- snapshots ----------------------------------------------------------------------------------

    def test_a_snapshot_comes_back_as_it_was_made(self, domain: Domain) -> None:
        assert list(domain.snapshots()) == []
        create(domain, "a")
        [snapshot] = domain.snapshots()
        assert (snapshot.name, snapshot.description) == ("a", f"{STAMP} about a")
        assert (snapshot.state, snapshot.current) == ("running", True)
        assert snapshot.created > 0

    @pytest.mark.parametrize("name", NASTY_NAMES)
    def test_a_nasty_name_survives(self, domain: Domain, name: str) -> None:
        create(domain, name)
        assert tree_of(domain) == ({name}, name)
        domain.revert_to_snapshot(name)
        domain.delete_snapshot(name)
        assert tree_of(domain) == (set(), None)

    def test_a_name_is_taken_once(self, domain: Domain) -> None:
        create(domain, "a")
        with pytest.raises(LibvirtFailed, match="already exists"):
            create(domain, "a")

    def test_snapshots_belong_to_their_domain(self, port: Hypervisor, domain: Domain) -> None:
        create(domain, "a")
        assert list(port.domain("vm10").snapshots()) == []

    def test_reverting_moves_the_place_where_the_tree_grows(self, domain: Domain) -> None:
        create(domain, "a", "b")
        domain.revert_to_snapshot("a")
        assert tree_of(domain) == ({"a", "b"}, "a")
        create(domain, "c")
        assert tree_of(domain) == ({"a", "b", "c"}, "c")

    def test_deleting_in_the_middle_of_a_tree_keeps_what_is_below(self, domain: Domain) -> None:
        create(domain, "a", "b")
        domain.revert_to_snapshot("a")
        create(domain, "c")
        domain.delete_snapshot("a")
        assert tree_of(domain) == ({"b", "c"}, "c")
        domain.revert_to_snapshot("b")
        assert tree_of(domain) == ({"b", "c"}, "b")

    def test_deleting_the_current_one_makes_its_parent_current(self, domain: Domain) -> None:
        create(domain, "a", "b")
        domain.delete_snapshot("b")
        assert tree_of(domain) == ({"a"}, "a")

    def test_a_missing_snapshot_is_neither_reverted_to_nor_deleted(self, domain: Domain) -> None:
        create(domain, "a")
        for act in (domain.revert_to_snapshot, domain.delete_snapshot):
            with pytest.raises(SnapshotNotFound):
                act("b")
        assert tree_of(domain) == ({"a"}, "a")

    def test_a_snapshot_that_libvirt_does_not_know_any_more_can_be_told_to_it_again(self, domain: Domain) -> None:
        create(domain, "a", "b", "c")
        definitions, before = domain.snapshot_definitions(), domain.snapshots()
        assert [definition.name for definition in definitions] == ["a", "b", "c"]
        for definition in reversed(definitions):
            domain.delete_snapshot(definition.name)  # the test driver forgets none without this
        assert tree_of(domain) == (set(), None)
        for _time in range(2):  # one that is known stays
            for definition in definitions:
                domain.redefine_snapshot(definition.xml, current=definition.current)
            assert tree_of(domain) == ({"a", "b", "c"}, "c")
        assert sorted(domain.snapshots(), key=lambda one: one.name) == sorted(before, key=lambda one: one.name)
        domain.revert_to_snapshot("b")
        assert tree_of(domain) == ({"a", "b", "c"}, "b")

    # --- metadata -----------------------------------------------------------------------------------

    def test_an_element_of_the_metadata_is_ours_to_set_and_to_remove(self, port: Hypervisor, domain: Domain) -> None:
        space, other = "https://kvm.fleet/xmlns/test/1", "https://kvm.fleet/xmlns/test/2"
        assert domain.metadata(space) is None
        for text in ("<one>&lt;a&gt; &amp;amp; größe</one>", "<two/>"):
            domain.set_metadata(space, "test", text)
            told = domain.metadata(space)
            assert told is not None
            assert ElementTree.canonicalize(told) == ElementTree.canonicalize(text)
        assert (domain.metadata(other), port.domain("vm10").metadata(space)) == (None, None)
        for _time in range(2):  # one that is not there is none
            domain.set_metadata(space, "test", None)
            assert domain.metadata(space) is None

    def test_a_domain_starts_at_a_boot_or_does_not(self, domain: Domain) -> None:
        assert domain.autostart() is False
        for wanted in (True, True, False):
            domain.set_autostart(wanted)
            assert domain.autostart() is wanted

    # --- as another hypervisor sees it --------------------------------------------------------------

    def test_a_hypervisor_says_what_it_is(self, port: Hypervisor) -> None:
        assert len(port.qemu_version()) == 3
        assert port.processor().startswith("<cpu")

    def test_reverting_brings_back_the_state_of_power(self, domain: Domain) -> None:
        create(domain, "on")
        domain.destroy()
        create(domain, "off")
        domain.revert_to_snapshot("on")
        assert domain.state() is DomainState.RUNNING
        domain.revert_to_snapshot("off")
        assert domain.state() is DomainState.SHUT_OFF
