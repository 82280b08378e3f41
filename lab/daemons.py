# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""libvirt's daemons: used if somebody runs them, else started, and then stopped, by the lab."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from lab import accelerator
from lab.clock import wait_until
from lab.errors import LabError
from lab.libvirt_session import connect, libvirt_error
from lab.places import STATE
from lab.process import Process, observe
from lab.progress import say, step
from lab.run import run

# virtlogd first: libvirtd hands it the guests' logs. Stopped in the opposite order.
DAEMONS = ("virtlogd", "libvirtd")
SYSTEMD_UNITS = ("virtlogd.socket", "libvirtd.service")
QEMU_CONF = Path("/etc/libvirt/qemu.conf")
RECORD = STATE / "daemons.json"
ANSWER_WITHIN_S = 30


def answering() -> bool:
    """Whether the system's libvirt answers."""
    try:
        connect().close()
    except libvirt_error():
        return False
    return True


def started_by_the_lab() -> dict[str, Process]:
    """The daemons that the lab started and that still run."""
    try:
        record = json.loads(RECORD.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    known = {name: Process(**fields) for name, fields in record.items()}
    return {name: process for name, process in known.items() if process.alive()}


def start() -> None:
    """Make libvirt answer, by starting its daemons if nobody else has."""
    if answering():
        return
    if Path("/run/systemd/system").is_dir():
        with step("starting libvirt through systemd"):
            run(["systemctl", "start", *SYSTEMD_UNITS])
    else:
        with step("starting virtlogd and libvirtd"):
            _start_by_hand()
    if not wait_until(answering, ANSWER_WITHIN_S):
        raise LabError(
            f"libvirt was started and does not answer within {ANSWER_WITHIN_S} s",
            "read what `libvirtd --verbose` says when started by hand",
        )


def _start_by_hand() -> None:
    STATE.mkdir(mode=0o755, parents=True, exist_ok=True)
    ours = started_by_the_lab()
    for name in DAEMONS:
        if name in ours:
            continue
        pid_file = STATE / f"{name}.pid"
        run([*without_kvm(), name, "--daemon", "--pid-file", pid_file], deadline_s=60)
        process = observe(int(pid_file.read_text(encoding="utf-8")))
        if process is None:
            raise LabError(f"{name} ended as soon as it was started", f"run `{name}` by hand")
        ours[name] = process
        RECORD.write_text(json.dumps({n: asdict(p) for n, p in ours.items()}), encoding="utf-8")


def without_kvm() -> list[str | Path]:
    """The start of a command line whose process sees no /dev/kvm, where QEMU may not open it.

    libvirt probes QEMU with the right to open any file, so it finds KVM, then sees that its
    QEMU user cannot open /dev/kvm, and so throws the result away and probes again: forty times,
    and a minute, for each guest that it defines. It is spared that by a private view of /dev,
    and of a qemu.conf without namespaces, since libvirt cannot carry that view over into them.
    """
    if not accelerator.KVM.exists() or accelerator.may_open_kvm():
        return []
    cover, settings = STATE / "no-kvm", STATE / "qemu.conf"
    cover.touch(mode=0o600)
    # The first of two settings of the same name counts.
    settings.write_text(f"namespaces = []\n{QEMU_CONF.read_text(encoding='utf-8')}", "utf-8")
    script = 'mount --bind "$1" "$2" && mount --bind "$3" "$4" && shift 4 && exec "$@"'
    views = [cover, accelerator.KVM, settings, QEMU_CONF]
    return ["unshare", "--mount", "--propagation=slave", "sh", "-c", script, "sh", *views]


def stop() -> None:
    """Stop the daemons that the lab started, and only those."""
    ours = started_by_the_lab()
    for name in reversed(DAEMONS):
        if name in ours:
            say(f"stopping {name}")
            ours[name].stop()
    RECORD.unlink(missing_ok=True)
