# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Repairs what keeps a guest from coming up, on its image while it is off."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from ansible_collections.kvm.fleet.plugins.module_utils import _image
from ansible_collections.kvm.fleet.plugins.module_utils._agent import READ_COMMANDS, WRITE_COMMANDS
from ansible_collections.kvm.fleet.plugins.module_utils._agent_config import read_config
from ansible_collections.kvm.fleet.plugins.module_utils._audit import Audit
from ansible_collections.kvm.fleet.plugins.module_utils._clock import SystemClock
from ansible_collections.kvm.fleet.plugins.module_utils._domain import Domain
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    FleetError,
    ImageFailed,
    InvalidRequest,
    PackageManagerUnknown,
)
from ansible_collections.kvm.fleet.plugins.module_utils._guestfish import GUESTFISH, VIRT_RESCUE, Guestfish
from ansible_collections.kvm.fleet.plugins.module_utils._image import Disks, Image, Relabel, open_disks
from ansible_collections.kvm.fleet.plugins.module_utils._policy import EXEC_RPCS, LIFELINES, plan
from ansible_collections.kvm.fleet.plugins.module_utils._policy import Wanted as WantedPolicy
from ansible_collections.kvm.fleet.plugins.module_utils._policy_ways import (
    Written,
    audit_facts,
    change_files,
    kept_in_guest,
    tell_of_copies,
)


class Repair(str, Enum):
    FSCK = "fsck"
    """The file systems are checked, and what is damaged is repaired."""
    PACKAGES = "packages"
    """What dpkg was interrupted in is finished; a database of rpm's that does not verify is made anew."""
    AGENT = "agent"
    """The guest's agent is allowed what this collection needs of it."""
    SCRIPT = "script"
    """Whatever somebody has written."""


@dataclass(frozen=True)
class Wanted:
    """What is to be done, in this order: file systems first, since nothing is safe on those that are damaged.

    ``block_devices`` says that nothing starts the domain meanwhile. With ``shell``, a person is going to do it instead.
    ``run`` is for the audit. With ``rehearse``, all of it is only tried, also on a domain that runs.
    """

    fsck: bool
    packages: bool
    script: str | None
    timeout: float
    agent: bool = False
    shell: bool = False
    block_devices: bool = False
    run: str | None = None
    network: bool = False
    rehearse: bool = False

    @property
    def repairs(self) -> tuple[Repair, ...]:
        asked = (
            (Repair.FSCK, self.fsck),
            (Repair.PACKAGES, self.packages),
            (Repair.AGENT, self.agent),
            (Repair.SCRIPT, self.script is not None),
        )
        return tuple(repair for repair, is_asked in asked if is_asked)

    def check(self) -> None:
        """Raise InvalidRequest for what cannot be meant."""
        if self.repairs and self.shell:
            raise InvalidRequest(
                "repairs are not done in a shell", remedy="Ask for one or the other: a shell is for a person."
            )
        if not self.repairs and not self.shell:
            raise InvalidRequest("there is nothing to repair", remedy="Name repairs, or give a script.")
        if self.timeout <= 0:
            raise InvalidRequest(f"a timeout of {self.timeout:g} s cannot be meant", remedy="Give one above zero.")
        if self.script is not None and (not self.script.strip() or "\0" in self.script):
            raise InvalidRequest("the script is empty, or has a NUL byte", remedy="Give a script for /bin/sh.")


@dataclass(frozen=True)
class Done:
    """One repair: whether it has changed anything, and what it printed."""

    repair: Repair
    changed: bool
    output: str

    def facts(self) -> dict[str, Any]:
        """As results and evidence have it."""
        return {"name": self.repair.value, "changed": self.changed, "output": self.output}


def foresee(domain: Domain, wanted: Wanted, *, uri: str) -> str | None:
    """See that the image could be opened once the domain is off. Returns the command for a shell, if one is wanted.

    Raises what _image.check raises.
    """
    wanted.check()
    program = VIRT_RESCUE if wanted.shell else GUESTFISH
    drives = _image.check(domain, uri=uri, shut_off=False, block_devices=wanted.block_devices, program=program)
    return _image.virt_rescue(domain, drives) if wanted.shell else None


class Repaired(NamedTuple):
    """All that was done, and what becomes of the guest's SELinux labels; None where they need not be seen to."""

    done: tuple[Done, ...]
    selinux_relabel: Relabel | None

    def facts(self) -> dict[str, Any]:
        """As results and evidence have it."""
        return {
            "repairs": [one.facts() for one in self.done],
            "selinux_relabel": self.selinux_relabel.value if self.selinux_relabel else None,
        }


