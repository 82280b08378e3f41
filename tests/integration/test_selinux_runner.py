# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbook selinux_runner on the image of a guest that has a policy in its store.

Debian's kernel enforces none here, and Debian's policy lacks the names of Fedora's, which a module brings. So this
shows what is in the store, on the disk and in the labels, and not what SELinux makes of it.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest

from lab.run import run
from tests.integration.runs import PlaybookRun, listing, playbook

if TYPE_CHECKING:
    from pathlib import Path

    from lab.fixtures import MakeGuest
    from lab.guests import Guest

RUNNER = "/usr/libexec/kvm-fleet/run"
TYPE = "virt_qemu_ga_unconfined_exec_t"
BOOLEAN = "virt_qemu_ga_run_unconfined"
PACKAGES = ("selinux-policy-default", "policycoreutils", "policycoreutils-python-utils")
NAMES = f"""\
(type {TYPE})
(roletype object_r {TYPE})
(typeattributeset file_type ({TYPE}))
(boolean {BOOLEAN} false)
"""

# In place of semanage. What it does once the guest has been shut down, a copy of the guest that runs cannot foresee.
BREAKS_LATER = """\
#!/bin/sh
if [ "$1" = import ] && [ -e /var/lib/was-shut-down ]; then echo 'no such luck' >&2; exit 1; fi
exec /usr/sbin/semanage.real "$@"
"""
WITNESS = """\
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
ExecStop=/bin/touch /var/lib/was-shut-down
"""

# What is there of the runner, line by line, with errors for what is not.
LOOK = f"""\
cd /
if [ -e {RUNNER} ]; then
  stat -c '%U:%G %a %C' {RUNNER}
  setfiles -n -v /etc/selinux/default/contexts/files/file_contexts {RUNNER} 2>&1
else
  ls -d {RUNNER.rpartition("/")[0]} 2>/dev/null || echo no file
fi
semanage export >/run/exported
grep -e '^boolean -m' -e '^fcontext -a' /run/exported || echo nothing in the store
"""
ABSENT = ["no file", "nothing in the store"]
PRESENT = [
    f"root:root 755 system_u:object_r:{TYPE}:s0",  # with no word of setfiles, which would give it the same label
    f"boolean -m -1 {BOOLEAN}",
    f"fcontext -a -f a -t {TYPE} -r 's0' '{RUNNER}'",
]

INSTALL = """\
mount -o loop "$disk" "$directory/root"
cd "$directory"
apt-get update --quiet
apt-get install --quiet --yes --download-only --no-install-recommends \
  -o "Dir::State::status=$directory/root/var/lib/dpkg/status" -o "Dir::Cache::archives=$directory/debs" $packages
cp -r debs root/root/
cp names.cil root/root/
mount -t proc proc root/proc
DEBIAN_FRONTEND=noninteractive chroot root dpkg --install --recursive /root/debs
chroot root semodule -n -i /root/names.cil
rm -r root/root/debs
umount root/proc root
"""


def provide_policy(guest: Guest, directory: Path) -> None:
    """Install SELinux's tools and a policy in the disk of a guest that is off; in there, it would take many minutes."""
    for name in ("root", "debs", "debs/partial"):
        (directory / name).mkdir()
    (directory / "names.cil").write_text(NAMES, encoding="ascii")
    given = {"disk": str(guest.disk), "directory": str(directory), "packages": " ".join(PACKAGES)}
    words = "\n".join(f"{name}={shlex.quote(value)}" for name, value in given.items())
    # A view of its own: what a killed test has mounted is gone with its last process.
    run(
        ["unshare", "--mount", "--propagation=private", "sh", "-ec", f"{words}\n{INSTALL}"],
        deadline_s=900,
    )


def look(guest: Guest) -> list[str]:
    """What a guest has of the runner."""
    return guest.output("/bin/sh", "-c", LOOK, deadline_s=300).splitlines()


@pytest.mark.thorough
def test_the_runner_is_installed_in_the_image_once_and_a_failure_leaves_the_guest_as_it_was(
    make_guest: MakeGuest, tmp_path: Path
) -> None:
    guest = make_guest(start=False, disk_format="raw")
    provide_policy(guest, tmp_path)
    guest.start()
    guest.wait_until_ready()
    inventory = listing(tmp_path, {guest.name: {}})

    def install(*flags: str, **variables: object) -> PlaybookRun:
        given = {"selinux_runner_way": "offline", **variables}
        return playbook("selinux_runner", *flags, guests=[guest.name], variables=given, inventory=inventory)

    process = guest.process()
    predicted = install("--check")
    assert predicted.exit_code == 0, predicted.output
    assert predicted.recap[guest.name]["changed"] > 0
    assert guest.process() == process
    assert look(guest) == ABSENT

    # It fails once the guest is off, though nothing showed that before.
    guest.output("/bin/mv", "/usr/sbin/semanage", "/usr/sbin/semanage.real")
    guest.write_file("/usr/sbin/semanage", BREAKS_LATER.encode())
    guest.output("/bin/chmod", "755", "/usr/sbin/semanage")
    guest.write_file("/etc/systemd/system/witness.service", WITNESS.encode())
    guest.output("/bin/sh", "-c", "systemctl daemon-reload && systemctl start witness.service && sync")
    failed = install()
    assert failed.exit_code != 0
    assert "no such luck" in failed.output
    assert guest.process() not in (None, process)
    guest.wait_until_ready()
    assert look(guest) == ABSENT

    guest.output("/bin/sh", "-c", "rm /var/lib/was-shut-down && mv /usr/sbin/semanage.real /usr/sbin/semanage && sync")
    process, boot_id = guest.process(), guest.boot_id()
    done = install()
    assert done.exit_code == 0, done.output
    assert guest.process() not in (None, process)
    assert guest.boot_id() != boot_id
    assert look(guest) == PRESENT
    told = guest.output(RUNNER, "/bin/echo", "a b", "$(id)")
    assert told == "a b $(id)\n"

    process = guest.process()
    again = install()
    assert again.exit_code == 0, again.output
    assert again.recap[guest.name]["changed"] == 0
    assert guest.process() == process
    assert look(guest) == PRESENT

    # A policy that knows none of this.
    refused = install(selinux_runner_boolean="no_such_boolean")
    assert refused.exit_code != 0
    assert "has no boolean no_such_boolean" in refused.output
    assert guest.process() == process
