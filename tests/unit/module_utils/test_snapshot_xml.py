# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshots in XML: whatever name is accepted comes back as it was."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ansible_collections.kvm.fleet.plugins.module_utils._domain import Layer, SnapshotRecord
from ansible_collections.kvm.fleet.plugins.module_utils._domain_xml import parse_definition
from ansible_collections.kvm.fleet.plugins.module_utils._errors import InvalidRequest
from ansible_collections.kvm.fleet.plugins.module_utils._snapshot_xml import (
    STAMP,
    build_external_snapshot,
    build_snapshot,
    check_description,
    check_snapshot_name,
    is_being_deleted,
    is_ours,
    marked_as_being_deleted,
    on_other_images,
    parse_snapshot,
)


def is_accepted(name: str) -> bool:
    try:
        check_snapshot_name(name)
    except InvalidRequest:
        return False
    return True


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=80))
@example("before <upgrade> & 'more' \"quotes\" ]]>")
@example("-rf")
@example("日本語 пример ñ 🐧")
@example("a\u0085b")
def test_any_accepted_name_survives_xml(name: str) -> None:
    if is_accepted(name):
        # libvirt reads the XML as the bytes of UTF-8 text.
        assert parse_snapshot(build_snapshot(name, "x").encode("utf-8").decode("utf-8"), current=False).name == name


