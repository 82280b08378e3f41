# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is read from a domain's metadata."""

from __future__ import annotations

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._errors import HintsMalformed
from ansible_collections.kvm.fleet.plugins.module_utils._hints import NAMESPACE, Hints, parse_hints


def domain(metadata: str) -> str:
    return f"<domain type='kvm'><name>web1</name><metadata>{metadata}</metadata></domain>"


def guest(said: str) -> str:
    return domain(f"<guest xmlns='{NAMESPACE}'>{said}</guest>")


# As libvirt 9.0 prints what 'virsh metadata --set' was given, beside an element of somebody else's.
PRINTED = f"""
    <other:guest xmlns:other="https://example.com"><other:tag>no</other:tag></other:guest>
    <fleet:guest xmlns:fleet="{NAMESPACE}">
      <fleet:tag>web</fleet:tag>
      <fleet:tag>blue</fleet:tag>
      <fleet:group> front </fleet:group>
      <fleet:group-at-once>2</fleet:group-at-once>
      <fleet:depends-on>db1</fleet:depends-on>
      <fleet:depends-on>db &amp; cache</fleet:depends-on>
      <fleet:canary/>
    </fleet:guest>
"""


def test_all_that_can_be_said() -> None:
    hints = parse_hints(domain(PRINTED))
    assert hints == Hints(("web", "blue"), ("db1", "db & cache"), "front", 2, True)
    assert hints.facts() == {
        "tags": ["web", "blue"],
        "depends_on": ["db1", "db & cache"],
        "group": "front",
        "group_at_once": 2,
        "canary": True,
    }


@pytest.mark.parametrize("xml", ["<domain/>", domain(""), domain("<guest><tag>no</tag></guest>"), guest("")])
def test_what_is_not_said_is_left_out(xml: str) -> None:
    assert parse_hints(xml).facts() == {}


@pytest.mark.parametrize(
    ("said", "what"),
    [
        (
            "<depend-on>db1</depend-on>",
            "<depend-on> is none of <tag>, <depends-on>, <group>, ",
        ),
        ("<tag xmlns='urn:x'>a</tag>", "<{urn:x}tag> is none of <tag>, "),
        ("<tag>a<b/></tag>", "<tag> is none of"),
        ("<tag> </tag>", "<tag> is empty"),
        ("<canary>false</canary>", "<canary> has to be empty"),
        ("<group>a</group><group>b</group>", "there is more than one <group>"),
        ("<group-at-once>0</group-at-once>", "<group-at-once> is '0'; it can be 1 or more guests"),
        ("<group-at-once>²</group-at-once>", "<group-at-once> is '²'"),
        ("<group-at-once>-1</group-at-once>", "<group-at-once> is '-1'"),
    ],
)
def test_what_is_not_understood_is_named(said: str, what: str) -> None:
    with pytest.raises(HintsMalformed) as raised:
        parse_hints(guest(said))
    assert raised.value.message.startswith(f"the metadata of domain 'web1' in {NAMESPACE} cannot be read: {what}")
    assert f"virsh metadata --domain web1 --uri {NAMESPACE} --key fleet" in raised.value.remedy
