# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Packages as package managers record them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

Installed = Mapping[tuple[str, str], frozenset[str]]
"""The versions of every installed package, by its name and architecture: more than one of a kernel, for instance."""


@dataclass(frozen=True)
class PackageChange:
    """One package that changed or would change. ``old`` is None for a new one, ``new`` for a removed one.

    ``security`` is None where the repository does not tell which of its updates are security updates.
    """

    name: str
    arch: str
    old: str | None
    new: str | None
    security: bool | None = False


class KeptReason(str, Enum):
    """Why a package that has a newer version is not upgraded to it."""

    HELD = "held"
    """Somebody has put it on hold in the guest."""
    PHASED = "phased"
    """Its distribution gives it to some machines first, and this is none of them yet."""
    EXCLUDED = "excluded"
    """The run was asked to leave it alone."""
    DEPENDENCIES = "dependencies"
    """Its dependencies do not allow it now."""
    SECURITY_UNKNOWN = "security_unknown"
    """Only security updates are wanted, and its repository does not tell whether it is one."""


@dataclass(frozen=True)
class KeptBack:
    """A package that has a newer version and would not get it."""

    name: str
    reason: KeptReason


def named_once(kept: Iterable[KeptBack]) -> tuple[KeptBack, ...]:
    """Each package with the first reason that was found for it."""
    reasons: dict[str, KeptReason] = {}
    for one in kept:
        reasons.setdefault(one.name, one.reason)
    return tuple(KeptBack(name, reason) for name, reason in reasons.items())


@dataclass(frozen=True)
class Room:
    """Bytes that an upgrade needs: to download packages, and to unpack them beside what is installed."""

    download: int = 0
    unpacked: int = 0


@dataclass(frozen=True)
class Prediction:
    """What an upgrade would do. ``arguments`` are those by which the package manager is to do just this."""

    changes: tuple[PackageChange, ...] = ()
    kept_back: tuple[KeptBack, ...] = ()
    room: Room = Room()
    arguments: tuple[str, ...] = ()

    @property
    def security(self) -> tuple[PackageChange, ...]:
        """Those of the changes that are security updates."""
        return tuple(change for change in self.changes if change.security)


def changes_between(
    before: Installed, after: Installed, security: Mapping[str, bool | None]
) -> tuple[PackageChange, ...]:
    """What differs between two states of the package database, by name.

    ``security`` tells of a package's name whether its update is a security update. One version in another's place is
    an upgrade; versions that came or went beside others are told one by one.
    """
    found = []
    for name, arch in sorted({**before, **after}):
        old, new = before.get((name, arch), frozenset()), after.get((name, arch), frozenset())
        gone, come = sorted(old - new), sorted(new - old)
        is_security = security.get(name, False)
        if len(gone) == len(come) == 1:
            found.append(PackageChange(name, arch, gone[0], come[0], is_security))
        else:
            found += [PackageChange(name, arch, version, None) for version in gone]
            found += [PackageChange(name, arch, None, version, is_security) for version in come]
    return tuple(found)


def installed(packages: Iterable[tuple[str, str, str]]) -> Installed:
    """Put together the name, architecture and version of each installed package."""
    versions: dict[tuple[str, str], set[str]] = {}
    for name, arch, version in packages:
        versions.setdefault((name, arch), set()).add(version)
    return {package: frozenset(found) for package, found in versions.items()}