@given(st.text(st.characters(codec="utf-8", categories=["L", "N", "S", "P"], exclude_characters="/."), min_size=1))
def test_letters_digits_and_symbols_of_any_script_are_accepted(name: str) -> None:
    assert is_accepted(name) == (len(name.encode("utf-8")) <= 247)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "is empty"),
        ("a/b", "contains a slash"),
        ("../../etc/passwd", "contains a slash"),
        (".hidden", "begins with a dot"),
        ("a\0b", "contains a control character"),
        ("a\nb", "contains a control character"),
        ("a\x1b[2Jb", "contains a control character"),
        ("a\x7fb", "contains a control character"),
        ("a\ud800b", "contains a control character"),
        ("a\uffffb", "contains a control character"),
        (" a", "begins or ends with white space"),
        ("a\u00a0", "begins or ends with white space"),
        ("ü" * 124, "is longer than 247 bytes"),
    ],
)
def test_an_impossible_name_is_refused_with_its_reason(name: str, problem: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        check_snapshot_name(name)
    assert raised.value.message == f"the snapshot name {name!r} {problem}"


@pytest.mark.parametrize("name", ["a" * 247, "ü" * 123, "vm 1", "a.b", "-x", "<&>", "'\"`$(id)"])
def test_an_unusual_name_is_accepted(name: str) -> None:
    assert is_accepted(name)


def test_a_snapshot_is_read_as_libvirt_prints_it() -> None:
    xml = """
    <domainsnapshot>
      <name>pre-upgrade-20261015-143022</name>
      <description>[kvm.fleet] Automatic snapshot before package upgrade</description>
      <state>running</state>
      <parent><name>another</name></parent>
      <creationTime>1792074622</creationTime>
      <memory snapshot='internal'/>
    </domainsnapshot>"""
    assert parse_snapshot(xml, current=True) == SnapshotRecord(
        name="pre-upgrade-20261015-143022",
        description="[kvm.fleet] Automatic snapshot before package upgrade",
        created=1792074622,
        state="running",
        current=True,
        parent="another",
    )


# Of a snapshot as libvirt 9.0 prints it, and of one that has RAM.
DISK_ONLY = """
<domainsnapshot>
  <name>A</name><description>[kvm.fleet] x</description><state>disk-snapshot</state><creationTime>1</creationTime>
  <memory snapshot='no'/>
  <disks>
    <disk name='vda' snapshot='external' type='file'><driver type='qcow2'/><source file='/i/a.1'/></disk>
    <disk name='sda' snapshot='no'/>
  </disks>
  <domain type='qemu'><name>vm</name><devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='/i/a' index='1'/><backingStore/><target dev='vda'/>
    </disk>
  </devices></domain>
</domainsnapshot>"""
WITH_RAM = DISK_ONLY.replace("disk-snapshot", "running").replace("'no'/>", "'external' file='/i/a.1.ram'/>", 1)


def test_the_layers_of_an_external_snapshot_are_read() -> None:
    found = parse_snapshot(DISK_ONLY, current=False)
    assert (found.external, found.layers, found.memory_file) == (True, (Layer("vda", "/i/a.1"),), None)
    assert not found.has_ram
    found = parse_snapshot(WITH_RAM, current=False)
    assert (found.layers, found.memory_file, found.has_ram) == ((Layer("vda", "/i/a.1"),), "/i/a.1.ram", True)


@pytest.mark.parametrize("ram", [None, "/i/<&>.ram"])
def test_an_external_snapshot_asks_for_what_it_is_read_as(ram: str | None) -> None:
    layers = (Layer("vda", "/i/a<&>'\"1"), Layer("vdb", "/i/b.1"))
    xml = build_external_snapshot("x", "y", layers, ("sda",), ram)
    made = parse_snapshot(xml, current=False)
    assert (made.layers, made.memory_file, is_ours(made)) == (layers, ram, True)
    assert '<disk name="sda" snapshot="no"' in xml


def test_a_snapshot_is_marked_as_being_deleted_once_and_stays_ours() -> None:
    once = marked_as_being_deleted(DISK_ONLY)
    found = parse_snapshot(once, current=False)
    assert found.description == "[kvm.fleet] (being deleted) x"
    assert (is_ours(found), is_being_deleted(found)) == (True, True)
    assert parse_snapshot(marked_as_being_deleted(once), current=False) == found
    assert not is_being_deleted(parse_snapshot(DISK_ONLY, current=False))


def test_the_definition_in_a_snapshot_is_put_on_what_its_layer_was_committed_to() -> None:
    xml = on_other_images(DISK_ONLY, {"/i/a": ("/i/base", "qcow2")})
    [disk] = parse_definition(xml[xml.index("<domain ") : xml.index("</domainsnapshot>")]).writable_disks
    assert (disk.file, disk.format) == ("/i/base", "qcow2")
    assert "backingStore" not in xml
    assert parse_snapshot(xml, current=False) == parse_snapshot(DISK_ONLY, current=False)


def test_a_snapshot_that_says_little_is_read_all_the_same() -> None:
    assert parse_snapshot("<domainsnapshot/>", current=False) == SnapshotRecord("", "", 0, "", current=False)


@pytest.mark.parametrize(
    ("description", "ours"),
    [
        (f"{STAMP} Automatic snapshot before package upgrade", True),
        (STAMP, True),
        ("", False),
        ("made by hand", False),
        (f"not {STAMP}", False),
    ],
)
def test_a_snapshot_is_ours_by_the_stamp_that_begins_its_description(description: str, ours: bool) -> None:
    assert is_ours(SnapshotRecord("x", description, 0, "running", current=False)) is ours


@given(st.text(st.characters(codec="utf-8", categories=["L", "N", "S", "P", "Zs"])))
def test_every_snapshot_that_is_built_is_ours_and_keeps_its_description(description: str) -> None:
    made = parse_snapshot(build_snapshot("x", description), current=False)
    assert is_ours(made)
    assert made.description == f"{STAMP} {description}"


def test_a_description_cannot_add_elements() -> None:
    xml = build_snapshot("x", "</description><disks/><description>")
    assert [element.tag for element in ElementTree.fromstring(xml)] == ["name", "description"]


@pytest.mark.parametrize("description", ["", "two\nlines\tand a tab", "<&>", "größe 🐧"])
def test_a_description_of_any_text_is_accepted(description: str) -> None:
    check_description(description)
    assert parse_snapshot(build_snapshot("x", description), current=False).description == f"{STAMP} {description}"


@pytest.mark.parametrize("description", ["a\0b", "\x1b[2J", "a\ud800b"])
def test_a_description_that_xml_cannot_hold_is_refused(description: str) -> None:
    with pytest.raises(InvalidRequest, match="the snapshot's description contains a control character"):
        check_description(description)
