# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest's RAM is saved and resumed by a new QEMU: what is refused before, what is proved, what a failure leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._domain import DomainState, ShutdownMethod
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    AgentSilent,
    DomainNotRunning,
    DomainUnsafe,
    HypervisorUnavailable,
    InvalidRequest,
    ProofFailed,
    RecordUnavailable,
    SavedStateRefused,
    SaveFailed,
    SaveImpossible,
)
from ansible_collections.kvm.fleet.plugins.module_utils._observe import observe
from ansible_collections.kvm.fleet.plugins.module_utils._power import (
    PowerOptions,
    PowerReport,
    PowerState,
    Step,
    Strategy,
    plan,
)
from ansible_collections.kvm.fleet.plugins.module_utils._power_steps import apply, check
from ansible_collections.kvm.fleet.plugins.module_utils._save import (
    RESERVE_BYTES,
    ClockReport,
    clock_offset,
    require_saveable,
    save_directory,
    set_aside,
    set_clock,
)
from tests.unit.fake_hypervisor import FakeDomain, FakeHypervisor, libvirt_failed

STEPS = (Step.SAVE, Step.RESTORE, Step.WAIT_FOR_AGENT, Step.SET_CLOCK)
OPTIONS = PowerOptions(strategy=Strategy.SAVE_RESTORE)
MIB = 1024 * 1024


@pytest.fixture
def domain(hypervisor: FakeHypervisor) -> FakeDomain:
    return hypervisor.add("web1")


def save_and_restore(
    hypervisor: FakeHypervisor, domain: FakeDomain, steps: tuple[Step, ...] = STEPS, options: PowerOptions = OPTIONS
) -> PowerReport:
    return apply(hypervisor, domain, steps, options)


# --- before anything is done ---------------------------------------------------------------------


@pytest.mark.parametrize(("agent_timeout", "expected"), [(300, STEPS), (0, (Step.SAVE, Step.RESTORE))])
def test_the_plan_is_to_save_and_to_restore(
    hypervisor: FakeHypervisor, domain: FakeDomain, agent_timeout: float, expected: tuple[Step, ...]
) -> None:
    options = replace(OPTIONS, agent_timeout=agent_timeout)
    assert plan(observe(hypervisor, domain), PowerState.RESTARTED, options) == expected


@pytest.mark.parametrize("wanted", [PowerState.STARTED, PowerState.STOPPED])
def test_only_a_restart_goes_by_a_strategy(hypervisor: FakeHypervisor, domain: FakeDomain, wanted: PowerState) -> None:
    observed = observe(hypervisor, domain)
    assert plan(observed, wanted, OPTIONS) == plan(observed, wanted, PowerOptions())


