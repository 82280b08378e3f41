# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tags choose the parts of a playbook. What sees to these parts is run whatever the tags."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PARTS = {
    "upgrade": ["packages", "restart", "snapshot"],
    "restart": ["restart"],
    "rollback": ["rollback"],
    "rescue": ["rescue"],
    "install_agent": ["agent"],
    "enable_guest_exec": ["settings"],
    "disable_guest_exec": ["settings"],
    "prune_snapshots": ["prune"],
    "selinux_runner": ["selinux"],
    "plan": [],
    "status": [],
}
SUB = ("find_guests", "find_agents", "try_qemu", "fail_at_the_end")
"""Playbooks that the others are made of."""


def tags_of(directory: Path, playbook: str) -> list[str]:
    """The tags of each task that Ansible would run, as it lists them."""
    program = Path(sys.executable).parent / "ansible-playbook"
    done = subprocess.run(
        [program, f"kvm.fleet.{playbook}", "--inventory", "localhost,", "--list-tasks"],
        env={**os.environ, "LC_ALL": "C.UTF-8", "ANSIBLE_HOME": str(directory), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return [line.split("\tTAGS: ")[1] for line in done.stdout.splitlines() if line.startswith("      ")]


@pytest.mark.parametrize("playbook", sorted(PARTS))
def test_tags_leave_out_nothing_but_parts(tmp_path: Path, playbook: str) -> None:
    found = tags_of(tmp_path, playbook)
    assert sorted(tags for tags in found if tags != "[always]") == [f"[{part}]" for part in PARTS[playbook]]
    assert len(found) > len(PARTS[playbook])


def test_every_playbook_is_looked_at() -> None:
    found = {path.stem for path in (Path(__file__).parents[3] / "playbooks").glob("*.yml")}
    assert found == {*PARTS, *SUB}
