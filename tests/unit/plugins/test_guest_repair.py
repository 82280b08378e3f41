# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""guest_repair from its arguments to its result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._domain import DomainState
from ansible_collections.kvm.fleet.plugins.module_utils._errors import LibvirtFailed
from tests.unit.fake_files import SYSTEMD, UNIT
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


@pytest.mark.parametrize("check", [True, False])
def test_what_is_rehearsed_is_done_on_a_copy_while_the_guest_runs(
    run: Run, domain: FakeDomain, fake_guestfish: FakeGuestfish, check: bool
) -> None:
    config = fake_guestfish.root / "etc" / "selinux" / "config"
    config.parent.mkdir(parents=True)
    config.write_text("SELINUX=enforcing\n", encoding="ascii")
    fake_guestfish.ready()
    asked = {"name": "web1", "script": "echo hello", "rehearse": True}
    told = run("guest_repair", check=check, **asked)
    assert told["repairs"] == [{"name": "script", "changed": True, "output": "hello\n"}]
    assert [call[2].get("readonly") for call in fake_guestfish.calls("add")] == ["true"]
    assert (fake_guestfish.calls("selinux-relabel"), told["selinux_relabel"]) == ([], None)
    assert (domain.state(), domain.changes) == (DomainState.RUNNING, [])
    fake_guestfish.ready()
    refused = run("guest_repair", check=check, **{**asked, "script": "echo no >&2; exit 3"})
    assert (refused["error_code"], "the script returned 3: no" in refused["msg"]) == ("image_failed", True)
    assert "mutually exclusive" in run("guest_repair", check=check, **asked, before_shutdown=True)["msg"]


def test_before_a_shutdown_it_only_sees_whether_it_could(
    run: Run, domain: FakeDomain, fake_guestfish: FakeGuestfish
) -> None:
    fake_guestfish.ready()
    asked = {"name": "web1", "repairs": ["fsck"], "before_shutdown": True}
    for check in (True, False):
        told = run("guest_repair", check=check, **asked)
        assert (told["changed"], told["repairs"], told["virt_rescue"]) == (False, [], None)
        domain.managed_save = True
        assert run("guest_repair", check=check, **asked)["error_code"] == "domain_unsafe"
        domain.managed_save = False
    assert fake_guestfish.calls() == []
    assert run("guest_repair", check=True, name="web1", repairs=["fsck"])["error_code"] == "domain_running"


def test_for_a_shell_another_program_is_looked_for(
    run: Run, domain: FakeDomain, fake_guestfish: FakeGuestfish, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_guestfish.ready()
    programs = fake_guestfish.directory / "bin"
    monkeypatch.setenv("PATH", str(programs))
    asked = {"name": domain.name, "before_shutdown": True, "virt_rescue": True}
    missing = run("guest_repair", **asked)
    assert (missing["error_code"], missing["evidence"]) == ("image_tools_missing", {"program": "virt-rescue"})
    assert "libguestfs-rescue" in missing["remedy"]
    (programs / "guestfish").rename(programs / "virt-rescue")
    assert "virt-rescue --format=qcow2" in run("guest_repair", **asked)["virt_rescue"]
    assert run("guest_repair", name="web1", before_shutdown=True, repairs=["fsck"])["error_code"] == (
        "image_tools_missing"
    )


CONF = "etc/qemu/qemu-ga.conf"


def test_the_agent_is_allowed_what_is_needed_and_everything_else_stays(
    run: Run, off: FakeDomain, fake_guestfish: FakeGuestfish, tmp_path: Path
) -> None:
    audit = tmp_path / "state" / "kvm-fleet" / "audit.jsonl"
    for path, text in {**SYSTEMD, UNIT: "[Service]\nExecStart=-/usr/sbin/qemu-ga\n"}.items():
        file = fake_guestfish.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="ascii")
    conf = fake_guestfish.root / CONF
    conf.parent.mkdir()
    before = "# mine\n[general]\nblock-rpcs=guest-exec,guest-set-time,guest-file-open\n"
    conf.write_text(before, encoding="ascii")
    done = run("guest_repair", name="web1", repairs=["agent"])
    assert conf.read_text(encoding="ascii") == "# mine\n[general]\nblock-rpcs=guest-set-time\n"
    assert conf.with_name("qemu-ga.conf.kvm-fleet-backup").read_text(encoding="ascii") == before
    assert (done["changed"], off.changes) == (True, [])
    assert done["repairs"] == [
        {
            "name": "agent",
            "changed": True,
            "output": f"/{CONF}: - block-rpcs=guest-exec,guest-set-time,guest-file-open\n"
            f"/{CONF}: + block-rpcs=guest-set-time\n"
            f"/{CONF}: its old content is in /{CONF}.kvm-fleet-backup\n",
        }
    ]
    lines = [json.loads(line) for line in audit.read_text(encoding="ascii").splitlines()]
    assert [(line["event"], line["way"], line["guest"]) for line in lines] == [
        ("changing", "rescue", "web1"),
        ("changed", "rescue", "web1"),
    ]
    again = run("guest_repair", name="web1", repairs=["agent"])
    assert (again["changed"], "already" in again["repairs"][0]["output"]) == (False, True)
    conf.write_text(before, encoding="ascii")
    assert run("guest_repair", name="web1", repairs=["agent"], check=True)["changed"] is True
    assert len(audit.read_text(encoding="ascii").splitlines()) == 2
    fake_guestfish.fails = {"mv": "no space left on device"}
    fake_guestfish.ready()
    conf.write_text(before, encoding="ascii")
    failed = run("guest_repair", name="web1", repairs=["agent"])
    assert (failed["error_code"], failed["evidence"]["repair"]) == ("image_failed", "agent")
    assert failed["evidence"]["backups"] == {f"/{CONF}": f"/{CONF}.kvm-fleet-backup"}
    assert json.loads(audit.read_text(encoding="ascii").splitlines()[-1])["event"] == "failed"
    assert conf.read_text(encoding="ascii") == before


