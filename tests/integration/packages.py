# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a result says of packages, in a form to compare with what a guest has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

# What apt finds to upgrade in a guest of the lab that is offered no newer agent.
UPGRADED = {"lab-app", "lab-config", "lab-kernel", "lab-library", "lab-plugin"}

Versions = dict[str, "tuple[str | None, str | None]"]
"""By name, the old version and the new one; None where there is none."""


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> Versions:
    """What became of a guest's packages."""
    names = {**before, **after}
    return {name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)}


def changes_told(result: Mapping[str, Any]) -> Versions:
    """What a result says became of them."""
    return {change["name"]: (change["old"], change["new"]) for change in result["packages"]}


def upgraded_names(result: Mapping[str, Any]) -> set[str]:
    """The names of those that a result says have a new version."""
    return {change["name"] for change in result["packages"] if change["new"]}
