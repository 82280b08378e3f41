# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""apt's command lines, and what its output means. Pure: nothing here runs anything."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    FleetError,
    PackageListsFailed,
    PackageManagerLocked,
    PackageStateInterrupted,
    UpgradeFailed,
)
from ansible_collections.kvm.fleet.plugins.module_utils._exec import last_lines
from ansible_collections.kvm.fleet.plugins.module_utils._packages import PackageChange, Prediction

ENVIRONMENT = {
    "LC_ALL": "C",
    "DEBIAN_FRONTEND": "noninteractive",
    # needrestart's hook would restart services, the guest agent among them, in the middle of the upgrade.
    "NEEDRESTART_SUSPEND": "1",
    "APT_LISTCHANGES_FRONTEND": "none",
}

# A configuration file that its owner changed stays as it is, and dpkg asks nobody.
_NO_QUESTIONS = ("-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold")

# apt-get exits 0 when a repository could not be reached, unless told to mind.
UPDATE = ("-o", "APT::Update::Error-Mode=any", "update")

HOOKS_OFF = (
    "#clear APT::Update::Pre-Invoke;\n#clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n"
)
"""apt.conf text without the hooks of 'update', which write elsewhere on the system."""


def private_state(directory: str) -> tuple[str, ...]:
    """Options that keep all that 'update' and a simulation write in a directory, which holds HOOKS_OFF as apt.conf."""
    return (
        "-c",
        f"{directory}/apt.conf",
        "-o",
        f"Dir::State::Lists={directory}/lists",
        "-o",
        f"Dir::Cache={directory}/cache",
    )


def full_upgrade(*, autoremove: bool) -> tuple[str, ...]:
    """Arguments that upgrade everything, new dependencies included, as a new kernel needs them."""
    return ("--with-new-pkgs", *(("--autoremove",) if autoremove else ()), "upgrade")


def selected_upgrade(changes: Iterable[PackageChange], *, autoremove: bool) -> tuple[str, ...]:
    """Arguments that upgrade just these packages to just these versions, and what they depend on.

    apt-get has no option for security updates only, so they are selected by where their versions come from.
    """
    wanted = [f"{_qualified(change)}={change.new}" for change in changes if change.old and change.new]
    return (*(("--autoremove",) if autoremove else ()), "install", "--only-upgrade", *wanted)


def unattended(lock_timeout: float) -> tuple[str, ...]:
    """Options for a run that nobody watches.

    dpkg's lock is waited for inside apt, for so many seconds. How far it has come goes to file descriptor 3.
    """
    plain_log = ("-q", "-o", "Dpkg::Use-Pty=0")  # no percentages that overwrite each other
    return ("-y", *plain_log, "-o", f"DPkg::Lock::Timeout={lock_timeout:g}", "-o", "APT::Status-Fd=3", *_NO_QUESTIONS)


# $1: seconds to wait for dpkg's lock.
REPAIR = """\
dpkg --force-confdef --force-confold --configure -a &&
apt-get -y -o "DPkg::Lock::Timeout=$1" -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold -f install
"""
"""A script that finishes what an interrupted package operation has left half done."""


def _qualified(change: PackageChange) -> str:
    """A package's name with its architecture, where it has one."""
    return change.name if change.arch in ("", "all") else f"{change.name}:{change.arch}"


_INSTALL = re.compile(r"Inst (\S+) (?:\[([^\]]+)\] )?\((\S+) (.*?)\s*\[([^\]]+)\]\)")
_REMOVE = re.compile(r"(?:Remv|Purg) (\S+) \[([^\]]+)\]")
_KEPT_BACK = (
    "The following packages have been kept back:",
    "The following upgrades have been deferred due to phasing:",  # Ubuntu, from apt 2.4 on
)


def parse_simulation(output: str) -> Prediction:
    """Read what ``apt-get --simulate`` prints in the C locale."""
    changes, kept_back, in_kept_back = [], [], False
    for line in output.splitlines():
        if in_kept_back and line.startswith("  "):
            kept_back += line.split()
            continue
        in_kept_back = line in _KEPT_BACK
        install, remove = _INSTALL.match(line), _REMOVE.match(line)
        if install:
            name, old, new, origins, arch = install.groups()
            changes.append(PackageChange(_bare(name), arch, old, new, is_security(origins)))
        elif remove:
            name, old = remove.groups()
            changes.append(PackageChange(_bare(name), "", old, None))
    return Prediction(tuple(changes), tuple(kept_back))


