# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the role's YAML leaves to a shell or to Ansible's own functions."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

ROLE = Path(__file__).resolve().parents[3] / "roles" / "upgrade"

LISTING = """\
printf '%s\\n' 'app.service loaded failed failed The application' 'db.service loaded failed failed A database'
"""


def load(path: str) -> Any:
    return yaml.safe_load((ROLE / path).read_text(encoding="utf-8"))


def failed_units(directory: Path, systemctl: str) -> subprocess.CompletedProcess[str]:
    """Run the role's script with a systemctl whose 'list-units' is this shell script."""
    program = directory / "systemctl"
    program.write_text(f'#!/bin/sh\n[ "$1" = list-units ] || exit 1\n{systemctl}\n', encoding="utf-8")
    program.chmod(0o755)
    script: str = load("vars/main.yml")["upgrade_failed_units_script"]
    return subprocess.run(
        ["/bin/sh", "-c", script],
        env={**os.environ, "PATH": f"{directory}:{os.environ['PATH']}"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


@pytest.mark.parametrize(("systemctl", "units"), [(LISTING, ["app.service", "db.service"]), ("true", [])])
def test_failed_units_are_named(tmp_path: Path, systemctl: str, units: list[str]) -> None:
    done = failed_units(tmp_path, systemctl)
    assert (done.returncode, done.stdout.splitlines()) == (0, units)


def test_a_systemctl_that_fails_is_no_guest_without_failed_units(tmp_path: Path) -> None:
    assert failed_units(tmp_path, "echo 'Failed to connect to bus' >&2; exit 4").returncode == 4


def test_a_guest_without_systemd_has_no_failed_units() -> None:
    script = load("vars/main.yml")["upgrade_failed_units_script"]
    done = subprocess.run(["/bin/sh", "-c", script], env={"PATH": "/nonexistent"}, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"")


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York"])
def test_work_begins_now_in_every_time_zone(tmp_path: Path, zone: str) -> None:
    started = load("tasks/main.yml")[0]["ansible.builtin.set_fact"]["upgrade_started"]
    command = ["localhost", "--module-name", "ansible.builtin.debug", "--args", f"msg=BEGAN:{started}:"]
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible", *command],
        env={**os.environ, "TZ": zone, "LC_ALL": "C.UTF-8", "ANSIBLE_HOME": str(tmp_path), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert float(done.stdout.split("BEGAN:")[1].split(":")[0]) == pytest.approx(time.time(), abs=120)


def templated(directory: Path, expression: str, **variables: Any) -> Any:
    """What Ansible makes of an expression with the role's variables, and these."""
    given = directory / "given.yml"
    given.write_text(yaml.safe_dump(variables), encoding="utf-8")
    told = "msg=TOLD:{{ (" + expression + ") | to_json | b64encode }}:"
    files = (ROLE / "defaults/main.yml", ROLE / "vars/main.yml", given)
    program = str(Path(sys.executable).parent / "ansible")
    done = subprocess.run(
        [program, "localhost", "--module-name", "ansible.builtin.debug", "--args", told]
        + [f"--extra-vars=@{file}" for file in files],
        env={**os.environ, "LC_ALL": "C.UTF-8", "ANSIBLE_HOME": str(directory), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return json.loads(base64.b64decode(done.stdout.split("TOLD:")[1].split(":")[0]))


@pytest.mark.parametrize(
    ("options", "way"),
    [
        ({}, "auto"),
        ({"upgrade_restart": "never"}, "online"),
        ({"upgrade_strategy": "save_restore"}, "online"),
        ({"upgrade_strategy": "migrate"}, "live"),
        ({"upgrade_strategy": "migrate", "upgrade_plan": {"restart": True}}, "live"),
        ({"upgrade_strategy": "migrate", "upgrade_plan": {"restart": False}}, "online"),
        ({"upgrade_strategy": "migrate", "upgrade_restart": "never", "upgrade_plan": {"restart": False}}, "online"),
        ({"upgrade_strategy": "migrate", "upgrade_snapshot_way": "external"}, "external"),
        ({"upgrade_strategy": "auto"}, "auto"),
        ({"upgrade_strategy": "save_restore", "upgrade_snapshot_way": "offline"}, "offline"),
    ],
)
def test_a_guest_that_is_not_to_boot_is_not_power_cycled_for_its_snapshot(
    tmp_path: Path, options: dict[str, Any], way: str
) -> None:
    assert templated(tmp_path, "upgrade_way_chosen", **options) == way


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, [True, True, "needed"]),
        ({"upgrade_parts": ["snapshot", "packages"]}, [True, True, "never"]),
        ({"upgrade_parts": ["restart"], "upgrade_restart": "always"}, [False, False, "always"]),
        ({"upgrade_snapshot": "false", "upgrade_packages": "false"}, [False, False, "needed"]),
    ],
)
def test_what_is_left_out_of_the_parts_is_not_done(
    tmp_path: Path, options: dict[str, Any], wanted: list[object]
) -> None:
    asked = "[upgrade_wanted_snapshot | bool, upgrade_wanted_packages | bool, upgrade_wanted_restart]"
    assert templated(tmp_path, asked, **options) == wanted


@pytest.mark.parametrize(
    ("foreseen", "expected"), [({}, ["two"]), ({"way": "live"}, ["two"]), ({"way": "external"}, [])]
)
def test_a_guest_is_not_foreseen_to_be_migrated_after_a_snapshot_that_keeps_it(
    tmp_path: Path, foreseen: dict[str, Any], expected: list[str]
) -> None:
    given = {"upgrade_snapshot_foreseen": foreseen, "upgrade_destinations": {"h2": "two"}}
    assert templated(tmp_path, "upgrade_destinations_foreseen", **given) == expected


def test_a_guest_that_its_snapshot_keeps_from_being_migrated_is_refused_before_anything_is_changed() -> None:
    names = [task["name"] for task in load("tasks/assess.yml")]
    snapshot, judge, refuse, restart = names[-4:]
    assert (snapshot, restart) == ("See that a snapshot can be taken", "See that the guest can be restarted")
    found = {task["name"]: task for task in load("tasks/assess.yml")}
    assert found[snapshot]["register"] == "upgrade_snapshot_foreseen"
    assert found[judge]["ansible.builtin.set_fact"]["upgrade_verdict"] == "{{ upgrade_stays_behind }}"
    assert found[refuse]["ansible.builtin.assert"]["that"] == "not upgrade_verdict"
    assert found[restart]["kvm.fleet.domain_power"]["destinations"] == "{{ upgrade_destinations_foreseen }}"


def test_a_restart_that_was_resumed_is_not_forgotten_for_one_that_is_asked_for_later(tmp_path: Path) -> None:
    registered = [
        task["register"]
        for file in ("tasks/begin.yml", "tasks/intervene.yml")
        for task in load(file)
        if "kvm.fleet.domain_power" in task
    ]
    assert registered == ["upgrade_power_resumed", "upgrade_power_asked"]
    slate = load("tasks/main.yml")[0]["ansible.builtin.set_fact"]
    assert [slate[name] for name in registered] == [{}, {}]
    assert "upgrade_power" not in slate, "it would go before the role's variable"
    away = {"steps": ["migrate"], "migration": {"destination": "two", "came_back": False}}
    given = {"upgrade_power_resumed": away, "upgrade_power_asked": {"steps": []}}
    assert templated(tmp_path, "upgrade_went_to", upgrade_destinations={"h2": "two"}, **given) == "h2"


def test_where_a_guest_may_be_migrated_to_is_found_out_where_a_mistake_in_it_is_told_as_a_failure() -> None:
    slate, work = load("tasks/main.yml")[:2]
    assert slate["ansible.builtin.set_fact"]["upgrade_destinations"] == {}
    assert "kvm.fleet.migration_uris" in work["block"][0]["ansible.builtin.set_fact"]["upgrade_destinations"]


def test_the_cause_of_an_earlier_failure_of_the_play_lets_none_of_this_guest_pass() -> None:
    slate = load("tasks/main.yml")[0]["ansible.builtin.set_fact"]
    assert slate["upgrade_cause"] == {}
    allowed = [task["failed_when"] for task in load("tasks/moved.yml") if "failed_when" in task]
    assert [words.endswith(" is failed and not upgrade_cause") for words in allowed] == [True, True]


@pytest.mark.parametrize(
    ("before", "units", "known"),
    [
        ({"failed_units": ["old.service"]}, {"rc": 0, "stdout_lines": ["new.service"]}, ["old.service"]),
        ({}, {"rc": 0, "stdout_lines": ["new.service"]}, ["new.service"]),
        ({}, {"error_code": "agent_command_blocked"}, "unknown"),
        ({}, {}, "unknown"),
    ],
)
def test_units_that_had_failed_before_are_those_before_the_first_run(
    tmp_path: Path, before: dict[str, Any], units: dict[str, Any], known: Any
) -> None:
    given = {"upgrade_before": {"domains": [before]}, "upgrade_units_before": units}
    assert templated(tmp_path, "upgrade_units_old | default('unknown')", **given) == known


def test_what_is_judged_and_what_is_rolled_back_go_by_the_same_units() -> None:
    rollback = next(task for task in load("tasks/fail.yml") if "kvm.fleet.domain_rollback" in task)
    assert "upgrade_units_old |" in rollback["kvm.fleet.domain_rollback"]["failed_units"]
    judge = next(task for task in load("tasks/evaluate.yml") if task["name"].startswith("Judge"))
    assert "difference(upgrade_units_old |" in judge["vars"]["upgrade_units_new"]
