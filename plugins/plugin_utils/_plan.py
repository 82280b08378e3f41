# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""In which batches the guests of a run are worked on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._batches import BatchError, check_number, count_of
from ansible_collections.kvm.fleet.plugins.plugin_utils._selection import Guest, Inventory, wanted_names


@dataclass(frozen=True)
class Member:
    """A guest of the fleet, be it of this run or not.

    ``depends_on`` names guests, or domains. ``group_at_once`` is None where nothing was said.
    """

    name: str
    domain: str
    hypervisor: str
    depends_on: tuple[str, ...] = ()
    group: str = ""
    group_at_once: int | None = None
    canary: bool = False


@dataclass(frozen=True)
class Turn:
    """When a guest is worked on, and what has to go well before.

    ``after`` are the guests of the run that it depends on, directly or not, each behind those that it needs itself.
    ``canaries`` are those that come before it; ``canary`` tells whether it is one itself. Of the group that it is a
    ``member_of``, if any, this many may be worked on ``at_once``.
    """

    name: str
    hypervisor: str
    batch: int
    canary: bool
    after: tuple[str, ...]
    canaries: tuple[str, ...]
    member_of: str
    at_once: int


def check_locks(turns: Iterable[Turn], hypervisors: Collection[str], *, sliced: bool) -> None:
    """See that all runs find out who works on a group, though nobody has said which host keeps that for all of them.

    Then each guest's hypervisor does, which is one host for all members only where there is no other: neither among
    ``hypervisors``, all that the inventory has, nor where this run is one of the slices that an inventory was dealt out
    to. Raises BatchError elsewhere, with the names of the groups and their guests.
    """
    members: dict[str, list[str]] = {}
    for turn in turns:
        members.setdefault(turn.member_of, []).append(turn.name)
    named = "; ".join(f"{group}: {', '.join(names)}" for group, names in sorted(members.items()) if group)
    if not named or (len({*hypervisors}) <= 1 and not sliced):
        return
    where = "in another slice of this job" if sliced else f"on any of {', '.join(sorted({*hypervisors}))}"
    raise BatchError(
        f"fleet_locks_on: it has to name the host that keeps who works on which group ({named}), since other members "
        f"may be {where}. Set it in the inventory, for all hosts, to one that every run reaches, such as a hypervisor"
    )


_FLAGS = {**dict.fromkeys(("true", "yes", "on", "1"), True), **dict.fromkeys(("false", "no", "off", "0"), False)}


def member(guest: Guest) -> Member:
    """What a guest's owner says of it, in the inventory or in its domain's metadata. Raises BatchError for nonsense."""
    group, at_once, canary = (guest.hint(name) for name in ("group", "group_at_once", "canary"))
    flag = _FLAGS.get(str(False if canary is None else canary).lower())
    if flag is None:
        raise BatchError(f"kvm_canary of {guest.name}: {str(canary)!r} is neither true nor false")
    return Member(
        name=guest.name,
        domain=guest.domain,
        hypervisor=guest.place.hypervisor,
        depends_on=tuple(wanted_names(guest.hint("depends_on"))),
        group="" if group is None else str(group),
        group_at_once=None if at_once is None else check_number(f"kvm_group_at_once of {guest.name}", at_once, 1),
        canary=flag,
    )


