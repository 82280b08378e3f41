# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A program that answers as guestfish was seen to (1.48), over a directory instead of an image.

It is a process of its own, found in PATH, so that what speaks to it is tested with real pipes, deadlines and signals.
What is written stays, as in an image, even when it is killed; a copy for reading only is nothing that it knows.
tests/integration/test_guest_image.py asks the same of the real one.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_PROGRAM = '''\
#!{python}
import json, os, pathlib, re, shutil, signal, subprocess, sys, time

root, state_file = pathlib.Path({root!r}), pathlib.Path({state!r})
state = json.loads(state_file.read_text())
log = open({log!r}, "a")
number, launched, drives, mounted = 0, False, [], []


class Failed(Exception):
    pass


def words(line):
    """Words as guestfish reads them: bare ones, and those in double quotes with their escapes."""
    for bare, quoted in re.findall(r'([^\\s"]+)|"((?:[^"\\\\]|\\\\.)*)"', line):
        if bare:
            yield bare
        else:
            raw = re.sub(r"\\\\x([0-9a-f][0-9a-f])", lambda match: chr(int(match.group(1), 16)), quoted)
            yield os.fsdecode(raw.encode("latin-1"))


def inside(path):
    return root / os.path.normpath("/" + path).lstrip("/")


def resolved(path):
    """A path with its symbolic links followed within the image."""
    done = "/"
    todo = [part for part in path.split("/") if part]
    for _step in range(100):
        if not todo:
            return inside(done)
        part = todo.pop(0)
        here = inside(os.path.join(done, part))
        if here.is_symlink():
            target = os.readlink(here)
            todo = [each for each in target.split("/") if each] + todo
            done = "/" if target.startswith("/") else done
        else:
            done = os.path.normpath(os.path.join(done, part))
    raise Failed("too many symbolic links")


def answer(command, arguments, options):
    global launched
    if command in state["hangs"]:
        time.sleep(600)
    if command in state["fails"]:
        raise Failed(f"{{command}}: {{state['fails'][command]}}")
    if command == "echo":
        return " ".join(arguments) + "\\n"
    if command == "verbose":
        return ""
    if command == "set-network":
        if launched:
            raise Failed("set_network: this function can only be called in the config state")
        return ""
    if command == "add":
        drives.append([arguments[0], options])
        return ""
    if command == "run":
        if state["launch_fails"]:
            state["launch_fails"] -= 1
            state_file.write_text(json.dumps(state))
            print(state["launch_says"], file=sys.stderr, flush=True)
            raise Failed("appliance closed the connection unexpectedly.")
        launched = True
        return ""
    if not launched:
        raise Failed(f"{{command}}: call launch before using this function")
    if command in state["answers"]:
        told = state["answers"][command]
        return told.pop(0) if isinstance(told, list) else told
    path = arguments[-1] if arguments else ""
    if command == "list-partitions":
        return "".join(f"{{device}}\\n" for device in state["types"])
    if command == "vfs-type":
        return state["types"].get(path, "") + "\\n"
    if command == "mount":
        if arguments[1] in state["unmountable"]:
            raise Failed("mount: wrong fs type, bad option, bad superblock")
        mounted.append(arguments[1])
        return ""
    if command in ("umount-all", "shutdown", "sync", "tune2fs", "e2fsck", "selinux-relabel"):
        return ""
    if command in ("exists", "is-file", "is-dir"):
        found = resolved(path)
        test = {{"exists": found.exists, "is-file": found.is_file, "is-dir": found.is_dir}}[command]
        return "true\\n" if test() else "false\\n"
    if command == "is-symlink":
        return "true\\n" if inside(path).is_symlink() else "false\\n"
    if command == "filesize":
        return f"{{resolved(path).stat().st_size}}\\n"
    if command == "download":
        return resolved(arguments[0]).read_bytes()
    if command == "download-offset":
        start, size = int(arguments[2]), int(arguments[3])
        return resolved(arguments[0]).read_bytes()[start:start + size]
    if command == "ls0":
        return b"".join(os.fsencode(name) + b"\\0" for name in os.listdir(resolved(arguments[0])))
    if command == "realpath":
        return "/" + str(resolved(path).relative_to(root)) + "\\n"
    if command == "rm-f":
        inside(path).unlink(missing_ok=True)
        return ""
    if command == "touch":
        inside(path).touch()
        return ""
    if command == "upload":
        inside(path).write_bytes(pathlib.Path(arguments[0]).read_bytes())
        return ""
    if command == "copy-attributes":
        shutil.copymode(inside(arguments[0]), inside(arguments[1]))
        return ""
    if command == "chmod":
        inside(path).chmod(int(arguments[0], 8))
        return ""
    if command == "mkdir-mode":
        inside(arguments[0]).mkdir(int(arguments[1], 8))
        return ""
    if command == "lgetxattrs":
        label = state["labels"].get(path)
        return f"[0] = {{{{\\n  attrname: security.selinux\\n  attrval: {{label}}\\\\x00\\n}}}}\\n" if label else ""
    if command == "lsetxattr":
        state["labels"][path] = arguments[1]
        state_file.write_text(json.dumps(state))
        return ""
    if command == "mv":
        inside(arguments[0]).replace(inside(arguments[1]))
        return ""
    if command == "sh":
        if arguments[0].startswith("mount -t tmpfs"):
            shutil.rmtree(inside("/run"), ignore_errors=True)
            inside("/run/kvm-fleet").mkdir(parents=True)
            return "\\n"
        said = subprocess.run(
            ["/bin/sh", "-c", arguments[0].replace("/run/", str(inside("/run")) + "/")], capture_output=True, cwd=root
        )
        return said.stdout + b"\\n"
    raise Failed(f"{{command}}: unknown command")


for line in sys.stdin:
    number += 1
    if len(line) > 8191:
        print("guestfish: unterminated double quote", file=sys.stderr)
        sys.exit(1)
    command, *rest = words(line)
    may_fail, command = command.startswith("-"), command.lstrip("-")
    options = dict(word.split(":", 1) for word in rest if re.fullmatch(r"[a-z]+:[a-z0-9]+", word) and command != "echo")
    arguments = [word for word in rest if command == "echo" or not re.fullmatch(r"[a-z]+:[a-z0-9]+", word)]
    if command != "echo":
        print(json.dumps([command, *arguments, options]), file=log, flush=True)
    try:
        told = answer(command, arguments, options)
    except (Failed, OSError) as error:
        print(f"*stdin*:{{number}}: libguestfs: error: {{error}}", file=sys.stderr, flush=True)
        if not may_fail:
            sys.exit(1)
        continue
    sys.stdout.buffer.write(told if isinstance(told, bytes) else os.fsencode(told))
    sys.stdout.buffer.flush()
'''


