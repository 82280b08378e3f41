# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a guest says of itself: parsed strictly, whatever it says, and had in two ways that agree."""

from __future__ import annotations

import os
import subprocess
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvm.fleet.plugins.module_utils import _guest_facts
from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._clock import SystemClock
from ansible_collections.kvm.fleet.plugins.module_utils._exec import RUNNER
from ansible_collections.kvm.fleet.plugins.module_utils._guest_facts import (
    AGENT,
    BOOT,
    CONTEXT,
    ENFORCE,
    INIT,
    KERNEL,
    LONGEST_TEXT,
    OS_RELEASE,
    REBOOT_FLAG,
    REBOOT_NEEDED,
    REBOOT_PACKAGES,
    VENDORS_OS_RELEASE,
    parse_commands,
    parse_enforce,
    parse_os_release,
    parse_reboot_files,
    parse_since,
    parse_word,
    plain,
    read_files,
    run_commands,
)
from tests.unit.fake_agent import FakeAgent
from tests.unit.fake_clock import FakeClock
from tests.unit.host_agent import HostAgent

ROCKY = """\
NAME="Rocky Linux"
VERSION="9.4 (Blue Onyx)"
ID="rocky"
ID_LIKE="rhel centos fedora"
VERSION_ID="9.4"
PRETTY_NAME="Rocky Linux 9.4 (Blue Onyx)"
"""


def test_an_os_release_is_read() -> None:
    told = parse_os_release(ROCKY)
    assert (told["ID"], told["ID_LIKE"], told["VERSION_ID"]) == ("rocky", "rhel centos fedora", "9.4")
    assert told["PRETTY_NAME"] == "Rocky Linux 9.4 (Blue Onyx)"


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("ID=debian", "debian"),
        ("ID='debian'", "debian"),
        ('ID="de\\"bian"', 'de"bian'),
        ("  ID=debian  ", "debian"),
        ("ID=", ""),
        ("ID=$(reboot)", "$(reboot)"),
        ('ID="\x1b[2J{{ 1 }}"', "[2J{{ 1 }}"),
        ('ID="debian', None),
        ("# ID=debian", None),
        ("id=debian", None),
        ("ID = debian", None),
        ("ID=" + "x" * 2000, None),
        ("ID=" + "x" * 1000, "x" * LONGEST_TEXT),
    ],
)
def test_a_setting_of_an_os_release_is_text_and_no_more(line: str, value: str | None) -> None:
    assert parse_os_release(f"NAME=x\n{line}\n").get("ID") == value


@given(st.text(max_size=600))
def test_no_text_of_a_guest_breaks_a_line_or_moves_a_cursor(text: str) -> None:
    for told in (plain(text), *parse_os_release(text).values(), parse_word(text) or ""):
        assert told == "" or told.isprintable()
        assert len(told) <= LONGEST_TEXT


@pytest.mark.parametrize(
    ("text", "word"), [("systemd\n", "systemd"), ("a b\nc", "a b"), ("", None), ("\n", None), (None, None)]
)
def test_a_word_is_the_first_line(text: str | None, word: str | None) -> None:
    assert parse_word(text) == word


@pytest.mark.parametrize(
    ("text", "enforces"),
    [("1", True), ("0\n", False), ("", None), (None, None), ("2", None), ("11", None), ("yes", None)],
)
def test_selinux_enforces_or_it_does_not_or_nobody_knows(text: str | None, enforces: bool | None) -> None:
    assert parse_enforce(text) is enforces


STAT = "600 (qemu ) S (ga) S 1 600 600 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 2 0 1234 8200 900"


@pytest.mark.parametrize(
    ("agent", "boot", "since"),
    [
        (STAT, "cpu 1\nbtime 1772330400\nx", datetime.fromisoformat("2026-03-01T02:00:12.340000+00:00")),
        (STAT, "cpu 1\n", None),
        (STAT, None, None),
        (None, "btime 1772330400\n", None),
        ("", "btime 1772330400\n", None),
        ("600 (x) S", "btime 1772330400\n", None),
        (STAT.replace("1234", "soon"), "btime 1772330400\n", None),
        (STAT.replace("1234", "9" * 900), "btime 1772330400\n", None),
        (STAT.replace("1234", "9" * 20), "btime 1772330400\n", None),
        (STAT, f"btime {'9' * 20}\n", None),
        (STAT, "btime -1\n", None),
    ],
)
def test_since_when_the_agent_runs(agent: str | None, boot: str | None, since: datetime | None) -> None:
    assert parse_since(agent, boot) == since


@pytest.mark.parametrize(
    ("files", "reasons"),
    [
        ({}, None),
        ({REBOOT_FLAG: None, REBOOT_NEEDED: None}, None),
        ({REBOOT_FLAG: ""}, ("/run/reboot-required",)),
        (
            {REBOOT_FLAG: "*** restart ***", REBOOT_PACKAGES: "libc6\nlibc6\nlinux\x1b-base\n"},
            ("/run/reboot-required (libc6, linux-base)",),
        ),
        ({REBOOT_FLAG: None, REBOOT_NEEDED: ""}, ("/run/reboot-needed",)),
    ],
)
def test_a_flag_asks_for_a_reboot_and_none_proves_nothing(
    files: dict[str, str | None], reasons: tuple[str, ...] | None
) -> None:
    state = parse_reboot_files(files)
    assert (state.reasons if state else None) == reasons


# --- by the agent's own commands -----------------------------------------------------------------


def files_of(agent: FakeAgent, clock: FakeClock) -> dict[str, str | None]:
    files: dict[str, str | None] = {}
    read_files(GuestAgent(agent, clock), files)
    return files


