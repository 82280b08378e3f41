# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Batches: every guest once, in its turn as far as may be, and no rule broken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvm.fleet.plugins.plugin_utils._batches import BatchError
from ansible_collections.kvm.fleet.plugins.plugin_utils._plan import (
    Member,
    Turn,
    held_back,
    make_plan,
    sizes_of,
)
from ansible_collections.kvm.fleet.plugins.plugin_utils._plan import member as member_of
from ansible_collections.kvm.fleet.plugins.plugin_utils._selection import Guest, Place


def member(name: str, hypervisor: str = "hv1", **facts: Any) -> Member:
    return Member(name, facts.pop("domain", name), hypervisor, **facts)


def planned(members: Iterable[Member], sizes: Sequence[str] = ("1",), **options: Any) -> list[list[str]]:
    """The names, batch by batch, of guests that are all of the run, in the order that they are given in."""
    members = list(members)
    return batches_of(make_plan([one.name for one in members], members, sizes, **options))


def batches_of(turns: Iterable[Turn]) -> list[list[str]]:
    batches: dict[int, list[str]] = {}
    for turn in turns:
        batches.setdefault(turn.batch, []).append(turn.name)
    assert list(batches) == list(range(1, len(batches) + 1))
    return list(batches.values())


# --- what always holds ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Fleet:
    """Guests, some of which a run is about, and how it is to be planned."""

    members: list[Member]
    run: list[str]
    refused: list[str]
    sizes: list[str]
    canaries: int
    per_hypervisor: int | None

    def plan(self) -> list[Turn]:
        return make_plan(
            self.run,
            self.members,
            self.sizes,
            canaries=self.canaries,
            per_hypervisor=self.per_hypervisor,
            refused=self.refused,
        )


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    """Any fleet in which no guests depend on each other: each only on some of those that were drawn before."""
    names = [f"vm{number}" for number in range(draw(st.integers(1, 14)))]
    members = [
        member(
            name,
            draw(st.sampled_from(["hv1", "hv2", "hv3"])),
            depends_on=tuple(draw(st.lists(st.sampled_from(names[:place]), unique=True, max_size=2))) if place else (),
            group=draw(st.sampled_from(["", "", "a", "b"])),
            group_at_once=draw(st.sampled_from([None, 1, 2, 3])),
            canary=draw(st.sampled_from([False, False, False, True])),
        )
        for place, name in enumerate(names)
    ]
    chosen = draw(st.lists(st.sampled_from(names), unique=True))
    refused = draw(st.integers(0, len(chosen)))
    size = st.one_of(st.integers(1, 6).map(str), st.integers(1, 100).map(lambda number: f"{number}%"))
    return Fleet(
        members=draw(st.permutations(members)),
        run=chosen[refused:],
        refused=chosen[:refused],
        sizes=draw(st.lists(size, min_size=1, max_size=3)),
        canaries=draw(st.integers(0, 3)),
        per_hypervisor=draw(st.sampled_from([None, 1, 2])),
    )


def dependencies(fleet: Fleet, name: str) -> set[str]:
    """All that a guest depends on, directly or not."""
    by_name = {one.name: one for one in fleet.members}
    found: set[str] = set()
    waiting = [name]
    while waiting:
        new = set(by_name[waiting.pop()].depends_on) - found
        found |= new
        waiting += new
    return found


@given(fleets())
def test_every_guest_of_the_run_has_one_turn(fleet: Fleet) -> None:
    turns = fleet.plan()
    assert sorted(turn.name for turn in turns) == sorted(fleet.run)
    assert [turn.batch for turn in turns] == sorted(turn.batch for turn in turns)


@given(fleets())
def test_a_plan_is_the_same_each_time(fleet: Fleet) -> None:
    assert fleet.plan() == fleet.plan()


@given(fleets())
def test_what_a_guest_depends_on_is_in_an_earlier_batch_and_named(fleet: Fleet) -> None:
    turns = {turn.name: turn for turn in fleet.plan()}
    for turn in turns.values():
        assert {*turn.after} == dependencies(fleet, turn.name) & {*fleet.run, *fleet.refused}
        assert all(turns[name].batch < turn.batch for name in turn.after if name in turns)


