# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reads and edits the image of a guest that is off.

The image is opened by libguestfs, in an appliance: a small guest of its own, so that nothing that a hostile guest has
put into its file systems meets the hypervisor's kernel. It has no network unless one is asked for.

That the domain is off is looked at under the guest's lock, which the caller holds. libvirt knows nothing of that lock,
and may start the domain at any moment. What protects an image that is a file then is QEMU's own lock on it, which an
appliance that writes holds as long as it lives: the start fails, as opening the image of a running guest would.

Nothing protects a block device so. The lock belongs to an inode, and libvirt gives each QEMU device nodes of its own,
in a mount namespace: both would write. So a domain with such disks is opened only where somebody has said that nothing
starts it meanwhile. It is looked at all the time, and once it runs, the appliance is ended. That takes half a second or
so, in which a guest that starts has hardly come to its boot loader. It narrows the gap and does not close it.
"""

from __future__ import annotations

import os
import posixpath
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ansible_collections.kvm.fleet.plugins.module_utils._clock import Deadline, SystemClock
from ansible_collections.kvm.fleet.plugins.module_utils._domain import Domain, DomainState
from ansible_collections.kvm.fleet.plugins.module_utils._domain_xml import Definition, Disk, parse_definition
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    DomainRunning,
    DomainUnsafe,
    FleetError,
    ImageFailed,
)
from ansible_collections.kvm.fleet.plugins.module_utils._exec import last_lines
from ansible_collections.kvm.fleet.plugins.module_utils._guest_files import MAX_FILE, RootFiles
from ansible_collections.kvm.fleet.plugins.module_utils._guestfish import (
    GUESTFISH,
    VIRT_RESCUE,
    Guestfish,
    appliance,
    cause_of,
    environment,
    guestfish,
    tools_missing,
)

LAUNCH_SECONDS = 300
"""For an appliance to come up. Under emulation, and while libguestfs builds it, that takes a minute or so."""

INSPECT_SECONDS = 300
"""For finding the system in an image of many file systems."""

SCRIPT_SECONDS = 600

RELABEL_SECONDS = 3600
"""For giving every file of a system its SELinux label."""

MAX_OUTPUT = 256 * 1024
"""Bytes to keep of each stream of a script, its last ones."""

NEW = "kvm-fleet-new"

# What libblkid calls a swap device that has the RAM of a hibernated system.
_HIBERNATED = ("swsuspend", "tuxonice")

_FORMAT = re.compile(r"[a-z0-9_+-]+")
_FILE_SYSTEM = re.compile(r"(/dev/[^:\s]+|btrfsvol:\S+): (\S+)")
_MOUNT_POINT = re.compile(r"(/[^\n]*): (/dev/\S+|btrfsvol:\S+)")
_SELINUX = re.compile(rb"^[ \t]*(SELINUX|SELINUXTYPE)[ \t]*=[ \t]*([A-Za-z0-9_-]+)[ \t]*$", re.MULTILINE)
_LABEL = re.compile(r"attrname: security\.selinux\n *attrval: ([A-Za-z0-9_:.,-]+)(?:\\x00)?$", re.MULTILINE)
# Without these, a system's programs and the databases of its packages are not all there. Others may well be missing: an
# image that has to be repaired often has an fstab that names what is gone.
_OF_THE_SYSTEM = ("/boot/", "/usr/", "/var/")


@dataclass(frozen=True)
class Drive:
    """A disk as the appliance gets it. QEMU's lock protects a file, and no ``block_device``."""

    path: str
    format: str
    block_device: bool = False


def drives_of(name: str, definition: Definition) -> tuple[Drive, ...]:
    """All disks that the guest writes to, since volumes may lie on several. Raises ImageFailed for one that is none.

    Formats are those of the definition. One that is guessed from what a raw disk begins with is the guest's choice.
    """
    drives = tuple(_drive(name, disk) for disk in definition.writable_disks)
    if not drives:
        raise ImageFailed(f"domain {name!r} has no disk that it can write to", remedy="See its definition.")
    return drives