def repair(domain: Domain, wanted: Wanted, *, uri: str, check: bool) -> Repaired:
    """Do the repairs on the image of a domain that is off; in check mode, on a copy that is thrown away.

    What is only rehearsed is done on such a copy, too. Of a domain that runs, that has what is on its disks just then.

    The first one that fails ends it. Its error tells, as evidence, which it was, what was done before it, and what
    becomes of the labels.
    Raises what open_disks raises, ImageFailed, PackageManagerUnknown and PolicyUnsupported.
    """
    wanted.check()
    if wanted.shell:
        raise InvalidRequest("a shell is not opened by a module", remedy="Ask for it with before_shutdown alone.")
    done: list[Done] = []
    image: Image | None = None
    check = check or wanted.rehearse
    opened = open_disks(
        domain,
        uri=uri,
        read_only=check,
        shut_off=not wanted.rehearse,
        block_devices=wanted.block_devices,
        network=wanted.network,
    )
    with opened as disks:
        for which in wanted.repairs:
            try:
                if which is Repair.FSCK:
                    done.append(check_file_systems(disks, wanted.timeout))
                    continue
                image = image or disks.mount()
                if which is Repair.PACKAGES:
                    done.append(repair_packages(image, wanted.timeout))
                elif which is Repair.AGENT:
                    audit = None if check else Audit(uri, SystemClock())
                    done.append(repair_agent(image, domain, audit, wanted.run))
                else:
                    done.append(Done(Repair.SCRIPT, True, image.run(wanted.script or "", wanted.timeout)))
            except FleetError as error:
                error.evidence.update(repair=which.value, repairs=[one.facts() for one in done])
                if image and image.selinux_relabel:
                    error.evidence["selinux_relabel"] = image.selinux_relabel.value
                raise
        if image and wanted.rehearse:
            image.selinux_relabel = None  # nobody boots that copy, and to label all of its files takes minutes
    return Repaired(tuple(done), image.selinux_relabel if image else None)


# --- file systems --------------------------------------------------------------------------------

_UNCORRECTED = 4
"""fsck's bit for errors that are left; lower ones are of what was corrected, higher ones of what went wrong."""

_XFS_LOG_IS_DIRTY = 2


def check_file_systems(disks: Disks, timeout: float) -> Done:
    """Check every file system that can be, whatever it is mounted for, and repair it. Raises ImageFailed."""
    told = []
    for device, kind in disks.file_systems().items():
        if kind in ("swap", "unknown"):
            continue
        check = _CHECKS.get(kind)
        corrected = check(disks.fish, kind, device, timeout) if check else None
        told.append((f"{device} ({kind}): {_VERDICTS[corrected]}", corrected))
    return Done(
        Repair.FSCK, any(corrected for _line, corrected in told), "".join(f"{line}\n" for line, _corrected in told)
    )


_VERDICTS = {None: "not checked, nothing here checks this kind", True: "errors were corrected", False: "clean"}


def _check_ext(fish: Guestfish, kind: str, device: str, timeout: float) -> bool:
    status = _fsck(fish, kind, device, timeout)
    if not status & _UNCORRECTED:
        # A file system that is marked clean was only glanced at. One that has been mounted too often is looked through.
        limit = _setting(fish.text("tune2fs-l", device), "Maximum mount count")
        fish.call("tune2fs", device, options={"maxmountcount": "1", "mountcount": "2"})
        status |= _fsck(fish, kind, device, timeout)
        # 0 and -1 mean the same, and only one of them is taken. Whoever dies before this leaves a guest that checks its
        # file system at each boot.
        fish.call("tune2fs", device, options={"maxmountcount": str(max(limit, 0))})
    if status & _UNCORRECTED:
        # What e2fsck would ask a person about; every question is answered as its own advice is.
        fish.call("e2fsck", device, options={"forceall": "true"}, timeout=timeout)
        if _fsck(fish, kind, device, timeout) & ~(_UNCORRECTED - 1):
            raise _damaged(device, kind)
    return status != 0


def _setting(listed: str, name: str) -> int:
    found = re.search(rf"^{name}: *(-?\d+)$", listed, re.MULTILINE)
    return int(found.group(1)) if found else -1


def _check_by_fsck(fish: Guestfish, kind: str, device: str, timeout: float) -> bool:
    status = _fsck(fish, kind, device, timeout)
    if status & _UNCORRECTED:
        raise _damaged(device, kind)
    return status != 0


def _fsck(fish: Guestfish, kind: str, device: str, timeout: float) -> int:
    status = int(fish.text("fsck", kind, device, timeout=timeout), 0)  # told in hexadecimal where it is not 0
    if status >= 2 * _UNCORRECTED:
        raise ImageFailed(
            f"{device} ({kind}) could not be checked: fsck returned {status}",
            remedy="See whether the appliance of libguestfs has the tools for this kind of file system.",
            evidence={"device": device, "status": status},
        )
    return status


