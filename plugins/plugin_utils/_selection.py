# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which guests a playbook is about."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ansible_collections.kvm.fleet.plugins.plugin_utils._cycle import was_left_off
from ansible_collections.kvm.fleet.plugins.plugin_utils._result import bounded

HostVars = Mapping[str, Any]
"""The variables of one host of the inventory, 'inventory_hostname' among them."""

Inventory = Mapping[str, HostVars]
"""The variables of every host of the inventory, as Ansible's 'hostvars' has them."""

DEFAULT_URI = "qemu:///system"


class SelectionError(Exception):
    """What was asked for cannot be matched with the guests there are; the message says what and what to do."""


class Place(NamedTuple):
    """Where domains live: the inventory name of a hypervisor, and the libvirt connection there."""

    hypervisor: str
    uri: str


@dataclass(frozen=True)
class Guest:
    """A guest by the name it has, or will have, in the inventory. ``observed`` is what domain_info said of it, if any,
    and ``asked`` what guest_info did.

    ``listed`` tells whether its own host, with these ``variables``, is among those of the run, or only its hypervisor.
    """

    name: str
    place: Place
    domain: str
    listed: bool
    observed: Mapping[str, Any] | None
    asked: Mapping[str, Any] | None = None
    variables: HostVars = field(default_factory=dict)

    def hint(self, name: str) -> Any:
        """What its owner says of it as one of a fleet: the inventory first, then its domain's metadata, else None."""
        hints = (self.observed or {}).get("hints") or {}
        return self.variables[f"kvm_{name}"] if f"kvm_{name}" in self.variables else hints.get(name)

    @property
    def guest_exec(self) -> str:
        """Whether its agent allows guest-exec, as far as anybody knows."""
        allowed = self.asked["agent"]["rpcs"]["guest-exec"]["allowed"] if self.asked else None
        return "unknown" if allowed is None else "allowed" if allowed else "blocked"

    @property
    def drift(self) -> str:
        return "unknown" if self.observed is None else str(self.observed["drift"]["state"])

    @property
    def off(self) -> bool:
        """Whether it is known to be off."""
        return self.observed is not None and _is_off(self.observed)

    @property
    def left_off(self) -> bool:
        """Whether it is off because a run has shut it down and did not come to start it again."""
        return self.observed is not None and was_left_off(self.observed)

    @property
    def turn(self) -> int | None:
        """When it is its turn among guests that nobody asked for by name, lowest first; None if it is not one of them.

        First what a run has shut down and not started again; then what drifts or was left half done; then what nobody
        can tell about, to be refused by name rather than passed over. What another run works on comes last, since the
        refusal of a guest may end the run. What somebody else has shut down is left alone.
        """
        run = (self.observed or {}).get("run") or {}
        if self.left_off:
            return 0
        if run.get("live"):
            return None if self.off or (self.drift == "none" and not run.get("unfinished")) else 3
        if not self.off and (self.drift == "drifted" or run.get("unfinished")):
            return 1
        return 2 if self.drift == "unknown" or run.get("problem") else None

    @property
    def turn_for_an_agent(self) -> int | None:
        """Likewise for a run that gets guests an agent: those that run, and on whose channel nobody listens.

        Whether one that a run has left off has an agent shows when it is back.
        """
        if self.left_off:
            return 0
        if self.observed is None:
            return 2
        unreached = self.observed["agent_channel"] in ("absent", "disconnected")
        if not unreached or self.off:
            return None
        return 3 if (self.observed.get("run") or {}).get("live") else 1


CHOICES: Mapping[str, Callable[[Guest], int | None]] = {
    "upgrade": lambda guest: guest.turn,
    "agent": lambda guest: guest.turn_for_an_agent,
}
"""When it is a guest's turn, by what the run is for."""

DEFAULT_GROUPS = ("kvm_hypervisors", "kvm_guests")


def default_hosts(groups: Collection[str]) -> list[str]:
    """The groups in which a playbook looks for hypervisors and guests, or 'all' where the inventory has neither."""
    return [group for group in DEFAULT_GROUPS if group in groups] or ["all"]


