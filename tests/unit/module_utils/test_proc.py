# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""QEMU processes as /proc shows them."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._drift import DriftState, FileId, judge
from ansible_collections.kvm.fleet.plugins.module_utils._proc import (
    Mapping,
    ProcessUnreadable,
    QemuProcess,
    boot_time,
    executable_mappings,
    find_process,
    parse_version,
    running_files,
    runtime_directory,
    start_ticks,
    version_of,
)
from tests.unit.fake_proc import BOOT, FakeProc

UUID = "2f8a6c8e-58b4-4a0e-9d0b-0b1d3a7d0c55"

# From a QEMU 7.2 under TCG, shortened.
MAPS = """\
55d0c8a00000-55d0c8d00000 r--p 00000000 08:01 1050 /usr/bin/qemu-system-x86_64
55d0c8d00000-55d0c9300000 r-xp 00300000 08:01 1050 /usr/bin/qemu-system-x86_64
7f1a3c000000-7f1a44000000 rwxp 00000000 00:01 2049                       /memfd:tcg-jit (deleted)
7f1a4c000000-7f1a4c021000 rw-p 00000000 00:00 0
7f1a50a00000-7f1a50a01000 r-xp 00000000 00:00 0                          [vdso]
7f1a51000000-7f1a51026000 r-xp 00000000 08:01 77 /usr/lib/x86_64-linux-gnu/libspice-server.so.1.14.1 (deleted)
7f1a51026000-7f1a51028000 rw-p 00026000 08:01 77 /usr/lib/x86_64-linux-gnu/libspice-server.so.1.14.1 (deleted)
7f1a52000000-7f1a52155000 r-xp 00026000 08:01 80                         /usr/lib/x86_64-linux-gnu/libc.so.6
7f1a52200000-7f1a52210000 r-xp 00026000 08:01 80                         /usr/lib/x86_64-linux-gnu/libc.so.6
7f1a53000000-7f1a53001000 rwxp 00000000 00:05 5                          /dev/zero (deleted)
7f1a54000000-7f1a54001000 r-xs 00000000 00:01 6                          /SYSV00000000 (deleted)
7f1a55000000-7f1a55001000 r-xp 00000000 08:01 90                         /opt/with space/plugin (1).so
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
"""


def test_each_file_whose_code_is_mapped_is_listed_once() -> None:
    assert list(executable_mappings(MAPS)) == [
        Mapping("55d0c8d00000-55d0c9300000", "/usr/bin/qemu-system-x86_64"),
        Mapping("7f1a51000000-7f1a51026000", "/usr/lib/x86_64-linux-gnu/libspice-server.so.1.14.1"),
        Mapping("7f1a52000000-7f1a52155000", "/usr/lib/x86_64-linux-gnu/libc.so.6"),
        Mapping("7f1a55000000-7f1a55001000", "/opt/with space/plugin (1).so"),
    ]


@pytest.mark.parametrize("name", ["qemu-system-x86", "a b", "a) S 1", "((", "CPU 0/TCG) R 1 2 (", ""])
def test_a_nasty_command_name_does_not_shift_the_start_time(name: str) -> None:
    fields = ["S", "1", *["0"] * 17, "987654", "0", "0"]
    assert start_ticks(f"4711 ({name}) {' '.join(fields)}\n") == 987654


def test_the_start_time_of_this_very_process_is_read() -> None:
    assert start_ticks(Path("/proc/self/stat").read_text(encoding="utf-8")) > 0


def test_the_boot_time_is_read() -> None:
    assert boot_time("cpu  1 2\nintr 5\nbtime 1790000000\nprocesses 3\n") == 1_790_000_000


def test_a_proc_without_boot_time_is_said_so() -> None:
    with pytest.raises(ProcessUnreadable, match=r"\A/proc/stat has no btime line\Z"):
        boot_time("cpu  1 2\n")


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (
            "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright (c) 2003-2022\n",
            "7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)",
        ),
        ("QEMU emulator version 9.1.0 (qemu-kvm-9.1.0-15.el9)\n", "9.1.0 (qemu-kvm-9.1.0-15.el9)"),
        ("QEMU emulator version 10.0.2 \n", "10.0.2"),
        ("qemu: could not load PC BIOS\n", None),
        ("", None),
    ],
)
def test_the_version_is_what_the_binary_says_of_itself(output: str, expected: str | None) -> None:
    assert parse_version(output) == expected


