# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""guest_agent_policy on a real guest, whose agent has its RPC filter from where each family has it."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from lab import inside
from lab.clock import wait_until
from lab.errors import AgentFailed
from lab.guests import READY_WITHIN_S
from tests.integration.runs import difference, listing, module, playbook, refusal

if TYPE_CHECKING:
    from lab.fixtures import Kept, MakeGuest
    from lab.guests import Guest

UNIT = "/lib/systemd/system/qemu-guest-agent.service"
TEMPLATE = "/lib/systemd/system/qemu-ga@.service"
SERVICE = "qemu-guest-agent.service"
INSTANCE = r"qemu-ga@virtio\x2dports-org.qemu.guest_agent.0.service"
CONF = "/etc/qemu/qemu-ga.conf"
SYSCONFIG = "/etc/sysconfig/qemu-ga"
VENDORS = "/usr/etc/sysconfig/qemu-ga"
DEFAULTS = "/etc/default/qemu-guest-agent"
DROP_IN = "/etc/systemd/system/qemu-ga@.service.d/10-filter.conf"
AUDIT = Path("/var/lib/kvm-fleet/audit.jsonl")
EXEC = ("guest-exec", "guest-exec-status")
FILES = ("guest-file-open", "guest-file-close", "guest-file-read", "guest-file-write", "guest-file-flush")
AGENT = "/usr/sbin/qemu-ga --method=virtio-serial --path=/dev/virtio-ports/org.qemu.guest_agent.0"

# What a family before has left. Its directories stay.
_CLEAN = f"""\
rm -rf {UNIT} {TEMPLATE} /etc/systemd/system/qemu-*.service.d
rm -f {CONF}* {SYSCONFIG}* {VENDORS}* {DEFAULTS}*
mkdir -p "$@"
"""


def enabled(guest: Guest) -> dict[str, bool]:
    """What the agent lets through, by its own word."""
    answer = inside.ask(guest.domain, "guest-info")
    return {command["name"]: command["enabled"] for command in answer["supported_commands"]}


def tells(guest: Guest, blocked: str = "") -> bool:
    """Whether the agent tells what it lets through, and that this is not in it."""
    try:
        return not enabled(guest).get(blocked, False)
    except AgentFailed:
        return False


def agent_pid(guest: Guest) -> bytes:
    """Another one after each restart of the agent, whichever unit starts it; empty while it does not answer.

    The agent reads it itself. A process more to ask would slow down what is waited for.
    """
    try:
        return guest.read_file("/proc/self/stat").partition(b" ")[0]
    except AgentFailed:
        return b""


def put(guest: Guest, files: dict[str, str]) -> None:
    """Put files into the guest in the place of all those that decide what its agent lets through."""
    guest.output("/bin/sh", "-c", _CLEAN, "sh", *{str(Path(path).parent) for path in files})
    for path, content in files.items():
        guest.write_file(path, content.encode())


def do_to_systemd(guest: Guest, *commands: str) -> None:
    """Have systemd do this a moment from now. Whether it has must be seen: the agent may not live to tell."""
    script = "; ".join(f"systemctl {command}" for command in ("daemon-reload", *commands))
    with suppress(AgentFailed):
        guest.output(
            *("/usr/bin/systemd-run", "--collect", "--on-active=100ms", "--timer-property=AccuracySec=10ms"),
            *("/bin/sh", "-c", script),
        )


def start_agent(guest: Guest, unit: str = SERVICE) -> None:
    """Have the agent started by a unit that has just been put there, whichever one has started it before."""
    do_to_systemd(guest, f"stop {SERVICE} 'qemu-ga@*'", f"start '{unit}'")


def set_up(guest: Guest, files: dict[str, str], unit: str = SERVICE) -> None:
    """Put files into the guest and have its agent started by them."""
    put(guest, files)
    before = agent_pid(guest)
    start_agent(guest, unit)
    assert wait_until(lambda: agent_pid(guest) not in (b"", before), READY_WITHIN_S)


def nothing_is_pending(guest: Guest) -> bool:
    """Whether systemd has done all that it was asked to do a moment later, such as to restart the agent."""
    try:
        return not guest.output("/usr/bin/systemctl", "list-units", "--no-legend", "run-*.timer", "run-*.service")
    except AgentFailed:
        return False


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
    unit: str = SERVICE
    again: str = ""
    """Once it is blocked again, where that is another line than before."""


