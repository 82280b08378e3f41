# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Takes one of a group's places for a guest, and lets go of it, in a file that all runs agree on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ansible_collections.kvm.fleet.plugins.module_utils import _group
from ansible_collections.kvm.fleet.plugins.module_utils._clock import Clock
from ansible_collections.kvm.fleet.plugins.module_utils._errors import GroupBusy
from ansible_collections.kvm.fleet.plugins.module_utils._group import Group
from ansible_collections.kvm.fleet.plugins.module_utils._record import Claim
from ansible_collections.kvm.fleet.plugins.module_utils._store import GroupStore, LockHeld, moment


def take(store: GroupStore, clock: Clock, name: str, claim: Claim, at_once: int, *, check: bool) -> tuple[Group, bool]:
    """Take a place, or renew it. Returns the group, and whether the run had none before.

    Raises GroupBusy and GroupMemberFailed.
    """
    claim.check()
    _group.check(name, at_once)
    with _alone(store, clock, name, check=check):
        before = store.read(name)
        after = _group.take(before, claim, at_once, moment(clock))
        if not check:
            store.write(after)
    return after, not before.is_taken(claim.uuid, claim.run)


def leave(store: GroupStore, clock: Clock, name: str, claim: Claim, outcome: str, *, check: bool) -> tuple[Group, bool]:
    """Let go of a place, or keep it for a member that has failed. Returns the group, and whether that is news."""
    claim.check()
    with _alone(store, clock, name, check=check):
        before = store.read(name)
        after = _group.leave(before, claim, outcome, moment(clock))
        if after != before and not check:
            store.write(after)
    return after, after != before


@contextmanager
def _alone(store: GroupStore, clock: Clock, name: str, *, check: bool) -> Iterator[None]:
    """Hold the group's lock, for a moment. Raises GroupBusy where another task does."""
    try:
        with store.alone(_group.key_of(name), clock, check=check):
            yield
    except LockHeld:
        raise GroupBusy(
            f"the places of the group {name!r} are being taken or let go of by another task",
            remedy="Run again.",
            evidence={"group": name},
        ) from None
