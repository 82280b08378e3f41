# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""domain_snapshot on real disks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lab.guests import PRISTINE
from tests.integration.proof import snapshots
from tests.integration.runs import difference, module, refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.guests import Guest
    from lab.session import Session


@pytest.fixture(scope="module")
def quiet_guest(lab: Session) -> Iterator[Guest]:
    """A guest that is off, with a snapshot that somebody else made: everything but live snapshots is quicker on it."""
    with lab.guest(start=False) as guest:
        guest.take_pristine()
        yield guest


def state(wanted: str, guest: Guest, name: str | None = None, **options: Any) -> dict[str, Any]:
    named: dict[str, Any] = {} if name is None else {"snapshot": name}
    result = module("domain_snapshot", name=guest.name, state=wanted, **named, **options)
    assert not result["failed"], result
    return result


def test_a_live_snapshot_brings_back_ram_and_disk(pristine_guest: Guest) -> None:
    pristine_guest.write_file("/run/in-ram", b"before")
    pristine_guest.write_file("/root/on-disk", b"before")
    boot_id = pristine_guest.boot_id()
    made = state("present", pristine_guest, "live", description="by a test")["snapshot"]
    assert (made["state"], made["current"], made["description"]) == ("running", True, "[kvm.fleet] by a test")
    pristine_guest.write_file("/run/in-ram", b"after")
    pristine_guest.write_file("/root/on-disk", b"after")

    assert state("reverted", pristine_guest, "live")["changed"] is True

    pristine_guest.wait_until_ready()
    assert pristine_guest.read_file("/run/in-ram") == b"before"
    assert pristine_guest.read_file("/root/on-disk") == b"before"
    assert pristine_guest.boot_id() == boot_id
    assert state("absent", pristine_guest, "live")["changed"] is True
    assert snapshots(pristine_guest) == ()


def test_present_check_real_again(quiet_guest: Guest) -> None:
    def present(*, check: bool) -> tuple[bool, str, bool]:
        result = state("present", quiet_guest, "twice", check=check)
        return result["changed"], result["snapshot"]["name"], "twice" in snapshots(quiet_guest)

    assert present(check=True) == (True, "twice", False)
    assert present(check=False) == (True, "twice", True)
    assert present(check=True) == (False, "twice", True)
    assert present(check=False) == (False, "twice", True)


def test_absent_check_real_again(quiet_guest: Guest) -> None:
    def absent(*, check: bool) -> tuple[bool, bool]:
        return state("absent", quiet_guest, "gone", check=check)["changed"], "gone" in snapshots(quiet_guest)

    state("present", quiet_guest, "gone")
    assert absent(check=True) == (True, True)
    assert absent(check=False) == (True, False)
    assert absent(check=True) == (False, False)
    assert absent(check=False) == (False, False)


def test_reverted_in_check_mode_changes_nothing(quiet_guest: Guest) -> None:
    state("present", quiet_guest, "first")
    state("present", quiet_guest, "second")
    assert state("reverted", quiet_guest, "first", check=True)["changed"] is True
    assert quiet_guest.domain.snapshotCurrent().getName() == "second"
    assert state("reverted", quiet_guest, "first")["changed"] is True
    assert quiet_guest.domain.snapshotCurrent().getName() == "first"


def test_the_difference_names_the_snapshot(quiet_guest: Guest) -> None:
    _predicted, printed = difference("domain_snapshot", name=quiet_guest.name, state="present", snapshot="shown")
    assert "+shown\n" in printed


@pytest.mark.parametrize(
    "name",
    [
        "a<b>&\"c'",
        "Übergröße 名前",
        "--leading dashes",
        "$(id) `id` \\ ; | ]]>",
        "{{ 1 + 1 }}",
        "ü" * 123 + "a",
    ],
)
def test_nasty_names(quiet_guest: Guest, name: str) -> None:
    made = state("present", quiet_guest, name, description=name)["snapshot"]
    assert (made["name"], made["description"]) == (name, f"[kvm.fleet] {name}")
    assert name in snapshots(quiet_guest)
    (domain,) = module("domain_info", names=[quiet_guest.name])["domains"]
    assert name in [snapshot["name"] for snapshot in domain["snapshots"]]
    assert state("absent", quiet_guest, name)["changed"] is True
    assert name not in snapshots(quiet_guest)


@pytest.mark.parametrize("name", ["a/b", ".hidden", "", "tab\there", "bell\a", " spaced", "ü" * 124, "x" * 256])
def test_impossible_names(quiet_guest: Guest, name: str) -> None:
    before = snapshots(quiet_guest)
    result = refusal("domain_snapshot", name=quiet_guest.name, snapshot=name)
    assert result["error_code"] == "invalid_request"
    assert snapshots(quiet_guest) == before


@pytest.mark.parametrize("wanted", ["present", "absent", "reverted"])
def test_somebody_elses_snapshot_is_left_alone(quiet_guest: Guest, wanted: str) -> None:
    (domain,) = module("domain_info", names=[quiet_guest.name])["domains"]
    assert PRISTINE not in [snapshot["name"] for snapshot in domain["snapshots"]]
    result = refusal("domain_snapshot", name=quiet_guest.name, state=wanted, snapshot=PRISTINE)
    assert result["error_code"] == "snapshot_not_ours"
    assert PRISTINE in quiet_guest.domain.snapshotListNames()


def test_a_snapshot_that_is_not_there(quiet_guest: Guest) -> None:
    result = refusal("domain_snapshot", name=quiet_guest.name, state="reverted", snapshot="never made")
    assert result["error_code"] == "snapshot_not_found"
