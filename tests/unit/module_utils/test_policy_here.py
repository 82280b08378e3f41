# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The agent's settings changed from within the guest, which is a directory of this machine with programs of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._errors import GuestUnsupported, InvalidRequest, ProofFailed
from ansible_collections.kvm.fleet.plugins.module_utils._policy import EXEC_RPCS, ChangedLine, Wanted
from ansible_collections.kvm.fleet.plugins.module_utils._policy_here import apply_here, put_back_here
from tests.unit.fake_clock import FakeClock
from tests.unit.fake_files import TEMPLATE

DISABLED = Wanted(EXEC_RPCS, allowed=False)
UNIT = "/usr/lib/systemd/system/qemu-guest-agent.service"
INSTANCE = r"qemu-ga@virtio\x2dports-org.qemu.guest_agent.0.service"
CONF = "/etc/qemu/qemu-ga.conf"
DEBIAN = {"/proc/1/comm": "systemd\n", UNIT: "[Service]\nExecStart=-/usr/sbin/qemu-ga\n", CONF: "# mine\n"}
SYSVINIT = {"/proc/1/comm": "init\n", "/etc/init.d/qemu-guest-agent": "", CONF: "# mine\n"}
BLOCKED = "# mine\n[general]\nblock-rpcs=guest-exec,guest-exec-status\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What systemctl is asked for. The agent is 7.2, and runs while there is a file 'runs'."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (tmp_path / "runs").touch()
    scripts = {
        "qemu-ga": "echo 'QEMU Guest Agent 7.2.22'",
        "systemctl": f'echo "$*" >>{tmp_path}/log\n[ "$1" != is-active ] || [ -e {tmp_path}/runs ]',
    }
    for name, script in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return tmp_path / "log"


def fill(root: Path, files: Mapping[str, str]) -> None:
    for path, content in files.items():
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf-8")


def text(root: Path, path: str) -> str:
    return (root / path.lstrip("/")).read_text(encoding="utf-8")


def test_check_real_again(root: Path, log: Path, clock: FakeClock) -> None:
    fill(root, DEBIAN)
    predicted = apply_here(DISABLED, clock, check=True, root=root)
    assert (predicted.changed, text(root, CONF), log.exists()) == (True, "# mine\n", False)
    done = apply_here(DISABLED, clock, check=False, root=root)
    assert [written.change for written in predicted.files] == [written.change for written in done.files]
    assert done.files[0].change.lines()[0] == ChangedLine(None, "[general]")
    assert text(root, CONF) == BLOCKED
    assert (done.files[0].backup, text(root, f"{CONF}.kvm-fleet-backup")) == (f"{CONF}.kvm-fleet-backup", "# mine\n")
    assert log.read_text().splitlines() == [
        "daemon-reload",
        "reset-failed qemu-guest-agent.service",
        "restart qemu-guest-agent.service",
        "is-active --quiet qemu-guest-agent.service",
    ]
    again = apply_here(DISABLED, clock, check=False, root=root)
    assert (again.changed, again.restarted) == (False, False)
    assert len(log.read_text().splitlines()) == 4


def test_an_agent_that_has_not_read_its_files_yet_is_restarted_without_a_change(
    root: Path, log: Path, clock: FakeClock
) -> None:
    fill(root, {**DEBIAN, CONF: BLOCKED})
    predicted = apply_here(DISABLED, clock, restart=True, check=True, root=root)
    assert (predicted.changed, predicted.restarted, log.exists()) == (True, True, False)
    done = apply_here(DISABLED, clock, restart=True, check=False, root=root)
    assert (done.changed, done.restarted, done.files) == (True, True, [])
    assert "restart qemu-guest-agent.service" in log.read_text().splitlines()
    assert text(root, CONF) == BLOCKED


@pytest.mark.usefixtures("log")
def test_a_copy_is_for_the_same_eyes(root: Path, clock: FakeClock) -> None:
    fill(root, DEBIAN)
    (root / CONF.lstrip("/")).chmod(0o640)
    apply_here(DISABLED, clock, check=False, root=root)
    assert (root / f"{CONF}.kvm-fleet-backup".lstrip("/")).stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("there", [True, False])
def test_an_agent_that_does_not_start_gets_its_old_settings(
    root: Path, log: Path, clock: FakeClock, there: bool
) -> None:
    fill(root, DEBIAN if there else {path: content for path, content in DEBIAN.items() if path != CONF})
    (log.parent / "runs").unlink()
    with pytest.raises(ProofFailed):
        apply_here(DISABLED, clock, check=False, root=root)
    assert (root / CONF.lstrip("/")).exists() is there
    assert text(root, CONF) == "# mine\n" if there else True
    assert log.read_text().splitlines().count("restart qemu-guest-agent.service") == 2