def service(exec_start: str, *more: str) -> str:
    lines = ("[Unit]", "Description=QEMU Guest Agent", "[Service]", *more, f"ExecStart={exec_start}", "Restart=always")
    return "\n".join((*lines, "RestartSec=0", ""))


_OURS = "# of ours\nFSFREEZE_HOOK_PATHNAME=/etc/qemu-ga/fsfreeze-hook\n"
_SYSCONFIG = f"EnvironmentFile={SYSCONFIG}"
_BOTH, _ONE = "guest-get-time,guest-fstrim", "guest-get-time"
TEMPLATE_OF_SUSE = "\n".join(
    (
        *("[Unit]", "BindsTo=dev-%i.device", "After=dev-%i.device"),
        *("[Service]", "ExecStart=-/usr/sbin/qemu-ga -p /dev/%I", "Restart=always", "RestartSec=0"),
        *("[Install]", "WantedBy=dev-%i.device", ""),
    )
)
FAMILIES = {
    "debian": Family(
        {UNIT: service("-/usr/sbin/qemu-ga"), CONF: f"# of ours\n[general]\nverbose = 0\nblock-rpcs = {_BOTH}\n"},
        CONF,
        f"block-rpcs = {_BOTH}",
        f"block-rpcs = {_ONE}",
    ),
    # There is no unit, so systemd makes one of the init script.
    "ubuntu 18.04": Family(
        {DEFAULTS: f"# of ours\nDAEMON_ARGS='-b {_BOTH}'\n"},
        DEFAULTS,
        f"DAEMON_ARGS='-b {_BOTH}'",
        f"DAEMON_ARGS='-b {_ONE}'",
    ),
    "rhel 9": Family(
        {
            UNIT: service(f"{AGENT} --block-rpcs=${{BLOCK_RPCS}} -F${{FSFREEZE_HOOK_PATHNAME}}", _SYSCONFIG),
            SYSCONFIG: f"BLOCK_RPCS=guest-fstrim,guest-get-time\n{_OURS}",
        },
        SYSCONFIG,
        "BLOCK_RPCS=guest-fstrim,guest-get-time",
        "BLOCK_RPCS=guest-get-time",
        again="BLOCK_RPCS=guest-get-time,guest-fstrim",
    ),
    # As an administrator has left it who prefers to name what is blocked: the lab's agent has no --allow-rpcs.
    "rhel 10, fedora": Family(
        {
            UNIT: service(f"{AGENT} $FILTER_RPC_ARGS -F${{FSFREEZE_HOOK_PATHNAME}}", _SYSCONFIG),
            SYSCONFIG: f'{_OURS}# FILTER_RPC_ARGS="--allow-rpcs="\nFILTER_RPC_ARGS="-v --block-rpcs={_BOTH}"\n',
        },
        SYSCONFIG,
        f'FILTER_RPC_ARGS="-v --block-rpcs={_BOTH}"',
        f'FILTER_RPC_ARGS="-v --block-rpcs={_ONE}"',
    ),
    "suse": Family(
        {
            UNIT: service("-/usr/sbin/qemu-ga -p /dev/virtio-ports/org.qemu.guest_agent.0"),
            CONF: f"[general]\nblacklist={_BOTH}\n",
        },
        CONF,
        f"blacklist={_BOTH}",
        f"blacklist={_ONE}",
    ),
    "suse 15.3": Family(
        {
            TEMPLATE: TEMPLATE_OF_SUSE,
            DROP_IN: f"[Service]\nExecStart=\nExecStart=-/usr/sbin/qemu-ga -p /dev/%I --blacklist={_BOTH}\n",
        },
        DROP_IN,
        f"ExecStart=-/usr/sbin/qemu-ga -p /dev/%I --blacklist={_BOTH}",
        f"ExecStart=-/usr/sbin/qemu-ga -p /dev/%I --blacklist={_ONE}",
        INSTANCE,
    ),
}


# Each of the others is a variant of one of these.
IN_SHORT = ("debian", "rhel 9")


