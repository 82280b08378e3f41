# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the playbooks do in a guest by SSH, on one that Ansible can log in to."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from lab import ssh
from lab.clock import wait_until
from lab.guests import READY_WITHIN_S
from lab.packages import REPACKED_SUFFIX
from tests.integration.proof import make_fresh, remove_agent
from tests.integration.runs import PlaybookRun, listing, playbook
from tests.integration.test_guest_agent_policy import (
    AGENT,
    EXEC,
    FILES,
    SYSCONFIG,
    UNIT,
    audited,
    enabled,
    service,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lab.guests import Guest
    from lab.session import Session

BACKUP = f"{SYSCONFIG}.kvm-fleet-backup"
UNCHECKED = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"

# As RHEL 9 ships it: neither guest-exec nor the agent's commands for files.
SHIPPED = (
    f"# of ours\nBLOCK_RPCS={','.join(('guest-fstrim', *FILES, *EXEC))}\n# kept\nFSFREEZE_HOOK_PATHNAME=/etc/hook\n"
)
ALLOWING = SHIPPED.replace(f",{','.join(EXEC)}\n", "\n")
HARDENED = {
    UNIT: service(
        f"{AGENT} --block-rpcs=${{BLOCK_RPCS}} -F${{FSFREEZE_HOOK_PATHNAME}}", f"EnvironmentFile={SYSCONFIG}"
    ),
    SYSCONFIG: SHIPPED,
}

# The agent's program, as far as systemd and its files tell. No file says that it blocks guest-exec.
STUBBORN = '#!/bin/sh\nexec /usr/sbin/qemu-ga.real --block-rpcs=guest-exec "$@"\n'


@dataclass(frozen=True)
class Reached:
    """A guest that Ansible can log in to, by the address and the key in an inventory."""

    guest: Guest
    inventory: Path

    def output(self, command: str) -> str:
        """What a command of its shell's writes, over SSH: its agent may allow nothing."""
        spec = self.guest.spec
        key = ("-i", str(self.guest.ssh_key))
        words = ["ssh", *UNCHECKED.split(), *key, "-p", str(spec.ssh_port), "root@127.0.0.1", command]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", check=True)
        return done.stdout

    def agent_pid(self) -> str:
        return self.output("systemctl show --property=MainPID --value qemu-guest-agent.service")

    def boot_id(self) -> str:
        return self.output("cat /proc/sys/kernel/random/boot_id")

    def harden(self) -> None:
        """Have the agent refuse what RHEL 9 has it refuse."""
        self.output("mkdir -p /etc/sysconfig")
        for path, content in HARDENED.items():
            self.guest.write_file(path, content.encode())
        self.restart_agent()

    def restart_agent(self) -> None:
        self.output("systemctl daemon-reload && systemctl restart qemu-guest-agent.service")
        assert wait_until(self.guest.answers, READY_WITHIN_S)

    def playbook(self, name: str, *arguments: str, **variables: object) -> PlaybookRun:
        return playbook(name, *arguments, guests=[self.guest.name], variables=variables, inventory=self.inventory)


@pytest.fixture(scope="module")
def reachable(lab: Session, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reached]:
    with lab.guest(ssh_port=ssh.free_port()) as guest:
        guest.take_pristine()
        login = {
            "ansible_host": "127.0.0.1",
            "ansible_port": guest.spec.ssh_port,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(guest.ssh_key),
            "ansible_pipelining": True,
            "ansible_timeout": 60,  # an emulated processor takes its time to exchange keys
            "ansible_ssh_common_args": UNCHECKED,
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        yield Reached(guest, listing(tmp_path_factory.mktemp("ssh"), {guest.name: login}))


@pytest.fixture
def reached(reachable: Reached) -> Reached:
    """The guest as it first came up."""
    make_fresh(reachable.guest)
    return reachable


@pytest.mark.thorough
def test_an_agent_that_lets_nobody_in_is_set_up_by_ssh_and_the_guest_runs_on(reached: Reached) -> None:
    guest = reached.guest
    reached.harden()
    shipped, process, boot_id, pid = enabled(guest), guest.process(), reached.boot_id(), reached.agent_pid()
    assert not any(shipped[rpc] for rpc in (*EXEC, *FILES))

    # Its image is open as well. It comes first all the same, since the guest would have to be shut down for that.
    predicted = reached.playbook("enable_guest_exec", "--check", "--diff")
    assert predicted.exit_code == 0, predicted.output
    assert [line for line in predicted.output.splitlines() if line.startswith(("-BLOCK", "+BLOCK"))] == [
        f"-{SHIPPED.splitlines()[1]}",
        f"+{ALLOWING.splitlines()[1]}",
    ]
    assert (predicted.records[guest.name]["outcome"], predicted.records[guest.name]["way"]) == ("changed", "ssh")
    assert (reached.output(f"cat {SYSCONFIG}"), reached.agent_pid(), audited(guest)) == (SHIPPED, pid, [])

    run = reached.playbook("enable_guest_exec")
    assert run.exit_code == 0, run.output
    record = run.records[guest.name]
    assert (record["outcome"], record["way"], record["restarted"]) == ("changed", "ssh", True)
    assert enabled(guest) == {**shipped, **dict.fromkeys(EXEC, True)}
    assert reached.output(f"cat {SYSCONFIG}") == ALLOWING
    assert reached.output(f"cat {BACKUP}") == SHIPPED
    assert (guest.process(), reached.boot_id()) == (process, boot_id)
    assert reached.agent_pid() != pid
    assert [(line["event"], line["way"], line["state"]) for line in audited(guest)] == [
        ("changing", "ssh", "enabled"),
        ("changed", "ssh", "enabled"),
    ]
    assert audited(guest)[1]["files"] == record["files"]
    assert record["files"][0]["backup"] == BACKUP

    pid = reached.agent_pid()
    again = reached.playbook("enable_guest_exec", agent_policy_way="ssh")
    assert again.exit_code == 0, again.output
    assert again.records[guest.name]["outcome"] == "unchanged"
    assert (reached.agent_pid(), len(audited(guest))) == (pid, 2)

    run = reached.playbook("disable_guest_exec", agent_policy_way="ssh")
    assert run.exit_code == 0, run.output
    assert (run.records[guest.name]["outcome"], run.records[guest.name]["way"]) == ("changed", "ssh")
    assert enabled(guest) == shipped
    assert reached.output(f"cat {SYSCONFIG}") == SHIPPED
    assert (guest.process(), reached.boot_id()) == (process, boot_id)


@pytest.mark.thorough
def test_what_was_set_up_by_ssh_and_does_not_show_is_put_back(reached: Reached) -> None:
    guest = reached.guest
    reached.harden()
    reached.output("mv /usr/sbin/qemu-ga /usr/sbin/qemu-ga.real")
    reached.output(f"printf %s '{STUBBORN}' >/usr/sbin/qemu-ga && chmod 755 /usr/sbin/qemu-ga")
    before, process, pid = enabled(guest), guest.process(), reached.agent_pid()

    run = reached.playbook("enable_guest_exec", agent_policy_way="ssh")
    assert run.exit_code != 0
    record = run.records[guest.name]
    assert (record["outcome"], record["error"]["error_code"]) == ("failed", "proof_failed")
    assert record["error"]["evidence"]["put_back"] is True
    assert "were put back" in record["error"]["remedy"]
    assert reached.output(f"cat {SYSCONFIG}") == SHIPPED
    assert reached.agent_pid() != pid
    assert enabled(guest) == before
    assert guest.process() == process
    assert [line["event"] for line in audited(guest)][-2:] == ["changing", "failed"]


@pytest.mark.thorough
def test_an_agent_that_was_removed_is_installed_by_ssh_as_the_guest_runs(reached: Reached) -> None:
    guest = reached.guest
    process, boot_id = guest.process(), reached.boot_id()
    remove_agent(guest)

    predicted = reached.playbook("install_agent", "--check", agent_probe_timeout=1)
    assert predicted.exit_code == 0, predicted.output
    assert (predicted.records[guest.name]["outcome"], predicted.records[guest.name]["installed"]) == ("changed", "ssh")
    assert not guest.answers()

    run = reached.playbook("install_agent", agent_probe_timeout=1)
    assert run.exit_code == 0, run.output
    record = run.records[guest.name]
    assert (record["outcome"], record["installed"], record["agent"]) == ("changed", "ssh", "answering")
    assert record["restarted"] is False
    assert guest.package_versions()["qemu-guest-agent"].endswith(REPACKED_SUFFIX)
    assert (guest.process(), guest.boot_id().strip()) == (process, boot_id.strip())

    again = reached.playbook("install_agent")
    assert again.records[guest.name]["outcome"] == "unchanged"


@pytest.mark.thorough
def test_a_guest_without_selinux_gets_no_runner(reached: Reached) -> None:
    run = reached.playbook("selinux_runner")
    assert run.exit_code == 0, run.output
    assert run.recap[reached.guest.name]["changed"] == 0
    assert reached.output("ls -d /usr/libexec/kvm-fleet || true") == ""
