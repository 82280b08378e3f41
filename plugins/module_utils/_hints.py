# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a guest's owner has written into its domain's metadata for those who work on a fleet."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from ansible_collections.kvm.fleet.plugins.module_utils._errors import HintsMalformed

NAMESPACE = "https://kvm.fleet/xmlns/guest/1"


@dataclass(frozen=True)
class Hints:
    """What was written, if it was. ``depends_on`` names guests, ``group`` a cluster that the guest is a member of."""

    tags: tuple[str, ...] = ()
    depends_on: tuple[str, ...] = ()
    group: str | None = None
    group_at_once: int | None = None
    canary: bool = False

    def facts(self) -> dict[str, Any]:
        """What was written, and nothing of the rest."""
        said: dict[str, Any] = {
            "tags": list(self.tags),
            "depends_on": list(self.depends_on),
            "group": self.group,
            "group_at_once": self.group_at_once,
            "canary": self.canary,
        }
        return {name: value for name, value in said.items() if value}


def parse_hints(xml: str) -> Hints:
    """Read them from a domain's XML as libvirt prints it. Raises HintsMalformed.

    What is not understood might be a misspelled dependency, so it is no less of an error than a number that is none.
    """
    root = ElementTree.fromstring(xml)
    found = root.find(f"./metadata/{{{NAMESPACE}}}guest")
    texts: dict[str, list[str]] = {name: [] for name in ("tag", "depends-on", "group", "group-at-once", "canary")}
    for element in [] if found is None else found:
        name = element.tag.removeprefix(f"{{{NAMESPACE}}}")
        text = (element.text or "").strip()
        if name not in texts or len(element):
            raise _malformed(root, f"<{name}> is none of {', '.join(f'<{known}>' for known in texts)}")
        if bool(text) == (name == "canary"):
            raise _malformed(root, f"<{name}> has to be empty" if text else f"<{name}> is empty")
        texts[name].append(text)
    for name in ("group", "group-at-once", "canary"):
        if len(texts[name]) > 1:
            raise _malformed(root, f"there is more than one <{name}>")
    return Hints(
        tags=tuple(dict.fromkeys(texts["tag"])),
        depends_on=tuple(dict.fromkeys(texts["depends-on"])),
        group=next(iter(texts["group"]), None),
        group_at_once=next((_number(root, text) for text in texts["group-at-once"]), None),
        canary=bool(texts["canary"]),
    )


def _number(root: ElementTree.Element, text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise _malformed(root, f"<group-at-once> is {text!r}; it can be 1 or more guests")
    return int(text)


def _malformed(root: ElementTree.Element, what: str) -> HintsMalformed:
    name = root.findtext("name", "")
    return HintsMalformed(
        f"the metadata of domain {name!r} in {NAMESPACE} cannot be read: {what}",
        remedy=f"Write it anew: virsh metadata --domain {shlex.quote(name)} --uri {NAMESPACE} --key fleet "
        "--set '<guest>…</guest>' --config --live, or take it out with --remove in place of --set.",
    )
