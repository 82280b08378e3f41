# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How far each guest is, in the lines that a person reads while a run goes on."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.kvm.fleet.plugins.plugin_utils._progress import (
    Board,
    is_written_ahead,
    noted_guests,
    step_of,
)


@pytest.fixture
def board() -> Board:
    """Of two guests, the first of which is ahead."""
    board = Board()
    board.begin("web1", "begin", 0.0)
    board.settle("web1")
    board.begin("web1", "assess", 3.0)
    board.begin("database", "begin", 1.0)
    for guest in ("web1", "database"):
        board.settle(guest)
    return board


def progress(percent: int | None, activity: str = "") -> dict[str, Any]:
    return {"percent": percent, "activity": activity, "package": "bash", "elapsed": 1.0}


# --- a line for each change ----------------------------------------------------------------------


def test_each_step_is_told_once(board: Board) -> None:
    assert board.news(5.0) == ["web1: assess, after 5s", "database: begin, after 4s"]
    board.begin("web1", "assess", 6.0)
    assert board.news(100.0) == []
    board.begin("web1", "snapshot", 101.0)
    board.settle("web1")
    assert board.news(101.0) == ["web1: snapshot, after 1m41s"]


def test_a_step_that_is_skipped_is_not_told_and_what_was_before_goes_on(board: Board) -> None:
    board.news(5.0)
    board.begin("web1", "wait", 6.0)
    assert board.news(6.5) == []
    board.skip("web1")
    assert board.news(9.0) == []
    assert board.table(9.0, 80, 2)[0].split()[:2] == ["web1", "assess"]


def test_a_step_that_is_not_skipped_at_once_is_told_before_its_result(board: Board) -> None:
    board.news(5.0)
    board.begin("web1", "restart", 6.0)
    assert board.news(7.0) == ["web1: restart, after 7s"]


def test_a_guest_whose_first_task_is_skipped_is_not_at_work() -> None:
    board = Board()
    board.begin("web1", "begin", 0.0)
    board.skip("web1")
    assert (board.news(9.0), board.table(9.0, 80, 2)) == ([], [])


def test_a_task_that_is_skipped_within_a_step_ends_nothing(board: Board) -> None:
    board.begin("web1", "assess", 6.0)
    board.skip("web1")
    assert board.news(6.0)[0] == "web1: assess, after 6s"


def test_progress_is_told_in_tens(board: Board) -> None:
    board.begin("web1", "upgrade", 10.0)
    told = []
    for second, percent in enumerate([None, 0, 4, 9, 10, 11, 19, 35, 35, 100]):
        board.advance("web1", progress(percent, "Unpacking bash"))
        told += [line for line in board.news(20.0 + second) if line.startswith("web1")]
    assert told == [
        "web1: upgrade, Unpacking bash, after 20s",
        "web1: upgrade, 10 %, Unpacking bash, after 24s",
        "web1: upgrade, 35 %, Unpacking bash, after 27s",
        "web1: upgrade, 100 %, Unpacking bash, after 29s",
    ]


def test_what_a_guest_tells_is_cut_and_cannot_move_the_cursor(board: Board) -> None:
    board.begin("web1", "upgrade", 10.0)
    board.advance("web1", progress(1, "\x1b[2J\nred" + "x" * 200))
    for line in (board.news(20.0)[0], board.table(20.0, 200, 2)[0]):
        assert line.isprintable()
        assert 60 < line.count("x") <= 80


def test_the_outcome_is_told_and_later_steps_are_not(board: Board) -> None:
    board.news(5.0)
    board.end("web1", "upgraded", 65.0)
    board.begin("web1", "release", 66.0)
    assert board.news(70.0) == ["web1: upgraded, after 1m5s"]
    board.end("web1", "failed (hypervisor_unreachable)", 71.0)
    assert board.news(80.0) == ["web1: failed (hypervisor_unreachable), after 1m11s"]


def test_guests_that_nobody_works_on_are_not_told_of(board: Board) -> None:
    board.news(5.0)
    for change in (board.settle, board.skip):
        change("web9")
    board.advance("web9", progress(1))
    board.end("web9", "refused (domain_not_running)", 6.0)
    assert board.news(9.0) == []


def test_the_next_batch_begins_with_an_empty_board(board: Board) -> None:
    board.clear()
    assert (board.news(9.0), board.table(9.0, 80, 2)) == ([], [])


# --- a table of all ------------------------------------------------------------------------------


def test_a_table_has_step_percentage_and_elapsed_time_of_each_guest(board: Board) -> None:
    board.begin("web1", "upgrade", 10.0)
    board.advance("web1", progress(47, "Unpacking libssl3 (amd64)"))
    board.end("database", "unchanged", 12.0)
    assert board.table(80.0, 80, 4) == [
        "web1      upgrade    47 %     1m20s  Unpacking libssl3 (amd64)",
        "database  unchanged             11s",
    ]


def test_a_table_is_as_wide_as_the_window(board: Board) -> None:
    board.begin("日本語" * 20, "begin", 5.0)
    assert board.table(5.0, 12, 4)[0] == "web1       …"
    assert all(len(line) <= 40 for line in board.table(5.0, 40, 4))


@pytest.mark.parametrize(
    ("height", "shown"),
    [(5, ["a", "b", "c", "d", "e"]), (4, ["b", "c", "e", "… and 2 more"]), (1, ["… and 5 more"]), (0, [])],
)
def test_where_there_are_more_guests_than_lines_those_at_work_are_shown(height: int, shown: list[str]) -> None:
    board = Board()
    for guest in "abcde":
        board.begin(guest, "begin", 0.0)
    board.end("a", "upgraded", 1.0)
    board.end("d", "upgraded", 1.0)
    table = board.table(1.0, 80, height)
    assert [line if "more" in line else line[0] for line in table] == shown


# --- what tasks and their results tell ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "step"),
    [
        ({"fleet_step": "upgrade", "other": 1}, "upgrade"),
        ({}, None),
        ({"fleet_step": "{{ lookup('pipe', 'id') }}"}, None),
        ({"fleet_step": "x" * 21}, None),
        ({"fleet_step": 7}, None),
        ({"fleet_step": "a\n"}, None),
    ],
)
def test_a_step_is_a_word_and_nothing_else(variables: dict[str, Any], step: str | None) -> None:
    assert step_of(variables) == step


def test_what_is_noted_for_the_summary_is_read_from_a_result() -> None:
    record = {"outcome": "upgraded"}
    assert noted_guests({"ansible_stats": {"data": {"kvm_fleet": {"guests": {"web1": record}}}}}) == {"web1": record}


@pytest.mark.parametrize(
    "result",
    [
        {},
        {"censored": "the output has been hidden"},
        {"ansible_stats": {"data": "{{ no }}"}},
        {"ansible_stats": {"data": {"kvm_fleet": 7}}},
        {"ansible_stats": {"data": {"kvm_fleet": {"guests": [1]}}}},
        {"ansible_stats": {"data": {"kvm_fleet": {"guests": {"web1": "good", "web2": {}}}}}},
        {"ansible_stats": None},
    ],
)
def test_other_results_note_nothing(result: dict[str, Any]) -> None:
    assert noted_guests(result) == {}


def test_a_record_that_is_written_ahead_is_told_from_a_last_word() -> None:
    assert is_written_ahead({"outcome": "failed", "error": {"error_code": "run_ended"}})
    assert not is_written_ahead({"outcome": "failed", "error": {"error_code": "agent_silent"}})
    assert not is_written_ahead({"outcome": "upgraded", "error": None})
