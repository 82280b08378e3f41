# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the role's YAML leaves to a shell or to Ansible's own functions."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

ROLE = Path(__file__).resolve().parents[3] / "roles" / "upgrade"

LISTING = """\
printf '%s\\n' 'app.service loaded failed failed The application' 'db.service loaded failed failed A database'
"""


def load(path: str) -> Any:
    return yaml.safe_load((ROLE / path).read_text(encoding="utf-8"))


def failed_units(directory: Path, systemctl: str) -> subprocess.CompletedProcess[str]:
    """Run the role's script with a systemctl whose 'list-units' is this shell script."""
    program = directory / "systemctl"
    program.write_text(f'#!/bin/sh\n[ "$1" = list-units ] || exit 1\n{systemctl}\n', encoding="utf-8")
    program.chmod(0o755)
    script: str = load("vars/main.yml")["upgrade_failed_units_script"]
    return subprocess.run(
        ["/bin/sh", "-c", script],
        env={**os.environ, "PATH": f"{directory}:{os.environ['PATH']}"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


@pytest.mark.parametrize(("systemctl", "units"), [(LISTING, ["app.service", "db.service"]), ("true", [])])
def test_failed_units_are_named(tmp_path: Path, systemctl: str, units: list[str]) -> None:
    done = failed_units(tmp_path, systemctl)
    assert (done.returncode, done.stdout.splitlines()) == (0, units)


def test_a_systemctl_that_fails_is_no_guest_without_failed_units(tmp_path: Path) -> None:
    assert failed_units(tmp_path, "echo 'Failed to connect to bus' >&2; exit 4").returncode == 4


def test_a_guest_without_systemd_has_no_failed_units() -> None:
    script = load("vars/main.yml")["upgrade_failed_units_script"]
    done = subprocess.run(["/bin/sh", "-c", script], env={"PATH": "/nonexistent"}, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"")


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York"])
def test_work_begins_now_in_every_time_zone(tmp_path: Path, zone: str) -> None:
    started = load("tasks/main.yml")[0]["ansible.builtin.set_fact"]["upgrade_started"]
    command = ["localhost", "--module-name", "ansible.builtin.debug", "--args", f"msg=BEGAN:{started}:"]
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible", *command],
        env={**os.environ, "TZ": zone, "LC_ALL": "C.UTF-8", "ANSIBLE_HOME": str(tmp_path), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert float(done.stdout.split("BEGAN:")[1].split(":")[0]) == pytest.approx(time.time(), abs=120)