def _bare(name: str) -> str:
    """A package's name without the architecture that apt adds for a foreign one."""
    return name.partition(":")[0]


def is_security(origins: str) -> bool:
    """Whether one of a version's origins, such as ``Debian-Security:12/stable-security``, is a security archive.

    Debian's is told by its label, Ubuntu's and the derivatives' by the suffix of the archive's name.
    """
    return any(
        origin.partition(":")[0] == "Debian-Security" or origin.endswith("-security")
        for origin in (part.strip() for part in origins.split(","))
    )


RECORDS_FORMAT = "${Package}\\t${Architecture}\\t${Version}\\t${db:Status-Status}\\n"
"""For ``dpkg-query -W -f``: the format that parse_records reads."""


def parse_records(lines: Iterable[str]) -> dict[tuple[str, str], str]:
    """Read dpkg's own records into versions by name and architecture.

    A package whose files are there counts, even while it waits to be configured or for a trigger; one that is not
    installed, or of which only configuration files are left, does not.
    """
    records = {}
    for line in lines:
        fields = line.split("\t")
        if len(fields) == 4 and fields[3] not in ("not-installed", "config-files"):
            records[(fields[0], fields[1])] = fields[2]
    return records


# Only an error tells that the lock was not got: a line without 'E:' says that apt waited for it, maybe with success.
_LOCKED = re.compile(
    r"^E: (?:Could not get lock|Unable to acquire the dpkg frontend lock|Unable to lock)", re.MULTILINE
)
_HOLDER = re.compile(
    r"Could not get lock (\S+?)\.?(?: It is held by process (\d+) \(([^)]*)\))?(?:\.\.\.| - .*)?$", re.MULTILINE
)
_BROKEN_PACKAGE = re.compile(r"dpkg: error processing (?:package|archive) (\S+)")


class Failure(NamedTuple):
    """What apt was doing when it failed, and what it printed."""

    action: str
    exit_code: int | None
    output: str


def explain(failure: Failure) -> FleetError:
    """The typed error behind a failed apt-get, from its output in the C locale."""
    evidence: dict[str, object] = {"exit_code": failure.exit_code, "output": list(last_lines(failure.output))}
    if _LOCKED.search(failure.output):
        path, pid, program = ([*_HOLDER.findall(failure.output), ("the package manager", "", "")])[0]
        holder = f" by process {pid} ({program})" if pid else ""
        return PackageManagerLocked(
            f"{path} is locked{holder} in the guest",
            remedy="Let the other package manager finish and run again; more or longer retries wait for it "
            "(lock_retries, lock_delay).",
            evidence={**evidence, "lock": path, "holder_pid": pid or None, "holder": program or None},
        )
    if "dpkg was interrupted" in failure.output:
        return PackageStateInterrupted(
            "an earlier package operation in the guest was interrupted",
            remedy="Run 'dpkg --configure -a' in the guest, then run again.",
            evidence=evidence,
        )
    if failure.action == "update":
        return PackageListsFailed(
            f"apt-get update failed in the guest: {_first_error(failure.output)}",
            remedy="See that the guest reaches its repositories and trusts their keys.",
            evidence=evidence,
        )
    broken = sorted({_package_of(found) for found in _BROKEN_PACKAGE.findall(failure.output)})
    culprit = f" at {', '.join(broken)}" if broken else ""
    return UpgradeFailed(
        f"apt-get {failure.action} failed in the guest{culprit}: {_first_error(failure.output)}",
        remedy="Mend the package in the guest ('apt-get -f install', 'dpkg --configure -a'), or revert the snapshot.",
        evidence={**evidence, "packages": broken},
    )


def _package_of(named: str) -> str:
    """The package that dpkg names, either by itself or by an archive such as ``/tmp/…/4-lab-config_1.1_all.deb``."""
    if not named.endswith(".deb"):
        return _bare(named)
    return re.sub(r"\A[0-9]+-", "", named.rpartition("/")[2]).partition("_")[0]


def _first_error(output: str) -> str:
    lines = output.splitlines()
    errors = [line for line in lines if line.startswith("E: ")]
    shown: Sequence[str] = errors or last_lines(output, 1) or ("it printed nothing",)
    return shown[0]
