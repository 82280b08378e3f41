# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Takes along what libvirt knows of a guest beside its definition, when the guest is migrated.

libvirt migrates no domain that it knows snapshots of. The snapshots themselves are in the guest's disks. Nor does it
take along that it is to start the domain when the hypervisor boots. So what it knows is kept in the domain's own
metadata meanwhile, and told to it again afterwards. The metadata go where the guest goes. Whoever dies in between, and
wherever the guest is then, the next module that works on it finds them there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from ansible_collections.kvm.fleet.plugins.module_utils._domain import Domain, SnapshotDefinition, quoted
from ansible_collections.kvm.fleet.plugins.module_utils._errors import LibvirtFailed, SnapshotBlocked

NAMESPACE = "https://kvm.fleet/xmlns/snapshots/1"
PREFIX = "snapshots"


@dataclass(frozen=True)
class Kept:
    """What libvirt is to be told again of a domain. ``autostart``: that it starts when the hypervisor boots."""

    definitions: Sequence[SnapshotDefinition]
    autostart: bool


def put_away(domain: Domain) -> None:
    """Have libvirt know no snapshots of the domain, until ``tell_again``.

    Raises SnapshotBlocked where it has not been told again since the last time: that would be lost.
    """
    if domain.metadata(NAMESPACE) is not None:
        raise SnapshotBlocked(
            f"what a migration has put away of the snapshots of domain {domain.name!r} is still in its metadata",
            remedy=_see_what_is_kept(domain),
        )
    kept = Kept(domain.snapshot_definitions(), domain.autostart())
    if not kept.definitions and not kept.autostart:
        return
    domain.set_metadata(NAMESPACE, PREFIX, as_text(kept))
    for definition in reversed(kept.definitions):  # one that has children stays their parent as long as they are there
        domain.forget_snapshot(definition.name)


def tell_again(domain: Domain) -> None:
    """Have libvirt know again what was put away, if anything was. Raises SnapshotBlocked where libvirt refuses that."""
    text = domain.metadata(NAMESPACE)
    if text is None:
        return
    try:
        _tell(domain, text)
    except LibvirtFailed as error:
        raise SnapshotBlocked(
            f"libvirt refuses to know again what a migration has put away of the snapshots of domain {domain.name!r}: "
            f"{error.message}",
            remedy=_see_what_is_kept(domain),
            evidence=error.evidence,
        ) from error


def _see_what_is_kept(domain: Domain) -> str:
    name = quoted(domain.name)
    return (
        f"It is kept in the domain's metadata: virsh metadata {name} {NAMESPACE}. Mend what libvirt complains about "
        "and run again, which tries once more. Without what is kept, libvirt knows nothing of these snapshots any "
        f"more; they are given up by: virsh metadata --live --config --remove {name} {NAMESPACE}"
    )


def _tell(domain: Domain, text: str) -> None:
    kept = from_text(text)
    if kept.autostart:  # first, as it does not depend on any snapshot
        domain.set_autostart(True)
    for definition in kept.definitions:
        domain.redefine_snapshot(definition.xml, current=definition.current)
    domain.set_metadata(NAMESPACE, PREFIX, None)


def as_text(kept: Kept) -> str:
    """An element for the metadata. Each definition is text in there, so that nobody reads it as the domain's own."""
    root = ElementTree.Element("snapshots", autostart="yes" if kept.autostart else "no")
    for definition in kept.definitions:
        found = ElementTree.SubElement(root, "snapshot", name=definition.name)
        found.set("current", "yes" if definition.current else "no")
        found.text = definition.xml
    return ElementTree.tostring(root, encoding="unicode")


def from_text(text: str) -> Kept:
    """What ``as_text`` has been given."""
    root = ElementTree.fromstring(text)
    definitions = [
        SnapshotDefinition(found.get("name", ""), found.text or "", found.get("current") == "yes")
        for found in root.findall("snapshot")
    ]
    return Kept(definitions, root.get("autostart") == "yes")


def in_files_of_their_own(definitions: Iterable[SnapshotDefinition]) -> list[str]:
    """The names of those that are not in the guest's disks alone, which would not go along."""
    return [
        definition.name
        for definition in definitions
        if any(part.get("snapshot") == "external" for part in ElementTree.fromstring(definition.xml).iter())
    ]
