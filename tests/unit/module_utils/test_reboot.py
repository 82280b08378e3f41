# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a guest asks for a reboot."""

from __future__ import annotations

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._errors import CommandKilled
from ansible_collections.kvm.fleet.plugins.module_utils._reboot import RebootState, parse_reboot_facts, reboot_state
from tests.unit.fake_agent import Ending, FakeAgent, in_turn
from tests.unit.fake_clock import FakeClock


@pytest.mark.parametrize(
    ("lines", "reasons"),
    [
        ([], ()),
        (["running 6.1.0-35", "kernel 6.1.0-35"], ()),
        (["running 6.1.0-35", "kernel 6.1.0-37"], ("kernel 6.1.0-37 is installed, 6.1.0-35 runs",)),
        (["running 6.1.0-35"], ()),
        (["kernel 6.1.0-37"], ()),
        (["running 6.1.0-35-amd64", "kernel 6.1.0-35-amd64", "kernel 6.1.0-37-cloud-amd64"], ()),
        (
            ["running 6.1.0-35-amd64", "kernel 6.1.0-35-amd64", "kernel 6.1.0-37-amd64"],
            ("kernel 6.1.0-37-amd64 is installed, 6.1.0-35-amd64 runs",),
        ),
        (["running 6.12.9+bpo-amd64", "kernel 6.1.0-35-amd64", "kernel 6.12.9+bpo-amd64"], ()),
        (["flag"], ("/run/reboot-required",)),
        (
            ["flag", "package linux-base", "package dbus", "package linux-base"],
            ("/run/reboot-required (linux-base, dbus)",),
        ),
        (["package dbus"], ()),
        (
            ["flag", "running 1", "kernel 2"],
            ("/run/reboot-required", "kernel 2 is installed, 1 runs"),
        ),
        (["nonsense", "flagged", ""], ()),
    ],
)
def test_a_reboot_is_asked_for_by_the_flag_or_by_a_newer_kernel(lines: list[str], reasons: tuple[str, ...]) -> None:
    assert parse_reboot_facts(lines) == RebootState(bool(reasons), reasons)


def test_the_guest_is_asked(clock: FakeClock) -> None:
    agent = FakeAgent(clock, in_turn([Ending(stdout=b"flag\npackage dbus\nrunning 1\nnewest 1\n")]))
    assert reboot_state(GuestAgent(agent, clock)) == RebootState(True, ("/run/reboot-required (dbus)",))


def test_a_guest_that_could_not_answer_is_not_taken_for_one_that_needs_none(clock: FakeClock) -> None:
    agent = FakeAgent(clock, in_turn([Ending(None, signal=9)]))
    with pytest.raises(CommandKilled):
        reboot_state(GuestAgent(agent, clock))
