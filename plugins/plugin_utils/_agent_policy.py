# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One guest's way to an agent that is set up: whose turn it is, and what to say of it afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.kvm.fleet.plugins.module_utils._policy import EXEC_RPCS
from ansible_collections.kvm.fleet.plugins.plugin_utils._cycle import describe_failure
from ansible_collections.kvm.fleet.plugins.plugin_utils._selection import HostVars, wanted_names

Facts = Mapping[str, Any]


def policy_targets(hosts: Iterable[HostVars], state: str, wanted: object) -> list[str]:
    """The names of the guests whose agents have to be set up.

    Guests that somebody asked for by name are all of them. Otherwise those whose agent does not allow, or block,
    guest-exec yet, and after them those that run and of which nobody can tell, to be refused by name rather than passed
    over. What is off is left alone. A host's 'fleet_agent' holds what guest_info said of it.
    """
    listed = list(hosts)
    if wanted_names(wanted):
        return [str(host["inventory_hostname"]) for host in listed]
    turns = [(_turn(host.get("fleet_agent") or {}, state == "enabled"), host) for host in listed]
    return [str(host["inventory_hostname"]) for wave in (0, 1) for turn, host in turns if turn == wave]


def _turn(look: Facts, allowed: bool) -> int | None:
    guests = look.get("guests") or []
    if not guests:
        return 1
    agent = guests[0]["agent"]
    said = [agent["rpcs"][rpc]["allowed"] for rpc in EXEC_RPCS]
    if None in said:
        return None if agent["state"] == "not_running" else 1
    return None if all(one == allowed for one in said) else 0


@dataclass(frozen=True)
class PolicyResult:
    """What became of one guest; the summary, the statistics and AWX's artifacts show it.

    ``outcome`` is one of unchanged, changed, failed, refused. In check mode it is what a run would come to. ``policy``
    says what was wanted. ``duration`` is in seconds.
    """

    guest: str
    hypervisor: str
    uri: str
    domain: str
    outcome: str
    check_mode: bool
    policy: Mapping[str, Any]
    way: str | None
    files: list[Mapping[str, Any]]
    restarted: bool
    duration: float
    error: Mapping[str, Any] | None


def make_policy_result(
    guest: Facts, taken: Mapping[str, Facts], *, duration: float, check_mode: bool, failure: Facts | None = None
) -> dict[str, Any]:
    """Put together what the steps returned.

    ``guest`` has name, hypervisor, uri, domain, state and rpcs; ``taken`` what guest_agent_policy returned, as done,
    and agent_policy_local, as local. ``failure`` is the failed task's name and result, if one failed.
    """
    local, done = taken.get("local") or {}, taken.get("done") or {}
    told = local if "files" in local else done
    error = describe_failure(failure) if failure else None
    if error:
        # Whatever these codes are raised for comes before the first change.
        untouched = error["error_code"] in REFUSALS or not (told or done)
        outcome = "refused" if untouched else "failed"
    else:
        outcome = "changed" if told.get("changed") else "unchanged"
    return vars(
        PolicyResult(
            guest=guest["name"],
            hypervisor=guest["hypervisor"],
            uri=guest["uri"],
            domain=guest["domain"],
            outcome=outcome,
            check_mode=check_mode,
            policy={"state": guest["state"], "rpcs": list(guest["rpcs"])},
            way="ssh" if told is local and local else told.get("way"),
            files=list(told.get("files") or []),
            restarted=told.get("restarted") is True and not error,
            duration=round(duration, 1),
            error=error,
        )
    )


REFUSALS = frozenset(
    {
        *("no_way_open", "policy_unsupported", "invalid_request", "guest_leased", "domain_not_found"),
        *("domain_not_running", "domain_busy", "no_agent_channel", "image_tools_missing"),
    }
)
