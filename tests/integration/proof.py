# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a guest really is at one moment, by means that are not the collection's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lab import drift
from lab.clock import wait_until
from lab.guests import PRISTINE, READY_WITHIN_S

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lab.guests import Guest
    from lab.process import Process

SILENT_WITHIN_S = 120

# Prints one line a fact, its name first. 'files' are those that an upgrade, or a simulation that is none, may touch:
# names, sizes and times, of which that of the last change of any kind, to the nanosecond, cannot be set by anybody.
_LOOK = """\
set -e
echo "boot_id $(cat /proc/sys/kernel/random/boot_id)"
echo "agent $(systemctl show --property MainPID --value qemu-guest-agent.service)"
where='/etc /var/lib/apt /var/lib/dpkg /var/cache/apt /usr/share/lab-app'
echo "files $(find $where -printf '%p %s %T@ %C@\\n' | sha256sum | cut -d ' ' -f 1)"
for path in /var/tmp/* /tmp/* /run/kvm-fleet* /var/lib/kvm-fleet/*; do
  case $path in
    *'*' | */systemd-private-*) ;;
    *) echo "left $path" ;;
  esac
done
"""

FAILS_AT_BOOT = "lab-fails.service"
"""The unit of `fail_at_boot`."""
_FAILING = b"""\
[Service]
Type=oneshot
ExecStart=/bin/false
[Install]
WantedBy=multi-user.target
"""

LET_GO = "/root/let-go"
"""The file in a guest for which whoever holds a lock there waits."""


@dataclass(frozen=True)
class Look:
    """One running guest at one moment. `files` changes when anything does that an upgrade may touch."""

    process: Process
    drifted: bool
    boot_id: str
    agent_pid: str
    files: str
    left: tuple[str, ...]
    packages: Mapping[str, str]
    snapshots: tuple[str, ...]


def look(guest: Guest) -> Look:
    """Look at a running guest."""
    process, drifted = guest.process(), guest.drifted()
    assert process is not None
    assert drifted is not None
    said = [line.partition(" ") for line in guest.output("/bin/sh", "-c", _LOOK).splitlines()]
    facts = {name: value for name, _space, value in said if name != "left"}
    return Look(
        process=process,
        drifted=drifted,
        boot_id=facts["boot_id"],
        agent_pid=facts["agent"],
        files=facts["files"],
        left=tuple(value for name, _space, value in said if name == "left"),
        packages=guest.package_versions(),
        snapshots=snapshots(guest),
    )


def snapshots(guest: Guest) -> tuple[str, ...]:
    """The names of all snapshots that a guest has, but for the lab's own."""
    return tuple(sorted(name for name in guest.domain.snapshotListNames() if name != PRISTINE))


def make_fresh(guest: Guest, *, drifted: bool = False) -> None:
    """Put a guest back to how it first came up and no run knows it, and make its QEMU outdated if asked to."""
    for name in snapshots(guest):
        guest.domain.snapshotLookupByName(name).delete()
    guest.reset()
    guest.run_record.unlink(missing_ok=True)
    if drifted:
        drift.replace_emulator(guest)


def wait_until_booted(guest: Guest) -> None:
    """Wait for the login prompt on the console of a guest that has no agent to ask."""
    assert wait_until(lambda: b"login:" in guest.console.read_bytes(), READY_WITHIN_S)


def stop_agent(guest: Guest) -> None:
    """Have the agent in a guest fall silent; nothing but `make_fresh` wakes it."""
    guest.do_to_agent("stop")
    assert wait_until(lambda: not guest.answers(), SILENT_WITHIN_S)


def remove_agent(guest: Guest) -> None:
    """Have the agent's package removed in a guest, and wait until dpkg is done."""
    guest.output(
        *("/usr/bin/systemd-run", "--collect", "--on-active=100ms", "--timer-property=AccuracySec=10ms"),
        *("/bin/sh", "-c", "dpkg --purge qemu-guest-agent && echo the agent is removed >/dev/console"),
    )
    said = guest.console
    assert wait_until(lambda: b"the agent is removed" in said.read_bytes(), SILENT_WITHIN_S)
    assert not guest.answers()


def break_package(guest: Guest, package: str) -> None:
    """Make dpkg fail when it upgrades this package in a guest."""
    script = f"/var/lib/dpkg/info/{package}.prerm"
    guest.write_file(script, b"#!/bin/sh\necho broken on purpose >&2\nexit 1\n")
    guest.output("/bin/chmod", "755", script)


def fail_at_boot(guest: Guest) -> None:
    """Give a guest a unit that is fine until it boots again, and fails then."""
    guest.write_file(f"/etc/systemd/system/{FAILS_AT_BOOT}", _FAILING)
    guest.output("/usr/bin/systemctl", "enable", FAILS_AT_BOOT)


def let_go_after(guest: Guest, seconds: int) -> None:
    """Have whoever holds a lock in a guest let go of it in so many seconds."""
    guest.output(
        *("/usr/bin/systemd-run", "--collect", f"--on-active={seconds}", "--timer-property=AccuracySec=100ms"),
        *("/usr/bin/touch", LET_GO),
    )