def test_the_sessions_pid_files_are_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert runtime_directory("qemu:///system") == Path("/run/libvirt/qemu")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/somewhere")
    assert runtime_directory("qemu:///session") == Path("/somewhere/libvirt/qemu/run")
    assert runtime_directory("qemu:///session?socket=/x") == Path("/somewhere/libvirt/qemu/run")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert runtime_directory("qemu:///session") == Path(f"/run/user/{os.getuid()}/libvirt/qemu/run")


# --- finding the process -------------------------------------------------------------------------


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    directory = tmp_path / "runtime"
    directory.mkdir()
    return directory


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("web1", "web1"),
        ("vm 1", "vm 1"),
        ("-rf", "-rf"),
        ("größe", "größe"),
        ("<&>", "&lt;&amp;&gt;"),
        ("a'b\"c", "a&apos;b&quot;c"),
        ("<&>", "<&>"),
    ],
)
def test_the_process_is_found_through_its_pid_file(proc: FakeProc, runtime: Path, name: str, file: str) -> None:
    proc.start(4711, ["/usr/bin/qemu", "-name", f"guest={name}", "-uuid", UUID], "/usr/bin/qemu", ticks=5000)
    (runtime / f"{file}.pid").write_text("4711\n", encoding="ascii")
    started = BOOT + timedelta(seconds=5000 / os.sysconf("SC_CLK_TCK"))
    assert find_process(name, UUID, runtime, proc.path) == QemuProcess(4711, 5000, started)


def no_pid_file(_proc: FakeProc, _runtime: Path) -> None:
    pass


def empty_pid_file(_proc: FakeProc, runtime: Path) -> None:
    (runtime / "web1.pid").touch()


def nonsense_in_pid_file(_proc: FakeProc, runtime: Path) -> None:
    (runtime / "web1.pid").write_text("../../etc\n", encoding="ascii")


def process_gone(_proc: FakeProc, runtime: Path) -> None:
    (runtime / "web1.pid").write_text("4711\n", encoding="ascii")


def pid_reused(proc: FakeProc, runtime: Path) -> None:
    proc.start(4711, ["/usr/bin/vim", f"notes-on-{UUID}"], "/usr/bin/vim")
    (runtime / "web1.pid").write_text("4711\n", encoding="ascii")


def no_boot_time(proc: FakeProc, runtime: Path) -> None:
    proc.start(4711, ["/usr/bin/qemu", "-uuid", UUID], "/usr/bin/qemu")
    (proc.path / "stat").write_text("cpu 1\n", encoding="ascii")
    (runtime / "web1.pid").write_text("4711\n", encoding="ascii")


@pytest.mark.parametrize(
    ("arrange", "message"),
    [
        (no_pid_file, r"cannot be found through .*web1\.pid: .*No such file"),
        (empty_pid_file, r"cannot be found through .*web1\.pid: invalid literal"),
        (nonsense_in_pid_file, r"cannot be found through .*web1\.pid: invalid literal"),
        (process_gone, r"cannot be found through .*web1\.pid: .*4711/cmdline"),
        (pid_reused, r"\Aprocess 4711, named in .*web1\.pid, is not this domain's QEMU\Z"),
        (no_boot_time, r"has no btime line"),
    ],
)
def test_a_process_that_cannot_be_found_is_said_why(
    proc: FakeProc, runtime: Path, arrange: Callable[[FakeProc, Path], None], message: str
) -> None:
    arrange(proc, runtime)
    with pytest.raises(ProcessUnreadable, match=message):
        find_process("web1", UUID, runtime, proc.path)


# --- what it runs --------------------------------------------------------------------------------

QEMU, SPICE = "usr/bin/qemu-system-x86_64", "usr/lib/libspice.so.1"
PROCESS = QemuProcess(4711, 5000, BOOT)


@pytest.fixture
def running(proc: FakeProc) -> FakeProc:
    """A hypervisor with one QEMU process that runs what is installed."""
    binary, library = proc.install(QEMU), proc.install(SPICE)
    proc.start(4711, [binary, "-uuid", UUID], binary, (library,))
    return proc


def drift_of(proc: FakeProc) -> tuple[DriftState, list[tuple[str, str, str]]]:
    drift = judge(*running_files(PROCESS, proc.path))
    return drift.state, [(r.kind.value, Path(r.path).name, r.detail) for r in drift.reasons]


