# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How a guest whose agent cannot be reached gets one: what to do, and what to say of it afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.kvm.fleet.plugins.module_utils._errors import DomainNotRunning, FleetError, NoWayOpen
from ansible_collections.kvm.fleet.plugins.module_utils._results import failure
from ansible_collections.kvm.fleet.plugins.plugin_utils._cycle import Facts, describe_failure

CLOSED = {
    "ssh": "Ansible may not log in to the guest: it has no ansible_host in the inventory, or agent_ways leaves ssh out",
    "offline": "the guest may not be shut down for its image to be edited: agent_ways leaves offline out",
}
"""Why a way is closed, by its name."""


@dataclass(frozen=True)
class Plan:
    """What has to be done after the channel was given. ``install`` is by which way, empty for none.

    ``refusal`` says why nothing can be done, as a module's failure has it; empty when something can.
    """

    install: str = ""
    restart: bool = False
    refusal: Mapping[str, Any] = field(default_factory=dict)


def make_plan(guest: str, channel: Facts, asked: Facts, *, ways: Sequence[str], restart: bool) -> Plan:
    """Decide from what domain_channel returned, and what it returned when it was to wait for the agent.

    ``ways`` are those by which a package may be installed, the preferred one first. Whether a guest has the package
    shows only when its agent answers. So one that may not be looked into is restarted for its channel in the hope that
    it has; one that is shut down for its image gets both at once.
    """
    silent = asked.get("error_code") == "agent_silent"
    if asked.get("agent") == "answering" or (channel["live"] == "added" and not silent):
        return Plan()  # the second may have the package, and is asked once it has the channel
    way = ways[0] if ways else ""
    refusal = _refusal(guest, channel, way, restart=restart)
    if refusal:
        return Plan(refusal=failure(refusal))
    return Plan(install=way, restart=channel["live"] == "needs_restart" and way != "offline")


def _refusal(guest: str, channel: Facts, way: str, *, restart: bool) -> FleetError | None:
    if channel["live"] == "not_running":
        return DomainNotRunning(
            f"guest {guest!r} is off: it gets the channel when it is started, and no agent until then",
            remedy="Start it with 'virsh start' or kvm.fleet.domain_power and run again.",
        )
    if channel["live"] == "needs_restart":
        if restart or way == "offline":
            return None
        return NoWayOpen(
            f"guest {guest!r} gets the agent's channel with a restart only, and may not be restarted",
            remedy="Allow it (agent_restart: true), or restart the guest when it suits and run again.",
            evidence={"restart": channel["reason"]},
        )
    if way:
        return None
    return NoWayOpen(
        f"guest {guest!r} has the channel and nobody answers on it, and no way to install the agent is open",
        remedy="Give the guest an address in the inventory (ansible_host) at which Ansible may log in, or let its "
        "image be edited (agent_ways: [offline]), for which it is shut down, or install qemu-guest-agent by hand.",
        evidence=CLOSED,
    )


@dataclass(frozen=True)
class Result:
    """What became of one guest; the summary, the statistics and AWX's artifacts show it.

    ``outcome`` is one of unchanged, changed, restarted, failed, refused. In check mode it is what a run would come to.
    ``channel`` is what became of the channel, by definition; ``agent`` whether the agent has answered in the end, None
    where nobody has asked. ``duration`` is in seconds.
    """

    run: str
    guest: str
    hypervisor: str
    uri: str
    domain: str
    outcome: str
    check_mode: bool
    channel: Mapping[str, str]
    installed: str
    restarted: bool
    forced_off: bool
    agent: str | None
    taken_over: Mapping[str, Any] | None
    duration: float
    error: Mapping[str, Any] | None


def make_result(
    guest: Facts, taken: Mapping[str, Any], *, duration: float, check_mode: bool, failed: Facts | None = None
) -> dict[str, Any]:
    """Put together what the steps returned.

    ``guest`` has run, name, hypervisor, uri and domain; ``taken`` has what the steps registered under lease, channel,
    power, proof and plan, as far as they came, and under intervening and installed whether it came to that. ``failed``
    is the failed task's name and result, if one failed.
    """
    channel, power, proof, lease = (taken.get(step) or {} for step in ("channel", "power", "proof", "lease"))
    # A restart that failed half-way has not restarted anything as far as anybody can prove.
    started = power.get("restarted") is True or "start" in (power.get("steps") or [])
    restarted = started and not power.get("failed")
    installed = (taken.get("plan") or {}).get("install", "") if taken.get("installed") else ""
    if failed:
        outcome = "failed" if taken.get("intervening") else "refused"
    elif restarted:
        outcome = "restarted"
    else:
        outcome = "changed" if channel.get("changed") or installed else "unchanged"
    return vars(
        Result(
            run=guest.get("run", ""),
            guest=guest["name"],
            hypervisor=guest["hypervisor"],
            uri=guest["uri"],
            domain=guest["domain"],
            outcome=outcome,
            check_mode=check_mode,
            channel={part: channel[part] for part in ("persistent", "live") if part in channel},
            installed=installed,
            restarted=restarted,
            forced_off=True in (power.get("forced"), (power.get("evidence") or {}).get("forced")),
            agent=proof.get("agent"),
            taken_over=lease.get("taken_over"),
            duration=round(duration, 1),
            error=describe_failure(failed) if failed else None,
        )
    )
