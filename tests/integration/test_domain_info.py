# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""domain_info, and what every module says of a hypervisor that it cannot work on."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._domain import TRIAL_NAME
from lab import drift, libraries
from tests.integration.runs import module, refusal

if TYPE_CHECKING:
    from lab.fixtures import MakeGuest
    from lab.guests import Guest
    from lab.session import Session

NASTY_NAMES = ["-leading dash", 'it\'s "quoted"', "<b>&amp;&", "Zoë 名前", "$(id) `id` {{ 1 + 1 }}", "trailing "]


def look(*names: str, **options: Any) -> list[dict[str, Any]]:
    result = module("domain_info", names=list(names), **options)
    assert result.get("changed") is False, result
    domains: list[dict[str, Any]] = result["domains"]
    return domains


def test_a_running_guest(shared_guest: Guest) -> None:
    (domain,) = look(shared_guest.name)
    process = shared_guest.process()
    assert process is not None
    assert (domain["name"], domain["uuid"], domain["state"]) == (shared_guest.name, shared_guest.uuid, "running")
    assert (domain["persistent"], domain["managed_save"], domain["agent_channel"]) == (True, False, "connected")
    assert domain["qemu"]["pid"] == process.pid
    assert domain["qemu"]["version_running"] == domain["qemu"]["version_installed"] != ""
    started = datetime.fromisoformat(domain["qemu"]["started"])
    assert timedelta(0) < datetime.now(started.tzinfo) - started < timedelta(hours=1)


def test_a_guest_that_is_off(make_guest: MakeGuest) -> None:
    (domain,) = look(make_guest(start=False).name)
    assert domain["state"] == "shut_off"
    assert domain["drift"] == {"state": "not_running", "reasons": []}
    assert domain["agent_channel"] == "unknown"
    assert (domain["qemu"]["pid"], domain["qemu"]["started"], domain["qemu"]["version_running"]) == (None, None, None)


def test_channels_without_an_agent(make_guest: MakeGuest) -> None:
    without, unanswered = make_guest(wait=False, agent_channel=False), make_guest(wait=False, agent_service=False)
    assert [domain["agent_channel"] for domain in look(without.name, unanswered.name)] == ["absent", "disconnected"]


def names_of_all(lab: Session) -> set[str]:
    """The names of all guests, which trials of QEMU are not."""
    names = {domain.name() for domain in lab.bed.connection.live().listAllDomains()}
    return {name for name in names if not TRIAL_NAME.fullmatch(name)}


def test_the_whole_hypervisor_in_one_call(lab: Session, shared_guest: Guest) -> None:
    before = names_of_all(lab)
    domains = module("domain_info")["domains"]
    names = [domain["name"] for domain in domains]
    # Others may come and go meanwhile.
    assert before & names_of_all(lab) <= set(names) <= before | names_of_all(lab)
    assert names == sorted(names)
    (same,) = look(shared_guest.name)
    assert same in domains


def test_named_guests_come_in_the_order_of_their_names(make_guest: MakeGuest, shared_guest: Guest) -> None:
    other = make_guest("0 comes first by name", start=False)
    asked = [shared_guest.name, other.name]
    assert [domain["name"] for domain in look(*asked)] == asked


def test_an_unknown_name(make_guest: MakeGuest) -> None:
    make_guest("info-vm10", start=False)
    result = refusal("domain_info", names=["info-vm10", "info-vm1"])
    assert result["error_code"] == "domain_not_found"
    assert "'info-vm1'" in result["msg"]


def test_nasty_names_just_work(make_guest: MakeGuest) -> None:
    for name in NASTY_NAMES:
        make_guest(name, start=False)
    assert [domain["name"] for domain in look(*NASTY_NAMES)] == NASTY_NAMES
    for name in NASTY_NAMES:
        assert module("domain_snapshot", name=name, snapshot="one")["changed"] is True
        assert refusal("guest_exec", name=name, argv=["true"])["error_code"] == "domain_not_running"


# --- drift ---------------------------------------------------------------------------------------


def test_no_drift_in_a_guest_that_was_just_started(shared_guest: Guest) -> None:
    shared_guest.reset()
    (domain,) = look(shared_guest.name)
    assert shared_guest.drifted() is False
    assert domain["drift"] == {"state": "none", "reasons": []}


def test_a_replaced_binary_is_drift(make_guest: MakeGuest) -> None:
    guest = make_guest(wait=False, private_emulator=True)
    assert look(guest.name)[0]["drift"]["state"] == "none"
    drift.replace_emulator(guest)
    (domain,) = look(guest.name)
    assert guest.drifted() is True
    assert domain["drift"]["state"] == "drifted"
    (reason,) = domain["drift"]["reasons"]
    assert (reason["kind"], reason["path"]) == ("binary_replaced", domain["qemu"]["emulator"])
    assert domain["qemu"]["version_running"]


def test_a_replaced_library_is_drift(make_guest: MakeGuest) -> None:
    guest = make_guest(wait=False, private_library=True)
    assert look(guest.name)[0]["drift"]["state"] == "none"
    drift.replace_library(guest)
    (domain,) = look(guest.name)
    assert domain["drift"]["state"] == "drifted"
    (reason,) = domain["drift"]["reasons"]
    assert reason["kind"] == "library_replaced"
    assert guest.uuid in reason["path"]
    assert libraries.LIBRARY in reason["path"]


def test_a_paused_guest_drifts_like_a_running_one(make_guest: MakeGuest) -> None:
    guest = make_guest(wait=False, private_emulator=True)
    guest.domain.suspend()
    drift.replace_emulator(guest)
    (domain,) = look(guest.name)
    assert (domain["state"], domain["drift"]["state"]) == ("paused", "drifted")


# --- the hypervisor ------------------------------------------------------------------------------

NO_LIBVIRT = "qemu+unix:///system?socket=/nonexistent/libvirt-sock"
REQUESTS: dict[str, dict[str, Any]] = {
    "domain_info": {},
    "domain_power": {"name": "any", "state": "restarted"},
    "domain_snapshot": {"name": "any"},
    "guest_exec": {"name": "any", "argv": ["true"]},
    "guest_info": {"names": ["any"]},
    "guest_upgrade": {"name": "any"},
}


@pytest.mark.parametrize("name", REQUESTS)
def test_libvirt_that_does_not_answer(name: str) -> None:
    result = refusal(name, uri=NO_LIBVIRT, **REQUESTS[name])
    assert (result["error_code"], result["transient"]) == ("hypervisor_unavailable", True)


@pytest.mark.parametrize("uri", ["qemu+ssh://root@elsewhere/system", "qemu://elsewhere/system", "qemu+tcp:///system"])
def test_a_connection_to_elsewhere_is_refused(uri: str) -> None:
    result = refusal("domain_info", uri=uri)
    assert result["error_code"] == "remote_uri_refused"
    assert "delegate_to" in result["remedy"]


@pytest.mark.parametrize("name", [name for name in REQUESTS if name != "domain_info"])
def test_every_module_misses_an_unknown_domain(lab: Session, name: str) -> None:
    assert "any" not in names_of_all(lab)
    assert refusal(name, **REQUESTS[name])["error_code"] == "domain_not_found"
