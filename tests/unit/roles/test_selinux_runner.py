# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The role's installation, by tasks and by its script, with SELinux tools that remember what they were told.

They print what policycoreutils prints. A kernel that enforces anything is not among them.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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


# --- the script for an image ----------------------------------------------------------------------

ROLE = ROOT / "roles" / "selinux_runner"
LABEL = "system_u:object_r:virt_qemu_ga_unconfined_exec_t:s0"

# The label of a file is kept beside the others' memory, since this machine's own file system may take none.
OFFLINE_TOOLS = {
    "semanage": TOOLS["semanage"].replace(
        "  *) exit 2 ;;",
        """\
  'import -N')
    cat >"$STATE/orders"
    [ ! -e "$STATE/broken" ] || { echo 'ValueError: no such luck' >&2; exit 1; }
    sed -n 's/^fcontext .* -t \\([^ ]*\\) .*/\\1/p' "$STATE/orders" >"$STATE/new"
    [ ! -s "$STATE/new" ] || mv "$STATE/new" "$STATE/label"
    ! grep -q '^boolean -m -1 virt_qemu_ga_run_unconfined$' "$STATE/orders" || echo 'on   ,   on' >"$STATE/boolean" ;;
  *) exit 2 ;;""",
    ),
    "chcon": """echo "$1" >"$STATE/of-$(basename "$2" .kvm-fleet-new)"\n""",
    "chown": '[ "$1" = 0:0 ]\n',
    "stat": """\
[ "$1 $2" = '-c %u %g %a %C' ] || exit 2
echo "0 0 $(/usr/bin/stat -c %a "$3") $(cat "$STATE/of-$(basename "$3")" 2>/dev/null || echo '?')"
""",
}


class Image:
    """A system with tools, a policy that knows the boolean, and the script that is run in it."""

    def __init__(self, directory: Path) -> None:
        self.runner = directory / "libexec" / "kvm-fleet" / "run"
        self.state, self.config, self.tools = (directory / name for name in ("state", "config", "bin"))
        for made in (self.runner.parents[1], self.state, self.tools):
            made.mkdir()
        self.config.write_text("# a comment\nSELINUX=permissive\nSELINUXTYPE=targeted\n", encoding="ascii")
        (self.state / "boolean").write_text("off  ,  off\n", encoding="ascii")
        for name, script in OFFLINE_TOOLS.items():
            (self.tools / name).write_text(f"#!/bin/sh\n{script}", encoding="utf-8")
            (self.tools / name).chmod(0o755)

    def run(self) -> tuple[int, str]:
        """Run the script; its exit code and what it said."""
        content = (ROLE / "files" / "run").read_text(encoding="utf-8").rstrip()
        variables = {"path": self.runner, "content": content, "config": self.config, **NAMES}
        given = "".join(f"{name}={shlex.quote(str(value))}\n" for name, value in variables.items())
        done = subprocess.run(
            ["/bin/sh", "-s"],
            input=given + (ROLE / "files" / "install_offline.sh").read_text(encoding="utf-8"),
            env={"PATH": f"{self.tools}:/usr/bin:/bin", "STATE": str(self.state), "RUNNER": str(self.runner)},
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def orders(self) -> list[str]:
        """What the policy's store was last told to take."""
        return (self.state / "orders").read_text(encoding="utf-8").splitlines()

    def label(self) -> str:
        """The runner's label."""
        return (self.state / "of-run").read_text(encoding="ascii").strip()


NAMES = {"type": "virt_qemu_ga_unconfined_exec_t", "boolean": "virt_qemu_ga_run_unconfined"}
SAYS = yaml.safe_load((ROLE / "vars" / "main.yml").read_text(encoding="utf-8"))


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image(tmp_path)


def test_the_script_gives_an_image_all_of_it_and_then_what_is_missing(image: Image) -> None:
    installed = (0, f"{SAYS['selinux_runner_was_installed']}\n")
    rule = f"fcontext -a -f a -t {NAMES['type']} '{image.runner}'"
    assert image.run() == installed
    assert image.orders() == [rule, f"boolean -m -1 {NAMES['boolean']}"]
    assert (image.label(), image.runner.stat().st_mode & 0o7777) == (LABEL, 0o755)
    assert image.runner.read_text("utf-8") == (ROLE / "files" / "run").read_text("utf-8")
    assert [path.name for path in image.runner.parent.iterdir()] == ["run"]

    (image.state / "orders").unlink()
    code, said = image.run()
    assert (code, SAYS["selinux_runner_was_installed"] in said) == (0, False)
    assert not (image.state / "orders").exists()

    image.runner.chmod(0o700)
    assert image.run() == installed
    assert image.runner.stat().st_mode & 0o7777 == 0o755
    assert not (image.state / "orders").exists()

    (image.state / "label").write_text("bin_t\n", encoding="ascii")
    assert image.run() == installed
    assert image.orders() == [rule.replace("-a -f", "-m -f")]


@pytest.mark.parametrize("config", ["SELINUX=disabled\n", None])
def test_the_script_leaves_a_system_without_selinux_alone(image: Image, config: str | None) -> None:
    image.config.unlink()
    if config:
        image.config.write_text(config, encoding="ascii")
    assert image.run() == (0, f"{SAYS['selinux_runner_is_off']}\n")
    assert not image.runner.parent.exists()


@pytest.mark.parametrize("lacks", ["semanage", "boolean"])
def test_the_script_refuses_a_system_that_lacks_what_it_takes(image: Image, lacks: str) -> None:
    (image.tools / "semanage" if lacks == "semanage" else image.state / "boolean").unlink()
    code, said = image.run()
    assert (code, f"has no {lacks}" in said) == (1, True)
    assert not image.runner.parent.exists()


@pytest.mark.parametrize("older", [None, "an older one\n"])
def test_what_the_script_has_done_is_undone_where_the_policy_does_not_take_it(image: Image, older: str | None) -> None:
    if older:
        image.runner.parent.mkdir()
        image.runner.write_text(older, encoding="ascii")
    (image.state / "broken").touch()
    code, said = image.run()
    assert (
        code,
        said.endswith(f"does not take {NAMES['type']} and {NAMES['boolean']}: ValueError: no such luck\n"),
    ) == (
        1,
        True,
    )
    assert image.runner.parent.exists() is bool(older)
    if older:
        assert [path.name for path in image.runner.parent.iterdir()] == ["run"]
        assert image.runner.read_text("ascii") == older
