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
    found: list[PackageChange] = []
    for name, arch in sorted({**before, **after}):
        old, new = before.get((name, arch), frozenset()), after.get((name, arch), frozenset())
        found += _changes(name, arch, old - new, new - old, security.get(name, False))
    return tuple(found)


def compose(first: Iterable[PackageChange], second: Iterable[PackageChange]) -> tuple[PackageChange, ...]:
    """What differs after two lists of changes, of which the second began where the first had ended."""
    steps = [_by_package(changes) for changes in (first, second)]
    found: list[PackageChange] = []
    for name, arch in sorted({**steps[0], **steps[1]}):
        (gone, come), (gone_then, come_then) = (_versions(step.get((name, arch), ())) for step in steps)
        # What came and went again was never there, and what went and came again was never away.
        net_gone, net_come = (gone | gone_then - come) - come_then, (come - gone_then | come_then) - gone
        told = [change.security for step in steps for change in step.get((name, arch), ()) if change.new]
        is_security = True if True in told else (None if None in told else False)
        found += _changes(name, arch, net_gone, net_come, is_security)
    return tuple(found)


def _by_package(changes: Iterable[PackageChange]) -> dict[tuple[str, str], list[PackageChange]]:
    found: dict[tuple[str, str], list[PackageChange]] = {}
    for change in changes:
        found.setdefault((change.name, change.arch), []).append(change)
    return found


def _versions(changes: Iterable[PackageChange]) -> tuple[frozenset[str], frozenset[str]]:
    """The versions that went and those that came."""
    listed = list(changes)
    return (
        frozenset(change.old for change in listed if change.old is not None),
        frozenset(change.new for change in listed if change.new is not None),
    )


def _changes(
    name: str, arch: str, gone: frozenset[str], come: frozenset[str], security: bool | None
) -> list[PackageChange]:
    if len(gone) == len(come) == 1:
        return [PackageChange(name, arch, min(gone), min(come), security)]
    return [
        *(PackageChange(name, arch, version, None) for version in sorted(gone)),
        *(PackageChange(name, arch, None, version, security) for version in sorted(come)),
    ]


def installed(packages: Iterable[tuple[str, str, str]]) -> Installed:
    """Put together the name, architecture and version of each installed package."""
    versions: dict[tuple[str, str], set[str]] = {}
    for name, arch, version in packages:
        versions.setdefault((name, arch), set()).add(version)
    return {package: frozenset(found) for package, found in versions.items()}
