# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a domain without the guest agent's channel gets, and where."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils import _channel
from ansible_collections.kvm.fleet.plugins.module_utils._channel import (
    CHANNEL_XML,
    NO_SERIAL_BUS,
    SAVED,
    Found,
    Live,
    Persistent,
    Plan,
)
from ansible_collections.kvm.fleet.plugins.module_utils._domain import DomainState
from ansible_collections.kvm.fleet.plugins.module_utils._domain_xml import parse_definition
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    AgentSilent,
    ChannelImpossible,
    HypervisorUnavailable,
    NoAgentChannel,
    ProofFailed,
)
from tests.unit.fake_hypervisor import FakeDomain, FakeHypervisor, libvirt_failed

BUS = "<controller type='virtio-serial' index='0'/>"
NOTHING, BARE, FULL = (
    parse_definition(f"<domain><devices>{devices}</devices></domain>") for devices in ("", BUS, BUS + CHANNEL_XML)
)


def test_the_device_leaves_addresses_to_libvirt() -> None:
    assert [element.tag for element in ElementTree.fromstring(CHANNEL_XML).iter()] == ["channel", "target"]


@pytest.mark.parametrize(
    ("found", "live", "persistent", "reason"),
    [
        (Found("a", FULL, FULL, None), Live.PRESENT, Persistent.PRESENT, ""),
        (Found("a", BARE, BARE, None), Live.ADDED, Persistent.ADDED, ""),
        (Found("a", NOTHING, NOTHING, None), Live.NEEDS_RESTART, Persistent.ADDED, NO_SERIAL_BUS),
        (Found("a", NOTHING, FULL, None), Live.NEEDS_RESTART, Persistent.PRESENT, NO_SERIAL_BUS),
        (Found("a", BARE, FULL, None), Live.ADDED, Persistent.PRESENT, ""),
        (Found("a", FULL, NOTHING, None), Live.PRESENT, Persistent.ADDED, ""),
        (Found("a", None, NOTHING, None), Live.NOT_RUNNING, Persistent.ADDED, ""),
        (Found("a", None, FULL, None), Live.NOT_RUNNING, Persistent.PRESENT, ""),
        (Found("a", None, NOTHING, BARE), Live.NOT_RUNNING, Persistent.ADDED, SAVED),
        (Found("a", None, FULL, BARE), Live.NOT_RUNNING, Persistent.PRESENT, SAVED),
        (Found("a", None, FULL, FULL), Live.NOT_RUNNING, Persistent.PRESENT, ""),
        (Found("a", FULL, None, None), Live.PRESENT, Persistent.TRANSIENT, ""),
        (Found("a", BARE, None, None), Live.ADDED, Persistent.TRANSIENT, ""),
    ],
)
def test_each_definition_is_completed_by_itself(found: Found, live: Live, persistent: Persistent, reason: str) -> None:
    plan = _channel.plan(found)
    assert plan == Plan(live, persistent, reason)
    assert plan.changes is (live is Live.ADDED or persistent is Persistent.ADDED)
    assert plan.restart_required is bool(reason)


def test_a_transient_domain_that_cannot_take_it_as_it_runs_is_refused() -> None:
    with pytest.raises(ChannelImpossible, match="is transient") as raised:
        _channel.plan(Found("a", NOTHING, None, None))
    assert "virsh define" in raised.value.remedy


# --- carried out ---------------------------------------------------------------------------------


@pytest.fixture
def domain(hypervisor: FakeHypervisor) -> FakeDomain:
    """Runs without a channel."""
    domain = hypervisor.add("web1")
    domain.agent_channel = False
    return domain


def ensure(domain: FakeDomain) -> Plan:
    return _channel.apply(domain, _channel.plan(_channel.observe(domain)))


def test_a_domain_with_a_bus_gets_it_in_both_places_and_the_definition_first(domain: FakeDomain) -> None:
    domain.serial_bus = True
    assert ensure(domain) == Plan(Live.ADDED, Persistent.ADDED)
    assert domain.changes == ["attach_device persistent", "attach_device live"]
    assert ensure(domain) == Plan(Live.PRESENT, Persistent.PRESENT)
    assert len(domain.changes) == 2


def test_a_domain_without_a_bus_has_it_after_a_restart(domain: FakeDomain) -> None:
    for expected in (Persistent.ADDED, Persistent.PRESENT):
        assert ensure(domain) == Plan(Live.NEEDS_RESTART, expected, NO_SERIAL_BUS)
    assert domain.changes == ["attach_device persistent"]
    domain.destroy()
    domain.start()
    assert ensure(domain) == Plan(Live.PRESENT, Persistent.PRESENT)


def test_a_domain_that_is_off_has_it_at_its_start(domain: FakeDomain) -> None:
    domain.be(DomainState.SHUT_OFF)
    assert ensure(domain) == Plan(Live.NOT_RUNNING, Persistent.ADDED)
    domain.start()
    assert ensure(domain) == Plan(Live.PRESENT, Persistent.PRESENT)


