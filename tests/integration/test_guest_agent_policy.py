# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""guest_agent_policy on a real guest, whose agent has its RPC filter from where each family has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from lab import inside
from lab.clock import wait_until
from lab.errors import AgentFailed
from tests.integration.proof import make_fresh
from tests.integration.runs import listing, module, playbook, refusal

if TYPE_CHECKING:
    from lab.fixtures import MakeGuest
    from lab.guests import Guest
    from tests.integration.conftest import Pair

UNIT = "/lib/systemd/system/qemu-guest-agent.service"
CONF = "/etc/qemu/qemu-ga.conf"
SYSCONFIG = "/etc/sysconfig/qemu-ga"
AUDIT = Path("/var/lib/kvm-fleet/audit.jsonl")
EXEC = ("guest-exec", "guest-exec-status")
FILES = ("guest-file-open", "guest-file-close", "guest-file-read", "guest-file-write", "guest-file-flush")
AGENT = "/usr/sbin/qemu-ga --method=virtio-serial --path=/dev/virtio-ports/org.qemu.guest_agent.0"


def enabled(guest: Guest) -> dict[str, bool]:
    """What the agent lets through, by its own word."""
    answer = inside.ask(guest.domain, "guest-info")
    return {command["name"]: command["enabled"] for command in answer["supported_commands"]}


def agent_pid(guest: Guest) -> str:
    """Another one after each restart of the agent; empty while it does not answer."""
    try:
        return guest.output("/usr/bin/systemctl", "show", "--property=MainPID", "--value", "qemu-guest-agent.service")
    except AgentFailed:
        return ""


def set_up(guest: Guest, files: dict[str, str]) -> None:
    """Put files into the guest and restart its agent."""
    guest.output("/bin/mkdir", "-p", *{str(Path(path).parent) for path in files})
    for path, content in files.items():
        guest.write_file(path, content.encode())
    before = agent_pid(guest)
    guest.output("/usr/bin/systemctl", "daemon-reload")
    guest.do_to_agent("restart")
    assert wait_until(lambda: agent_pid(guest) not in ("", before), 120)


def policy(guest: Guest, state: str, **options: Any) -> dict[str, Any]:
    result = module("guest_agent_policy", name=guest.name, state=state, **options)
    assert not result["failed"], result
    return result


def refused(guest: Guest, state: str, **options: Any) -> dict[str, Any]:
    return refusal("guest_agent_policy", name=guest.name, state=state, **options)


def audited(guest: Guest) -> list[dict[str, Any]]:
    """What the audit says of this guest."""
    lines = AUDIT.read_text(encoding="utf-8").splitlines() if AUDIT.exists() else []
    return [entry for entry in map(json.loads, lines) if entry["uuid"] == guest.uuid]


# --- what each family ships ----------------------------------------------------------------------


class Family(NamedTuple):
    files: dict[str, str]
    path: str
    before: str
    after: str


def service(exec_start: str, *more: str) -> str:
    lines = ("[Unit]", "Description=QEMU Guest Agent", "[Service]", *more, f"ExecStart={exec_start}", "Restart=always")
    return "\n".join((*lines, "RestartSec=0", ""))