def _drive(name: str, disk: Disk) -> Drive:
    path = disk.file or disk.device
    problem = ""
    if disk.encrypted:
        problem = "is encrypted by QEMU"
    elif disk.kind not in ("file", "block") or path is None:
        problem = f"is of type {disk.kind}, which is neither a file nor a block device of this machine"
    elif not _FORMAT.fullmatch(disk.format):
        problem = f"has the format {disk.format!r}"
    if problem or path is None:
        raise ImageFailed(
            f"disk {disk.target} of domain {name!r} {problem} and is not opened here",
            remedy="Work on this guest by other means, such as a rescue system in the guest.",
            evidence={"disk": disk.target, "type": disk.kind},
        )
    return Drive(path, disk.format, disk.kind == "block" or _is_block_device(path))


def _is_block_device(path: str) -> bool:
    """libvirt takes one for a disk of type file as well."""
    with suppress(OSError):  # what cannot be looked at, libguestfs does not open
        return Path(path).is_block_device()
    return False


def check(
    domain: Domain,
    *,
    uri: str,
    shut_off: bool = True,
    block_devices: bool = False,
    program: str = GUESTFISH,
) -> tuple[Drive, ...]:
    """The drives of a domain whose image can be opened, as far as can be told without opening it.

    With ``shut_off`` it has to be off by now. ``block_devices`` says that nothing starts it meanwhile, without which it
    may have none. ``program`` is what will open it.
    Raises DomainRunning, DomainUnsafe, ImageFailed and ImageToolsMissing.
    """
    state = domain.state()
    virsh = "virsh" if uri == "qemu:///system" else f"virsh -c {shlex.quote(uri)}"
    quoted = shlex.quote(domain.name)
    if shut_off and state is not DomainState.SHUT_OFF:
        # One that has crashed may still have its QEMU, and has nobody to ask.
        remedy = (
            f"End its QEMU first: '{virsh} destroy -- {quoted}'."
            if state is DomainState.CRASHED
            else f"Shut it down first: '{virsh} shutdown -- {quoted}', or kvm.fleet.domain_power."
        )
        raise DomainRunning(
            f"domain {domain.name!r} is {state.value.replace('_', ' ')}; its image is worked on only while it is off",
            remedy=remedy,
            evidence={"state": state.value},
        )
    if domain.has_managed_save():
        raise DomainUnsafe(
            f"domain {domain.name!r} has a managed save image: its RAM in there knows the disks as they are now, and "
            "would damage them after a change",
            remedy=f"Start it and shut it down properly, or drop its RAM: '{virsh} managedsave-remove -- {quoted}'.",
        )
    found = drives_of(domain.name, parse_definition(domain.xml()))
    unlocked = [drive.path for drive in found if drive.block_device]
    if unlocked and not block_devices:
        raise DomainUnsafe(
            f"domain {domain.name!r} has disks that are block devices, and no lock would keep it from being started "
            f"while its image is worked on: {', '.join(unlocked)}",
            remedy="See that nothing starts it meanwhile, such as a cluster manager, and allow it then (the option "
            "block_devices).",
            evidence={"block_devices": unlocked},
        )
    if shutil.which(program) is None:
        raise tools_missing(program)
    return found


def virt_rescue(domain: Domain, drives: Sequence[Drive]) -> str:
    """The command that opens a shell on the image, for a terminal of the hypervisor."""
    emulated = parse_definition(domain.xml()).emulated
    chosen = [f"{name}={value}" for name, value in appliance(emulated=emulated).items()]
    disks = [word for drive in drives for word in (f"--format={drive.format}", "-a", drive.path)]
    return shlex.join(["env", *chosen, VIRT_RESCUE, *disks, "-i"])


