# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest that was frozen is thawed, by whoever is left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils import _quiesce
from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._clock import SystemClock
from ansible_collections.kvm.fleet.plugins.module_utils._domain import DomainState, Hypervisor
from ansible_collections.kvm.fleet.plugins.module_utils._errors import AgentCommandBlocked, AgentSilent, GuestFrozen
from tests.unit.fake_clock import FakeClock
from tests.unit.fake_hypervisor import FakeDomain, FakeHypervisor

PATIENCE_S = 30


@pytest.fixture
def domain(hypervisor: FakeHypervisor) -> FakeDomain:
    return hypervisor.add("web1")


@pytest.fixture
def agent(domain: FakeDomain, clock: FakeClock) -> GuestAgent:
    return GuestAgent(domain, clock)


# --- whether it can be frozen --------------------------------------------------------------------


def test_an_agent_that_allows_it_is_no_problem(agent: GuestAgent) -> None:
    assert _quiesce.problem(agent) is None


def test_what_it_does_not_allow_is_named(domain: FakeDomain, agent: GuestAgent) -> None:
    domain.agent.blocked |= {"guest-fsfreeze-freeze", "guest-fsfreeze-thaw"}
    told = "the guest agent does not allow guest-fsfreeze-freeze, guest-fsfreeze-thaw"
    assert _quiesce.problem(agent) == told
    domain.agent.silent = True
    assert _quiesce.problem(agent) == "Guest agent is not responding"


def test_a_guest_that_is_frozen_is_told_of_whatever_it_is_asked(domain: FakeDomain, agent: GuestAgent) -> None:
    domain.agent.frozen = True
    with pytest.raises(GuestFrozen):
        _quiesce.problem(agent)
    with pytest.raises(GuestFrozen) as raised:
        agent.require("guest-exec")
    assert raised.value.transient
    assert "virsh domfsthaw" in raised.value.remedy
    domain.agent.blocked.add("guest-fsfreeze-status")
    with pytest.raises(AgentCommandBlocked):
        agent.require("guest-exec")


# --- thawing it ----------------------------------------------------------------------------------


def test_it_is_thawed_once_its_agent_is_back(domain: FakeDomain, agent: GuestAgent, clock: FakeClock) -> None:
    assert _quiesce.thaw(agent, clock) is False
    domain.agent.frozen = domain.agent.silent = True

    def back() -> None:
        domain.agent.silent = False

    clock.after(60, back)
    assert _quiesce.thaw(agent, clock) is True
    assert domain.agent.frozen is False


def test_a_thaw_whose_answer_gets_lost_is_one(
    domain: FakeDomain, agent: GuestAgent, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain.agent.frozen = True
    real = agent.thaw

    def lose_the_answer() -> None:
        real()
        raise AgentSilent("Guest agent is not responding", remedy="See whether it runs.")

    monkeypatch.setattr(agent, "thaw", lose_the_answer)
    assert _quiesce.thaw(agent, clock) is True


def test_a_guest_that_cannot_be_thawed_is_told_of(domain: FakeDomain, agent: GuestAgent, clock: FakeClock) -> None:
    domain.agent.frozen = domain.agent.silent = True
    with pytest.raises(
        GuestFrozen, match="may still be frozen, and could not be thawed: Guest agent is not responding"
    ):
        _quiesce.thaw(agent, clock)


def test_what_a_run_has_left_is_thawed_where_it_can_be(
    domain: FakeDomain, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain.agent.frozen = True
    with monkeypatch.context() as patch:
        patch.setattr(domain, "is_making_snapshot", lambda: True)
        assert _quiesce.thaw_if_answering(domain, clock) is False  # libvirt does it
    domain.agent.silent = True
    assert _quiesce.thaw_if_answering(domain, clock) is False
    domain.agent.silent = False
    assert _quiesce.thaw_if_answering(domain, clock) is True
    assert domain.agent.frozen is False
    assert _quiesce.thaw_if_answering(domain, clock) is True
    domain.be(DomainState.SHUT_OFF)
    assert _quiesce.thaw_if_answering(domain, clock) is True


# --- the watch, which is a process of its own ----------------------------------------------------


Connect = Callable[[], AbstractContextManager[Hypervisor]]


@dataclass(frozen=True)
class Guest:
    """What processes share of it: files that are there as long as it is frozen, and as libvirt makes a snapshot."""

    ice: Path
    snapshot: Path
    connect: Connect


@pytest.fixture
def guest(hypervisor: FakeHypervisor, domain: FakeDomain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Guest:
    shared = Guest(tmp_path / "ice", tmp_path / "snapshot", lambda: nullcontext(hypervisor))
    exchange = FakeDomain.exchange

    def cold(self: FakeDomain, request: str, timeout: int) -> str:
        self.agent.frozen = shared.ice.exists()
        answer = exchange(self, request, timeout)
        if not self.agent.frozen:
            shared.ice.unlink(missing_ok=True)
        return answer

    monkeypatch.setattr(FakeDomain, "exchange", cold)
    monkeypatch.setattr(domain, "is_making_snapshot", shared.snapshot.exists)
    monkeypatch.setattr(hypervisor, "clock", SystemClock())  # as the others do not wait for
    return shared


def thawed(guest: Guest) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while guest.ice.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not guest.ice.exists()


def die_frozen(guest: Guest) -> None:
    """What a module does that is killed as the guest is frozen."""
    pid = os.fork()
    if pid == 0:
        try:
            with _quiesce.watching(guest.connect, "web1"):
                guest.ice.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    _pid, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status)


def test_a_watch_that_hears_that_all_is_well_does_nothing(guest: Guest) -> None:
    with _quiesce.watching(guest.connect, "web1") as watch:
        guest.ice.touch()
    assert (watch.lost_patience, guest.ice.exists()) == (False, True)


def test_a_snapshot_that_takes_too_long_is_given_up_for_the_guest(guest: Guest) -> None:
    with _quiesce.watching(guest.connect, "web1", patience=1) as watch:
        guest.ice.touch()
        assert thawed(guest)
    assert watch.lost_patience is True


def test_a_guest_that_was_not_frozen_by_then_has_lost_nothing(guest: Guest) -> None:
    with _quiesce.watching(guest.connect, "web1", patience=0.01) as watch:
        time.sleep(0.5)
    assert watch.lost_patience is False


def test_the_guest_of_a_module_that_was_killed_is_thawed(guest: Guest) -> None:
    die_frozen(guest)
    assert thawed(guest)


def test_libvirt_is_let_end_the_snapshot_first(guest: Guest) -> None:
    guest.snapshot.touch()
    die_frozen(guest)
    time.sleep(1)
    assert guest.ice.exists()
    guest.snapshot.unlink()
    assert thawed(guest)
