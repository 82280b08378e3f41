# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Batch sizes: what Ansible would misunderstand is refused before it starts."""

from __future__ import annotations

import pytest
from ansible.utils.helpers import pct_to_int
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvm.fleet.plugins.plugin_utils._batches import (
    BatchError,
    check_number,
    check_sizes,
    count_of,
)


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


@given(st.integers(1, 100), st.integers(1, 5000))
def test_a_percentage_is_what_ansible_takes_it_for(number: int, total: int) -> None:
    assert count_of(f"{number}%", total) == pct_to_int(f"{number}%", total)


def test_a_number_of_guests_is_itself() -> None:
    assert count_of("007", 3) == 7


@pytest.mark.parametrize("value", [2, "2", "02"])
def test_a_number_is_read_however_it_was_given(value: object) -> None:
    assert check_number("fleet_canary", value, 0) == 2


@pytest.mark.parametrize("value", [0, "0", -1, "1.5", 1.5, "2%", "", None, True, "two", [1]])
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(BatchError, match=r"\Afleet_per_hypervisor: .* is no number of guests; it can be 1 or more\Z"):
        check_number("fleet_per_hypervisor", value, 1)
