# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Controllers that die anywhere in the cycle, and the runs that come after them.

One guest loses five controllers in a row, each further on than the one before it, until the sixth brings it home.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lab.errors import AgentFailed
from tests.integration import background
from tests.integration.background import PATIENCE_S, kill, logged, reached, record_of, steps, wait_for
from tests.integration.packages import UPGRADED, changed, changes_told
from tests.integration.proof import Look, look, make_fresh
from tests.integration.runs import PlaybookRun, literal, module, playbook

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from lab.guests import Guest
    from lab.session import Session
    from tests.integration.conftest import Pair

RESTART_ONLY = {"upgrade_packages": False, "upgrade_restart": "always"}

GROUPS = Path("/var/lib/kvm-fleet/groups")

# Only taken and let go of again: nothing of the guest is changed.
LOOK_ONLY = {"upgrade_packages": False, "upgrade_restart": "never"}


@contextmanager
def running(guest: Guest, log: Path, **variables: object) -> Iterator[subprocess.Popen[bytes]]:
    """The playbook at work in the background."""
    said = literal({"fleet_guests": [guest.name], **variables})
    with (
        log.open("wb") as output,
        background.running("ansible-playbook", "--extra-vars", said, "kvm.fleet.upgrade", output=output) as controller,
    ):
        yield controller


@pytest.fixture(scope="module")
def guest(lab: Session) -> Iterator[Guest]:
    with lab.guest(private_emulator=True) as guest:
        guest.offer_newer_agent(offered=False)
        guest.take_pristine()
        yield guest


def going_down(guest: Guest) -> bool:
    """Whether the guest is on its way down, which takes some seconds: its agent is among what ends first."""
    try:
        return guest.run("/usr/bin/systemctl", "is-system-running").stdout.strip() == "stopping"
    except AgentFailed:
        return True


@dataclass(frozen=True)
class Resumed:
    """What became of a guest that lost one controller after the other."""

    guest: Guest
    before: Look
    after: Look
    records: dict[str, dict[str, Any]]
    """What was on record when each controller died, by where that was."""
    ahead: dict[str, Any]
    """What domain_info said of the guest while it was off."""
    predicted: PlaybookRun
    """A run in check mode at that moment."""
    run: PlaybookRun
    """The run that brought the guest home."""


CUTS = {
    "snapshot open": ("snapshot", "open"),
    "snapshot done": ("snapshot", "done"),
    "upgrade open": ("upgrade", "open"),
    "guest off": ("restart", "open"),
    "restart done": ("restart", "done"),
}


