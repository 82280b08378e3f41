# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One guest's way to an agent that is set up: whose turn it is, and what to say of it afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.kvm.fleet.plugins.module_utils._domain import ACTIVE_STATES, DomainState
from ansible_collections.kvm.fleet.plugins.module_utils._errors import DomainNotRunning
from ansible_collections.kvm.fleet.plugins.module_utils._policy import EXEC_RPCS
from ansible_collections.kvm.fleet.plugins.module_utils._results import failure as facts_of
from ansible_collections.kvm.fleet.plugins.plugin_utils._result import Facts, Result, told_of_any
from ansible_collections.kvm.fleet.plugins.plugin_utils._selection import HostVars, wanted_names

OFF_STATES = frozenset(state.value for state in DomainState if state not in ACTIVE_STATES)


@dataclass(frozen=True)
class Targets:
    """What becomes of the guests that were found, by their names in the inventory.

    ``chosen`` are those whose agents have to be set up, in their turn. ``content`` are as wanted. ``off`` has a record
    for the summary of each whose settings nobody has looked at, since it is off.
    """

    chosen: list[str]
    content: list[str]
    off: dict[str, Facts]


def policy_targets(hosts: Iterable[HostVars], state: str, wanted: object) -> Targets:
    """Choose the guests whose agents have to be set up.

    Guests that somebody asked for by name are all of them. Otherwise first what a run has shut down and not started
    again; then those whose agent does not allow, or block, guest-exec yet; and then those that run and of which nobody
    can tell, to be refused by name rather than passed over. What somebody else has shut down is left alone.

    A host's 'fleet_agent' holds what guest_info said of it, 'fleet_left_off' whether a run has left it off.
    """
    named = {str(host["inventory_hostname"]): host for host in hosts}
    if wanted_names(wanted):
        return Targets(list(named), [], {})
    off = {name: _not_attempted(name, host) for name, host in named.items() if _is_off(host) and not _is_left_off(host)}
    turns = {name: _turn(host, state == "enabled") for name, host in named.items() if name not in off}
    return Targets(
        chosen=[name for wave in range(3) for name, turn in turns.items() if turn == wave],
        content=[name for name, turn in turns.items() if turn is None],
        off=off,
    )


def _is_left_off(host: HostVars) -> bool:
    return host.get("fleet_left_off") is True


def _look(host: HostVars) -> Facts | None:
    """What guest_info said of the guest, if it was told."""
    guests = (host.get("fleet_agent") or {}).get("guests") or [None]
    first: Facts | None = guests[0]
    return first


def _is_off(host: HostVars) -> bool:
    look = _look(host)
    return look is not None and look["state"] in OFF_STATES


def _turn(host: HostVars, allowed: bool) -> int | None:
    if _is_left_off(host):
        return 0
    look = _look(host)
    said = [look["agent"]["rpcs"][rpc]["allowed"] for rpc in EXEC_RPCS] if look else [None]
    if None in said:
        return 2
    return None if all(one == allowed for one in said) else 1


def _not_attempted(name: str, host: HostVars) -> Facts:
    error = DomainNotRunning(
        "it is off, so that nobody could ask its agent",
        remedy=f"Start it and run again. Or name it to have its image edited while it is off: -e fleet_guests={name}",
    )
    return {
        "guest": name,
        "hypervisor": host.get("kvm_hypervisor"),
        "domain": host.get("kvm_domain"),
        "outcome": "not_attempted",
        "error": facts_of(error),
    }


@dataclass(frozen=True)
class PolicyResult(Result):
    """What became of a guest whose agent was to be set up.

    ``outcome`` is one of unchanged, changed, restarted, failed, refused. ``policy`` says what was wanted. ``closed`` is
    why SSH was given up for another way, if it was.
    """

    policy: Mapping[str, Any]
    way: str | None
    closed: Mapping[str, str]
    files: list[Mapping[str, Any]]


def make_policy_result(
    guest: Facts, taken: Mapping[str, Any], *, duration: float, check_mode: bool, failure: Facts | None = None
) -> dict[str, Any]:
    """Put together what the steps returned.

    ``guest`` has run, name, hypervisor, uri, domain, state and rpcs. ``taken`` has what the steps registered, as far as
    they came: lease, power (a restart that an earlier run had begun), done (guest_agent_policy), audited (that the
    guest's own files are about to be changed), predicted and local (agent_policy_local); and intervening, whether it
    came to that.
    ``failure`` is the failed task's name and result, if one failed.
    """
    lease, power, done, local = (taken.get(step) or {} for step in ("lease", "power", "done", "local"))
    told = local if "files" in local else done
    about = told_of_any(guest, lease, duration=duration, check_mode=check_mode, failure=failure)
    error = about["error"]
    if error:
        outcome = "failed" if taken.get("intervening") and _was_touched(taken, error) else "refused"
    elif told.get("changed"):
        outcome = "changed"
    else:
        outcome = "restarted" if power.get("restarted") is True else "unchanged"
    return PolicyResult(
        **about,
        outcome=outcome,
        policy={"state": guest["state"], "rpcs": list(guest["rpcs"])},
        way="ssh" if told is local and local else told.get("way"),
        closed=_closed(taken.get("predicted") or {}, error),
        files=[] if _is_put_back(error) else list(told.get("files") or []),
        restarted=True in (told.get("restarted"), power.get("restarted")) and not error,
    ).record()


def _closed(predicted: Facts, error: Facts | None) -> dict[str, str]:
    """Why the guest was not set up by SSH, unless that was the end of it, and the error says so."""
    if not predicted or "files" in predicted or (error and error["error_code"] == "no_way_open"):
        return {}
    return {"ssh": str(predicted.get("msg", "it gave no message"))}


def _is_put_back(error: Facts | None) -> bool:
    return error is not None and error["evidence"].get("put_back") is True


def _was_touched(taken: Mapping[str, Any], error: Facts) -> bool:
    """Whether anything of the guest was changed or restarted, or may have been, be it put back.

    A module's own error tells that by its evidence. Of any other, such as a run that has ended, nobody can tell.
    """
    power, done, audited, local = (taken.get(step) or {} for step in ("power", "done", "audited", "local"))
    return bool(
        error["error_code"] in UNTOLD
        or error["evidence"].get("audit")
        or audited.get("audit")
        or power.get("failed")
        or power.get("error_code")
        or True in (step.get("changed") for step in (power, done, local))
    )


UNTOLD = frozenset({"task_failed", "run_ended"})
