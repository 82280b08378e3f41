# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is shown and written while Ansible really runs: tasks as the roles have them, and modules that only say so."""

from __future__ import annotations

import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.kvm.fleet.plugins.callback import live
from tests.unit.fake_terminal import FakeTerminal

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = Path(sys.executable).parent
CALLBACKS = ("live", "events", "summary")

# On a busy machine a task may take longer to be skipped than a run would wait. What is told must not depend on that.
PATIENCE = """\
from ansible.plugins.callback import CallbackBase
from ansible_collections.kvm.fleet.plugins.plugin_utils import _events, _progress

_events.SKIPPED_WITHIN_S = _progress.SKIPPED_WITHIN_S = 600


class CallbackModule(CallbackBase):
    CALLBACK_NAME = "patience"
"""

PLAY = """\
- hosts: all
  gather_facts: false
  connection: local
  no_log: "{{ hidden | default(false) }}"
  serial: 2
  tasks:
    - name: Work on the guest
      block:
        - name: Begin
          vars: {fleet_step: begin}
          block:
            - ansible.builtin.assert:
                that: true
            - name: Wait
              ansible.builtin.fail:
                msg: nobody waits
              vars: {fleet_step: wait}
              when: false
        - ansible.builtin.debug:
            msg: "RUN:{{ lookup('kvm.fleet.this_run').run }}:"
        - ansible.builtin.set_stats:
            data: {kvm_fleet: {guests: "{{ {inventory_hostname: written_ahead} }}"}}
        - name: Upgrade
          work:
            guest: "{{ inventory_hostname }}"
          vars: {fleet_step: upgrade}
          register: upgraded
          until: upgraded is failed or upgraded.finished
          retries: 9
          delay: 0
        - ansible.builtin.set_stats:
            data: {kvm_fleet: {guests: "{{ {inventory_hostname: done} }}"}}
      rescue:
        - ansible.builtin.set_stats:
            data: {kvm_fleet: {guests: "{{ {inventory_hostname: failed} }}"}}
        - ansible.builtin.fail:
            msg: it failed
  vars:
    record:
      guest: "{{ inventory_hostname }}"
      hypervisor: hv1
      duration: 7.0
      packages: []
      restarted: false
      drift: none
      reboot_required: false
      kept_back: []
      config_files: []
      snapshot: null
    done: "{{ record | combine({'outcome': 'unchanged', 'error': none}) }}"
    failed: "{{ record | combine({'outcome': 'failed', 'error': {'error_code': 'disk_full', 'msg': 'secret'}}) }}"
    written_ahead: "{{ record | combine({'outcome': 'failed', 'error': {'error_code': 'run_ended', 'msg': 'x'}}) }}"
"""

# The guest 'bad' fails at the third look at its upgrade, others have ended it by then. What it says is secret.
WORK = """\
#!/bin/sh
# WANT_JSON
guest=$(sed -n 's/.*"guest": "\\([^"]*\\)".*/\\1/p' "$1")
echo >>"$STATE/$guest"
case $guest:$(wc -l <"$STATE/$guest") in
  *:1) echo '{"changed": true, "finished": false, "progress": {"percent": 12, "activity": "secret", "elapsed": 1.0}}' ;;
  *:2) echo '{"changed": true, "finished": false, "progress": {"percent": 47, "activity": "secret", "elapsed": 2.0}}' ;;
  bad:*) echo '{"failed": true, "error_code": "disk_full", "msg": "secret"}' ;;
  *) echo '{"changed": true, "finished": true, "progress": null}' ;;
esac
"""


