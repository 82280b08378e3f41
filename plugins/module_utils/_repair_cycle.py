# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Repairs a guest between its shutdown and its start, which nothing that can wait keeps apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ansible_collections.kvm.fleet.plugins.module_utils import _repair, _restart
from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._clock import Clock
from ansible_collections.kvm.fleet.plugins.module_utils._domain import ACTIVE_STATES, Domain, Hypervisor
from ansible_collections.kvm.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.kvm.fleet.plugins.module_utils._lease import Recorder
from ansible_collections.kvm.fleet.plugins.module_utils._observe import observe
from ansible_collections.kvm.fleet.plugins.module_utils._power import PowerOptions, PowerReport
from ansible_collections.kvm.fleet.plugins.module_utils._repair import Repaired, Wanted

NOTHING = Repaired((), None)


class Cycled(NamedTuple):
    """What was done while the guest was off, and what came of its way down and up."""

    repaired: Repaired
    power: PowerReport


def repair(
    hypervisor: Hypervisor, domain: Domain, wanted: Wanted, options: PowerOptions, recorder: Recorder, *, check: bool
) -> Cycled:
    """Shut the guest down, do the repairs, and start it whatever came of them. One that is off is started, too.

    In check mode, a guest that runs is only looked at: its image cannot be opened before it is off.
    A repair that fails is the first cause. Its error tells as evidence what was done before it, and of the guest's way
    down and up: that it was 'restarted', 'forced' and its 'transitions', or under 'start' why that failed as well.
    Raises what _repair.foresee, _restart.stop, _restart.cycle and _repair.repair raise.
    """
    wanted.check()
    options.check()
    observed = observe(hypervisor, domain)
    runs = observed.state in ACTIVE_STATES
    if runs:
        _repair.foresee(domain, wanted, uri=hypervisor.uri)
    if check:
        if runs:
            return Cycled(NOTHING, _restart.stop(hypervisor, domain, observed, options, recorder, check=True)[1])
        return Cycled(_repair.repair(domain, wanted, uri=hypervisor.uri, check=True), PowerReport())

    attempt = _Attempt()

    def work() -> None:
        try:
            attempt.repaired = _repair.repair(domain, wanted, uri=hypervisor.uri, check=False)
        except FleetError as error:
            attempt.failure = error  # raised once the guest is up

    answers = _answers(domain, hypervisor.clock)
    try:
        power = _restart.cycle(hypervisor, domain, observed, options, recorder, meanwhile=work, agent_answers=answers)
    except FleetError as error:
        if attempt.failure:
            raise _with_the_start(attempt.failure, error) from error
        error.evidence.update(attempt.repaired.facts())
        raise
    if attempt.failure:
        raise _with_the_cycle(attempt.failure, power)
    return Cycled(attempt.repaired, power)


@dataclass
class _Attempt:
    """What came of the repairs."""

    repaired: Repaired = NOTHING
    failure: FleetError | None = None


def _with_the_start(failure: FleetError, start: FleetError) -> FleetError:
    """A repair's failure that tells how the start failed after it."""
    failure.remedy = f"{failure.remedy} After that, its start failed: {start.message}. {start.remedy}"
    failure.evidence["start"] = {"error_code": start.error_code, "msg": start.message, **start.evidence}
    return failure


def _with_the_cycle(failure: FleetError, power: PowerReport) -> FleetError:
    """A repair's failure that tells how the guest came down and up."""
    transitions = [transition.facts() for transition in power.transitions]
    failure.evidence.update(restarted=True, forced=power.forced, transitions=transitions)
    return failure


def _answers(domain: Domain, clock: Clock) -> bool:
    """Whether the guest's agent does. That of a guest which is to be repaired may well not."""
    try:
        GuestAgent(domain, clock).ping()
    except FleetError:
        return False
    return True
