# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How the agent is installed: the script for an image, under the real shell, and the tasks that run in the guest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "roles" / "agent" / "files" / "install_agent.sh"
PROGRAMS = Path(sys.executable).parent


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


# --- by Ansible's own connection ------------------------------------------------------------------

# What every module in the guest answers, until the guest is lost.
ANSWER = {
    "changed": True,
    "files": [{"path": "/usr/lib/systemd/system/qemu-guest-agent.service"}],
    "ansible_facts": {"ansible_pkg_mgr": "apt", "ansible_service_mgr": "systemd"},
}
SSH = """\
#!/bin/sh
cat >/dev/null
echo >>'{log}'
[ $(wc -l <'{log}') -lt {lost_at} ] || {{ echo 'no route to host' >&2; exit 255; }}
echo '{answer}'
"""
PLAY = """\
- hosts: guest
  gather_facts: false
  vars:
    agent_channel: {live: present}
    agent_packages: {}
    agent_units: {}
    agent_enabled: {}
    agent_triggered: {}
    agent_installed: false
    agent_verdict: {}
  tasks:
    - block:
        - ansible.builtin.include_role:
            name: kvm.fleet.agent
            tasks_from: install
            public: true
      rescue:
        - ansible.builtin.debug:
            msg: "LET GO:{{ agent_verdict.msg }}:INSTALLED:{{ agent_installed }}:"
        - ansible.builtin.fail:
            msg: it failed
"""


@pytest.mark.parametrize(("lost_at", "installed"), [(2, False), (3, True), (4, True), (5, True)])
def test_a_guest_that_is_lost_in_any_of_its_tasks_is_let_go_of(tmp_path: Path, lost_at: int, installed: bool) -> None:
    """Its modules are the package manager's name, the package, the unit's files and the service."""
    log, ssh, play = (tmp_path / name for name in ("log", "ssh", "play.yml"))
    ssh.write_text(SSH.format(log=log, lost_at=lost_at, answer=json.dumps(ANSWER)), encoding="utf-8")
    ssh.chmod(0o755)
    play.write_text(PLAY, encoding="utf-8")
    variables = {
        "kvm_hypervisor": "hypervisor",
        "ansible_host": "192.0.2.1",
        "ansible_ssh_executable": str(ssh),
        "ansible_pipelining": True,
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    done = subprocess.run(
        [PROGRAMS / "ansible-playbook", "-i", "guest,hypervisor,", "-e", json.dumps(variables), play],
        env={
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            "LC_ALL": "C.UTF-8",
            "HOME": str(tmp_path),
            "ANSIBLE_HOME": str(tmp_path / "ansible"),
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "build" / "collections"),
            "ANSIBLE_NOCOLOR": "1",
        },
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    lost = lost_at < 5
    assert (done.returncode == 0) is not lost, done.stdout + done.stderr
    assert ("LET GO:Ansible has lost guest guest while it installed the agent: " in done.stdout) is lost
    assert (f":INSTALLED:{installed}:" in done.stdout) is lost
    # Nothing more is tried in a guest that is lost.
    assert len(log.read_text(encoding="utf-8").splitlines()) == min(lost_at, 4)


LISTS_PLAY = """\
- hosts: localhost
  connection: local
  gather_facts: false
  vars:
    agent_packages: {}
    agent_units: {}
    agent_enabled: {}
    agent_triggered: {}
  tasks:
    - ansible.builtin.set_fact:
        pkg_mgr: ansible.legacy.some_packages
        cacheable: true
    - ansible.builtin.include_role:
        name: kvm.fleet.agent
        tasks_from: install
    - ansible.builtin.debug:
        msg: "INSTALLED:{{ agent_installed }}:"
"""

# A package manager, as Ansible's own module for one answers.
PACKAGES = """\
#!/bin/sh
# WANT_JSON
if grep -q '"update_cache": *true' "$1"; then
  echo fetched >>"$STATE/log"
  lists=new
else
  lists=old
fi
if [ -e "$STATE/$lists" ]; then
  echo '{"changed": true}'
else
  echo '{"failed": true, "changed": false, "msg": "No package matching"}'
fi
"""


@pytest.mark.parametrize(
    ("lists", "flags", "fetched", "installed"),
    [
        (["old", "new"], [], False, True),
        (["new"], [], True, True),
        (["new"], ["--check"], False, True),
        ([], [], True, None),
    ],
)
def test_lists_are_fetched_where_those_of_the_guest_do_not_have_the_package(
    tmp_path: Path, lists: list[str], flags: list[str], fetched: bool, installed: bool | None
) -> None:
    library, play = tmp_path / "library", tmp_path / "play.yml"
    library.mkdir()
    (library / "some_packages").write_text(PACKAGES, encoding="ascii")
    play.write_text(LISTS_PLAY, encoding="ascii")
    for name in lists:
        (tmp_path / name).touch()
    # Nothing of this machine's is started.
    given = {"kvm_hypervisor": "localhost", "agent_by_udev": True, "agent_channel": {"live": "needs_restart"}}
    done = subprocess.run(
        [PROGRAMS / "ansible-playbook", *flags, "-e", json.dumps(given), play],
        env={
            **os.environ,
            "STATE": str(tmp_path),
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_HOME": str(tmp_path / "ansible"),
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "build" / "collections"),
            "ANSIBLE_LIBRARY": str(library),
            "ANSIBLE_LOCALHOST_WARNING": "0",
        },
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert (done.returncode == 0) is (installed is not None), done.stdout + done.stderr
    assert (tmp_path / "log").exists() is fetched
    assert installed is None or f"INSTALLED:{installed}:" in done.stdout
