# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""domain_power on a real guest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import libvirt
import pytest

from lab.clock import wait_until
from lab.guests import READY_WITHIN_S
from tests.integration.proof import stop_agent
from tests.integration.runs import difference, module, refusal

if TYPE_CHECKING:
    from lab.fixtures import MakeGuest
    from lab.guests import Guest


def power(state: str, guest: Guest, **options: Any) -> dict[str, Any]:
    result = module("domain_power", name=guest.name, state=state, **options)
    assert not result["failed"], result
    return result


def ignore_power_button(guest: Guest) -> None:
    guest.output("/bin/mkdir", "-p", "/etc/systemd/logind.conf.d")
    guest.write_file("/etc/systemd/logind.conf.d/deaf.conf", b"[Login]\nHandlePowerKey=ignore\n")
    guest.output("/usr/bin/systemctl", "restart", "systemd-logind.service")


def test_stop_and_start_check_real_again(pristine_guest: Guest) -> None:
    guest = pristine_guest
    first, boot_id = guest.process(), guest.boot_id()

    result = power("stopped", guest, check=True)
    assert (result["changed"], result["steps"], guest.process()) == (True, ["shut_down"], first)

    result = power("stopped", guest)
    assert (result["changed"], result["steps"], result["forced"]) == (True, ["shut_down"], False)
    assert [transition["state"] for transition in result["transitions"]][-1] == "shut_off"
    assert result["before"]["pid"] == (first and first.pid)
    assert guest.process() is None

    result = power("stopped", guest)
    assert (result["changed"], result["steps"]) == (False, [])
    assert refusal("domain_power", name=guest.name, state="restarted")["error_code"] == "domain_not_running"

    result = power("started", guest, check=True)
    assert (result["changed"], result["steps"]) == (True, ["start", "wait_for_agent"])
    assert guest.process() is None

    result = power("started", guest)
    second = guest.process()
    assert second is not None
    assert (result["changed"], result["after"]["pid"]) == (True, second.pid)
    assert wait_until(guest.answers, READY_WITHIN_S)
    assert guest.boot_id() != boot_id

    result = power("started", guest)
    assert (result["changed"], result["steps"], guest.process()) == (False, [], second)


def test_restart_proves_a_new_process_and_a_new_boot(pristine_guest: Guest) -> None:
    guest = pristine_guest
    before, boot_id = guest.process(), guest.boot_id()
    result, printed = difference("domain_power", name=guest.name, state="restarted")
    assert (result["changed"], guest.process()) == (True, before)
    assert "+running on a new QEMU process\n" in printed

    result = power("restarted", guest, method="agent")

    after = guest.process()
    assert before is not None
    assert after is not None
    assert after != before
    assert (result["before"]["pid"], result["after"]["pid"]) == (before.pid, after.pid)
    assert (result["before"]["boot_id"], result["after"]["boot_id"]) == (boot_id, guest.boot_id())
    assert boot_id != guest.boot_id()
    states = [transition["state"] for transition in result["transitions"]]
    assert states[0] == states[-1] == "running"
    assert "shut_off" in states


def test_a_guest_that_ignores_the_power_button_is_left_running(pristine_guest: Guest) -> None:
    ignore_power_button(pristine_guest)
    before = pristine_guest.process()
    result = refusal("domain_power", name=pristine_guest.name, state="restarted", shutdown_timeout=6)
    assert result["error_code"] == "shutdown_timeout"
    assert result["evidence"]["forced"] is False
    assert "virsh destroy" in result["remedy"]
    assert pristine_guest.process() == before
    assert wait_until(pristine_guest.answers, READY_WITHIN_S)


def test_force_ends_it_and_says_so(pristine_guest: Guest) -> None:
    ignore_power_button(pristine_guest)
    result = power("stopped", pristine_guest, shutdown_timeout=6, force=True)
    assert (result["changed"], result["forced"]) == (True, True)
    assert pristine_guest.process() is None


def test_the_agent_shuts_down_a_guest_that_ignores_the_power_button(pristine_guest: Guest) -> None:
    ignore_power_button(pristine_guest)
    result = power("stopped", pristine_guest, method="agent", shutdown_timeout=60)
    assert (result["changed"], result["forced"]) == (True, False)
    assert pristine_guest.process() is None


def test_a_guest_whose_agent_is_silent_is_not_restarted(pristine_guest: Guest) -> None:
    stop_agent(pristine_guest)
    before = pristine_guest.process()
    for check in (True, False):
        result = refusal("domain_power", check=check, name=pristine_guest.name, state="restarted")
        assert result["error_code"] == "agent_silent"
        assert pristine_guest.process() == before


@pytest.mark.thorough
def test_a_guest_without_an_agent_is_restarted_without_waiting_for_it(make_guest: MakeGuest) -> None:
    guest = make_guest(wait=False, agent_channel=False)
    before = guest.process()
    # It still boots and has no ear for the power button, so it takes force.
    result = power("restarted", guest, agent_timeout=0, shutdown_timeout=1, force=True)
    assert (result["forced"], result["steps"]) == (True, ["shut_down", "start"])
    assert guest.process() not in (None, before)


@pytest.mark.parametrize("wanted", ["stopped", "restarted"])
def test_a_transient_guest_is_not_shut_down(make_guest: MakeGuest, wanted: str) -> None:
    guest = make_guest(wait=False)
    before = guest.process()
    guest.domain.undefine()
    result = refusal("domain_power", name=guest.name, state=wanted, agent_timeout=0)
    assert result["error_code"] == "domain_unsafe"
    assert "transient" in result["msg"]
    assert guest.process() == before


def test_a_stale_managed_save_image_is_noticed(pristine_guest: Guest) -> None:
    pristine_guest.domain.managedSave()
    try:
        pristine_guest.reset()  # libvirt runs it from the snapshot, and keeps the image
        assert pristine_guest.domain.hasManagedSaveImage()
        before = pristine_guest.process()
        result = refusal("domain_power", name=pristine_guest.name, state="restarted")
        assert result["error_code"] == "domain_unsafe"
        assert "virsh managedsave-remove" in result["remedy"]
        assert pristine_guest.process() == before
    finally:
        pristine_guest.domain.managedSaveRemove()


def test_a_guest_that_would_only_reboot_is_not_shut_down(pristine_guest: Guest) -> None:
    def at_poweroff(action: int) -> None:
        both = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG
        pristine_guest.domain.setLifecycleAction(libvirt.VIR_DOMAIN_LIFECYCLE_POWEROFF, action, both)

    before = pristine_guest.process()
    at_poweroff(libvirt.VIR_DOMAIN_LIFECYCLE_ACTION_RESTART)
    try:
        result = refusal("domain_power", name=pristine_guest.name, state="restarted")
        assert result["error_code"] == "domain_unsafe"
        assert "virsh set-lifecycle-action" in result["remedy"]
        assert pristine_guest.process() == before
    finally:
        at_poweroff(libvirt.VIR_DOMAIN_LIFECYCLE_ACTION_DESTROY)


def test_a_paused_guest_is_not_shut_down(pristine_guest: Guest) -> None:
    pristine_guest.domain.suspend()
    result = refusal("domain_power", name=pristine_guest.name, state="restarted")
    assert (result["error_code"], result["evidence"]["state"]) == ("domain_not_running", "paused")
    assert pristine_guest.state() == libvirt.VIR_DOMAIN_PAUSED
