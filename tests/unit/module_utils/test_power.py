# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which steps a domain needs."""

from __future__ import annotations

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._domain import DomainState, require_running
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    DomainNotRunning,
    DomainUnsafe,
    InvalidRequest,
)
from ansible_collections.kvm.fleet.plugins.module_utils._observe import observe
from ansible_collections.kvm.fleet.plugins.module_utils._power import (
    PowerOptions,
    PowerState,
    Step,
    plan,
)
from tests.unit.fake_hypervisor import FakeDomain, FakeHypervisor

CYCLE = (Step.SHUT_DOWN, Step.START, Step.WAIT_FOR_AGENT)


@pytest.fixture
def domain(hypervisor: FakeHypervisor) -> FakeDomain:
    return hypervisor.add("web1")


OFF = (DomainState.SHUT_OFF, DomainState.CRASHED, DomainState.NO_STATE)
IN_BETWEEN = (DomainState.PAUSED, DomainState.SHUTTING_DOWN, DomainState.SUSPENDED)


@pytest.mark.parametrize(
    ("state", "wanted", "agent_timeout", "expected"),
    [
        (DomainState.RUNNING, PowerState.STARTED, 300, ()),
        (DomainState.RUNNING, PowerState.STOPPED, 300, (Step.SHUT_DOWN,)),
        (DomainState.RUNNING, PowerState.RESTARTED, 300, CYCLE),
        (DomainState.RUNNING, PowerState.RESTARTED, 0, (Step.SHUT_DOWN, Step.START)),
        (DomainState.BLOCKED, PowerState.RESTARTED, 300, CYCLE),
        *((state, PowerState.STARTED, 300, (Step.START, Step.WAIT_FOR_AGENT)) for state in OFF),
        *((state, PowerState.STARTED, 0, (Step.START,)) for state in OFF),
        *((state, PowerState.STOPPED, 300, ()) for state in OFF),
    ],
)
def test_the_plan_leads_from_what_is_to_what_is_wanted(
    hypervisor: FakeHypervisor,
    state: DomainState,
    wanted: PowerState,
    agent_timeout: float,
    expected: tuple[Step, ...],
) -> None:
    domain = hypervisor.add("web1", state)
    assert plan(observe(hypervisor, domain), wanted, PowerOptions(agent_timeout=agent_timeout)) == expected


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        *((state, PowerState.RESTARTED) for state in OFF),
        *((state, wanted) for state in IN_BETWEEN for wanted in PowerState),
    ],
)
def test_a_state_that_somebody_else_must_resolve_is_refused(
    hypervisor: FakeHypervisor, domain: FakeDomain, state: DomainState, wanted: PowerState
) -> None:
    domain.be(state)
    with pytest.raises(DomainNotRunning) as raised:
        plan(observe(hypervisor, domain), wanted, PowerOptions())
    assert raised.value.message == f"domain 'web1' is {state.value.replace('_', ' ')}, not running"
    assert raised.value.evidence == {"state": state.value}


@pytest.mark.parametrize(
    "state", [state for state in DomainState if state not in (DomainState.RUNNING, DomainState.BLOCKED)]
)
def test_every_state_but_running_has_its_remedy(state: DomainState) -> None:
    with pytest.raises(DomainNotRunning) as raised:
        require_running("web1", state)
    assert raised.value.remedy


@pytest.mark.parametrize("wanted", [PowerState.STOPPED, PowerState.RESTARTED])
def test_a_domain_that_would_not_survive_a_shutdown_is_refused(
    hypervisor: FakeHypervisor, domain: FakeDomain, wanted: PowerState
) -> None:
    domain.persistent = False
    with pytest.raises(DomainUnsafe, match=r"'web1' is transient"):
        plan(observe(hypervisor, domain), wanted, PowerOptions())
    domain.persistent, domain.managed_save = True, True
    with pytest.raises(DomainUnsafe, match=r"'web1' runs and also has a managed save image"):
        plan(observe(hypervisor, domain), wanted, PowerOptions())
    domain.managed_save, domain.on_poweroff = False, "restart"
    with pytest.raises(DomainUnsafe, match=r"'web1' is defined to restart when its guest powers off") as raised:
        plan(observe(hypervisor, domain), wanted, PowerOptions())
    assert "virsh set-lifecycle-action web1 poweroff destroy --live --config" in raised.value.remedy


def test_a_transient_domain_that_runs_already_counts_as_started(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    domain.persistent = False
    assert plan(observe(hypervisor, domain), PowerState.STARTED, PowerOptions()) == ()


@pytest.mark.parametrize("options", [PowerOptions(shutdown_timeout=0), PowerOptions(agent_timeout=-1)])
def test_numbers_that_cannot_be_meant_are_refused(options: PowerOptions) -> None:
    with pytest.raises(InvalidRequest):
        options.check()
