# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest with apt that is upgraded: a package database, a journal, a job that takes its time."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ansible_collections.kvm.fleet.plugins.module_utils import _apt, _heartbeat, _job, _locks, _managers, _reboot, _room
from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._apt import Apt
from ansible_collections.kvm.fleet.plugins.module_utils._job import Job, JobLook
from ansible_collections.kvm.fleet.plugins.module_utils._upgrade import Guest
from tests.unit.fake_agent import Call, Ending, FakeAgent
from tests.unit.fake_clock import FakeClock

PRIVATE = "/var/tmp/kvm-fleet.abcdefgh"

SIMULATED = (
    "Inst bash [1] (2 Debian:12/stable [amd64])",
    "Inst libssl3 [1] (2 Debian-Security:12/stable-security [amd64])",
)
OLD = {"bash": "1", "libssl3": "1"}
NEW = {"bash": "2", "libssl3": "2"}


class Stop(NamedTuple):
    """How a job ends that was asked to stop, and after how many seconds."""

    after: float
    ending: str


def job_in(script: str) -> Job:
    """The job that a script was made of."""
    head, _mark, command = script.removesuffix(_job._WRAPPER).rpartition("\nset -- ")
    variables = dict(word.split("=", 1) for word in shlex.split(head) if "=" in word)
    ours = {name: variables.pop(name) for name in ("journal", "how", "prepare", "finish", "launcher")}
    return Job("", ours["prepare"], tuple(shlex.split(command)), ours["finish"], variables)


def told_by(job: Job) -> list[str]:
    """The lines that a job adds to the journal's predictions."""
    encoded = job.prepare.partition("<<'END' || exit 1\n")[2].partition("\nEND\n")[0]
    return base64.b64decode(encoded).decode("utf-8").splitlines()


def records(packages: Mapping[str, str]) -> list[str]:
    return [f"{name}\tamd64\t{version}\tinstalled" for name, version in packages.items()]