def test_files_are_read_without_a_process(clock: FakeClock) -> None:
    agent = FakeAgent(clock)
    agent.files |= {OS_RELEASE: ROCKY.encode(), ENFORCE: b"1", CONTEXT: b"system_u:system_r:virt_qemu_ga_t:s0\0"}
    agent.files |= {INIT: b"systemd\n", KERNEL: b"5.14.0\n", AGENT: STAT.encode(), BOOT: b"btime 7\n"}
    agent.files |= {REBOOT_FLAG: b"", REBOOT_PACKAGES: b"\xff\n"}
    assert files_of(agent, clock) == {
        OS_RELEASE: ROCKY,
        INIT: "systemd\n",
        KERNEL: "5.14.0\n",
        AGENT: STAT,
        BOOT: "btime 7\n",
        ENFORCE: "1",
        CONTEXT: "system_u:system_r:virt_qemu_ga_t:s0\0",
        RUNNER: None,
        REBOOT_FLAG: "",
        REBOOT_PACKAGES: "\ufffd\n",
        REBOOT_NEEDED: None,
    }
    assert agent.calls == []
    assert agent.handles == {}


def test_what_is_not_there_is_told_from_what_cannot_be_read(clock: FakeClock) -> None:
    agent = FakeAgent(clock)
    agent.files |= {OS_RELEASE: None, VENDORS_OS_RELEASE: b"ID=x\n", INIT: b"x" * 2_000_000, BOOT: None}
    files = files_of(agent, clock)
    assert files == {
        VENDORS_OS_RELEASE: "ID=x\n",
        **dict.fromkeys([KERNEL, AGENT, ENFORCE, REBOOT_FLAG, REBOOT_NEEDED]),
    }


# --- by one command ------------------------------------------------------------------------------

TOLD = f"""\
file {OS_RELEASE} ID=rocky
file {OS_RELEASE} ID_LIKE="rhel fedora"
file {OS_RELEASE}
missing {VENDORS_OS_RELEASE}
file {INIT} systemd
file {KERNEL} 5.14.0-427.el9.x86_64
file {ENFORCE} 0
file {BOOT} btime 7
system id rocky
system like rhel fedora
system has dnf
system has rpm
system enforcing 0
system context system_u:system_r:virt_qemu_ga_t:s0
reboot running 5.14.0-427.el9.x86_64
reboot kernel 0-rescue-0123456789abcdef
reboot kernel 5.14.0-427.el9.x86_64
reboot kernel 5.14.0-503.el9.x86_64
units told
failed nginx.service
failed nginx.service
failed \x1b[2J.service
flock there
nonsense
"""


def test_what_the_command_prints_is_read() -> None:
    facts = parse_commands(TOLD.splitlines())
    assert facts.files == {
        OS_RELEASE: 'ID=rocky\nID_LIKE="rhel fedora"\n\n',
        VENDORS_OS_RELEASE: None,
        INIT: "systemd\n",
        KERNEL: "5.14.0-427.el9.x86_64\n",
        ENFORCE: "0\n",
        BOOT: "btime 7\n",
    }
    assert facts.system.families == ("rocky", "rhel", "fedora")
    assert facts.reboot.reasons == ("kernel 5.14.0-503.el9.x86_64 is installed, 5.14.0-427.el9.x86_64 runs",)
    assert facts.kernel_installed == "5.14.0-503.el9.x86_64"
    assert facts.failed_units == ("nginx.service", "[2J.service")
    assert facts.has_flock


def test_a_guest_that_tells_nothing() -> None:
    facts = parse_commands([])
    assert (facts.files, facts.failed_units, facts.has_flock, facts.kernel_installed) == ({}, None, False, None)
    assert not facts.reboot.required


@given(st.lists(st.text(max_size=60), max_size=30))
def test_whatever_a_guest_prints_is_read(lines: list[str]) -> None:
    sections = ("file", "missing", "system", "reboot", "failed", "units")
    for section in ("", *(f"{name} " for name in sections)):
        facts = parse_commands([f"{section}{line}" for line in lines])
        assert all(unit == "" or unit.isprintable() for unit in facts.failed_units or ())


def test_a_flood_of_lines_is_read_in_no_time() -> None:
    """A megabyte, which is what a command may print."""
    facts = parse_commands([f"file {INIT} x"] * 100_000)
    assert parse_word(facts.files[INIT]) == "x"
    units = parse_commands(["units told", *(f"failed {number}.service" for number in range(100_000))]).failed_units
    assert len(units or ()) == _guest_facts.MOST_ENTRIES


def text_of(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")


@pytest.mark.parametrize("shell", ["dash", "bash --posix"])
def test_the_command_tells_of_this_machine(shell: str) -> None:
    done = subprocess.run(
        [*shell.split(), "-c", _guest_facts._LOOK, "sh"], capture_output=True, encoding="utf-8", check=True, timeout=60
    )
    files = parse_commands(done.stdout.splitlines()).files
    assert parse_os_release(files[OS_RELEASE] or "") == parse_os_release(text_of(OS_RELEASE))
    assert parse_word(files[KERNEL]) == os.uname().release
    assert parse_word(files[INIT])
    assert parse_since(files[AGENT], files[BOOT])
    assert files[ENFORCE] is None


def test_both_ways_tell_the_same(host: HostAgent) -> None:
    """The command's parent is the agent; of this one, that is the process of the tests."""
    facts = run_commands(GuestAgent(host, SystemClock()), timeout=60)
    assert parse_since(facts.files[AGENT], facts.files[BOOT]) == parse_since(
        text_of(f"/proc/{os.getpid()}/stat"), text_of(BOOT)
    )
