# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Batch sizes: what Ansible would misunderstand is refused before it starts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvm.fleet.plugins.plugin_utils._batches import BatchError, check_sizes


@pytest.mark.parametrize(
    ("sizes", "checked"),
    [
        (1, ["1"]),
        ("1", ["1"]),
        ("25%", ["25%"]),
        ("100%", ["100%"]),
        ("1, 5,50%", ["1", "5", "50%"]),
        ([1, "5", "50%"], ["1", "5", "50%"]),
        ("007", ["007"]),
    ],
)
def test_numbers_and_percentages_are_passed_on(sizes: object, checked: list[str]) -> None:
    assert check_sizes(sizes) == checked


@pytest.mark.parametrize(
    "sizes",
    [0, "0", "0%", "00", "101%", -1, "-1", "", "a", "1.5", 1.5, "1 0", "%", "10 %", None, True, [], [1, 0], "1,,2", {}],
)
def test_what_ansible_would_take_for_something_else_is_refused(sizes: object) -> None:
    with pytest.raises(BatchError, match=r"\Afleet_batch: .* is no batch size; it can be 1 or more guests"):
        check_sizes(sizes)


@given(st.integers(1, 10**6))
def test_every_positive_number_is_a_size(number: int) -> None:
    assert check_sizes(number) == [str(number)]
