# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Packages as package managers record them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

Installed = Mapping[tuple[str, str], str]
"""The version of every installed package, by its name and architecture."""


@dataclass(frozen=True)
class PackageChange:
    """One package that changed or would change. ``old`` is None for a new one, ``new`` for a removed one."""

    name: str
    arch: str
    old: str | None
    new: str | None
    security: bool = False


@dataclass(frozen=True)
class Prediction:
    """What an upgrade would do. ``kept_back`` names packages that have a newer version and would not get it."""

    changes: tuple[PackageChange, ...]
    kept_back: tuple[str, ...] = ()

    @property
    def security(self) -> tuple[PackageChange, ...]:
        """Those of the changes that are security updates."""
        return tuple(change for change in self.changes if change.security)


def changes_between(before: Installed, after: Installed, security: Collection[str]) -> tuple[PackageChange, ...]:
    """What differs between two states of the package database, by name; ``security`` names the security updates."""
    return tuple(
        PackageChange(name, arch, before.get((name, arch)), after.get((name, arch)), name in security)
        for name, arch in sorted({**before, **after})
        if before.get((name, arch)) != after.get((name, arch))
    )
