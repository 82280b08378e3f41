# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""guest_info on real guests: what they are, and what keeps them from being managed."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from lab.clock import wait_until
from tests.integration.runs import module, playbook, refusal

if TYPE_CHECKING:
    from lab.fixtures import MakeGuest
    from lab.guests import Guest

EXEC = ("guest-exec", "guest-exec-status")


def look(*names: str, **options: Any) -> list[dict[str, Any]]:
    result = module("guest_info", names=list(names), **options)
    assert result.get("changed") is False, result
    guests: list[dict[str, Any]] = result["guests"]
    return guests


def problems(guest: dict[str, Any]) -> list[str]:
    """The codes of what is in the way; a remedy comes with each."""
    assert all(problem["msg"] and problem["remedy"] for problem in guest["problems"])
    assert guest["manageable"] is (not guest["problems"])
    return [problem["error_code"] for problem in guest["problems"]]


def allowed(guest: dict[str, Any]) -> dict[str, bool | None]:
    return {name: rpc["allowed"] for name, rpc in guest["agent"]["rpcs"].items()}


def agents_start(guest: Guest) -> datetime:
    """When the agent's process was started, by systemd's own record."""
    said = guest.output(
        *("/usr/bin/env", "TZ=UTC", "/usr/bin/systemctl", "show", "--value"),
        *("--property=ExecMainStartTimestamp", "qemu-guest-agent.service"),
    )
    return datetime.strptime(said.strip(), "%a %Y-%m-%d %H:%M:%S UTC").astimezone()


# --- guests that are well ------------------------------------------------------------------------


def test_a_healthy_guest_by_what_its_agent_tells(pristine_guest: Guest) -> None:
    (guest,) = look(pristine_guest.name)
    assert (guest["name"], guest["uuid"], guest["state"]) == (pristine_guest.name, pristine_guest.uuid, "running")
    assert problems(guest) == []
    assert guest["agent"]["state"] == "answering"
    assert guest["agent"]["version"][0].isdigit()
    assert set(allowed(guest).values()) == {True}
    os_release = pristine_guest.read_file("/etc/os-release").decode()
    assert f'PRETTY_NAME="{guest["os"]["name"]}"' in os_release
    assert f"\nID={guest['os']['id']}\n" in os_release
    assert guest["os"]["kernel_running"] == pristine_guest.output("/bin/uname", "-r").strip()
    assert guest["os"]["init"] == "systemd"
    assert guest["selinux"] == {"mode": "disabled", "denies_package_management": False}
    (root,) = [one for one in guest["filesystems"] if one["mountpoint"] == "/"]
    assert root["type"] == "ext4"
    assert 0 < root["free"] < root["total"]
    # These take a command.
    assert guest["failed_units"] is guest["reboot_required"] is None
    assert guest["os"]["package_manager"] is guest["os"]["kernel_installed"] is None


def test_since_when_the_agent_answers(pristine_guest: Guest) -> None:
    # Restarted by this, and so after the guest's clock was set: its boot time, as the kernel reckons it, went along.
    pristine_guest.block_agent_commands("guest-shutdown")
    (guest,) = look(pristine_guest.name)
    since = datetime.fromisoformat(guest["agent"]["since"])
    assert abs(since - agents_start(pristine_guest)) < timedelta(seconds=5)


def test_a_healthy_guest_is_known_all_over_with_commands(pristine_guest: Guest) -> None:
    (guest,) = look(pristine_guest.name, run_commands=True, timeout=120)
    assert problems(guest) == []
    assert guest["os"]["package_manager"] == "apt"
    assert guest["failed_units"] == []
    assert guest["reboot_required"] is False
    assert guest["os"]["kernel_installed"] == guest["os"]["kernel_running"]
    unknown = [
        key
        for facts in (guest, guest["agent"], guest["os"], guest["selinux"])
        for key, value in facts.items()
        if value is None
    ]
    assert unknown == []
    (cheap,) = look(pristine_guest.name)
    for key in ("id", "like", "name", "version", "kernel_running", "init"):
        assert guest["os"][key] == cheap["os"][key]
    assert guest["agent"]["since"] == cheap["agent"]["since"]