def make_plan(
    turns: Sequence[str],
    known: Iterable[Member],
    sizes: Sequence[str],
    *,
    canaries: int = 0,
    per_hypervisor: int | None = None,
    refused: Collection[str] = (),
    unseen: bool = False,
) -> list[Turn]:
    """The guests of ``turns``, batch by batch, each of the batches in the order of turns.

    A guest comes with its turn, unless something speaks against it: what it depends on comes in an earlier batch, and
    is put before it. Of a group no more are in a batch than may be worked on at once, and never all that are known,
    unless it has one. Canaries and what they depend on come before all others. ``sizes`` are as fleet_batch has them;
    each is that of one batch, the last one that of all that follow, and the first one that of every batch of canaries.
    ``refused`` guests are of the run as well, and nobody will work on them; where one is marked as a canary, it is one
    that has failed.
    A dependency that nobody knows may live where something is ``unseen``. Then it is one that nobody will work on.
    Raises BatchError for one that nobody knows where all were seen, and for guests that depend on each other.
    """
    members: dict[str, Member] = {}
    for member in known:
        members.setdefault(member.name, member)
    providers = _providers(turns, members, unseen=unseen)
    workable = {*turns}
    run = {*turns, *refused}
    after: dict[str, dict[str, None]] = {}
    for name, needed in providers.items():
        after[name] = {}
        for provider in needed:
            after[name].update(after[provider])
            if provider in run or provider not in members:
                after[name][provider] = None
    order = [name for name in providers if name in workable]
    first = _canaries(turns, members, canaries)
    lost = [name for name in refused if name in members and members[name].canary]
    at_once = _at_once(members.values())
    early = {*first}.union(*(after[name] for name in first))
    numbers = [count_of(size, len(order)) for size in sizes]
    parts = (
        ([name for name in order if name in early], numbers[:1]),
        ([name for name in order if name not in early], numbers),
    )
    batches = [
        batch
        for part, its_sizes in parts
        for batch in _batches(part, after, members, at_once, sizes=its_sizes, per_hypervisor=per_hypervisor)
    ]
    return [
        Turn(
            name=name,
            hypervisor=members[name].hypervisor,
            batch=number,
            canary=name in first,
            after=tuple(after[name]),
            canaries=() if name in early else (*first, *lost),
            member_of=members[name].group,
            at_once=at_once[members[name].group],
        )
        for number, batch in enumerate(batches, 1)
        for name in batch
    ]


def _providers(turns: Sequence[str], members: Mapping[str, Member], *, unseen: bool) -> dict[str, tuple[str, ...]]:
    """What each guest depends on directly, of those that come in turn and all that they lead to, providers first."""
    by_domain: dict[str, list[str]] = {}
    for member in members.values():
        by_domain.setdefault(member.domain, []).append(member.name)

    def named(name: str) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for dependency in members[name].depends_on if name in members else ():
            matching = [dependency] if dependency in members else by_domain.get(dependency, [])
            if not matching and not unseen:
                raise BatchError(f"kvm_depends_on: {name} depends on {dependency!r}, and no guest has that name")
            found.update(dict.fromkeys(matching or [dependency]))
        return tuple(found)

    ordered: dict[str, tuple[str, ...]] = {}
    for start in turns:
        path: dict[str, Iterator[str]] = {} if start in ordered else {start: iter(named(start))}
        while path:
            name = next(reversed(path))
            provider = next(path[name], None)
            if provider is None:
                ordered[name] = named(name)
                del path[name]
            elif provider in path:
                circle = [*path][[*path].index(provider) :]
                raise BatchError(f"kvm_depends_on: guests depend on each other: {' → '.join([*circle, provider])}")
            elif provider not in ordered:
                path[provider] = iter(named(provider))
    return ordered


def _canaries(turns: Sequence[str], members: Mapping[str, Member], number: int) -> dict[str, None]:
    """Those that are marked, and as many others, by turn, as ``number`` lacks."""
    marked = [name for name in turns if members[name].canary]
    others = [name for name in turns if not members[name].canary]
    return dict.fromkeys([*marked, *others[: max(0, number - len(marked))]])