@pytest.mark.usefixtures("off")
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"script": ""},
        {"repairs": ["fsck"], "timeout": 0},
        {"virt_rescue": True},
        {"virt_rescue": True, "before_shutdown": True, "repairs": ["fsck"]},
        {"before_shutdown": True},
    ],
)
def test_what_cannot_be_meant_is_refused(run: Run, asked: dict[str, Any]) -> None:
    assert run("guest_repair", name="web1", **asked)["error_code"] == "invalid_request"


@pytest.mark.usefixtures("off")
def test_a_guest_of_another_run_is_refused(run: Run, fake_guestfish: FakeGuestfish) -> None:
    run("guest_lease", name="web1", run="run-a", owner="root@a")
    assert run("guest_repair", name="web1", repairs=["fsck"])["error_code"] == "guest_leased"
    assert run("guest_repair", name="web1", repairs=["fsck"], run="run-b")["error_code"] == "lease_lost"
    assert fake_guestfish.calls() == []
    assert not run("guest_repair", name="web1", repairs=["fsck"], run="run-a").get("failed")


# --- between its shutdown and its start ----------------------------------------------------------

CYCLE = {"name": "web1", "repairs": ["fsck"], "power_cycle": True}


@pytest.fixture
def running(domain: FakeDomain, fake_guestfish: FakeGuestfish) -> FakeDomain:
    fake_guestfish.ready()
    return domain


def test_a_guest_is_shut_down_repaired_and_started(run: Run, running: FakeDomain) -> None:
    boot_id = running.boot_id
    done = run("guest_repair", **CYCLE)
    assert running.changes == ["shutdown by acpi", "start"]
    assert ([one["name"] for one in done["repairs"]], done["changed"]) == (["fsck"], True)
    power = done["power"]
    assert (power["restarted"], power["forced"]) == (True, False)
    assert (power["before"]["boot_id"], power["after"]["boot_id"]) == (boot_id, running.boot_id)
    assert [seen["state"] for seen in power["transitions"]] == ["running", "shut_off", "running"]


def test_one_that_is_off_is_started_and_one_whose_agent_is_silent_is_no_obstacle(
    run: Run, off: FakeDomain, fake_guestfish: FakeGuestfish
) -> None:
    assert run("guest_repair", **CYCLE)["power"]["restarted"] is True
    assert off.changes == ["start"]
    off.agent.silent = True
    fake_guestfish.ready()
    assert run("guest_repair", **CYCLE, agent_timeout=0)["power"]["restarted"] is True
    assert off.changes == ["start", "shutdown by acpi", "start"]


def test_check_mode_leaves_a_guest_that_runs_as_it_is(
    run: Run, running: FakeDomain, fake_guestfish: FakeGuestfish
) -> None:
    predicted = run("guest_repair", check=True, **CYCLE)
    assert (predicted["changed"], predicted["repairs"], predicted["power"]["restarted"]) == (True, [], True)
    running.managed_save = True
    assert run("guest_repair", check=True, **CYCLE)["error_code"] == "domain_unsafe"
    assert (running.changes, fake_guestfish.calls()) == ([], [])


def test_check_mode_tries_the_repairs_of_one_that_is_off(run: Run, off: FakeDomain) -> None:
    predicted = run("guest_repair", check=True, **CYCLE)
    assert [one["name"] for one in predicted["repairs"]] == ["fsck"]
    assert off.changes == []


def test_a_guest_whose_repair_fails_is_started_all_the_same(run: Run, running: FakeDomain) -> None:
    failed = run("guest_repair", **CYCLE, script="exit 3")
    assert running.changes == ["shutdown by acpi", "start"]
    evidence = failed["evidence"]
    assert (failed["error_code"], evidence["repair"]) == ("image_failed", "script")
    assert [one["name"] for one in evidence["repairs"]] == ["fsck"]
    assert (evidence["restarted"], evidence["forced"]) == (True, False)


@pytest.mark.parametrize(("script", "code"), [("exit 3", "image_failed"), ("true", "start_failed")])
def test_a_start_that_fails_does_not_hide_what_came_of_the_repairs(
    run: Run, running: FakeDomain, script: str, code: str
) -> None:
    running.faults["start"] = LibvirtFailed("no", remedy="See libvirt's log.")
    failed = run("guest_repair", **CYCLE, script=script)
    assert (failed["error_code"], failed["evidence"]["repairs"][0]["name"]) == (code, "fsck")
    if code == "image_failed":
        assert failed["evidence"]["start"]["error_code"] == "start_failed"
        assert "After that, its start failed: " in failed["remedy"]
        assert "restarted" not in failed["evidence"]


def test_a_guest_that_does_not_shut_down_is_not_touched(
    run: Run, running: FakeDomain, fake_guestfish: FakeGuestfish
) -> None:
    running.habits.shuts_down_after = None
    assert run("guest_repair", **CYCLE, shutdown_timeout=30)["error_code"] == "shutdown_timeout"
    assert fake_guestfish.calls() == []


def test_a_dead_run_that_left_the_guest_off_is_gone_on_with(run: Run, off: FakeDomain, running: FakeDomain) -> None:
    run("guest_lease", name="web1", run="run-a", owner="root@a")
    off.start()
    off.changes.clear()
    assert run("guest_repair", **CYCLE, run="run-a")["power"]["restarted"] is True
    [step] = run("domain_info", names=["web1"])["domains"][0]["run"]["steps"]
    assert (step["name"], step["status"]) == ("restart", "done")
    assert running.changes == ["shutdown by acpi", "start"]
