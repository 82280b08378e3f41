# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How to upgrade: what cannot be meant, and what is to be left alone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._errors import AgentSilent, InvalidRequest
from ansible_collections.kvm.fleet.plugins.module_utils._manager import SHORT_TIMEOUT, Shell, UpgradeOptions
from tests.unit.fake_agent import NEVER, Ending, FakeAgent, in_turn
from tests.unit.fake_clock import FakeClock


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"timeout": 0}, "a timeout of 0 s, or 3 retries 30 s apart, cannot be meant"),
        ({"timeout": -1}, "a timeout of -1 s, or 3 retries 30 s apart, cannot be meant"),
        ({"lock_retries": -1}, "a timeout of 1800 s, or -1 retries 30 s apart, cannot be meant"),
        ({"lock_delay": -0.5}, "a timeout of 1800 s, or 3 retries -0.5 s apart, cannot be meant"),
        ({"interval": 0}, "an interval of 0 s cannot be meant"),
        ({"interval": -5}, "an interval of -5 s cannot be meant"),
        ({"exclude": ("",)}, "'' in exclude is no package's name"),
        ({"exclude": ("bash", "-o")}, "'-o' in exclude is no package's name"),
        ({"exclude": ("a b",)}, "'a b' in exclude is no package's name"),
        ({"exclude": ("a\n", "bash")}, "'a\\n' in exclude is no package's name"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        UpgradeOptions(**options).check()
    assert raised.value.message == problem
    assert raised.value.remedy


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lock_retries": 0, "lock_delay": 0},
        {"timeout": 1, "interval": 3600},
        {"exclude": ("linux-image-*", "lib?", "[ab]c", "g++-12", "$(id)", "'")},
    ],
)
def test_what_can_be_meant_is_not(options: dict[str, Any]) -> None:
    UpgradeOptions(**options).check()


@given(retries=st.integers(0, 100), delay=st.integers(0, 3600))
def test_a_lock_is_waited_for_for_all_tries_together(retries: int, delay: int) -> None:
    assert UpgradeOptions(lock_retries=retries, lock_delay=delay).lock_timeout == retries * delay


@pytest.mark.parametrize(
    ("patterns", "excluded", "not_excluded"),
    [
        ((), [], ["bash", ""]),
        (("bash",), ["bash"], ["bash-completion", "rbash", "Bash"]),
        (("linux-image-*",), ["linux-image-6.1", "linux-image-"], ["linux-image", "linux-headers-6.1"]),
        (("lib?", "*-doc"), ["libc", "x-doc"], ["lib", "libcc", "x-docs"]),
        (("lib[ab]",), ["liba"], ["libc", "lib[ab]"]),
        (("g++*",), ["g++", "g++-12"], ["gg"]),
        (("libstdc.",), ["libstdc."], ["libstdcx"]),
    ],
)
def test_a_pattern_means_what_it_means_to_a_shell(
    patterns: tuple[str, ...], excluded: list[str], not_excluded: list[str]
) -> None:
    options = UpgradeOptions(exclude=patterns)
    assert [name for name in [*excluded, *not_excluded] if options.excludes(name)] == excluded


@given(st.lists(st.text()), st.text())
def test_whatever_is_excluded_some_name_is_or_is_not(patterns: list[str], name: str) -> None:
    assert UpgradeOptions(exclude=tuple(patterns)).excludes(name) in (True, False)


# --- short commands ------------------------------------------------------------------------------


def test_a_short_command_has_its_environment_and_its_return_code_is_not_minded(clock: FakeClock) -> None:
    agent = FakeAgent(clock, in_turn([Ending(3, stdout=b"a"), Ending(0, stdout=b"b")]))
    shell = Shell(GuestAgent(agent, clock), {"LC_ALL": "C"})
    assert (shell.run(["apt-get", "$(id)"]).exit_code, shell.script("echo", "a b").stdout) == (3, "b")
    assert [call.command for call in agent.calls] == [
        ["apt-get", "$(id)"],
        ["/bin/sh", "-c", "echo", "sh", "a b"],
    ]
    assert all(call.argv[6:8] == ["env", "LC_ALL=C"] for call in agent.calls)


def test_a_short_command_is_run_again_once_the_agent_is_back(clock: FakeClock) -> None:
    agent = FakeAgent(clock, in_turn([NEVER, Ending(0, stdout=b"done")]))
    clock.after(3, agent.restart)
    shell = Shell(GuestAgent(agent, clock, patience=60), {})
    assert shell.run(["apt-get", "update"]).stdout == "done"
    assert len(agent.calls) == 2


def test_a_short_command_does_not_wait_for_ever(clock: FakeClock) -> None:
    agent = FakeAgent(clock)
    agent.silent = True
    with pytest.raises(AgentSilent):
        Shell(GuestAgent(agent, clock, patience=60), {}).run(["true"])
    assert clock.monotonic() <= 1000 + 60 + SHORT_TIMEOUT
