# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest on its way to another hypervisor, and back: it is in one place whatever fails, and the errors say where."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils import _kept, _migrate
from ansible_collections.kvm.fleet.plugins.module_utils._domain import Domain, DomainState, Storage
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    AgentSilent,
    FleetError,
    HypervisorUnavailable,
    MigratedAway,
    MigrationFailed,
    ProofFailed,
)
from ansible_collections.kvm.fleet.plugins.module_utils._migrate import apply
from ansible_collections.kvm.fleet.plugins.module_utils._observe import observe
from ansible_collections.kvm.fleet.plugins.module_utils._power import (
    Migration,
    PowerOptions,
    PowerReport,
    Step,
    Strategy,
)
from tests.unit.fake_hypervisor import FakeDomain, FakeHypervisor, libvirt_failed

URI = "qemu+tls://there/system"
OPTIONS = PowerOptions(destinations=(URI,), storage=Storage.TRUSTED, migrate_timeout=60)
THERE = (Step.MIGRATE, Step.WAIT_FOR_AGENT)
AND_BACK = (Step.MIGRATE, Step.MIGRATE_BACK, Step.WAIT_FOR_AGENT)
COPY = replace(OPTIONS, storage=Storage.COPY)


@pytest.fixture
def domain(hypervisor: FakeHypervisor) -> FakeDomain:
    domain = hypervisor.add("web1")
    domain.add_snapshot("before", "mine")
    return domain


@pytest.fixture
def there(hypervisor: FakeHypervisor) -> FakeHypervisor:
    return hypervisor.beside(URI)


@pytest.fixture
def plain(hypervisor: FakeHypervisor) -> FakeDomain:
    return hypervisor.add("web1")


def image(hypervisor: FakeHypervisor) -> str:
    return str(hypervisor.image_directory / "web1.qcow2")


def go(
    hypervisor: FakeHypervisor,
    domain: FakeDomain,
    steps: tuple[Step, ...] = THERE,
    options: PowerOptions = OPTIONS,
    **calls: Any,
) -> PowerReport:
    return apply(hypervisor, domain, URI, steps, options, **calls)


def failure(
    hypervisor: FakeHypervisor, domain: FakeDomain, steps: tuple[Step, ...] = THERE, options: PowerOptions = OPTIONS
) -> FleetError:
    with pytest.raises(FleetError) as caught:
        go(hypervisor, domain, steps, options)
    return caught.value


def names(domain: FakeDomain) -> list[str]:
    return [snapshot.name for snapshot in domain.snapshots()]


def test_a_guest_that_is_migrated_is_there_and_no_more_here(
    hypervisor: FakeHypervisor, domain: FakeDomain, there: FakeHypervisor
) -> None:
    boot_id, pid = domain.boot_id, domain.pid
    told: list[PowerReport] = []
    moved: list[bool] = []
    report = go(hypervisor, domain, intend=told.append, moved=lambda: moved.append(hypervisor.signals_wait))
    assert (hypervisor.domains(), [found.name for found in there.domains()]) == ([], ["web1"])
    arrived = there.domain("web1")
    assert (arrived.state(), names(arrived), arrived.boot_id) == (DomainState.RUNNING, ["before"], boot_id)
    assert (report.strategy, report.migration) == (Strategy.MIGRATE, Migration(URI, came_back=False))
    assert (report.boot_id_before, report.boot_id_after) == (boot_id, boot_id)
    assert report.process_before is not None
    assert (report.process_before.pid, report.process_after) == (pid, None)
    assert report.off_for == arrived.stands_still
    assert report.longest_gap == domain.migration_takes  # of the fake's own beats
    assert (told, moved, hypervisor.signals_wait) == ([report], [True], False)
    assert arrived.beats is None


def test_a_guest_that_comes_back_is_on_another_process(
    hypervisor: FakeHypervisor, domain: FakeDomain, there: FakeHypervisor
) -> None:
    boot_id, pid = domain.boot_id, domain.pid
    report = go(hypervisor, domain, AND_BACK, moved=lambda: pytest.fail("it came back"))
    back = hypervisor.domain("web1")
    assert (there.domains(), names(back), back.boot_id) == ([], ["before"], boot_id)
    assert report.migration == Migration(URI, came_back=True)
    assert report.process_after is not None
    assert report.process_after.pid == back.pid != pid
    assert report.off_for == 2 * back.stands_still


@pytest.mark.parametrize(("steps", "home"), [(THERE, False), (AND_BACK, True)])
def test_a_guest_that_starts_at_a_boot_does_so_where_it_is(
    hypervisor: FakeHypervisor, domain: FakeDomain, there: FakeHypervisor, steps: tuple[Step, ...], *, home: bool
) -> None:
    domain.set_autostart(True)
    go(hypervisor, domain, steps)
    assert (hypervisor if home else there).domain("web1").autostart()


