# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which guests a playbook is about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HostVars = Mapping[str, Any]
"""The variables of one host of the inventory, 'inventory_hostname' among them."""


class SelectionError(Exception):
    """What was asked for cannot be matched with the guests there are; the message says what and what to do."""


@dataclass(frozen=True)
class Guest:
    """A guest by the name it has, or will have, in the inventory. ``observed`` is what domain_info said of it, if any.

    ``listed`` tells whether the inventory itself has it, or only its hypervisor.
    """

    name: str
    hypervisor: str
    domain: str
    listed: bool
    observed: Mapping[str, Any] | None

    @property
    def drift(self) -> str:
        return "unknown" if self.observed is None else str(self.observed["drift"]["state"])


DEFAULT_GROUPS = ("kvm_hypervisors", "kvm_guests")


def default_hosts(groups: Collection[str]) -> list[str]:
    """The groups in which a playbook looks for hypervisors and guests, or 'all' where the inventory has neither."""
    return [group for group in DEFAULT_GROUPS if group in groups] or ["all"]


def is_guest(host: HostVars) -> bool:
    """A host of the inventory that says on which hypervisor it lives is a guest; others are hypervisors."""
    return bool(host.get("kvm_hypervisor"))


def hypervisor_of(host: HostVars) -> str:
    """The inventory name of the hypervisor that a host lives on, or is."""
    return str(host["kvm_hypervisor"] if is_guest(host) else host["inventory_hostname"])


def one_per_hypervisor(hosts: Iterable[HostVars]) -> list[str]:
    """The first host on each hypervisor, or the hypervisor itself: through them, each is looked at just once."""
    first: dict[str, str] = {}
    for host in hosts:
        first.setdefault(hypervisor_of(host), str(host["inventory_hostname"]))
    return list(first.values())


def known_guests(hosts: Sequence[HostVars]) -> list[Guest]:
    """The guests of the inventory, and the other domains of every hypervisor that is itself among the hosts.

    A host's 'fleet_domains' holds what domain_info returned through it. A domain that only its hypervisor knows goes by
    its own name, or by DOMAIN@HYPERVISOR where that name is taken.
    """
    domains = _domains_by_hypervisor(hosts)
    listed = [
        Guest(str(host["inventory_hostname"]), hypervisor, domain, True, domains.get(hypervisor, {}).get(domain))
        for host in hosts
        if is_guest(host)
        for hypervisor, domain in [(hypervisor_of(host), str(host.get("kvm_domain") or host["inventory_hostname"]))]
    ]
    claimed = {(guest.hypervisor, guest.domain) for guest in listed}
    found = [
        (hypervisor, domain)
        for hypervisor in (hypervisor_of(host) for host in hosts if not is_guest(host))
        for domain in domains.get(hypervisor, {})
        if (hypervisor, domain) not in claimed
    ]
    taken = Counter(domain for _hypervisor, domain in found)
    taken.update(str(host["inventory_hostname"]) for host in hosts)
    return listed + [
        Guest(
            domain if taken[domain] == 1 else f"{domain}@{hypervisor}",
            hypervisor,
            domain,
            False,
            domains[hypervisor][domain],
        )
        for hypervisor, domain in found
    ]


def _domains_by_hypervisor(hosts: Iterable[HostVars]) -> dict[str, dict[str, Mapping[str, Any]]]:
    domains: dict[str, dict[str, Mapping[str, Any]]] = {}
    for host in hosts:
        for domain in (host.get("fleet_domains") or {}).get("domains") or []:
            domains.setdefault(hypervisor_of(host), {})[str(domain["name"])] = domain
    return domains


def select_guests(
    guests: Sequence[Guest], wanted: str | Sequence[str] | None, groups: Mapping[str, Sequence[str]]
) -> list[Guest]:
    """The guests that are asked for, each once.

    ``wanted`` names guests, domains or groups of the inventory, as a list or separated by commas, each matched exactly;
    'all' is every guest. Without it, these are the guests that drift; those whose drift nobody can tell come after
    them, so that they are refused by name rather than passed over. Raises SelectionError for a name that matches
    nothing.
    """
    names = [name.strip() for name in wanted.split(",")] if isinstance(wanted, str) else list(wanted or [])
    names = [name for name in names if name]
    if not names:
        return [guest for state in ("drifted", "unknown") for guest in guests if guest.drift == state]
    selected: dict[tuple[str, str], Guest] = {}
    unmatched = []
    for name in names:
        members = set(groups.get(name, []))
        matching = [guest for guest in guests if name in ("all", guest.name, guest.domain) or guest.name in members]
        if not matching:
            unmatched.append(name)
        selected.update({(guest.hypervisor, guest.domain): guest for guest in matching})
    if unmatched:
        raise SelectionError(
            f"fleet_guests: nothing is named {', '.join(map(repr, unmatched))}. Names are matched exactly, against "
            f"guests and groups that this run may touch: {', '.join(sorted(guest.name for guest in guests)) or 'none'}"
        )
    return list(selected.values())


def check_limit(selected: Iterable[Guest], limit: str | None) -> None:
    """Raise SelectionError when --limit would silently leave out guests that only their hypervisor knows."""
    unlisted = [guest.name for guest in selected if not guest.listed]
    if limit and unlisted and "fleet_selected" not in limit:
        raise SelectionError(
            f"--limit {limit} leaves out {', '.join(unlisted)}, which the inventory does not list. Use --limit "
            f"'{limit},fleet_selected', choose with fleet_guests instead, or list them in the group kvm_guests"
        )
