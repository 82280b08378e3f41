# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the role rescue refuses before it takes a guest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.roles.stage import play

if TYPE_CHECKING:
    from pathlib import Path

RUNNING: dict[str, Any] = {"domains": [{"state": "running", "run": None, "drift": {"state": "none", "reasons": []}}]}


@pytest.mark.parametrize(
    ("guests", "code", "words"),
    [
        (["web1", "web2", "web3"], "invalid_request", "this run is about 3: web1, web2, web3"),
        (["web1"], "no_terminal", "has no terminal"),
    ],
)
def test_a_shell_is_refused_for_several_guests_and_for_nobody(
    tmp_path: Path, guests: list[str], code: str, words: str
) -> None:
    played = play(tmp_path, "rescue", {"domain_info": [RUNNING]}, guests=guests, variables={"rescue_shell": True})
    assert played.exit_code != 0, played.output
    assert (played.result["outcome"], played.result["error"]["error_code"]) == ("refused", code)
    assert words in played.result["error"]["msg"]
    assert {call["module"] for call in played.calls} == {"domain_info"}, "it has only been looked at"
    assert len(played.calls) == 2 * len(guests)


def test_without_a_shell_as_many_guests_are_rescued_as_are_named(tmp_path: Path) -> None:
    played = play(tmp_path, "rescue", {"domain_info": [RUNNING]}, "--check", guests=["web1", "web2"])
    assert {call["name"] for call in played.asked("guest_lease")} == {"web1", "web2"}, played.output
