# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guests of hypervisors that were looked at, as hosts of an inventory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._selection import (
    DEFAULT_URI,
    Guest,
    HostVars,
    failed_looks,
    is_guest,
    known_guests,
)

GUESTS = "kvm_guests"
UNREACHABLE = "unreachable_hypervisors"

_HINTS = ("tags", "depends_on", "group", "group_at_once", "canary")


@dataclass(frozen=True)
class Look:
    """What was seen of one hypervisor at its libvirt connection.

    ``domains`` is what domain_info returned or how it failed, ``asked`` what guest_info did, None where nobody asked.
    """

    uri: str
    domains: Mapping[str, Any]
    asked: Mapping[str, Any] | None = None

    @property
    def succeeded(self) -> bool:
        return "domains" in self.domains

    @property
    def guests(self) -> Mapping[str, Any] | None:
        """What guest_info returned, if it came to that."""
        return self.asked if self.asked and "guests" in self.asked else None


@dataclass(frozen=True)
class Entry:
    """A guest as a host. ``hints`` are variables that any other word on the same takes the place of."""

    name: str
    variables: Mapping[str, Any]
    hints: Mapping[str, Any]
    groups: tuple[str, ...]


def state_groups(*, asked: bool) -> list[str]:
    """The groups that there are whether they have hosts or not, or a limit to one that is empty would be a mistake."""
    known = ["running", "off", "drifted", "drift_unknown", "agent_missing"]
    return [*known, "guest_exec_blocked"] if asked else known


def reusable(cached: Mapping[str, Mapping[str, Any]], hypervisors: Iterable[str], *, ask: bool) -> dict[str, Look]:
    """What a cache holds of these hypervisors, but for those whose guests are to be asked and were not."""
    held = {name: cached[name] for name in hypervisors if name in cached}
    return {
        name: Look(facts["uri"], facts["domains"], facts["guests"] if ask else None)
        for name, facts in held.items()
        if facts["guests"] or not ask
    }


def worth_keeping(looks: Mapping[str, Look]) -> dict[str, dict[str, Any]]:
    """What a cache is to hold. A hypervisor that did not answer is looked at again the next time."""
    return {
        name: {"uri": look.uri, "domains": look.domains, "guests": look.guests}
        for name, look in looks.items()
        if look.succeeded
    }


def look(domains: Mapping[str, Any], asked: Mapping[str, Any] | None) -> Look:
    """A hypervisor by what the two modules returned. One that did not come to its work tells of no connection."""
    arguments = (domains.get("invocation") or {}).get("module_args") or {}
    return Look(str(arguments.get("uri") or DEFAULT_URI), domains, asked)


def failures(looks: Mapping[str, Look]) -> dict[str, dict[str, Any]]:
    """Why hypervisors could not be looked at, as the playbooks tell it, by their names."""
    return failed_looks(_hypervisors(looks), {})


def unasked(looks: Mapping[str, Look]) -> dict[str, str]:
    """Why the guests of hypervisors could not be asked, by the hypervisors' names."""
    return {
        name: str(look.asked.get("msg", "the task gave no message"))
        for name, look in looks.items()
        if look.asked and not look.guests
    }


def entries(looks: Mapping[str, Look], inventory: Mapping[str, HostVars]) -> list[Entry]:
    """The guests of these hypervisors. ``inventory`` has the variables of each host that is in the inventory already.

    A host that says to be one of these guests is it. The names of the others are those that the playbooks give them.
    """
    others = [host for name, host in inventory.items() if is_guest(host) or name not in looks]
    # The connection is as the look has found it, while a variable may still be a template.
    places = {name: {**inventory.get(name, {}), "kvm_uri": look.uri} for name, look in looks.items()}
    known = known_guests([*others, *_hypervisors(looks)], {**inventory, **places})
    return [_entry(guest) for guest in known if guest.observed is not None and guest.place.hypervisor in looks]


def _hypervisors(looks: Mapping[str, Look]) -> list[dict[str, Any]]:
    return [
        {
            "inventory_hostname": name,
            "kvm_uri": look.uri,
            "fleet_domains": look.domains,
            "fleet_asked": look.guests,
        }
        for name, look in looks.items()
    ]


def _entry(guest: Guest) -> Entry:
    observed = guest.observed or {}
    hints = {f"kvm_{name}": value for name, value in observed["hints"].items() if name in _HINTS}
    variables = {
        "kvm_hypervisor": guest.place.hypervisor,
        "kvm_domain": guest.domain,
        **({"kvm_uri": guest.place.uri} if guest.place.uri != DEFAULT_URI else {}),
        "kvm_uuid": observed["uuid"],
        "kvm_state": observed["state"],
        "kvm_os": observed["os"],
        "kvm_drift": guest.drift,
        "kvm_drift_reasons": observed["drift"]["reasons"],
        "kvm_agent_channel": observed["agent_channel"],
        "kvm_run": observed["run"],
        "kvm_hints_problem": observed["hints_problem"],
        **(_own_words(guest.asked) if guest.asked else {}),
    }
    return Entry(guest.name, variables, {"kvm_tags": [], **hints}, tuple(_groups(guest, observed)))


def _own_words(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What a guest says of itself, or what nobody but its agent could have told."""
    return {
        "kvm_guest_agent": asked["agent"]["state"],
        "kvm_guest_agent_version": asked["agent"]["version"],
        "kvm_guest_exec": asked["agent"]["rpcs"]["guest-exec"]["allowed"],
        "kvm_guest_os": asked["os"],
        "kvm_guest_reboot_required": asked["reboot_required"],
        "kvm_guest_problems": asked["problems"],
    }


def _groups(guest: Guest, observed: Mapping[str, Any]) -> list[str]:
    is_so = {
        GUESTS: True,
        "running": observed["state"] in ("running", "blocked"),
        "off": guest.off,
        "drifted": guest.drift == "drifted",
        "drift_unknown": guest.drift == "unknown",
        "agent_missing": not guest.off and observed["agent_channel"] in ("absent", "disconnected"),
        "guest_exec_blocked": guest.guest_exec == "blocked",
    }
    return [group for group, holds in is_so.items() if holds]


def unknown_options(given: Collection[str], documented: Collection[str]) -> list[str]:
    """What is none of the plugin's options, to be refused by name: Ansible itself would pass over it."""
    return sorted(set(given) - set(documented) - {"plugin"})