def test_what_a_guest_is_in_want_of(pristine_guest: Guest) -> None:
    pristine_guest.write_file("/run/reboot-required", b"*** System restart required ***\n")
    pristine_guest.write_file("/run/reboot-required.pkgs", b"libc6\n\x1b[2Jlinux-base\n")
    pristine_guest.run("/usr/bin/systemd-run", "--unit=lab-broken", "--wait", "/bin/false")
    (cheap,) = look(pristine_guest.name)
    (thorough,) = look(pristine_guest.name, run_commands=True, timeout=120)
    for guest in (cheap, thorough):
        assert guest["reboot_required"] is True
        assert guest["reboot_reasons"] == ["/run/reboot-required (libc6, [2Jlinux-base)"]
        assert problems(guest) == []
    assert (cheap["failed_units"], thorough["failed_units"]) == (None, ["lab-broken.service"])


def test_another_family(make_guest: MakeGuest) -> None:
    (guest,) = look(make_guest(package_manager="zypper").name, run_commands=True, timeout=120)
    assert (guest["os"]["package_manager"], problems(guest)) == ("zypper", [])
    assert "suse" in guest["os"]["like"]


# --- an agent that does not do everything --------------------------------------------------------


def test_commands_that_are_blocked(pristine_guest: Guest) -> None:
    pristine_guest.block_agent_commands(*EXEC)
    for options in ({}, {"run_commands": True}):
        (guest,) = look(pristine_guest.name, **options)
        assert problems(guest) == ["agent_command_blocked"]
        assert guest["problems"][0]["msg"] == "the guest agent does not allow guest-exec, guest-exec-status"
        assert "enable_guest_exec" in guest["problems"][0]["remedy"]
        assert [name for name, may in allowed(guest).items() if not may] == list(EXEC)
        assert guest["os"]["init"] == "systemd", "files may be read"
        assert guest["agent"]["since"]


def test_files_that_are_blocked_are_read_by_a_command(pristine_guest: Guest) -> None:
    files = [f"guest-file-{verb}" for verb in ("open", "read", "write", "flush", "close")]
    pristine_guest.block_agent_commands(*files)
    (cheap,) = look(pristine_guest.name)
    assert problems(cheap) == []
    assert cheap["os"]["id"], "the agent tells it by itself"
    assert (cheap["os"]["init"], cheap["agent"]["since"], cheap["selinux"]["mode"]) == (None, None, None)
    (thorough,) = look(pristine_guest.name, run_commands=True, timeout=120)
    assert problems(thorough) == []
    assert (thorough["os"]["init"], thorough["selinux"]["mode"]) == ("systemd", "disabled")
    assert thorough["agent"]["since"]


def everything_known(guest: Guest) -> list[str]:
    return [rpc for rpc in look(guest.name)[0]["agent"]["rpcs"] if rpc not in EXEC]


def test_everything_but_looking_is_blocked(pristine_guest: Guest) -> None:
    pristine_guest.block_agent_commands(*everything_known(pristine_guest), *EXEC)
    (guest,) = look(pristine_guest.name)
    assert problems(guest) == ["agent_command_blocked"]
    assert (guest["agent"]["state"], set(allowed(guest).values())) == ("answering", {False})
    assert guest["filesystems"] is guest["os"]["id"] is None


