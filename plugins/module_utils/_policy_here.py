# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The agent's settings changed in the guest itself, where one may log in: the same plan, on this machine's files."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ansible_collections.kvm.fleet.plugins.module_utils._agent_config import (
    INIT_SCRIPT,
    AgentConfig,
    parse_version,
    read_config,
)
from ansible_collections.kvm.fleet.plugins.module_utils._clock import Clock, pause
from ansible_collections.kvm.fleet.plugins.module_utils._errors import FleetError, GuestUnsupported, ProofFailed
from ansible_collections.kvm.fleet.plugins.module_utils._guest_files import MAX_FILE
from ansible_collections.kvm.fleet.plugins.module_utils._policy import FileChange, Wanted, plan
from ansible_collections.kvm.fleet.plugins.module_utils._policy_ways import Report, Written, keep_beside

SETTLES_SECONDS = 3
"""An agent that does not start with its settings has ended by then."""
COMMAND_SECONDS = 90

_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class LocalFiles:
    """The port RootFiles, for the machine that this runs on. ``root`` is another one's in tests."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def _at(self, path: str) -> Path:
        return self._root / path.lstrip("/")

    def read(self, path: str) -> bytes | None:
        try:
            with self._at(path).open("rb") as file:
                content = file.read(MAX_FILE + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _unusable(path, error) from error
        if len(content) > MAX_FILE:
            raise _unusable(path, OSError(f"it has more than {MAX_FILE} bytes"))
        return content

    def write(self, path: str, content: bytes, *, like: str | None = None) -> None:
        target = self._at(path).resolve()
        model = self._at(like).resolve() if like else target
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, new = tempfile.mkstemp(prefix=f"{target.name}.", dir=target.parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    self._like(model, new)
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                Path(new).replace(target)
            except OSError:
                Path(new).unlink()
                raise
        except OSError as error:
            raise _unusable(path, error) from error

    def _like(self, model: Path, new: str) -> None:
        """Give a new file the owner, the mode and the SELinux label of another one."""
        if model.exists():
            status = model.stat()
            os.chown(new, status.st_uid, status.st_gid)
            shutil.copystat(model, new)
        else:
            Path(new).chmod(0o644)

    def remove(self, path: str) -> None:
        try:
            self._at(path).unlink()
        except OSError as error:
            raise _unusable(path, error) from error

    def names(self, directory: str) -> Sequence[str] | None:
        try:
            return sorted(path.name for path in self._at(directory).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except OSError as error:
            raise _unusable(directory, error) from error


def _unusable(path: str, error: OSError) -> GuestUnsupported:
    return GuestUnsupported(
        f"{path} cannot be used in the guest: {error}",
        remedy="See that the task runs as root in the guest (ansible_become), and that its disk has room.",
        evidence={"path": path},
    )


def apply_here(wanted: Wanted, clock: Clock, *, restart: bool = False, check: bool, root: Path = Path("/")) -> Report:
    """Have this machine's own agent allow or block what is wanted.

    Without a file to change the agent is restarted only where ``restart`` says so, for one that has not read them yet.
    That the agent then does is for the hypervisor to see. An agent that does not start gets its old settings back.
    """
    wanted.check()
    files = LocalFiles(root)
    config = read_config(files, parse_version(_installed_version()))
    changes = plan(config, wanted)
    restart = restart or bool(changes)
    report = Report(changed=restart, restarted=restart)
    report.settings = {rpc: config.settings_against(rpc) for rpc in wanted.rpcs}
    report.files = [Written(change.path, change) for change in changes]
    if check or not restart:
        return report
    report.files = [
        written
        if written.change.before is None
        else replace(written, backup=keep_beside(files, written.path, written.change.before), backup_on="guest")
        for written in report.files
    ]
    try:
        for change in changes:
            files.write(change.path, change.after)
        _restart(config)
        _require_agent(config, clock)
    except FleetError as error:
        _undo(files, changes)
        _restart(config)
        error.evidence["put_back"] = True
        raise
    return report


def put_back_here(copies: Mapping[str, str | None], clock: Clock, *, check: bool, root: Path = Path("/")) -> Report:
    """Give changed files the content of their copies, remove those without one, which were made, and restart the agent.

    For whoever has changed them by `apply_here` and heard from the hypervisor that the agent does not mind them.
    """
    files = LocalFiles(root)
    config = read_config(files, parse_version(_installed_version()))
    made = [_made(files, path, copy) for path, copy in copies.items()]
    changes = [change for change in made if change and change.before != change.after]
    report = Report(changed=bool(changes), restarted=bool(changes))
    report.files = [
        Written(change.path, FileChange(change.path, change.after, change.before or b"")) for change in changes
    ]
    if changes and not check:
        _undo(files, changes)
        _restart(config)
        try:
            _require_agent(config, clock)
        except ProofFailed as error:
            error.evidence["put_back"] = True
            raise
    return report


def _made(files: LocalFiles, path: str, copy: str | None) -> FileChange | None:
    """The change that a file has gone through since it was copied; None for one that was made, and is gone."""
    now, before = files.read(path), files.read(copy) if copy else None
    if copy and (now is None or before is None):
        raise _unusable(path if now is None else copy, FileNotFoundError("it is gone"))
    return None if now is None else FileChange(path, before, now)


def _undo(files: LocalFiles, changes: Sequence[FileChange]) -> None:
    for change in changes:
        if change.before is not None:
            files.write(change.path, change.before)
        elif files.read(change.path) is not None:
            files.remove(change.path)


def _installed_version() -> str:
    """What the agent's program says of itself; nothing where there is no such program."""
    done = _run("qemu-ga", "--version")
    return done.stdout.rpartition(" ")[2] if done and done.returncode == 0 else ""


def _restart(config: AgentConfig) -> None:
    if config.systemd:
        _run("systemctl", "daemon-reload")
        _run("systemctl", "reset-failed", config.unit)  # or what has failed too often is not started
        _run("systemctl", "restart", config.unit)
    else:
        _run(INIT_SCRIPT, "restart")


def _require_agent(config: AgentConfig, clock: Clock) -> None:
    """Raise ProofFailed unless the agent runs after its restart."""
    pause(clock, SETTLES_SECONDS)
    status = _run("systemctl", "is-active", "--quiet", config.unit) if config.systemd else _run(INIT_SCRIPT, "status")
    if status is None or status.returncode != 0:
        raise ProofFailed(
            "the agent does not run with its changed settings",
            remedy=f"See in the guest: systemctl status '{config.unit}'",
            evidence={"returncode": status.returncode if status else None},
        )


def _run(*argv: str) -> subprocess.CompletedProcess[str] | None:
    """Run a program of this machine's to its end; None where it is not there, or does not end."""
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{_PATH}", "LC_ALL": "C"}
    program = shutil.which(argv[0], path=environment["PATH"])
    if program is None:
        return None
    try:
        return subprocess.run(
            [program, *argv[1:]],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=COMMAND_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