def _batches(
    order: Iterable[str],
    after: Mapping[str, Collection[str]],
    members: Mapping[str, Member],
    at_once: Mapping[str, int],
    *,
    sizes: Sequence[int],
    per_hypervisor: int | None,
) -> list[list[str]]:
    """Batches of the guests of ``order``, each as full as it may be."""
    waiting = dict.fromkeys(order)
    batches: list[list[str]] = []
    while waiting:
        size = sizes[min(len(batches), len(sizes) - 1)]
        batch: list[str] = []
        hypervisors: Counter[str] = Counter()
        groups: Counter[str] = Counter()
        for name in waiting:
            member = members[name]
            # What it depends on waits itself, or is in this very batch.
            if any(provider in waiting for provider in after[name]):
                continue
            if hypervisors[member.hypervisor] == per_hypervisor:
                continue
            if member.group and groups[member.group] == at_once[member.group]:
                continue
            batch.append(name)
            hypervisors[member.hypervisor] += 1
            groups[member.group] += 1
            if len(batch) == size:
                break
        for name in batch:
            del waiting[name]
        batches.append(batch)
    return batches


def _at_once(members: Iterable[Member]) -> dict[str, int]:
    """How many members of each group may be in a batch: the least that any says, one where none does."""
    sizes: Counter[str] = Counter()
    said: dict[str, int] = {}
    for member in members:
        sizes[member.group] += 1
        if member.group_at_once is not None:
            said[member.group] = min(member.group_at_once, said.get(member.group, member.group_at_once))
    return {group: max(1, min(said.get(group, 1), size - 1)) for group, size in sizes.items()}


GROUP = "fleet_batch_"
"""What the names of the groups begin with that the guests of one batch are in, before its number."""


def sizes_of(groups: Mapping[str, Sequence[str]], prefix: str = GROUP) -> list[int]:
    """The sizes of the batches that were made groups of the inventory, by their numbers."""
    found = {
        int(group[len(prefix) :]): len(hosts)
        for group, hosts in groups.items()
        if group.startswith(prefix) and group[len(prefix) :].isdecimal()
    }
    return [found[number] for number in sorted(found)]


def held_back(name: str, inventory: Inventory) -> dict[str, Any]:
    """The record of a guest that nobody may touch, since what it comes after was not done, or since the tags of the run
    have chosen no part of the work; empty otherwise.

    A host's 'fleet_turn' is its turn, its 'fleet_parts' are the parts, and its 'fleet_done' tells whether this run has
    done it. What was refused has none of these, and may be no host at all. Named are those that this began with, not
    those that were held back themselves.
    """

    def missing(of: str, key: str) -> list[str]:
        turn = (inventory[of].get("fleet_turn") if of in inventory else None) or {}
        return [other for other in turn.get(key, []) if not _is_done(other, inventory)]

    def record(error_code: str, msg: str, remedy: str, **evidence: object) -> dict[str, Any]:
        return {
            "guest": name,
            "hypervisor": inventory[name].get("kvm_hypervisor"),
            "domain": inventory[name].get("kvm_domain"),
            "outcome": "not_attempted",
            "error": {
                "error_code": error_code,
                "msg": msg,
                "remedy": remedy,
                "transient": False,
                "evidence": evidence,
            },
        }

    if not inventory[name].get("fleet_parts"):
        # A tag that was mistyped would else have a run do nothing, and end well.
        return record(
            "nothing_chosen",
            "the tags of this run leave nothing to do",
            "Run again without them, or with others: ansible-playbook --list-tags tells which there are.",
        )
    after, canaries = missing(name, "after"), missing(name, "canaries")
    if not after and not canaries:
        return {}
    causes: dict[str, None] = {}
    waiting = dict.fromkeys(after or canaries)
    while waiting:
        other, _none = waiting.popitem()
        further = [*missing(other, "after"), *missing(other, "canaries")]
        (waiting if further else causes).update(dict.fromkeys(further or [other]))
    named = ", ".join(sorted(causes))
    relation = f"it depends on {', '.join(after)}" if after else f"it comes after the canary {', '.join(canaries)}"
    return record(
        "provider_failed" if after else "canary_failed",
        f"{relation}, and {named} has failed, was refused or was lost in this run",
        f"See what became of {named}, and run again.",
        after=after,
        canaries=canaries,
    )


def _is_done(name: str, inventory: Inventory) -> bool:
    return name in inventory and inventory[name].get("fleet_done") is True
