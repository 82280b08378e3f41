# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The script that installs the agent in an image, under the real shell."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "roles" / "agent" / "files" / "install_agent.sh"


def install(directory: Path, *programs: str, failing: str = "") -> tuple[int, list[str]]:
    """Run the script in a system that has these programs, and return its exit code and what it ran."""
    log = directory / "log"
    for name in programs:
        program = directory / name
        code = 100 if name == failing else 0
        program.write_text(f"#!/bin/sh\necho \"{name} $*\" >>'{log}'\nexit {code}\n", encoding="ascii")
        program.chmod(0o755)
    done = subprocess.run(["/bin/sh", SCRIPT], env={"PATH": str(directory)}, capture_output=True, check=False)
    return done.returncode, log.read_text(encoding="ascii").splitlines() if log.exists() else []


UNIT = ["systemctl cat qemu-guest-agent.service", "systemctl enable qemu-guest-agent.service"]


@pytest.mark.parametrize(
    ("programs", "ran"),
    [
        (["qemu-ga", "apt-get"], []),
        (["apt-get", "dnf"], ["apt-get update", "apt-get install --yes --no-install-recommends qemu-guest-agent"]),
        (["dnf", "yum"], ["dnf --assumeyes install qemu-guest-agent"]),
        (["yum"], ["yum --assumeyes install qemu-guest-agent"]),
        (["zypper"], ["zypper --non-interactive install qemu-guest-agent"]),
    ],
)
def test_the_systems_own_package_manager_installs_what_is_missing(
    tmp_path: Path, programs: list[str], ran: list[str]
) -> None:
    assert install(tmp_path, *programs, "systemctl") == (0, [*ran, *UNIT])


def test_a_system_without_systemd_or_without_a_unit_to_enable_is_fine(tmp_path: Path) -> None:
    assert install(tmp_path, "yum") == (0, ["yum --assumeyes install qemu-guest-agent"])
    (tmp_path / "log").unlink()
    assert install(tmp_path, "qemu-ga", "systemctl", failing="systemctl") == (0, UNIT[:1])


def test_a_package_manager_that_fails_or_is_unknown_fails_the_script(tmp_path: Path) -> None:
    assert install(tmp_path)[0] == 1
    code, ran = install(tmp_path, "apt-get", "systemctl", failing="apt-get")
    assert (code, ran) == (100, ["apt-get update"])
