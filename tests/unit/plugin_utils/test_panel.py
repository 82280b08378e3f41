# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Lines at the foot of a terminal, and what else is written to it meanwhile."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvm.fleet.plugins.plugin_utils._panel import Panel, clip, columns
from tests.unit.fake_terminal import FakeTerminal


class Shown:
    """A panel on a terminal."""

    def __init__(self, height: int = 10) -> None:
        self.terminal = FakeTerminal(height=height)
        self.panel = Panel()

    def draw(self, *lines: str) -> None:
        self.terminal.write(self.panel.draw(lines, self.terminal.height))

    def close(self) -> None:
        self.terminal.write(self.panel.close())


def test_it_is_at_the_foot_and_redrawn_there() -> None:
    shown = Shown()
    shown.terminal.write("TASK [one]\n")
    shown.draw("web1 begin", "web2 begin")
    shown.draw("web1 assess", "web2 begin")
    assert shown.terminal.screen == ["TASK [one]", *[""] * 7, "web1 assess", "web2 begin"]


def test_other_output_scrolls_above_it_and_none_is_lost() -> None:
    shown = Shown()
    for number in range(30):
        shown.draw(f"web1 {number}")
        shown.terminal.write(f"line {number}\n")
    assert shown.terminal.screen[-1] == "web1 29"
    assert shown.terminal.text == [*(f"line {number}" for number in range(30)), "web1 29"]


def test_a_line_that_is_not_ended_yet_goes_on_where_it_was() -> None:
    shown = Shown()
    shown.terminal.write("one\nPress ")
    shown.draw("web1 restart")
    shown.terminal.write("Enter")
    assert shown.terminal.screen[:2] == ["one", "Press Enter"]


def test_what_is_at_the_foot_already_moves_up_for_it() -> None:
    shown = Shown()
    shown.terminal.write("\n".join(f"line {number}" for number in range(12)))
    shown.draw("web1", "web2", "web3")
    shown.terminal.write(" goes on\n")
    assert shown.terminal.text == [
        *(f"line {number}" for number in range(11)),
        "line 11 goes on",
        "web1",
        "web2",
        "web3",
    ]


def test_fewer_lines_make_room_and_none_leave_the_terminal_as_it_was() -> None:
    shown = Shown()
    shown.draw("web1", "web2", "web3")
    shown.draw("web3")
    assert shown.terminal.screen == [*[""] * 9, "web3"]
    shown.draw()
    assert (shown.terminal.screen, shown.terminal.margins) == ([""] * 10, (1, 10))


def test_closed_it_leaves_the_terminal_as_it_was() -> None:
    shown = Shown()
    shown.terminal.write("TASK [one]\n")
    shown.draw("web1", "web2")
    shown.close()
    shown.terminal.write("PLAY RECAP\n")
    assert (shown.terminal.text, shown.terminal.margins) == (["TASK [one]", "PLAY RECAP"], (1, 10))
    assert shown.panel.close() == ""


def test_it_takes_no_more_than_half_of_the_window() -> None:
    shown = Shown(height=6)
    shown.draw(*(f"web{number}" for number in range(9)))
    assert shown.terminal.screen == ["", "", "", "web0", "web1", "web2"]


@pytest.mark.parametrize("height", [0, 1])
def test_a_window_without_room_gets_nothing(height: int) -> None:
    assert Panel().draw(["web1"], height) == ""


def test_a_line_that_is_wider_than_the_window_does_not_wrap() -> None:
    shown = Shown()
    shown.draw("x" * 100, "web2")
    assert shown.terminal.screen[-2:] == ["x" * 40, "web2"]
    shown.terminal.write("y" * 50 + "\n")
    assert shown.terminal.screen[:2] == ["y" * 40, "y" * 10]


@pytest.mark.parametrize("height", [6, 16])
def test_a_window_that_changes_its_height_gets_it_at_its_new_foot(height: int) -> None:
    shown = Shown()
    shown.terminal.write("".join(f"line {number}\n" for number in range(7)))
    shown.draw("web1", "web2")
    shown.terminal.resize(height)
    shown.draw("web1", "web2")
    shown.terminal.write("line 7\n")
    assert shown.terminal.screen[-2:] == ["web1", "web2"]
    assert sum("web" in line for line in shown.terminal.text) == 2
    assert shown.terminal.text[-3] == "line 7"


@given(st.lists(st.one_of(st.integers(0, 7), st.text("ab\n", max_size=60)), max_size=20))
def test_whatever_is_written_is_there_in_its_order(steps: list[int | str]) -> None:
    shown, plain = Shown(), FakeTerminal()
    lines: list[str] = []
    for step in steps:
        if isinstance(step, int):
            lines = [f"web{number}" for number in range(step)]
            shown.draw(*lines)
        else:
            shown.terminal.write(step)
            plain.write(step)
    kept = lines[:5]
    assert shown.terminal.text == [*plain.text, *kept]
    assert shown.terminal.screen[10 - len(kept) :] == kept
    shown.close()
    assert (shown.terminal.text, shown.terminal.margins) == (plain.text, (1, 10))


@pytest.mark.parametrize(
    ("text", "width", "clipped"),
    [
        ("web1", 4, "web1"),
        ("web12", 4, "web…"),
        ("web1", 0, ""),
        ("日本語", 6, "日本語"),
        ("日本語x", 6, "日本…"),
        ("", 3, ""),
    ],
)
def test_a_text_is_clipped_by_the_columns_that_it_takes(text: str, width: int, clipped: str) -> None:
    assert clip(text, width) == clipped
    assert columns(clipped) <= max(width, 0)


def test_letters_that_are_put_over_others_take_no_column() -> None:
    assert columns("e\N{COMBINING ACUTE ACCENT}") == 1