@given(fleets())
def test_those_that_a_guest_comes_after_are_told_behind_their_own(fleet: Fleet) -> None:
    for turn in fleet.plan():
        for place, name in enumerate(turn.after):
            assert not dependencies(fleet, name) & {*turn.after[place:]}


def at_once(members: Iterable[Member], group: str) -> int:
    """How many of a group may be in a batch."""
    of_it = [one for one in members if one.group == group]
    said = [one.group_at_once for one in of_it if one.group_at_once is not None]
    return 1 if len(of_it) <= 1 else min([*(said or [1]), len(of_it) - 1])


@given(fleets())
def test_never_too_many_of_a_group_at_once_nor_all_of_it(fleet: Fleet) -> None:
    by_name = {one.name: one for one in fleet.members}
    for group in "ab":
        for batch in batches_of(fleet.plan()):
            assert sum(by_name[name].group == group for name in batch) <= at_once(fleet.members, group)


@given(fleets())
def test_never_too_many_on_a_hypervisor_at_once(fleet: Fleet) -> None:
    for number in {turn.batch for turn in fleet.plan()}:
        counts = Counter(turn.hypervisor for turn in fleet.plan() if turn.batch == number)
        assert fleet.per_hypervisor is None or max(counts.values()) <= fleet.per_hypervisor


def meant(fleet: Fleet, size: str) -> int:
    number = int(size.rstrip("%"))
    return max(1, int((number / 100.0) * len(fleet.run))) if size.endswith("%") else number


@given(fleets())
def test_no_batch_is_larger_than_its_size(fleet: Fleet) -> None:
    turns = fleet.plan()
    early = max((turn.batch for turn in turns if turn.canary), default=0)
    for number, batch in enumerate(batches_of(turns)):
        place = 0 if number < early else min(number - early, len(fleet.sizes) - 1)
        assert len(batch) <= meant(fleet, fleet.sizes[place])


@given(fleets())
def test_canaries_come_first_with_what_they_depend_on_and_nothing_else(fleet: Fleet) -> None:
    turns = {turn.name: turn for turn in fleet.plan()}
    canaries = {name for name, turn in turns.items() if turn.canary}
    marked = {one.name for one in fleet.members if one.canary} & {*fleet.run}
    assert marked <= canaries
    assert len(canaries) == min(len(fleet.run), max(len(marked), fleet.canaries))
    refused = {one.name for one in fleet.members if one.canary} & {*fleet.refused}
    needed = {name for canary in canaries for name in turns[canary].after}
    last = max((turns[name].batch for name in canaries), default=0)
    for name, turn in turns.items():
        early = name in canaries | needed
        assert (turn.batch <= last) == early
        assert {*turn.canaries} == (set() if early else canaries | refused)


@given(fleets())
def test_a_guest_is_passed_over_for_a_reason_only(fleet: Fleet) -> None:
    """Each batch is as full as it may be. Those of canaries are apart, so there are none here."""
    still = [Member(**{**vars(one), "canary": False}) for one in fleet.members]
    turns = make_plan(fleet.run, still, ["3"], per_hypervisor=fleet.per_hypervisor)
    by_name = {one.name: one for one in still}
    batch_of = {turn.name: turn.batch for turn in turns}
    for number, batch in enumerate(batches_of(turns), 1):
        together = [by_name[name] for name in batch]
        for turn in (turn for turn in turns if turn.batch > number):
            own = by_name[turn.name]
            assert (
                len(batch) == 3
                or any(batch_of.get(name, 0) >= number for name in turn.after)
                or (own.group and sum(one.group == own.group for one in together) == at_once(still, own.group))
                or sum(one.hypervisor == own.hypervisor for one in together) == fleet.per_hypervisor
            )


