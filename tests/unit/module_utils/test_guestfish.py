# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is said to guestfish, and what is understood of its answers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ansible_collections.kvm.fleet.plugins.module_utils import _guestfish
from ansible_collections.kvm.fleet.plugins.module_utils._clock import SystemClock
from ansible_collections.kvm.fleet.plugins.module_utils._errors import ImageFailed, ImageToolsMissing
from ansible_collections.kvm.fleet.plugins.module_utils._guestfish import (
    Guestfish,
    cause_of,
    environment,
    first_error,
    guestfish,
    quote,
)
from ansible_collections.kvm.fleet.plugins.module_utils._store import Store
from tests.unit.fake_guestfish import FakeGuestfish

# What 1.48 printed.
LOCKED = b"""\
libguestfs: command: run: /usr/bin/qemu-system-x86_64 -drive file=/disk,format=qcow2,id=hd0,if=none
qemu-system-x86_64: -drive file=/disk,cache=writeback,format=qcow2,id=hd0,if=none: Failed to get "write" lock
Is another process using the image [/disk]?
*stdin*:5: libguestfs: error: appliance closed the connection unexpectedly, see earlier error messages
*stdin*:5: libguestfs: error: guestfs_launch failed, see earlier error messages
"""
NO_KERNEL = b"""\
supermin: failed to find a suitable kernel (host_cpu=x86_64).
*stdin*:2: libguestfs: error: /usr/bin/supermin exited with error status 1, see debug messages above
"""


@contextmanager
def talking_to(fake: FakeGuestfish) -> Iterator[Guestfish]:
    fake.ready()
    with guestfish(environment(os.environ, emulated=True)) as fish:
        fish.call("add", "/disk", options={"format": "raw"})
        fish.call("run")
        yield fish


# --- quoting -------------------------------------------------------------------------------------


def unquoted(word: str) -> bytes:
    """guestfish's own reading of a word in double quotes, by its manual: escapes of its kind, no end before the end."""
    inner = re.fullmatch(r'"((?:[^"\\]|\\x[0-9a-f]{2})*)"', word)
    assert inner, word
    return re.sub(rb"\\x(..)", lambda match: bytes([int(match.group(1), 16)]), inner.group(1).encode("ascii"))


@given(st.binary().filter(lambda raw: b"\0" not in raw))
@example(b"")
@example(b'a" ; rm -rf / "')
@example(b"$(reboot) `reboot` | reboot\n!reboot\n<! reboot")
@example(b"\\x41\\n\xff\xfe")
def test_a_word_is_what_it_was_whatever_is_in_it_and_is_one_line_of_plain_characters(raw: bytes) -> None:
    word = quote(os.fsdecode(raw))
    assert unquoted(word) == raw
    assert word.isascii()
    assert word.isprintable()
    assert not set(word[1:-1]) & set("\"'$`|!<>*?[]{}#~&;()")


def test_what_it_cannot_take_is_refused(fake_guestfish: FakeGuestfish) -> None:
    with pytest.raises(ImageFailed, match="NUL"):
        quote("/etc/a\0b")
    with talking_to(fake_guestfish) as fish:
        with pytest.raises(ImageFailed, match="too long"):
            fish.call("exists", "/" + "é" * 1500)
        assert fish.text("exists", "/etc") == "true"


# --- the environment -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_variables", "emulated", "expected"),
    [
        ({}, False, ("direct", None)),
        ({}, True, ("direct", "force_tcg")),
        ({"LIBGUESTFS_BACKEND": "libvirt"}, True, ("libvirt", "force_tcg")),
        ({"LIBGUESTFS_BACKEND_SETTINGS": "network_bridge=br0"}, True, ("direct", "network_bridge=br0")),
        ({"LIBGUESTFS_BACKEND_SETTINGS": "force_tcg"}, False, ("direct", "force_tcg")),
    ],
)
def test_the_appliance_runs_as_the_guest_does_unless_somebody_has_decided(
    given_variables: dict[str, str], emulated: bool, expected: tuple[str, str | None]
) -> None:
    variables = environment({"PATH": "/bin", "LC_ALL": "de_DE", **given_variables}, emulated=emulated)
    assert (variables["LIBGUESTFS_BACKEND"], variables.get("LIBGUESTFS_BACKEND_SETTINGS")) == expected
    assert (variables["PATH"], variables["LC_ALL"]) == ("/bin", "C")


def test_without_the_program_it_is_said_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(ImageToolsMissing) as missing, guestfish({"PATH": str(tmp_path)}):
        pass
    assert "libguestfs-tools" in missing.value.remedy


# --- its answers ---------------------------------------------------------------------------------


def test_answers_are_told_from_what_is_in_the_image(fake_guestfish: FakeGuestfish) -> None:
    with talking_to(fake_guestfish) as fish:
        for content in (b"", b"\n", b"no newline", b"echo\necho MARK\n", bytes(range(256)) * 1000):
            (fake_guestfish.root / "etc" / "x").write_bytes(content)
            assert fish.call("download", "/etc/x", "-") == content
    assert fake_guestfish.calls()[-1][0] == "download"


def test_an_answer_that_is_too_long_ends_it(fake_guestfish: FakeGuestfish) -> None:
    with talking_to(fake_guestfish) as fish:
        (fake_guestfish.root / "etc" / "x").write_bytes(b"x" * 2000)
        assert len(fish.call("download", "/etc/x", "-", limit=2000)) == 2000
        with pytest.raises(ImageFailed, match="more than 1999 bytes"):
            fish.call("download", "/etc/x", "-", limit=1999)