class Runs:
    """Runs the play with all three callbacks."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.events_file = directory / "log" / "fleet" / "events.jsonl"
        (directory / "library").mkdir()
        (directory / "library" / "work").write_text(WORK, encoding="ascii")
        (directory / "play.yml").write_text(PLAY, encoding="ascii")
        (directory / "patience").mkdir()
        (directory / "patience" / "patience.py").write_text(PATIENCE, encoding="ascii")
        self.environment = {
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            "LC_ALL": "C.UTF-8",
            "HOME": str(directory),
            "STATE": str(directory),
            "TERM": "xterm",
            "ANSIBLE_HOME": str(directory / "ansible"),
            "ANSIBLE_LIBRARY": str(directory / "library"),
            "ANSIBLE_CALLBACK_PLUGINS": str(directory / "patience"),
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "build" / "collections"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_CALLBACKS_ENABLED": ",".join(f"kvm.fleet.{name}" for name in CALLBACKS),
            "KVM_FLEET_EVENTS": str(self.events_file),
        }

    def command(self, *guests: str, **variables: object) -> list[str]:
        given = {"ansible_python_interpreter": sys.executable, **variables}
        inventory = self.directory / "inventory.ini"
        inventory.write_text("".join(f"{guest} kvm_hypervisor=hv1\n" for guest in guests), encoding="ascii")
        return [
            str(PROGRAMS / "ansible-playbook"),
            *("-i", str(inventory), "-e", json.dumps(given), str(self.directory / "play.yml")),
        ]

    def plain(self, *guests: str, **variables: object) -> str:
        """What is printed where nobody has a terminal."""
        done = subprocess.run(
            self.command(*guests, **variables),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == (2 if "bad" in guests else 0), done.stdout
        return done.stdout

    def on_terminal(self, *guests: str, height: int = 30) -> Iterator[FakeTerminal]:
        """The terminal as it is drawn each time, the last time when the run has ended."""
        terminal = FakeTerminal(width=100, height=height)
        leader, follower = pty.openpty()
        resize(follower, terminal.width, height)
        with subprocess.Popen(
            self.command(*guests), env=self.environment, stdin=follower, stdout=follower, stderr=follower
        ):
            os.close(follower)
            pending = b""
            while output := _read(leader):
                # A piece may end within a sequence or a letter.
                whole, tail = _split(pending + output)
                pending = tail
                # Several drawings may be read at once. Each ends where the cursor is put back.
                for drawn in re.split(r"(?<=\x1b8)", whole.decode("utf-8")):
                    terminal.write(drawn)
                    yield terminal
        os.close(leader)
        assert pending == b""

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.events_file.read_text(encoding="ascii").splitlines()]


def resize(terminal: int, width: int, height: int) -> None:
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))


def _read(leader: int) -> bytes:
    try:
        return os.read(leader, 4096)
    except OSError:  # what Linux answers once nobody has the other end open any more
        return b""


def _split(output: bytes) -> tuple[bytes, bytes]:
    match = re.search(rb"(\x1b(\[[?\d;]*)?|[\xc0-\xff][\x80-\xbf]{0,2})\Z", output)
    end = match.start() if match else len(output)
    try:
        output[:end].decode("utf-8")
    except UnicodeDecodeError as error:
        end = error.start
    if match and match[0][0] >= 0xC0:
        try:
            match[0].decode("utf-8")
            end = len(output)
        except UnicodeDecodeError:
            pass
    return output[:end], output[end:]


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


@dataclass(frozen=True)
class Ran:
    """A run without a terminal, of a guest that all goes well with and one that fails."""

    output: str
    events: list[dict[str, Any]]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    runs = Runs(tmp_path_factory.mktemp("ran"))
    output = runs.plain("web1", "bad", awx_job_id=7)
    return Ran(output, runs.events())


def told_of(guest: str, output: str) -> list[str]:
    """The lines on a guest's steps, without the times, which nobody knows."""
    lines = [line for line in output.splitlines() if re.match(rf"{guest}: .*, after \d+s$", line)]
    return [line.rpartition(",")[0] for line in lines]


