# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Records on a disk, and the lock that ends with whoever holds it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils import _store
from ansible_collections.kvm.fleet.plugins.module_utils._errors import RecordDamaged, RecordUnavailable
from ansible_collections.kvm.fleet.plugins.module_utils._record import Claim, Ending, Moment, Record, serialise, take
from ansible_collections.kvm.fleet.plugins.module_utils._store import LockHeld, Store, moment, records_directory
from tests.unit.fake_clock import FakeClock

UUID = "0b1d3a7d-2f8a-4a0e-9d0b-6c8e58b40c55"
RECORD = take(None, Claim("web1", UUID, "run-a", "root@a", 3600), dict, Moment("2026-03-01T02:00:00Z", 1000.0, "boot"))

HOLD = """\
import sys
from pathlib import Path
from ansible_collections.kvm.fleet.plugins.module_utils._clock import SystemClock
from ansible_collections.kvm.fleet.plugins.module_utils._store import Store
with Store(Path(sys.argv[1])).locked(sys.argv[2], SystemClock()):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "kvm-fleet" / "runs")


def test_a_record_is_read_as_it_was_written(store: Store) -> None:
    assert store.read(UUID) is None
    store.write(RECORD)
    store.write(replace(RECORD, ended=Ending("r", "now", "upgraded", None)))
    assert store.read(UUID) == replace(RECORD, ended=Ending("r", "now", "upgraded", None))


def test_records_are_nobody_elses_business(store: Store) -> None:
    store.write(RECORD)
    assert [path.stat().st_mode & 0o777 for path in (store.directory, store.path(UUID))] == [0o700, 0o600]
    assert [path.name for path in store.directory.iterdir()] == [f"{UUID}.json"]


@pytest.mark.parametrize("text", ["", "{", serialise(replace(RECORD, uuid="another")), '{"schema": 99}', "\udcff"])
def test_a_damaged_record_is_named_and_left_alone(store: Store, text: str) -> None:
    store.write(RECORD)
    store.path(UUID).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(RecordDamaged) as damaged:
        store.read(UUID)
    assert str(store.path(UUID)) in damaged.value.message
    assert f"remove {store.path(UUID)}" in damaged.value.remedy
    assert store.path(UUID).read_bytes() == text.encode("utf-8", "surrogateescape")


def test_a_place_that_cannot_be_used_is_named(tmp_path: Path, clock: FakeClock) -> None:
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file" / "runs")
    for use in (lambda: store.read(UUID), lambda: store.write(RECORD), lambda: store.is_locked(UUID)):
        with pytest.raises(RecordUnavailable, match="file/runs"):
            use()
    with pytest.raises(RecordUnavailable), store.locked(UUID, clock):
        pass


def test_a_write_that_fails_leaves_the_old_record(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(RECORD)

    def fail(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RecordUnavailable, match="No space left"):
        store.write(replace(RECORD, ended=Ending("r", "now", "upgraded", None)))
    assert store.read(UUID) == RECORD


def test_one_module_at_a_time_has_the_lock(store: Store, clock: FakeClock) -> None:
    with store.locked(UUID, clock):
        assert store.is_locked(UUID)
        with pytest.raises(LockHeld), store.locked(UUID, clock):
            pass
        with pytest.raises(LockHeld):
            store.wait_until_free(UUID, clock)
        assert sum(clock.waits) == pytest.approx(2 * _store.LOCK_PATIENCE)
    assert not store.is_locked(UUID)
    store.wait_until_free(UUID, clock)
    with store.locked(UUID, clock), store.locked(UUID.replace("0", "1"), clock):
        pass


def test_looking_leaves_nothing_behind(store: Store, clock: FakeClock) -> None:
    assert store.read(UUID) is None
    assert not store.is_locked(UUID)
    store.wait_until_free(UUID, clock)
    assert not store.directory.exists()


def test_the_lock_ends_with_its_holder_however_that_dies(store: Store) -> None:
    command = [sys.executable, "-c", HOLD, str(store.directory), UUID]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert store.is_locked(UUID)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert not store.is_locked(UUID)


def test_a_moment_names_the_boot_that_it_is_of(clock: FakeClock) -> None:
    now = moment(clock)
    assert (now.at, now.uptime) == ("2026-03-01T02:00:00Z", clock.monotonic())
    assert now.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def test_a_users_own_domains_have_their_records_with_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    assert records_directory("qemu:///session") == Path("/home/me/.local/state/kvm-fleet/runs")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert records_directory("qemu:///session") == Path("/state/kvm-fleet/runs")
    assert records_directory("qemu:///system") == Path("/var/lib/kvm-fleet/runs")


def test_records_of_all_kinds_survive(store: Store) -> None:
    odd = replace(RECORD, domain="""Zoë's <b>&amp; "\\db" {{ 1 + 1 }}""")
    store.write(odd)
    found: Record | None = store.read(UUID)
    assert found == odd
