# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Modules from their arguments to their result, on a hypervisor with a memory: check mode, real runs and errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import yaml

from ansible_collections.kvm.fleet.plugins.module_utils import _runner
from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._domain import DomainState
from ansible_collections.kvm.fleet.plugins.module_utils._errors import CommandFailed
from ansible_collections.kvm.fleet.plugins.module_utils._job import JobLook, JobState
from ansible_collections.kvm.fleet.plugins.module_utils._packages import PackageChange
from ansible_collections.kvm.fleet.plugins.module_utils._reboot import RebootState
from ansible_collections.kvm.fleet.plugins.module_utils._snapshot_xml import STAMP
from ansible_collections.kvm.fleet.plugins.modules import guest_info, guest_upgrade
from tests.unit.fake_agent import Call, Ending
from tests.unit.fake_hypervisor import EMULATOR, FakeDomain, FakeHypervisor
from tests.unit.plugins.conftest import Run
from tests.unit.upgrading_guest import UpgradingGuest

# --- check mode, of every module that changes anything -------------------------------------------


def with_apt(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    domain.agent.program = UpgradingGuest(hypervisor.clock).agent.program


def with_a_shell(_hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    domain.agent.program = lambda call: Ending(0 if call.command[0] == "touch" else 1)


def with_a_snapshot(_hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    domain.add_snapshot("old", f"{STAMP} x")


def switched_off(_hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    domain.be(DomainState.SHUT_OFF)


def without_a_channel(_hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    domain.agent_channel, domain.serial_bus = False, True


def as_it_is(_hypervisor: FakeHypervisor, _domain: FakeDomain) -> None:
    pass


AWAY = {"strategy": "migrate", "destinations": ["qemu+tls://there/system"], "storage": "trusted", "come_back": True}


def with_another_hypervisor(hypervisor: FakeHypervisor, _domain: FakeDomain) -> None:
    hypervisor.beside("qemu+tls://there/system")


class Change(NamedTuple):
    """A task that changes something. One that ``settles`` finds nothing to do the second time."""

    module: str
    arguments: dict[str, Any]
    arrange: Callable[[FakeHypervisor, FakeDomain], None]
    settles: bool


CHANGES = [
    Change("domain_channel", {}, without_a_channel, settles=True),
    Change("domain_power", {"state": "restarted"}, as_it_is, settles=False),
    Change("domain_power", {"state": "restarted", "strategy": "save_restore"}, as_it_is, settles=False),
    Change("domain_power", {"state": "restarted", "strategy": "auto"}, as_it_is, settles=False),
    Change("domain_power", {"state": "restarted", **AWAY}, with_another_hypervisor, settles=False),
    Change("domain_power", {"state": "stopped"}, as_it_is, settles=True),
    Change("domain_power", {"state": "started"}, switched_off, settles=True),
    Change("domain_snapshot", {"snapshot": "new"}, as_it_is, settles=True),
    Change("domain_snapshot", {"snapshot": "old", "state": "absent"}, with_a_snapshot, settles=True),
    Change("domain_snapshot", {"snapshot": "old", "state": "reverted"}, with_a_snapshot, settles=False),
    Change("guest_upgrade", {}, with_apt, settles=True),
    Change("guest_exec", {"argv": ["touch", "/x"]}, with_a_shell, settles=False),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: f"{change.module} {change.arguments}")
def test_check_mode_changes_nothing_and_predicts_the_run(
    run: Run, hypervisor: FakeHypervisor, domain: FakeDomain, change: Change
) -> None:
    change.arrange(hypervisor, domain)
    before = (domain.state(), domain.pid, list(domain.snapshots()))
    predicted = run(change.module, name="web1", check=True, **change.arguments)
    assert (domain.changes, before) == ([], (domain.state(), domain.pid, list(domain.snapshots())))
    assert not any(call.command[0] == "touch" or call.stdin for call in domain.agent.calls)

    done = run(change.module, name="web1", **change.arguments)
    assert (predicted["changed"], done["changed"]) == (True, True)
    for told in ("diff", "steps", "strategy", "packages", "live", "persistent"):
        assert predicted.get(told) == done.get(told)

    again = run(change.module, name="web1", check=True, **change.arguments)
    assert again["changed"] is not change.settles


# --- domain_info ---------------------------------------------------------------------------------


def test_all_domains_are_told_in_one_call(run: Run, hypervisor: FakeHypervisor) -> None:
    for name in ("vm10", "vm1", "größe"):
        hypervisor.add(name)
    hypervisor.proc.install(EMULATOR, "new")
    result = run("domain_info")
    assert [(domain["name"], domain["drift"]["state"]) for domain in result["domains"]] == [
        ("größe", "drifted"),
        ("vm1", "drifted"),
        ("vm10", "drifted"),
    ]
    assert result["changed"] is False
    assert [domain["name"] for domain in run("domain_info", names=["vm10"])["domains"]] == ["vm10"]


def test_a_missing_domain_fails_with_its_code_and_remedy(run: Run, domain: FakeDomain) -> None:
    result = run("domain_info", names=[domain.name, "vm1"])
    assert result["failed"]
    assert (result["error_code"], result["transient"]) == ("domain_not_found", False)
    assert result["msg"] == "no domain is named 'vm1' on qemu:///session"
    assert result["remedy"]
    assert "exception" not in result


# --- guest_info ----------------------------------------------------------------------------------


def test_a_guest_is_told_of_with_what_is_in_the_way(run: Run, hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    domain.agent.blocked.add("guest-exec")
    domain.agent.files["/proc/1/comm"] = b"systemd\n"
    hypervisor.add("off", DomainState.SHUT_OFF)
    result = run("guest_info", check=True)
    assert result["changed"] is False
    off, web1 = result["guests"]
    assert (off["name"], off["state"], off["agent"]["state"]) == ("off", "shut_off", "not_running")
    assert off["agent"]["rpcs"]["guest-exec"]["allowed"] is None
    assert (web1["name"], web1["state"], web1["manageable"]) == ("web1", "running", False)
    assert web1["agent"]["rpcs"]["guest-exec"] == {
        "allowed": False,
        "needed_for": "running commands, and so all upgrades",
        "setting": None,
    }
    [problem] = web1["problems"]
    assert (problem["error_code"], problem["msg"]) == (
        "agent_command_blocked",
        "the guest agent does not allow guest-exec",
    )
    assert (web1["os"]["init"], web1["os"]["name"]) == ("systemd", "Debian GNU/Linux 12 (bookworm)")
    assert web1["filesystems"] == [{"mountpoint": "/", "type": "ext4", "total": 1000, "free": 600}]


def test_all_that_is_returned_of_a_guest_is_documented(run: Run, domain: FakeDomain) -> None:
    [told] = run("guest_info", names=[domain.name])["guests"]
    documented = yaml.safe_load(guest_info.RETURN)["guests"]["contains"]
    assert list(told) == list(documented)
    for key in ("agent", "os", "selinux"):
        assert list(told[key]) == list(documented[key]["contains"])


# --- domain_power --------------------------------------------------------------------------------


def test_a_restart_returns_both_processes_and_boots(run: Run, domain: FakeDomain) -> None:
    old = (domain.pid, domain.boot_id)
    result = run("domain_power", name="web1", state="restarted")
    assert result["steps"] == ["shut_down", "start", "wait_for_agent"]
    assert (result["before"]["pid"], result["before"]["boot_id"]) == old
    assert (result["after"]["pid"], result["after"]["boot_id"]) == (domain.pid, domain.boot_id)
    assert result["forced"] is False
    assert [seen["state"] for seen in result["transitions"]] == ["running", "shut_off", "running"]
    assert result["diff"] == {"before": "running\n", "after": "running on a new QEMU process\n"}


@pytest.mark.parametrize(
    ("state", "wanted", "diff"),
    [
        (DomainState.RUNNING, "started", {"before": "running\n", "after": "running\n"}),
        (DomainState.SHUT_OFF, "stopped", {"before": "off\n", "after": "off\n"}),
    ],
)
def test_what_is_so_already_is_no_change(
    run: Run, hypervisor: FakeHypervisor, state: DomainState, wanted: str, diff: dict[str, str]
) -> None:
    domain = hypervisor.add("web1", state)
    result = run("domain_power", name="web1", state=wanted)
    assert (result["changed"], result["steps"], result["diff"]) == (False, [], diff)
    assert domain.changes == []


def test_a_refusal_comes_in_check_mode_too(run: Run, domain: FakeDomain) -> None:
    domain.agent.silent = True
    for check in (True, False):
        assert run("domain_power", name="web1", state="restarted", check=check)["error_code"] == "agent_silent"
    assert domain.changes == []


def test_force_is_reported(run: Run, domain: FakeDomain) -> None:
    domain.habits.shuts_down_after = None
    result = run("domain_power", name="web1", state="stopped", force=True, shutdown_timeout=10)
    assert result["forced"] is True
    assert result["diff"] == {"before": "running\n", "after": "off\n"}


def test_a_guest_that_does_not_go_off_fails_with_what_was_seen(run: Run, domain: FakeDomain) -> None:
    domain.habits.shuts_down_after = None
    result = run("domain_power", name="web1", state="restarted", shutdown_timeout=10)
    assert result["error_code"] == "shutdown_timeout"
    assert result["evidence"] == {
        "transitions": [{"state": "running", "at": "2026-03-01T02:00:00Z"}],
        "forced": False,
    }


# --- domain_channel ------------------------------------------------------------------------------


def test_a_channel_is_told_for_both_definitions_as_what_is_added(run: Run, domain: FakeDomain) -> None:
    domain.agent_channel, domain.serial_bus = False, True
    result = run("domain_channel", name="web1", agent_timeout=30)
    assert (result["live"], result["persistent"], result["agent"]) == ("added", "added", "answering")
    assert (result["restart_required"], result["reason"]) == (False, "")
    assert [(diff["before_header"], diff["before"]) for diff in result["diff"]] == [
        ("persistent definition", ""),
        ("running domain", ""),
    ]
    assert all('name="org.qemu.guest_agent.0"' in diff["after"] for diff in result["diff"])
    again = run("domain_channel", name="web1")
    assert (again["changed"], again["live"], again["agent"], again["diff"]) == (False, "present", None, [])


def test_a_channel_that_comes_with_a_restart_is_told_and_the_agent_not_waited_for(run: Run, domain: FakeDomain) -> None:
    domain.agent_channel = False
    result = run("domain_channel", name="web1", agent_timeout=30)
    assert (result["live"], result["restart_required"], result["agent"]) == ("needs_restart", True, None)
    assert "virtio-serial" in result["reason"]
    assert domain.agent.requests == []


def test_an_agent_that_does_not_use_its_channel_fails_the_task(run: Run, domain: FakeDomain) -> None:
    domain.agent.silent = True
    for check in (True, False):
        result = run("domain_channel", name="web1", agent_timeout=30, check=check)
        assert (result["error_code"], result["transient"]) == ("agent_silent", True)


# --- domain_snapshot -----------------------------------------------------------------------------


def test_a_snapshot_is_named_after_the_time_by_default(run: Run, domain: FakeDomain) -> None:
    result = run("domain_snapshot", name="web1")
    assert result["snapshot"] == {
        "name": "pre-upgrade-20260301-020000",
        "description": "[kvm.fleet] Automatic snapshot before package upgrade",
        "created": 1772330400,
        "state": "running",
        "current": True,
        "way": "live",
        "kind": "internal",
        "files": [],
        "size": None,
    }
    assert result["diff"] == {"before": "", "after": "pre-upgrade-20260301-020000\n"}
    assert domain.changes == ["create_snapshot"]


def test_a_snapshot_that_is_there_is_left_and_told(run: Run, domain: FakeDomain) -> None:
    with_a_snapshot_of_each(domain)
    result = run("domain_snapshot", name="web1", snapshot="ours")
    assert (result["changed"], result["snapshot"]["name"]) == (False, "ours")
    assert result["diff"] == {"before": "ours\n", "after": "ours\n"}


def with_a_snapshot_of_each(domain: FakeDomain) -> None:
    domain.add_snapshot("ours", f"{STAMP} x")
    domain.add_snapshot("theirs", "made by hand")


def test_a_snapshot_is_reverted_to_and_deleted(run: Run, domain: FakeDomain) -> None:
    with_a_snapshot_of_each(domain)
    reverted = run("domain_snapshot", name="web1", snapshot="ours", state="reverted")
    deleted = run("domain_snapshot", name="web1", snapshot="ours", state="absent")
    assert reverted["diff"] == {"before": "ours\n", "after": "ours\n(reverted to ours)\n"}
    assert deleted["diff"] == {"before": "ours\n", "after": ""}
    assert domain.changes == ["revert_to_snapshot ours", "delete_snapshot ours"]
    assert [snapshot.name for snapshot in domain.snapshots()] == ["theirs"]


def test_deleting_what_is_not_there_is_no_change(run: Run, domain: FakeDomain) -> None:
    result = run("domain_snapshot", name="web1", snapshot="gone", state="absent")
    assert (result["changed"], result["snapshot"]) == (False, None)
    assert domain.changes == []


@pytest.mark.parametrize("state", ["present", "absent", "reverted"])
@pytest.mark.parametrize("check", [True, False])
def test_a_snapshot_of_somebody_else_is_never_touched(run: Run, domain: FakeDomain, state: str, check: bool) -> None:
    with_a_snapshot_of_each(domain)
    result = run("domain_snapshot", name="web1", snapshot="theirs", state=state, check=check)
    assert result["error_code"] == "snapshot_not_ours"
    assert domain.changes == []


# --- guest_exec ----------------------------------------------------------------------------------


def answering(domain: FakeDomain, ending: Ending) -> list[Call]:
    domain.agent.program = lambda _call: ending
    return domain.agent.calls


def test_a_command_returns_what_it_wrote(run: Run, domain: FakeDomain) -> None:
    calls = answering(domain, Ending(stdout=b"a\nb\n", stderr=b"c\xff\n", after=1))
    result = run(
        "guest_exec",
        name="web1",
        script="echo $A",
        stdin="in\n",
        chdir="/tmp",
        environment={"A": 1},
        max_output=3,
    )
    assert result["changed"] is True
    assert (result["rc"], result["signal"]) == (0, None)
    assert (result["stdout"], result["stdout_lines"], result["stdout_truncated"]) == ("a\nb", ["a", "b"], True)
    assert (result["stderr"], result["stderr_lines"], result["stderr_truncated"]) == ("c\ufffd\n", ["c\ufffd"], False)
    assert result["duration"] >= 1
    assert "exit_code" not in result
    [call] = calls
    assert call.argv[4:] == ["4", "/tmp", "env", "A=1", "/bin/sh", "-c", "echo $A"]
    assert call.stdin == b"in\n"


@pytest.mark.parametrize(
    ("ending", "code"), [(Ending(3), "command_failed"), (Ending(None, signal=9), "command_killed")]
)
def test_a_command_that_fails_fails_the_task_with_its_output(
    run: Run, domain: FakeDomain, ending: Ending, code: str
) -> None:
    answering(domain, replace(ending, stdout=b"so far\n"))
    result = run("guest_exec", name="web1", argv=["false"])
    assert result["failed"]
    assert (result["error_code"], result["rc"], result["signal"]) == (code, ending.exit_code, ending.signal)
    assert (result["stdout"], result["changed"]) == ("so far\n", True)
    assert result["remedy"]


@pytest.mark.parametrize(
    ("option", "exists", "message"),
    [
        ("creates", True, "not run, since /x* exists"),
        ("creates", False, ""),
        ("removes", True, ""),
        ("removes", False, "not run, since /x* does not exist"),
    ],
)
def test_creates_and_removes_decide_whether_it_runs(
    run: Run, domain: FakeDomain, option: str, exists: bool, message: str
) -> None:
    domain.agent.program = lambda _call: Ending(stdout=b"yes\n" if exists else b"no\n")
    predicted = run("guest_exec", name="web1", argv=["touch", "/x"], check=True, **{option: "/x*"})
    assert not [call for call in domain.agent.calls if call.command == ["touch", "/x"]]
    done = run("guest_exec", name="web1", argv=["touch", "/x"], **{option: "/x*"})
    ran = [call for call in domain.agent.calls if call.command == ["touch", "/x"]]
    assert (predicted["changed"], done["changed"], bool(ran)) == (*[not message] * 3,)
    if message:
        assert (predicted["msg"], done["msg"]) == (message, message)


def off(domain: FakeDomain) -> None:
    domain.be(DomainState.SHUT_OFF)


def silent(domain: FakeDomain) -> None:
    domain.agent.silent = True


def without_channel(domain: FakeDomain) -> None:
    domain.agent_channel = False


def blocked(domain: FakeDomain) -> None:
    domain.agent.blocked.add("guest-exec")


@pytest.mark.parametrize("module", ["guest_exec", "guest_upgrade"])
@pytest.mark.parametrize(
    ("arrange", "code"),
    [
        (off, "domain_not_running"),
        (silent, "agent_silent"),
        (without_channel, "no_agent_channel"),
        (blocked, "agent_command_blocked"),
    ],
)
def test_a_guest_that_cannot_run_commands_is_refused_by_the_cause(
    run: Run, domain: FakeDomain, module: str, arrange: Callable[[FakeDomain], None], code: str
) -> None:
    arrange(domain)
    arguments = {"argv": ["true"]} if module == "guest_exec" else {}
    refused = [run(module, name="web1", check=check, **arguments) for check in (True, False)]
    assert [result["error_code"] for result in refused] == [code, code]
    assert domain.agent.calls == []


def test_a_command_without_end_is_a_timeout(run: Run, domain: FakeDomain) -> None:
    answering(domain, Ending(after=600))
    result = run("guest_exec", name="web1", argv=["sleep", "600"], timeout=5)
    assert (result["error_code"], result["msg"]) == ("command_timeout", "the command has not ended after 5 s")
    assert set(result["evidence"]) == {"pid", "ended"}


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("guest_exec", {"argv": [""]}),
        ("guest_exec", {"argv": ["x"], "timeout": 0}),
        ("guest_exec", {"argv": ["x"], "max_output": 2_000_000}),
        ("guest_upgrade", {"timeout": 0}),
        ("guest_upgrade", {"lock_retries": -1}),
        ("guest_upgrade", {"interval": 0}),
        ("guest_upgrade", {"exclude": ["--allow-downgrades"]}),
        ("domain_channel", {"agent_timeout": -1}),
        ("domain_power", {"state": "restarted", "shutdown_timeout": 0}),
        ("domain_snapshot", {"snapshot": "a/b"}),
        ("domain_snapshot", {"description": "\x1b[2J"}),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything(
    run: Run, domain: FakeDomain, module: str, arguments: dict[str, Any]
) -> None:
    assert run(module, name="web1", **arguments)["error_code"] == "invalid_request"
    assert (domain.changes, domain.agent.requests) == ([], [])


# --- guest_upgrade -------------------------------------------------------------------------------


def test_an_upgrade_returns_packages_with_both_versions(
    run: Run, hypervisor: FakeHypervisor, domain: FakeDomain
) -> None:
    with_apt(hypervisor, domain)
    result = run("guest_upgrade", name="web1")
    assert result["packages"] == [
        {"name": "bash", "arch": "amd64", "old": "1", "new": "2", "security": False},
        {"name": "libssl3", "arch": "amd64", "old": "1", "new": "2", "security": True},
    ]
    assert (result["kept_back"], result["reboot_required"], result["unfinished"]) == ([], False, "none")
    assert result["diff"] == {"before": "bash 1\nlibssl3 1\n", "after": "bash 2\nlibssl3 2\n"}


def upgrading(hypervisor: FakeHypervisor, domain: FakeDomain, **habits: Any) -> UpgradingGuest:
    guest = UpgradingGuest(hypervisor.clock, **habits)
    domain.agent.program = guest.agent.program
    return guest


def test_an_upgrade_tells_what_it_kept_back_and_what_is_left_to_compare(
    run: Run, hypervisor: FakeHypervisor, domain: FakeDomain
) -> None:
    guest = upgrading(hypervisor, domain)
    guest.review = ["/etc/bash.bashrc.dpkg-dist"]
    result = run("guest_upgrade", name="web1", exclude=["libssl*", ""])
    assert [package["name"] for package in result["packages"]] == ["bash"]
    assert result["kept_back"] == [{"name": "libssl3", "reason": "excluded"}]
    assert result["config_files"] == ["/etc/bash.bashrc.dpkg-dist"]
    assert (result["package_manager"], result["finished"], result["progress"]) == ("apt", True, None)


@pytest.mark.parametrize("left", ["running", "cut_off", "ended 0"])
def test_an_upgrade_that_was_left_behind_is_a_change_to_come(
    run: Run, hypervisor: FakeHypervisor, domain: FakeDomain, left: str
) -> None:
    upgrading(hypervisor, domain, left=left, duration=60)
    result = run("guest_upgrade", name="web1", check=True)
    assert (result["changed"], result["unfinished"]) == (True, left.partition(" ")[0])


def test_after_the_interval_a_task_tells_how_far_the_upgrade_is_and_the_next_one_its_result(
    run: Run, hypervisor: FakeHypervisor, domain: FakeDomain
) -> None:
    guest = upgrading(hypervisor, domain, duration=40)
    guest.progress = ["pmstatus:bash:42.8:Unpacking bash (amd64)"]
    first, second = (run("guest_upgrade", name="web1", run="mine", interval=30) for _task in range(2))
    assert (first["changed"], first["finished"], first["unfinished"]) == (True, False, "running")
    assert first["progress"].pop("elapsed") == pytest.approx(30, abs=1)
    assert first["progress"] == {"percent": 42, "package": "bash", "activity": "Unpacking bash (amd64)"}
    assert (second["finished"], len(second["packages"]), len(guest.jobs)) == (True, 2, 1)
    # What the one returns, the other does as well: a play may read either.
    assert set(second) - set(first) <= {"diff"}


def test_the_journal_is_removed_once_everything_is_told_and_not_before(
    run: Run, hypervisor: FakeHypervisor, domain: FakeDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = upgrading(hypervisor, domain)

    def fail(_agent: GuestAgent) -> RebootState:
        raise CommandFailed("no", remedy="None.")

    with monkeypatch.context() as patched:
        patched.setattr(guest_upgrade, "reboot_state", fail)
        assert run("guest_upgrade", name="web1", run="mine")["error_code"] == "command_failed"
    assert guest.look.state is JobState.ENDED
    told = run("guest_upgrade", name="web1", run="mine")
    assert [package["name"] for package in told["packages"]] == ["bash", "libssl3"]
    assert guest.look == JobLook(JobState.NONE)
    assert len(guest.jobs) == 1


def test_a_failed_upgrade_fails_the_task_and_is_repaired_by_another_run(
    run: Run, hypervisor: FakeHypervisor, domain: FakeDomain
) -> None:
    guest = upgrading(hypervisor, domain, left="ended 100", left_by="mine", interrupted=True)
    assert run("guest_upgrade", name="web1", run="mine")["error_code"] == "upgrade_failed"
    assert guest.jobs == []
    assert len(run("guest_upgrade", name="web1", run="another")["packages"]) == 2
    assert guest.kinds == ["repair", "upgrade"]


@pytest.mark.parametrize("check", [True, False])
def test_a_package_manager_that_the_guest_has_not_is_refused(
    run: Run, hypervisor: FakeHypervisor, domain: FakeDomain, check: bool
) -> None:
    guest = upgrading(hypervisor, domain)
    result = run("guest_upgrade", name="web1", package_manager="zypper", check=check)
    assert result["error_code"] == "package_manager_unknown"
    assert (guest.jobs, guest.programs("apt-get")) == ([], [])


@pytest.mark.parametrize("check", [True, False])
def test_an_upgrade_without_room_or_without_the_lock_is_refused_in_check_mode_too(
    run: Run, hypervisor: FakeHypervisor, domain: FakeDomain, check: bool
) -> None:
    guest = upgrading(hypervisor, domain)
    guest.free = b"free 100 /dev/vda2 /var\nfree 100 /dev/vda1 /\nfree 100 /dev/vda1 /\nkernel 0\n"
    assert run("guest_upgrade", name="web1", check=check)["error_code"] == "disk_full"
    guest.locked_for = 10**6
    guest.held = b"/var/lib/dpkg/lock\t7\t1\t100.0\tapt\n"
    result = run("guest_upgrade", name="web1", check=check, lock_retries=1, lock_delay=1)
    assert (result["error_code"], result["transient"]) == ("package_manager_locked", True)
    assert guest.jobs == []


def test_an_agent_that_is_just_being_restarted_does_not_fail_the_task(
    run: Run, hypervisor: FakeHypervisor, domain: FakeDomain
) -> None:
    """An upgrade restarts it at any moment, also between two tasks that follow the upgrade."""
    upgrading(hypervisor, domain)
    domain.agent.silent = True
    hypervisor.clock.after(40, lambda: setattr(domain.agent, "silent", False))
    assert len(run("guest_upgrade", name="web1")["packages"]) == 2


@pytest.mark.parametrize(
    ("packages", "lines"),
    [
        ((), ("", "")),
        ((PackageChange("a", "all", "1", "2"),), ("a 1\n", "a 2\n")),
        ((PackageChange("a", "all", None, "2"), PackageChange("b", "", "1", None)), ("b 1\n", "a 2\n")),
    ],
)
def test_a_difference_has_a_line_for_each_package_that_is_there(
    packages: tuple[PackageChange, ...], lines: tuple[str, str]
) -> None:
    assert guest_upgrade.difference(packages) == {"before": lines[0], "after": lines[1]}


# --- what all have in common ---------------------------------------------------------------------


def test_without_libvirt_python_a_module_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_runner, "LIBVIRT_IMPORT_ERROR", "Traceback: no module named libvirt")
    result = run("domain_info")
    assert (result["error_code"], result["transient"]) == ("libvirt_python_missing", False)
    assert "libvirt-python" in result["msg"]
    assert "python3-libvirt" in result["remedy"]


def test_a_defect_keeps_its_traceback(run: Run, domain: FakeDomain, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(domain, "xml", fail)
    with pytest.raises(ZeroDivisionError):
        run("domain_info")


def test_snapshots_that_were_not_looked_for_are_unknown(run: Run, domain: FakeDomain) -> None:
    domain.add_snapshot("ours", f"{STAMP} x")
    [seen], [unseen] = run("domain_info")["domains"], run("domain_info", snapshots=False)["domains"]
    assert (len(seen["snapshots"]), unseen["snapshots"]) == (1, None)
    assert {**seen, "snapshots": None} == unseen


# --- qemu_trial ----------------------------------------------------------------------------------


def test_qemu_is_tried_and_nothing_is_left(run: Run, hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    hypervisor.add("web2").loader = "<boot dev='hd'/>"
    left = hypervisor.add("kvm-fleet-trial-20260101000000-0badcafe")
    left.persistent = False
    predicted = run("qemu_trial", check=True)
    assert (hypervisor.tried, [machine.name for machine in hypervisor.trials()]) == ([], [left.name])
    done = run("qemu_trial")
    assert (predicted["trials"], predicted["ended"]) == (done["trials"], done["ended"])
    [trial] = done["trials"]
    assert (trial["guests"], trial["emulator"]) == (["web1", "web2"], hypervisor.emulator)
    assert (done["changed"], done["ended"], list(hypervisor.trials())) == (True, [left.name], [])
    assert run("qemu_trial", names=["web1"])["trials"][0]["guests"] == ["web1"]
    assert domain.changes == []
    hypervisor.refuses_machines = True
    assert run("qemu_trial")["error_code"] == "qemu_trial_failed"
    assert run("qemu_trial", names=["none"])["error_code"] == "domain_not_found"
