# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A hypervisor's own view of this machine: its processes are alone, and some folders are theirs only.

All of it hangs on one process, the first of its namespaces: with that one end all others, its mounts and its network,
however the lab itself came to its end.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lab import accelerator
from lab.clock import wait_until
from lab.errors import LabError
from lab.places import INSTALLED_EMULATOR, RUN_RECORDS, TPM_LOGS, Place
from lab.process import running_with
from lab.run import run

if TYPE_CHECKING:
    from lab.process import Process

UP_WITHIN_S = 15
RUN = Path("/run")
PASSWD = Path("/etc/passwd")
HOSTS = Path("/etc/hosts")
# What libvirt and the collection keep where. With an empty /run, neither systemd nor D-Bus of the machine is there:
# libvirt would have the former look after its guests.
FOLDERS = (
    *(RUN, Path("/etc/libvirt"), Path("/var/cache/libvirt"), Path("/var/lib/libvirt"), Path("/var/log/libvirt")),
    *(RUN_RECORDS.parent, TPM_LOGS.parents[1]),
)
NAMESPACES = ("--mount", "--net", "--pid", "--uts")

# What is started here must not hold the pipes of whoever starts it.
_APART = 'log=$1; shift; exec setsid --fork "$@" </dev/null >"$log" 2>&1'
# Whoever ignores SIGCHLD has nothing to wait for: processes that lose their parent come to the first one, and are gone
# when they end.
_FIRST = """\
hostname "$1"
alive=$2
shift 2
while [ "$#" -gt 0 ]; do
    mount --bind "$1" "$2"
    shift 2
done
exec env --ignore-signal=CHLD tail --follow "$alive"
"""


@dataclass(frozen=True)
class View:
    """What the processes of a hypervisor see; `directory` has what is theirs only."""

    name: str
    """Its host name."""
    directory: Path
    emulators: Path
    """The folder, as they name it, that has its copies of QEMU."""
    guests: Path
    hosts: str
    """The lines of a hosts(5) by which it knows others, and itself: without one, libvirt waits for name servers."""

    @property
    def place(self) -> Place:
        """Where it has what is the lab's."""
        socket = self._kept(RUN) / "libvirt" / "libvirt-sock"
        own = tuple((folder, self._kept(folder)) for folder in (*FOLDERS, self.emulators))
        return Place(
            f"qemu+unix:///system?socket={socket}", self.guests, self.emulators / "bin" / INSTALLED_EMULATOR.name, own
        )

    @property
    def _alive(self) -> Path:
        return self.directory / "alive"

    def _kept(self, named: Path) -> Path:
        return self.directory / "own" / named.relative_to("/")

    def first(self) -> Process | None:
        """The process that all hangs on; none if the hypervisor is off."""
        found = running_with("tail", str(self._alive))
        return found[0] if found else None

    def open(self) -> Process:
        """Have a view with nothing running in it but the first process, and with what a machine keeps over its boot."""
        shutil.rmtree(self._kept(RUN), ignore_errors=True)
        for folder in (*FOLDERS, self.emulators):
            self._kept(folder).mkdir(mode=0o755, parents=True, exist_ok=True)
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        for name in ("lock", "sshd"):
            (self._kept(RUN) / name).mkdir(mode=0o755)
        self._provide_emulators()
        self._alive.touch()
        own = [*FOLDERS, self.emulators, *self._provide_files()]
        binds = [word for named in own for word in (self._kept(named), named)]
        unshare = ["unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc"]
        log = self.directory / "view.log"
        run(["sh", "-c", _APART, "sh", log, *unshare, "sh", "-e", "-c", _FIRST, "sh", self.name, self._alive, *binds])
        wait_until(lambda: self.first() is not None, UP_WITHIN_S, every_s=0.02)
        started = self.first()
        if started is None:
            said = log.read_text(encoding="utf-8", errors="replace").strip()
            raise LabError(f"{self.name} has no view of its own: {said}", "it needs a machine on which root may mount")
        return started

    def _provide_emulators(self) -> None:
        """QEMU looks for its firmware and its modules relative to its own folder."""
        kept = self._kept(self.emulators)
        (kept / "bin").mkdir(mode=0o755, exist_ok=True)
        for name in ("lib", "share"):
            link = kept / name
            if not link.is_symlink():
                link.symlink_to(Path("/usr") / name)

    def _provide_files(self) -> list[Path]:
        """Make the files that it has for itself, and name them as it does."""
        files = {HOSTS: f"127.0.0.1 localhost\n{self.hosts}", PASSWD: with_sshd(PASSWD.read_text(encoding="utf-8"))}
        for named, content in files.items():
            self._kept(named).write_text(content, encoding="utf-8")
        if not accelerator.is_useless():
            return [*files]
        cover = self._kept(accelerator.KVM)
        cover.parent.mkdir(mode=0o755, exist_ok=True)
        cover.touch(mode=0o600)
        return [*files, accelerator.KVM]

    def close(self) -> None:
        """End all of its processes at once, as a power failure does."""
        first = self.first()
        if first is not None:
            first.kill()

    def within(self) -> list[str]:
        """The start of a command line that runs in the view. Raises LabError if the hypervisor is off."""
        first = self.first()
        if first is None:
            raise LabError(f"{self.name} is off", "bring it back first")
        return ["nsenter", f"--target={first.pid}", *NAMESPACES, "--"]


def with_sshd(passwd: str) -> str:
    """A passwd(5) that has the user that sshd gives its rights up to."""
    if any(line.startswith("sshd:") for line in passwd.splitlines()):
        return passwd
    return f"{passwd.rstrip()}\nsshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n"
