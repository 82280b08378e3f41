# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The fake hypervisor keeps the contract of the real one."""

from __future__ import annotations

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._domain import Hypervisor
from tests.unit.contract.hypervisor import NASTY_NAMES, HypervisorContract
from tests.unit.fake_hypervisor import FakeHypervisor


class TestFakeHypervisor(HypervisorContract):
    @pytest.fixture
    def port(self, hypervisor: FakeHypervisor) -> Hypervisor:
        for name in ("vm1", "vm10", *NASTY_NAMES):
            hypervisor.add(name)
        return hypervisor


def test_every_start_has_a_process_of_its_own(hypervisor: FakeHypervisor) -> None:
    domain = hypervisor.add("vm1")
    pids = {domain.pid}
    for _cycle in range(3):
        domain.destroy()
        assert domain.pid is None
        domain.start()
        pids.add(domain.pid)
    assert len(pids) == 4