def is_guest(host: HostVars) -> bool:
    """A host of the inventory that says on which hypervisor it lives is a guest; others are hypervisors."""
    return bool(host.get("kvm_hypervisor"))


def place_of(host: HostVars, inventory: Inventory) -> Place:
    """Where a host lives, or what it is itself. A guest without a kvm_uri of its own has that of its hypervisor.

    The hypervisor need not be among a play's hosts, nor in the inventory at all, where ``inventory`` has the variables
    of every host.
    """
    hypervisor = str(host["kvm_hypervisor"] if is_guest(host) else host["inventory_hostname"])
    uri = host.get("kvm_uri") or (inventory[hypervisor].get("kvm_uri") if hypervisor in inventory else None)
    return Place(hypervisor, str(uri or DEFAULT_URI))


def choose_looks(hosts: Iterable[HostVars], inventory: Inventory) -> dict[str, str]:
    """The first host at each place, and the URI there: through them, each is looked at just once."""
    first: dict[Place, str] = {}
    for host in hosts:
        first.setdefault(place_of(host, inventory), str(host["inventory_hostname"]))
    return {name: place.uri for place, name in first.items()}


def failed_looks(hosts: Iterable[HostVars], inventory: Inventory) -> dict[str, dict[str, Any]]:
    """Why a place could not be looked at, by the host through which that was tried.

    A host's 'fleet_domains' holds what domain_info returned through it. A result without domains is a failure, whether
    of the module or of the way to the hypervisor: the play declared it none in order to go on, and with that the usual
    marks of failure are gone.
    """
    failures = {}
    for host in hosts:
        look = host.get("fleet_domains") or {}
        if not look or look.get("skipped") or "domains" in look:
            continue
        place = place_of(host, inventory)
        failures[str(host["inventory_hostname"])] = {
            "hypervisor": place.hypervisor,
            "uri": place.uri,
            "error_code": str(look.get("error_code", "hypervisor_unreachable")),
            "msg": bounded(f"{place.hypervisor} could not be looked at: {look.get('msg', 'the task gave no message')}"),
            "remedy": bounded(
                str(look.get("remedy", "See that Ansible reaches the hypervisor and its Python, and run again."))
            ),
        }
    return failures


def keeps_to_listed(hypervisor: HostVars) -> bool:
    """Whether a hypervisor's domains are left alone unless the inventory lists them. The variable may be text."""
    return str(hypervisor.get("kvm_only_listed", False)).lower() in ("true", "yes", "on", "1")


def known_guests(hosts: Sequence[HostVars], inventory: Inventory, *, everyone: bool = False) -> list[Guest]:
    """The guests of the inventory, and the other domains of every hypervisor that is itself among the hosts, unless
    that keeps to listed ones. With ``everyone``, of each of these.

    A domain that only its hypervisor knows goes by its own name, as far as Ansible can take that for a host's, or by
    DOMAIN@HYPERVISOR where that name is taken. One whose host is not among ``hosts``, as where a run is limited to its
    hypervisor, goes by the name and the variables of that host.
    """
    domains = _by_place(hosts, inventory, "fleet_domains", "domains")
    asked = _by_place(hosts, inventory, "fleet_asked", "guests")
    listed = [
        Guest(
            *(str(host["inventory_hostname"]), place, domain, True),
            *(domains.get(place, {}).get(domain), asked.get(place, {}).get(domain), host),
        )
        for host in hosts
        if is_guest(host)
        for place, domain in [(place_of(host, inventory), str(host.get("kvm_domain") or host["inventory_hostname"]))]
    ]
    claimed = {(guest.place, guest.domain) for guest in listed}
    found = [
        (place, domain)
        for place in (
            place_of(host, inventory)
            for host in hosts
            if not is_guest(host) and (everyone or not keeps_to_listed(host))
        )
        for domain in domains.get(place, {})
        if (place, domain) not in claimed
    ]
    others = _others_of_the_inventory(hosts, inventory) if found else {}
    taken = Counter(host_name(domain) for place, domain in found if (place, domain) not in others)
    taken.update(str(host["inventory_hostname"]) for host in [*hosts, *others.values()])

    def name(place: Place, domain: str) -> str:
        if (place, domain) in others:
            return str(others[place, domain]["inventory_hostname"])
        return host_name(domain if taken[host_name(domain)] == 1 else f"{domain}@{place.hypervisor}")

    return listed + [
        Guest(
            name(place, domain),
            place,
            domain,
            False,
            domains[place][domain],
            asked.get(place, {}).get(domain),
            others.get((place, domain), {}),
        )
        for place, domain in found
    ]