@pytest.fixture(scope="module")
def family_guest(kept_guest: Kept) -> Guest:
    """The shared guest for tests that bring every file that matters, so that nobody has to clean up between them."""
    return kept_guest.to_change()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in IN_SHORT else pytest.mark.thorough) for name in FAMILIES]
)
def test_a_familys_settings_are_changed_where_they_are_and_nothing_else(family_guest: Guest, name: str) -> None:
    guest, family = family_guest, FAMILIES[name]
    set_up(guest, family.files, family.unit)
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

    # Which is the line that the agent has been seen to block it for.
    predicted = policy(guest, "disabled", rpcs=["guest-fstrim"], check=True)
    assert (predicted["way"], predicted["files"][0]["path"]) == ("exec", family.path)
    again = {"before": family.after, "after": family.again or family.before}
    assert predicted["files"][0]["lines"] == [again]
    assert guest.process() == process


def test_a_vendors_file_is_overridden_by_one_that_is_made(family_guest: Guest) -> None:
    vendors = 'FILTER_RPC_ARGS="--block-rpcs=guest-exec-x,guest-fstrim"\n'
    unit = service(f"{AGENT} $FILTER_RPC_ARGS", f"EnvironmentFile=-{VENDORS}", f"EnvironmentFile=-{SYSCONFIG}")
    set_up(family_guest, {UNIT: unit, VENDORS: vendors})
    result = policy(family_guest, "enabled", rpcs=["guest-fstrim"])
    assert [file["path"] for file in result["files"]] == [SYSCONFIG]
    assert family_guest.read_file(SYSCONFIG) == b'FILTER_RPC_ARGS="--block-rpcs=guest-exec-x"\n'
    assert family_guest.read_file(VENDORS) == vendors.encode()
    assert family_guest.output("/usr/bin/stat", "-c", "%a %U", SYSCONFIG) == "644 root\n"
    assert enabled(family_guest)["guest-fstrim"]


def test_an_agent_that_does_not_start_with_its_new_settings_gets_its_old_ones(family_guest: Guest) -> None:
    """The unit's own check fails for what is to be added, which nobody could know before.

    systemd tries so often within a moment that it would not even start the agent with its old settings.
    """
    unit = service(AGENT, f"ExecStartPre=/bin/sh -c '! grep -q guest-fstrim {CONF}'")
    set_up(family_guest, {UNIT: unit, CONF: "[general]\n"})
    result = refused(family_guest, "disabled", rpcs=["guest-fstrim"], agent_timeout=20)
    assert result["error_code"] == "proof_failed"
    assert wait_until(lambda: nothing_is_pending(family_guest), READY_WITHIN_S)
    assert family_guest.read_file(CONF) == b"[general]\n"
    assert enabled(family_guest)["guest-fstrim"]
    assert [entry["event"] for entry in audited(family_guest)][-1] == "failed"


@pytest.mark.thorough
def test_what_is_not_edited_is_refused_by_file_and_line(family_guest: Guest) -> None:
    """By guest-exec, and on the image before the shutdown for it."""
    guest = family_guest
    set_up(guest, {UNIT: service(f"{AGENT} --block-rpcs=guest-fstrim")})
    guest.output("/bin/sync")
    process = guest.process()
    for way, check in (("exec", True), ("offline", False)):
        result = refused(guest, "enabled", rpcs=["guest-fstrim"], way=way, check=check)
        assert result["error_code"] == "policy_unsupported"
        # systemd's own order of directories has the vendor's below /usr first.
        assert result["evidence"]["file"].endswith("lib/systemd/system/qemu-guest-agent.service")
        assert (result["evidence"]["line"], guest.process(), guest.answers()) == (4, process, True)


# --- guest-exec itself ---------------------------------------------------------------------------