@pytest.fixture(scope="module")
def resumed(guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Resumed:
    make_fresh(guest, drifted=True)
    before, records = look(guest), {}
    log = tmp_path_factory.mktemp("resume") / "log"
    ahead: dict[str, Any] = {}
    predicted = PlaybookRun(-1, "")
    for where, (name, status) in CUTS.items():
        happened = reached(guest, name, status)
        with running(guest, log) as controller:
            wait_for(happened, where)
            if where == "upgrade open":
                wait_for(lambda: logged(guest, "Unpacking"), "unpacking")
            if where == "guest off":
                wait_for(lambda: going_down(guest), "the shutdown's beginning")
            kill(controller)
        print(f"--- killed at: {where}\n{log.read_text('utf-8')}")  # pytest shows it when a test fails
        records[where] = record_of(guest)
        # What was open a moment ago may have been done by the time that its run died.
        assert steps(guest)[-1][0] == name, where
        if where == "guest off":
            wait_for(lambda: not guest.domain.isActive(), "the shutdown")
            [ahead] = module("domain_info", names=[guest.name])["domains"]
            predicted = playbook("upgrade", "--check", guests=[guest.name])
            assert not guest.domain.isActive()
    run = playbook("upgrade", guests=[guest.name])
    return Resumed(guest, before, look(guest), records, ahead, predicted, run)


def told(resumed: Resumed) -> dict[str, Any]:
    assert resumed.run.exit_code == 0, resumed.run.output
    return resumed.run.records[resumed.guest.name]


def test_there_is_one_snapshot_in_the_end(resumed: Resumed) -> None:
    [name] = resumed.after.snapshots
    assert told(resumed)["snapshot"] == name
    assert [step["intent"]["name"] for step in resumed.records["snapshot open"]["steps"]] == [name]


def test_all_packages_are_in_the_last_runs_list(resumed: Resumed) -> None:
    versions = changed(resumed.before.packages, resumed.after.packages)
    assert changes_told(told(resumed)) == versions
    assert set(versions) == UPGRADED


def test_the_guest_is_up_on_the_new_qemu(resumed: Resumed) -> None:
    assert (resumed.before.drifted, resumed.after.drifted) == (True, False)
    assert resumed.after.process.pid != resumed.before.process.pid
    assert resumed.after.boot_id != resumed.before.boot_id
    assert (told(resumed)["outcome"], told(resumed)["restarted"], told(resumed)["drift"]) == (
        "upgraded",
        True,
        "resolved",
    )


def test_a_restart_that_was_proved_is_not_repeated(resumed: Resumed) -> None:
    [restart] = [step for step in resumed.records["restart done"]["steps"] if step["name"] == "restart"]
    assert restart["intent"]["pid"] == resumed.before.process.pid
    assert (restart["result"]["pid"], restart["result"]["boot_id"]) == (
        resumed.after.process.pid,
        resumed.after.boot_id,
    )


def test_a_guest_that_is_off_by_a_dead_run_is_no_guest_that_somebody_wants_off(resumed: Resumed) -> None:
    assert (resumed.ahead["state"], resumed.ahead["run"]["shut_down"]) == ("shut_off", True)
    assert resumed.predicted.exit_code == 0, resumed.predicted.output
    predicted = resumed.predicted.records[resumed.guest.name]
    assert (predicted["outcome"], predicted["restarted"]) == ("upgraded", True)


def test_the_baseline_is_the_first_runs(resumed: Resumed) -> None:
    baselines = [record["baseline"] for record in resumed.records.values()]
    assert all(baseline == baselines[0] for baseline in baselines)
    assert baselines[0]["qemu"]["pid"] == resumed.before.process.pid


def test_each_run_took_over_from_the_one_before_it(resumed: Resumed) -> None:
    runs = [record["lease"]["run"] for record in resumed.records.values()]
    assert len(set(runs)) == len(runs)
    assert [lease["run"] for lease in resumed.records["restart done"]["earlier"]] == runs[:-1]


def test_the_summary_says_what_was_resumed(resumed: Resumed) -> None:
    last = resumed.records["restart done"]["lease"]
    assert told(resumed)["resumed"] == {"run": last["run"], "cut_off": "after the restart"}
    lines = resumed.run.paragraph(resumed.guest.name)
    assert f"  Resumed: run {last['run']}, which was cut off after the restart" in lines
    assert any(line.startswith(f"  Lease: taken over from run {last['run']} of ") for line in lines)


def test_nothing_is_left_of_it(resumed: Resumed) -> None:
    record = record_of(resumed.guest)
    assert (record["lease"], record["ended"]["outcome"]) == (None, "upgraded")
    [info] = module("domain_info", names=[resumed.guest.name])["domains"]
    assert (info["run"]["lease"], info["run"]["unfinished"], info["run"]["ended"]) == (None, False, record["ended"])
    assert resumed.after.left == ()


def test_two_runs_at_once_do_not_share_a_guest(resumed: Resumed, tmp_path: Path) -> None:
    guest = resumed.guest
    with running(guest, tmp_path / "log", **RESTART_ONLY) as first:
        wait_for(lambda: record_of(guest)["lease"] is not None, "the first run's lease")
        holder = record_of(guest)["lease"]["run"]
        second = playbook("upgrade", guests=[guest.name], variables=RESTART_ONLY)
        assert first.wait() == 0, (tmp_path / "log").read_text("utf-8")
    refused = second.records[guest.name]
    assert (second.exit_code != 0, refused["outcome"], refused["error"]["error_code"]) == (
        True,
        "refused",
        "guest_leased",
    )
    assert f"under the lease of run {holder}, which " in refused["error"]["msg"]
    assert record_of(guest)["ended"]["outcome"] == "restarted"


def test_a_lease_of_another_controller_is_left_alone_until_it_is_stale(resumed: Resumed) -> None:
    guest = resumed.guest
    module("guest_lease", name=guest.name, run="elsewhere", owner="root@elsewhere", ttl=3600)
    refused = playbook("upgrade", guests=[guest.name], variables=LOOK_ONLY)
    assert refused.exit_code != 0
    assert "run elsewhere, which root@elsewhere took" in refused.records[guest.name]["error"]["msg"]
    assert "(upgrade_take_over: elsewhere)" in refused.records[guest.name]["error"]["remedy"]
    module("guest_lease", name=guest.name, run="elsewhere", owner="root@elsewhere", ttl=1)
    taken = playbook("upgrade", guests=[guest.name], variables=LOOK_ONLY)
    assert taken.exit_code == 0, taken.output
    [line] = [line for line in taken.paragraph(guest.name) if line.startswith("  Lease: ")]
    assert line.startswith("  Lease: taken over from run elsewhere of root@elsewhere, last heard of ")


def test_a_lease_of_a_run_that_is_known_to_be_dead_is_taken_over_by_its_name(resumed: Resumed) -> None:
    guest = resumed.guest
    module("guest_lease", name=guest.name, run="elsewhere", owner="root@elsewhere")
    taken = playbook("upgrade", guests=[guest.name], variables={**LOOK_ONLY, "upgrade_take_over": "elsewhere"})
    assert taken.exit_code == 0, taken.output
    assert taken.records[guest.name]["taken_over"]["run"] == "elsewhere"


@pytest.mark.thorough
def test_two_runs_at_once_do_not_restart_two_members_of_a_group(pair: Pair, tmp_path: Path) -> None:
    group, logs = f"lab-{pair.plain.uuid}", [tmp_path / "plain", tmp_path / "nasty"]
    variables = {**RESTART_ONLY, "upgrade_snapshot": False, "kvm_group": group}
    for guest in pair:
        make_fresh(guest)
    with running(pair.plain, logs[0], **variables) as one, running(pair.nasty, logs[1], **variables) as other:
        codes = [controller.wait(timeout=PATIENCE_S) for controller in (one, other)]
    told = "".join(log.read_text("utf-8") for log in logs)
    assert codes == [0, 0], told
    assert "RETRYING" in told
    spans = sorted((step["begun"], step["ended"]) for guest in pair for step in record_of(guest)["steps"])
    assert len(spans) == 2
    assert spans[0][1] <= spans[1][0]
    assert json.loads((GROUPS / f"{group}.json").read_text("utf-8"))["places"] == []
    for left in GROUPS.glob(f"{group}.*"):
        left.unlink()
