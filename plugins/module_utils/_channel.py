# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Gives a domain the virtio channel that its guest's agent listens on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._clock import Deadline, ticks
from ansible_collections.kvm.fleet.plugins.module_utils._domain import ACTIVE_STATES, Domain, Hypervisor
from ansible_collections.kvm.fleet.plugins.module_utils._domain_xml import (
    AGENT_CHANNEL,
    ChannelState,
    Definition,
    parse_definition,
)
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    AgentSilent,
    ChannelImpossible,
    FleetError,
    InvalidRequest,
    LibvirtFailed,
    ProofFailed,
)

# No address and no path: libvirt gives both, and adds a virtio-serial controller to a definition that has none.
CHANNEL_XML = f"""\
<channel type="unix">
  <target type="virtio" name="{AGENT_CHANNEL}"/>
</channel>
"""

NO_SERIAL_BUS = "the running domain has no virtio-serial controller, and libvirt does not hot-plug one"
SAVED = "the next start resumes from a managed save image, which was made without the channel"

PING_SECONDS = 5


class Live(str, Enum):
    """What becomes of the channel in the running domain."""

    ADDED = "added"
    PRESENT = "present"
    NEEDS_RESTART = "needs_restart"
    """It comes with the domain's next start, and no sooner."""
    NOT_RUNNING = "not_running"


class Persistent(str, Enum):
    """What becomes of the channel in the definition that the next start goes by."""

    ADDED = "added"
    PRESENT = "present"
    TRANSIENT = "transient"
    """There is no such definition: the domain is gone when it goes off, and the channel with it."""


@dataclass(frozen=True)
class Found:
    """A domain's definitions, as far as they exist: of what runs, of its next start, and of what that one resumes."""

    name: str
    running: Definition | None
    defined: Definition | None
    saved: Definition | None


@dataclass(frozen=True)
class Plan:
    """What is to be done. ``reason`` says why a restart is needed, and is empty where none is."""

    live: Live
    persistent: Persistent
    reason: str = ""

    @property
    def changes(self) -> bool:
        return self.live is Live.ADDED or self.persistent is Persistent.ADDED

    @property
    def restart_required(self) -> bool:
        return bool(self.reason)


def observe(domain: Domain) -> Found:
    """Look at what a domain has. Changes nothing."""
    active, persistent = domain.state() in ACTIVE_STATES, domain.is_persistent()
    saved = None if active else domain.saved_xml()
    return Found(
        name=domain.name,
        running=parse_definition(domain.xml()) if active else None,
        defined=parse_definition(domain.persistent_xml()) if persistent else None,
        saved=None if saved is None else parse_definition(saved),
    )


def plan(found: Found) -> Plan:
    """Decide what to add. Raises ChannelImpossible for a transient domain that cannot take the channel as it runs.

    Each of the two definitions is mended by itself: a channel that was plugged in by hand and never written down would
    be gone after the next start, and one that was written down only is not there before it.
    """
    if found.defined is None:
        persistent = Persistent.TRANSIENT
    else:
        persistent = Persistent.PRESENT if _has_channel(found.defined) else Persistent.ADDED
    if found.running is None:
        stale = found.saved is not None and not _has_channel(found.saved)
        return Plan(Live.NOT_RUNNING, persistent, SAVED if stale else "")
    if _has_channel(found.running):
        return Plan(Live.PRESENT, persistent)
    if found.running.serial_bus:
        return Plan(Live.ADDED, persistent)
    if persistent is Persistent.TRANSIENT:
        raise ChannelImpossible(
            f"domain {found.name!r} is transient, so that it has no next start, and {NO_SERIAL_BUS}",
            remedy="Define it ('virsh dumpxml' to a file, then 'virsh define' that file), run again and restart it; or "
            "have whatever creates it give it the channel.",
        )
    return Plan(Live.NEEDS_RESTART, persistent, NO_SERIAL_BUS)


