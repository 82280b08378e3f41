# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who runs a playbook, in words that a later run on the same machine can check."""

from __future__ import annotations

import getpass
import hashlib
import multiprocessing
import os
import re
import socket
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

from ansible_collections.kvm.fleet.plugins.module_utils._proc import boot_time, start_ticks

PROC = Path("/proc")

_OWNER = re.compile(r".* \(pid (\d+), started (\d+), in (\S+), boot (\S+)\)\Z")


def playbook_pid() -> int:
    """The process of ansible-playbook itself, asked from there or from one of its workers."""
    parent = multiprocessing.parent_process()
    return os.getpid() if parent is None or parent.pid is None else parent.pid


def owner_of(pid: int, proc: Path = PROC, job: str = "") -> str:
    """Whoever runs a process, and what makes that process unlike any other there ever was. ``job`` comes first, if any.

    A pid counts within a namespace (a container's own, for instance), until it is given to the next process, and until
    the machine is rebooted. Where there is no /proc the owner is only a name, which nobody can check.
    """
    name = f"{job}{', ' if job else ''}{_user()}@{socket.gethostname()}".encode("ascii", "replace").decode("ascii")
    try:
        stat = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        namespace, boot = _place(proc)
    except OSError:
        return f"{name} (pid {pid})"
    return f"{name} (pid {pid}, started {start_ticks(stat)}, in {namespace}, boot {boot})"


def awx_job(variables: Mapping[str, object]) -> str:
    """The job that AWX has started this run as, by the variables that it gives to each; empty elsewhere."""
    number = variables.get("awx_job_id") or variables.get("tower_job_id")
    user = variables.get("awx_user_name") or variables.get("tower_user_name")
    return "" if not number else f"AWX job {number}{f' of {user}' if user else ''}"


def is_slice(variables: Mapping[str, object]) -> bool:
    """Whether AWX has started this run as one slice of a job.

    It makes of a sliced job template a workflow, which has the template's name (JobTemplate.create_unified_job), and
    tells each job both names (Job.awx_meta_vars), but not the number of its slice.
    """
    workflow = variables.get("awx_workflow_job_name")
    return bool(workflow) and workflow == variables.get("awx_job_template_name")


def owner_is_gone(owner: str, proc: Path = PROC) -> bool:
    """Whether the process behind an owner has ended for certain, as only its own machine can tell."""
    match = _OWNER.match(owner)
    if not match:
        return False
    pid, started, namespace, boot = match.groups()
    try:
        if (namespace, boot) != _place(proc):
            return False
        stat = (proc / pid / "stat").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return not _exists(int(pid))
    except OSError:
        return False
    # One that has ended and was not reaped yet, as by a container's first process that reaps none, is gone as well.
    return start_ticks(stat) != int(started) or stat.rpartition(")")[2].split()[0] == "Z"


def _exists(pid: int) -> bool:
    """Whether there is such a process, be it one of somebody else's that /proc hides (hidepid)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def run_of(owner: str, pid: int, now: datetime, proc: Path = PROC) -> str:
    """An id for the run of a process: when it began, and some digits that other runs have not.

    It is the same whenever it is asked for. Without /proc it is that of this very moment.
    """
    digits = hashlib.sha256(f"{owner}{'' if _OWNER.match(owner) else now}".encode()).hexdigest()[:8]
    try:
        stat = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        boot = boot_time((proc / "stat").read_text(encoding="ascii", errors="replace"))
        now = datetime.fromtimestamp(boot + start_ticks(stat) // os.sysconf("SC_CLK_TCK"), timezone.utc)
    except OSError:
        pass
    return f"{now:%Y%m%d-%H%M%S}-{digits}"


def has_terminal(pid: int, proc: Path = PROC) -> bool:
    """Whether a person at a terminal can answer a process. Where that cannot be told, nobody is taken to be there.

    A worker of Ansible's has no terminal of its own, so the process of ansible-playbook is looked at. In the background
    of a terminal, Ansible asks nothing and goes on.
    """
    try:
        stat = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        handle = os.open(proc / str(pid) / "fd" / "0", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        is_terminal = os.isatty(handle)
    finally:
        os.close(handle)
    _state, _parent, group, _session, _terminal, foreground = stat.rpartition(") ")[2].split()[:6]
    return is_terminal and group == foreground


def _place(proc: Path) -> tuple[str, str]:
    """Within what a pid means something: its namespace, and the boot of the machine."""
    boot = (proc / "sys" / "kernel" / "random" / "boot_id").read_text(encoding="ascii").strip()
    return os.readlink(proc / "self" / "ns" / "pid"), boot


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may have no name for its user
        return str(os.getuid())
