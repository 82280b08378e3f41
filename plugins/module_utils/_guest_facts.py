# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a guest's own files and commands say of it: how they are had, and how they are read.

All of it is a guest's word. It is cut to size, stripped of control characters, and None where it makes no sense.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from ansible_collections.kvm.fleet.plugins.module_utils import _managers, _reboot
from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._errors import AgentCommandFailed, GuestUnsupported
from ansible_collections.kvm.fleet.plugins.module_utils._exec import RUNNER, output_of, shell_script
from ansible_collections.kvm.fleet.plugins.module_utils._guest_files import MAX_FILE
from ansible_collections.kvm.fleet.plugins.module_utils._locks import TICKS_PER_SECOND
from ansible_collections.kvm.fleet.plugins.module_utils._managers import System
from ansible_collections.kvm.fleet.plugins.module_utils._proc import start_ticks
from ansible_collections.kvm.fleet.plugins.module_utils._reboot import RebootState

OS_RELEASE, VENDORS_OS_RELEASE = "/etc/os-release", "/usr/lib/os-release"
INIT = "/proc/1/comm"
KERNEL = "/proc/sys/kernel/osrelease"
ENFORCE, CONTEXT = "/sys/fs/selinux/enforce", "/proc/self/attr/current"
AGENT, BOOT = "/proc/self/stat", "/proc/stat"
REBOOT_FLAG, REBOOT_PACKAGES, REBOOT_NEEDED = "/run/reboot-required", "/run/reboot-required.pkgs", "/run/reboot-needed"

Files = Mapping[str, "str | None"]
"""Texts by their paths; None where there is no such file, and no entry where it cannot be told."""

LONGEST_TEXT = 256
MOST_ENTRIES = 256


@dataclass(frozen=True)
class CommandFacts:
    """What takes a command to find out. ``failed_units`` are None where no systemd runs."""

    files: Files
    system: System
    reboot: RebootState
    kernel_installed: str | None
    failed_units: tuple[str, ...] | None
    has_flock: bool


# --- how they are had ----------------------------------------------------------------------------


def read_files(agent: GuestAgent, files: dict[str, str | None]) -> None:
    """Fill in the files by the agent's own commands for files, which start no process in the guest."""

    def read(path: str) -> str | None:
        try:
            content = agent.read_file(path, MAX_FILE)
        except (AgentCommandFailed, GuestUnsupported):
            return None  # it is there, and what it says cannot be told
        files[path] = None if content is None else content.decode("utf-8", "replace")
        return files[path]

    if read(OS_RELEASE) is None:
        read(VENDORS_OS_RELEASE)
    for path in (INIT, KERNEL, AGENT, BOOT):
        read(path)
    if parse_enforce(read(ENFORCE)):
        read(CONTEXT)
        read(RUNNER)
    if read(REBOOT_FLAG) is not None:
        read(REBOOT_PACKAGES)
    read(REBOOT_NEEDED)


# Prints one fact a line, its section first. The parent of this shell is the agent itself.
_LOOK = f"""\
show() {{
  if [ -r "$2" ]; then {{ tr -d '\\0' <"$2" 2>/dev/null; echo; }} | sed "s|^|file $1 |"
  elif [ ! -e "$2" ]; then echo "missing $1"
  fi
}}
for path in {OS_RELEASE} {VENDORS_OS_RELEASE} {INIT} {KERNEL} {ENFORCE} {CONTEXT}; do show "$path" "$path"; done
show {AGENT} "/proc/$PPID/stat"
sed -n 's|^btime |file {BOOT} btime |p' {BOOT}
(
{_managers.LOOK}) | sed 's/^/system /'
(
{_reboot.LOOK}) | sed 's/^/reboot /'
if [ -d /run/systemd/system ] && units=$(systemctl list-units --failed --no-legend --plain); then
  echo 'units told'
  printf '%s\\n' "$units" | sed -n 's/^\\([^ ]\\{{1,\\}}\\).*/failed \\1/p'
fi
! command -v flock >/dev/null || echo 'flock there'
"""