def _check_xfs(fish: Guestfish, kind: str, device: str, timeout: float) -> bool:
    if fish.text("xfs-repair", device, options={"nomodify": "true"}, timeout=timeout) == "0":
        return False
    status = int(fish.text("xfs-repair", device, timeout=timeout), 0)
    if status == _XFS_LOG_IS_DIRTY:
        # What is in its log would be lost by a repair; mounting writes it to its place.
        why = fish.tried("mount", device, "/")
        if why:
            raise _damaged(device, kind, f": its log cannot be replayed ({why}); 'xfs_repair -L' would drop it")
        fish.call("umount-all")
        status = int(fish.text("xfs-repair", device, timeout=timeout), 0)
    if status:
        raise _damaged(device, kind)
    return True


def _damaged(device: str, kind: str, why: str = "") -> ImageFailed:
    return ImageFailed(
        f"{device} ({kind}) has errors that were not corrected{why}",
        remedy="Restore the guest from a backup or a snapshot, or work on the image with virt-rescue.",
        evidence={"device": device},
    )


_CHECKS = {
    **dict.fromkeys(("ext2", "ext3", "ext4"), _check_ext),
    "vfat": _check_by_fsck,
    "xfs": _check_xfs,
}


# --- packages ------------------------------------------------------------------------------------

# Each prints what was changed as its first line: yes or no.
_DPKG = """\
exec 2>&1
export LC_ALL=C DEBIAN_FRONTEND=noninteractive PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
before=$(sha256sum /var/lib/dpkg/status) || exit
said=$(dpkg --force-confdef --force-confold --configure -a) || { code=$?; printf '%s\\n' "$said"; exit "$code"; }
[ "$before" = "$(sha256sum /var/lib/dpkg/status)" ] && echo no || echo yes
printf '%s\\n' "$said"
# What is left needs a repository, and that a network: a package to unpack again, a dependency that is not there.
left=$(dpkg --audit) || exit
[ -z "$left" ] || { printf '%s\\n' "$left"; exit 1; }
"""

_RPM = """\
exec 2>&1
export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
if said=$(rpmdb --verifydb && rpm -qa 2>&1 >/dev/null) && [ -z "$said" ]; then echo no; exit 0; fi
printf 'yes\\n%s\\n' "$said"
rpmdb --rebuilddb && rpmdb --verifydb
"""


def repair_packages(image: Image, timeout: float) -> Done:
    """Bring the package database in order, by what the guest has itself. Raises ImageFailed, PackageManagerUnknown."""
    script = {"deb": _DPKG, "rpm": _RPM}.get(image.package_format)
    if script is None:
        raise PackageManagerUnknown(
            f"packages of the kind {image.package_format} are not known here; known are deb and rpm",
            remedy="Leave the repair 'packages' out for this guest, or bring a script of your own.",
        )
    verdict, _newline, output = image.run(script, timeout).partition("\n")
    return Done(Repair.PACKAGES, verdict == "yes", output)


# --- the agent -----------------------------------------------------------------------------------

AGENT_RPCS = tuple(dict.fromkeys((*LIFELINES, *EXEC_RPCS, *READ_COMMANDS, *WRITE_COMMANDS)))
"""What this collection needs of an agent: to be spoken to, commands, and files."""


def repair_agent(image: Image, domain: Domain, audit: Audit | None, run: str | None) -> Done:
    """Have the agent's settings allow what is needed of it, as guest_agent_policy does offline.

    All other settings stay, and a copy of each changed file is kept beside it. Without ``audit``, all of it is thrown
    away. Raises ImageFailed, PolicyUnsupported and RecordUnavailable.
    """
    wanted = WantedPolicy(AGENT_RPCS, allowed=True)
    kept = [kept_in_guest(image.files, change) for change in plan(read_config(image.files, None), wanted)]
    told = [one.facts() for one in kept]
    facts = audit_facts(domain.name, domain.uuid, "rescue", wanted, told, run=run, owner=None)
    began = False

    def announce(_written: list[Written]) -> None:
        nonlocal began
        if audit:
            audit.add("changing", facts)
            began = True

    try:
        change_files(image.files, kept, announce)
    except FleetError as error:
        if audit and began:
            tell_of_copies(error, kept)
            audit.add("failed", {**facts, "error_code": error.error_code, "msg": error.message})
        raise
    if audit and kept:
        audit.add("changed", {**facts, "proved": False})
    output = "".join(_told(file) for file in told) or f"its settings allow {', '.join(AGENT_RPCS)} already\n"
    return Done(Repair.AGENT, bool(kept), output)


def _told(file: Mapping[str, Any]) -> str:
    """The lines of a file that were changed, and where its old content is."""
    lines = [
        f"{file['path']}: {sign} {line[side]}\n"
        for line in file["lines"]
        for sign, side in (("-", "before"), ("+", "after"))
        if line[side] is not None
    ]
    return "".join([*lines, f"{file['path']}: its old content is in {file['backup']}\n" if file["backup"] else ""])
