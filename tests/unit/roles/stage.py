# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A role under the real Ansible, with modules that only keep what they were asked and answer as they are told.

All else of the collection is its own: roles, filters, lookups.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = Path(sys.executable).parent

MODULE = """\
#!{python}
# WANT_JSON
import json, sys
from pathlib import Path

stage = Path({stage!r})
module = {module!r}
given = json.loads(Path(sys.argv[1]).read_text())
calls = stage / "calls"
asked = [json.loads(line)["module"] for line in calls.read_text().splitlines()].count(module)
told = {{key: value for key, value in given.items() if not key.startswith("_ansible")}}
with calls.open("a") as log:
    log.write(json.dumps({{"module": module, "check": given["_ansible_check_mode"], **told}}) + "\\n")
answers = json.loads((stage / "answers").read_text()).get(module) or [{{}}]
print(json.dumps({{"changed": False, **answers[min(asked, len(answers) - 1)]}}))
"""

PLAY = """\
- hosts: guests
  gather_facts: false
  tasks:
    - block:
        - ansible.builtin.include_role:
            name: kvm.fleet.{role}
            public: true
      always:
        - ansible.builtin.debug:
            msg: "TOLD:{{{{ {result} | default({{}}) | to_json | b64encode }}}}:"
"""

UNREACHABLE = "#!/bin/sh\necho 'no route to host' >&2\nexit 255\n"


@dataclass(frozen=True)
class Played:
    """What came of it: the exit code, the first guest's result, and what the modules were asked, in order."""

    exit_code: int
    output: str
    result: Mapping[str, Any]
    calls: Sequence[Mapping[str, Any]]

    def asked(self, *modules: str) -> list[Mapping[str, Any]]:
        """What these modules were asked."""
        return [call for call in self.calls if call["module"] in modules]


def play(
    directory: Path,
    role: str,
    answers: Mapping[str, Sequence[Mapping[str, Any]]],
    *flags: str,
    guests: Sequence[str] = ("web1",),
    reachable: bool = True,
    variables: Mapping[str, Any] | None = None,
) -> Played:
    """Play a role for guests. A module's answers come in turn, and its last one again and again.

    A guest that is not ``reachable`` does not let Ansible in.
    """
    _provide_modules(directory)
    (directory / "calls").write_text("", encoding="utf-8")
    (directory / "answers").write_text(json.dumps(answers), encoding="utf-8")
    (directory / "play.yml").write_text(PLAY.format(role=role, result=f"{role}_result"), encoding="utf-8")
    ssh = directory / "ssh"
    ssh.write_text(UNREACHABLE, encoding="ascii")
    ssh.chmod(0o755)
    connection = "ansible.builtin.local" if reachable else "ansible.builtin.ssh"
    hosts = {name: {"kvm_hypervisor": "hypervisor", "ansible_connection": connection} for name in guests}
    inventory = {
        "guests": {"hosts": hosts},
        "ungrouped": {"hosts": {"hypervisor": {"ansible_connection": "ansible.builtin.local"}}},
    }
    (directory / "inventory.yml").write_text(json.dumps(inventory), encoding="utf-8")
    given = {"ansible_ssh_executable": str(ssh), "ansible_python_interpreter": sys.executable, **(variables or {})}
    done = subprocess.run(
        [
            *(str(PROGRAMS / "ansible-playbook"), "-i", str(directory / "inventory.yml"), *flags),
            *("-e", json.dumps(given), str(directory / "play.yml")),
        ],
        env={
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            "LC_ALL": "C.UTF-8",
            "HOME": str(directory),
            "ANSIBLE_HOME": str(directory / "ansible"),
            "ANSIBLE_COLLECTIONS_PATH": str(directory / "collections"),
            "ANSIBLE_NOCOLOR": "1",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    output = done.stdout + done.stderr
    told = output.split("TOLD:")[1].split(":")[0] if "TOLD:" in output else ""
    lines = (directory / "calls").read_text(encoding="utf-8").splitlines()
    result = json.loads(base64.b64decode(told)) if told else {}
    return Played(done.returncode, output, result, [json.loads(line) for line in lines])


def _provide_modules(directory: Path) -> None:
    """The collection by links, with modules of the stage's own."""
    collection = directory / "collections" / "ansible_collections" / "kvm" / "fleet"
    if collection.exists():
        return
    modules = collection / "plugins" / "modules"
    modules.mkdir(parents=True)
    for original in (ROOT / "roles", ROOT / "meta", ROOT / "galaxy.yml"):
        (collection / original.name).symlink_to(original)
    for original in (ROOT / "plugins").iterdir():
        if original.name != "modules":
            (collection / "plugins" / original.name).symlink_to(original)
    for original in (ROOT / "plugins" / "modules").glob("[a-z]*.py"):
        text = MODULE.format(python=sys.executable, stage=str(directory), module=original.stem)
        (modules / original.name).write_text(text, encoding="utf-8")
