# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An upgrade that loses its controller, its agent or its guest on the way is brought to its end by the next run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lab import daemons
from tests.integration.background import PATIENCE_S, kill, logged, running, wait_for
from tests.integration.packages import UPGRADED, upgraded_names
from tests.integration.runs import module, refusal

if TYPE_CHECKING:
    import subprocess
    from contextlib import AbstractContextManager

    from lab.guests import Guest


def upgrading(guest: Guest) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """guest_upgrade at work in the background."""
    options = json.dumps({"name": guest.name})
    return running("ansible", "localhost", "--module-name", "kvm.fleet.guest_upgrade", "--args", options)


def test_a_run_whose_controller_is_killed_is_picked_up(pristine_guest: Guest) -> None:
    with upgrading(pristine_guest) as controller:
        wait_for(lambda: logged(pristine_guest, "Unpacking"), "unpacking")
        kill(controller)
    ahead = module("guest_upgrade", check=True, name=pristine_guest.name)
    assert ahead["unfinished"] in ("running", "ended")
    result = module("guest_upgrade", name=pristine_guest.name)
    assert not result.get("failed"), result
    assert upgraded_names(result) == UPGRADED
    assert pristine_guest.package_versions()["lab-app"] == "2.0"
    again = module("guest_upgrade", name=pristine_guest.name)
    assert (again["changed"], again["packages"], again["unfinished"]) == (False, [], "none")


def test_a_guest_that_loses_power_while_unpacking_is_repaired(pristine_guest: Guest) -> None:
    with upgrading(pristine_guest):
        wait_for(lambda: logged(pristine_guest, "Unpacking lab-app"), "unpacking lab-app")
        pristine_guest.domain.destroy()
    lost = refusal("guest_upgrade", name=pristine_guest.name)
    assert lost["error_code"] == "domain_not_running"
    pristine_guest.start()
    pristine_guest.wait_until_ready()
    assert pristine_guest.output("/usr/bin/dpkg", "--audit") != ""
    assert module("guest_upgrade", check=True, name=pristine_guest.name)["unfinished"] == "cut_off"
    result = module("guest_upgrade", name=pristine_guest.name)
    assert not result.get("failed"), result
    assert upgraded_names(result) == UPGRADED
    assert pristine_guest.output("/usr/bin/dpkg", "--audit") == ""
    assert module("guest_upgrade", name=pristine_guest.name)["changed"] is False


@pytest.mark.thorough
def test_an_agent_that_is_away_for_a_while_does_not_end_the_upgrade(pristine_guest: Guest) -> None:
    stop = "systemctl stop qemu-guest-agent; sleep 30; systemctl start qemu-guest-agent"
    with upgrading(pristine_guest) as controller:
        wait_for(lambda: logged(pristine_guest, "Get:"), "the download")
        pristine_guest.output("/usr/bin/systemd-run", "--collect", "/bin/sh", "-c", stop)
        wait_for(lambda: not pristine_guest.answers(), "the agent's silence")
        assert controller.poll() is None
        assert controller.wait(timeout=PATIENCE_S) == 0
    assert pristine_guest.package_versions()["lab-app"] == "2.0"


@pytest.mark.alone
def test_a_restart_of_libvirt_does_not_end_the_upgrade(pristine_guest: Guest) -> None:
    process = pristine_guest.process()
    with upgrading(pristine_guest) as controller:
        wait_for(lambda: logged(pristine_guest, "Unpacking"), "unpacking")
        daemons.restart_libvirtd()
        assert controller.wait(timeout=PATIENCE_S) == 0
    assert pristine_guest.process() == process
    assert pristine_guest.package_versions()["lab-app"] == "2.0"
    assert pristine_guest.output("/bin/grep", "--count", "^Start-Date", "/var/log/apt/history.log").strip() == "1"


@pytest.mark.thorough
def test_of_two_controllers_at_once_one_upgrades_and_neither_starts_a_second(pristine_guest: Guest) -> None:
    with upgrading(pristine_guest) as one, upgrading(pristine_guest) as other:
        codes = {controller.wait(timeout=PATIENCE_S) for controller in (one, other)}
    assert 0 in codes
    assert upgraded_names(module("guest_upgrade", name=pristine_guest.name)) == set()
    versions = pristine_guest.package_versions()
    assert (versions["lab-app"], versions["lab-config"]) == ("2.0", "1.1")
    assert pristine_guest.output("/usr/bin/dpkg", "--audit") == ""
    starts = pristine_guest.output("/bin/grep", "--count", "^Start-Date", "/var/log/apt/history.log")
    assert int(starts) == 1