class UpgradingGuest:
    """A guest whose jobs take ``duration`` seconds and end as ``endings`` says, the last one again and again.

    A job that ends with 0 leaves each package that its command does not pin at its new version; any other, or one that
    was stopped, leaves those in ``partly``. A job takes notice of a stop only as ``stop`` says.

    ``left`` is the state in which the run ``left_by`` has left a job; ``interrupted`` makes apt refuse to work until a
    repair has succeeded. ``locked_for`` tries of a refresh meet a lock.
    """

    def __init__(
        self,
        clock: FakeClock,
        *endings: str,
        simulated: Sequence[str] = SIMULATED,
        duration: float = 0,
        stop: Stop | None = None,
        left: str = "none",
        left_by: str = "another",
        left_kind: str = "upgrade",
        left_stopping: bool = False,
        interrupted: bool = False,
        locked_for: int = 0,
    ) -> None:
        self.agent = FakeAgent(clock, self._program)
        self.port = Guest(GuestAgent(self.agent, clock), clock, Apt())
        self.packages = dict(OLD)
        self.jobs: list[Job] = []
        self.tries: list[float] = []
        self.duration, self.interrupted, self.locked_for = duration, interrupted, locked_for
        self.partly: Mapping[str, str] = {}
        self.log = b""
        self.tells_its_uptime = True
        self.progress: list[str] = []
        self.review: list[str] = []
        self.update = Ending()
        self.made = Ending(stdout=f"{PRIVATE}\n".encode())
        self.held: bytes | None = b""
        self.free = b"free 10000000 /dev/vda1 /\nfree 10000000 /dev/vda1 /\nfree 10000000 /dev/vda1 /\nkernel 0\n"
        self.before_lines = records(OLD) if left != "none" else []
        self._clock = clock
        self._endings = list(endings or ["ended 0"])
        self._simulated, self._stop = simulated, stop
        self._predictions: list[str] = []
        self._run, self._kind, self._stopping = left_by, left_kind, left_stopping
        self._state = left
        self._command: tuple[str, ...] = ()
        self._began = clock.monotonic()
        if left == "running":
            self._will_end(self.duration, self._endings[0])

    @property
    def commands(self) -> list[str]:
        return [" ".join(call.command) for call in self.agent.calls]

    @property
    def kinds(self) -> list[str]:
        return ["repair" if job.command[0] == "/bin/sh" else "upgrade" for job in self.jobs]

    @property
    def look(self) -> JobLook:
        return _job.look(self.port.agent)

    def programs(self, name: str) -> list[str]:
        """The commands that called a program."""
        return [command for command in self.commands if command.startswith(f"{name} ")]

    # --- what the guest is asked to run ---

    def _program(self, call: Call) -> Ending:
        if call.stdin:
            return self._start(call)
        match call.command:
            case ["/bin/sh", "-c", text, _name, *arguments]:
                return self._script(text, arguments)
            case ["apt-get", "--simulate", *words]:
                return self._simulate(words)
            case ["apt-get", *_rest]:
                return self._update()
        answers = {"apt-cache": b"Size: 5000000\nInstalled-Size: 20000\n", "tail": self.log}
        return Ending(stdout=answers.get(call.command[0], b""))

    def _script(self, text: str, arguments: list[str]) -> Ending:
        if text in (_job._STOP, _job._REMOVE):
            self._stop_job() if text == _job._STOP else self._remove()
            return Ending()
        if text == _locks.LOOK:
            return Ending(1) if self.held is None else Ending(stdout=self.held)
        if "mktemp" in text:
            return self.made
        answers = {
            _job._LOOK: self._answer(),
            _job._READ: self._files(arguments),
            _managers.LOOK: "id debian\nlike \nhas apt-get\nhas dpkg-query\nenforcing \ncontext unconfined\n",
            _reboot.LOOK: "",
            _room._LOOK: self.free.decode(),
            _heartbeat.START: "",
            _heartbeat.STOP: "",
            _apt._PACKAGES: "interrupted\n" if self.interrupted else "",
            Apt().records: "".join(f"{line}\n" for line in records(self.packages)),
        }
        return Ending(stdout=answers[text].encode())

    # --- apt ---

    def _update(self) -> Ending:
        self.tries.append(self._clock.monotonic())
        if self.locked_for:
            self.locked_for -= 1
            return Ending(100, stderr=b"E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt)\n")
        return self.update

    def _simulate(self, words: list[str]) -> Ending:
        lines = [line for line in self._simulated if self._would_change(line.split()[1], words)]
        return Ending(stdout="".join(f"{line}\n" for line in lines).encode())

    def _would_change(self, name: str, words: Sequence[str]) -> bool:
        selected = "install" not in words or f"{name}:amd64=2" in words
        return selected and f"{name}:amd64=1" not in words and self.packages[name] == OLD[name]

    # --- the job ---

    def _start(self, call: Call) -> Ending:
        job = job_in(call.stdin.decode())
        self._run = call.command[6]
        job = Job(self._run, job.prepare, job.command, job.finish, job.environment)
        self.jobs.append(job)
        self._kind = self.kinds[-1]
        self.before_lines = self.before_lines or records(self.packages)
        self._predictions += told_by(job)
        self._state, self._stopping, self._command = "running", False, job.command
        self._began = self._clock.monotonic()
        self._will_end(self.duration, self._endings.pop(0) if len(self._endings) > 1 else self._endings[0])
        return Ending()

    def _will_end(self, after: float, ending: str) -> None:
        if after:
            self._clock.after(after, lambda: self._end(ending))
        else:
            self._end(ending)

    def _end(self, ending: str) -> None:
        if self._state != "running":
            return
        self._state = ending
        if ending != "ended 0" or self._stopping:
            self.packages.update(self.partly)
        elif self._kind == "repair":
            self.interrupted = False
        else:
            names = [name for name in self.packages if self._would_change(name, self._command)]
            self.packages.update({name: NEW[name] for name in names})

    def _stop_job(self) -> None:
        self._stopping = self._stopping or self._state == "running"
        if self._stop and self._stopping:
            self._will_end(self._stop.after, self._stop.ending)

    def _remove(self) -> None:
        self._state, self.before_lines, self._predictions = "none", [], []

    def _answer(self) -> str:
        if self._state == "none":
            return "state none\n\n"
        lines = [f"state {self._state}"]
        if self._state == "running" and self.tells_its_uptime:
            lines.append(f"uptime {self._began:.2f} {self._clock.monotonic():.2f}")
        lines.append(f"run {self._run}")
        lines += ["stopping"] * self._stopping
        lines += [f"progress {line}" for line in self.progress]
        return "\n".join([*lines, "log 0", "", ""])

    def _files(self, names: Sequence[str]) -> str:
        ended = self._state.startswith("ended")
        files = {
            "before": self.before_lines,
            "after": records(self.packages) if ended else [],
            "predictions": self._predictions,
            "review": self.review if ended else [],
            "kind": [self._kind] if self.before_lines else [],
        }
        return "".join(f"{name}\t{line}\n" for name in names for line in files.get(name, []))
