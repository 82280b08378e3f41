# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""guest_agent_policy by each of its ways, on guests whose agents mind their files; and what fails on the way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils import _exec_files, _record, _restart
from ansible_collections.kvm.fleet.plugins.module_utils._audit import Audit
from ansible_collections.kvm.fleet.plugins.module_utils._domain import DomainState
from ansible_collections.kvm.fleet.plugins.module_utils._errors import ImageFailed, ImageToolsMissing, RecordUnavailable
from ansible_collections.kvm.fleet.plugins.module_utils._record import StepName
from ansible_collections.kvm.fleet.plugins.module_utils._store import Store, moment, records_directory
from ansible_collections.kvm.fleet.plugins.modules import guest_agent_policy
from tests.unit.fake_agent import ALL_COMMANDS, FILE_COMMANDS
from tests.unit.fake_files import SYSTEMD, TEMPLATE, UNIT, FakeFiles
from tests.unit.fake_hypervisor import FakeDomain, FakeHypervisor
from tests.unit.filtered_guest import FakeImages, agent_of, filtered_guest
from tests.unit.plugins.conftest import Run
from tests.unit.upgrading_guest import UpgradingGuest

CONF = "/etc/qemu/qemu-ga.conf"
BACKUP = f"{CONF}.kvm-fleet-backup"
DEBIAN = {**SYSTEMD, UNIT: "[Service]\nExecStart=-/usr/sbin/qemu-ga\n"}
EXEC = {"guest-exec", "guest-exec-status"}


def blocking(*rpcs: str) -> dict[str, str]:
    return {**DEBIAN, CONF: f"# mine\n[general]\nverbose=0\nblock-rpcs={','.join(rpcs)}\n"}


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> FakeImages:
    found = FakeImages()
    monkeypatch.setattr(guest_agent_policy, "_image", found)
    return found


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    return tmp_path / "state" / "kvm-fleet" / "audit.jsonl"


def lines(audit: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in audit.read_text(encoding="ascii").splitlines()]


def policy(run_module: Run, state: str, /, *, check: bool = False, **options: Any) -> dict[str, Any]:
    return run_module("guest_agent_policy", name="web1", state=state, check=check, **options)


def text(domain: FakeDomain, path: str) -> str:
    content = domain.agent.files[path]
    assert content is not None
    return content.decode()


# --- what is so already --------------------------------------------------------------------------


def test_an_agent_that_says_it_is_so_already_is_asked_nothing_else(
    run: Run, hypervisor: FakeHypervisor, images: FakeImages, audit: Path
) -> None:
    domain = filtered_guest(hypervisor, DEBIAN)
    result = policy(run, "enabled")
    assert (result["changed"], result["way"], result["proved"], result["files"]) == (False, None, True, [])
    assert (domain.agent.requests, domain.changes, images.opened) == (["guest-info"], [], [])
    assert not audit.exists()


# --- by guest-exec -------------------------------------------------------------------------------


def test_guest_exec_is_blocked_by_guest_exec_and_the_agent_alone_is_restarted(
    run: Run, hypervisor: FakeHypervisor, audit: Path
) -> None:
    domain = filtered_guest(hypervisor, {**DEBIAN, CONF: "# mine\n"})
    pid = domain.pid
    predicted = policy(run, "disabled", check=True)
    assert (text(domain, CONF), agent_of(domain).restarts, audit.exists()) == ("# mine\n", 0, False)

    result = policy(run, "disabled")
    assert result["way"] == "exec"
    assert text(domain, CONF) == "# mine\n[general]\nblock-rpcs=guest-exec,guest-exec-status\n"
    assert text(domain, BACKUP) == "# mine\n"
    assert domain.agent.blocked == EXEC
    assert (domain.pid, domain.changes, agent_of(domain).restarts) == (pid, [], 1)
    assert (predicted["changed"], predicted["diff"]) == (result["changed"], result["diff"])
    assert (predicted["proved"], result["proved"]) == (False, True)
    assert result["files"] == [
        {
            "path": CONF,
            "backup": BACKUP,
            "backup_on": "guest",
            "lines": [
                {"before": None, "after": "[general]"},
                {"before": None, "after": "block-rpcs=guest-exec,guest-exec-status"},
            ],
        }
    ]
    assert policy(run, "disabled")["changed"] is False


def test_of_a_template_the_instance_is_restarted(run: Run, hypervisor: FakeHypervisor) -> None:
    template = {TEMPLATE: "[Service]\nExecStart=-/usr/bin/qemu-ga -p /dev/%I\n"}
    domain = filtered_guest(hypervisor, {**SYSTEMD, **template, CONF: "[general]\nblock-rpcs=guest-get-fsinfo\n"})
    result = policy(run, "enabled", rpcs=["guest-get-fsinfo"])
    assert (result["way"], domain.agent.blocked, agent_of(domain).restarts) == ("exec", set(), 1)


