# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who works on members of a group: a cluster of guests, of which only so many may be worked on at once.

A member has one of the group's places from before its first change until it is done with. A lease of the guest itself
says which run that is, and goes stale as that does: see _record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from urllib.parse import quote

from ansible_collections.kvm.fleet.plugins.module_utils import _record
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    FleetError,
    GroupBusy,
    GroupMemberFailed,
    InvalidRequest,
)
from ansible_collections.kvm.fleet.plugins.module_utils._record import (
    MAY_BE_DOWN,
    Claim,
    Lease,
    Moment,
    fields_of,
    lease_from,
    typed,
)

LONGEST_KEY = 200
"""A file system takes 255 bytes, and our files' names have endings."""


@dataclass(frozen=True)
class Place:
    """One of the places of a group, and the member that has it.

    One that ``failed`` may be down, and keeps it. So may one that ``had_failed``, until the run that is at work on it
    now ends well.
    """

    member: str
    uuid: str
    lease: Lease
    failed: bool
    had_failed: bool = False

    @property
    def may_be_down(self) -> bool:
        return self.failed or self.had_failed


@dataclass(frozen=True)
class Group:
    """The places of a group that were taken and not let go of, stale ones among them."""

    name: str
    places: tuple[Place, ...]

    def place_of(self, uuid: str) -> Place | None:
        """The place that a member has."""
        return next((place for place in self.places if place.uuid == uuid), None)

    def is_taken(self, uuid: str, run: str) -> bool:
        """Whether a run is at work on a member."""
        place = self.place_of(uuid)
        return place is not None and place.lease.run == run and not place.failed


def key_of(name: str) -> str:
    """The name of a group as that of a file."""
    return quote(name, safe="")


def check(name: str, at_once: int) -> None:
    """Raise InvalidRequest for what cannot be meant."""
    if not name.isprintable() or not 0 < len(key_of(name)) <= LONGEST_KEY:
        raise InvalidRequest(
            f"{name!r} cannot be the name of a group",
            remedy="Give it a shorter one, of characters that can be printed.",
        )
    if at_once < 1:
        raise InvalidRequest(
            f"that at most {at_once} members of the group {name!r} are worked on at once cannot be meant",
            remedy="Give 1 or more.",
        )


def take(group: Group, claim: Claim, at_once: int, now: Moment) -> Group:
    """The group with a place for a member, which is ours again where an earlier run had left it with one.

    To be called with the member's own lease, so that no other run has it. Raises GroupBusy and GroupMemberFailed.
    """
    others = tuple(place for place in group.places if place.uuid != claim.uuid and place.lease.is_young(now))
    if len(others) >= at_once:
        raise refusal(group.name, claim.domain, others, at_once, now)
    ours = group.place_of(claim.uuid)
    had_failed = ours is not None and ours.may_be_down and ours.lease.is_young(now)
    return replace(group, places=(*others, _placed(claim, ours, now, failed=False, had_failed=had_failed)))


def leave(group: Group, claim: Claim, outcome: str, now: Moment) -> Group:
    """The group as the end of a run on a member leaves it.

    One that ``failed``, or whose rollback did, keeps its place, or gets one: it may be down, though it had none because
    it was down before. One that was ``refused`` is as it was found. Any other ``outcome`` frees its place, also one
    that an earlier run has left it with. What another run is at work on is left alone.
    """
    ours = group.place_of(claim.uuid)
    if ours and ours.lease.run != claim.run and not ours.failed and ours.lease.is_young(now):
        return group
    others = tuple(place for place in group.places if place.uuid != claim.uuid)
    if outcome in MAY_BE_DOWN or (outcome == "refused" and ours and ours.may_be_down):
        return replace(group, places=(*others, _placed(claim, ours, now, failed=True, had_failed=False)))
    return replace(group, places=others)


def _placed(claim: Claim, ours: Place | None, now: Moment, *, failed: bool, had_failed: bool) -> Place:
    taken = ours.lease.taken if ours and ours.lease.run == claim.run else now.at
    lease = Lease(claim.run, claim.owner, taken, now.uptime, claim.ttl, now.boot_id)
    return Place(claim.domain, claim.uuid, lease, failed, had_failed)


def refusal(name: str, member: str, places: Sequence[Place], at_once: int, now: Moment) -> FleetError:
    """Why a member has to wait, or waits in vain: those that have these places are worked on, or have failed."""
    who = "; ".join(f"{place.member!r} {_has(place, now)}" for place in places)
    message = f"guest {member!r} is of the group {name!r}, of which no more than {at_once} may be down at once: {who}"
    evidence = {
        "group": name,
        "at_once": at_once,
        "places": [
            {"member": place.member, "run": place.lease.run, "owner": place.lease.owner, "failed": place.failed}
            for place in places
        ],
    }
    if sum(place.failed for place in places) >= at_once:
        return GroupMemberFailed(
            message,
            remedy="See to the one that has failed, and run kvm.fleet.upgrade on it by its name: where that goes well, "
            "its place is free.",
            evidence=evidence,
        )
    return GroupBusy(
        message,
        remedy="Wait until the other run is done with it. If that run is dead, see that the guest is up, and run "
        "kvm.fleet.upgrade on it by its name: where that goes well, its place is free.",
        evidence=evidence,
    )


def _has(place: Place, now: Moment) -> str:
    lease = place.lease
    silence = lease.silence(now) or 0
    what = "has failed" if place.failed else "is worked on"
    return (
        f"{what} in run {lease.run} of {lease.owner}, which took it at {lease.taken} and was last heard of "
        f"{silence:.0f} s ago, and keeps its place for another {max(0.0, lease.ttl - silence):.0f} s"
    )


def serialise(group: Group) -> str:
    """The group as JSON for ``parse``."""
    return _record.dump(asdict(group))


def parse(text: str) -> Group:
    """The group in a text. Raises Malformed for whatever ``serialise`` does not write."""
    fields = _record.load(text, *Group.__dataclass_fields__)
    return Group(typed(str, fields["name"]), tuple(_place(place) for place in typed(list, fields["places"])))


def _place(found: object) -> Place:
    fields = fields_of(found, *Place.__dataclass_fields__)
    for name in ("failed", "had_failed"):
        if not isinstance(fields[name], bool):
            raise _record.Malformed(f"{fields[name]!r} is no bool")
    return Place(
        member=typed(str, fields["member"]),
        uuid=typed(str, fields["uuid"]),
        lease=lease_from(fields["lease"]),
        failed=fields["failed"],
        had_failed=fields["had_failed"],
    )