def test_guest_exec_is_blocked_by_the_module_and_allowed_again_by_the_playbook(
    pristine_guest: Guest, make_guest: MakeGuest, tmp_path: Path
) -> None:
    """Blocked through guest-exec, without a restart of the guest; allowed through files, with one."""
    guest, plain = pristine_guest, make_guest(f"-Zoë's {{{{ {os.getpid()} }}}}", wait=False)
    ours = b"# of ours\r\n[general]\r\nverbose=0\r\n[other]\r\nx=\xff"
    guest.output("/bin/mkdir", "-p", "/etc/qemu")
    guest.write_file(CONF, ours)
    guest.output("/bin/chmod", "640", CONF)
    guest.output("/bin/chown", "root:adm", CONF)
    process, boot_id, known = guest.process(), guest.boot_id(), len(audited(guest))

    result, printed = difference("guest_agent_policy", name=guest.name, state="disabled")
    assert (result["changed"], result["way"]) == (True, "exec")
    assert "+block-rpcs=guest-exec,guest-exec-status\n" in printed
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

    # Guests of other sessions on this machine are none of this run's business.
    plain.wait_until_ready()
    domains = {"strict": {"kvm_domain": guest.name}, "plain": {"kvm_domain": plain.name}}
    no_power_cycle = {"agent_policy_power_cycle": False}
    # Nobody listens there, but that somebody tried shows that the role goes on to this way.
    address = {"ansible_host": "127.0.0.1", "ansible_port": 1}
    inventory = listing(tmp_path, {**domains, "strict": {**domains["strict"], **address}})
    run = playbook("enable_guest_exec", variables=no_power_cycle, inventory=inventory)
    assert (run.exit_code, run.records["strict"]["outcome"]) == (2, "refused")
    assert run.records["strict"]["error"]["error_code"] == "no_way_open"
    assert "Ansible could not do it in the guest: " in run.records["strict"]["error"]["msg"]
    assert (guest.read_file(CONF), enabled(guest)["guest-exec"]) == (added, False)

    processes = [one.process() for one in (guest, plain)]
    run = playbook("enable_guest_exec", "--check", "--diff", inventory=inventory)
    assert run.exit_code == 0, run.output
    assert "-block-rpcs=guest-exec,guest-exec-status" in run.output
    assert [one.process() for one in (guest, plain)] == processes
    assert run.records["strict"]["outcome"] == "changed"

    run = playbook("enable_guest_exec", inventory=inventory)
    assert run.exit_code == 0, run.output
    # With nobody to log in, the guest is restarted after all.
    told = run.paragraph("strict")[:5]
    assert told[3].startswith("  Not open: ssh: ")
    assert [*told[:3], told[4]] == [
        "✓ strict",
        "  Agent: allows guest-exec, guest-exec-status",
        "  Way: files",
        f"  Changed: {CONF}",
    ]
    assert "plain" not in "".join(run.summary)
    assert plain.process() == processes[1]
    assert guest.process() != process
    assert guest.boot_id() != boot_id
    assert guest.read_file(CONF) == ours.replace(b"[general]\r\n", b"[general]\r\nblock-rpcs=\r\n")
    for path in (CONF, f"{CONF}.kvm-fleet-backup"):
        assert guest.output("/usr/bin/stat", "-c", "%a %U:%G", path) == "640 root:adm\n"
    assert Path(audited(guest)[-1]["files"][0]["backup"]).read_bytes() == added
    again = playbook("enable_guest_exec", guests=["strict"], inventory=inventory)
    assert (again.exit_code, again.records["strict"]["outcome"]) == (0, "unchanged")


@pytest.mark.thorough
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


# --- in the image --------------------------------------------------------------------------------


