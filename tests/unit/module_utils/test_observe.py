# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Looking at domains: what is there, what is unknown, and that nothing is changed or asked of a guest."""

from __future__ import annotations

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils import _proc, _results
from ansible_collections.kvm.fleet.plugins.module_utils._domain import DomainState
from ansible_collections.kvm.fleet.plugins.module_utils._domain_xml import ChannelState
from ansible_collections.kvm.fleet.plugins.module_utils._drift import DriftState
from ansible_collections.kvm.fleet.plugins.module_utils._errors import DomainNotFound, LibvirtFailed
from ansible_collections.kvm.fleet.plugins.module_utils._observe import observe, observe_domains
from ansible_collections.kvm.fleet.plugins.module_utils._snapshot_xml import STAMP
from tests.unit.fake_hypervisor import EMULATOR, LIBRARY, FakeHypervisor

NEW_QEMU = "#!/bin/sh\necho 'QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)'\n"
OLD_VERSION, NEW_VERSION = "7.2.13 (Debian 1:7.2+dfsg-7)", "7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)"


def test_a_guest_on_the_installed_qemu_has_no_drift(hypervisor: FakeHypervisor) -> None:
    domain = hypervisor.add("web1")
    observed = observe(hypervisor, domain)
    assert (observed.state, observed.drift.state) == (DomainState.RUNNING, DriftState.NONE)
    assert observed.process is not None
    assert observed.process.pid == domain.pid
    assert (observed.version_running, observed.version_installed) == (OLD_VERSION, OLD_VERSION)


def test_a_guest_whose_qemu_was_replaced_drifts_and_still_tells_its_old_version(hypervisor: FakeHypervisor) -> None:
    domain = hypervisor.add("web1")
    hypervisor.proc.install(EMULATOR, NEW_QEMU)
    observed = observe(hypervisor, domain)
    assert observed.drift.state is DriftState.DRIFTED
    assert (observed.version_running, observed.version_installed) == (OLD_VERSION, NEW_VERSION)


def test_drift_is_gone_after_a_power_cycle(hypervisor: FakeHypervisor) -> None:
    domain = hypervisor.add("web1")
    hypervisor.proc.install(LIBRARY, "new")
    assert observe(hypervisor, domain).drift.state is DriftState.DRIFTED
    domain.destroy()
    domain.start()
    assert observe(hypervisor, domain).drift.state is DriftState.NONE


def test_a_reboot_inside_the_guest_does_not_resolve_drift(hypervisor: FakeHypervisor) -> None:
    domain = hypervisor.add("web1")
    hypervisor.proc.install(EMULATOR, NEW_QEMU)
    domain.boot()
    assert observe(hypervisor, domain).drift.state is DriftState.DRIFTED


@pytest.mark.parametrize("state", [DomainState.SHUT_OFF, DomainState.CRASHED])
def test_a_guest_that_is_off_has_no_process_to_drift(hypervisor: FakeHypervisor, state: DomainState) -> None:
    observed = observe(hypervisor, hypervisor.add("web1", state))
    assert (observed.drift.state, observed.process) == (DriftState.NOT_RUNNING, None)
    assert (observed.version_running, observed.version_installed) == (None, OLD_VERSION)


@pytest.mark.parametrize("state", [DomainState.PAUSED, DomainState.SUSPENDED, DomainState.SHUTTING_DOWN])
def test_a_guest_that_stands_still_has_a_process_all_the_same(hypervisor: FakeHypervisor, state: DomainState) -> None:
    domain = hypervisor.add("web1", state)
    hypervisor.proc.install(EMULATOR, NEW_QEMU)
    assert observe(hypervisor, domain).drift.state is DriftState.DRIFTED


def test_a_process_that_cannot_be_found_is_unknown_and_never_a_pass(hypervisor: FakeHypervisor) -> None:
    domain = hypervisor.add("web1")
    assert domain.pid is not None
    hypervisor.proc.end(domain.pid)
    drift = observe(hypervisor, domain).drift
    assert drift.state is DriftState.UNKNOWN
    assert drift.reasons[0].detail.startswith("its QEMU process cannot be found through ")


@pytest.mark.parametrize(
    ("channel", "silent", "state", "expected"),
    [
        (True, False, DomainState.RUNNING, ChannelState.CONNECTED),
        (True, True, DomainState.RUNNING, ChannelState.DISCONNECTED),
        (True, False, DomainState.SHUT_OFF, ChannelState.UNKNOWN),
        (False, False, DomainState.RUNNING, ChannelState.ABSENT),
        (False, False, DomainState.SHUT_OFF, ChannelState.ABSENT),
    ],
)
def test_the_agents_channel_is_as_the_hypervisor_sees_it(
    hypervisor: FakeHypervisor, channel: bool, silent: bool, state: DomainState, expected: ChannelState
) -> None:
    domain = hypervisor.add("web1", state)
    domain.agent_channel, domain.agent.silent = channel, silent
    assert observe(hypervisor, domain).channel is expected
    assert domain.agent.requests == []


def test_snapshots_are_listed_oldest_first_and_ours_apart(hypervisor: FakeHypervisor) -> None:
    domain = hypervisor.add("web1")
    domain.add_snapshot("z-old", f"{STAMP} x")
    domain.add_snapshot("b", "made by hand")
    hypervisor.clock.advance(60)
    domain.add_snapshot("a-new", f"{STAMP} x")
    observed = observe(hypervisor, domain)
    assert [snapshot.name for snapshot in observed.snapshots] == ["b", "z-old", "a-new"]
    assert [snapshot.name for snapshot in observed.own_snapshots] == ["z-old", "a-new"]