def test_only_other_commands_are_blocked_so_guest_exec_allows_them(run: Run, hypervisor: FakeHypervisor) -> None:
    domain = filtered_guest(hypervisor, blocking("guest-file-open", "guest-get-fsinfo"))
    result = policy(run, "enabled", rpcs=["guest-file-open"])
    assert (result["way"], domain.agent.blocked) == ("exec", {"guest-get-fsinfo"})
    assert result["settings"]["guest-file-open"] == [
        {"path": CONF, "line": 4, "text": "block-rpcs=guest-file-open,guest-get-fsinfo", "effect": "blocks it"}
    ]


def test_a_restart_that_changes_nothing_is_undone_and_fails(run: Run, hypervisor: FakeHypervisor, audit: Path) -> None:
    domain = filtered_guest(hypervisor, DEBIAN)
    agent_of(domain).deaf = True
    result = policy(run, "disabled", agent_timeout=20)
    assert (result["error_code"], result["evidence"]["put_back"]) == ("proof_failed", True)
    assert CONF not in domain.agent.files
    assert agent_of(domain).restarts == 2
    assert [line["event"] for line in lines(audit)] == ["changing", "failed"]


def test_where_the_agent_may_not_run_what_restarts_it_another_way_is_taken(
    run: Run, hypervisor: FakeHypervisor, images: FakeImages
) -> None:
    domain = filtered_guest(hypervisor, blocking("guest-x"))
    agent_of(domain).denied = {_exec_files._PROBE}
    assert policy(run, "disabled", check=True)["way"] == "files"
    refused = policy(run, "disabled", way="exec")
    assert refused["error_code"] == "no_way_open"
    assert "Permission denied" in refused["evidence"]["ways"]["exec"]
    assert images.opened == []


# --- by the agent's own commands for files -------------------------------------------------------


def test_guest_exec_is_allowed_through_files_and_a_power_cycle(
    run: Run, hypervisor: FakeHypervisor, audit: Path
) -> None:
    domain = filtered_guest(hypervisor, blocking("guest-x", *EXEC))
    pid = domain.pid
    predicted = policy(run, "enabled", check=True)
    assert domain.changes == []
    result = policy(run, "enabled")
    assert (result["way"], result["restarted"], result["proved"]) == ("files", True, True)
    assert predicted["diff"] == result["diff"]
    assert text(domain, CONF) == blocking("guest-x")[CONF]
    assert (domain.agent.blocked, domain.changes) == (set(), ["shutdown by acpi", "start"])
    assert domain.pid != pid
    assert BACKUP not in domain.agent.files
    [file] = result["files"]
    assert file["backup_on"] == "hypervisor"
    assert Path(file["backup"]).read_text(encoding="ascii") == blocking("guest-x", *EXEC)[CONF]
    assert Path(file["backup"]).is_relative_to(audit.parent)
    assert policy(run, "enabled")["changed"] is False


