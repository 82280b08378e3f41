# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Places of a group on a disk, where runs that know nothing of each other find them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._group import key_of
from ansible_collections.kvm.fleet.plugins.module_utils._store import GroupStore, groups_directory
from ansible_collections.kvm.fleet.plugins.modules import group_lease
from tests.unit.fake_clock import FakeClock
from tests.unit.plugins.conftest import Run

NAME = "data/bank ü"


@pytest.fixture
def store(clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GroupStore:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(group_lease, "SystemClock", lambda: clock)
    return GroupStore(groups_directory("qemu:///session"))


def take(run: Run, member: str, who: str = "a", **options: Any) -> dict[str, Any]:
    given = {"group": NAME, "member": member, "uuid": f"uuid of {member}", "run": f"run-{who}", "owner": f"root@{who}"}
    return run("group_lease", uri="qemu:///session", **{**given, **options})


def leave(run: Run, member: str, who: str = "a", **options: Any) -> dict[str, Any]:
    return take(run, member, who, **{"state": "absent", "outcome": "upgraded", **options})


def test_a_place_is_taken_renewed_and_let_go(run: Run, store: GroupStore) -> None:
    taken, renewed, released, again = take(run, "db1"), take(run, "db1"), leave(run, "db1"), leave(run, "db1")
    assert [result["changed"] for result in (taken, renewed, released, again)] == [True, False, True, False]
    assert renewed["places"] == [
        {
            "member": "db1",
            "uuid": "uuid of db1",
            "run": "run-a",
            "owner": "root@a",
            "taken": "2026-03-01T02:00:00Z",
            "failed": False,
        }
    ]
    assert (released["places"], store.read(NAME).places) == ([], ())
    assert (store.path(key_of(NAME)).stat().st_mode & 0o777, store.directory.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_second_member_has_to_wait_and_is_told_for_whom(run: Run, store: GroupStore, clock: FakeClock) -> None:
    take(run, "db1", ttl=100)
    for check in (True, False):
        refused = take(run, "db2", "b", check=check)
        assert (refused["error_code"], refused["transient"]) == ("group_busy", True)
        assert "'db1' is worked on in run run-a of root@a" in refused["msg"]
    assert take(run, "db2", "b", group="another")["changed"]
    clock.advance(101)
    assert take(run, "db2", "b")["changed"]
    assert [place.member for place in store.read(NAME).places] == ["db2"]


@pytest.mark.usefixtures("store")
def test_a_member_that_has_failed_keeps_its_place(run: Run) -> None:
    take(run, "db1")
    assert leave(run, "db1", outcome="failed")["places"][0]["failed"]
    refused = take(run, "db2", "b")
    assert (refused["error_code"], refused["transient"]) == ("group_member_failed", False)
    assert take(run, "db1", "b")["changed"]
    leave(run, "db1", "b")
    assert take(run, "db2", "b")["changed"]


def test_check_mode_leaves_nothing_behind(run: Run, store: GroupStore) -> None:
    assert take(run, "db1", check=True)["changed"]
    assert not leave(run, "db1", check=True)["changed"]
    assert not store.directory.exists()
    take(run, "db1")
    assert leave(run, "db1", check=True)["changed"]
    assert len(store.read(NAME).places) == 1


def test_a_task_that_has_the_lock_is_waited_for_but_not_for_ever(run: Run, store: GroupStore, clock: FakeClock) -> None:
    with store.locked(key_of(NAME), clock):
        for check in (True, False):
            assert take(run, "db1", check=check)["error_code"] == "group_busy"


@pytest.mark.parametrize("text", ["{", '{"schema": 1, "name": "another", "places": []}', '{"schema": 99}'])
def test_a_damaged_file_is_named_and_left_alone(run: Run, store: GroupStore, text: str) -> None:
    take(run, "db1")
    path = store.path(key_of(NAME))
    path.write_text(text, encoding="utf-8")
    damaged = take(run, "db1")
    assert damaged["error_code"] == "record_damaged"
    assert str(path) in damaged["msg"]
    assert path.read_text(encoding="utf-8") == text


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("options", [{"at_once": 0}, {"ttl": 0}, {"group": ""}, {"owner": "ü"}])
def test_what_cannot_be_meant_is_refused(run: Run, options: dict[str, Any]) -> None:
    assert take(run, "db1", **options)["error_code"] == "invalid_request"
