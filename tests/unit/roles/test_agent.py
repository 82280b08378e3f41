# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The script that installs the agent in an image, under the real shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

SCRIPT = Path(__file__).resolve().parents[3] / "roles" / "agent" / "files" / "install_agent.sh"


# As systemd 252 answers where there is no init system (SYSTEMD_OFFLINE=1), by the state of the unit's files.
SYSTEMCTL = """\
case "$1 {state}" in
  'is-enabled missing') echo 'Failed to get unit file state: No such file or directory' >&2; exit 1 ;;
  'is-enabled static' | 'is-enabled enabled') echo {state} ;;
  is-enabled*) echo {state}; exit 1 ;;
  'enable missing') echo 'Failed to enable unit, unit does not exist.' >&2; exit 1 ;;
  'enable masked') echo 'Failed to enable unit: Unit file is masked.' >&2; exit 1 ;;
  enable*) ;;
  *) echo "Running in chroot, ignoring command '$1'" >&2 ;;
esac
"""


def install(directory: Path, *programs: str, failing: str = "", unit: str = "disabled") -> tuple[int, list[str]]:
    """Run the script in a system that has these programs, and return its exit code and what it ran."""
    log = directory / "log"
    for name in programs:
        program = directory / name
        does = SYSTEMCTL.format(state=unit) if name == "systemctl" else f"exit {100 if name == failing else 0}\n"
        program.write_text(f"#!/bin/sh\necho \"{name} $*\" >>'{log}'\n{does}", encoding="ascii")
        program.chmod(0o755)
    done = subprocess.run(["/bin/sh", SCRIPT], env={"PATH": str(directory)}, capture_output=True, check=False)
    return done.returncode, log.read_text(encoding="ascii").splitlines() if log.exists() else []


UNIT = ["systemctl is-enabled qemu-guest-agent.service", "systemctl enable qemu-guest-agent.service"]


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


def test_a_system_without_systemd_is_fine(tmp_path: Path) -> None:
    assert install(tmp_path, "yum") == (0, ["yum --assumeyes install qemu-guest-agent"])


@pytest.mark.parametrize("unit", ["missing", "static", "enabled"])
def test_a_unit_that_udev_starts_or_that_is_not_there_is_not_enabled(tmp_path: Path, unit: str) -> None:
    assert install(tmp_path, "qemu-ga", "systemctl", unit=unit) == (0, UNIT[:1])


def test_an_agent_that_somebody_wants_off_is_no_success(tmp_path: Path) -> None:
    assert install(tmp_path, "qemu-ga", "systemctl", unit="masked") == (1, UNIT[:1])


def test_the_role_knows_what_the_script_says_where_the_agent_is_there() -> None:
    variables = yaml.safe_load((SCRIPT.parents[1] / "vars" / "main.yml").read_text("utf-8"))
    assert f"echo '{variables['agent_was_there']}'" in SCRIPT.read_text("utf-8")


def test_a_package_manager_that_fails_or_is_unknown_fails_the_script(tmp_path: Path) -> None:
    assert install(tmp_path)[0] == 1
    code, ran = install(tmp_path, "apt-get", "systemctl", failing="apt-get")
    assert (code, ran) == (100, ["apt-get update"])


@pytest.mark.parametrize(
    ("units", "by_udev"),
    [
        ([], False),
        (["/lib/systemd/system/qemu-guest-agent.service", "/usr/lib/systemd/system/qemu-guest-agent.service"], False),
        (["/usr/lib/systemd/system/qemu-ga@.service"], True),
        (["/usr/lib/systemd/system/qemu-ga@.service", "/etc/systemd/system/qemu-guest-agent.service"], False),
    ],
)
def test_udev_starts_an_agent_that_has_only_a_template(tmp_path: Path, units: list[str], by_udev: bool) -> None:
    variables = yaml.safe_load((SCRIPT.parents[1] / "vars" / "main.yml").read_text("utf-8"))
    found = {"agent_units": {"files": [{"path": path} for path in units]}, "told": variables["agent_by_udev"]}
    done = subprocess.run(
        [
            *(Path(sys.executable).parent / "ansible", "localhost", "--extra-vars", json.dumps(found)),
            *("--module-name", "ansible.builtin.debug", "--args", "msg=BY-UDEV:{{ told | bool }}:"),
        ],
        env={**os.environ, "LC_ALL": "C.UTF-8", "ANSIBLE_HOME": str(tmp_path), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert f"BY-UDEV:{by_udev}:" in done.stdout
