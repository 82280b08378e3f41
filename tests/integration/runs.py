# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs the collection's playbooks as a user does, its modules by themselves, and reads what they print."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lab.hypervisor import Hypervisor

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


# As on a hypervisor, the system's own Python and libvirt-python come first; of ours there is nothing but Ansible.
_MODULE = """\
import runpy, sys
sys.path += sys.argv[1:]
del sys.argv[1:]
runpy.run_module("ansible_collections.kvm.fleet.plugins.modules.{}", run_name="__main__")
"""


def module_command(which: str, on: Hypervisor | None = None) -> list[str]:
    """The command line of a module, which takes its options from its stdin as Ansible gives them."""
    paths = (str(ROOT / "build" / "collections"), sysconfig.get_path("purelib"))
    return [*(on.view.within() if on else ()), "/usr/bin/python3", "-c", _MODULE.format(which), *paths]


def module_options(options: Mapping[str, Any], *, check: bool = False) -> str:
    """The options of a module as Ansible gives them."""
    return json.dumps({"ANSIBLE_MODULE_ARGS": {**options, "_ansible_check_mode": check}})


def module(which: str, /, *, check: bool = False, **options: Any) -> dict[str, Any]:
    """Run one of the collection's modules on this machine as the hypervisor, and return its result.

    Whether it failed is in the result under `failed`. The module is given what Ansible would give it, without Ansible
    around it, which costs five times what most modules do; how it fares with that is what the playbooks show.
    """
    return _module(which, module_command(which), module_options(options, check=check))


def module_on(hypervisor: Hypervisor, which: str, /, *, check: bool = False, **options: Any) -> dict[str, Any]:
    """Likewise on a hypervisor of a fleet."""
    return _module(which, module_command(which, hypervisor), module_options(options, check=check))


def _module(which: str, words: Sequence[str], given: str) -> dict[str, Any]:
    done = subprocess.run(
        words,
        input=given,
        capture_output=True,
        encoding="utf-8",
        timeout=LONGEST_RUN_S,
        check=False,
    )
    print(f"{which} {given}\n{done.stdout}{done.stderr}")  # pytest shows it when the test fails
    result = json.loads(done.stdout)
    assert isinstance(result, dict)
    return {"failed": False, **result}


def difference(which: str, /, **options: Any) -> tuple[dict[str, Any], str]:
    """Run a module through `ansible --check --diff`: its result, and what Ansible prints as the difference."""
    said = ("--check", "--diff", "--module-name", f"kvm.fleet.{which}", "--args", literal(options), "localhost")
    done = _run("ansible", *said, inventory=HYPERVISORS)
    printed, _marker, answer = done.stdout.partition("localhost | ")
    result = json.loads(answer.partition(" => ")[2])
    assert isinstance(result, dict), done.stdout + done.stderr
    return result, printed


def refusal(which: str, /, *, check: bool = False, **options: Any) -> dict[str, Any]:
    """Run a module that has to fail with one of the collection's typed errors, and return that."""
    return _typed(module(which, check=check, **options))


def refusal_on(hypervisor: Hypervisor, which: str, /, **options: Any) -> dict[str, Any]:
    """Likewise on a hypervisor of a fleet."""
    return _typed(module_on(hypervisor, which, **options))


def _typed(result: dict[str, Any]) -> dict[str, Any]:
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


def inventory_of(*sources: Path) -> tuple[dict[str, Any], str]:
    """The groups and variables that Ansible makes of inventories, and what it warns of."""
    more = [word for source in sources[1:] for word in ("--inventory", str(source))]
    done = _run("ansible-inventory", "--list", *more, inventory=sources[0])
    assert done.returncode == 0
    found: dict[str, Any] = json.loads(done.stdout)
    return found, " ".join(done.stderr.split())


def listing(directory: Path, guests: Mapping[str, Mapping[str, object]]) -> Path:
    """An inventory that lists guests of this machine by their variables, and no hypervisor to discover others on."""
    here = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
    hosts = {name: {"kvm_hypervisor": "localhost", **variables} for name, variables in guests.items()}
    inventory = directory / "guests.yml"
    inventory.write_text(
        literal({"kvm_guests": {"hosts": hosts}, "ungrouped": {"hosts": {"localhost": here}}}), encoding="utf-8"
    )
    return inventory
