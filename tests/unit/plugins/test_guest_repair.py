# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""guest_repair from its arguments to its result."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._domain import DomainState
from tests.unit.fake_guestfish import FakeGuestfish
from tests.unit.fake_hypervisor import FakeDomain
from tests.unit.plugins.conftest import Run


@pytest.fixture
def off(domain: FakeDomain, fake_guestfish: FakeGuestfish) -> FakeDomain:
    fake_guestfish.ready()
    domain.be(DomainState.SHUT_OFF)
    return domain


def test_repairs_are_told_one_by_one_and_check_mode_works_on_a_copy(
    run: Run, off: FakeDomain, fake_guestfish: FakeGuestfish
) -> None:
    asked = {"name": "web1", "repairs": ["fsck"], "script": "echo hello"}
    fake_guestfish.fsck = ["0x1\n", "0\n"] * 2
    fake_guestfish.ready()
    predicted = run("guest_repair", check=True, **asked)
    added = fake_guestfish.calls("add")
    fake_guestfish.ready()
    done = run("guest_repair", **asked)
    assert [predicted[key] for key in ("changed", "repairs")] == [done[key] for key in ("changed", "repairs")]
    assert (done["changed"], off.changes) == (True, [])
    assert done["repairs"] == [
        {"name": "fsck", "changed": True, "output": "/dev/sda1 (ext4): errors were corrected\n"},
        {"name": "script", "changed": True, "output": "hello\n"},
    ]
    assert [call[2].get("readonly") for call in [*added, *fake_guestfish.calls("add")[len(added) :]]] == ["true", None]


@pytest.mark.usefixtures("off")
def test_a_script_has_a_network_where_it_is_given_one_and_the_guests_labels_are_seen_to(
    run: Run, fake_guestfish: FakeGuestfish
) -> None:
    config = fake_guestfish.root / "etc" / "selinux" / "config"
    config.parent.mkdir()
    config.write_text("SELINUX=enforcing\n", encoding="ascii")
    assert run("guest_repair", name="web1", repairs=["fsck"])["selinux_relabel"] is None
    assert fake_guestfish.calls("set-network") == []
    assert run("guest_repair", name="web1", script="true", network=True)["selinux_relabel"] == "done"
    assert len(fake_guestfish.calls("set-network")) == 1
    failed = run("guest_repair", name="web1", script="exit 3")
    assert failed["evidence"]["selinux_relabel"] == "at_boot"


@pytest.mark.usefixtures("off")
def test_what_is_in_order_is_no_change(run: Run) -> None:
    assert run("guest_repair", name="web1", repairs=["fsck"])["changed"] is False


@pytest.mark.usefixtures("off")
def test_a_repair_that_fails_fails_the_task(run: Run) -> None:
    result = run("guest_repair", name="web1", repairs=["fsck"], script="echo no >&2; exit 3")
    assert (result["failed"], result["error_code"], result["transient"]) == (True, "image_failed", False)
    assert result["evidence"]["stderr"] == ["no"]
    assert [one["name"] for one in result["evidence"]["repairs"]] == ["fsck"]


@pytest.mark.parametrize("check", [True, False])
def test_a_guest_that_runs_is_refused(run: Run, domain: FakeDomain, fake_guestfish: FakeGuestfish, check: bool) -> None:
    fake_guestfish.ready()
    assert run("guest_repair", name="web1", repairs=["fsck"], check=check)["error_code"] == "domain_running"
    assert (fake_guestfish.calls(), domain.changes) == ([], [])


def test_before_a_shutdown_it_only_sees_whether_it_could(
    run: Run, domain: FakeDomain, fake_guestfish: FakeGuestfish
) -> None:
    fake_guestfish.ready()
    asked = {"name": "web1", "repairs": ["fsck"], "before_shutdown": True}
    told = run("guest_repair", check=True, **asked)
    assert (told["changed"], told["repairs"], "virt-rescue --format=qcow2" in told["virt_rescue"]) == (False, [], True)
    assert fake_guestfish.calls() == []
    domain.managed_save = True
    assert run("guest_repair", check=True, **asked)["error_code"] == "domain_unsafe"
    domain.managed_save = False
    assert run("guest_repair", **asked)["error_code"] == "domain_running"


@pytest.mark.usefixtures("off")
@pytest.mark.parametrize("asked", [{}, {"script": ""}, {"repairs": ["fsck"], "timeout": 0}])
def test_what_cannot_be_meant_is_refused(run: Run, asked: dict[str, Any]) -> None:
    assert run("guest_repair", name="web1", **asked)["error_code"] == "invalid_request"


@pytest.mark.usefixtures("off")
def test_a_guest_of_another_run_is_refused(run: Run, fake_guestfish: FakeGuestfish) -> None:
    run("guest_lease", name="web1", run="run-a", owner="root@a")
    assert run("guest_repair", name="web1", repairs=["fsck"])["error_code"] == "guest_leased"
    assert run("guest_repair", name="web1", repairs=["fsck"], run="run-b")["error_code"] == "lease_lost"
    assert fake_guestfish.calls() == []
    assert not run("guest_repair", name="web1", repairs=["fsck"], run="run-a").get("failed")
