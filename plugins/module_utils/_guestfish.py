# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one place that speaks to guestfish, libguestfs's shell.

It runs beside us and reads its commands from a pipe. When this process dies, however it does, the pipe ends: guestfish
then finishes the command that it is at, writes the image out, and is gone. Until then it has the guest's lock, which it
inherits. A daemon of its own (guestfish --listen) would outlive us and hold the image for ever. It leaves at the first
command that fails.
"""

from __future__ import annotations

import os
import re
import secrets
import selectors
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ansible_collections.kvm.fleet.plugins.module_utils._clock import Deadline, SystemClock, ticks
from ansible_collections.kvm.fleet.plugins.module_utils._errors import FleetError, ImageFailed, ImageToolsMissing

GUESTFISH = "guestfish"
VIRT_RESCUE = "virt-rescue"

CALL_SECONDS = 60
"""For a command that reads or writes a little."""

CLOSE_SECONDS = 120
"""For writing out what the appliance still has in its memory, and its end."""

MAX_ANSWER = 1024 * 1024
"""Bytes that an answer may have. What is in an image is a guest's word, and a guest may be hostile."""

MAX_LINE = 8000
"""Bytes of a command. guestfish reads lines into 8192 bytes and would take the rest for the next command."""

LOOK_SECONDS = 0.5
"""How often is looked whether it has to stop."""

PROC = Path("/proc")

_SAFE = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+,=@ ")
_KEEP_STDERR = 64 * 1024
_ERROR = re.compile(r"^(?:[^:]*:\d+: )?libguestfs: error: (.*)$", re.MULTILINE)
_TEST_TOOL = "'libguestfs-test-tool' on the hypervisor tells what libguestfs lacks."


def quote(text: str) -> str:
    """A word of guestfish's that is this text, whatever a guest has put into it: all but the plainest in hexadecimal.

    Raises ImageFailed for the NUL byte, which guestfish cannot take.
    """
    raw = os.fsencode(text)
    if b"\0" in raw:
        raise ImageFailed(f"{text!r} cannot be a name in a guest: it has a NUL byte", remedy="Use another name.")
    return '"' + "".join(chr(byte) if byte in _SAFE else f"\\x{byte:02x}" for byte in raw) + '"'


def environment(given: Mapping[str, str], *, emulated: bool) -> dict[str, str]:
    """guestfish's environment: what was given, and what nobody has decided."""
    return {**appliance(emulated=emulated), **given, "LC_ALL": "C"}


def appliance(*, emulated: bool) -> dict[str, str]:
    """How libguestfs runs its appliance, where nobody says otherwise.

    The appliance is a guest like any other, so it runs as the guest itself does: a domain that is emulated is one where
    nobody counts on KVM. There, a KVM that opens and boots nothing would keep libguestfs waiting for many minutes.
    libguestfs's other backend would make a domain of libvirt's, which cannot open the images of root.
    """
    return {"LIBGUESTFS_BACKEND": "direct", **({"LIBGUESTFS_BACKEND_SETTINGS": "force_tcg"} if emulated else {})}