def _stop_when_it_runs(domain: Domain) -> FleetError | None:
    """Why the appliance on a domain's block devices has to be ended at once, if it has."""
    try:
        state = domain.state()
    except FleetError as error:
        return error  # nobody knows any more whether it runs
    if state is DomainState.SHUT_OFF:
        return None
    return DomainRunning(
        f"domain {domain.name!r} was started while its image was worked on, and is "
        f"{state.value.replace('_', ' ')}; what worked on its block devices was ended at once",
        remedy="Its disks are as after a power failure, and both may have written for half a second: see in the guest "
        "whether its file systems are in order. Find out what has started it.",
        evidence={"state": state.value},
    )


@contextmanager
def open_disks(
    domain: Domain,
    *,
    uri: str,
    read_only: bool = False,
    shut_off: bool = True,
    block_devices: bool = False,
    network: bool = False,
) -> Iterator[Disks]:
    """The disks of a domain that is off, in an appliance, with nothing mounted yet.

    ``read_only`` opens a copy that is thrown away: it can be written to as well, and nothing of that stays. It does not
    lock the image; a domain that is started meanwhile is not disturbed, and what is read may then fit no single moment.
    So it may be of a domain that still runs as well, unless ``shut_off``: its disks are then as after a power failure.
    ``network`` gives the appliance QEMU's user-mode network: what runs in it can then reach whatever a process of the
    hypervisor can, the services on its loopback included.

    A guest that is hibernated is refused: resumed, it would go on with what it knew of its file systems.
    Raises what ``check`` raises, DomainUnsafe and ImageFailed.
    """
    drives = check(domain, uri=uri, shut_off=shut_off or not read_only, block_devices=block_devices)
    variables = environment(os.environ, emulated=parse_definition(domain.xml()).emulated)
    watched = not read_only and any(drive.block_device for drive in drives)
    for verbose in (False, True):
        with guestfish(variables, (lambda: _stop_when_it_runs(domain)) if watched else (lambda: None)) as fish:
            if network:
                fish.call("set-network", "true")
            if not _launched(domain.name, fish, drives, read_only=read_only, verbose=verbose):
                continue
            disks = Disks(domain.name, fish)
            disks.require_not_hibernated()
            yield disks
            disks.settle()
            fish.close()
            return


def _launched(name: str, fish: Guestfish, drives: Sequence[Drive], *, read_only: bool, verbose: bool) -> bool:
    """Have the appliance come up. One that does not is tried once more, to say why: only then does libguestfs tell."""
    if verbose:
        fish.call("verbose", "true")
    mode = {"readonly": "true"} if read_only else {}
    for drive in drives:
        fish.call("add", drive.path, options={"format": drive.format, **mode})
    why = fish.tried("run", timeout=LAUNCH_SECONDS)
    if why and verbose:
        raise ImageFailed(
            f"the image of domain {name!r} cannot be opened: {cause_of(fish.said) or why}",
            remedy="A lock means that something else has the image open. Otherwise see what 'libguestfs-test-tool' "
            "says on the hypervisor: libguestfs needs a kernel in /boot that it may read, and KVM or "
            "LIBGUESTFS_BACKEND_SETTINGS=force_tcg.",
            evidence={"output": list(last_lines(fish.said.decode("utf-8", "replace")))},
        )
    return not why


