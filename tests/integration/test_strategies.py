# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Ways off an old QEMU other than a power cycle, on a real guest."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import libvirt
import pytest

from ansible_collections.kvm.fleet.plugins.module_utils import _libvirt
from ansible_collections.kvm.fleet.plugins.module_utils._domain import TRIAL_NAME
from ansible_collections.kvm.fleet.plugins.module_utils._errors import LibvirtFailed
from lab import drift
from lab.places import INSTALLED_EMULATOR
from tests.integration.proof import make_fresh
from tests.integration.runs import difference, module, playbook, refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.guests import Guest
    from lab.session import Session

# A QEMU that refuses to be started with some argument, in its own words.
REFUSES = """\
#!/bin/sh
case " $* " in
  *" {argument}"*) echo "{words}" >&2; exit 1 ;;
esac
exec {emulator} "$@"
"""


@pytest.fixture(scope="module")
def guest(lab: Session) -> Iterator[Guest]:
    with lab.guest(private_emulator=True) as guest:
        guest.take_pristine()
        yield guest


@pytest.fixture
def drifted(guest: Guest) -> Iterator[Guest]:
    make_fresh(guest, drifted=True)
    yield guest
    drift.replace_emulator(guest)
    make_fresh(guest)


def refuse(guest: Guest, argument: str, words: str) -> None:
    """Install a QEMU for a guest that is not started with this argument."""
    installed = guest.place.found(guest.place.private_emulator(guest.uuid))
    new = installed.with_name(f"{installed.name}.dpkg-new")
    new.write_text(REFUSES.format(argument=argument, words=words, emulator=INSTALLED_EMULATOR), encoding="utf-8")
    new.chmod(0o755)
    new.rename(installed)


def trials_of(guest: Guest) -> list[str]:
    """The trials of a guest's QEMU that are there now. Other guests' may come and go."""
    found = []
    for domain in guest.connection.live().listAllDomains():
        with suppress(libvirt.libvirtError):  # gone meanwhile
            if TRIAL_NAME.fullmatch(domain.name()) and guest.uuid in domain.XMLDesc():
                found.append(domain.name())
    return found


def refuse_saved_ram(guest: Guest) -> None:
    """Install a QEMU for a guest that boots it and does not resume it."""
    refuse(guest, "-incoming ", "load of migration failed: Invalid argument")


def restart(guest: Guest, **options: Any) -> dict[str, Any]:
    result = module("domain_power", name=guest.name, state="restarted", **options)
    assert not result["failed"], result
    return result


def clocks(guest: Guest) -> tuple[float, float]:
    """The guest's clock and for how long it has been up, which stands still while it does, at one moment."""
    wall, up, _idle = guest.output("/bin/sh", "-c", "date +%s.%N; cat /proc/uptime").split()
    return float(wall), float(up)


def test_a_saved_guest_goes_on_on_the_new_qemu(drifted: Guest) -> None:
    before, boot_id, (wall_before, up_before) = drifted.process(), drifted.boot_id(), clocks(drifted)
    assert before is not None
    assert drifted.drifted()
    predicted, printed = difference("domain_power", name=drifted.name, state="restarted", strategy="auto")
    assert (predicted["changed"], predicted["strategy"], drifted.process()) == (True, "save_restore", before)
    assert "+running on a new QEMU process, from its saved RAM\n" in printed

    result = restart(drifted, strategy="auto")

    after = drifted.process()
    assert after is not None
    assert (result["strategy"], result["steps"]) == (
        "save_restore",
        ["save", "restore", "wait_for_agent", "set_clock"],
    )
    assert (result["before"]["pid"], result["after"]["pid"]) == (before.pid, after.pid)
    assert after.pid != before.pid
    assert after.started > before.started
    assert drifted.drifted() is False
    assert drifted.boot_id() == boot_id == result["after"]["boot_id"]
    wall, up = clocks(drifted)
    assert up > up_before
    assert (result["clock"]["set"], result["clock"]["problem"], result["pending"]) == (True, None, [])
    assert result["clock"]["behind"] > 0
    # Its clock leaps over what it has lost, from one beat to the next.
    assert result["pause"]["guest"] > result["clock"]["behind"] - 1
    assert drifted.run("/bin/ls", "/var/lib/kvm-fleet/heartbeat").returncode != 0
    # A clock that was not set would not have leapt at all.
    leap = (wall - wall_before) - (up - up_before)
    assert result["clock"]["behind"] / 2 < leap < result["clock"]["behind"] + 60
    assert not drifted.domain.hasManagedSaveImage()


