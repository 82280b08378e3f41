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
from ansible_collections.kvm.fleet.plugins.plugin_utils._result import Facts, Result, power_of, told_of_any, was_forced

NOT_ASKED_FOR = {
    "ssh": "Ansible may not log in to the guest: it has no ansible_host in the inventory, or agent_ways leaves ssh out",
    "offline": "the guest may not be shut down for its image to be edited: agent_ways leaves offline out",
}
"""Why a way is closed that was not asked for, by its name."""

LOG_IN = "See that the guest's address, user and key in the inventory are right, and that it has Python."
BECOME = "Have Ansible become root in the guest (ansible_become: true)."
ALLOW_RESTART = "Allow the guest to be shut down (agent_restart: true)."
ASK_FOR_A_WAY = (
    "Give the guest an address in the inventory (ansible_host) at which Ansible may log in, or let its image be edited "
    "(agent_ways: [offline]), for which it is shut down, or install qemu-guest-agent by hand."
)


@dataclass(frozen=True)
class Plan:
    """What has to be done after the channel was given. ``install`` is by which way, empty for none.

    ``closed`` says of ways that were asked for why they are not open. ``refusal`` says why nothing can be done, as a
    module's failure has it; empty when something can.
    """

    install: str = ""
    restart: bool = False
    closed: Mapping[str, str] = field(default_factory=dict)
    refusal: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Closed:
    """Why a way that was asked for is not open, and what to do."""

    why: str
    remedy: str


def closed_ways(ways: Sequence[str], tried: Mapping[str, Facts], *, restart: bool) -> dict[str, Closed]:
    """Those that are not open, by their names. ``tried`` has what came of trying a way: see _why_closed.

    The image is edited only of a guest that may be shut down for it.
    """
    found = {way: _why_closed(way, tried[way]) for way in ways if way in tried}
    closed = {way: why for way, why in found.items() if why}
    if "offline" in ways and not restart:
        closed["offline"] = Closed("the guest may not be shut down for it: agent_restart is false", ALLOW_RESTART)
    return closed


def _why_closed(way: str, result: Facts) -> Closed | None:
    """``result`` is that of 'id -u' in the guest for ssh, that of guest_repair before a shutdown for offline.

    The role has declared that no failure. So it is told by what a success has, or by what only a failure has.
    """
    if way == "offline":
        return Closed(str(result["msg"]), str(result["remedy"])) if "error_code" in result else None
    user = str(result.get("stdout", "")).strip()
    if user == "0":
        return None
    if user.isdigit():
        return Closed("Ansible is not root there", BECOME)
    told = str(result.get("msg") or "it gave no message").strip()
    return Closed(f"Ansible cannot {'log in' if result.get('unreachable') else 'work there'}: {told}", LOG_IN)


def make_plan(
    guest: str,
    channel: Facts,
    asked: Facts,
    *,
    ways: Sequence[str],
    restart: bool,
    tried: Mapping[str, Facts] | None = None,
) -> Plan:
    """Decide from what domain_channel returned, and what it returned when it was to wait for the agent.

    ``ways`` are those by which a package may be installed, the preferred one first, and ``tried`` what came of seeing
    whether they are open, as far as that was done. Whether a guest has the package shows only when its agent answers.
    So one that nobody has named a way for is restarted for its channel in the hope that it has; one that is shut down
    for its image gets both at once.
    """
    silent = asked.get("error_code") == "agent_silent"
    if asked.get("agent") == "answering" or (channel["live"] == "added" and not silent):
        return Plan()  # the second may have the package, and is asked once it has the channel
    closed = closed_ways(ways, tried or {}, restart=restart)
    way = next((way for way in ways if way not in closed), "")
    if _hangs(asked) and not ways:
        # There is nothing to install. What the module says of it is all that there is to say.
        return Plan(refusal={key: asked[key] for key in ("msg", "error_code", "transient", "remedy", "evidence")})
    why = {name: one.why for name, one in closed.items()}
    refusal = _refusal(guest, channel, way, closed, restart=restart)
    if refusal:
        return Plan(closed=why, refusal=failure(refusal))
    return Plan(install=way, restart=channel["live"] == "needs_restart" and way != "offline", closed=why)