class Disks:
    """The disks of a domain in an appliance that runs."""

    def __init__(self, name: str, fish: Guestfish) -> None:
        self.fish = fish
        self._name = name
        self._image: Image | None = None

    def file_systems(self) -> dict[str, str]:
        """What type of file system is on each device of the appliance."""
        return dict(self._pairs("list-filesystems", _FILE_SYSTEM))

    def require_not_hibernated(self) -> None:
        """Raise DomainUnsafe where a swap device has the guest's RAM.

        Nothing is mounted for it, as it is to find a guest's system, and even to list the file systems where one is
        btrfs: that alone would change them.
        """
        listings = ["list-devices", "list-partitions"]
        if self.fish.text("feature-available", "lvm2") == "true":
            listings.append("lvs")
        devices = [device for listing in listings for device in self.fish.text(listing).splitlines()]
        saved = [device for device in devices if self.fish.text("vfs-type", device) in _HIBERNATED]
        if saved:
            raise DomainUnsafe(
                f"domain {self._name!r} is hibernated: its RAM is on {', '.join(saved)} of its image and knows the "
                "file systems as they are now; resumed after a change, it would damage them",
                remedy="Start it, so that it resumes, and shut it down properly.",
                evidence={"devices": saved},
            )

    def mount(self) -> Image:
        """Find the system on the disks and mount its file systems. Raises ImageFailed."""
        roots = self.fish.text("inspect-os", timeout=INSPECT_SECONDS).splitlines()
        if len(roots) != 1:
            raise self._no_system(roots)
        root = roots[0]
        kind = self.fish.text("inspect-get-type", root)
        if kind != "linux":
            raise ImageFailed(
                f"the system on the image of domain {self._name!r} is {kind}, not Linux",
                remedy="Work on this guest by other means.",
                evidence={"root": root},
            )
        points = dict(self._pairs("inspect-get-mountpoints", _MOUNT_POINT, root))
        unmounted = {}
        for point in sorted(points, key=len):
            why = self.fish.tried("mount", points[point], point)
            if why and (point == "/" or f"{point}/".startswith(_OF_THE_SYSTEM)):
                unmounted[point] = why
        if unmounted:
            raise ImageFailed(
                f"file systems of domain {self._name!r} cannot be mounted: {', '.join(sorted(unmounted))}",
                remedy="Have them checked and repaired first: repairs: [fsck] of kvm.fleet.guest_repair.",
                evidence={"errors": unmounted},
            )
        self._image = Image(self.fish, root)
        return self._image

    def settle(self) -> None:
        """What is left to do once all changes were made. Raises ImageFailed."""
        if self._image:
            self._image.relabel()

    def _no_system(self, roots: Sequence[str]) -> ImageFailed:
        systems = self.file_systems()
        evidence = {"roots": list(roots), "file_systems": systems}
        if roots:
            return ImageFailed(
                f"domain {self._name!r} has {len(roots)} systems on its image, and which one it boots is not known",
                remedy="Work on this guest by other means.",
                evidence=evidence,
            )
        encrypted = sorted(device for device, kind in systems.items() if kind == "crypto_LUKS")
        why = f": {', '.join(encrypted)} is encrypted" if encrypted else ""
        return ImageFailed(
            f"no system was found on the image of domain {self._name!r}{why}",
            remedy="Work on this guest by other means."
            if encrypted
            else "See whether its file systems are damaged: repairs: [fsck] of kvm.fleet.guest_repair.",
            evidence=evidence,
        )

    def _pairs(self, command: str, line: re.Pattern[str], *words: str) -> Iterator[tuple[str, str]]:
        for told in self.fish.text(command, *words, timeout=INSPECT_SECONDS).splitlines():
            match = line.fullmatch(told)
            if not match:
                raise ImageFailed(
                    f"{command} answers {told!r} about domain {self._name!r}, which is not understood",
                    remedy="Look at the image by hand; what is in it may be damaged or hostile.",
                )
            yield match.group(1), match.group(2)


@contextmanager
def open_image(
    domain: Domain, *, uri: str, read_only: bool = False, shut_off: bool = True, block_devices: bool = False
) -> Iterator[Image]:
    """The image of a domain that is off, with the file systems of its system mounted. See ``open_disks``."""
    with ExitStack() as stack:
        disks = open_disks(domain, uri=uri, read_only=read_only, shut_off=shut_off, block_devices=block_devices)
        yield stack.enter_context(disks).mount()


class Relabel(str, Enum):
    """What becomes of the SELinux labels of a guest in whose image programs have run."""

    DONE = "done"
    """Every file has the label that the guest's policy gives it."""
    AT_BOOT = "at_boot"
    """The guest labels them itself when it is started next, which takes it minutes and one more reboot."""