@given(fleets())
def test_guests_that_nothing_holds_back_keep_the_order_of_their_turns(fleet: Fleet) -> None:
    free = [member(one.name, one.hypervisor) for one in fleet.members]
    turns = make_plan(fleet.run, free, fleet.sizes)
    assert [turn.name for turn in turns] == fleet.run


# --- by example ----------------------------------------------------------------------------------


def test_a_growing_list_of_sizes_repeats_its_last() -> None:
    members = [member(str(number)) for number in range(10)]
    assert [len(batch) for batch in planned(members, ["1", "30%", "4"])] == [1, 3, 4, 2]


def test_a_provider_is_put_before_who_depends_on_it() -> None:
    members = [member("web", depends_on=("app",)), member("mail"), member("app", depends_on=("db",)), member("db")]
    assert planned(members) == [["db"], ["app"], ["web"], ["mail"]]
    assert planned(members, ["4"]) == [["db", "mail"], ["app"], ["web"]]


def test_a_guest_in_between_that_the_run_is_not_about_hands_the_order_on() -> None:
    members = [member("web", depends_on=("app",)), member("app", depends_on=("db",)), member("db")]
    turns = make_plan(["web", "db"], members, ["2"])
    assert (batches_of(turns), turns[1].after) == ([["db"], ["web"]], ("db",))


def test_a_dependency_may_be_named_by_its_domain() -> None:
    members = [member("web", depends_on=("db.example.com",)), member("db", domain="db.example.com")]
    assert planned(members, ["2"]) == [["db"], ["web"]]


def test_a_domain_that_two_hypervisors_have_stands_for_both_unless_a_guest_is_named_so() -> None:
    twins = [member("db@hv1", domain="db"), member("db@hv2", "hv2", domain="db")]
    [turn] = make_plan(["web"], [member("web", depends_on=("db",)), *twins], ["1"], refused=["db@hv1", "db@hv2"])
    assert turn.after == ("db@hv1", "db@hv2")
    named = [member("web", depends_on=("db@hv2",)), *twins]
    assert planned(named, ["3"]) == [["db@hv2", "db@hv1"], ["web"]]


def test_two_of_three_at_once_and_of_two_only_one() -> None:
    three = [member(str(number), group="a", group_at_once=2) for number in range(3)]
    assert planned(three, ["3"]) == [["0", "1"], ["2"]]
    assert planned(three[:2], ["3"]) == [["0"], ["1"]]
    assert planned(three[:1], ["3"]) == [["0"]]


def test_members_that_the_run_is_not_about_count_as_members() -> None:
    members = [member(str(number), group="a", group_at_once=2) for number in range(3)]
    assert batches_of(make_plan(["0", "1"], members, ["2"])) == [["0", "1"]]


def test_of_what_members_say_of_their_group_the_least_holds() -> None:
    members = [member(str(number), group="a", group_at_once=at_once) for number, at_once in enumerate([2, 3, None])]
    assert planned([*members, member("3", group="a")], ["4"]) == [["0", "1"], ["2", "3"]]


def test_a_marked_canary_counts_towards_the_number() -> None:
    members = [member("0"), member("1"), member("2", canary=True), member("3")]
    assert planned(members, ["4"]) == [["2"], ["0", "1", "3"]]
    assert planned(members, ["4"], canaries=2) == [["0", "2"], ["1", "3"]]
    assert planned(members, ["4"], canaries=9) == [["0", "1", "2", "3"]]


def test_what_a_canary_depends_on_comes_before_it() -> None:
    members = [member("web", canary=True, depends_on=("db",)), member("mail"), member("db")]
    assert planned(members, ["3"]) == [["db"], ["web"], ["mail"]]


def test_a_marked_canary_that_was_refused_holds_back_all_others() -> None:
    members = [member("a", canary=True), member("b"), member("c", canary=True)]
    turns = make_plan(["b", "c"], members, ["1"], refused=["a"])
    assert [(turn.name, turn.canaries) for turn in turns] == [("c", ()), ("b", ("c", "a"))]


