# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reads QEMU processes from /proc."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import urlsplit
from xml.sax.saxutils import escape

from ansible_collections.kvm.fleet.plugins.module_utils._drift import FileId, RunningFile

PROC = Path("/proc")

_QUOTES = {'"': "&quot;", "'": "&apos;"}


class ProcessUnreadable(Exception):
    """The QEMU process of a domain could not be found or looked at; the message says why."""


@dataclass(frozen=True)
class QemuProcess:
    """A QEMU process. ``pid`` and ``start_ticks`` together name it for as long as the machine is up."""

    pid: int
    start_ticks: int
    started: datetime

    def is_same(self, other: QemuProcess) -> bool:
        """Whether both are one process. The time of the start is reckoned, and shifts when the clock is set."""
        return (self.pid, self.start_ticks) == (other.pid, other.start_ticks)


@dataclass(frozen=True)
class Mapping:
    """An executable mapping of a file, from /proc/PID/maps. ``span`` is its address range, as map_files names it."""

    span: str
    path: str


def runtime_directory(uri: str) -> Path:
    """Where libvirt's QEMU driver keeps its pid files."""
    if urlsplit(uri).path == "/session":
        return Path(os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}"), "libvirt/qemu/run")
    return Path("/run/libvirt/qemu")


def find_process(name: str, uuid: str, runtime: Path, proc: Path = PROC) -> QemuProcess:
    """The QEMU process of a domain. Raises ProcessUnreadable."""
    pid_file = runtime / f"{name}.pid"
    if not pid_file.exists():
        # libvirt 9.0 names it after the name as XML has it: the pid file of a"b is a&quot;b.pid.
        pid_file = runtime / f"{escape(name, _QUOTES)}.pid"
    try:
        pid = int(pid_file.read_text(encoding="ascii"))
        arguments = (proc / str(pid) / "cmdline").read_bytes().split(b"\0")
        stat = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        boot = (proc / "stat").read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        raise ProcessUnreadable(f"its QEMU process cannot be found through {pid_file}: {error}") from error
    # A pid may have been reused since the file was written, so the process has to say itself whose it is.
    if uuid.encode("ascii") not in arguments:
        raise ProcessUnreadable(f"process {pid}, named in {pid_file}, is not this domain's QEMU")
    ticks = start_ticks(stat)
    started = boot_time(boot) + ticks / os.sysconf("SC_CLK_TCK")
    return QemuProcess(pid, ticks, datetime.fromtimestamp(started, timezone.utc))


def start_ticks(stat: str) -> int:
    """Field 22 of /proc/PID/stat: clock ticks between the machine's boot and the process's start."""
    # The second field is the command's name in parentheses and may itself contain spaces and parentheses.
    return int(stat.rpartition(")")[2].split()[19])


def boot_time(stat: str) -> int:
    """The machine's boot time from /proc/stat, in seconds since the epoch."""
    for line in stat.splitlines():
        if line.startswith("btime "):
            return int(line.split()[1])
    raise ProcessUnreadable("/proc/stat has no btime line")


_DELETED = " (deleted)"
_MAPS_LINE = re.compile(r"([0-9a-f]+-[0-9a-f]+) ..x. [0-9a-f]+ [0-9a-f:]+ \d+ +(/.*)")


def executable_mappings(maps: str) -> Iterator[Mapping]:
    """The files whose code is mapped, each once, from the text of /proc/PID/maps.

    Memory that only looks like a file is left out: what QEMU's code generator or SysV shared memory maps was never
    installed by anybody.
    """
    seen = set()
    for line in maps.splitlines():
        match = _MAPS_LINE.match(line)
        if not match:
            continue
        span, shown = match.groups()
        # A deleted file and the one that took its place may both be mapped: these are two files.
        if shown.startswith(("/memfd:", "/dev/", "/SYSV")) or shown in seen:
            continue
        seen.add(shown)
        yield Mapping(span, shown.removesuffix(_DELETED))


def running_files(process: QemuProcess, proc: Path = PROC) -> tuple[RunningFile, list[RunningFile]]:
    """The binary and the libraries that a process runs, beside what is installed at their paths.

    Both sides are compared by what stat says of them. /proc/PID/maps names a device too, but on btrfs and overlayfs
    that is not the one stat gives; the links under map_files lead to the mapped file itself. Paths are those of the
    process's own root, which may differ from ours. Raises ProcessUnreadable.
    """
    base = proc / str(process.pid)
    try:
        binary_path = os.readlink(base / "exe")
        maps = (base / "maps").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise ProcessUnreadable(f"process {process.pid} cannot be looked at: {error}") from error
    binary_path = binary_path.removesuffix(_DELETED)
    binary = _running_file(binary_path, base / "exe", base)
    libraries = [
        _running_file(mapping.path, base / "map_files" / mapping.span, base)
        for mapping in executable_mappings(maps)
        if mapping.path != binary_path
    ]
    return binary, libraries


def _running_file(path: str, link: Path, base: Path) -> RunningFile:
    shown = path.encode("utf-8", "replace").decode("utf-8")
    try:
        running = _identity(link)
    except OSError as error:
        return RunningFile(shown, None, None, f"the running file cannot be looked at: {error}")
    try:
        return RunningFile(shown, running, _identity(f"{base}/root{path}"))
    except FileNotFoundError:
        return RunningFile(shown, running, None)
    except OSError as error:
        return RunningFile(shown, running, None, f"the installed file cannot be looked at: {error}")


def _identity(path: str | Path) -> FileId:
    status = Path(path).stat()
    return FileId(status.st_dev, status.st_ino)


def version_of(binary: str | Path, known: dict[FileId, str | None]) -> str | None:
    """The version that a QEMU binary says it is, with its package's version, or None when it does not say.

    Also asked of /proc/PID/exe: that runs the very file of the process, even after it was deleted. ``known`` remembers
    the answers, since many guests run the same file.
    """
    try:
        identity = _identity(binary)
    except OSError:
        return None
    if identity not in known:
        known[identity] = _ask_version(binary)
    return known[identity]


def _ask_version(binary: str | Path) -> str | None:
    try:
        output = subprocess.run(
            [str(binary), "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=10,
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_version(output.decode("utf-8", "replace"))


def parse_version(output: str) -> str | None:
    """``QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)`` becomes ``7.2.22 (Debian 1:7.2+dfsg-7)``."""
    match = re.match(r"QEMU emulator version (.+)", output)
    return match.group(1).strip() if match else None
