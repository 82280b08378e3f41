# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What failures that every package manager may meet are told as, each with the same words and the same remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    DiskFull,
    PackageListsFailed,
    PackageManagerLocked,
    RepositoryUnreachable,
    RepositoryUntrusted,
)
from ansible_collections.kvm.fleet.plugins.module_utils._exec import last_lines

UNTRUSTED = "the guest does not trust one of its repositories"
UNTRUSTED_REMEDY = "Renew the repository's key in the guest, and see that the guest's clock is right."

UNREACHABLE = "the guest does not reach one of its repositories"
UNREACHABLE_REMEDY = "See the guest's network, name service and proxy, and that the repository is still there."

FULL = "a file system of the guest is full"

LISTS_REMEDY = "See that the guest reaches its repositories and trusts their keys."

Evidence = Mapping[str, object]


def locked(lock: str, evidence: Evidence, by: str = "") -> PackageManagerLocked:
    """A lock that somebody holds, ``by`` whom if that is known."""
    return PackageManagerLocked(
        f"{lock} is locked{by} in the guest",
        remedy="Let the other package manager finish and run again; more or longer retries wait for it "
        "(lock_retries, lock_delay).",
        evidence=evidence,
    )


def locked_by(lock: str, pid: str | None, program: str | None, evidence: Evidence) -> PackageManagerLocked:
    """The same, as a package manager told it: with the holder's pid and program, as far as it told them."""
    by = f" by process {pid}{f' ({program})' if program else ''}" if pid else ""
    holder = {"lock": lock, "holder_pid": int(pid) if pid else None, "holder": program or None}
    return locked(lock, {**evidence, **holder}, by)


def untrusted(said: str, evidence: Evidence) -> RepositoryUntrusted:
    return RepositoryUntrusted(f"{UNTRUSTED}: {said}", remedy=UNTRUSTED_REMEDY, evidence=evidence)


def unreachable(said: str, evidence: Evidence) -> RepositoryUnreachable:
    return RepositoryUnreachable(f"{UNREACHABLE}: {said}", remedy=UNREACHABLE_REMEDY, evidence=evidence)


def lists_failed(command: str, said: str, evidence: Evidence) -> PackageListsFailed:
    return PackageListsFailed(f"{command} failed in the guest: {said}", remedy=LISTS_REMEDY, evidence=evidence)


def full(said: str, clean: str, evidence: Evidence) -> DiskFull:
    """A full disk; ``clean`` is the command that empties the package manager's cache."""
    return DiskFull(f"{FULL}: {said}", remedy=full_remedy(clean), evidence=evidence)


def full_remedy(clean: str) -> str:
    return f"Make room in the guest ('{clean}', old kernels, logs) and run again; what is half done is repaired first."


def first_of(errors: Sequence[str], output: str) -> str:
    """The line to show of an output: the first of its errors, or else its last line."""
    return [*errors, *last_lines(output, 1), "it printed nothing"][0]