def _others_of_the_inventory(hosts: Iterable[HostVars], inventory: Inventory) -> dict[tuple[Place, str], HostVars]:
    """The guests that the inventory lists and that are not among these hosts, by where they live."""
    names = {str(host["inventory_hostname"]) for host in hosts}
    others = (inventory[name] for name in inventory if name not in names)
    return {
        (place_of(host, inventory), str(host.get("kvm_domain") or host["inventory_hostname"])): host
        for host in others
        if is_guest(host)
    }


def all_guests(hosts: Sequence[HostVars], inventory: Inventory) -> list[Guest]:
    """Those of ``known_guests``, by the same names, and all others that the inventory knows, or a hypervisor that was
    looked at, though the run is not about their hosts."""
    known = known_guests(hosts, inventory)
    claimed = {(guest.place, guest.domain) for guest in known}
    names = {str(host["inventory_hostname"]) for host in hosts}
    others = [inventory[name] for name in inventory if name not in names]
    more = known_guests([*hosts, *others], inventory, everyone=True)
    return known + [guest for guest in more if (guest.place, guest.domain) not in claimed]


def host_name(domain: str) -> str:
    """A domain's name as one that Ansible takes for a host's as it is: of ``web:80`` it would take 80 for a port.

    A colon is written as in a URL, and so is what would read like one that was, so that no two domains become one host.
    """
    return re.sub(r":|%(?=3A|25)", lambda match: f"%{ord(match.group()):02X}", domain)


def _by_place(
    hosts: Iterable[HostVars], inventory: Inventory, variable: str, key: str
) -> dict[Place, dict[str, Mapping[str, Any]]]:
    """What was looked at through hosts, by its place and name."""
    found: dict[Place, dict[str, Mapping[str, Any]]] = {}
    for host in hosts:
        for domain in (host.get(variable) or {}).get(key) or []:
            found.setdefault(place_of(host, inventory), {})[str(domain["name"])] = domain
    return found


def select_guests(
    guests: Sequence[Guest],
    wanted: object,
    groups: Mapping[str, Sequence[str]],
    unseen: Collection[str] = (),
    choice: str = "upgrade",
) -> list[Guest]:
    """The guests that are asked for, each once.

    ``wanted`` names guests, domains or groups of the inventory, as a list or separated by commas, each matched exactly;
    'all' is every guest. Without it, these are the guests whose turn it is by this ``choice``, see Guest.
    Raises SelectionError for a name that matches nothing, which may live on a hypervisor that is ``unseen``, and for
    two hosts that are the same guest: one lease of the run would let both be worked on at once.
    """
    names = wanted_names(wanted)
    if not names:
        return _each_once(guest for turn in range(4) for guest in guests if CHOICES[choice](guest) == turn)
    selected: list[Guest] = []
    unmatched = []
    for name in names:
        members = set(groups.get(name, []))
        matching = [guest for guest in guests if name in ("all", guest.name, guest.domain) or guest.name in members]
        if not matching and name != "all":
            unmatched.append(name)
        selected += matching
    if unmatched:
        hidden = f". Nobody could look at {', '.join(sorted(unseen))}" if unseen else ""
        raise SelectionError(
            f"fleet_guests: nothing is named {', '.join(map(repr, unmatched))}. Names are matched exactly, against "
            f"guests and groups that this run may touch: {', '.join(sorted(guest.name for guest in guests)) or 'none'}"
            f"{hidden}"
        )
    return _each_once(selected)