def _hangs(asked: Facts) -> bool:
    """Whether the agent was found silent while a process in the guest holds its channel open."""
    return bool((asked.get("evidence") or {}).get("connected"))


def _refusal(guest: str, channel: Facts, way: str, closed: Mapping[str, Closed], *, restart: bool) -> FleetError | None:
    if channel["live"] == "not_running":
        return DomainNotRunning(
            f"guest {guest!r} is off: it gets the channel when it is started, and no agent until then",
            remedy="Start it with 'virsh start' or kvm.fleet.domain_power and run again.",
        )
    if channel["live"] == "needs_restart" and not restart:
        return NoWayOpen(
            f"guest {guest!r} gets the agent's channel with a restart only, and may not be restarted",
            remedy="Allow it (agent_restart: true), or restart the guest when it suits and run again.",
            evidence={"restart": channel["reason"]},
        )
    if way or (channel["live"] == "needs_restart" and not closed):
        return None
    found = "gets the channel with a restart only" if channel["live"] == "needs_restart" else "has the channel"
    told = "".join(f"; {name}: {one.why}" for name, one in closed.items())
    return NoWayOpen(
        f"guest {guest!r} {found}, nobody answers on it, and no way to install the agent is open{told}",
        remedy=" ".join(one.remedy for one in closed.values()) or ASK_FOR_A_WAY,
        evidence={**NOT_ASKED_FOR, **{name: one.why for name, one in closed.items()}},
    )


@dataclass(frozen=True)
class AgentResult(Result):
    """What became of a guest that was to get an agent.

    ``outcome`` is one of unchanged, changed, restarted, failed, refused. ``channel`` is what became of the channel, by
    definition; ``agent`` whether the agent has answered in the end, None where nobody has asked. ``closed`` tells why a
    way that was asked for was not open.
    """

    channel: Mapping[str, str]
    installed: str
    closed: Mapping[str, str]
    forced_off: bool
    agent: str | None


def make_result(
    guest: Facts, taken: Mapping[str, Any], *, duration: float, check_mode: bool, failure: Facts | None = None
) -> dict[str, Any]:
    """Put together what the steps returned.

    ``guest`` has run, name, hypervisor, uri and domain; ``taken`` has what the steps registered under lease, channel,
    brought_back, repair, stopped, power, proof and plan, as far as they came, and under intervening and installed
    whether it came to that. ``failure`` is the failed task's name and result, if one failed.
    """
    channel, proof, lease = (taken.get(step) or {} for step in ("channel", "proof", "lease"))
    back, stopped, power = (taken.get(step) or {} for step in ("brought_back", "stopped", "power"))
    cycled = power_of(taken.get("repair") or {})
    restarted = any(_restarted(step) for step in (back, cycled, power))
    installed = (taken.get("plan") or {}).get("install", "") if taken.get("installed") else ""
    if failure:
        outcome = "failed" if taken.get("intervening") else "refused"
    elif restarted:
        outcome = "restarted"
    else:
        outcome = "changed" if channel.get("changed") or installed else "unchanged"
    return AgentResult(
        **told_of_any(guest, lease, duration=duration, check_mode=check_mode, failure=failure),
        outcome=outcome,
        channel={part: channel[part] for part in ("persistent", "live") if part in channel},
        installed=installed,
        closed=dict((taken.get("plan") or {}).get("closed") or {}),
        restarted=restarted,
        forced_off=any(was_forced(step) for step in (back, cycled, stopped, power)),
        agent=proof.get("agent"),
    ).record()


def _restarted(power: Facts) -> bool:
    """Whether domain_power has started the guest. What failed half-way has not, as far as anybody can prove."""
    started = power.get("restarted") is True or "start" in (power.get("steps") or [])
    return started and not power.get("failed")
