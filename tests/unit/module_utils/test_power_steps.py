# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The steps, on a stateful hypervisor on which they are carried out and proved."""

from __future__ import annotations

import shlex

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._domain import DomainState, ShutdownMethod
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    AgentCommandBlocked,
    AgentSilent,
    DomainBusy,
    DomainNotRunning,
    FleetError,
    HypervisorUnavailable,
    NoAgentChannel,
    ProofFailed,
    ShutdownTimeout,
    StartFailed,
)
from ansible_collections.kvm.fleet.plugins.module_utils._power import (
    PowerOptions,
    PowerReport,
    Step,
    Transition,
)
from ansible_collections.kvm.fleet.plugins.module_utils._power_steps import apply, check
from tests.unit.fake_agent import Call, Ending
from tests.unit.fake_hypervisor import FakeDomain, FakeHypervisor, libvirt_failed

CYCLE = (Step.SHUT_DOWN, Step.START, Step.WAIT_FOR_AGENT)
ACPI_ONCE = ["shutdown by acpi"]


@pytest.fixture
def domain(hypervisor: FakeHypervisor) -> FakeDomain:
    return hypervisor.add("web1")


def cycle(hypervisor: FakeHypervisor, domain: FakeDomain, options: PowerOptions | None = None) -> PowerReport:
    return apply(hypervisor, domain, CYCLE, options or PowerOptions())


# --- what is checked first -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "options"),
    [
        (CYCLE, PowerOptions()),
        ((Step.SHUT_DOWN,), PowerOptions(method=ShutdownMethod.AGENT)),
        ((Step.SHUT_DOWN, Step.START), PowerOptions(method=ShutdownMethod.AGENT, agent_timeout=0)),
    ],
)
def test_a_silent_agent_that_is_needed_is_refused_before_anything_is_done(
    hypervisor: FakeHypervisor, domain: FakeDomain, steps: tuple[Step, ...], options: PowerOptions
) -> None:
    check(hypervisor, domain, steps, options)
    domain.agent.silent = True
    with pytest.raises(AgentSilent):
        check(hypervisor, domain, steps, options)
    assert domain.changes == []