def test_how_many_of_a_group_are_worked_on_at_once_is_told_with_each_of_them() -> None:
    members = [member("a", group="db", group_at_once=3), member("b", group="db"), member("c", group="db"), member("d")]
    turns = make_plan(["a", "b", "d"], members, ["9"])
    assert {turn.name: (turn.member_of, turn.at_once) for turn in turns} == {
        **dict.fromkeys(("a", "b"), ("db", 2)),
        "d": ("", 1),
    }


def test_batches_of_canaries_have_the_first_size() -> None:
    members = [member(str(number)) for number in range(6)]
    assert planned(members, ["1", "100%"], canaries=2) == [["0"], ["1"], ["2"], ["3", "4", "5"]]


def test_nothing_is_planned_for_nobody() -> None:
    assert make_plan([], [member("0")], ["1"], canaries=2) == []


# --- refusals ------------------------------------------------------------------------------------


def test_a_dependency_that_nobody_knows_is_named() -> None:
    members = [member("web", depends_on=("db", "db9")), member("db")]
    with pytest.raises(BatchError, match=r"\Akvm_depends_on: web depends on 'db9', and no guest has that name\Z"):
        planned(members)


def test_a_dependency_that_may_live_where_nobody_could_look_holds_back_only_what_depends_on_it() -> None:
    members = [
        member("app", depends_on=("web",)),
        member("web", depends_on=("db", "db9")),
        *(member("db"), member("mail")),
    ]
    plan = make_plan([one.name for one in members], members, ["100%"], unseen=True)
    assert batches_of(plan) == [["db", "mail"], ["web"], ["app"]]
    hosts = {
        turn.name: {
            "fleet_turn": {"after": turn.after},
            "fleet_parts": ["packages"],
            "fleet_done": turn.name in ("db", "mail"),
        }
        for turn in plan
    }
    assert held_back("mail", hosts) == {}
    assert held_back("web", hosts)["error"]["msg"].startswith("it depends on db9, and db9 has failed")
    assert held_back("app", hosts)["error"]["msg"].startswith("it depends on db9, web, and db9 has failed")


def test_what_a_guest_leads_to_is_looked_at_and_nothing_else() -> None:
    members = [member("web", depends_on=("app",)), member("app", depends_on=("db9",)), member("mail")]
    with pytest.raises(BatchError, match="app depends on 'db9'"):
        make_plan(["web"], members, ["1"])
    assert batches_of(make_plan(["mail"], members, ["1"])) == [["mail"]]


@pytest.mark.parametrize(
    ("depends", "circle"),
    [
        ({"a": ["a"]}, "a → a"),
        ({"a": ["b"], "b": ["a"]}, "a → b → a"),
        ({"a": ["b"], "b": ["c"], "c": ["d"], "d": ["b"]}, "b → c → d → b"),
    ],
)
def test_guests_that_depend_on_each_other_are_named(depends: dict[str, list[str]], circle: str) -> None:
    members = [member(name, depends_on=tuple(names)) for name, names in depends.items()]
    with pytest.raises(BatchError, match=rf"\Akvm_depends_on: guests depend on each other: {circle}\Z"):
        make_plan(["a"], members, ["1"])


def test_a_long_chain_is_no_trouble() -> None:
    members = [member(str(number), depends_on=(str(number + 1),)) for number in range(2000)]
    assert len(planned([*members, member("2000")])) == 2001


# --- what owners say -----------------------------------------------------------------------------


def owned(variables: dict[str, Any] | None = None, hints: dict[str, Any] | None = None) -> Guest:
    observed = None if hints is None else {"hints": hints}
    return Guest("web1", Place("hv1", "qemu:///system"), "www", True, observed, None, variables or {})


def test_a_guest_of_which_nothing_is_said() -> None:
    assert member_of(owned()) == Member("web1", "www", "hv1")


def test_the_metadata_of_a_domain_and_the_inventory_before_it() -> None:
    hints = {"depends_on": ["db1"], "group": "front", "group_at_once": 2, "canary": True}
    assert member_of(owned(hints=hints)) == Member("web1", "www", "hv1", ("db1",), "front", 2, True)
    variables = {"kvm_depends_on": [], "kvm_group_at_once": "3", "kvm_canary": "no", "kvm_group": 7}
    assert member_of(owned(variables, hints)) == Member("web1", "www", "hv1", (), "7", 3, False)


