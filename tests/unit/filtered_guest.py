# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest whose agent blocks what the guest's files say, from each start of it on."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from ansible_collections.kvm.fleet.plugins.module_utils import _exec_files
from ansible_collections.kvm.fleet.plugins.module_utils._agent_config import read_config
from ansible_collections.kvm.fleet.plugins.module_utils._domain import ACTIVE_STATES, Domain
from ansible_collections.kvm.fleet.plugins.module_utils._errors import FleetError
from tests.unit.fake_agent import ALL_COMMANDS, Call, Ending, FakeAgent
from tests.unit.fake_clock import FakeClock
from tests.unit.fake_files import FakeFiles
from tests.unit.fake_hypervisor import FakeDomain, FakeHypervisor


class FilteredAgent(FakeAgent):
    """Reads its settings when it starts.

    ``deaf`` is one whose filter comes from elsewhere. One that ``fails_with`` a word does not start with that in its
    configuration file.
    """

    deaf = False
    fails_with: bytes | None = None
    has_failed = False

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.program = self._run
        self.restarts = 0
        self.starts = 0
        self.denied: set[str] = set()

    def restart(self) -> None:
        super().restart()
        self.starts += 1
        conf = self.files.get("/etc/qemu/qemu-ga.conf") or b""
        self.has_failed = self.fails_with is not None and self.fails_with in conf
        if self.deaf:
            return
        config = read_config(self._files(), (7, 2))
        self.blocked = {rpc for rpc in ALL_COMMANDS if not config.allows(rpc)}

    def _files(self) -> FakeFiles:
        return FakeFiles({path: content for path, content in self.files.items() if content is not None})

    def exchange(self, request: str, timeout: int) -> str:
        if self.has_failed:
            raise self._silence(timeout)
        return super().exchange(request, timeout)

    def _run(self, call: Call) -> Ending:
        if call.command == ["cat", "/proc/sys/kernel/random/boot_id"]:
            return Ending(stdout=f"{uuid.uuid5(uuid.NAMESPACE_URL, str(self.starts))}\n".encode())
        script, arguments = call.command[2], call.command[4:]
        if script in self.denied:
            return Ending(126, stderr=b"Permission denied\n")
        scripts: dict[str, Callable[..., Ending]] = {
            _exec_files._READ: self._cat,
            _exec_files._FETCH: self._fetch,
            _exec_files._NAMES: self._list,
            _exec_files._WRITE: lambda path, _like: self._store(path, call.stdin),
            _exec_files._REMOVE: self._forget,
            _exec_files._PROBE: Ending,
            _exec_files._LAUNCH: self._launch,
        }
        if script in scripts:
            return scripts[script](*arguments)
        return Ending(127)

    def _cat(self, path: str) -> Ending:
        content = self.files.get(path)
        return Ending(stdout=b"gone\n" if content is None else b"there\n" + content)

    def _list(self, directory: str) -> Ending:
        return Ending(stdout=b"".join(f"{name}\0".encode() for name in self._files().names(directory) or ()))

    def _fetch(self, *paths: str) -> Ending:
        told, files = b"", self._files()
        for path in paths:
            names, content = files.names(path), files.read(path)
            if content is not None:
                told += f"file\0{path}\0{len(content)}\0".encode() + content
            elif names:
                told += f"directory\0{path}\0".encode() + "".join(f"{name}\0" for name in names).encode() + b"\0"
        return Ending(stdout=told)

    def _store(self, path: str, content: bytes) -> Ending:
        if self.disk_full:
            return Ending(1, stderr=b"No space left on device\n")
        self.files[path] = content
        return Ending()

    def _forget(self, path: str) -> Ending:
        del self.files[path]
        return Ending()

    def _launch(self, script: str, unit: str, *undo: str) -> Ending:
        assert script == _exec_files._RESTART
        assert unit == read_config(self._files(), (7, 2)).unit
        assert all(copy == "" or copy in self.files for copy in undo[1::2])
        self.restarts += 1
        self._clock.after(2, self.restart)
        return Ending()


@dataclass(frozen=True)
class _OpenImage:
    files: FakeFiles


def fail_with(error: FleetError | None) -> None:
    if error:
        raise error


class FakeImages:
    """Opens images of guests that are off, and for a look of those that run.

    ``fault`` is the error that each of it raises, ``look_fault`` each of a guest that runs, ``impossible`` each check.
    ``looks`` counts those of guests that run, ``opened`` has for each of the others whether it was to read only.
    ``block_devices`` is what was said of them last.
    """

    def __init__(self) -> None:
        self.opened: list[bool] = []
        self.block_devices = False
        self.looks = 0
        self.fault: FleetError | None = None
        self.look_fault: FleetError | None = None
        self.impossible: FleetError | None = None
        self.write_faults: dict[str, FleetError] = {}

    def check(self, domain: Domain, *, uri: str, shut_off: bool, block_devices: bool) -> None:
        assert (uri, shut_off) == ("qemu:///session", False)
        assert domain.name
        self.block_devices = block_devices
        fail_with(self.impossible)

    @contextmanager
    def open_image(
        self, domain: Domain, *, uri: str, read_only: bool, shut_off: bool, block_devices: bool
    ) -> Iterator[_OpenImage]:
        assert uri == "qemu:///session"
        assert isinstance(domain, FakeDomain)
        assert (domain.state() in ACTIVE_STATES) is not shut_off
        self.block_devices = block_devices
        if shut_off:
            self.opened.append(read_only)
        else:
            assert read_only
            self.looks += 1
            fail_with(self.look_fault)
        fail_with(self.fault)
        agent = domain.agent
        files = FakeFiles({path: content for path, content in agent.files.items() if content is not None})
        del files.contents["/proc/1/comm"]
        files.faults = self.write_faults
        yield _OpenImage(files)
        if read_only:
            assert files.written == []
            return
        agent.files = {"/proc/1/comm": agent.files["/proc/1/comm"], **files.contents}


def filtered_guest(hypervisor: FakeHypervisor, files: Mapping[str, str], name: str = "web1") -> FakeDomain:
    """A running guest with these files, whose agent has started with them."""
    domain = hypervisor.add(name)
    agent = FilteredAgent(hypervisor.clock)
    agent.files.update({path: content.encode() for path, content in files.items()})
    domain.agent = agent
    agent.restart()
    return domain


def agent_of(domain: FakeDomain) -> FilteredAgent:
    assert isinstance(domain.agent, FilteredAgent)
    return domain.agent