@dataclass
class FakeGuestfish:
    """What it finds in the image, and how it fails. To be set before it is started: see `ready`."""

    directory: Path
    file_systems: str = "/dev/sda1: ext4\n/dev/sda2: swap\n"
    roots: str = "/dev/sda1\n"
    system: str = "linux"
    mount_points: str = "/: /dev/sda1\n"
    package_format: str = "deb"
    fsck: list[str] = field(default_factory=lambda: ["0\n", "0\n"])
    """What each further fsck returns."""
    answers: dict[str, Any] = field(default_factory=dict)
    fails: dict[str, str] = field(default_factory=dict)
    hangs: list[str] = field(default_factory=list)
    unmountable: list[str] = field(default_factory=list)
    launch_fails: int = 0
    launch_says: str = ""
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """The directory that stands for the guest's file systems."""
        return self.directory / "image"

    def ready(self) -> None:
        """Put the program where it is found, with what was set."""
        (self.root / "etc").mkdir(parents=True, exist_ok=True)
        program = self.directory / "bin" / "guestfish"
        program.parent.mkdir(exist_ok=True)
        state = self.directory / "state.json"
        answers = {
            "list-devices": "/dev/sda\n",
            "feature-available": "true\n",
            "lvs": "",
            "list-filesystems": self.file_systems,
            "inspect-os": self.roots,
            "inspect-get-type": f"{self.system}\n",
            "inspect-get-mountpoints": self.mount_points,
            "inspect-get-package-format": f"{self.package_format}\n",
            "tune2fs-l": "Mount count: 3\nMaximum mount count: -1\n",
            "fsck": self.fsck,
            **self.answers,
        }
        told: dict[str, Any] = {
            "hangs": self.hangs,
            "fails": self.fails,
            "answers": answers,
            "unmountable": self.unmountable,
            "types": dict(line.split(": ", 1) for line in self.file_systems.splitlines() if ": " in line),
        }
        told |= {"launch_fails": self.launch_fails, "launch_says": self.launch_says, "labels": self.labels}
        state.write_text(json.dumps(told), encoding="utf-8")
        filled = _PROGRAM.format(python=sys.executable, root=str(self.root), state=str(state), log=str(self.log))
        program.write_text(filled, encoding="utf-8")
        program.chmod(0o755)

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def calls(self, *commands: str) -> list[list[Any]]:
        """What it was asked to do: the command, its words, and its named arguments. Only these commands, if any."""
        if not self.log.exists():
            return []
        calls: list[list[Any]] = [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]
        return [call for call in calls if not commands or call[0] in commands]

    def label_of(self, path: str) -> str | None:
        found: dict[str, str] = json.loads((self.directory / "state.json").read_text(encoding="utf-8"))["labels"]
        return found.get(path)