class Guestfish:
    """A guestfish that waits for commands. Its errors are ImageFailed, and after one of them it is gone.

    ``stop`` is asked before each command and during it. What it returns is why the appliance has to be ended at once.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        stdin: IO[bytes],
        stdout: IO[bytes],
        stderr: IO[bytes],
        stop: Callable[[], FleetError | None],
    ) -> None:
        self._stop = stop
        self._process = process
        self._stdin = stdin
        self._streams = {"stdout": stdout, "stderr": stderr}
        self._clock = SystemClock()
        # Nobody who writes what is in a guest can know it, so it cannot be found in there.
        self._mark = secrets.token_hex(16).encode("ascii") + b"\n"
        self.said = b""
        """The end of what it has written to standard error since the last command."""
        for stream in self._streams.values():
            os.set_blocking(stream.fileno(), False)

    def call(
        self,
        command: str,
        *words: str,
        options: Mapping[str, str] | None = None,
        timeout: float = CALL_SECONDS,
        limit: int = MAX_ANSWER,
    ) -> bytes:
        """Do a command and return what it prints. ``options`` are the named arguments of libguestfs's.

        Raises ImageFailed when it fails, takes longer than ``timeout`` in seconds, or prints more than ``limit`` bytes,
        and what ``stop`` returns.
        """
        named = [f"{name}:{value}" for name, value in (options or {}).items()]
        line = " ".join([command, *map(quote, words), *named])
        if len(line) > MAX_LINE:
            raise ImageFailed(
                f"{command} cannot be done: its words are too long for guestfish",
                remedy="See the guest for names of an absurd length.",
            )
        if self._stdin.closed:
            raise ImageFailed(
                f"{command} cannot be done: libguestfs has ended after an earlier error", remedy="See that error."
            )
        self.said = b""
        self._look()
        try:
            self._stdin.write(f"{line}\necho ".encode("ascii") + self._mark)
            self._stdin.flush()
        except BrokenPipeError:
            pass  # it has left: why is told below
        return self._answer(command, timeout, limit)

    def text(
        self, command: str, *words: str, options: Mapping[str, str] | None = None, timeout: float = CALL_SECONDS
    ) -> str:
        """The same as text, without the line end that guestfish puts after it."""
        return os.fsdecode(self.call(command, *words, options=options, timeout=timeout)).removesuffix("\n")

    def tried(self, command: str, *words: str, timeout: float = CALL_SECONDS) -> str:
        """Do a command that may fail and does not print. Returns why it failed, or nothing."""
        self.call(f"-{command}", *words, timeout=timeout)
        return first_error(self.said)

    def _answer(self, command: str, timeout: float, limit: int) -> bytes:
        deadline = Deadline(self._clock, timeout)
        answer = b""
        for stream, part in self._parts(deadline):
            if stream == "stderr":
                self.said = (self.said + part)[-_KEEP_STDERR:]
                continue
            answer += part
            if len(answer) > limit + len(self._mark):
                self.kill()
                raise ImageFailed(
                    f"{command} gave more than {limit} bytes",
                    remedy="Look at the image by hand; half of it would be worse than nothing.",
                )
            if answer.endswith(self._mark):
                self._hear_the_rest()
                return answer[: -len(self._mark)]
        if deadline.passed:
            self.kill()
            raise ImageFailed(
                f"{command} has not ended after {timeout:g} s, and was ended with the image open",
                remedy="The image is as after a power failure. See how loaded the hypervisor is, or give it more time.",
            )
        self.leave()
        self._hear_the_rest()
        reason = first_error(self.said) or "it ended without a word"
        lines = self.said.decode("utf-8", "replace").splitlines()[-20:]
        raise ImageFailed(
            f"libguestfs cannot do {command}: {reason}",
            remedy=f"Mend what it complains about; the guest's file systems may be damaged. {_TEST_TOOL}",
            evidence={"command": command, "output": lines},
        )

    def _parts(self, deadline: Deadline) -> Iterator[tuple[str, bytes]]:
        """What it writes, until it writes no more or the deadline passes."""
        with selectors.DefaultSelector() as selector:
            for name, stream in self._streams.items():
                selector.register(stream, selectors.EVENT_READ, name)
            while selector.get_map() and not deadline.passed:
                self._look()
                for key, _events in selector.select(min(deadline.remaining, LOOK_SECONDS)):
                    part = os.read(key.fd, 65536)
                    if part:
                        yield key.data, part
                    else:
                        selector.unregister(key.fileobj)

    def _look(self) -> None:
        reason = self._stop()
        if reason:
            self.kill()
            raise reason

    def _hear_the_rest(self) -> None:
        """It writes its errors before the mark, so they are in the pipe by now."""
        with suppress(BlockingIOError):
            while True:
                part = os.read(self._streams["stderr"].fileno(), 65536)
                if not part:
                    return
                self.said = (self.said + part)[-_KEEP_STDERR:]

    def close(self) -> None:
        """Have it write everything out and end. Raises ImageFailed when that fails: the image may lack something."""
        self.call("umount-all", timeout=CLOSE_SECONDS)
        self.call("shutdown", timeout=CLOSE_SECONDS)
        self.leave()
        self._look()

    def leave(self) -> None:
        """Have it end as it does when we die. It writes out what it has."""
        self._hang_up()
        for _tick in ticks(Deadline(self._clock, CLOSE_SECONDS), self._clock, longest=LOOK_SECONDS):
            if self._process.poll() is not None:
                return
            if self._stop():
                break
        self.kill()

    def kill(self) -> None:
        """End it and its appliance at once, and return when they are gone: until then, the image is locked."""
        self._hang_up()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for _tick in ticks(Deadline(self._clock, CLOSE_SECONDS), self._clock):
            if not _group_lives(self._process.pid):
                return

    def _hang_up(self) -> None:
        with suppress(BrokenPipeError):
            self._stdin.close()


def _group_lives(group: int, proc: Path = PROC) -> bool:
    """Whether a process of this group still runs. A zombie holds nothing any more."""
    for stat in proc.glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _parent, its_group = (
                stat.read_text(encoding="utf-8", errors="replace").rpartition(") ")[2].split()[:3]
            )
            if its_group == str(group) and state not in "ZX":
                return True
    return False


def first_error(said: bytes) -> str:
    """The first of libguestfs's errors in what it has written, without what it adds for its developers."""
    found = _ERROR.search(said.decode("utf-8", "replace"))
    return found.group(1).strip() if found else ""