def test_a_domain_that_would_not_survive_it_is_refused(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    domain.persistent = False
    with pytest.raises(DomainUnsafe, match="'web1' is transient"):
        plan(observe(hypervisor, domain), PowerState.RESTARTED, OPTIONS)
    domain.persistent, domain.managed_save = True, True
    with pytest.raises(DomainUnsafe, match="also has a managed save image"):
        plan(observe(hypervisor, domain), PowerState.RESTARTED, OPTIONS)
    domain.managed_save = False
    domain.be(DomainState.PAUSED)
    with pytest.raises(DomainNotRunning, match="paused"):
        plan(observe(hypervisor, domain), PowerState.RESTARTED, OPTIONS)


def test_a_guest_that_would_only_reboot_at_a_shutdown_can_be_saved(
    hypervisor: FakeHypervisor, domain: FakeDomain
) -> None:
    domain.on_poweroff = "restart"
    assert plan(observe(hypervisor, domain), PowerState.RESTARTED, OPTIONS) == STEPS


def test_a_device_whose_state_is_elsewhere_is_refused_by_name(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    shared = "<filesystem><driver type='virtiofs'/><target dir='x'/></filesystem>"
    domain.devices = f"<hostdev mode='subsystem' type='pci'/>{shared}"
    with pytest.raises(SaveImpossible, match="hostdev pci, filesystem virtiofs x") as raised:
        require_saveable(observe(hypervisor, domain), domain.memory, Path("/save"), lambda _path: None)
    assert raised.value.evidence == {"devices": ["hostdev pci", "filesystem virtiofs x"]}


@pytest.mark.parametrize("free", [None, 512 * MIB + RESERVE_BYTES])
def test_room_for_the_ram_is_enough(hypervisor: FakeHypervisor, domain: FakeDomain, free: int | None) -> None:
    require_saveable(observe(hypervisor, domain), domain.memory, Path("/save"), lambda _path: free)


def test_too_little_room_for_the_ram_is_refused(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    room = {"/save": 512 * MIB}
    with pytest.raises(SaveImpossible, match="'web1' may need 576 MiB in /save, where 512 MiB are free"):
        require_saveable(observe(hypervisor, domain), domain.memory, Path("/save"), room.get)


def test_a_silent_agent_that_is_needed_is_refused(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    domain.agent.silent = True
    with pytest.raises(AgentSilent):
        check(hypervisor, domain, STEPS, OPTIONS)
    check(hypervisor, domain, (Step.SAVE, Step.RESTORE), OPTIONS)


def test_nobody_asks_whether_the_agent_may_shut_down(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    domain.agent.blocked.add("guest-shutdown")
    check(hypervisor, domain, STEPS, replace(OPTIONS, method=ShutdownMethod.AGENT))


def test_a_time_of_nothing_to_save_in_cannot_be_meant() -> None:
    with pytest.raises(InvalidRequest, match="save_timeout of 0 s"):
        replace(OPTIONS, save_timeout=0).check()


# --- carried out ---------------------------------------------------------------------------------


def test_it_ends_on_a_new_process_and_the_same_boot(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    pid, boot_id = domain.pid, domain.boot_id
    report = save_and_restore(hypervisor, domain)
    assert domain.changes == ["save", "start"]
    assert report.process_before is not None
    assert report.process_after is not None
    assert (report.process_before.pid, report.process_after.pid) == (pid, domain.pid)
    assert pid != domain.pid
    assert report.boot_id_before == report.boot_id_after == boot_id
    assert [transition.state.value for transition in report.transitions] == ["running", "shut_off", "running"]
    assert report.off_for == 3.0
    assert report.longest_gap == pytest.approx(3.0, abs=0.1)
    assert domain.beats is None
    assert not domain.has_managed_save()


def test_the_guests_clock_is_where_it_would_be_without_the_pause(
    hypervisor: FakeHypervisor, domain: FakeDomain
) -> None:
    domain.agent.clock_offset = 3600  # it goes by another time than its hypervisor, and is to keep that
    report = save_and_restore(hypervisor, domain)
    assert report.clock == ClockReport(behind=3.0, set=True)
    assert domain.agent.clock_offset == pytest.approx(3600, abs=0.01)


def test_a_clock_that_may_not_be_set_is_told_and_no_failure(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    domain.agent.blocked.add("guest-set-time")
    report = save_and_restore(hypervisor, domain)
    assert report.clock == ClockReport(3.0, set=False, problem="the guest agent does not allow guest-set-time")
    assert report.longest_gap is None, "its clock has stood still with it"
    domain.agent.blocked.add("guest-get-time")
    agent = GuestAgent(domain, hypervisor.clock)
    assert clock_offset(agent, hypervisor.clock) is None
    assert set_clock(agent, hypervisor.clock, None).behind is None


def test_a_guest_without_an_agent_is_proved_by_libvirts_own_word(
    hypervisor: FakeHypervisor, domain: FakeDomain
) -> None:
    domain.agent_channel = False
    report = save_and_restore(hypervisor, domain, (Step.SAVE, Step.RESTORE))
    assert (report.boot_id_before, report.boot_id_after, report.clock) == (None, None, None)
    assert domain.was_restored()


def test_what_was_edited_meanwhile_still_waits(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    domain.agent_channel, domain.channel_at_start = True, None
    assert save_and_restore(hypervisor, domain).pending == ()
    domain.agent_channel, domain.serial_bus, domain.channel_at_start = False, True, True
    report = save_and_restore(hypervisor, domain, (Step.SAVE, Step.RESTORE))
    assert report.pending == ("channel org.qemu.guest_agent.0",)
    assert "org.qemu.guest_agent.0" not in domain.xml()


def test_a_guest_is_not_left_saved_by_a_signal(
    hypervisor: FakeHypervisor, domain: FakeDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = []
    start = domain.start

    def see_and_start() -> None:
        waits.append(hypervisor.signals_wait)
        start()

    monkeypatch.setattr(domain, "start", see_and_start)
    save_and_restore(hypervisor, domain)
    assert (waits, hypervisor.signals_wait) == ([True], False)


# --- a save that fails ---------------------------------------------------------------------------


def test_a_save_that_takes_too_long_is_called_off(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    pid, domain.save_takes = domain.pid, 1000
    with pytest.raises(SaveFailed, match="was not saved, and the domain is running as before") as raised:
        save_and_restore(hypervisor, domain)
    assert (domain.pid, domain.state(), domain.has_managed_save()) == (pid, DomainState.RUNNING, False)
    assert "save_timeout" in raised.value.remedy
    assert domain.beats is None


def test_an_image_that_libvirt_left_half_written_is_removed(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    """It would be taken for the guest's RAM at its next start."""
    domain.passing_faults["save"] = libvirt_failed("Failed to write: No space left on device")
    domain.managed_save = True
    with pytest.raises(SaveFailed, match="No space left"):
        save_and_restore(hypervisor, domain)
    assert not domain.has_managed_save()
    assert not domain.saved_image.exists()


def test_a_guest_that_stays_paused_is_told(
    hypervisor: FakeHypervisor, domain: FakeDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_paused(timeout: float) -> None:
        domain.be(DomainState.PAUSED)
        raise libvirt_failed(f"no answer within {timeout} s")

    monkeypatch.setattr(domain, "save", fail_paused)
    with pytest.raises(SaveFailed, match="the domain is paused") as raised:
        save_and_restore(hypervisor, domain)
    assert "virsh resume web1" in raised.value.remedy


def test_a_libvirt_that_is_restarted_when_all_is_saved_does_not_end_it(
    hypervisor: FakeHypervisor, domain: FakeDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = domain.save

    def save_and_lose_the_answer(timeout: float) -> None:
        save(timeout)
        raise HypervisorUnavailable("the connection to libvirt broke", remedy="Start libvirt.")

    monkeypatch.setattr(domain, "save", save_and_lose_the_answer)
    report = save_and_restore(hypervisor, domain)
    assert report.boot_id_after == domain.boot_id
    assert domain.changes == ["save", "start"]


# --- an image that is refused --------------------------------------------------------------------


def test_an_image_that_is_refused_once_is_tried_again(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    boot_id, domain.refuses_image = domain.boot_id, 1
    assert save_and_restore(hypervisor, domain).boot_id_after == boot_id
    assert domain.changes == ["save", "start", "start"]


def test_a_guest_whose_image_is_refused_is_started_anew_and_the_loss_is_told(
    hypervisor: FakeHypervisor, domain: FakeDomain
) -> None:
    boot_id, domain.refuses_image = domain.boot_id, 2
    with pytest.raises(SavedStateRefused, match="Its RAM was discarded and it was started anew") as raised:
        save_and_restore(hypervisor, domain)
    error = raised.value
    assert "load of migration failed" in str(error.evidence["qemu"])
    assert (error.evidence["started_anew"], "afterwards" in error.evidence) == (True, False)
    assert "The guest is off" not in error.remedy
    assert domain.changes == ["save", "start", "start", "start", "remove_managed_save"]
    assert domain.state() is DomainState.RUNNING
    assert domain.boot_id != boot_id
    assert not domain.has_managed_save()
    assert list(save_directory(hypervisor.uri).iterdir()) == []
    assert not domain.agent.silent, "it was waited for"


def test_a_guest_that_was_started_anew_has_no_image_whatever_fails_after_that(
    hypervisor: FakeHypervisor, domain: FakeDomain
) -> None:
    def fail() -> None:
        raise RecordUnavailable("no space left on device", remedy="Free some.")

    domain.refuses_image = 2
    with pytest.raises(SavedStateRefused, match="was started anew") as raised:
        apply(hypervisor, domain, STEPS, OPTIONS, started=fail)
    assert raised.value.evidence["afterwards"] == "no space left on device"
    assert domain.state() is DomainState.RUNNING
    assert not domain.has_managed_save()


def test_a_guest_that_libvirt_has_started_anew_before_it_was_restarted_has_no_image_either(
    hypervisor: FakeHypervisor, domain: FakeDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, domain.refuses_image = domain.start, 2

    def start_and_lose_the_answer() -> None:
        start()
        raise HypervisorUnavailable("the connection to libvirt broke", remedy="Start libvirt.")

    monkeypatch.setattr(domain, "start", start_and_lose_the_answer)
    with pytest.raises(SavedStateRefused, match="was started anew"):
        save_and_restore(hypervisor, domain)
    assert domain.state() is DomainState.RUNNING
    assert not domain.has_managed_save()


def test_an_image_that_cannot_be_removed_is_told(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    domain.refuses_image = 2
    domain.faults["remove_managed_save"] = libvirt_failed("Failed to remove managed save file")
    noted: list[str] = []
    with pytest.raises(SavedStateRefused, match="was started anew") as raised:
        apply(hypervisor, domain, STEPS, OPTIONS, started=lambda: noted.append("started"))
    assert "'virsh managedsave-remove web1'" in raised.value.remedy
    assert raised.value.evidence["image_left"] == "Failed to remove managed save file"
    assert noted == ["started"]


def test_a_guest_that_does_not_come_up_after_that_is_told_as_well(
    hypervisor: FakeHypervisor, domain: FakeDomain
) -> None:
    domain.refuses_image, domain.habits.boots_in = 2, 10_000
    with pytest.raises(SavedStateRefused, match="was started anew") as raised:
        save_and_restore(hypervisor, domain)
    assert "has not answered within 300 s" in str(raised.value.evidence["afterwards"])
    assert raised.value.evidence["afterwards_code"] == "agent_silent"
    assert "virsh console" in raised.value.remedy


def test_ram_is_not_lost_where_something_else_than_the_image_is_to_blame(
    hypervisor: FakeHypervisor, domain: FakeDomain
) -> None:
    domain.faults["start"] = libvirt_failed("unsupported machine type 'pc-i440fx-2.0'")
    with pytest.raises(SavedStateRefused, match="so its RAM was kept") as raised:
        save_and_restore(hypervisor, domain)
    assert raised.value.evidence["started_anew"] is False
    assert "virsh start --force-boot web1" in raised.value.remedy
    assert domain.state() is DomainState.SHUT_OFF
    assert domain.has_managed_save()
    assert domain.saved_image.exists()
    domain.faults.clear()
    domain.start()
    assert domain.was_restored()


def test_who_wants_the_ram_kept_has_the_guest_left_off(hypervisor: FakeHypervisor, domain: FakeDomain) -> None:
    domain.refuses_image = 2
    with pytest.raises(SavedStateRefused, match="It is off, and its RAM was kept"):
        save_and_restore(hypervisor, domain, options=replace(OPTIONS, keep_image=True))
    assert domain.changes == ["save", "start", "start"]
    assert domain.saved_image.exists()


def test_an_image_that_somebody_has_removed_is_no_proof(
    hypervisor: FakeHypervisor, domain: FakeDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = domain.save

    def save_and_lose_the_image(timeout: float) -> None:
        save(timeout)
        domain.managed_save = False

    monkeypatch.setattr(domain, "save", save_and_lose_the_image)
    with pytest.raises(ProofFailed, match="its guest has booted, as after a power loss"):
        save_and_restore(hypervisor, domain)
    with pytest.raises(ProofFailed, match="its guest has booted"):
        save_and_restore(hypervisor, domain, (Step.SAVE, Step.RESTORE))


def test_an_image_is_set_aside_for_a_while_only(tmp_path: Path) -> None:
    image = tmp_path / "web1.save"
    image.write_text("RAM", encoding="ascii")
    with set_aside(image):
        assert not image.exists()
    assert image.read_text("ascii") == "RAM"
    assert list(tmp_path.iterdir()) == [image]


@pytest.mark.parametrize(
    ("uri", "expected"),
    [("qemu:///system", "/var/lib/libvirt/qemu/save"), ("qemu:///session", "/home/x/.config/libvirt/qemu/save")],
)
def test_the_image_is_where_libvirt_puts_it(uri: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/home/x/.config")
    assert save_directory(uri) == Path(expected)