def test_a_save_that_is_called_off_or_refused_by_the_new_qemu_loses_no_guest(
    drifted: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot_id, before = drifted.boot_id(), drifted.process()

    # A module takes whole seconds, in which this guest is saved. The first try may come before the save has begun.
    monkeypatch.setattr(_libvirt, "CALL_OFF_EVERY_SECONDS", 0.01)
    with _libvirt.open_hypervisor("qemu:///system") as hypervisor, pytest.raises(LibvirtFailed, match="aborted"):
        hypervisor.domain(drifted.name).save(0.01)
    assert (drifted.process(), drifted.boot_id()) == (before, boot_id)
    assert not drifted.domain.hasManagedSaveImage()

    refuse_saved_ram(drifted)
    options: dict[str, Any] = {"name": drifted.name, "state": "restarted", "strategy": "save_restore"}
    result = refusal("domain_power", keep_image=True, **options)
    assert (result["error_code"], result["evidence"]["started_anew"]) == ("saved_state_refused", False)
    assert drifted.process() is None
    assert drifted.domain.hasManagedSaveImage()

    # The remedy, to the letter: the QEMU that it was saved by is put back, and it is started.
    drift.replace_emulator(drifted)
    drifted.start()
    drifted.wait_until_ready()
    assert drifted.boot_id() == boot_id

    refuse_saved_ram(drifted)
    result = refusal("domain_power", **options)
    assert (result["error_code"], result["evidence"]["started_anew"]) == ("saved_state_refused", True)
    assert "as after a power loss" in result["msg"]
    assert drifted.boot_id() != boot_id
    assert not drifted.domain.hasManagedSaveImage()
    assert drifted.process() is not None


@pytest.mark.thorough
def test_edits_of_the_definition_still_wait_after_it(drifted: Guest) -> None:
    definition = drifted.domain.XMLDesc()
    edited = definition.replace(">1</vcpu>", ">2</vcpu>")
    assert edited != definition
    connection = drifted.connection.live()
    connection.defineXML(edited)
    try:
        assert restart(drifted, strategy="save_restore")["pending"] == ["vcpu"]
        assert ">1</vcpu>" in drifted.domain.XMLDesc()
    finally:
        connection.defineXML(definition)


@pytest.mark.thorough
def test_the_playbook_takes_a_guest_that_only_drifts_off_its_qemu_without_a_reboot(drifted: Guest) -> None:
    boot_id, variables = drifted.boot_id(), {"upgrade_strategy": "auto"}
    predicted = playbook("restart", "--check", guests=[drifted.name], variables=variables)
    assert (predicted.records[drifted.name]["strategy"], drifted.drifted()) == ("save_restore", True)
    run = playbook("restart", guests=[drifted.name], variables=variables)
    assert run.exit_code == 0, run.output
    told = run.records[drifted.name]
    assert (told["outcome"], told["strategy"], told["drift"]) == ("restarted", "save_restore", "resolved")
    assert "  Restarted: yes, without a reboot: its RAM was saved and resumed" in run.paragraph(drifted.name)
    assert (drifted.drifted(), drifted.boot_id()) == (False, boot_id)


def test_no_guest_is_touched_where_qemu_starts_no_machine_like_it(drifted: Guest) -> None:
    before = drifted.process()
    tried = module("qemu_trial", names=[drifted.name])
    assert (tried["failed"], tried["changed"]) == (False, False)
    [trial] = tried["trials"]
    assert (trial["guests"], trial["virtualization"]) == ([drifted.name], "qemu")
    assert trial["machine"].startswith("pc-i440fx-")

    refuse(drifted, "-name guest=", "this machine is broken")
    assert not module("qemu_trial", names=[drifted.name], check=True)["failed"]
    run = playbook("restart", guests=[drifted.name])
    assert run.exit_code != 0
    told = run.records[drifted.name]
    assert (told["outcome"], told["error"]["error_code"]) == ("not_attempted", "qemu_trial_failed")
    # On a busy machine, libvirt has no more to say than that QEMU went off.
    assert f"does not start a machine like that of {drifted.name}" in told["error"]["msg"]
    assert any(told["error"]["msg"] in line for line in run.paragraph(drifted.name))
    assert drifted.process() == before
    assert not trials_of(drifted)