class Image:
    """The system of a guest that is off."""

    def __init__(self, fish: Guestfish, root: str) -> None:
        self.files: RootFiles = ImageFiles(fish)
        self.selinux_relabel: Relabel | None = None
        """None where it is not needed: nothing has run, or the guest does without SELinux."""
        self._fish = fish
        self._root = root
        self._has_run = False
        self._policy = ""

    @property
    def package_format(self) -> str:
        """How the system's packages are made: deb, rpm, or another word of libguestfs's."""
        return self._fish.text("inspect-get-package-format", self._root)

    def run(self, script: str, timeout: float = SCRIPT_SECONDS) -> str:
        """Run a script by the guest's own shell and programs, and return what it writes to standard output.

        The kernel is the appliance's. /run is empty, as it is when a system begins to boot, and what is put there is
        gone with the appliance. There is no init system, and no network unless the disks were opened with one.
        Raises ImageFailed, with the end of its output, when the script returns other than zero.
        """
        deadline = Deadline(SystemClock(), timeout)
        self._prepare()
        _upload(self._fish, script.encode("utf-8"), f"{_RUN}/script")
        status = self._sh(
            f"/bin/sh {_RUN}/script >{_RUN}/stdout 2>{_RUN}/stderr </dev/null; echo $?", deadline.remaining
        )
        stdout, stderr = (self._end_of(f"{_RUN}/{stream}") for stream in ("stdout", "stderr"))
        if status != "0":
            said = [*last_lines(stdout), *last_lines(stderr)]
            raise ImageFailed(
                f"the script returned {status}: {said[-1] if said else 'it printed nothing'}",
                remedy="See what it printed; what it had done by then is in the image.",
                evidence={"rc": status, "stdout": list(last_lines(stdout)), "stderr": list(last_lines(stderr))},
            )
        return stdout

    def relabel(self) -> None:
        """Label what programs have written into the image, or leave it to the guest's next boot.

        Their files have no labels, since the appliance's kernel has no policy, and a confined program of an enforcing
        guest may not touch such files. What is written by ``files`` is labelled already. libguestfs may have been built
        without the means, and a policy may have no list of labels.
        """
        if self.selinux_relabel is None:
            return
        contexts = f"/etc/selinux/{self._policy}/contexts/files/file_contexts"
        if not self._fish.tried("selinux-relabel", contexts, "/", timeout=RELABEL_SECONDS):
            self._fish.call("rm-f", _AUTORELABEL)
            self.selinux_relabel = Relabel.DONE

    def _prepare(self) -> None:
        if self._has_run:
            return
        # Asked for ahead, so that it holds for what a script leaves that fails, or whose appliance dies.
        self._policy = selinux_policy(self.files.read("/etc/selinux/config") or b"")
        if self._policy:
            self._fish.call("touch", _AUTORELABEL)
            self._fish.call("sync")
            self.selinux_relabel = Relabel.AT_BOOT
        # Sized, so that what floods it meets a full disk and not an appliance without memory.
        self._sh(
            f"mount -t tmpfs -o size=64m,mode=755 tmpfs /run && mkdir -m 1777 /run/lock && mkdir -m 700 {_RUN}", 60
        )
        self._has_run = True

    def _sh(self, command: str, timeout: float) -> str:
        return self._fish.text("sh", command, timeout=max(timeout, 1)).strip()

    def _end_of(self, path: str) -> str:
        size = int(self._fish.text("filesize", path))
        start = max(0, size - MAX_OUTPUT)
        # Two of its words are numbers, which guestfish takes quoted as well.
        raw = self._fish.call("download-offset", path, "-", str(start), str(size - start))
        return raw.decode("utf-8", "replace")


def selinux_policy(config: bytes) -> str:
    """The name of the policy by which a system goes, from its /etc/selinux/config; empty where SELinux is off."""
    given: dict[bytes, str] = {name: value.decode("ascii") for name, value in _SELINUX.findall(config)}
    if given.get(b"SELINUX", "disabled").lower() == "disabled":
        return ""
    return given.get(b"SELINUXTYPE", "targeted")


