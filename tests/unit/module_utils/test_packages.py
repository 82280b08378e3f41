# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What differs between two states of a package database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvm.fleet.plugins.module_utils._packages import (
    Installed,
    PackageChange,
    Prediction,
    changes_between,
    compose,
    installed,
)

KERNEL = ("kernel-core", "x86_64")


def states(*packages: tuple[str, str, str]) -> Installed:
    return installed(packages)


def test_versions_of_one_name_and_architecture_are_put_together() -> None:
    assert states(("k", "x", "1"), ("k", "x", "2"), ("k", "y", "1"), ("k", "x", "1")) == {
        ("k", "x"): {"1", "2"},
        ("k", "y"): {"1"},
    }


def test_what_changed_is_the_difference_of_the_records() -> None:
    before = states(("a", "all", "1"), ("b", "amd64", "1"), ("b", "i386", "1"), ("c", "all", "1"), ("same", "all", "1"))
    after = states(("a", "all", "2"), ("b", "amd64", "1"), ("b", "i386", "2"), ("d", "all", "1"), ("same", "all", "1"))
    assert changes_between(before, after, {"b": True, "d": None}) == (
        PackageChange("a", "all", "1", "2"),
        PackageChange("b", "i386", "1", "2", security=True),
        PackageChange("c", "all", "1", None),
        PackageChange("d", "all", None, "1", security=None),
    )


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        # Kernels are installed beside each other; the oldest goes when there are too many.
        ({"1", "2"}, {"1", "2", "3"}, [(None, "3")]),
        ({"1", "2"}, {"2", "3"}, [("1", "3")]),
        ({"1", "2", "3"}, {"3"}, [("1", None), ("2", None)]),
        ({"1", "2"}, {"3"}, [("1", None), ("2", None), (None, "3")]),
        ({"1"}, {"2", "3"}, [("1", None), (None, "2"), (None, "3")]),
        ({"1", "2"}, {"3", "4"}, [("1", None), ("2", None), (None, "3"), (None, "4")]),
    ],
)
def test_versions_beside_each_other_are_told_one_by_one(
    old: set[str], new: set[str], changes: list[tuple[str | None, str | None]]
) -> None:
    found = changes_between({KERNEL: frozenset(old)}, {KERNEL: frozenset(new)}, {"kernel-core": True})
    assert [(change.old, change.new) for change in found] == changes
    assert [change.security for change in found] == [bool(change.new) for change in found]


versions = st.frozensets(st.sampled_from(["1", "2", "3", "4"]))
databases = st.dictionaries(st.tuples(st.sampled_from("abc"), st.sampled_from(["amd64", "i386"])), versions)


def applied(before: Installed, changes: tuple[PackageChange, ...]) -> Mapping[tuple[str, str], set[str]]:
    """The state after the changes."""
    state = {package: set(found) for package, found in before.items()}
    for change in changes:
        found = state.setdefault((change.name, change.arch), set())
        if change.old is not None:
            found.remove(change.old)
        if change.new is not None:
            assert change.new not in found
            found.add(change.new)
    return {package: found for package, found in state.items() if found}


@given(before=databases, after=databases)
def test_the_changes_make_one_state_of_the_other(before: Installed, after: Installed) -> None:
    changes = changes_between(before, after, {})
    assert applied(before, changes) == {package: found for package, found in after.items() if found}


@given(before=databases, after=databases)
def test_nothing_is_told_twice_and_nothing_that_is_no_change(before: Installed, after: Installed) -> None:
    changes = changes_between(before, after, {})
    assert not [change for change in changes if change.old == change.new]
    gone = Counter((change.name, change.arch, change.old) for change in changes if change.old)
    come = Counter((change.name, change.arch, change.new) for change in changes if change.new)
    assert not [told for told, count in (gone + come).items() if count > 1]
    assert list(changes) == sorted(changes, key=lambda change: (change.name, change.arch))


@given(databases)
def test_the_same_state_is_no_change(state: Installed) -> None:
    assert changes_between(state, state, {"a": True}) == ()


def test_of_a_prediction_the_security_updates_are_those_that_are_told_to_be() -> None:
    changes = tuple(PackageChange(str(told), "all", "1", "2", told) for told in (True, False, None))
    assert [change.name for change in Prediction(changes).security] == ["True"]


@given(first=databases, then=databases, last=databases)
def test_two_lists_come_to_what_differs_in_the_end(first: Installed, then: Installed, last: Installed) -> None:
    composed = compose(changes_between(first, then, {}), changes_between(then, last, {}))
    assert composed == changes_between(first, last, {})


@given(first=databases, then=databases)
def test_nothing_put_to_a_list_leaves_it_as_it_is(first: Installed, then: Installed) -> None:
    changes = changes_between(first, then, {"a": True, "b": None})
    assert compose(changes, ()) == compose((), changes) == changes


def test_an_update_to_a_security_update_stays_one() -> None:
    secure = PackageChange("app", "all", "1", "2", security=True)
    plain = PackageChange("app", "all", "2", "3")
    untold = PackageChange("app", "all", "3", "4", security=None)
    assert compose([secure], [plain]) == (PackageChange("app", "all", "1", "3", security=True),)
    assert compose([plain], [untold]) == (PackageChange("app", "all", "2", "4", security=None),)
