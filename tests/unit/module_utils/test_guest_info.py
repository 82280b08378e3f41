# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What keeps a guest from being managed, whatever it is, and that no guest keeps others from being looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils import _guest_facts
from ansible_collections.kvm.fleet.plugins.module_utils._clock import Deadline
from ansible_collections.kvm.fleet.plugins.module_utils._domain import DomainState
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    DomainBusy,
    DomainNotFound,
    HypervisorUnavailable,
    InvalidRequest,
)
from ansible_collections.kvm.fleet.plugins.module_utils._exec import RUNNER
from ansible_collections.kvm.fleet.plugins.module_utils._guest_files import MAX_FILE
from ansible_collections.kvm.fleet.plugins.module_utils._guest_info import (
    AgentState,
    GuestInfo,
    InfoOptions,
    look,
    look_at_guests,
)
from ansible_collections.kvm.fleet.plugins.module_utils._rpcs import RPCS
from tests.unit.fake_agent import NEVER, Call, Ending
from tests.unit.fake_clock import FakeClock
from tests.unit.fake_files import SYSTEMD, UNIT
from tests.unit.fake_hypervisor import FakeDomain, FakeHypervisor
from tests.unit.filtered_guest import filtered_guest

DEBIAN = b'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"\n'
ROCKY = b'ID=rocky\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.4"\n'
CONFINED = b"system_u:system_r:virt_qemu_ga_t:s0\0"
COMMANDS = InfoOptions(run_commands=True)


@pytest.fixture
def domain(hypervisor: FakeHypervisor) -> FakeDomain:
    return healthy(hypervisor.add("web1"))


def healthy(domain: FakeDomain) -> FakeDomain:
    domain.agent.files |= {
        _guest_facts.OS_RELEASE: DEBIAN,
        _guest_facts.INIT: b"systemd\n",
        _guest_facts.KERNEL: b"6.1.0-37-amd64\n",
        _guest_facts.AGENT: b"600 (qemu-ga) S 1 600 600 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 2 0 1200 8200 900",
        _guest_facts.BOOT: b"cpu 1 2 3\nbtime 1772330400\n",
    }
    return domain


def codes(found: GuestInfo) -> list[str]:
    assert found.manageable is (not found.problems)
    return [problem.error_code for problem in found.problems]


# --- a guest that is well ------------------------------------------------------------------------