def test_dependencies_may_be_a_text_with_commas() -> None:
    assert member_of(owned({"kvm_depends_on": "db1, db2"})).depends_on == ("db1", "db2")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"kvm_group_at_once": 0}, "kvm_group_at_once of web1: '0' is no number of guests; it can be 1 or more"),
        ({"kvm_group_at_once": "two"}, "kvm_group_at_once of web1: 'two' is no number of guests"),
        ({"kvm_canary": "perhaps"}, "kvm_canary of web1: 'perhaps' is neither true nor false"),
    ],
)
def test_nonsense_is_refused_by_the_names_of_guest_and_variable(variables: dict[str, Any], message: str) -> None:
    with pytest.raises(BatchError) as raised:
        member_of(owned(variables))
    assert str(raised.value).startswith(message)


# --- while a run goes on -------------------------------------------------------------------------


def test_the_sizes_of_batches_come_by_their_numbers() -> None:
    groups = {f"fleet_batch_{number:03}": [""] * (number % 7) for number in (1000, 1, 999, 2)}
    others = {"fleet_batch_x": ["a"], "fleet_selected": ["a"], "fleet_policy_batch_001": ["a", "b", "c"]}
    assert sizes_of({**groups, **others}) == [1, 2, 5, 6]
    assert sizes_of({**groups, **others}, "fleet_policy_batch_") == [3]
    assert sizes_of({}) == []


def running(done: Iterable[str], **turns: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """The variables of hosts in the middle of a run."""
    finished = {*done}
    return {
        name: {
            "fleet_turn": {"after": [], "canaries": [], **turn},
            "fleet_parts": ["packages"],
            "fleet_done": name in finished,
            "kvm_hypervisor": "hv1",
            "kvm_domain": name,
        }
        for name, turn in turns.items()
    }


def test_a_guest_comes_when_all_before_it_are_done() -> None:
    hosts = running(["db", "canary"], canary={}, db={}, web={"after": ["db"], "canaries": ["canary"]})
    assert held_back("web", hosts) == {}
    assert held_back("db", hosts) == {}


def test_a_guest_whose_provider_was_not_done_is_held_back_by_its_name() -> None:
    hosts = running(["mail"], mail={}, db={}, app={"after": ["db"]}, web={"after": ["db", "app", "mail"]})
    record = held_back("web", hosts)
    assert (record["guest"], record["hypervisor"], record["domain"]) == ("web", "hv1", "web")
    assert (record["outcome"], record["error"]["error_code"]) == ("not_attempted", "provider_failed")
    assert record["error"]["msg"] == ("it depends on db, app, and db has failed, was refused or was lost in this run")
    assert record["error"]["remedy"] == "See what became of db, and run again."


def test_a_guest_for_which_no_part_was_chosen_is_held_back_whatever_comes_before_it() -> None:
    hosts = running([], db={}, web={"after": ["db"]})
    hosts["web"]["fleet_parts"] = []
    error = held_back("web", hosts)["error"]
    assert (error["error_code"], error["msg"]) == ("nothing_chosen", "the tags of this run leave nothing to do")


def test_a_provider_that_was_refused_need_not_be_a_host() -> None:
    assert "it depends on db, and db has failed" in held_back("web", running([], web={"after": ["db"]}))["error"]["msg"]


def test_a_failed_canary_holds_back_all_others_and_what_it_failed_for_is_named() -> None:
    hosts = running([], db={}, canary={"after": ["db"]}, web={"after": ["app"], "canaries": ["canary"]})
    hosts |= running([], app={"canaries": ["canary"]})
    error = held_back("app", hosts)["error"]
    assert (error["error_code"], error["msg"]) == (
        "canary_failed",
        "it comes after the canary canary, and db has failed, was refused or was lost in this run",
    )
    assert held_back("web", hosts)["error"]["msg"].startswith("it depends on app, and db has failed")