def _each_once(chosen: Iterable[Guest]) -> list[Guest]:
    first: dict[tuple[Place, str], Guest] = {}
    for guest in chosen:
        other = first.setdefault((guest.place, guest.domain), guest)
        if other.name != guest.name:
            raise SelectionError(
                f"{other.name} and {guest.name} are one guest by the inventory, the domain {guest.domain!r} on "
                f"{guest.place.hypervisor}. Remove one of them, or mend its kvm_hypervisor, kvm_domain or kvm_uri"
            )
    return list(first.values())


def elsewhere(hosts: Iterable[HostVars], inventory: Inventory) -> dict[tuple[Place, str], dict[str, Any]]:
    """Why nobody may work on a domain that is off while what has its UUID is not, wherever the run has looked.

    A guest that was migrated may leave its definition behind. That leads to the disks of a guest that runs, and QEMU's
    lock on them is not always known to another hypervisor.
    """
    seen = [
        (place, domain)
        for place, domains in _by_place(hosts, inventory, "fleet_domains", "domains").items()
        for domain in domains.values()
    ]
    active = {domain["uuid"]: place for place, domain in seen if not _is_off(domain)}
    return {
        (place, str(domain["name"])): _runs_elsewhere(place, str(domain["name"]), active[domain["uuid"]])
        for place, domain in seen
        if _is_off(domain) and domain["uuid"] in active
    }


def _is_off(domain: Mapping[str, Any]) -> bool:
    return bool(domain["drift"]["state"] == "not_running")


def _runs_elsewhere(place: Place, domain: str, active: Place) -> dict[str, Any]:
    connection = "" if place.uri == DEFAULT_URI else f"-c {shlex.quote(place.uri)} "
    where = active.hypervisor if active.hypervisor != place.hypervisor else active.uri
    return {
        "hypervisor": place.hypervisor,
        "uri": place.uri,
        "error_code": "runs_elsewhere",
        "msg": f"domain {domain!r} is off on {place.hypervisor}, and the guest with its UUID runs on {where}",
        "remedy": "If that is what a migration has left behind, undefine it there, which leaves its disks alone: "
        # '--' keeps a name with a leading dash from being an option.
        f"virsh {connection}undefine -- {shlex.quote(domain)}",
    }


def unclear(guest: Guest) -> dict[str, Any] | None:
    """Why nobody may work on a guest of whose place in the fleet its metadata says what nobody understands."""
    problem = (guest.observed or {}).get("hints_problem")
    return {"hypervisor": guest.place.hypervisor, "uri": guest.place.uri, **problem} if problem else None


def check_named(wanted: object) -> None:
    """Raise SelectionError where no guest was named, for work that nobody should do to guests by accident."""
    if not wanted_names(wanted):
        raise SelectionError("fleet_guests: name the guests that this is to be done to; there is no default for it")


def wanted_names(wanted: object) -> list[str]:
    """The names in a text with commas, in a list, or in a bare number, which is what JSON may make of a name."""
    if wanted is None:
        return []
    listed = wanted if isinstance(wanted, Sequence) and not isinstance(wanted, str) else str(wanted).split(",")
    names = [str(name).strip() for name in listed]
    return [name for name in names if name]


def refusal(guest: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a guest that nobody can work on, since its hypervisor could not be looked at, it runs elsewhere, or
    its metadata cannot be read."""
    return {
        "guest": guest["name"],
        "hypervisor": guest["hypervisor"],
        "domain": guest["domain"],
        "outcome": "refused",
        "error": bounded({key: guest["refusal"][key] for key in ("error_code", "msg", "remedy")}),
    }


def check_limit(selected: Iterable[Guest], limit: str | None) -> None:
    """Raise SelectionError when --limit would silently leave out guests that only their hypervisor knows."""
    unlisted = [guest.name for guest in selected if not guest.listed]
    if limit and unlisted and "fleet_selected" not in limit:
        raise SelectionError(
            f"--limit {limit} leaves out {', '.join(unlisted)}, which it does not name, or the inventory does not "
            f"list. Use --limit '{limit},fleet_selected', choose with fleet_guests instead, or list them in the group "
            "kvm_guests"
        )