def test_elsewhere_each_change_of_a_guests_step_is_a_line(ran: Ran) -> None:
    upgrade = ["upgrade, 12 %, secret", "upgrade, 47 %, secret"]
    for guest, outcome in (("web1", "unchanged"), ("bad", "failed (disk_full)")):
        steps = [f"{guest}: {step}" for step in ["begin", *upgrade, outcome]]
        assert told_of(guest, ran.output) == steps
    assert "\x1b" not in ran.output
    assert ran.output.index("UPGRADE SUMMARY: 2 VM(s) processed") > ran.output.index("PLAY RECAP")


@pytest.mark.parametrize("mode", ["plain", "off"])
def test_who_wants_no_redrawing_gets_none(runs: Runs, mode: str) -> None:
    runs.environment["KVM_FLEET_LIVE"] = mode
    terminal = list(runs.on_terminal("web1"))[-1]
    lines = told_of("web1", "\n".join(terminal.text))
    assert lines == [] if mode == "off" else lines[-1] == "web1: unchanged"


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("ANSIBLE_STDOUT_CALLBACK", "awx_display")])
def test_a_terminal_that_nobody_looks_at_gets_plain_lines(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    leader, follower = pty.openpty()
    with os.fdopen(leader, "rb"), os.fdopen(follower, "w") as terminal:
        resize(follower, width=80, height=24)
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setenv("TERM", "xterm")
        assert live.on_a_terminal()
        monkeypatch.setenv(name, value)
        assert not live.on_a_terminal()


@pytest.mark.parametrize(("width", "height", "has_room"), [(0, 0, False), (80, 1, False), (0, 24, False), (1, 2, True)])
def test_a_terminal_without_room_for_a_line_gets_plain_ones(
    monkeypatch: pytest.MonkeyPatch, width: int, height: int, has_room: bool
) -> None:
    leader, follower = pty.openpty()
    with os.fdopen(leader, "rb"), os.fdopen(follower, "w") as terminal:
        resize(follower, width, height)
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setenv("TERM", "xterm")
        assert live.on_a_terminal() is has_room


def test_on_a_terminal_guests_have_a_line_each_at_its_foot(runs: Runs) -> None:
    seen: dict[str, set[str]] = {"web1": set(), "bad": set()}
    for terminal in runs.on_terminal("web1", "bad", "web3"):
        for line in terminal.screen[-2:]:
            match = re.match(r"(web1|bad) +(\S+(?: \(disk_full\))?) +((?:\d+ %)?) +\d+s", line)
            if match:
                seen[match[1]].add(f"{match[2]} {match[3]}".strip())
    assert {"begin", "upgrade 12 %", "upgrade 47 %", "unchanged"} <= seen["web1"]
    assert {"upgrade 47 %", "failed (disk_full)"} <= seen["bad"]


def test_on_a_terminal_nothing_of_it_is_left_among_other_output(runs: Runs) -> None:
    terminal = list(runs.on_terminal("web1", "web2", height=12))[-1]
    assert terminal.margins == (1, 12)
    assert not [line for line in terminal.text if re.match(r"web[12] +(begin|upgrade|unchanged) ", line)]
    tasks = [line for line in terminal.text if line.startswith("TASK [")]
    assert [task.split("]")[0] for task in tasks if "ansible" not in task] == ["TASK [Wait", "TASK [Upgrade"]
    assert "Success: 2  Failed: 0  Drift Resolved: 0" in terminal.text


def test_more_guests_than_half_of_a_window_has_lines_are_counted(runs: Runs) -> None:
    (runs.directory / "play.yml").write_text(PLAY.replace("serial: 2", "serial: 5"), encoding="ascii")
    feet = {terminal.screen[-1] for terminal in runs.on_terminal("a", "b", "c", "d", "e", height=6)}
    assert "… and 3 more" in feet


# --- for machines --------------------------------------------------------------------------------

FIELDS = ["ts", "level", "event", "run", "guest", "hypervisor", "step", "duration", "result", "error_code"]


def short(event: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(event[name] for name in ("event", "guest", "step", "result", "error_code") if event[name] is not None)


def test_each_event_is_an_object_with_all_fields(ran: Ran) -> None:
    events = ran.events
    assert all(list(event) == FIELDS for event in events)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["ts"]) for event in events)
    assert [event["ts"] for event in events] == sorted(event["ts"] for event in events)
    assert {event["run"] for event in events} == set(re.findall(r"RUN:([\w-]+):", ran.output))