def test_a_saved_image_without_it_is_told_each_time(domain: FakeDomain) -> None:
    domain.be(DomainState.SHUT_OFF)
    domain.managed_save, domain.saved_channel = True, False
    for expected in (Persistent.ADDED, Persistent.PRESENT):
        assert ensure(domain) == Plan(Live.NOT_RUNNING, expected, SAVED)


def test_what_was_plugged_in_by_hand_is_written_down(domain: FakeDomain) -> None:
    domain.agent_channel, domain.channel_at_start = True, False
    assert ensure(domain) == Plan(Live.PRESENT, Persistent.ADDED)
    assert domain.changes == ["attach_device persistent"]


def test_a_refusal_while_the_domain_runs_leaves_it_to_the_next_start(domain: FakeDomain) -> None:
    domain.serial_bus = True
    planned = _channel.plan(_channel.observe(domain))
    domain.serial_bus = False  # as when every port of the bus is taken
    done = _channel.apply(domain, planned)
    assert (done.live, done.persistent) == (Live.NEEDS_RESTART, Persistent.ADDED)
    assert done.reason == "libvirt says: internal error: no virtio-serial controllers are available"


def test_a_transient_domain_gets_it_as_it_runs(domain: FakeDomain) -> None:
    domain.persistent, domain.serial_bus = False, True
    assert ensure(domain) == Plan(Live.ADDED, Persistent.TRANSIENT)
    assert domain.changes == ["attach_device live"]


@pytest.mark.parametrize("persistent", [True, False])
def test_a_refusal_that_leaves_nothing_is_told_in_libvirts_words(domain: FakeDomain, persistent: bool) -> None:
    domain.persistent, domain.serial_bus = persistent, True
    domain.faults["attach_device"] = libvirt_failed("unsupported configuration: no virtio here")
    with pytest.raises(ChannelImpossible, match="no virtio here") as raised:
        ensure(domain)
    assert raised.value.evidence["libvirt"] == "unsupported configuration: no virtio here"
    assert len(domain.changes) == 1


def test_a_libvirt_that_goes_away_is_no_refusal(domain: FakeDomain) -> None:
    domain.serial_bus = True
    planned = _channel.plan(_channel.observe(domain))
    domain.faults["attach_device"] = HypervisorUnavailable("the connection broke", remedy="Start libvirt.")
    with pytest.raises(HypervisorUnavailable):
        _channel.apply(domain, planned)


@pytest.mark.parametrize(
    ("planned", "where"),
    [
        (Plan(Live.PRESENT, Persistent.ADDED), "its definition"),
        (Plan(Live.ADDED, Persistent.TRANSIENT), "the running domain"),
        (Plan(Live.ADDED, Persistent.ADDED), "its definition and the running domain"),
    ],
)
def test_what_libvirt_says_is_looked_at(
    domain: FakeDomain, monkeypatch: pytest.MonkeyPatch, planned: Plan, where: str
) -> None:
    monkeypatch.setattr(domain, "attach_device", lambda _xml, **_where: None)
    with pytest.raises(ProofFailed, match=f"and {where} has it not"):
        _channel.apply(domain, planned)


def test_a_domain_that_goes_off_meanwhile_has_its_definition(domain: FakeDomain) -> None:
    domain.serial_bus = True
    planned = _channel.plan(_channel.observe(domain))
    domain.go_off()
    done = _channel.apply(domain, planned)
    assert done.persistent is Persistent.ADDED
    assert done == replace(planned, live=Live.NEEDS_RESTART, reason=done.reason)


# --- the agent -----------------------------------------------------------------------------------


def test_the_agent_is_waited_for(hypervisor: FakeHypervisor) -> None:
    domain = hypervisor.add("web1")
    domain.agent.silent = True
    hypervisor.clock.after(20, lambda: setattr(domain.agent, "silent", False))
    _channel.wait_for_agent(hypervisor, domain, 60)
    assert domain.agent.requests == ["guest-ping"]


def test_an_agent_that_stays_silent_is_told(hypervisor: FakeHypervisor) -> None:
    domain = hypervisor.add("web1")
    domain.agent.silent = True
    with pytest.raises(AgentSilent, match="does not answer within 30 s") as raised:
        _channel.wait_for_agent(hypervisor, domain, 30)
    assert "kvm.fleet.install_agent does that" in raised.value.remedy
    assert raised.value.evidence == {"last": "Guest agent is not responding", "connected": False}


def test_an_agent_that_hangs_is_told_from_one_that_is_missing(hypervisor: FakeHypervisor) -> None:
    domain = hypervisor.add("web1")
    domain.agent.delay = 1000
    with pytest.raises(AgentSilent, match="has the agent's channel open and does not answer") as raised:
        _channel.wait_for_agent(hypervisor, domain, 30)
    assert "kvm.fleet.install_agent" not in raised.value.remedy
    assert raised.value.evidence["connected"] is True


def test_what_waiting_does_not_cure_is_not_waited_for(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    before = hypervisor.clock.monotonic()
    with pytest.raises(NoAgentChannel):
        _channel.wait_for_agent(hypervisor, domain, 600)
    assert hypervisor.clock.monotonic() == before