def test_a_migration_that_takes_too_long_leaves_the_guest_where_it_was(
    hypervisor: FakeHypervisor, domain: FakeDomain, there: FakeHypervisor
) -> None:
    domain.migration_takes = 61
    pid = domain.pid
    error = failure(hypervisor, domain)
    assert isinstance(error, MigrationFailed)
    assert "was not migrated to" in error.message
    assert "is running where it was: operation aborted" in error.message
    assert "moved_to" not in error.evidence
    assert (domain.state(), domain.pid, names(domain), domain.beats) == (DomainState.RUNNING, pid, ["before"], None)
    assert (there.domains(), hypervisor.signals_wait) == ([], False)


def test_a_destination_that_has_gone_since_it_was_looked_at_leaves_it_too(
    hypervisor: FakeHypervisor, domain: FakeDomain
) -> None:
    error = failure(hypervisor, domain)
    assert isinstance(error, MigrationFailed)
    assert "does not answer" in error.message
    assert (names(domain), "set_metadata snapshots" in domain.changes) == (["before"], False)


def test_a_guest_that_libvirt_has_left_paused_is_for_somebody_to_look_at(
    hypervisor: FakeHypervisor, domain: FakeDomain, there: FakeHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave_paused(*_arguments: object, **_options: object) -> Domain:
        domain.be(DomainState.PAUSED)
        raise libvirt_failed("operation failed")

    monkeypatch.setattr(domain, "migrate", leave_paused)
    error = failure(hypervisor, domain)
    assert "is paused where it was" in error.message
    assert "See that it does not run there" in error.remedy
    assert "virsh resume web1" in error.remedy
    assert there.domains() == []


@pytest.mark.parametrize("state", [DomainState.RUNNING, DomainState.PAUSED, DomainState.SHUT_OFF])
def test_a_guest_that_runs_in_two_places_is_no_failed_migration(
    hypervisor: FakeHypervisor,
    plain: FakeDomain,
    there: FakeHypervisor,
    monkeypatch: pytest.MonkeyPatch,
    state: DomainState,
) -> None:
    """libvirt has lost the answer of the destination, and had the guest go on here."""

    def run_in_both(to: FakeHypervisor, *_arguments: object, **_options: object) -> Domain:
        to.add("web1")
        to.made.add(image(hypervisor))
        plain.be(state)
        raise libvirt_failed("client socket is closed")

    monkeypatch.setattr(plain, "migrate", run_in_both)
    moved: list[bool] = []
    with pytest.raises(ProofFailed) as caught:
        go(hypervisor, plain, options=COPY, moved=lambda: moved.append(True))
    assert f"is in two places, {state.value.replace('_', ' ')} here and running at {URI}" in caught.value.message
    assert ("virsh destroy" in caught.value.remedy) is (state is not DomainState.SHUT_OFF)
    assert "moved_to" not in caught.value.evidence
    assert moved == [True], "what goes off here later is not to be started"
    assert there.made == {image(hypervisor)}


@pytest.mark.usefixtures("there")
def test_a_guest_that_came_back_and_still_runs_there_is_in_two_places(
    hypervisor: FakeHypervisor, plain: FakeDomain, there: FakeHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave = _migrate._Journey._leave

    def be_in_both(self: _migrate._Journey, to: FakeHypervisor) -> None:
        leave(self, to)
        hypervisor.add("web1")
        there.domain("web1").faults["migrate"] = libvirt_failed("client socket is closed")

    monkeypatch.setattr(_migrate._Journey, "_leave", be_in_both)
    error = failure(hypervisor, plain, AND_BACK, COPY)
    assert isinstance(error, ProofFailed)
    assert f"is in two places, running here and running at {URI}" in error.message
    assert there.made == {image(hypervisor)}


def test_a_destination_that_cannot_be_asked_afterwards_may_have_the_guest_and_keeps_its_disks(
    hypervisor: FakeHypervisor, plain: FakeDomain, there: FakeHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_the_other(to: FakeHypervisor, *_arguments: object, **_options: object) -> Domain:
        to.made.add(image(hypervisor))
        monkeypatch.setattr(hypervisor, "others", {})
        raise libvirt_failed("client socket is closed")

    monkeypatch.setattr(plain, "migrate", lose_the_other)
    error = failure(hypervisor, plain, options=COPY)
    assert isinstance(error, MigrationFailed)
    assert f"see that it is not at {URI}, too" in error.remedy
    assert f"copies of its disks may be left at {URI}" in error.remedy
    assert there.made == {image(hypervisor)}


def test_what_was_never_sent_has_left_no_copies(hypervisor: FakeHypervisor, plain: FakeDomain) -> None:
    error = failure(hypervisor, plain, options=COPY)
    assert isinstance(error, MigrationFailed)
    assert "copies" not in error.remedy


@pytest.mark.parametrize("method", ["set_metadata", "forget_snapshot"])
def test_a_guest_whose_snapshots_cannot_be_put_away_was_not_migrated(
    hypervisor: FakeHypervisor, domain: FakeDomain, there: FakeHypervisor, method: str
) -> None:
    domain.passing_faults[method] = libvirt_failed("no")
    assert isinstance(failure(hypervisor, domain), MigrationFailed)
    assert (names(domain), domain.metadata(_kept.NAMESPACE), domain.beats) == (["before"], None, None)
    assert there.domains() == []


def test_what_is_still_migrating_is_waited_for(
    hypervisor: FakeHypervisor, domain: FakeDomain, there: FakeHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_the_connection(*_arguments: object, **_options: object) -> Domain:
        domain.migrating = True
        hypervisor.clock.after(10, lambda: setattr(domain, "migrating", False))
        raise HypervisorUnavailable("the connection broke", remedy="Start libvirt.")

    began = hypervisor.clock.monotonic()
    monkeypatch.setattr(domain, "migrate", lose_the_connection)
    assert isinstance(failure(hypervisor, domain), MigrationFailed)
    assert hypervisor.clock.monotonic() - began >= 10
    assert there.domains() == []


def test_a_guest_that_has_arrived_though_libvirt_told_of_an_error_is_there(
    hypervisor: FakeHypervisor, domain: FakeDomain, there: FakeHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate = domain.migrate

    def arrive_and_fail(to: FakeHypervisor, timeout: float, storage: Storage, *, live: bool) -> Domain:
        migrate(to, timeout, storage, live=live)
        raise libvirt_failed("end of file while reading data")

    monkeypatch.setattr(domain, "migrate", arrive_and_fail)
    report = go(hypervisor, domain)
    assert report.migration == Migration(URI, came_back=False)
    assert names(there.domain("web1")) == ["before"]


def test_a_guest_that_has_left_and_that_nobody_can_be_asked_for_is_told(
    hypervisor: FakeHypervisor, domain: FakeDomain, there: FakeHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate = domain.migrate

    def arrive_and_vanish(to: FakeHypervisor, timeout: float, storage: Storage, *, live: bool) -> Domain:
        migrate(to, timeout, storage, live=live)
        hypervisor.others.clear()
        raise HypervisorUnavailable("the connection broke", remedy="Start libvirt.")

    monkeypatch.setattr(domain, "migrate", arrive_and_vanish)
    error = failure(hypervisor, domain)
    assert isinstance(error, ProofFailed)
    assert f"has left this hypervisor for {URI}, which cannot be asked for it" in error.message
    assert error.evidence["moved_to"] == URI
    assert [found.name for found in there.domains()] == ["web1"]


def test_a_guest_that_cannot_come_back_stays_and_the_error_says_where(
    hypervisor: FakeHypervisor, domain: FakeDomain, there: FakeHypervisor
) -> None:
    there.faults_on_arrival["migrate"] = libvirt_failed("no")
    moved: list[bool] = []
    with pytest.raises(MigratedAway) as caught:
        go(hypervisor, domain, AND_BACK, moved=lambda: moved.append(True))
    assert (hypervisor.domains(), names(there.domain("web1")), moved) == ([], ["before"], [True])
    assert (there.domain("web1").beats, there.domain("web1").agent.clock_offset) == (None, 0)
    assert caught.value.evidence["moved_to"] == URI
    assert (
        f"was migrated to {URI}, runs there on another QEMU, and could not be brought back: no" in caught.value.message
    )


def test_a_guest_whose_agent_falls_silent_is_told_with_where_it_is(
    hypervisor: FakeHypervisor, domain: FakeDomain, there: FakeHypervisor
) -> None:
    def fall_silent() -> None:
        domain.agent.silent = True

    with pytest.raises(AgentSilent) as caught:
        go(hypervisor, domain, moved=fall_silent)
    assert caught.value.evidence["moved_to"] == URI
    assert caught.value.remedy.endswith(f"The guest is at {URI}.")
    assert names(there.domain("web1")) == ["before"]


def test_a_guest_that_boots_meanwhile_has_not_been_migrated_as_it_ran(
    hypervisor: FakeHypervisor, domain: FakeDomain, there: FakeHypervisor
) -> None:
    with pytest.raises(ProofFailed, match="has booted meanwhile"):
        go(hypervisor, domain, moved=lambda: there.domain("web1").boot())


def test_what_is_still_defined_here_could_be_started_a_second_time(
    hypervisor: FakeHypervisor, domain: FakeDomain, there: FakeHypervisor
) -> None:
    def leave_it() -> None:
        hypervisor.add("web1", DomainState.SHUT_OFF)

    with pytest.raises(ProofFailed, match="is still defined here"):
        go(hypervisor, domain, moved=leave_it)
    assert [found.name for found in there.domains()] == ["web1"]


def test_snapshots_that_cannot_be_told_again_are_told_of_and_made_up_for_later(
    hypervisor: FakeHypervisor, domain: FakeDomain, there: FakeHypervisor
) -> None:
    there.faults_on_arrival["redefine_snapshot"] = libvirt_failed("no")
    report = go(hypervisor, domain)
    [warning] = report.warnings
    assert "libvirt was not told again of the snapshots and the autostart of 'web1'" in warning
    assert ": no)" in warning
    assert names(there.domain("web1")) == []


def test_a_guest_without_an_agent_is_proved_by_where_it_runs(
    hypervisor: FakeHypervisor, domain: FakeDomain, there: FakeHypervisor
) -> None:
    domain.agent.silent = True
    report = go(hypervisor, domain, (Step.MIGRATE,), replace(OPTIONS, agent_timeout=0))
    assert (report.boot_id_before, report.longest_gap) == (None, None)
    assert [found.name for found in there.domains()] == ["web1"]


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize(("emulated", "told"), [(False, ""), (True, " standing still")])
def test_a_guest_that_is_emulated_stands_still_and_has_its_clock_set(
    hypervisor: FakeHypervisor, domain: FakeDomain, monkeypatch: pytest.MonkeyPatch, *, emulated: bool, told: str
) -> None:
    found = observe(hypervisor, domain)
    looks = iter([replace(found, definition=replace(found.definition, emulated=emulated))])
    monkeypatch.setattr(_migrate, "observe", lambda *given: next(looks, None) or observe(*given))
    report = go(hypervisor, domain, AND_BACK)
    back = hypervisor.domain("web1")
    assert [change for change in back.changes if change.startswith("migrate")] == [f"migrate trusted{told}"] * 2
    lost = 2 * back.migration_takes if emulated else None
    assert (report.clock and report.clock.behind, back.agent.clock_offset) == (lost, 0)


# --- copies ---------------------------------------------------------------------------------------


def test_what_a_guest_leaves_behind_is_told_and_kept(
    hypervisor: FakeHypervisor, plain: FakeDomain, there: FakeHypervisor
) -> None:
    report = go(hypervisor, plain, options=COPY)
    assert report.migration == Migration(URI, came_back=False, left_behind=(image(hypervisor),))
    assert there.made == {image(hypervisor)}


def test_what_a_guest_has_left_behind_is_told_of_one_that_failed_after_it_had_left(
    hypervisor: FakeHypervisor, plain: FakeDomain, there: FakeHypervisor
) -> None:
    with pytest.raises(ProofFailed) as caught:
        go(hypervisor, plain, options=COPY, moved=lambda: there.domain("web1").boot())
    assert caught.value.evidence["left_behind"] == [image(hypervisor)]


def test_copies_are_removed_once_it_is_back(
    hypervisor: FakeHypervisor, plain: FakeDomain, there: FakeHypervisor
) -> None:
    report = go(hypervisor, plain, AND_BACK, COPY)
    assert report.migration == Migration(URI, came_back=True)
    assert there.made == set()


def test_copies_of_a_migration_that_failed_are_removed(
    hypervisor: FakeHypervisor, plain: FakeDomain, there: FakeHypervisor
) -> None:
    plain.migration_takes = 61
    assert isinstance(failure(hypervisor, plain, options=COPY), MigrationFailed)
    assert there.made == set()


def test_copies_stay_as_long_as_the_guest_may_run_on_them(
    hypervisor: FakeHypervisor, plain: FakeDomain, there: FakeHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    there.faults_on_arrival["migrate"] = libvirt_failed("no")
    assert isinstance(failure(hypervisor, plain, AND_BACK, COPY), MigratedAway)
    assert there.made == {image(hypervisor)}

    other = hypervisor.add("web1")
    there.remove("web1")
    there.made.clear()

    def leave_paused(to: FakeHypervisor, *_arguments: object, **_options: object) -> Domain:
        to.made.add(image(hypervisor))
        other.be(DomainState.PAUSED)
        raise libvirt_failed("no")

    monkeypatch.setattr(other, "migrate", leave_paused)
    failure(hypervisor, other, options=COPY)
    assert there.made == {image(hypervisor)}