def test_the_events_of_each_guest_come_in_their_order(ran: Ran) -> None:
    events = ran.events
    assert [short(event) for event in events if event["guest"] == "web1"] == [
        ("step_started", "web1", "begin"),
        ("step_ended", "web1", "begin", "ok"),
        ("step_started", "web1", "upgrade"),
        ("step_ended", "web1", "upgrade", "changed"),
        ("guest_ended", "web1", "unchanged"),
    ]
    assert [short(event) for event in events if event["guest"] == "bad"][2:] == [
        ("step_started", "bad", "upgrade"),
        ("step_ended", "bad", "upgrade", "failed", "disk_full"),
        ("guest_ended", "bad", "failed", "disk_full"),
    ]
    assert [short(event) for event in (events[0], events[-1])] == [("run_started",), ("run_ended", "failed")]
    assert {event["hypervisor"] for event in events if event["guest"]} == {"hv1"}
    assert [event["level"] for event in events if event["result"] == "failed"] == ["error"] * 3


def test_nothing_that_was_said_is_in_the_events(ran: Ran) -> None:
    assert "secret" in ran.output
    assert "secret" not in json.dumps(ran.events)


def test_what_is_hidden_is_in_neither(runs: Runs) -> None:
    output = runs.plain("web1", "bad", hidden=True)
    assert not [line for line in output.splitlines() if "secret" in line and line.startswith(("web1:", "bad:"))]
    ended = [short(event) for event in runs.events() if event["event"] == "step_ended"]
    assert ("step_ended", "bad", "upgrade", "failed", "task_failed") in ended


def test_an_extra_variable_names_the_file_as_well(runs: Runs) -> None:
    del runs.environment["KVM_FLEET_EVENTS"]
    runs.plain("web1", fleet_events="~/log/fleet/events.jsonl")
    assert runs.events()


def test_runs_add_to_one_file_and_have_an_id_each(runs: Runs) -> None:
    for _run in range(2):
        (runs.directory / "web1").unlink(missing_ok=True)
        runs.plain("web1")
    assert len({event["run"] for event in runs.events()}) == 2


def test_without_a_file_nothing_is_written(runs: Runs) -> None:
    del runs.environment["KVM_FLEET_EVENTS"]
    runs.plain("web1")
    assert not runs.events_file.parent.exists()


def test_a_file_that_cannot_be_written_is_warned_of_once_and_breaks_nothing(runs: Runs) -> None:
    runs.events_file.parent.parent.write_text("no directory", encoding="ascii")
    output = " ".join(runs.plain("web1").split())
    assert output.count("The events of this run are not written any more") == 1
    assert "Success: 1 Failed: 0" in output


def test_the_playbooks_bring_all_of_them_along_and_each_speaks_once(runs: Runs) -> None:
    (runs.directory / "callback_plugins").symlink_to(ROOT / "playbooks" / "callback_plugins")
    outputs = []
    enabled = {"ANSIBLE_CALLBACKS_ENABLED": runs.environment.pop("ANSIBLE_CALLBACKS_ENABLED")}
    for more in ({}, enabled):
        runs.environment |= more
        (runs.directory / "web1").unlink(missing_ok=True)
        output = runs.plain("web1")
        outputs.append([*told_of("web1", output), output.count("UPGRADE SUMMARY")])
    events = [short(event) for event in runs.events()]
    assert outputs[0] == outputs[1]
    assert outputs[0][-1] == 1
    assert events[: len(events) // 2] == events[len(events) // 2 :]


def test_other_playbooks_have_no_events(runs: Runs) -> None:
    (runs.directory / "play.yml").write_text("- hosts: all\n  gather_facts: false\n", encoding="ascii")
    runs.plain("web1")
    assert not runs.events_file.exists()