def test_a_run_that_was_killed_between_the_write_and_the_shutdown_leaves_only_the_restart_to_the_next(
    run: Run, hypervisor: FakeHypervisor, images: FakeImages, audit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images.impossible = ImageToolsMissing("there is no guestfish", remedy="Install it.")
    domain = filtered_guest(hypervisor, blocking(*EXEC))

    class Killed(BaseException):
        """Nothing of the module runs any more."""

    def die(*_arguments: object, **_options: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(_restart, "cycle", die)
        with pytest.raises(Killed):
            policy(run, "enabled")
    assert ([line["event"] for line in lines(audit)], domain.changes) == (["changing"], [])

    predicted = policy(run, "enabled", check=True)
    assert (predicted["way"], predicted["restarted"], predicted["files"]) == ("files", True, [])
    result = policy(run, "enabled")
    assert (result["way"], result["proved"], result["files"]) == ("files", True, [])
    assert (domain.agent.blocked, domain.changes) == (set(), ["shutdown by acpi", "start"])
    assert [line["event"] for line in lines(audit)] == ["changing", "restarting", "restarted"]


@pytest.mark.parametrize(
    "other",
    [
        {"event": "changed"},
        {"event": "failed"},
        {"event": "restarting"},
        {"state": "disabled"},
        {"rpcs": ["guest-exec"]},
        {"uuid": "another"},
        None,
    ],
)
@pytest.mark.usefixtures("images")
def test_a_guest_is_not_restarted_for_settings_that_nobody_has_seen_or_begun_to_change(
    run: Run, hypervisor: FakeHypervisor, audit: Path, other: dict[str, Any] | None
) -> None:
    domain = filtered_guest(hypervisor, blocking(*EXEC))
    domain.agent.files[CONF] = b""  # the filter that it has is in none of its files
    if other:
        begun = {"event": "changing", "state": "enabled", "rpcs": sorted(EXEC), "uuid": domain.uuid, **other}
        Audit(hypervisor.uri, hypervisor.clock).add(begun.pop("event"), begun)
        with audit.open("ab") as file:
            file.write(b'{"at": "2026-')
    refused = policy(run, "enabled", way="files")
    assert "in none of the files that could be seen" in refused["evidence"]["ways"]["files"]
    assert domain.changes == []


def test_a_guest_that_does_not_shut_down_keeps_its_files_and_goes_on(run: Run, hypervisor: FakeHypervisor) -> None:
    domain = filtered_guest(hypervisor, blocking(*EXEC))
    domain.habits.shuts_down_after = None
    result = policy(run, "enabled", shutdown_timeout=10)
    assert (result["error_code"], result["evidence"]["put_back"]) == ("shutdown_timeout", True)
    assert text(domain, CONF) == blocking(*EXEC)[CONF]
    assert domain.state() is DomainState.RUNNING


def test_a_file_that_the_agent_would_have_to_make_closes_that_way(
    run: Run, hypervisor: FakeHypervisor, images: FakeImages
) -> None:
    files = {
        **SYSTEMD,
        UNIT: "[Service]\nEnvironmentFile=/usr/etc/x\nEnvironmentFile=-/etc/x\nExecStart=/u/qemu-ga $FILTER_RPC_ARGS\n",
        "/usr/etc/x": 'FILTER_RPC_ARGS="--block-rpcs=guest-exec,guest-exec-status"\n',
    }
    domain = filtered_guest(hypervisor, files)
    refused = policy(run, "enabled", way="files")
    assert refused["error_code"] == "no_way_open"
    assert "/etc/x would have to be made" in refused["msg"]
    assert policy(run, "enabled")["way"] == "offline"
    assert domain.agent.blocked == set()
    assert images.opened == [False]


# --- in the image --------------------------------------------------------------------------------


def test_both_are_blocked_so_the_image_is_edited_while_the_guest_is_off(
    run: Run, hypervisor: FakeHypervisor, images: FakeImages, audit: Path
) -> None:
    domain = filtered_guest(hypervisor, blocking(*FILE_COMMANDS, *EXEC))
    predicted = policy(run, "enabled", check=True)
    assert (predicted["way"], predicted["known"], predicted["proved"]) == ("offline", True, False)
    assert (domain.changes, images.opened, images.looks) == ([], [], 1)
    result = policy(run, "enabled")
    assert (result["way"], result["known"], result["proved"]) == ("offline", True, True)
    assert predicted["diff"] == result["diff"]
    assert domain.changes == ["shutdown by acpi", "start"]
    assert domain.agent.blocked == set(FILE_COMMANDS)
    assert text(domain, BACKUP) == blocking(*FILE_COMMANDS, *EXEC)[CONF]
    restarting, changing, changed = lines(audit)
    assert (restarting["event"], restarting["files"], changing["event"]) == ("restarting", [], "changing")
    assert (changed["event"], changed["way"], changed["files"]) == ("changed", "offline", result["files"])
    assert changed == result["audit"]


@pytest.mark.parametrize("allowed", [True, False])
def test_what_may_be_done_on_block_devices_is_passed_on(
    run: Run, hypervisor: FakeHypervisor, images: FakeImages, allowed: bool
) -> None:
    filtered_guest(hypervisor, blocking(*FILE_COMMANDS, *EXEC))
    policy(run, "enabled", check=True, block_devices=allowed)
    assert images.block_devices is allowed
    images.block_devices = not allowed
    policy(run, "enabled", block_devices=allowed)
    assert images.block_devices is allowed


def test_disks_that_make_no_sense_while_they_are_written_to_are_read_after_the_shutdown(
    run: Run, hypervisor: FakeHypervisor, images: FakeImages
) -> None:
    domain = filtered_guest(hypervisor, blocking(*FILE_COMMANDS, *EXEC))
    images.look_fault = ImageFailed("no system was found", remedy="None.")
    predicted = policy(run, "enabled", check=True)
    assert (predicted["changed"], predicted["known"], predicted["files"]) == (True, False, [])
    assert (policy(run, "enabled")["proved"], domain.agent.blocked) == (True, set(FILE_COMMANDS))


def test_settings_that_are_not_on_the_disks_yet_are_not_claimed_to_be_known(
    run: Run, hypervisor: FakeHypervisor, images: FakeImages
) -> None:
    domain = filtered_guest(hypervisor, blocking(*FILE_COMMANDS, *EXEC))
    domain.agent.files[CONF] = b""
    predicted = policy(run, "enabled", check=True)
    assert (predicted["changed"], predicted["known"], predicted["files"]) == (True, False, [])
    assert images.looks == 1


def test_what_only_the_disks_tell_is_refused_before_the_shutdown(
    run: Run, hypervisor: FakeHypervisor, images: FakeImages
) -> None:
    unit = "[Service]\nExecStart=/usr/bin/qemu-ga --block-rpcs=guest-exec,guest-file-open\n"
    domain = filtered_guest(hypervisor, {**SYSTEMD, UNIT: unit})
    refused = policy(run, "enabled", rpcs=["guest-exec"])
    assert (refused["error_code"], refused["evidence"]["file"]) == ("policy_unsupported", UNIT)
    assert (domain.changes, images.opened) == ([], [])


def test_a_drop_in_that_the_agent_cannot_find_is_found_on_the_disks(
    run: Run, hypervisor: FakeHypervisor, images: FakeImages
) -> None:
    drop_in = "/etc/systemd/system/qemu-guest-agent.service.d/50-filter.conf"
    files = {
        **SYSTEMD,
        UNIT: "[Service]\nExecStart=/bin/sh -c qemu-ga\n",
        drop_in: "[Service]\nExecStart=\nExecStart=/usr/sbin/qemu-ga --block-rpcs=guest-exec,guest-exec-status\n",
    }
    domain = filtered_guest(hypervisor, files)
    assert "by another program" in policy(run, "enabled", way="files")["evidence"]["ways"]["files"]
    result = policy(run, "enabled")
    assert (result["way"], result["files"][0]["path"], domain.agent.blocked) == ("offline", drop_in, set())
    assert images.looks == 1


@pytest.mark.parametrize("writing", [True, False])
def test_a_failure_in_the_image_starts_the_guest_again(
    run: Run, hypervisor: FakeHypervisor, images: FakeImages, writing: bool
) -> None:
    domain = filtered_guest(hypervisor, blocking(*FILE_COMMANDS, *EXEC))
    fault = ImageFailed("no", remedy="None.")
    if writing:
        images.write_faults[CONF] = fault
    else:
        images.fault = fault
    result = policy(run, "enabled")
    assert (result["error_code"], domain.changes) == ("image_failed", ["shutdown by acpi", "start"])
    assert domain.state() is DomainState.RUNNING
    assert text(domain, CONF) == blocking(*FILE_COMMANDS, *EXEC)[CONF]
    assert not domain.agent.silent


def test_a_failure_in_the_image_does_not_hide_that_the_guest_could_not_be_started(
    run: Run, hypervisor: FakeHypervisor, images: FakeImages
) -> None:
    domain = filtered_guest(hypervisor, blocking(*FILE_COMMANDS, *EXEC))
    images.fault = ImageFailed("the image is odd", remedy="None.")
    domain.habits.boots_in = 10**6
    result = policy(run, "enabled", agent_timeout=60)
    assert (result["error_code"], result["evidence"]["while_off"]) == ("agent_silent", "the image is odd")


@pytest.mark.parametrize("there", [True, False])
def test_a_guest_whose_agent_does_not_come_up_after_the_edit_gets_its_old_files_by_another_power_cycle(
    run: Run, hypervisor: FakeHypervisor, images: FakeImages, audit: Path, there: bool
) -> None:
    domain = filtered_guest(hypervisor, blocking("guest-x") if there else DEBIAN)
    agent_of(domain).fails_with = b"guest-exec"
    before = dict(domain.agent.files)
    result = policy(run, "disabled", way="offline", agent_timeout=60)
    assert (result["error_code"], result["evidence"]["put_back"]) == ("agent_silent", True)
    assert domain.changes == ["shutdown by acpi", "start"] * 2
    assert {path: content for path, content in domain.agent.files.items() if path != BACKUP} == before
    assert result["evidence"]["backups"] == {CONF: BACKUP if there else None}
    assert (domain.state(), images.opened) == (DomainState.RUNNING, [False, False])
    assert policy(run, "enabled")["proved"] is True
    assert [line["event"] for line in lines(audit)] == ["restarting", "changing", "failed"]


def test_what_was_changed_by_an_agent_that_is_then_gone_is_undone_on_the_image(
    run: Run, hypervisor: FakeHypervisor, images: FakeImages
) -> None:
    domain = filtered_guest(hypervisor, blocking(*EXEC))
    agent_of(domain).fails_with = b"block-rpcs=\n"
    result = policy(run, "enabled", way="files", agent_timeout=60)
    assert (result["error_code"], result["evidence"]["put_back"]) == ("agent_silent", True)
    assert (text(domain, CONF), images.opened) == (blocking(*EXEC)[CONF], [False])
    assert not agent_of(domain).has_failed

    images.impossible = ImageToolsMissing("there is no guestfish", remedy="Install it.")
    domain.changes.clear()
    result = policy(run, "enabled", way="files", agent_timeout=60)
    assert (result["evidence"]["put_back"], result["evidence"]["undoing"]) == (False, "there is no guestfish")
    assert domain.changes == ["shutdown by acpi", "start"]


def test_an_agent_that_says_otherwise_after_the_edit_is_undone_as_well(
    run: Run, hypervisor: FakeHypervisor, images: FakeImages
) -> None:
    domain = filtered_guest(hypervisor, blocking("guest-x"))
    agent_of(domain).deaf = True
    result = policy(run, "disabled", way="offline")
    assert (result["error_code"], result["evidence"]["put_back"]) == ("proof_failed", True)
    assert (text(domain, CONF), images.opened) == (blocking("guest-x")[CONF], [False, False])


def test_what_cannot_be_undone_is_named_with_its_copy(run: Run, hypervisor: FakeHypervisor, images: FakeImages) -> None:
    domain = filtered_guest(hypervisor, blocking("guest-x"))
    agent_of(domain).fails_with = b"guest-exec"
    hypervisor.clock.after(30, lambda: setattr(images, "fault", ImageFailed("it is locked", remedy="None.")))
    result = policy(run, "disabled", way="offline", agent_timeout=60)
    assert (result["error_code"], result["evidence"]["put_back"]) == ("agent_silent", False)
    assert result["evidence"]["undoing"]
    assert f"{CONF} (its copy is {BACKUP})" in result["remedy"]
    assert domain.state() is DomainState.RUNNING


def test_of_a_guest_that_was_off_what_could_not_be_put_back_is_named_with_its_copy(
    run: Run, hypervisor: FakeHypervisor, images: FakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = "/etc/default/agent"
    unit = f"[Service]\nEnvironmentFile={options}\nExecStart=/usr/sbin/qemu-ga $OPTIONS\n"
    filters = {options: "OPTIONS=--block-rpcs=guest-exec\n", CONF: "[general]\nblock-rpcs=guest-exec-status\n"}
    domain = filtered_guest(hypervisor, {**SYSTEMD, UNIT: unit, **filters})
    domain.be(DomainState.SHUT_OFF)
    real = FakeFiles.write
    ended: list[str] = []

    def write(files: FakeFiles, path: str, content: bytes, *, like: str | None = None) -> None:
        """Its appliance ends in the second of the two writes."""
        if path == CONF or ended:
            ended.append(path)
            raise ImageFailed("guestfish has ended", remedy="See why.")
        real(files, path, content, like=like)

    monkeypatch.setattr(FakeFiles, "write", write)
    result = policy(run, "enabled")
    assert (result["error_code"], result["evidence"]["put_back"]) == ("image_failed", False)
    assert result["remedy"].startswith(f"See why. The settings could not be put back: {options} (its copy is {options}")
    assert result["evidence"]["backups"] == {options: f"{options}.kvm-fleet-backup", CONF: BACKUP}
    assert images.opened == [False]


# --- agents that do not tell ---------------------------------------------------------------------


@pytest.mark.parametrize("way", ["auto", "offline"])
def test_an_agent_that_hangs_is_set_up_on_the_image(
    run: Run, hypervisor: FakeHypervisor, images: FakeImages, way: str
) -> None:
    domain = filtered_guest(hypervisor, blocking("guest-x", *EXEC))
    domain.agent.silent = True
    assert policy(run, "enabled", way=way, check=True)["diff"]
    result = policy(run, "enabled", way=way)
    assert (result["way"], result["proved"], domain.agent.blocked) == ("offline", True, set())
    assert (domain.changes, images.opened) == (["shutdown by acpi", "start"], [False])


def test_an_agent_that_may_not_tell_what_it_allows_is_allowed_to(
    run: Run, hypervisor: FakeHypervisor, images: FakeImages
) -> None:
    domain = filtered_guest(hypervisor, blocking("guest-info", "guest-x", *EXEC))
    for way in ("exec", "files"):
        refused = policy(run, "enabled", way=way)
        assert refused["error_code"] == "no_way_open"
        assert "guest-info" in refused["evidence"]["ways"][way]
    refused = policy(run, "disabled", rpcs=["guest-file-open"])
    assert (refused["error_code"], refused["evidence"]) == ("agent_command_blocked", {"blocked": ["guest-info"]})
    result = policy(run, "enabled")
    assert (result["way"], result["proved"], domain.agent.blocked) == ("offline", True, set())
    assert text(domain, CONF) == blocking("guest-x")[CONF]
    assert images.opened == [False]


@pytest.mark.parametrize("unreadable", [True, False])
def test_a_silent_guest_is_not_shut_down_for_nothing(
    run: Run, hypervisor: FakeHypervisor, images: FakeImages, unreadable: bool
) -> None:
    domain = filtered_guest(hypervisor, DEBIAN)
    domain.agent.silent = True
    if unreadable:
        images.look_fault = ImageFailed("no system was found", remedy="None.")
    refused = policy(run, "enabled")
    assert (refused["error_code"], domain.changes) == ("no_way_open", [])
    assert ("no system" if unreadable else "as wanted") in refused["evidence"]["ways"]["offline"]
    assert policy(run, "enabled", way="offline")["proved"] is True


def test_a_guest_that_is_off_is_edited_and_stays_off(run: Run, hypervisor: FakeHypervisor, images: FakeImages) -> None:
    domain = filtered_guest(hypervisor, blocking(*EXEC))
    domain.be(DomainState.SHUT_OFF)
    predicted = policy(run, "enabled", check=True)
    assert images.opened == [True]
    result = policy(run, "enabled")
    assert (predicted["changed"], predicted["diff"]) == (True, result["diff"])
    assert (result["proved"], result["restarted"], domain.changes) == (False, False, [])
    assert text(domain, CONF) == blocking()[CONF]
    assert policy(run, "enabled")["changed"] is False
    assert policy(run, "enabled", way="exec")["error_code"] == "no_way_open"


# --- refusals ------------------------------------------------------------------------------------


def test_without_a_power_cycle_and_guest_exec_no_way_is_open_and_each_says_why(
    run: Run, hypervisor: FakeHypervisor, images: FakeImages, audit: Path
) -> None:
    domain = filtered_guest(hypervisor, blocking(*EXEC))
    for check in (True, False):
        result = policy(run, "enabled", power_cycle=False, check=check)
        assert result["error_code"] == "no_way_open"
        assert result["evidence"]["ways"] == {
            "exec": "the agent does not allow guest-exec, guest-exec-status",
            "files": "it needs a power cycle, which 'power_cycle: false' forbids",
            "offline": "it needs a power cycle, which 'power_cycle: false' forbids",
        }
    assert (domain.changes, images.opened, audit.exists()) == ([], [], False)


def test_a_guest_whose_image_could_not_be_opened_is_not_shut_down_for_it(
    run: Run, hypervisor: FakeHypervisor, images: FakeImages
) -> None:
    domain = filtered_guest(hypervisor, blocking(*FILE_COMMANDS, *EXEC))
    images.impossible = ImageToolsMissing("there is no guestfish", remedy="Install it.")
    result = policy(run, "enabled")
    assert (result["error_code"], result["evidence"]["ways"]["offline"]) == ("no_way_open", "there is no guestfish")
    assert (domain.changes, images.opened) == ([], [])


def test_a_transient_guest_is_not_shut_down(run: Run, hypervisor: FakeHypervisor, images: FakeImages) -> None:
    domain = filtered_guest(hypervisor, blocking(*EXEC))
    domain.persistent = False
    assert "transient" in policy(run, "enabled")["evidence"]["ways"]["files"]
    assert (domain.changes, images.opened) == ([], [])


@pytest.mark.usefixtures("images")
def test_a_vendors_command_line_is_refused_before_anything(run: Run, hypervisor: FakeHypervisor) -> None:
    unit = "[Service]\nExecStart=/usr/bin/qemu-ga --block-rpcs=guest-exec\n"
    domain = filtered_guest(hypervisor, {**SYSTEMD, UNIT: unit})
    result = policy(run, "enabled", rpcs=["guest-exec"])
    assert (result["error_code"], result["evidence"]["file"], result["evidence"]["line"]) == (
        "policy_unsupported",
        UNIT,
        2,
    )
    assert domain.changes == []


def test_a_frozen_guest_is_left_alone(run: Run, hypervisor: FakeHypervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    domain = filtered_guest(hypervisor, DEBIAN)
    allowed = ("guest-ping", "guest-info", "guest-fsfreeze-status", "guest-fsfreeze-thaw")
    monkeypatch.setattr("tests.unit.fake_agent.ALL_COMMANDS", (*ALL_COMMANDS, *allowed[2:]))
    domain.agent.blocked = set(ALL_COMMANDS) - set(allowed)
    result = policy(run, "enabled")
    assert (result["error_code"], result["transient"]) == ("domain_busy", True)
    assert domain.changes == []


def test_a_command_that_the_agent_does_not_have_cannot_be_allowed(run: Run, hypervisor: FakeHypervisor) -> None:
    filtered_guest(hypervisor, DEBIAN)
    assert policy(run, "enabled", rpcs=["guest-x"])["error_code"] == "policy_unsupported"
    assert policy(run, "disabled", rpcs=["guest-x"])["changed"] is False


@pytest.mark.parametrize(
    "options", [{"rpcs": []}, {"rpcs": ["guest-ping"]}, {"agent_timeout": 0}, {"shutdown_timeout": 0}]
)
def test_what_cannot_be_meant_is_refused(run: Run, hypervisor: FakeHypervisor, options: dict[str, Any]) -> None:
    domain = filtered_guest(hypervisor, DEBIAN)
    assert policy(run, "disabled", **options)["error_code"] == "invalid_request"
    assert domain.agent.requests == []


def test_without_an_audit_nothing_is_changed(run: Run, hypervisor: FakeHypervisor, audit: Path) -> None:
    domain = filtered_guest(hypervisor, blocking(*EXEC))
    audit.mkdir(parents=True)
    assert policy(run, "enabled")["error_code"] == "record_unavailable"
    assert (text(domain, CONF), domain.changes) == (blocking(*EXEC)[CONF], [])


# --- what was begun ------------------------------------------------------------------------------


@pytest.mark.parametrize(("blocked", "way"), [(EXEC, "offline"), ({"guest-get-fsinfo"}, "exec")])
@pytest.mark.usefixtures("images")
def test_a_restart_that_no_file_is_changed_for_is_audited_as_well(
    run: Run, hypervisor: FakeHypervisor, audit: Path, blocked: set[str], way: str
) -> None:
    domain = filtered_guest(hypervisor, DEBIAN)
    domain.agent.blocked = blocked  # as it was started with other settings
    result = policy(run, "enabled", rpcs=sorted(blocked), owner="job 7")
    assert (result["way"], result["restarted"], result["files"], result["proved"]) == (way, True, [], True)
    assert [(line["event"], line["owner"], line["files"]) for line in lines(audit)] == [
        ("restarting", "job 7", []),
        ("restarted", "job 7", []),
    ]


def test_what_is_refused_only_once_the_guest_is_off_tells_that_it_was_restarted(
    run: Run, hypervisor: FakeHypervisor, images: FakeImages, audit: Path
) -> None:
    unit = f"[Service]\nExecStart=/usr/bin/qemu-ga --block-rpcs={','.join((*FILE_COMMANDS, *EXEC))}\n"
    domain = filtered_guest(hypervisor, {**SYSTEMD, UNIT: unit})
    images.look_fault = ImageFailed("as it is written to", remedy="None.")
    result = policy(run, "enabled")
    assert (result["error_code"], domain.changes) == ("policy_unsupported", ["shutdown by acpi", "start"])
    assert result["evidence"]["audit"] == lines(audit)[-1]
    assert [line["event"] for line in lines(audit)] == ["restarting", "failed"]


def failing_audit(monkeypatch: pytest.MonkeyPatch, *events: str) -> None:
    """Have the audit lack the room for lines of these events."""
    add = Audit.add

    def fail(self: Audit, event: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        if event in events:
            raise RecordUnavailable("no room", remedy="Make some.")
        return add(self, event, facts)

    monkeypatch.setattr(Audit, "add", fail)


def test_an_audit_that_cannot_be_written_to_does_not_hide_the_first_cause(
    run: Run, hypervisor: FakeHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = filtered_guest(hypervisor, blocking(*EXEC))
    domain.habits.shuts_down_after = None
    failing_audit(monkeypatch, "failed")
    result = policy(run, "enabled", shutdown_timeout=10)
    assert (result["error_code"], result["evidence"]["audit_failed"]) == ("shutdown_timeout", "no room")
    assert result["evidence"]["audit"]["event"] == "changing"


def test_a_change_whose_end_cannot_be_audited_is_no_refusal(
    run: Run, hypervisor: FakeHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = filtered_guest(hypervisor, DEBIAN)
    failing_audit(monkeypatch, "changed", "failed")
    result = policy(run, "disabled")
    assert (result["error_code"], result["evidence"]["audit"]["event"]) == ("record_unavailable", "changing")
    assert domain.agent.blocked == EXEC


def test_a_guest_is_not_shut_down_where_that_cannot_be_audited(
    run: Run, hypervisor: FakeHypervisor, images: FakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = filtered_guest(hypervisor, blocking(*FILE_COMMANDS, *EXEC))
    failing_audit(monkeypatch, "restarting")
    result = policy(run, "enabled")
    assert (result["error_code"], "audit" in result["evidence"]) == ("record_unavailable", False)
    assert (domain.changes, images.opened) == ([], [])


# --- copies, the audit, runs ---------------------------------------------------------------------


def test_a_copy_is_never_overwritten(run: Run, hypervisor: FakeHypervisor) -> None:
    domain = filtered_guest(hypervisor, {**DEBIAN, CONF: "# one\n", BACKUP: "# somebody's\n"})
    assert policy(run, "disabled")["files"][0]["backup"] == f"{BACKUP}.1"
    assert (text(domain, BACKUP), text(domain, f"{BACKUP}.1")) == ("# somebody's\n", "# one\n")
    domain.agent.files[CONF] = b"# one\n"
    agent_of(domain).restart()
    assert policy(run, "disabled")["files"][0]["backup"] == f"{BACKUP}.1"


def test_the_audit_says_who_changed_what_of_whom(
    run: Run, hypervisor: FakeHypervisor, audit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUDO_USER", "alice")
    domain = filtered_guest(hypervisor, DEBIAN)
    policy(run, "disabled", owner="job 7")
    policy(run, "disabled", rpcs=["guest-file-open"])
    first, second = lines(audit)[1], lines(audit)[-1]
    assert (first["owner"], first["sudo_user"], second["owner"]) == ("job 7", "alice", "alice")
    assert (first["guest"], first["uuid"], first["state"], first["at"]) == (
        "web1",
        domain.uuid,
        "disabled",
        "2026-03-01T02:00:02Z",
    )
    assert first["files"][0]["lines"][1]["after"] == "block-rpcs=guest-exec,guest-exec-status"
    assert audit.stat().st_mode & 0o777 == 0o600


def test_what_a_guest_wrote_into_its_files_is_made_fit_to_be_shown(run: Run, hypervisor: FakeHypervisor) -> None:
    filtered_guest(hypervisor, {**DEBIAN, CONF: "[general]\nblock-rpcs=\x1b[2J\x9b,guest-exec\n"})
    result = policy(run, "enabled", rpcs=["guest-exec"], check=True)
    assert "\x1b" not in json.dumps(result)
    assert result["files"][0]["lines"][0]["before"] == "block-rpcs= [2J ,guest-exec"


def test_a_difference_keeps_its_indentation(run: Run, hypervisor: FakeHypervisor) -> None:
    filtered_guest(hypervisor, {**DEBIAN, CONF: "  [general]\n  block-rpcs=guest-x,guest-exec\n"})
    result = policy(run, "enabled", rpcs=["guest-exec"], check=True)
    assert result["diff"][0]["after"] == "  [general]\n  block-rpcs=guest-x\n"
    assert result["files"][0]["lines"][0]["after"] == "  block-rpcs=guest-x"


def taken(run: Run, run_id: str) -> None:
    assert "error_code" not in run("guest_lease", name="web1", run=run_id, owner="o")


def test_a_guest_of_another_run_is_refused(run: Run, hypervisor: FakeHypervisor) -> None:
    domain = filtered_guest(hypervisor, DEBIAN)
    taken(run, "another")
    assert policy(run, "disabled")["error_code"] == "guest_leased"
    assert policy(run, "disabled", run="mine")["error_code"] == "lease_lost"
    assert domain.agent.requests == []


def test_the_restart_of_a_run_is_on_record(run: Run, hypervisor: FakeHypervisor, tmp_path: Path) -> None:
    domain = filtered_guest(hypervisor, blocking(*EXEC))
    taken(run, "mine")
    policy(run, "enabled", run="mine")
    [step] = json.loads((tmp_path / "state/kvm-fleet/runs" / f"{domain.uuid}.json").read_text())["steps"]
    assert (step["name"], step["status"], step["result"]["pid"]) == ("restart", "done", domain.pid)


def test_a_guest_is_not_shut_down_under_an_upgrade_that_is_on_record(
    run: Run, hypervisor: FakeHypervisor, images: FakeImages
) -> None:
    domain = filtered_guest(hypervisor, blocking("guest-file-open"))
    taken(run, "mine")
    store = Store(records_directory(hypervisor.uri))
    record = store.read(domain.uuid)
    assert record
    store.write(_record.begin(record, StepName.UPGRADE, "mine", {}, moment(hypervisor.clock)))
    domain.agent.program = UpgradingGuest(hypervisor.clock, left="running", duration=3600).agent.program
    for check in (True, False):
        refused = policy(run, "enabled", rpcs=["guest-file-open"], way="offline", run="mine", check=check)
        assert (refused["error_code"], domain.changes, images.opened) == ("upgrade_running", [], [])


def test_a_guest_that_a_dead_run_left_off_is_edited_and_started(
    run: Run, hypervisor: FakeHypervisor, images: FakeImages
) -> None:
    domain = filtered_guest(hypervisor, blocking(*FILE_COMMANDS, *EXEC))
    taken(run, "mine")
    domain.faults["start"] = ImageFailed("as if the run had died here", remedy="None.")
    assert policy(run, "enabled", run="mine")["error_code"] == "image_failed"
    assert domain.state() is DomainState.SHUT_OFF
    domain.faults.clear()
    assert text(domain, CONF) == blocking(*FILE_COMMANDS, *EXEC)[CONF]
    result = policy(run, "enabled", run="mine")
    assert (result["changed"], result["restarted"], result["proved"]) == (True, True, True)
    assert domain.state() is DomainState.RUNNING
    assert len(images.opened) == 3, "once to undo the first"


# --- what was changed in the guest itself --------------------------------------------------------


def test_what_was_changed_in_the_guest_is_audited_by_a_module_of_its_own(
    run: Run, hypervisor: FakeHypervisor, audit: Path
) -> None:
    domain = hypervisor.add("web1")
    arguments = {"name": "web1", "event": "changed", "state": "enabled", "files": [{"path": CONF}], "owner": "job 7"}
    assert run("guest_audit", check=True, **arguments)["audit"] is None
    assert not audit.exists()
    result = run("guest_audit", **arguments)
    assert lines(audit) == [result["audit"]]
    assert (result["audit"]["way"], result["audit"]["uuid"], result["audit"]["owner"]) == ("ssh", domain.uuid, "job 7")
    assert (domain.changes, domain.agent.requests) == ([], [])