_OURS = "# of ours\nFSFREEZE_HOOK_PATHNAME=/etc/qemu-ga/fsfreeze-hook\n"
FAMILIES = {
    "debian": Family(
        {CONF: "# of ours\n[general]\nverbose = 0\nblock-rpcs = guest-get-time,guest-fstrim\n"},
        CONF,
        "block-rpcs = guest-get-time,guest-fstrim",
        "block-rpcs = guest-get-time",
    ),
    "rhel 7": Family(
        {
            UNIT: service(
                f"{AGENT} \\\n --blacklist=${{BLACKLIST_RPC}} \\\n -F${{FSFREEZE_HOOK_PATHNAME}}",
                f"EnvironmentFile={SYSCONFIG}",
            ),
            SYSCONFIG: f"{_OURS}BLACKLIST_RPC=guest-fstrim,guest-get-time",
        },
        SYSCONFIG,
        "BLACKLIST_RPC=guest-fstrim,guest-get-time",
        "BLACKLIST_RPC=guest-get-time",
    ),
    "rhel 9": Family(
        {
            UNIT: service(
                f"{AGENT} --block-rpcs=${{BLOCK_RPCS}} -F${{FSFREEZE_HOOK_PATHNAME}}", f"EnvironmentFile={SYSCONFIG}"
            ),
            SYSCONFIG: f"BLOCK_RPCS='guest-fstrim'\n{_OURS}",
        },
        SYSCONFIG,
        "BLOCK_RPCS='guest-fstrim'",
        "BLOCK_RPCS=''",
    ),
    "fedora": Family(
        {
            UNIT: service(f"{AGENT} $FILTER_RPC_ARGS -F${{FSFREEZE_HOOK_PATHNAME}}", f"EnvironmentFile={SYSCONFIG}"),
            SYSCONFIG: f'{_OURS}FILTER_RPC_ARGS="-v --block-rpcs=guest-get-time,guest-fstrim"\n',
        },
        SYSCONFIG,
        'FILTER_RPC_ARGS="-v --block-rpcs=guest-get-time,guest-fstrim"',
        'FILTER_RPC_ARGS="-v --block-rpcs=guest-get-time"',
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_settings_are_changed_where_they_are_and_nothing_else(pristine_guest: Guest, name: str) -> None:
    guest, family = pristine_guest, FAMILIES[name]
    set_up(guest, family.files)
    before, process = enabled(guest), guest.process()
    assert not before["guest-fstrim"]

    result = policy(guest, "enabled", rpcs=["guest-fstrim"])
    assert (result["way"], result["proved"]) == ("exec", True)
    assert result["settings"]["guest-fstrim"][0]["path"] == family.path
    assert result["files"][0]["lines"] == [{"before": family.before, "after": family.after}]
    changed = family.files[family.path].replace(family.before, family.after)
    assert guest.read_file(family.path) == changed.encode()
    assert guest.read_file(f"{family.path}.kvm-fleet-backup") == family.files[family.path].encode()
    assert enabled(guest) == {**before, "guest-fstrim": True}
    assert policy(guest, "enabled", rpcs=["guest-fstrim"])["changed"] is False

    policy(guest, "disabled", rpcs=["guest-fstrim"])
    assert enabled(guest) == before
    assert guest.process() == process


def test_a_vendors_file_is_overridden_by_one_that_is_made(pristine_guest: Guest) -> None:
    vendors = 'FILTER_RPC_ARGS="--block-rpcs=guest-exec-x,guest-fstrim"\n'
    files = {
        UNIT: service(
            f"{AGENT} $FILTER_RPC_ARGS", "EnvironmentFile=-/usr/etc/sysconfig/qemu-ga", f"EnvironmentFile=-{SYSCONFIG}"
        ),
        "/usr/etc/sysconfig/qemu-ga": vendors,
    }
    set_up(pristine_guest, files)
    result = policy(pristine_guest, "enabled", rpcs=["guest-fstrim"])
    assert [file["path"] for file in result["files"]] == [SYSCONFIG]
    assert pristine_guest.read_file(SYSCONFIG) == b'FILTER_RPC_ARGS="--block-rpcs=guest-exec-x"\n'
    assert pristine_guest.read_file("/usr/etc/sysconfig/qemu-ga") == vendors.encode()
    assert pristine_guest.output("/usr/bin/stat", "-c", "%a %U", SYSCONFIG) == "644 root\n"
    assert enabled(pristine_guest)["guest-fstrim"]


# --- guest-exec itself ---------------------------------------------------------------------------


def test_guest_exec_is_blocked_and_allowed_again_check_real_again(pristine_guest: Guest) -> None:
    """Blocked through guest-exec, without a restart of the guest; allowed through files, with one."""
    guest = pristine_guest
    ours = b"# of ours\r\n[general]\r\nverbose=0\r\n[other]\r\nx=\xff"
    guest.output("/bin/mkdir", "-p", "/etc/qemu")
    guest.write_file(CONF, ours)
    guest.output("/bin/chmod", "640", CONF)
    guest.output("/bin/chown", "root:adm", CONF)
    process, boot_id, known = guest.process(), guest.boot_id(), len(audited(guest))

    result = policy(guest, "disabled", check=True, diff=True)
    assert (result["changed"], result["way"]) == (True, "exec")
    assert "+block-rpcs=guest-exec,guest-exec-status\n" in result["printed_diff"]
    assert (guest.read_file(CONF), enabled(guest)["guest-exec"], len(audited(guest))) == (ours, True, known)

    result = policy(guest, "disabled", owner="test")
    assert (result["way"], result["proved"], guest.process()) == ("exec", True, process)
    assert not any(enabled(guest)[rpc] for rpc in EXEC)
    added = ours.replace(b"[general]\r\n", b"[general]\r\nblock-rpcs=guest-exec,guest-exec-status\r\n")
    assert guest.read_file(CONF) == added
    assert guest.read_file(f"{CONF}.kvm-fleet-backup") == ours
    assert [(entry["event"], entry["owner"], entry["way"]) for entry in audited(guest)[known:]] == [
        ("changing", "test", "exec"),
        ("changed", "test", "exec"),
    ]
    assert policy(guest, "disabled")["changed"] is False

    result = policy(guest, "enabled", check=True, diff=True)
    assert (result["way"], guest.process()) == ("files", process)
    assert "-block-rpcs=guest-exec,guest-exec-status\n" in result["printed_diff"]
    assert refused(guest, "enabled", power_cycle=False)["error_code"] == "no_way_open"
    assert guest.read_file(CONF) == added

    result = policy(guest, "enabled")
    assert (result["way"], result["restarted"], result["proved"]) == ("files", True, True)
    assert guest.process() != process
    assert guest.boot_id() != boot_id
    assert guest.read_file(CONF) == ours.replace(b"[general]\r\n", b"[general]\r\nblock-rpcs=\r\n")
    for path in (CONF, f"{CONF}.kvm-fleet-backup"):
        assert guest.output("/usr/bin/stat", "-c", "%a %U:%G", path) == "640 root:adm\n"
    assert Path(result["files"][0]["backup"]).read_bytes() == added
    assert policy(guest, "enabled")["changed"] is False


def test_a_guest_that_does_not_shut_down_is_left_as_it_was(pristine_guest: Guest) -> None:
    guest = pristine_guest
    guest.output("/bin/mkdir", "-p", "/etc/systemd/logind.conf.d")
    guest.write_file("/etc/systemd/logind.conf.d/deaf.conf", b"[Login]\nHandlePowerKey=ignore\n")
    guest.output("/usr/bin/systemctl", "restart", "systemd-logind.service")
    guest.block_agent_commands(*EXEC)
    before, process = guest.read_file(CONF), guest.process()
    result = refused(guest, "enabled", shutdown_timeout=6)
    assert (result["error_code"], result["evidence"]["put_back"]) == ("shutdown_timeout", True)
    assert (guest.read_file(CONF), guest.process(), guest.answers()) == (before, process, True)


def test_an_agent_that_does_not_start_with_its_new_settings_gets_its_old_ones(pristine_guest: Guest) -> None:
    """The unit's own check fails for what is to be added, which nobody could know before."""
    check = "ExecStartPre=/bin/sh -c '! grep -q guest-fstrim /etc/qemu/qemu-ga.conf'"
    files = {UNIT: service(AGENT, check).replace("Restart=always\n", ""), CONF: "[general]\n"}
    set_up(pristine_guest, files)
    result = refused(pristine_guest, "disabled", rpcs=["guest-fstrim"], agent_timeout=30)
    assert result["error_code"] == "proof_failed"
    assert wait_until(pristine_guest.answers, 60)
    assert pristine_guest.read_file(CONF) == b"[general]\n"
    assert enabled(pristine_guest)["guest-fstrim"]
    assert [entry["event"] for entry in audited(pristine_guest)][-1] == "failed"


# --- in the image --------------------------------------------------------------------------------


def test_both_are_blocked_so_the_image_is_edited_while_the_guest_is_off(make_guest: MakeGuest) -> None:
    guest = make_guest()
    guest.block_agent_commands(*EXEC, *FILES)
    # What is not on the disks yet cannot be seen there.
    inside.ask(guest.domain, "guest-fsfreeze-freeze")
    inside.ask(guest.domain, "guest-fsfreeze-thaw")
    process, others = guest.process(), {rpc for rpc, allowed in enabled(guest).items() if allowed}
    predicted = policy(guest, "enabled", check=True, diff=True)
    assert (predicted["way"], predicted["changed"], predicted["known"]) == ("offline", True, True)
    assert f"+block-rpcs={','.join(FILES)}\n" in predicted["printed_diff"]
    assert guest.process() == process

    result = policy(guest, "enabled")
    assert (result["way"], result["known"], result["proved"]) == ("offline", True, True)
    assert [file["lines"] for file in result["files"]] == [file["lines"] for file in predicted["files"]]
    assert guest.process() not in (None, process)
    assert {rpc for rpc, allowed in enabled(guest).items() if allowed} == {*others, *EXEC}
    blocked = f"[general]\nblock-rpcs={','.join((*EXEC, *FILES))}\n"
    assert guest.output("/bin/cat", CONF) == f"[general]\nblock-rpcs={','.join(FILES)}\n"
    assert guest.output("/bin/cat", f"{CONF}.kvm-fleet-backup") == blocked
    assert [entry["event"] for entry in audited(guest)] == ["restarting", "changing", "changed"]

    # One that is off stays off.
    assert not module("domain_power", name=guest.name, state="stopped")["failed"]
    predicted = policy(guest, "disabled", check=True)
    assert predicted["files"][0]["lines"][0]["after"] == f"block-rpcs={','.join((*FILES, *EXEC))}"
    result = policy(guest, "disabled")
    assert (result["way"], result["changed"], result["proved"], guest.process()) == ("offline", True, False, None)
    assert policy(guest, "disabled")["changed"] is False
    guest.start()
    assert wait_until(guest.answers, 300)
    assert not any(enabled(guest)[rpc] for rpc in EXEC)


def test_a_file_in_the_image_that_is_not_understood_is_refused_before_the_shutdown(pristine_guest: Guest) -> None:
    guest = pristine_guest
    guest.write_file(UNIT, service(f"{AGENT} --block-rpcs={','.join((*EXEC, *FILES))}").encode())
    guest.output("/usr/bin/systemctl", "daemon-reload")
    guest.output("/bin/sync")
    guest.block_agent_commands(*EXEC, *FILES)
    process = guest.process()
    result = refused(guest, "enabled")
    assert (result["error_code"], result["evidence"]["line"]) == ("policy_unsupported", 4)
    assert (guest.process(), guest.answers()) == (process, True)


def test_an_agent_that_hangs_or_may_not_tell_is_set_up_on_the_image(pristine_guest: Guest) -> None:
    guest = pristine_guest
    blocked = f"[general]\nblock-rpcs={','.join(('guest-info', *EXEC))}\n"
    guest.output("/bin/mkdir", "-p", "/etc/qemu")
    guest.write_file(CONF, blocked.encode())
    guest.output("/bin/sync")
    guest.do_to_agent("kill", "--signal=STOP")
    assert wait_until(lambda: not guest.answers(), 60)
    process = guest.process()
    assert set(refused(guest, "enabled", power_cycle=False)["evidence"]["ways"]) == {"exec", "files", "offline"}
    predicted = policy(guest, "enabled", check=True)
    assert (predicted["way"], predicted["files"][0]["lines"][0]["after"]) == ("offline", "block-rpcs=")
    assert guest.process() == process
    result = policy(guest, "enabled")
    assert (result["way"], result["proved"], result["files"][0]["lines"]) == (
        *("offline", True),
        predicted["files"][0]["lines"],
    )
    assert all(enabled(guest)[rpc] for rpc in ("guest-info", *EXEC))

    # One that answers, and may not tell what it allows.
    guest.write_file(CONF, blocked.encode())
    guest.output("/bin/sync")
    guest.do_to_agent("restart")
    assert wait_until(lambda: guest.answers() and not tells(guest), 120)
    assert refused(guest, "disabled", rpcs=["guest-fstrim"])["error_code"] == "agent_command_blocked"
    predicted = policy(guest, "enabled", check=True)
    assert (predicted["way"], predicted["files"][0]["lines"][0]["after"]) == ("offline", "block-rpcs=")


def tells(guest: Guest) -> bool:
    try:
        return bool(enabled(guest))
    except AgentFailed:
        return False


def test_an_edit_that_the_agent_does_not_come_up_with_is_undone_by_another_power_cycle(pristine_guest: Guest) -> None:
    guest, conf = pristine_guest, "[general]\nblock-rpcs=guest-fstrim\n"
    check = "[Service]\nExecStartPre=/bin/grep -q guest-fstrim /etc/qemu/qemu-ga.conf\n"
    set_up(guest, {CONF: conf, "/etc/systemd/system/qemu-guest-agent.service.d/check.conf": check})
    guest.output("/bin/sync")
    process = guest.process()
    result = refused(guest, "enabled", rpcs=["guest-fstrim"], way="offline", agent_timeout=120)
    assert (result["error_code"], result["evidence"]["put_back"]) == ("agent_silent", True)
    assert result["evidence"]["backups"] == {CONF: f"{CONF}.kvm-fleet-backup"}
    assert "undoing" not in result["evidence"]
    assert guest.process() not in (None, process)
    assert (guest.read_file(CONF), enabled(guest)["guest-fstrim"]) == (conf.encode(), False)
    assert [entry["event"] for entry in audited(guest)][-2:] == ["changing", "failed"]


# --- refusals ------------------------------------------------------------------------------------


def test_what_is_not_edited_is_refused_by_file_and_line(pristine_guest: Guest) -> None:
    guest = pristine_guest
    set_up(guest, {UNIT: service(f"{AGENT} --block-rpcs=guest-fstrim")})
    process = guest.process()
    for check in (True, False):
        result = refused(guest, "enabled", rpcs=["guest-fstrim"], check=check)
        assert result["error_code"] == "policy_unsupported"
        # systemd's own order of directories has the vendor's below /usr first.
        assert result["evidence"]["file"].endswith("lib/systemd/system/qemu-guest-agent.service")
        assert (result["evidence"]["line"], guest.process()) == (4, process)


def test_both_are_blocked_and_nothing_may_be_restarted(pristine_guest: Guest) -> None:
    pristine_guest.block_agent_commands(*EXEC, *FILES)
    ways = refused(pristine_guest, "enabled", power_cycle=False)["evidence"]["ways"]
    assert set(ways) == {"exec", "files", "offline"}
    assert "guest-file-open" in ways["files"]
    assert pristine_guest.answers()


# --- the playbook --------------------------------------------------------------------------------


def test_the_playbook_finds_those_that_forbid_guest_exec_and_leaves_the_others_alone(
    pair: Pair, tmp_path: Path
) -> None:
    for guest in pair:
        make_fresh(guest)
    pair.nasty.block_agent_commands(*EXEC)
    # Guests of other sessions on this machine are none of this run's business.
    inventory = listing(tmp_path, {"plain": {"kvm_domain": pair.plain.name}, "nasty": {"kvm_domain": pair.nasty.name}})
    processes = [guest.process() for guest in pair]

    run = playbook("enable_guest_exec", "--check", "--diff", inventory=inventory)
    assert run.exit_code == 0
    assert "-block-rpcs=guest-exec,guest-exec-status" in run.output
    assert [guest.process() for guest in pair] == processes
    assert run.records["nasty"]["outcome"] == "changed"

    run = playbook("enable_guest_exec", inventory=inventory)
    assert run.exit_code == 0
    assert run.paragraph("nasty")[:4] == [
        "✓ nasty",
        "  Agent: allows guest-exec, guest-exec-status",
        "  Way: files",
        f"  Changed: {CONF}",
    ]
    assert "plain" not in "".join(run.summary)
    assert pair.plain.process() == processes[0]
    assert pair.nasty.process() != processes[1]
    assert enabled(pair.nasty)["guest-exec"]

    again = playbook("enable_guest_exec", guests=["nasty"], inventory=inventory)
    assert (again.exit_code, again.records["nasty"]["outcome"]) == (0, "unchanged")


def test_the_playbook_fails_for_a_guest_that_no_way_leads_to(pair: Pair, tmp_path: Path) -> None:
    make_fresh(pair.plain)
    pair.plain.block_agent_commands(*EXEC)
    inventory = listing(tmp_path, {"plain": {"kvm_domain": pair.plain.name}})
    run = playbook("enable_guest_exec", variables={"agent_policy_power_cycle": False}, inventory=inventory)
    assert run.exit_code == 2
    record = run.records["plain"]
    assert (record["outcome"], record["error"]["error_code"]) == ("refused", "no_way_open")
    assert not enabled(pair.plain)["guest-exec"]

    # With an address it is logged in to, where nobody listens.
    inventory = listing(
        tmp_path, {"plain": {"kvm_domain": pair.plain.name, "ansible_host": "127.0.0.1", "ansible_port": 1}}
    )
    run = playbook("enable_guest_exec", variables={"agent_policy_power_cycle": False}, inventory=inventory)
    assert run.exit_code == 2
    assert "could not be logged in to" in run.records["plain"]["error"]["msg"]
