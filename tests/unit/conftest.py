# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Settings and fixtures of the unit tests."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from ansible_collections.kvm.fleet.plugins.module_utils import _observe, _proc
from ansible_collections.kvm.fleet.plugins.module_utils._save import save_directory
from tests.unit.fake_clock import FakeClock
from tests.unit.fake_guestfish import FakeGuestfish
from tests.unit.fake_hypervisor import FakeHypervisor
from tests.unit.fake_proc import FakeProc
from tests.unit.host_agent import HostAgent, host_agent

# Deadlines measure the machine, not the code; a fixed seed makes a failure the next run's failure too.
settings.register_profile("fleet", deadline=None, derandomize=True, database=None)
settings.load_profile("fleet")

# Whoever started the tests in the background of a shell had SIGINT ignored, by all of their children too. What is
# tested runs under init in a guest, where it is not.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path)


@pytest.fixture
def hypervisor(clock: FakeClock, proc: FakeProc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHypervisor:
    """A hypervisor without domains, whose processes the code under test finds in its own /proc."""
    images, runtime = tmp_path / "images", tmp_path / "run" / "libvirt" / "qemu" / "run"
    images.mkdir()
    runtime.mkdir(parents=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    save_directory(FakeHypervisor.uri).mkdir(parents=True)
    monkeypatch.setattr(_observe, "PROC", proc.path)
    monkeypatch.setattr(_observe, "find_process", functools.partial(_proc.find_process, proc=proc.path))
    monkeypatch.setattr(_observe, "running_files", functools.partial(_proc.running_files, proc=proc.path))
    return FakeHypervisor(clock, proc, runtime, images)


@pytest.fixture
def fake_guestfish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGuestfish:
    """A guestfish that is found in PATH once it is made ready."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'libguestfs' / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "libguestfs").mkdir()
    return FakeGuestfish(tmp_path / "libguestfs")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[HostAgent]:
    """An agent that really runs its commands, on this machine."""
    with host_agent(tmp_path / "bin") as agent:
        yield agent
