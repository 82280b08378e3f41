# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs modules as Ansible does, on a hypervisor with a memory."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.kvm.fleet.plugins.module_utils import _runner
from tests.unit.fake_hypervisor import FakeDomain, FakeHypervisor

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(hypervisor: FakeHypervisor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a module on the fake hypervisor, and returns what it prints."""

    opened: list[bool] = []

    @contextmanager
    def open_it(uri: str, *, patient: bool) -> Iterator[FakeHypervisor]:
        assert uri == "qemu:///system"
        opened.append(patient)
        yield hypervisor

    monkeypatch.setattr(_runner, "open_hypervisor", open_it)

    def run_module(module: str, *, check: bool = False, **arguments: Any) -> dict[str, Any]:
        opened.clear()
        imported = importlib.import_module(f"ansible_collections.kvm.fleet.plugins.modules.{module}")
        with patch_module_args({**arguments, "_ansible_check_mode": check}), pytest.raises(SystemExit):
            imported.main()
        # A libvirt that is away is waited for in a run, and by nobody else.
        assert all(patient is bool(arguments.get("run")) for patient in opened)
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return run_module


@pytest.fixture
def domain(hypervisor: FakeHypervisor) -> FakeDomain:
    return hypervisor.add("web1")