def cause_of(said: bytes) -> str:
    """Why an appliance did not come up: what its QEMU or its maker said last, which a verbose libguestfs passes on."""
    found = re.findall(r"^(?:qemu[\w.-]*|supermin): .*$", said.decode("utf-8", "replace"), re.MULTILINE)
    return str(found[-1]).strip() if found else ""


@contextmanager
def guestfish(
    variables: Mapping[str, str], stop: Callable[[], FleetError | None] = lambda: None
) -> Iterator[Guestfish]:
    """A guestfish for as long as the context lasts. Raises ImageToolsMissing.

    It is ended in good order, after an error as well. Whoever has changed something calls ``close`` to know that all of
    it was written out.
    """
    try:
        process = subprocess.Popen(
            [GUESTFISH, "--no-progress-bars"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(variables),
            cwd="/",
            close_fds=False,  # which leaves it the guest's lock alone: Python makes no other file inheritable
            start_new_session=True,  # a group of its own, so that the appliance can be ended with it
        )
    except FileNotFoundError as error:
        raise tools_missing(GUESTFISH) from error
    with process:
        if process.stdin is None or process.stdout is None or process.stderr is None:
            raise AssertionError("all three were asked for")
        fish = Guestfish(process, process.stdin, process.stdout, process.stderr, stop)
        try:
            yield fish
        finally:
            fish.leave()


_PACKAGES = {
    GUESTFISH: "libguestfs-tools (Debian, Ubuntu, RHEL 8), libguestfs (RHEL 9 and later, Fedora, SUSE), guestfs-tools "
    "(older SUSE)",
    VIRT_RESCUE: "libguestfs-tools (Debian, Ubuntu), libguestfs-rescue (RHEL, Fedora, SUSE), guestfs-tools (older "
    "SUSE)",
}


def tools_missing(program: str) -> ImageToolsMissing:
    """That a program of libguestfs's is not there."""
    return ImageToolsMissing(
        f"this hypervisor has no {program}, with which a guest's image is worked on",
        remedy=f"Install the package that has it on the hypervisor: {_PACKAGES[program]}.",
        evidence={"program": program},
    )