def _has_channel(definition: Definition) -> bool:
    return definition.channel is not ChannelState.ABSENT


def apply(domain: Domain, planned: Plan) -> Plan:
    """Carry the plan out and prove it. Returns what came of it: a domain that does not take the channel as it runs
    needs a restart after all.

    The definition comes first, since it is that which lasts. Raises ChannelImpossible with libvirt's words, and
    ProofFailed.
    """
    done = planned
    if planned.persistent is Persistent.ADDED:
        _attach(domain, live=False)
    if planned.live is Live.ADDED:
        try:
            _attach(domain, live=True)
        except ChannelImpossible as refusal:
            if planned.persistent is Persistent.TRANSIENT:
                raise
            done = replace(planned, live=Live.NEEDS_RESTART, reason=f"libvirt says: {refusal.evidence['libvirt']}")
    _prove(observe(domain), done)
    return done


def _attach(domain: Domain, *, live: bool) -> None:
    try:
        domain.attach_device(CHANNEL_XML, live=live)
    except LibvirtFailed as error:
        where = "while it runs" if live else "in its definition"
        raise ChannelImpossible(
            f"domain {domain.name!r} cannot be given the guest agent's channel {where}: {error.message}",
            remedy="See what libvirt complains about. By hand, the channel is added with 'virsh edit'.",
            evidence={**error.evidence, "libvirt": error.message},
        ) from error


def _prove(found: Found, done: Plan) -> None:
    """Raise ProofFailed unless the channel is where libvirt was asked to put it."""
    missing = []
    if done.persistent is Persistent.ADDED and not (found.defined and _has_channel(found.defined)):
        missing.append("its definition")
    # A domain that has gone off since has taken the channel along, and that is no failure of ours.
    if done.live is Live.ADDED and found.running and not _has_channel(found.running):
        missing.append("the running domain")
    if missing:
        raise ProofFailed(
            f"libvirt took the guest agent's channel for domain {found.name!r}, and {' and '.join(missing)} has it not",
            remedy="Look at 'virsh dumpxml' and 'virsh dumpxml --inactive', and at libvirt's log.",
        )


def check_agent_timeout(agent_timeout: float) -> None:
    """Raise InvalidRequest for a number that cannot be meant."""
    if agent_timeout < 0:
        raise InvalidRequest(
            f"an agent_timeout of {agent_timeout:g} s cannot be meant", remedy="Give zero, not to wait, or more."
        )


def wait_for_agent(hypervisor: Hypervisor, domain: Domain, agent_timeout: float) -> None:
    """Return once the agent answers. Raises AgentSilent, or what it is that keeps it from ever answering.

    The evidence tells as ``connected`` whether a process in the guest has the channel open: then there is an agent.
    """
    agent = GuestAgent(domain, hypervisor.clock)
    deadline = Deadline(hypervisor.clock, agent_timeout)
    last = ""
    for _tick in ticks(deadline, hypervisor.clock):
        try:
            agent.ping(PING_SECONDS)
        except FleetError as error:
            if not error.transient:
                raise
            last = error.message
        else:
            return
    if parse_definition(domain.xml()).channel is ChannelState.CONNECTED:
        raise AgentSilent(
            f"a process in guest {domain.name!r} has the agent's channel open and does not answer on it within "
            f"{agent_timeout:g} s: the agent hangs, or the guest is too busy",
            remedy="Restart the agent in the guest ('systemctl restart qemu-guest-agent'), or the guest: "
            "kvm.fleet.restart with upgrade_agent_timeout=0.",
            evidence={"last": last, "connected": True},
        )
    raise AgentSilent(
        f"the guest agent of domain {domain.name!r} has the channel and does not answer within {agent_timeout:g} s",
        remedy="See that qemu-guest-agent is installed in the guest and runs there; kvm.fleet.install_agent does that. "
        "A guest without a driver for virtio-serial never sees the channel.",
        evidence={"last": last, "connected": False},
    )