def test_a_command_that_fails_is_told_by_its_words_and_ends_it(fake_guestfish: FakeGuestfish) -> None:
    fake_guestfish.fails["realpath"] = "realpath: /nope: No such file or directory"
    with talking_to(fake_guestfish) as fish:
        assert fish.tried("mount", "/dev/sda1", "/") == ""
        with pytest.raises(ImageFailed) as failed:
            fish.text("realpath", "/nope")
        with pytest.raises(ImageFailed, match="has ended after an earlier error"):
            fish.text("exists", "/etc")
    assert "cannot do realpath: realpath: realpath: /nope: No such file" in failed.value.message
    assert failed.value.evidence["command"] == "realpath"


def test_a_command_that_may_fail_does_not_end_it(fake_guestfish: FakeGuestfish) -> None:
    fake_guestfish.unmountable = ["/"]
    with talking_to(fake_guestfish) as fish:
        assert fish.tried("mount", "/dev/sda1", "/") == "mount: wrong fs type, bad option, bad superblock"
        assert fish.tried("sync") == ""


def test_a_command_that_hangs_is_ended_with_all_of_its_processes(
    fake_guestfish: FakeGuestfish, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_guestfish.hangs = ["umount-all"]
    pids = fake_guestfish.directory / "pids"
    monkeypatch.setattr(_guestfish, "CLOSE_SECONDS", 5)
    with talking_to(fake_guestfish) as fish:
        fish.text("sh", f"sleep 600 >/dev/null 2>&1 & echo $! $PPID >{pids}")
        with pytest.raises(ImageFailed, match=r"umount-all has not ended after 1 s"):
            fish.call("umount-all", timeout=1)
    for pid in pids.read_text(encoding="ascii").split():
        assert not runs(int(pid))


@pytest.mark.parametrize("busy", [True, False])
def test_what_has_to_stop_is_ended_at_once_in_the_middle_or_before_the_next_command(
    fake_guestfish: FakeGuestfish, busy: bool
) -> None:
    fake_guestfish.hangs = ["umount-all"]
    fake_guestfish.ready()

    def stop() -> ImageFailed | None:
        due = not busy or bool(fake_guestfish.calls("umount-all"))
        return ImageFailed("somebody else has it", remedy="Wait.") if due else None

    with guestfish(environment(os.environ, emulated=True), stop) as fish:
        if busy:
            fish.call("run")
        with pytest.raises(ImageFailed, match="somebody else has it"):
            fish.call("umount-all")
        assert not runs(fish._process.pid)
    assert bool(fake_guestfish.calls("umount-all")) == busy


def runs(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text(encoding="utf-8").rpartition(") ")[2][0] not in "ZX"


SPEAKER = """\
import os, sys, time
from ansible_collections.kvm.fleet.plugins.module_utils._guestfish import guestfish
with guestfish(os.environ) as fish:
    print(fish.text("echo", "there"), fish._process.pid, flush=True)
    time.sleep(600)
"""


LOCKED_SPEAKER = """\
import os, pathlib, sys
from ansible_collections.kvm.fleet.plugins.module_utils._clock import SystemClock
from ansible_collections.kvm.fleet.plugins.module_utils._guestfish import guestfish
from ansible_collections.kvm.fleet.plugins.module_utils._store import Store
with Store(pathlib.Path(sys.argv[1])).locked("a guest", SystemClock()), guestfish(os.environ) as fish:
    fish.call("run")
    print(fish._process.pid, flush=True)
    fish.call("umount-all")
"""


def test_its_last_command_keeps_the_guests_lock_when_whoever_speaks_to_it_is_killed(
    fake_guestfish: FakeGuestfish, tmp_path: Path
) -> None:
    fake_guestfish.hangs = ["umount-all"]
    fake_guestfish.ready()
    collections = Path(_guestfish.__file__).parents[5]
    store = Store(tmp_path / "runs")
    with subprocess.Popen(
        [sys.executable, "-c", LOCKED_SPEAKER, store.directory],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(collections), *sys.path])},
    ) as speaker:
        assert speaker.stdout is not None
        pid = int(speaker.stdout.readline())
        speaker.kill()
    assert (runs(pid), store.is_locked("a guest")) == (True, True)
    os.kill(pid, signal.SIGKILL)
    store.wait_until_free("a guest", SystemClock(), 30)


def test_it_ends_when_whoever_speaks_to_it_is_killed(fake_guestfish: FakeGuestfish) -> None:
    fake_guestfish.ready()
    collections = Path(_guestfish.__file__).parents[5]
    with subprocess.Popen(
        [sys.executable, "-c", SPEAKER],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(collections), *sys.path])},
    ) as speaker:
        assert speaker.stdout is not None
        there, pid = speaker.stdout.readline().split()
        assert (there, runs(int(pid))) == ("there", True)
        speaker.kill()
    deadline = time.monotonic() + 30
    while runs(int(pid)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("said", "error", "cause"),
    [
        (
            LOCKED,
            "appliance closed the connection unexpectedly, see earlier error messages",
            'Failed to get "write" lock',
        ),
        (NO_KERNEL, "/usr/bin/supermin exited with error status 1", "failed to find a suitable kernel"),
        (b"libguestfs: error: x\xff\n", "x\N{REPLACEMENT CHARACTER}", ""),
        (b"warning: nothing\n", "", ""),
    ],
)
def test_the_first_error_and_the_cause_behind_it_are_found(said: bytes, error: str, cause: str) -> None:
    assert first_error(said).startswith(error)
    assert bool(first_error(said)) == bool(error)
    assert cause in cause_of(said)
    assert bool(cause_of(said)) == bool(cause)