def test_an_agent_that_may_not_even_tell_what_it_allows(pristine_guest: Guest) -> None:
    pristine_guest.write_file("/etc/qemu/qemu-ga.conf", b"[general]\nblock-rpcs=guest-info\n")
    pristine_guest.do_to_agent("restart")

    def blocked() -> bool:
        return problems(look(pristine_guest.name)[0]) == ["agent_command_blocked"]

    assert wait_until(blocked, 60)
    (guest,) = look(pristine_guest.name)
    assert guest["problems"][0]["msg"] == "the guest agent does not allow guest-info"
    assert (guest["agent"]["state"], set(allowed(guest).values())) == ("answering", {None})


# --- guests without an agent ---------------------------------------------------------------------


def test_guests_that_cannot_be_asked_are_told_of_beside_one_that_can(
    make_guest: MakeGuest, shared_guest: Guest
) -> None:
    off = make_guest(start=False)
    masked, without = make_guest(wait=False, agent_service=False), make_guest(wait=False, agent_channel=False)
    names = [guest.name for guest in (off, masked, without, shared_guest)]
    guests = look(*names)
    assert [guest["name"] for guest in guests] == names
    assert [(guest["state"], guest["agent"]["state"]) for guest in guests] == [
        ("shut_off", "not_running"),
        ("running", "disconnected"),
        ("running", "absent"),
        ("running", "answering"),
    ]
    assert [problems(guest) for guest in guests] == [
        ["domain_not_running"],
        ["agent_silent"],
        ["no_agent_channel"],
        [],
    ]
    assert "domain_channel" in guests[2]["problems"][0]["remedy"]
    assert set(allowed(guests[0]).values()) == {None}


def test_a_paused_guest(pristine_guest: Guest) -> None:
    pristine_guest.domain.suspend()
    (guest,) = look(pristine_guest.name)
    assert (guest["state"], guest["agent"]["state"]) == ("paused", "not_running")
    assert problems(guest) == ["domain_not_running"]
    assert "resume" in guest["problems"][0]["remedy"]


def test_an_agent_that_hangs_holds_up_nobody(make_guest: MakeGuest, shared_guest: Guest) -> None:
    hung = make_guest()
    hung.do_to_agent("kill", "--signal=STOP")
    assert wait_until(lambda: not hung.answers(), 60)
    first, second = look(hung.name, shared_guest.name, timeout=10)
    assert (first["state"], first["agent"]["state"]) == ("running", "silent")
    assert problems(first) == ["agent_silent"]
    assert (second["agent"]["state"], problems(second)) == ("answering", [])


def test_the_whole_hypervisor_in_one_call(make_guest: MakeGuest, shared_guest: Guest) -> None:
    off = make_guest(start=False)
    guests = {guest["name"]: guest for guest in module("guest_info")["guests"]}
    assert guests[off.name]["state"] == "shut_off"
    assert guests[shared_guest.name]["agent"]["state"] == "answering"
    assert list(guests) == sorted(guests)


def test_the_status_says_at_a_glance_whether_commands_are_allowed(make_guest: MakeGuest, pristine_guest: Guest) -> None:
    off = make_guest(start=False)
    pristine_guest.block_agent_commands(*EXEC)
    pristine_guest.write_file("/run/reboot-required", b"")
    run = playbook("status", guests=[pristine_guest.name, off.name])
    assert run.exit_code == 0, run.output
    rows = [line.split() for line in run.output.splitlines() if line.startswith((pristine_guest.name, off.name))]
    assert {row[0]: row[-4:] for row in rows} == {
        pristine_guest.name: ["connected", "blocked", "required", "0"],
        off.name: ["unknown", "unknown", "unknown", "0"],
    }


# --- refusals ------------------------------------------------------------------------------------


def test_an_unknown_name(shared_guest: Guest) -> None:
    result = refusal("guest_info", names=[shared_guest.name, f"{shared_guest.name}0"])
    assert result["error_code"] == "domain_not_found"


@pytest.mark.parametrize("timeout", [0, -1])
def test_a_timeout_that_cannot_be_meant(timeout: int) -> None:
    assert refusal("guest_info", timeout=timeout)["error_code"] == "invalid_request"