def test_a_process_that_runs_what_is_installed_has_no_drift(running: FakeProc) -> None:
    binary, libraries = running_files(PROCESS, running.path)
    assert binary.running == binary.installed
    assert [Path(library.path).name for library in libraries] == ["libspice.so.1"]
    assert drift_of(running) == (DriftState.NONE, [])


def test_a_replaced_binary_is_drift(running: FakeProc) -> None:
    running.install(QEMU, "new")
    reason = ("binary_replaced", "qemu-system-x86_64", "another file has taken its place")
    assert drift_of(running) == (DriftState.DRIFTED, [reason])


def test_a_replaced_library_is_drift(running: FakeProc) -> None:
    running.install(SPICE, "new")
    reason = ("library_replaced", "libspice.so.1", "another file has taken its place")
    assert drift_of(running) == (DriftState.DRIFTED, [reason])


def test_a_removed_library_is_drift(running: FakeProc) -> None:
    running.remove(SPICE)
    reason = ("library_replaced", "libspice.so.1", "the running file has been removed")
    assert drift_of(running) == (DriftState.DRIFTED, [reason])


def test_a_file_that_is_rewritten_in_place_is_still_the_same_file(running: FakeProc, tmp_path: Path) -> None:
    (tmp_path / "host" / QEMU).write_text("touched", encoding="utf-8")
    assert drift_of(running) == (DriftState.NONE, [])


def test_a_running_file_that_cannot_be_looked_at_makes_the_answer_unknown(running: FakeProc) -> None:
    for link in (running.path / "4711" / "map_files").iterdir():
        link.unlink()
    state, [(kind, name, detail)] = drift_of(running)
    assert (state, kind, name) == (DriftState.UNKNOWN, "unknown", "libspice.so.1")
    assert detail.startswith("the running file cannot be looked at: ")


def test_an_installed_file_that_cannot_be_looked_at_makes_the_answer_unknown(running: FakeProc) -> None:
    root = running.path / "4711" / "root"
    root.unlink()
    root.symlink_to("root")  # a link to itself cannot be followed
    state, reasons = drift_of(running)
    assert state is DriftState.UNKNOWN
    assert all(detail.startswith("the installed file cannot be looked at: ") for _kind, _name, detail in reasons)
    assert len(reasons) == 2


def test_a_process_that_has_just_ended_cannot_be_looked_at(running: FakeProc) -> None:
    running.end(4711)
    with pytest.raises(ProcessUnreadable, match=r"\Aprocess 4711 cannot be looked at: "):
        running_files(PROCESS, running.path)


def test_installed_files_are_those_of_the_processs_own_root(running: FakeProc, tmp_path: Path) -> None:
    other_root = tmp_path / "container"
    other_root.mkdir()
    root = running.path / "4711" / "root"
    root.unlink()
    root.symlink_to(other_root)
    assert drift_of(running)[0] is DriftState.DRIFTED


def test_a_path_that_is_not_utf_8_can_be_shown(running: FakeProc) -> None:
    maps = running.path / "4711" / "maps"
    span = next((running.path / "4711" / "map_files").iterdir()).name
    maps.write_bytes(f"{span} r-xp 0 08:01 9    /lib/".encode() + b"\xff.so\n")
    _binary, [library] = running_files(PROCESS, running.path)
    assert library.path == "/lib/?.so"


# --- versions ------------------------------------------------------------------------------------


def test_a_binary_is_asked_for_its_version_once(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    binary = tmp_path / "qemu"
    binary.write_text(f"#!/bin/sh\necho x >>'{asked}'\necho 'QEMU emulator version 7.2.0'\n", encoding="utf-8")
    binary.chmod(0o755)
    known: dict[FileId, str | None] = {}
    assert [version_of(binary, known), version_of(str(binary), known)] == ["7.2.0", "7.2.0"]
    assert asked.read_text(encoding="utf-8") == "x\n"


def test_a_binary_that_is_not_there_has_no_version(tmp_path: Path) -> None:
    assert version_of(tmp_path / "qemu", {}) is None


def test_a_binary_that_cannot_be_run_has_no_version(tmp_path: Path) -> None:
    binary = tmp_path / "qemu"
    binary.write_bytes(b"\x7fELF nonsense")
    binary.chmod(0o755)
    assert version_of(binary, {}) is None
