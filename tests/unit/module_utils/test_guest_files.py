# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files by commands of a guest, which this machine runs here, and by the machine itself: both do the same."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._clock import SystemClock
from ansible_collections.kvm.fleet.plugins.module_utils._errors import CommandFailed, FleetError
from ansible_collections.kvm.fleet.plugins.module_utils._exec_files import ExecFiles
from ansible_collections.kvm.fleet.plugins.module_utils._guest_files import MAX_FILE, RootFiles
from ansible_collections.kvm.fleet.plugins.module_utils._policy_here import LocalFiles
from tests.unit.host_agent import HostAgent

ODD = b"# \xff\0\r\nno end"


def by_commands(host: HostAgent) -> RootFiles:
    return ExecFiles(GuestAgent(host, SystemClock()))


def by_itself(_host: HostAgent) -> RootFiles:
    return LocalFiles()


@pytest.fixture(params=[by_commands, by_itself])
def files(request: pytest.FixtureRequest, host: HostAgent) -> RootFiles:
    make: Callable[[HostAgent], RootFiles] = request.param
    return make(host)


def test_a_file_is_read_as_it_is(files: RootFiles, tmp_path: Path) -> None:
    path = tmp_path / "it's $HOME"
    assert files.read(str(path)) is None
    path.write_bytes(ODD)
    assert files.read(str(path)) == ODD
    path.write_bytes(b"")
    assert files.read(str(path)) == b""
    assert files.read("/dev/null") == b""
    assert files.read("/proc/self/comm")


def test_a_file_that_is_too_long_is_refused(files: RootFiles, tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(b"x" * MAX_FILE)
    assert len(files.read(str(path)) or b"") == MAX_FILE
    path.write_bytes(b"x" * (MAX_FILE + 1))
    with pytest.raises(FleetError):
        files.read(str(path))


def test_a_file_keeps_its_owner_and_mode_and_is_replaced_as_a_whole(files: RootFiles, tmp_path: Path) -> None:
    path = tmp_path / "conf"
    path.write_bytes(b"old")
    path.chmod(0o640)
    inode = path.stat().st_ino
    files.write(str(path), ODD)
    status = path.stat()
    assert (path.read_bytes(), stat.S_IMODE(status.st_mode)) == (ODD, 0o640)
    assert (status.st_uid, status.st_gid) == (os.getuid(), os.getgid())
    assert status.st_ino != inode
    assert [other.name for other in tmp_path.iterdir() if other.name != "bin"] == ["conf"]


def test_a_new_file_is_for_others_to_read_and_its_directories_are_made(files: RootFiles, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b c" / "conf"
    files.write(str(path), b"new")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", 0o644)


def test_a_new_file_that_is_like_another_is_for_the_same_eyes(files: RootFiles, tmp_path: Path) -> None:
    path = tmp_path / "conf"
    path.write_bytes(b"old")
    path.chmod(0o640)
    (tmp_path / "link").symlink_to("conf")
    for like in ("conf", "link"):
        copy = tmp_path / f"copy of {like}"
        files.write(str(copy), b"kept", like=str(tmp_path / like))
        assert (copy.read_bytes(), stat.S_IMODE(copy.stat().st_mode)) == (b"kept", 0o640)
    assert path.read_bytes() == b"old"


def test_a_link_stays_a_link(files: RootFiles, tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to("target")
    files.write(str(link), b"new")
    assert (link.is_symlink(), target.read_bytes()) == (True, b"new")


def test_names_are_sorted_and_a_missing_directory_has_none(files: RootFiles, tmp_path: Path) -> None:
    directory = tmp_path / "d"
    assert files.names(str(directory)) in ([], ())
    directory.mkdir()
    assert files.names(str(directory)) in ([], ())
    for name in ("b", ".hidden", "a\nb", "-n", "ä"):
        (directory / name).touch()
    (directory / "dangling").symlink_to("nowhere")
    assert files.names(str(directory)) == sorted([".hidden", "-n", "a\nb", "b", "dangling", "ä"])


def test_a_command_that_cannot_write_leaves_the_old_file(host: HostAgent, tmp_path: Path) -> None:
    host.install("mv", "exit 1")
    path = tmp_path / "conf"
    path.write_bytes(b"old")
    with pytest.raises(CommandFailed):
        by_commands(host).write(str(path), b"new")
    assert path.read_bytes() == b"old"
    assert [other.name for other in tmp_path.iterdir() if other.name != "bin"] == ["conf"]


def test_what_is_fetched_at_once_is_what_is_read_one_by_one(host: HostAgent, tmp_path: Path) -> None:
    full, empty = tmp_path / "full", tmp_path / "empty"
    full.mkdir()
    empty.mkdir()
    contents = {"a\nb": b"\0\0file\0", "-n": ODD, "none": b"", ".d.conf": b"x"}
    for name, content in contents.items():
        (full / name).write_bytes(content)
    paths = [*(str(full / name) for name in contents), "/proc/1/comm", str(tmp_path / "gone"), "/dev/null"]
    directories = [str(full), str(empty), str(tmp_path / "no")]
    agent = GuestAgent(host, SystemClock())
    fetched, plain = ExecFiles(agent), ExecFiles(agent)
    fetched.fetch(paths, directories)
    assert {path: fetched.read(path) for path in paths} == {path: plain.read(path) for path in paths}
    assert [list(fetched.names(path) or ()) for path in directories] == [
        list(plain.names(path) or ()) for path in directories
    ]
    fetched.write(paths[0], b"new")
    assert fetched.read(paths[0]) == b"new"
