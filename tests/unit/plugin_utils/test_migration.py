# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where the inventory allows a guest to be migrated to, and where it is afterwards."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.kvm.fleet.plugins.filter.migration_uris import uris
from ansible_collections.kvm.fleet.plugins.plugin_utils._migration import migrated_to

GROUPS = {"kvm_hypervisors": ["h1", "h2", "h3"], "all": ["h1", "h2", "h3", "h4", "web1"]}
INVENTORY = {
    "h1": {"kvm_migration_uri": "one"},
    "h2": {"kvm_migration_uri": "two"},
    "h3": {},
    "h4": {"kvm_migration_uri": "four"},
    "web1": {"kvm_hypervisor": "h1"},
}


@pytest.mark.parametrize(
    ("wanted", "own", "expected"),
    [
        ([], "h1", {"h2": "two"}),
        ([], "h3", {"h1": "one", "h2": "two"}),
        (["h4"], "h1", {"h4": "four"}),
        (["h1", "h2"], "h1", {"h2": "two"}),
        (["h1"], "h1", {}),
        ("h2,h4", "h1", {"h2": "two", "h4": "four"}),
        ("h2", "h1", {"h2": "two"}),
        ("", "h1", {"h2": "two"}),
    ],
)
def test_destinations_are_those_that_are_named_or_else_all_that_have_a_uri(
    wanted: object, own: str, expected: dict[str, str]
) -> None:
    assert uris(wanted, own, GROUPS, INVENTORY) == expected


def test_without_hypervisors_in_their_group_there_are_none() -> None:
    assert uris([], "h1", {}, INVENTORY) == {}


@pytest.mark.parametrize("name", ["h3", "h9"])
def test_a_hypervisor_that_is_named_and_has_no_uri_is_refused_by_name(name: str) -> None:
    with pytest.raises(AnsibleFilterError, match=rf"names {name}, and the inventory gives no kvm_migration_uri"):
        uris(["h2", name], "h1", GROUPS, INVENTORY)


@pytest.mark.parametrize(
    ("power", "name"),
    [
        ({}, ""),
        ({"migration": None}, ""),
        ({"migration": {"destination": "two", "came_back": True}}, ""),
        ({"migration": {"destination": "two", "came_back": False}}, "h2"),
        ({"failed": True, "evidence": {"moved_to": "two"}}, "h2"),
        ({"failed": True, "evidence": {"moved_to": "nobody's"}}, "nobody's"),
        ({"failed": True, "evidence": {}}, ""),
    ],
)
def test_a_guest_is_where_its_restart_has_left_it(power: dict[str, Any], name: str) -> None:
    assert migrated_to(power, {"h1": "one", "h2": "two"}) == name
