# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""libvirt's daemons: used if somebody runs them, else started, and then stopped, by the lab."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from lab import accelerator
from lab.clock import wait_until
from lab.errors import LabError
from lab.libvirt_session import answering
from lab.places import STATE
from lab.process import Process, observe
from lab.progress import say, step
from lab.run import run

# virtlogd first: libvirtd hands it the guests' logs. Stopped in the opposite order.
DAEMONS = ("virtlogd", "libvirtd")
SYSTEMD_UNITS = (
    *("virtlogd.socket", "virtlogd.service"),
    *("libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket", "libvirtd.service"),
)
QEMU_CONF = Path("/etc/libvirt/qemu.conf")
RECORD = STATE / "daemons.json"
ANSWER_WITHIN_S = 30


@dataclass(frozen=True)
class Started:
    """What the lab has started, by hand or through systemd, and so has to stop."""

    processes: dict[str, Process]
    units: tuple[str, ...]


def started_by_the_lab() -> Started:
    """The lab's own record, less what no longer runs."""
    try:
        record = json.loads(RECORD.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Started({}, ())
    known = {name: Process(**fields) for name, fields in record["processes"].items()}
    return Started({name: process for name, process in known.items() if process.alive()}, tuple(record["units"]))


def _record(started: Started) -> None:
    RECORD.write_text(json.dumps(asdict(started)), encoding="utf-8")


def start() -> bool:
    """Make libvirt answer, by starting its daemons if nobody else has. Whether it had to."""
    if answering():
        return False
    STATE.mkdir(mode=0o755, parents=True, exist_ok=True)
    if Path("/run/systemd/system").is_dir():
        with step("starting libvirt through systemd"):
            _start_units()
    else:
        with step("starting virtlogd and libvirtd"):
            _start_processes()
    if not wait_until(answering, ANSWER_WITHIN_S):
        raise LabError(
            f"libvirt was started and does not answer within {ANSWER_WITHIN_S} s",
            "read what `libvirtd --verbose` says when started by hand",
        )
    return True


def _start_units() -> None:
    active = run(["systemctl", "is-active", *SYSTEMD_UNITS], accept=range(256)).split()
    inactive = [unit for unit, state in zip(SYSTEMD_UNITS, active, strict=True) if state != "active"]
    _record(Started({}, tuple(inactive)))
    run(["systemctl", "start", *SYSTEMD_UNITS])


def _start_processes() -> None:
    processes = started_by_the_lab().processes
    for name in DAEMONS:
        if name in processes:
            continue
        pid_file = STATE / f"{name}.pid"
        view = without_kvm() if name == "libvirtd" else []
        run([*view, name, "--daemon", "--pid-file", pid_file], deadline_s=60)
        process = observe(int(pid_file.read_text(encoding="utf-8")))
        if process is None:
            raise LabError(f"{name} ended as soon as it was started", f"run `{name}` by hand")
        processes[name] = process
        _record(Started(processes, ()))


def restart_libvirtd() -> None:
    """Restart libvirtd, as an upgrade of its package does; guests run on. Raises LabError if it is not the lab's."""
    started = started_by_the_lab()
    if "libvirtd.service" in started.units:
        run(["systemctl", "restart", "libvirtd.service"])
    elif "libvirtd" in started.processes:
        started.processes["libvirtd"].stop()
        _start_processes()
    else:
        raise LabError("libvirtd was started by somebody else", "stop it, and have the lab start its own")
    if not wait_until(answering, ANSWER_WITHIN_S):
        raise LabError(
            f"libvirtd was restarted and does not answer within {ANSWER_WITHIN_S} s", "read what it logs (journalctl)"
        )


def without_kvm() -> list[str | Path]:
    """The start of a command line whose process sees no /dev/kvm, where QEMU may not open it.

    It has a private view of /dev, and of a qemu.conf without namespaces, since libvirt cannot carry that view over
    into them.
    """
    if not accelerator.is_useless():
        return []
    cover, settings = STATE / "no-kvm", STATE / "qemu.conf"
    cover.touch(mode=0o600)
    # The first of two settings of the same name counts.
    settings.write_text(f"namespaces = []\n{QEMU_CONF.read_text(encoding='utf-8')}", encoding="utf-8")
    script = 'mount --bind "$1" "$2" && mount --bind "$3" "$4" && shift 4 && exec "$@"'
    views = [cover, accelerator.KVM, settings, QEMU_CONF]
    return ["unshare", "--mount", "--propagation=slave", "sh", "-c", script, "sh", *views]


def stop() -> None:
    """Stop what the lab started, and only that."""
    started = started_by_the_lab()
    for name in reversed(DAEMONS):
        if name in started.processes:
            say(f"stopping {name}")
            started.processes[name].stop()
    if started.units:
        say(f"stopping {', '.join(started.units)}")
        run(["systemctl", "stop", *started.units])
    RECORD.unlink(missing_ok=True)