def test_an_agent_that_may_not_shut_down_is_not_counted_on(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    domain.agent.blocked.add("guest-shutdown")
    check(hypervisor, domain, CYCLE, PowerOptions())
    with pytest.raises(AgentCommandBlocked, match="guest-shutdown"):
        check(hypervisor, domain, CYCLE, PowerOptions(method=ShutdownMethod.AGENT))
    assert domain.changes == []


@pytest.mark.parametrize(
    "steps", [(), (Step.SHUT_DOWN,), (Step.SHUT_DOWN, Step.START), (Step.START, Step.WAIT_FOR_AGENT)]
)
def test_an_agent_that_is_not_needed_is_not_asked(
    hypervisor: FakeHypervisor, domain: FakeDomain, steps: tuple[Step, ...]
) -> None:
    domain.agent.silent = True
    check(hypervisor, domain, steps, PowerOptions())
    assert domain.agent.requests == []


# --- carrying it out -----------------------------------------------------------------------------


def test_a_power_cycle_ends_on_a_new_process_and_a_new_boot(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    old_pid, old_boot = domain.pid, domain.boot_id
    report = cycle(hypervisor, domain)
    assert domain.changes == ["shutdown by acpi", "start"]
    assert report.process_before is not None
    assert report.process_after is not None
    assert (report.process_before.pid, report.process_after.pid) == (old_pid, domain.pid)
    assert (report.boot_id_before, report.boot_id_after) == (old_boot, domain.boot_id)
    assert old_boot != domain.boot_id
    assert not report.forced


def test_the_guest_tells_for_how_long_it_was_away(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    report = cycle(hypervisor, domain)
    assert report.longest_gap is not None
    assert 28 <= report.longest_gap < 32, "4 s until it is off, and 24 s until its agent answers"
    assert domain.beats is None


def test_the_transitions_are_recorded_with_their_times(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    assert cycle(hypervisor, domain).transitions == [
        Transition(DomainState.RUNNING, "2026-03-01T02:00:00Z"),
        Transition(DomainState.SHUT_OFF, "2026-03-01T02:00:04Z"),
        Transition(DomainState.RUNNING, "2026-03-01T02:00:04Z"),
    ]


def test_a_guest_is_not_left_off_by_a_signal(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    waits: dict[str, bool] = {}

    def see(when: str) -> None:
        waits[when] = hypervisor.signals_wait

    def boot_id(_call: Call) -> Ending:
        see("the guest is booting" if domain.changes else "nothing was done")
        return Ending(stdout=f"{domain.boot_id}\n".encode())

    domain.agent.program = boot_id
    apply(
        hypervisor,
        domain,
        CYCLE,
        PowerOptions(),
        intend=lambda _report: see("it is about to be asked"),
        meanwhile=lambda: see("it is off"),
        started=lambda: see("it was started"),
    )
    assert waits == {
        "nothing was done": True,
        "it is about to be asked": True,
        "it is off": True,
        "it was started": True,
        "the guest is booting": False,
    }


@pytest.mark.parametrize("fault", ["shutdown", "start"])
def test_a_power_cycle_that_fails_heeds_signals_again(
    hypervisor: FakeHypervisor, domain: FakeDomain, fault: str
) -> None:
    domain.faults[fault] = libvirt_failed("no")
    with pytest.raises(FleetError):
        cycle(hypervisor, domain)
    assert not hypervisor.signals_wait


def test_nothing_to_do_does_nothing(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    report = apply(hypervisor, domain, (), PowerOptions())
    assert domain.changes == []
    assert (report.process_before, report.process_after) == (None, None)


def test_a_stopped_domain_is_started_without_a_proof_of_change(hypervisor: FakeHypervisor) -> None:
    domain = hypervisor.add("web1", DomainState.SHUT_OFF)
    report = apply(hypervisor, domain, (Step.START, Step.WAIT_FOR_AGENT), PowerOptions())
    assert domain.changes == ["start"]
    assert report.process_before is None
    assert report.process_after is not None
    assert (report.boot_id_before, report.boot_id_after) == (None, None)


def test_the_agent_can_be_asked_for_the_shutdown(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    cycle(hypervisor, domain, PowerOptions(method=ShutdownMethod.AGENT))
    assert domain.changes == ["shutdown by agent", "start"]


def test_a_slow_guest_is_asked_through_its_agent_just_once(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    """Its shutdown stops the agent long before it is off, and libvirt calls that silence."""
    domain.habits.shuts_down_after = 120
    domain.faults["shutdown"] = AgentSilent("Guest agent is not responding", remedy="See whether it runs.")
    hypervisor.clock.after(120, domain.go_off)
    cycle(hypervisor, domain, PowerOptions(method=ShutdownMethod.AGENT))
    assert domain.changes == ["shutdown by agent", "start"]


@pytest.mark.parametrize("agent_channel", [True, False])
def test_a_guest_whose_agent_is_silent_or_missing_can_be_stopped(
    hypervisor: FakeHypervisor, domain: FakeDomain, agent_channel: bool
) -> None:
    domain.agent.silent, domain.agent_channel = True, agent_channel
    domain.habits.shuts_down_after = None
    report = apply(hypervisor, domain, (Step.SHUT_DOWN,), PowerOptions(force=True))
    assert report.forced
    assert domain.state() is DomainState.SHUT_OFF


def broken_connection() -> HypervisorUnavailable:
    return HypervisorUnavailable("the connection to libvirt broke", remedy="Start libvirt.")


@pytest.mark.parametrize("method", ["shutdown", "start"])
def test_a_restart_of_libvirt_does_not_end_a_cycle(hypervisor: FakeHypervisor, domain: FakeDomain, method: str) -> None:
    domain.passing_faults[method] = broken_connection()
    report = cycle(hypervisor, domain)
    assert report.process_before != report.process_after
    assert domain.state() is DomainState.RUNNING
    assert len(domain.changes) == 3


def test_a_start_that_libvirt_carried_out_before_it_was_restarted_is_not_repeated(
    hypervisor: FakeHypervisor, domain: FakeDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = domain.start

    def start_and_lose_the_answer() -> None:
        start()
        raise broken_connection()

    monkeypatch.setattr(domain, "start", start_and_lose_the_answer)
    report = cycle(hypervisor, domain)
    assert domain.changes == ["shutdown by acpi", "start"]
    assert report.process_before != report.process_after


def test_a_start_that_fails_after_a_restart_of_libvirt_has_failed(
    hypervisor: FakeHypervisor, domain: FakeDomain
) -> None:
    domain.passing_faults["start"] = broken_connection()
    domain.faults["start"] = libvirt_failed("unsupported machine type")
    with pytest.raises(StartFailed, match="unsupported machine type"):
        cycle(hypervisor, domain)


def test_an_agent_that_falters_while_booting_is_asked_again(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    tell_boot_id = domain.agent.program
    old = domain.boot_id

    def asked() -> int:
        return len([call for call in domain.agent.calls if call.command[0] == "cat"])

    def program(call: Call) -> Ending:
        faltering = domain.boot_id != old and asked() < 4
        return Ending(None, signal=15) if faltering else tell_boot_id(call)

    domain.agent.program = program
    assert cycle(hypervisor, domain).boot_id_after == domain.boot_id
    assert asked() == 4


def test_an_error_that_waiting_cannot_cure_ends_the_wait(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    hypervisor.clock.after(10, lambda: setattr(domain, "agent_channel", False))
    with pytest.raises(NoAgentChannel):
        cycle(hypervisor, domain)


def test_a_process_that_cannot_be_looked_at_proves_nothing(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    hypervisor.clock.after(10, lambda: hypervisor.proc.end(domain.pid or 0))
    with pytest.raises(ProofFailed, match=r"'web1' was started, and its QEMU process cannot be looked at: "):
        cycle(hypervisor, domain)


def test_an_error_while_the_guest_is_off_says_how_to_bring_it_back(
    hypervisor: FakeHypervisor, domain: FakeDomain
) -> None:
    domain.faults["start"] = DomainBusy("cannot acquire state change lock", remedy="Wait.")
    with pytest.raises(DomainBusy) as raised:
        cycle(hypervisor, domain)
    assert raised.value.remedy == "Wait. The guest is off: 'virsh start web1' brings it back."


def test_a_guest_without_agent_is_cycled_when_nobody_waits_for_it(
    hypervisor: FakeHypervisor, domain: FakeDomain
) -> None:
    domain.agent_channel = False
    report = apply(hypervisor, domain, (Step.SHUT_DOWN, Step.START), PowerOptions(agent_timeout=0))
    assert report.process_before != report.process_after
    assert domain.agent.requests == []


def test_a_guest_that_ignores_its_power_button_is_left_running(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    domain.habits.shuts_down_after = None
    pid = domain.pid
    with pytest.raises(ShutdownTimeout) as raised:
        cycle(hypervisor, domain, PowerOptions(shutdown_timeout=100))
    assert raised.value.message == (
        "domain 'web1' was asked to shut down 100 s ago and is still running; it was left so, and may yet go off"
    )
    assert (domain.state(), domain.pid) == (DomainState.RUNNING, pid)
    assert "destroy" not in domain.changes
    assert "start" not in domain.changes
    assert raised.value.evidence["forced"] is False


def test_a_guest_that_is_paused_in_its_shutdown_is_said_to_be_so(
    hypervisor: FakeHypervisor, domain: FakeDomain
) -> None:
    """As QEMU does with one whose disk cannot grow."""
    domain.habits.shuts_down_after = None
    hypervisor.clock.after(3, lambda: domain.be(DomainState.PAUSED))
    with pytest.raises(DomainNotRunning, match="domain 'web1' is paused, not running") as raised:
        cycle(hypervisor, domain)
    assert "virsh domstate --reason" in raised.value.remedy
    assert domain.changes == ["shutdown by acpi"]
    assert domain.state() is DomainState.PAUSED


def test_the_button_is_pressed_again_every_thirty_seconds(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    domain.habits.deaf_to = 2
    report = cycle(hypervisor, domain)
    assert domain.changes == [*ACPI_ONCE * 3, "start"]
    off = report.transitions[1]
    assert "2026-03-01T02:01:04Z" <= off.at <= "2026-03-01T02:01:10Z"


def test_force_ends_a_guest_at_the_deadline_and_says_so(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    domain.habits.shuts_down_after = None
    report = cycle(hypervisor, domain, PowerOptions(shutdown_timeout=20, force=True))
    assert domain.changes == ["shutdown by acpi", "destroy", "start"]
    assert report.forced
    assert report.transitions[1] == Transition(DomainState.SHUT_OFF, "2026-03-01T02:00:20Z")


def test_force_is_not_used_on_a_guest_that_complies(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    assert not cycle(hypervisor, domain, PowerOptions(force=True)).forced
    assert "destroy" not in domain.changes


def test_a_guest_that_goes_off_as_it_is_asked_is_off(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    """Between the look and the request it was gone, so libvirt refuses the request."""
    domain.goes_off_before_request = True
    cycle(hypervisor, domain)
    assert domain.changes == ["shutdown by acpi", "start"]
    assert domain.state() is DomainState.RUNNING


def test_a_request_that_libvirt_refuses_leaves_the_guest_running(
    hypervisor: FakeHypervisor, domain: FakeDomain
) -> None:
    domain.faults["shutdown"] = libvirt_failed("cannot acquire state change lock")
    with pytest.raises(FleetError, match="cannot acquire state change lock") as raised:
        cycle(hypervisor, domain)
    assert domain.state() is DomainState.RUNNING
    assert domain.changes == ACPI_ONCE
    assert raised.value.evidence["transitions"] == [{"state": "running", "at": "2026-03-01T02:00:00Z"}]


NASTY_NAMES = ["web1", "vm 1", "it's", '"$(reboot)"', "größe", "<&>", "-rf", "--help", "a;b"]


@pytest.mark.parametrize("name", NASTY_NAMES)
def test_a_failed_start_tells_the_one_command_that_brings_the_guest_back(hypervisor: FakeHypervisor, name: str) -> None:
    domain = hypervisor.add(name)
    domain.faults["start"] = libvirt_failed("unsupported machine type")
    with pytest.raises(StartFailed) as raised:
        cycle(hypervisor, domain)
    assert raised.value.message == f"domain {name!r} is off and cannot be started: unsupported machine type"
    command = raised.value.remedy.split("then '", 1)[1].removesuffix("' brings it back.")
    words = shlex.split(command)
    assert words[:2] == ["virsh", "start"]
    assert words[-1] == name
    assert words[2:-1] == (["--"] if name.startswith("-") else [])


def test_a_guest_that_goes_off_again_has_not_started(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    domain.habits.boots_in = 60
    hypervisor.clock.after(20, domain.go_off)
    with pytest.raises(StartFailed, match=r"'web1' was started and went off again") as raised:
        cycle(hypervisor, domain)
    assert [transition["state"] for transition in transitions_of(raised.value)] == [
        *("running", "shut_off", "running", "shut_off"),
    ]


def transitions_of(error: FleetError) -> list[dict[str, str]]:
    transitions = error.evidence["transitions"]
    assert isinstance(transitions, list)
    return transitions


def test_an_agent_that_never_comes_back_is_said_so(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    domain.habits.boots_in = 10_000
    with pytest.raises(AgentSilent) as raised:
        cycle(hypervisor, domain, PowerOptions(agent_timeout=120))
    assert raised.value.message == (
        "domain 'web1' is running and its guest agent has not answered within 120 s of its start"
    )
    assert domain.state() is DomainState.RUNNING
    assert len(transitions_of(raised.value)) == 3


def test_an_unchanged_process_is_no_restart(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    hypervisor.recycle_pid = True
    domain.go_off()
    domain.be(DomainState.RUNNING)
    with pytest.raises(ProofFailed, match=r"'web1' was restarted and still has QEMU process \d+"):
        cycle(hypervisor, domain)


def test_a_reused_pid_with_another_start_time_is_a_new_process(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    old = domain.pid
    hypervisor.recycle_pid = True
    report = cycle(hypervisor, domain)
    assert domain.pid == old
    assert report.process_before != report.process_after


def test_an_unchanged_boot_id_is_no_cold_start(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    domain.habits.new_boot_id = False
    with pytest.raises(ProofFailed, match=r"new QEMU process and its guest still has the old boot id"):
        cycle(hypervisor, domain)


def test_a_guest_that_only_answers_pings_is_restarted_all_the_same(
    hypervisor: FakeHypervisor, domain: FakeDomain
) -> None:
    domain.agent.blocked |= {"guest-exec", "guest-exec-status"}
    report = cycle(hypervisor, domain)
    assert (report.boot_id_before, report.boot_id_after) == (None, None)
    assert report.process_before != report.process_after


def test_a_failure_after_force_says_that_force_was_used(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    domain.habits.shuts_down_after = None
    domain.faults["start"] = libvirt_failed("no")
    with pytest.raises(StartFailed) as raised:
        cycle(hypervisor, domain, PowerOptions(force=True, shutdown_timeout=5))
    assert raised.value.evidence["forced"] is True


def test_other_domains_are_left_alone(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    other = hypervisor.add("web10")
    pid = other.pid
    cycle(hypervisor, domain)
    assert (other.changes, other.pid, other.agent.requests) == ([], pid, [])