@pytest.mark.parametrize("there", [True, False])
def test_what_the_agent_does_not_mind_is_put_back_once(root: Path, log: Path, clock: FakeClock, there: bool) -> None:
    fill(root, DEBIAN if there else {path: content for path, content in DEBIAN.items() if path != CONF})
    done = apply_here(DISABLED, clock, check=False, root=root)
    copies = {written.path: written.backup for written in done.files}
    assert copies == {CONF: f"{CONF}.kvm-fleet-backup" if there else None}
    changed, asked = text(root, CONF), len(log.read_text().splitlines())

    predicted = put_back_here(copies, clock, check=True, root=root)
    assert (predicted.changed, predicted.restarted) == (True, True)
    assert (text(root, CONF), len(log.read_text().splitlines())) == (changed, asked)
    undone = put_back_here(copies, clock, check=False, root=root)
    assert predicted.files == undone.files
    before, after = (undone.files[0].difference()[side] for side in ("before", "after"))
    assert (before, after) == (changed, "# mine\n" if there else "")
    assert (root / CONF.lstrip("/")).exists() is there
    assert text(root, CONF) == "# mine\n" if there else True
    assert log.read_text().splitlines()[asked:] == [
        "daemon-reload",
        "reset-failed qemu-guest-agent.service",
        "restart qemu-guest-agent.service",
        "is-active --quiet qemu-guest-agent.service",
    ]
    assert put_back_here(copies, clock, check=False, root=root).changed is False
    assert len(log.read_text().splitlines()) == asked + 4


def test_files_that_were_put_back_are_told_so_though_the_agent_does_not_come_up(
    root: Path, log: Path, clock: FakeClock
) -> None:
    fill(root, DEBIAN)
    done = apply_here(DISABLED, clock, check=False, root=root)
    (log.parent / "runs").unlink()
    with pytest.raises(ProofFailed) as failed:
        put_back_here({written.path: written.backup for written in done.files}, clock, check=False, root=root)
    assert failed.value.evidence["put_back"] is True
    assert text(root, CONF) == "# mine\n"


@pytest.mark.parametrize("gone", [CONF, f"{CONF}.kvm-fleet-backup"])
def test_nothing_is_put_back_where_the_copy_or_the_file_is_gone(
    root: Path, log: Path, clock: FakeClock, gone: str
) -> None:
    fill(root, DEBIAN)
    done = apply_here(DISABLED, clock, check=False, root=root)
    (root / gone.lstrip("/")).unlink()
    log.unlink()
    with pytest.raises(GuestUnsupported, match=gone):
        put_back_here({written.path: written.backup for written in done.files}, clock, check=False, root=root)
    assert not log.exists()


def test_a_unit_that_systemd_makes_of_the_init_script_is_restarted_as_any_other(
    root: Path, log: Path, clock: FakeClock
) -> None:
    fill(root, {**SYSVINIT, "/proc/1/comm": "systemd\n", "/etc/default/qemu-guest-agent": "DAEMON_ARGS='-v'\n"})
    done = apply_here(DISABLED, clock, check=False, root=root)
    assert (done.changed, done.files[0].path) == (True, "/etc/default/qemu-guest-agent")
    assert text(root, "/etc/default/qemu-guest-agent") == (
        "DAEMON_ARGS='-v --block-rpcs=guest-exec,guest-exec-status'\n"
    )
    assert "restart qemu-guest-agent.service" in log.read_text().splitlines()


def test_of_a_template_the_instance_is_restarted(root: Path, log: Path, clock: FakeClock) -> None:
    fill(root, {"/proc/1/comm": "systemd\n", TEMPLATE: "[Service]\nExecStart=-/usr/bin/qemu-ga -p /dev/%I\n"})
    assert apply_here(DISABLED, clock, check=False, root=root).files[0].path == CONF
    assert log.read_text().splitlines()[2:] == [f"restart {INSTANCE}", f"is-active --quiet {INSTANCE}"]


def test_without_systemd_the_init_script_is_used(root: Path, log: Path, clock: FakeClock) -> None:
    """This machine's own has none, so it cannot be seen to run."""
    fill(root, SYSVINIT)
    with pytest.raises(ProofFailed):
        apply_here(DISABLED, clock, check=False, root=root)
    assert not log.exists()
    assert text(root, CONF) == "# mine\n"


def test_what_cannot_be_read_or_meant_is_refused(root: Path, log: Path, clock: FakeClock) -> None:
    fill(root, DEBIAN)
    (root / "etc/os-release").mkdir(parents=True)
    with pytest.raises(GuestUnsupported):
        apply_here(DISABLED, clock, check=False, root=root)
    with pytest.raises(InvalidRequest):
        apply_here(Wanted(("guest-ping",), allowed=False), clock, check=False, root=root)
    assert not log.exists()