def test_a_healthy_guest_is_looked_at_without_a_process(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    found = look(hypervisor, domain, InfoOptions())
    assert (found.state, found.agent, codes(found)) == ("running", AgentState.ANSWERING, [])
    assert (found.os_id, found.os_version, found.kernel_running, found.init) == (
        *("debian", "12", "6.1.0-37-amd64", "systemd"),
    )
    assert (found.selinux_mode, found.selinux_denies) == ("disabled", False)
    assert [(one.mountpoint, one.total, one.used) for one in found.file_systems or ()] == [("/", 1000, 400)]
    assert (found.reboot_required, found.failed_units, found.package_manager) == (None, None, None)
    assert domain.agent.calls == []
    assert domain.changes == []


def test_each_command_that_the_collection_needs_is_told_of(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    domain.agent.blocked.add("guest-get-fsinfo")
    domain.agent.unknown.add("guest-fsfreeze-thaw")
    found = look(hypervisor, domain, InfoOptions())
    assert set(found.rpcs) == {rpc.name for rpc in RPCS}
    assert found.rpcs["guest-exec"] is True
    assert found.rpcs["guest-get-fsinfo"] is False
    assert found.rpcs["guest-fsfreeze-thaw"] is False, "this agent does not know it"
    assert found.file_systems is None
    assert codes(found) == [], "a guest can be upgraded without"


def test_a_guest_that_is_frozen_is_said_to_be(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    domain.agent.frozen = True
    found = look(hypervisor, domain, InfoOptions())
    assert found.rpcs["guest-exec"] is False
    assert codes(found) == ["guest_frozen"]


TOLD = """\
file /etc/os-release ID=debian
file /proc/1/comm systemd
file /proc/sys/kernel/osrelease 6.1.0-37-amd64
missing /sys/fs/selinux/enforce
system id debian
system has apt-get
system has dpkg-query
reboot kernel 6.1.0-38-amd64
reboot running 6.1.0-37-amd64
units told
failed nginx.service
flock there
"""


def test_what_blocks_a_command_is_told_by_file_and_line(hypervisor: FakeHypervisor) -> None:
    domain = filtered_guest(
        hypervisor,
        {
            **SYSTEMD,
            UNIT: "[Service]\nExecStart=/usr/sbin/qemu-ga\n",
            "/etc/qemu/qemu-ga.conf": "[general]\nblock-rpcs=guest-exec\n",
        },
    )
    settings = look(hypervisor, domain, InfoOptions()).settings
    assert {rpc: (setting.path, setting.line) for rpc, setting in settings.items()} == {
        "guest-exec": ("/etc/qemu/qemu-ga.conf", 2)
    }
    domain.agent.files[UNIT] = b"[Service]\nExecStart=/bin/sh -c qemu-ga\n"
    assert look(hypervisor, domain, InfoOptions()).settings == {}


@pytest.mark.parametrize("content", [None, b"x" * (MAX_FILE + 1)])
def test_a_file_of_settings_that_cannot_be_read_is_no_problem_of_the_guests(
    hypervisor: FakeHypervisor, content: bytes | None
) -> None:
    conf = "/etc/qemu/qemu-ga.conf"
    unit = "[Service]\nExecStart=/usr/sbin/qemu-ga\n"
    domain = filtered_guest(hypervisor, {**SYSTEMD, UNIT: unit, conf: "[general]\nblock-rpcs=guest-get-fsinfo\n"})
    domain.agent.files[conf] = content
    found = look(hypervisor, domain, InfoOptions())
    assert (codes(found), found.settings) == ([], {})


def telling(text: str) -> Callable[[Call], Ending]:
    return lambda _call: Ending(stdout=text.encode())


def test_a_command_tells_the_rest(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    domain.agent.program = telling(TOLD)
    found = look(hypervisor, domain, COMMANDS)
    assert codes(found) == []
    assert (found.package_manager, found.failed_units) == ("apt", ("nginx.service",))
    assert (found.kernel_running, found.kernel_installed) == ("6.1.0-37-amd64", "6.1.0-38-amd64")
    assert found.reboot_required is True
    assert found.reboot_reasons == ("kernel 6.1.0-38-amd64 is installed, 6.1.0-37-amd64 runs",)
    assert len(domain.agent.calls) == 1
    assert "guest-file-open" not in domain.agent.requests


# --- what is in the way --------------------------------------------------------------------------


def off(domain: FakeDomain) -> None:
    domain.be(DomainState.SHUT_OFF)


def paused(domain: FakeDomain) -> None:
    domain.be(DomainState.PAUSED)


def crashed(domain: FakeDomain) -> None:
    domain.be(DomainState.CRASHED)


def migrating(domain: FakeDomain) -> None:
    domain.migrating = True


def arriving(domain: FakeDomain) -> None:
    domain.be(DomainState.PAUSED)
    domain.migrating = True


def without_channel(domain: FakeDomain) -> None:
    domain.agent_channel = False


def off_without_channel(domain: FakeDomain) -> None:
    off(domain)
    without_channel(domain)


def without_agent(domain: FakeDomain) -> None:
    domain.agent.silent = True  # and so the channel is disconnected


def blocked(domain: FakeDomain) -> None:
    domain.agent.blocked |= {"guest-exec", "guest-file-open"}


def telling_nothing(domain: FakeDomain) -> None:
    domain.agent.blocked.add("guest-info")


class Obstacle(NamedTuple):
    """What is arranged, and what has to be told of it."""

    arrange: Callable[[FakeDomain], None]
    state: str
    agent: AgentState
    problems: list[str]


@pytest.mark.parametrize(
    "case",
    [
        Obstacle(off, "shut_off", AgentState.NOT_RUNNING, ["domain_not_running"]),
        Obstacle(paused, "paused", AgentState.NOT_RUNNING, ["domain_not_running"]),
        Obstacle(crashed, "crashed", AgentState.NOT_RUNNING, ["domain_not_running"]),
        Obstacle(migrating, "migrating", AgentState.ANSWERING, ["domain_busy"]),
        Obstacle(arriving, "migrating", AgentState.NOT_RUNNING, ["domain_busy"]),
        Obstacle(without_channel, "running", AgentState.ABSENT, ["no_agent_channel"]),
        Obstacle(off_without_channel, "shut_off", AgentState.ABSENT, ["domain_not_running", "no_agent_channel"]),
        Obstacle(without_agent, "running", AgentState.DISCONNECTED, ["agent_silent"]),
        Obstacle(blocked, "running", AgentState.ANSWERING, ["agent_command_blocked"]),
        Obstacle(telling_nothing, "running", AgentState.ANSWERING, ["agent_command_blocked"]),
    ],
    ids=lambda case: case.arrange.__name__,
)
@pytest.mark.parametrize("options", [InfoOptions(), COMMANDS], ids=["files", "commands"])
def test_what_is_in_the_way_is_said_with_its_remedy(
    hypervisor: FakeHypervisor, domain: FakeDomain, case: Obstacle, options: InfoOptions
) -> None:
    domain.agent.program = telling(TOLD)
    case.arrange(domain)
    found = look(hypervisor, domain, options)
    assert (found.state, found.agent, codes(found)) == (case.state, case.agent, case.problems)
    assert all(problem.remedy for problem in found.problems)


def test_an_agent_without_files_still_tells_its_system(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    blocked(domain)
    found = look(hypervisor, domain, InfoOptions())
    assert (found.os_id, found.os_name) == ("debian", "Debian GNU/Linux 12 (bookworm)")
    assert (found.os_version, found.kernel_running) == ("12", "6.1.0-37-amd64")
    assert (found.init, found.agent_since, found.selinux_mode) == (None, None, None)


@pytest.mark.parametrize(
    ("files", "judged"),
    [
        ((b"1", CONFINED), ("enforcing", True, ["selinux_denied"])),
        ((b"1", b"system_u:system_r:virt_qemu_ga_unconfined_t:s0\0"), ("enforcing", False, [])),
        ((b"1", None), ("enforcing", None, [])),
        ((b"0", CONFINED), ("permissive", False, [])),
        ((b"?", CONFINED), (None, None, [])),
        ((None, CONFINED), (None, None, [])),
    ],
)
def test_selinux_is_judged_by_the_agents_type(
    hypervisor: FakeHypervisor,
    domain: FakeDomain,
    files: tuple[bytes | None, bytes | None],
    judged: tuple[str | None, bool | None, list[str]],
) -> None:
    domain.agent.files |= dict(zip((_guest_facts.ENFORCE, _guest_facts.CONTEXT), files, strict=True))
    found = look(hypervisor, domain, InfoOptions())
    assert (found.selinux_mode, found.selinux_denies, codes(found)) == judged


@pytest.mark.parametrize("readable", [True, False])
def test_where_the_labelled_runner_is_there_only_a_command_tells_what_selinux_denies(
    hypervisor: FakeHypervisor, domain: FakeDomain, readable: bool
) -> None:
    runner = b"#!/bin/sh\n" if readable else None
    domain.agent.files |= {_guest_facts.ENFORCE: b"1", _guest_facts.CONTEXT: CONFINED, RUNNER: runner}
    found = look(hypervisor, domain, InfoOptions())
    assert (found.selinux_mode, found.selinux_denies, codes(found)) == ("enforcing", None, [])


ENFORCING = """\
file /sys/fs/selinux/enforce 1
file /proc/self/attr/current system_u:system_r:virt_qemu_ga_t:s0
system id rocky
system like rhel
system enforcing 1
system context system_u:system_r:virt_qemu_ga_t:s0
flock there
"""


@pytest.mark.parametrize(
    ("programs", "denies", "problems"),
    [
        ("system denied dnf\nsystem denied rpm\n", True, ["selinux_denied"]),
        ("system has dnf\nsystem has rpm\n", False, []),
        ("", True, ["package_manager_unknown"]),
    ],
)
def test_selinux_is_judged_by_what_may_really_be_run(
    hypervisor: FakeHypervisor, domain: FakeDomain, programs: str, denies: bool, problems: list[str]
) -> None:
    domain.agent.program = telling(ENFORCING + programs)
    found = look(hypervisor, domain, COMMANDS)
    assert (found.selinux_mode, found.selinux_denies, codes(found)) == ("enforcing", denies, problems)


def test_a_guest_without_flock_cannot_be_upgraded(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    domain.agent.program = telling(TOLD.replace("flock there\n", ""))
    assert codes(look(hypervisor, domain, COMMANDS)) == ["guest_unsupported"]


# --- guests that are slow, broken or hostile -----------------------------------------------------


def test_an_agent_that_hangs_is_told_from_none(
    hypervisor: FakeHypervisor, domain: FakeDomain, clock: FakeClock
) -> None:
    domain.agent.delay = float("inf")
    deadline = Deadline(clock, 1000)
    found = look(hypervisor, domain, InfoOptions(timeout=10))
    assert (found.state, found.agent, codes(found)) == ("running", AgentState.SILENT, ["agent_silent"])
    assert deadline.elapsed <= 11


def test_a_slow_guest_is_given_up_at_its_deadline_and_keeps_what_it_told(
    hypervisor: FakeHypervisor, domain: FakeDomain, clock: FakeClock
) -> None:
    domain.agent.delay = 1
    deadline = Deadline(clock, 1000)
    found = look(hypervisor, domain, InfoOptions(timeout=7))
    assert deadline.elapsed <= 8
    assert (found.agent, codes(found)) == (AgentState.ANSWERING, ["agent_silent"])
    assert found.problems[0].message == "the guest agent has not told everything within 7 s"
    assert found.os_name == "Debian GNU/Linux 12 (bookworm)"
    assert (found.init, found.selinux_mode) == (None, None)


def test_what_was_read_before_the_agent_fell_silent_is_kept(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    domain.agent.delay = 1
    found = look(hypervisor, domain, InfoOptions(timeout=12))
    assert (found.init, found.agent_since, codes(found)) == ("systemd", None, ["agent_silent"])


def test_a_command_that_does_not_end_is_ended(hypervisor: FakeHypervisor, domain: FakeDomain, clock: FakeClock) -> None:
    domain.agent.program = lambda call: Ending() if "kill -TERM" in " ".join(call.argv) else NEVER
    deadline = Deadline(clock, 1000)
    found = look(hypervisor, domain, InfoOptions(run_commands=True, timeout=20))
    assert codes(found) == ["command_timeout"]
    assert found.problems[0].evidence["ended"] is True
    assert deadline.elapsed < 30


@pytest.mark.parametrize(
    ("command", "reply", "agent"),
    [
        ("guest-info", [], AgentState.GARBLED),
        ("guest-info", {"version": 7}, AgentState.GARBLED),
        ("guest-get-osinfo", "Debian", AgentState.ANSWERING),
        ("guest-get-fsinfo", [7], AgentState.ANSWERING),
        ("guest-file-open", "x", AgentState.ANSWERING),
        ("guest-file-read", {"buf-b64": "*"}, AgentState.ANSWERING),
    ],
)
def test_an_answer_outside_the_protocol_is_that_guests_problem(
    hypervisor: FakeHypervisor, domain: FakeDomain, command: str, reply: object, agent: AgentState
) -> None:
    domain.agent.made_up[command] = reply
    found = look(hypervisor, domain, InfoOptions())
    assert (found.agent, codes(found)) == (agent, ["agent_protocol_error"])


def test_what_a_hostile_guest_says_is_cut_to_size(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    flood = "\x1b[2J" + "x" * 100_000
    domain.agent.made_up = {
        "guest-get-osinfo": {"id": flood, "pretty-name": flood, "version-id": flood, "kernel-release": flood},
        "guest-get-fsinfo": [{"mountpoint": flood, "type": flood}] * 1000,
    }
    domain.agent.files = {_guest_facts.INIT: flood.encode()}
    found = look(hypervisor, domain, InfoOptions())
    texts = [found.os_id, found.os_name, found.os_version, found.kernel_running, found.init]
    texts += [text for one in found.file_systems or () for text in (one.mountpoint, one.type)]
    assert len(texts) == 5 + 2 * _guest_facts.MOST_ENTRIES
    assert all(text and text.isprintable() and len(text) <= _guest_facts.LONGEST_TEXT for text in texts)


# --- several guests ------------------------------------------------------------------------------


def test_no_guest_holds_up_the_others(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    busy = hypervisor.add("a busy")
    busy.faults["is_migrating"] = DomainBusy("another job holds the domain", remedy="Wait.")
    hypervisor.add("b hung").agent.delay = float("inf")
    hypervisor.add("c off", DomainState.SHUT_OFF)
    hypervisor.add("d gone").faults["state"] = DomainNotFound("it is gone", remedy="")
    hypervisor.add("e hostile").agent.made_up["guest-info"] = {}
    found = look_at_guests(hypervisor, None, InfoOptions())
    assert [(guest.name, codes(guest)) for guest in found] == [
        ("a busy", ["domain_busy"]),
        ("b hung", ["agent_silent"]),
        ("c off", ["domain_not_running"]),
        ("e hostile", ["agent_protocol_error"]),
        (domain.name, []),
    ]
    assert (found[0].state, found[0].agent) == ("running", AgentState.UNKNOWN)


def test_hundreds_of_guests_without_an_agent_are_not_waited_for(hypervisor: FakeHypervisor, clock: FakeClock) -> None:
    for number in range(300):
        hypervisor.add(f"web{number}").agent.silent = True
    deadline = Deadline(clock, 1000)
    assert {guest.agent for guest in look_at_guests(hypervisor, None, InfoOptions())} == {AgentState.DISCONNECTED}
    assert deadline.elapsed == 0


def test_named_guests_come_in_the_order_of_their_names(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    hypervisor.add("a")
    names = [domain.name, "a"]
    assert [guest.name for guest in look_at_guests(hypervisor, names, InfoOptions())] == names


@pytest.mark.parametrize("error", [DomainNotFound("it is gone", remedy=""), HypervisorUnavailable("away", remedy="")])
def test_a_guest_that_was_asked_for_is_never_left_out(
    hypervisor: FakeHypervisor, domain: FakeDomain, error: DomainNotFound | HypervisorUnavailable
) -> None:
    domain.faults["state"] = error
    with pytest.raises(type(error)):
        look_at_guests(hypervisor, [domain.name], InfoOptions())
    with pytest.raises(DomainNotFound):
        look_at_guests(hypervisor, ["no such"], InfoOptions())


def test_a_libvirt_that_is_away_hides_no_guest(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    domain.faults["state"] = HypervisorUnavailable("away", remedy="")
    with pytest.raises(HypervisorUnavailable):
        look_at_guests(hypervisor, None, InfoOptions())


def test_a_timeout_that_cannot_be_meant_is_refused(hypervisor: FakeHypervisor) -> None:
    with pytest.raises(InvalidRequest):
        look_at_guests(hypervisor, None, InfoOptions(timeout=0))