def run_commands(agent: GuestAgent, timeout: float) -> CommandFacts:
    """All of it by one command. Raises what output_of raises."""
    return parse_commands(output_of(agent, shell_script(_LOOK, timeout=timeout)).splitlines())


# --- how they are read ---------------------------------------------------------------------------


def plain(text: str, most: int = LONGEST_TEXT) -> str:
    """A guest's text without what moves a cursor or breaks a line, and no longer than is sensible."""
    return "".join(character for character in text[: 4 * most] if character.isprintable()).strip()[:most]


def parse_commands(lines: Iterable[str]) -> CommandFacts:
    """Read what the command printed."""
    sections: dict[str, list[str]] = {}
    for line in lines:
        section, _space, told = line.partition(" ")
        sections.setdefault(section, []).append(told)
    texts: dict[str, list[str]] = {}
    for told in sections.get("file", []):
        path, _space, line = told.partition(" ")
        texts.setdefault(path, []).append(line)
    files = {
        **dict.fromkeys(sections.get("missing", [])),
        **{path: "".join(f"{line}\n" for line in text) for path, text in texts.items()},
    }
    reboot = [plain(line) for line in sections.get("reboot", [])]
    kernels = [told.removeprefix("kernel ") for told in reboot if told.startswith("kernel ")]
    units = tuple(dict.fromkeys(plain(unit) for unit in sections.get("failed", [])[:MOST_ENTRIES]))
    running = parse_word(files.get(KERNEL))
    return CommandFacts(
        files=files,
        system=_managers.parse_system(sections.get("system", [])),
        reboot=_reboot.parse_reboot_facts(reboot),
        kernel_installed=_reboot.newest_kernel(running, kernels) if running else None,
        failed_units=units if "units" in sections else None,
        has_flock="flock" in sections,
    )


_SETTING = re.compile(r"([A-Z][A-Z0-9_]*)=(.{0,1024})")


def parse_os_release(text: str) -> dict[str, str]:
    """The settings of an os-release, whose values are quoted as for a shell."""
    settings = {}
    for line in text.splitlines()[:MOST_ENTRIES]:
        match = _SETTING.fullmatch(line.strip())
        if not match:
            continue
        try:
            words = shlex.split(match.group(2))
        except ValueError:  # a quote without its other
            continue
        settings[match.group(1)] = plain(" ".join(words))
    return settings


def parse_word(text: str | None) -> str | None:
    """A file that consists of one word, such as the name of a process."""
    return (plain(text.partition("\n")[0]) or None) if text else None


def parse_enforce(text: str | None) -> bool | None:
    """Whether SELinux enforces its policy; None where its file does not say it."""
    return {"0": False, "1": True}.get((text or "").strip())


def parse_since(agent: str | None, boot: str | None) -> datetime | None:
    """When a process was started, by its /proc/PID/stat and by /proc/stat."""
    booted = re.search(r"^btime ([0-9]{1,11})$", boot or "", re.MULTILINE)
    try:
        ticks = start_ticks((agent or "")[:1024])
        return datetime.fromtimestamp(int(booted.group(1)) + ticks / TICKS_PER_SECOND, timezone.utc) if booted else None
    except (ValueError, IndexError, OverflowError, OSError):
        return None


def parse_reboot_files(files: Files) -> RebootState | None:
    """What the flags for a reboot say. Without one nobody knows, since not every system sets them."""
    facts: list[str] = []
    if files.get(REBOOT_FLAG) is not None:
        packages = (files.get(REBOOT_PACKAGES) or "").splitlines()[:MOST_ENTRIES]
        facts += ["flag", *(f"package {plain(package)}" for package in packages)]
    if files.get(REBOOT_NEEDED) is not None:
        facts.append("needed")
    return _reboot.parse_reboot_facts(facts) if facts else None


def reboot_reasons(reboot: RebootState) -> Sequence[str]:
    """The reasons, each as long as a person reads."""
    return [plain(reason, 2 * LONGEST_TEXT) for reason in reboot.reasons]
