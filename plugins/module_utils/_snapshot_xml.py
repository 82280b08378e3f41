# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshots as libvirt's XML writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from ansible_collections.kvm.fleet.plugins.module_utils._domain import Layer, SnapshotRecord
from ansible_collections.kvm.fleet.plugins.module_utils._domain_xml import put_on
from ansible_collections.kvm.fleet.plugins.module_utils._errors import InvalidRequest

STAMP = "[kvm.fleet]"
"""Begins the description of every snapshot that this collection makes; only those are ever reverted to or deleted."""


DELETING = f"{STAMP} (being deleted)"
"""Begins that of an external one whose layers are being committed: what it was made of is no more."""


def is_ours(snapshot: SnapshotRecord) -> bool:
    return snapshot.description.startswith(STAMP)


def is_being_deleted(snapshot: SnapshotRecord) -> bool:
    return snapshot.description.startswith(DELETING)


def parse_snapshot(xml: str, *, current: bool) -> SnapshotRecord:
    """Read a snapshot's XML as libvirt prints it."""
    root = ElementTree.fromstring(xml)
    memory = root.find("memory[@snapshot='external']")
    disks = root.findall("./disks/disk[@snapshot='external']")
    layers = [(disk.get("name"), source.get("file")) for disk in disks for source in disk.findall("source")]
    return SnapshotRecord(
        name=root.findtext("name", ""),
        description=root.findtext("description", ""),
        created=int(root.findtext("creationTime", "0")),
        state=root.findtext("state", ""),
        current=current,
        parent=root.findtext("parent/name"),
        external=memory is not None or bool(disks),
        layers=tuple(Layer(target, file) for target, file in layers if target and file),
        memory_file=None if memory is None else memory.get("file"),
    )


def build_snapshot(name: str, description: str) -> str:
    """The XML that asks libvirt for an internal snapshot with this name and our stamp on its description."""
    return ElementTree.tostring(_named(name, description), encoding="unicode")


def build_external_snapshot(
    name: str, description: str, layers: Sequence[Layer], others: Sequence[str], memory_file: str | None
) -> str:
    """Likewise for an external one. The ``others`` are the targets of disks that get no layer."""
    root = _named(name, description)
    memory = {"snapshot": "external", "file": memory_file} if memory_file else {"snapshot": "no"}
    ElementTree.SubElement(root, "memory", memory)
    disks = ElementTree.SubElement(root, "disks")
    for layer in layers:
        disk = ElementTree.SubElement(disks, "disk", name=layer.target, snapshot="external", type="file")
        ElementTree.SubElement(disk, "driver", type="qcow2")
        ElementTree.SubElement(disk, "source", file=layer.file)
    for target in others:
        ElementTree.SubElement(disks, "disk", name=target, snapshot="no")
    return ElementTree.tostring(root, encoding="unicode")


def _named(name: str, description: str) -> ElementTree.Element:
    root = ElementTree.Element("domainsnapshot")
    ElementTree.SubElement(root, "name").text = name
    ElementTree.SubElement(root, "description").text = f"{STAMP} {description}"
    return root


def definitions_in(xml: str) -> list[str]:
    """The definitions that a snapshot has of its domain: as it ran, and as its next start was to be."""
    found = [ElementTree.fromstring(xml).find(tag) for tag in ("domain", "inactiveDomain")]
    return [ElementTree.tostring(one, encoding="unicode") for one in found if one is not None]


def marked_as_being_deleted(xml: str) -> str:
    """The same snapshot, with a description that says that it is being deleted."""
    root = ElementTree.fromstring(xml)
    description = root.find("description")
    if description is not None and not (description.text or "").startswith(DELETING):
        description.text = DELETING + (description.text or "")[len(STAMP) :]
    return ElementTree.tostring(root, encoding="unicode")


def on_other_images(xml: str, images: Mapping[str, tuple[str, str]]) -> str:
    """The same snapshot, with the disks in its definitions on other files of these formats, by the old files' names."""
    root = ElementTree.fromstring(xml)
    for disk in [*root.findall("./domain/devices/disk"), *root.findall("./inactiveDomain/devices/disk")]:
        source = disk.find("source")
        found = None if source is None else images.get(source.get("file", ""))
        if found:
            put_on(disk, *found)
    return ElementTree.tostring(root, encoding="unicode")


LONGEST_NAME = 255 - len(".xml.new")


def check_snapshot_name(name: str) -> None:
    """Raise InvalidRequest for a name that libvirt's QEMU driver or XML 1.0 cannot hold.

    libvirt keeps each snapshot's XML in a file named after the snapshot, and writes it with ".xml.new" first, so it
    refuses slashes and a leading dot. A file's name has at most 255 bytes; libvirt 9.0 finds out only after it has made
    the snapshot.
    """
    problem = None
    if not name:
        problem = "is empty"
    elif "/" in name:
        problem = "contains a slash"
    elif name.startswith("."):
        problem = "begins with a dot"
    elif len(name.encode("utf-8", "surrogatepass")) > LONGEST_NAME:
        problem = f"is longer than {LONGEST_NAME} bytes"
    elif any(not _allowed_in_xml(character) for character in name):
        problem = "contains a control character"
    elif name != name.strip():
        problem = "begins or ends with white space"
    if problem:
        raise InvalidRequest(
            f"the snapshot name {name!r} {problem}",
            remedy="Choose a name without slashes, control characters, a leading dot or white space around it.",
        )


def check_description(description: str) -> None:
    """Raise InvalidRequest for a description that XML 1.0 cannot hold."""
    if not all(_allowed_in_xml(character) or character in "\t\n" for character in description):
        raise InvalidRequest(
            "the snapshot's description contains a control character", remedy="Remove it from the description."
        )


def _allowed_in_xml(character: str) -> bool:
    code = ord(character)
    return (0x20 <= code <= 0xD7FF and code != 0x7F) or 0xE000 <= code <= 0xFFFD or code >= 0x10000