def test_both_are_blocked_as_rhel_7_and_8_have_it_so_the_image_is_edited_while_the_guest_is_off(
    pristine_guest: Guest,
) -> None:
    guest, known = pristine_guest, len(audited(pristine_guest))
    unit = service(f"{AGENT} \\\n --blacklist=${{BLACKLIST_RPC}} \\\n -F${{FSFREEZE_HOOK_PATHNAME}}", _SYSCONFIG)
    blocked = f"BLACKLIST_RPC={','.join((*FILES, *EXEC))}\n{_OURS}"
    put(guest, {UNIT: unit, SYSCONFIG: blocked, "/etc/inittab": "# inittab is no longer used.\n"})
    # What is not on the disks yet cannot be seen there.
    guest.output("/bin/sync")
    start_agent(guest)
    assert wait_until(lambda: tells(guest, "guest-exec"), READY_WITHIN_S)
    process, others = guest.process(), {rpc for rpc, allowed in enabled(guest).items() if allowed}
    ways = refused(guest, "enabled", power_cycle=False)["evidence"]["ways"]
    assert set(ways) == {"exec", "files", "offline"}
    assert "guest-file-open" in ways["files"]
    assert guest.process() == process
    assert wait_until(guest.answers, READY_WITHIN_S)

    result = policy(guest, "enabled")
    assert (result["way"], result["known"], result["proved"]) == ("offline", True, True)
    assert guest.process() not in (None, process)
    assert {rpc for rpc, allowed in enabled(guest).items() if allowed} == {*others, *EXEC}
    assert guest.output("/bin/cat", SYSCONFIG) == f"BLACKLIST_RPC={','.join(FILES)}\n{_OURS}"
    assert guest.output("/bin/cat", f"{SYSCONFIG}.kvm-fleet-backup") == blocked
    assert [entry["event"] for entry in audited(guest)][known:] == ["restarting", "changing", "changed"]

    # One that is off stays off. A playbook makes the edit that is predicted here in test_guest_exec_playbooks.py.
    assert not module("domain_power", name=guest.name, state="stopped")["failed"]
    predicted = policy(guest, "disabled", check=True)
    assert predicted["files"][0]["lines"][0]["after"] == f"BLACKLIST_RPC={','.join((*FILES, *EXEC))}"
    assert (predicted["way"], predicted["changed"], guest.process()) == ("offline", True, None)


@pytest.mark.thorough
def test_an_agent_that_hangs_or_may_not_tell_is_set_up_on_the_image(pristine_guest: Guest) -> None:
    """It is one of a template, as SUSE has it up to 15.3."""
    guest = pristine_guest
    blocked = f"[general]\nblock-rpcs={','.join(('guest-info', *EXEC))}\n"
    set_up(guest, {TEMPLATE: TEMPLATE_OF_SUSE, CONF: "[general]\n"}, INSTANCE)
    guest.output("/usr/bin/systemctl", "enable", INSTANCE)
    guest.write_file(CONF, blocked.encode())
    guest.output("/bin/sync")
    do_to_systemd(guest, f"kill --signal=STOP '{INSTANCE}'")
    assert wait_until(lambda: not guest.answers(), READY_WITHIN_S)
    process = guest.process()
    assert set(refused(guest, "enabled", power_cycle=False)["evidence"]["ways"]) == {"exec", "files", "offline"}
    predicted, printed = difference("guest_agent_policy", name=guest.name, state="enabled")
    assert (predicted["way"], predicted["changed"], predicted["known"]) == ("offline", True, True)
    assert predicted["files"][0]["lines"][0]["after"] == "block-rpcs="
    assert "+block-rpcs=\n" in printed
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
    do_to_systemd(guest, f"restart '{INSTANCE}'")
    assert wait_until(lambda: guest.answers() and not tells(guest), READY_WITHIN_S)
    assert refused(guest, "disabled", rpcs=["guest-fstrim"])["error_code"] == "agent_command_blocked"
    predicted = policy(guest, "enabled", check=True)
    assert (predicted["way"], predicted["files"][0]["lines"][0]["after"]) == ("offline", "block-rpcs=")


@pytest.mark.thorough
def test_an_edit_that_the_agent_does_not_come_up_with_is_undone_by_another_power_cycle(pristine_guest: Guest) -> None:
    guest, conf = pristine_guest, "[general]\nblock-rpcs=guest-fstrim\n"
    check = "[Service]\nExecStartPre=/bin/grep -q guest-fstrim /etc/qemu/qemu-ga.conf\n"
    unit = service("-/usr/sbin/qemu-ga")
    set_up(guest, {UNIT: unit, CONF: conf, "/etc/systemd/system/qemu-guest-agent.service.d/check.conf": check})
    guest.output("/bin/sync")
    process = guest.process()
    result = refused(guest, "enabled", rpcs=["guest-fstrim"], way="offline", agent_timeout=50)
    assert (result["error_code"], result["evidence"]["put_back"]) == ("agent_silent", True)
    assert result["evidence"]["backups"] == {CONF: f"{CONF}.kvm-fleet-backup"}
    # With the edit it would answer at no time.
    assert wait_until(guest.answers, READY_WITHIN_S)
    assert guest.process() not in (None, process)
    assert (guest.read_file(CONF), enabled(guest)["guest-fstrim"]) == (conf.encode(), False)
    assert [entry["event"] for entry in audited(guest)][-2:] == ["changing", "failed"]
