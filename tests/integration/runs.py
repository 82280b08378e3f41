# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs the collection as a user does, through `ansible` and `ansible-playbook`, and reads what they print."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HYPERVISORS = ROOT / "lab" / "hypervisors.yml"
RULE = "═" * 39
LONGEST_RUN_S = 900

_PROGRAMS = Path(sys.executable).parent
_RECAP = re.compile(r"^(.*?) +: (ok=\d+ .*)$", re.MULTILINE)
_STATISTICS = "\tRUN: "


def command(program: str, *, inventory: Path) -> tuple[list[str], dict[str, str]]:
    """The first words of a command line of Ansible's, and the environment to run it in."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    environment |= {
        "PATH": f"{_PROGRAMS}:{environment['PATH']}",
        "LC_ALL": "C.UTF-8",
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "build" / "collections"),
        "ANSIBLE_HOME": str(ROOT / "build"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_SHOW_CUSTOM_STATS": "1",
    }
    return [str(_PROGRAMS / program), "--inventory", str(inventory)], environment


def _run(program: str, *arguments: str, inventory: Path) -> subprocess.CompletedProcess[str]:
    words, environment = command(program, inventory=inventory)
    done = subprocess.run(
        [*words, *arguments],
        env=environment,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=LONGEST_RUN_S,
        check=False,
    )
    print(f"$ {program} {' '.join(arguments)}\n{done.stdout}{done.stderr}")  # pytest shows it when the test fails
    return done


def literal(value: object) -> str:
    """A value as JSON in which Ansible finds nothing to template. In JSON itself no two braces open at once."""
    return json.dumps(value).replace("{{", "{{ '{{' }}")


def module(which: str, /, *, check: bool = False, diff: bool = False, **options: Any) -> dict[str, Any]:
    """Run one of the collection's modules on this machine as the hypervisor, and return its result.

    Whether it failed is in the result under `failed`; with `diff`, what Ansible prints as the difference is there under
    `printed_diff`.
    """
    flags = [*(["--check"] if check else []), *(["--diff"] if diff else [])]
    given = ["--args", literal(options)] if options else []
    done = _run("ansible", *flags, "--module-name", f"kvm.fleet.{which}", *given, "localhost", inventory=HYPERVISORS)
    printed_diff, _marker, answer = done.stdout.partition("localhost | ")
    verdict, _arrow, told = answer.partition(" => ")
    result = json.loads(told or "null")
    assert isinstance(result, dict), done.stdout + done.stderr
    result |= {"failed": verdict == "FAILED!"}
    return {**result, "printed_diff": printed_diff} if diff else result


def refusal(which: str, /, *, check: bool = False, **options: Any) -> dict[str, Any]:
    """Run a module that has to fail with one of the collection's typed errors, and return that."""
    result = module(which, check=check, **options)
    assert result["failed"], result
    assert isinstance(result["transient"], bool)
    assert isinstance(result["evidence"], dict)
    assert result["remedy"]
    assert result["msg"]
    return result


@dataclass(frozen=True)
class PlaybookRun:
    """A run of a playbook that has ended."""

    exit_code: int
    output: str

    @property
    def recap(self) -> dict[str, dict[str, int]]:
        """Ansible's counts of task results, by host."""
        counts = {}
        for host, told in _RECAP.findall(self.output.partition("PLAY RECAP")[2]):
            counts[host] = {key: int(number) for key, number in (word.split("=") for word in told.split())}
        return counts

    @property
    def statistics(self) -> dict[str, Any]:
        """What the playbook left in Ansible's custom statistics for the summary."""
        line = next(line for line in self.output.splitlines() if line.startswith(_STATISTICS))
        found: dict[str, Any] = json.loads(line.removeprefix(_STATISTICS))["kvm_fleet"]
        return found

    @property
    def records(self) -> dict[str, dict[str, Any]]:
        """The record of each guest that was reached, by its name."""
        found: dict[str, dict[str, Any]] = self.statistics.get("guests", {})
        return found

    @property
    def summary(self) -> list[str]:
        """The summary, line by line, its rules included."""
        lines = self.output.splitlines()
        rules = [number for number, line in enumerate(lines) if line == RULE]
        return lines[rules[0] : rules[-1] + 1] if rules else []

    def paragraph(self, guest: str) -> list[str]:
        """What the summary says of one guest, its mark and name first."""
        lines = self.summary
        start = next(number for number, line in enumerate(lines) if line[2:] == guest)
        return lines[start : lines.index("", start)]


def playbook(
    name: str,
    *arguments: str,
    guests: Sequence[str] = (),
    variables: Mapping[str, object] | None = None,
    inventory: Path = HYPERVISORS,
) -> PlaybookRun:
    """Run one of the collection's playbooks, on these guests or on those that it chooses itself."""
    extra = {**({"fleet_guests": list(guests)} if guests else {}), **(variables or {})}
    said = ["--extra-vars", literal(extra)] if extra else []
    done = _run("ansible-playbook", *said, *arguments, f"kvm.fleet.{name}", inventory=inventory)
    return PlaybookRun(done.returncode, f"{done.stdout}{done.stderr}")


def listing(directory: Path, guests: Mapping[str, Mapping[str, object]]) -> Path:
    """An inventory that lists guests of this machine by their variables, and no hypervisor to discover others on."""
    here = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
    hosts = {name: {"kvm_hypervisor": "localhost", **variables} for name, variables in guests.items()}
    inventory = directory / "guests.yml"
    inventory.write_text(
        literal({"kvm_guests": {"hosts": hosts}, "ungrouped": {"hosts": {"localhost": here}}}), encoding="utf-8"
    )
    return inventory
