# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A /proc made of ordinary files and links, with processes that run programs of a made-up hypervisor."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

BOOT = datetime.fromisoformat("2026-09-21T13:33:20+00:00")
DELETED = " (deleted)"


class FakeProc:
    """Behaves as the kernel's own where the collection looks.

    ``install`` puts a file in place as dpkg does: the new one is renamed over the old one. Whatever runs the old one
    keeps it, under its name with ' (deleted)' behind.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "proc"
        self._host = directory / "host"
        self.path.mkdir()
        (self.path / "stat").write_text(f"cpu  1 2 3 4\nbtime {BOOT.timestamp():.0f}\nprocesses 9\n", encoding="ascii")

    def install(self, name: str, content: str = "") -> str:
        """Install or replace a file; returns the path that processes see it at."""
        path = self._host / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            self.remove(name)
        path.write_text(content, encoding="utf-8")
        path.chmod(0o755)
        return str(path)

    def remove(self, name: str) -> None:
        path = self._host / name
        links = [*self.path.glob("*/exe"), *self.path.glob("*/map_files/*")]
        path.rename(f"{path}{DELETED}")
        for link in links:
            if str(link.readlink()) == str(path):
                link.unlink()
                link.symlink_to(f"{path}{DELETED}")
        for maps in self.path.glob("*/maps"):
            text = maps.read_text(encoding="utf-8")
            maps.write_text(text.replace(f"{path}\n", f"{path}{DELETED}\n"), encoding="utf-8")

    def start(
        self, pid: int, arguments: list[str], binary: str, libraries: tuple[str, ...] = (), *, ticks: int = 12345
    ) -> None:
        """Start a process that maps its binary and the libraries."""
        process = self.path / str(pid)
        (process / "map_files").mkdir(parents=True)
        (process / "root").symlink_to("/")
        (process / "exe").symlink_to(binary)
        (process / "cmdline").write_bytes(b"\0".join(argument.encode("utf-8") for argument in arguments) + b"\0")
        fields = ["S", "1", *["0"] * 17, str(ticks), "0"]
        (process / "stat").write_text(f"{pid} (CPU 0/TCG) x) {' '.join(fields)}\n", encoding="ascii")
        lines = []
        for number, path in enumerate((binary, *libraries), start=1):
            span = f"7f{number:010x}-7f{number:09x}f"
            lines.append(f"{span} r-xp 00001000 08:01 {number} {' ' * 20}{path}\n")
            lines.append(f"{span} rw-p 00001000 08:01 {number} {' ' * 20}{path}\n")
            (process / "map_files" / span).symlink_to(path)
        (process / "maps").write_text("".join(lines), encoding="utf-8")

    def end(self, pid: int) -> None:
        process = self.path / str(pid)
        for path in sorted(process.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()
        process.rmdir()