_RUN = "/run/kvm-fleet"
_AUTORELABEL = "/.autorelabel"
"""The file by which a system with SELinux is told to label all of its files when it boots."""
_FOLLOWED = {"followsymlinks": "true"}


class ImageFiles:
    """The files in an image that is mounted."""

    def __init__(self, fish: Guestfish) -> None:
        self._fish = fish

    def read(self, path: str) -> bytes | None:
        """All of a file, or None where there is none. Raises ImageFailed for what is no file, or too long."""
        if not self._is("exists", path):
            return None
        self._require_file(path)
        size = int(self._fish.text("filesize", path))
        if size > MAX_FILE:
            raise ImageFailed(
                f"{path} in the image has {size} bytes, more than the {MAX_FILE} that are read",
                remedy="See what has made it so long.",
            )
        return self._fish.call("download", path, "-", limit=MAX_FILE)

    def write(self, path: str, content: bytes, *, like: str | None = None) -> None:
        """Give a file this content, the whole of it or nothing.

        It is written beside, gets all attributes of the one that is there (owner, mode, ACL, the SELinux label and
        other extended attributes), and takes its place by one rename: an appliance that dies on the way, or the
        hypervisor, leaves the old one. Writing into the file would keep the attributes by itself, and might leave half
        a file. A file that is new gets the attributes of the one that it is to be ``like``, or the SELinux label of its
        directory, as the guest's kernel would give it. Of a symbolic link, what it leads to is written.
        """
        model = self._fish.text("realpath", like) if like else None
        if self._is("exists", path):
            path = self._fish.text("realpath", path)
            self._require_file(path)
            model = model or path
        elif self._is("is-symlink", path):
            raise ImageFailed(f"{path} in the image is a symbolic link to nothing", remedy="Put it in order by hand.")
        else:
            self._make_directory(posixpath.dirname(path))
        directory, name = posixpath.split(path)
        new = posixpath.join(directory, f".{name}.{NEW}")
        self._fish.call("rm-f", new)
        _upload(self._fish, content, new)
        if model:
            self._fish.call("copy-attributes", model, new, options={"all": "true"})
        else:
            self._fish.call("chmod", "0644", new)
            self._label_like(directory, new)
        self._fish.call("sync")
        self._fish.call("mv", new, path)
        self._fish.call("sync")

    def remove(self, path: str) -> None:
        self._fish.call("rm-f", path)
        self._fish.call("sync")

    def names(self, directory: str) -> Sequence[str]:
        """The names in a directory, sorted; none where there is no such directory."""
        if not self._is("is-dir", directory, options=_FOLLOWED):
            return ()
        listed = self._fish.call("ls0", directory, "-")
        return sorted(os.fsdecode(name) for name in listed.split(b"\0") if name)

    def _is(self, question: str, path: str, options: Mapping[str, str] | None = None) -> bool:
        return self._fish.text(question, path, options=options) == "true"

    def _require_file(self, path: str) -> None:
        if not self._is("is-file", path, options=_FOLLOWED):
            raise ImageFailed(f"{path} in the image is not a file", remedy="See what it is; the guest may be hostile.")

    def _make_directory(self, directory: str) -> None:
        if self._is("exists", directory):
            return
        above = posixpath.dirname(directory)
        self._make_directory(above)
        self._fish.call("mkdir-mode", directory, "0755")
        self._label_like(above, directory)

    def _label_like(self, model: str, path: str) -> None:
        label = _LABEL.search(self._fish.text("lgetxattrs", model))
        if label:
            value = label.group(1)
            self._fish.call("lsetxattr", "security.selinux", value, str(len(value)), path)


def _upload(fish: Guestfish, content: bytes, path: str) -> None:
    """Write a file from one of ours: guestfish's words hold no arbitrary bytes."""
    with tempfile.NamedTemporaryFile(prefix="kvm-fleet-") as ours:
        ours.write(content)
        ours.flush()
        fish.call("upload", ours.name, path)
