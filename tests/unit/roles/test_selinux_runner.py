# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The role's installation, on a machine whose SELinux tools remember what they were told.

They print what policycoreutils prints. A kernel that enforces anything is not among them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = Path(sys.executable).parent

TOOLS = {
    "semanage": """\
case "$1 $2" in
  'fcontext --list')
    [ -e "$STATE/label" ] || exit 0
    printf '%-50s all files          system_u:object_r:%s:s0 \\n' "$RUNNER" "$(cat "$STATE/label")" ;;
  'fcontext --add') [ "$5" = "$RUNNER" ] && echo "$4" >"$STATE/label" ;;
  'boolean --list')
    echo 'virt_qemu_ga_read_nonsecurity_files (off  ,  off)  Allow qemu-ga read all non-security file types.'
    [ -e "$STATE/boolean" ] || exit 0
    echo "virt_qemu_ga_run_unconfined    ($(cat "$STATE/boolean"))  Allow qemu-ga to run unconfined scripts" ;;
  *) exit 2 ;;
esac
""",
    "setsebool": '[ "$*" = "-P virt_qemu_ga_run_unconfined on" ] && echo "on   ,   on" >"$STATE/boolean"\n',
    "restorecon": """\
[ "$*" = "-v $RUNNER" ] || exit 2
cmp -s "$STATE/label" "$STATE/given" || echo "Relabeled $RUNNER from unconfined_u:object_r:bin_t:s0"
cp "$STATE/label" "$STATE/given"
""",
}

PLAYBOOK = """\
- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - ansible.builtin.include_role:
        name: kvm.fleet.selinux_runner
        tasks_from: install
"""


class Machine:
    """A directory with tools, their memory, and the place where the runner goes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.runner = directory / "libexec" / "run"
        self.state = directory / "state"
        self.state.mkdir()
        (directory / "bin").mkdir()
        for name, script in TOOLS.items():
            tool = directory / "bin" / name
            tool.write_text(f"#!/bin/sh\necho \"{name} $*\" >>'{directory}/log'\n{script}", encoding="utf-8")
            tool.chmod(0o755)
        (directory / "play.yml").write_text(PLAYBOOK, encoding="utf-8")

    def install(self, *flags: str) -> int:
        """Run the role's installation and return how many of its tasks changed something."""
        variables = {
            "kvm_hypervisor": "localhost",
            "ansible_python_interpreter": sys.executable,
            "selinux_runner_path": str(self.runner),
            "selinux_runner_semanage_program": str(self.directory / "bin" / "semanage"),
        }
        done = subprocess.run(
            [PROGRAMS / "ansible-playbook", *flags, "-e", json.dumps(variables), self.directory / "play.yml"],
            env={
                "PATH": f"{self.directory}/bin:{PROGRAMS}:{os.environ['PATH']}",
                "STATE": str(self.state),
                "RUNNER": str(self.runner),
                "LC_ALL": "C.UTF-8",
                "HOME": str(self.directory),
                "ANSIBLE_HOME": str(self.directory / "ansible"),
                "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "build" / "collections"),
                "ANSIBLE_LOCALHOST_WARNING": "0",
            },
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        changed = re.search(r"changed=(\d+)", done.stdout)
        assert changed is not None
        return int(changed[1])

    def said(self) -> str:
        return (self.directory / "log").read_text(encoding="utf-8")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_runner_is_installed_labelled_and_allowed_once(machine: Machine) -> None:
    (machine.state / "boolean").write_text("off  ,  off", encoding="ascii")
    machine.install("--check")
    assert not machine.runner.exists()
    assert "--add" not in machine.said()
    assert "setsebool" not in machine.said()

    assert machine.install() == 5  # rule, directory, program, label, boolean
    assert (machine.state / "given").read_text(encoding="ascii") == "virt_qemu_ga_unconfined_exec_t\n"
    assert (machine.state / "boolean").read_text(encoding="ascii") == "on   ,   on\n"
    ran = subprocess.run([machine.runner, "printf", "%s|", "a b", "$(id)"], capture_output=True, text=True, check=True)
    assert ran.stdout == "a b|$(id)|"

    assert machine.install() == 0


@pytest.mark.parametrize(("boolean", "set_again"), [("on   ,  off", True), ("on   ,   on", False), (None, False)])
def test_a_boolean_is_set_for_the_next_boot_as_well_and_only_if_the_policy_has_it(
    machine: Machine, boolean: str | None, set_again: bool
) -> None:
    if boolean:
        (machine.state / "boolean").write_text(boolean, encoding="ascii")
    machine.install()
    assert ("setsebool" in machine.said()) is set_again