def test_snapshots_are_looked_for_where_there_are_any_and_only_if_asked_for(hypervisor: FakeHypervisor) -> None:
    hypervisor.add("web1").add_snapshot("ours", f"{STAMP} x")
    hypervisor.add("web2").faults["snapshots"] = LibvirtFailed("nobody should ask", remedy="Do not.")
    seen, unseen = observe_domains(hypervisor, None), observe_domains(hypervisor, None, snapshots=False)
    assert [len(observed.snapshots) for observed in seen] == [1, 0]
    assert [observed.snapshots for observed in unseen] == [(), ()]


def test_looking_changes_nothing(hypervisor: FakeHypervisor) -> None:
    domain = hypervisor.add("web1")
    observe_domains(hypervisor, None)
    assert domain.changes == []


def test_metadata_that_cannot_be_read_is_a_problem_of_its_domain_alone(hypervisor: FakeHypervisor) -> None:
    hypervisor.add("web1").hints = "<guest xmlns='https://kvm.fleet/xmlns/guest/1'><depend-on>db1</depend-on></guest>"
    hypervisor.add("web2").hints = "<guest xmlns='https://kvm.fleet/xmlns/guest/1'><group>web</group></guest>"
    hypervisor.add("web3")
    told = [_results.observation(observed) for observed in observe_domains(hypervisor, None)]
    assert [domain["hints"] for domain in told] == [{}, {"group": "web"}, {}]
    assert [bool(domain["hints_problem"]) for domain in told] == [True, False, False]
    assert told[0]["hints_problem"]["error_code"] == "hints_malformed"
    assert "<depend-on> is none of" in told[0]["hints_problem"]["msg"]


# --- several domains -----------------------------------------------------------------------------


def test_all_domains_come_by_name_and_named_ones_in_the_order_asked_for(hypervisor: FakeHypervisor) -> None:
    for name in ("vm10", "vm1", "größe", "-x"):
        hypervisor.add(name)
    assert [observed.name for observed in observe_domains(hypervisor, None)] == ["-x", "größe", "vm1", "vm10"]
    assert [observed.name for observed in observe_domains(hypervisor, ["vm10", "vm1"])] == ["vm10", "vm1"]
    assert observe_domains(hypervisor, []) == []


def test_a_domain_that_is_asked_for_and_missing_is_an_error(hypervisor: FakeHypervisor) -> None:
    hypervisor.add("vm10")
    with pytest.raises(DomainNotFound, match=r"no domain is named 'vm1'"):
        observe_domains(hypervisor, ["vm10", "vm1"])


def test_a_domain_that_vanishes_while_all_are_looked_at_is_left_out(hypervisor: FakeHypervisor) -> None:
    gone = hypervisor.add("gone")
    hypervisor.add("web1")
    gone.faults["xml"] = DomainNotFound("Domain not found", remedy="See the others.")
    assert [observed.name for observed in observe_domains(hypervisor, None)] == ["web1"]
    with pytest.raises(DomainNotFound):
        observe_domains(hypervisor, ["gone"])


def test_a_binary_that_many_guests_run_is_asked_for_its_version_once(
    hypervisor: FakeHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def ask(binary: object) -> str:
        asked.append(binary)
        return "7.2.13"

    monkeypatch.setattr(_proc, "_ask_version", ask)
    for number in range(5):
        hypervisor.add(f"vm{number}")
    assert {observed.version_running for observed in observe_domains(hypervisor, None)} == {"7.2.13"}
    assert len(asked) == 1


# --- as modules return it ------------------------------------------------------------------------


def test_an_observation_is_returned_as_plain_data(hypervisor: FakeHypervisor) -> None:
    domain = hypervisor.add("web1")
    domain.add_snapshot("ours", f"{STAMP} x")
    domain.add_snapshot("theirs", "made by hand")
    hypervisor.proc.install(EMULATOR, NEW_QEMU)
    result = _results.observation(observe(hypervisor, domain))
    [snapshot] = result.pop("snapshots")
    assert result == {
        "name": "web1",
        "uuid": domain.uuid,
        "state": "running",
        "persistent": True,
        "managed_save": False,
        "qemu": {
            "emulator": hypervisor.emulator,
            "version_installed": NEW_VERSION,
            "version_running": OLD_VERSION,
            "pid": domain.pid,
            "started": "2026-09-21T13:36:03Z",
        },
        "drift": {
            "state": "drifted",
            "reasons": [
                {
                    "kind": "binary_replaced",
                    "path": hypervisor.emulator,
                    "detail": "another file has taken its place",
                }
            ],
        },
        "os": None,
        "agent_channel": "connected",
        "hints": {},
        "hints_problem": None,
    }
    assert snapshot == {
        "name": "ours",
        "description": "[kvm.fleet] x",
        "created": 1772330400,
        "state": "running",
        "current": False,
        "way": "live",
        "kind": "internal",
        "files": [],
        "size": None,
    }


def test_what_does_not_run_is_returned_as_null(hypervisor: FakeHypervisor) -> None:
    result = _results.observation(observe(hypervisor, hypervisor.add("web1", DomainState.SHUT_OFF)))
    assert (result["qemu"]["pid"], result["qemu"]["started"], result["qemu"]["version_running"]) == (None, None, None)
    assert result["drift"] == {"state": "not_running", "reasons": []}
    assert result["agent_channel"] == "unknown"
