# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshots as libvirt's XML writes them."""

from __future__ import annotations

from xml.etree import ElementTree

from ansible_collections.kvm.fleet.plugins.module_utils._domain import SnapshotRecord
from ansible_collections.kvm.fleet.plugins.module_utils._errors import InvalidRequest

STAMP = "[kvm.fleet]"
"""Begins the description of every snapshot that this collection makes; only those are ever reverted to or deleted."""


def is_ours(snapshot: SnapshotRecord) -> bool:
    return snapshot.description.startswith(STAMP)


def parse_snapshot(xml: str, *, current: bool) -> SnapshotRecord:
    """Read a snapshot's XML as libvirt prints it."""
    root = ElementTree.fromstring(xml)
    return SnapshotRecord(
        name=root.findtext("name", ""),
        description=root.findtext("description", ""),
        created=int(root.findtext("creationTime", "0")),
        state=root.findtext("state", ""),
        current=current,
    )


def build_snapshot(name: str, description: str) -> str:
    """The XML that asks libvirt for an internal snapshot with this name and our stamp on its description."""
    root = ElementTree.Element("domainsnapshot")
    ElementTree.SubElement(root, "name").text = name
    ElementTree.SubElement(root, "description").text = f"{STAMP} {description}"
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
