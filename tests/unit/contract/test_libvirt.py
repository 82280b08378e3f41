# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The libvirt adapter, against libvirt's own test driver: the contract, events, and the table of errors."""

from __future__ import annotations

import gc
import importlib
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

import libvirt
import pytest

from ansible_collections.kvm.fleet.plugins.module_utils import _libvirt
from ansible_collections.kvm.fleet.plugins.module_utils._clock import Deadline, SystemClock
from ansible_collections.kvm.fleet.plugins.module_utils._domain import DomainState, Hypervisor, ShutdownMethod
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    AgentCommandFailed,
    AgentSilent,
    DomainBusy,
    DomainNotFound,
    DomainNotRunning,
    FleetError,
    HypervisorUnavailable,
    InvalidRequest,
    LibvirtFailed,
    NoAgentChannel,
    RemoteUriRefused,
    SnapshotNotFound,
)
from ansible_collections.kvm.fleet.plugins.module_utils._libvirt import (
    LibvirtDomain,
    LibvirtHypervisor,
    open_hypervisor,
    require_local,
)
from ansible_collections.kvm.fleet.plugins.module_utils._observe import observe_domains
from ansible_collections.kvm.fleet.plugins.module_utils._snapshot_xml import build_snapshot
from tests.unit.contract.hypervisor import NASTY_NAMES, HypervisorContract

TRIAL = "kvm-fleet-trial-20260301020000-0badcafe"


def uuid_of(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


def domain_xml(name: str, facts: str = "") -> str:
    """A running domain; the facts are told to the test driver alone."""
    return (
        "<domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>"
        f"<name>{escape(name)}</name><uuid>{uuid_of(name)}</uuid><memory unit='MiB'>512</memory>"
        f"<os><type>hvm</type></os>{facts}</domain>"
    )


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """Leads to a hypervisor of libvirt's test driver that exists for one connection only."""
    node = tmp_path / "node.xml"
    domains = [domain_xml(name) for name in ("vm1", "vm10", *NASTY_NAMES)]
    domains.append(domain_xml("transient", "<test:transient/>"))
    domains.append(domain_xml(TRIAL))
    domains.append(domain_xml("saved", "<test:runstate>5</test:runstate><test:hasmanagedsave/>"))
    node.write_text(f"<node>{''.join(domains)}</node>", encoding="utf-8")
    return f"test://{node}"


@pytest.fixture(autouse=True)
def _nothing_is_collected() -> Iterator[None]:
    """Handles of earlier tests wait to be collected. Doing that makes libvirt forget its last error.

    Where it happens just as libvirt-python makes an exception, that exception has no code.
    """
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def libvirtd(uri: str) -> Iterator[LibvirtHypervisor]:
    with open_hypervisor(uri) as hypervisor:
        yield hypervisor


class TestLibvirt(HypervisorContract):
    @pytest.fixture
    def port(self, libvirtd: LibvirtHypervisor) -> Hypervisor:
        return libvirtd


# --- connecting ----------------------------------------------------------------------------------


@pytest.mark.parametrize("uri", ["qemu:///system", "qemu:///session", "qemu+unix:///system", "test:///default"])
def test_a_local_uri_is_accepted(uri: str) -> None:
    require_local(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "qemu+ssh://root@other/system",
        "qemu+ssh:///system",
        "qemu+tcp:///system",
        "qemu+tls://other/system",
        "qemu://other/system",
        "qemu+unix://other/system",
        "qemu+ext:///system?command=ssh",
        "qemu:system",
        "/system",
        "",
        " qemu:///system",
        "QEMU:///system",
    ],
)
def test_a_uri_that_leads_elsewhere_is_refused(uri: str) -> None:
    with pytest.raises(RemoteUriRefused) as raised:
        require_local(uri)
    assert raised.value.message == f"{uri!r} is not a local libvirt URI"


def test_a_remote_uri_is_refused_before_anything_is_opened() -> None:
    with pytest.raises(RemoteUriRefused), open_hypervisor("test+ssh://other/default"):
        pytest.fail("opened")


@pytest.mark.parametrize("uri", ["nosuch:///", "test:///no/such/file.xml"])
def test_a_libvirt_that_does_not_answer_is_unavailable(uri: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(HypervisorUnavailable) as raised, open_hypervisor(uri):
        pytest.fail("opened")
    assert raised.value.message.startswith(f"libvirt does not answer at {uri}: ")
    assert raised.value.transient
    assert isinstance(raised.value.evidence["libvirt_code"], int)
    assert "libvirt: " not in capfd.readouterr().err, "libvirt prints its errors itself unless told not to"


def test_a_name_that_c_would_cut_short_is_refused(libvirtd: LibvirtHypervisor) -> None:
    with pytest.raises(InvalidRequest):
        libvirtd.domain("vm1\0vm10")


@pytest.mark.parametrize("count", [1, 40])
def test_libvirt_is_asked_a_few_questions_about_all_domains_and_one_about_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    asked: Counter[str] = Counter()
    node = tmp_path / "many.xml"
    node.write_text(f"<node>{''.join(domain_xml(f'vm{number}') for number in range(count))}</node>", encoding="utf-8")
    with open_hypervisor(f"test://{node}") as hypervisor:
        hypervisor.domain("vm0").create_snapshot(build_snapshot("a", "about a"))
        monkeypatch.setattr("libvirt.libvirtmod", Counting(importlib.import_module("libvirtmod"), asked))
        observed = observe_domains(hypervisor, None, snapshots=False)
        assert len(observed) == count
        told_by_the_handle = ("virDomainGetName", "virDomainGetUUIDString", "virDomainFree")
        assert {name: number for name, number in asked.items() if name not in told_by_the_handle} == {
            "virConnectGetAllDomainStats": 1,
            "virConnectListAllDomains": 3,
            "virDomainGetXMLDesc": count,
        }
        asked.clear()
        observe_domains(hypervisor, None)
        assert asked["virDomainListAllSnapshots"] == 1


class Counting:
    """libvirt's C functions, counted by their names as they are called."""

    def __init__(self, functions: object, asked: Counter[str]) -> None:
        self._functions = functions
        self._asked = asked

    def __getattr__(self, name: str) -> object:
        self._asked[name] += 1
        return getattr(self._functions, name)


# --- a libvirt that is restarted -----------------------------------------------------------------


@pytest.fixture
def broken(libvirtd: LibvirtHypervisor) -> LibvirtDomain:
    """A domain whose connection has broken, as it does when libvirt is restarted."""
    return domain_behind(libvirtd, Handle(libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_RPC))


def test_a_question_is_asked_again_over_a_new_connection(broken: LibvirtDomain) -> None:
    assert broken.state() is DomainState.RUNNING
    assert broken.is_persistent()


def test_domains_are_asked_for_again_over_a_new_connection(
    libvirtd: LibvirtHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {domain.name for domain in libvirtd.domains()}
    monkeypatch.setattr(libvirtd, "_connection", Handle(libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_RPC))
    assert {domain.name for domain in libvirtd.domains()} == names != set()


def test_a_connection_that_has_broken_before_a_change_is_opened_anew_for_it(broken: LibvirtDomain) -> None:
    broken.destroy()
    assert broken.state() is DomainState.SHUT_OFF


def test_a_change_is_not_repeated_and_the_connection_works_again(libvirtd: LibvirtHypervisor) -> None:
    breaking = domain_behind(libvirtd, RunningHandle(libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_RPC))
    with pytest.raises(HypervisorUnavailable, match="the connection to libvirt broke") as raised:
        breaking.destroy()
    assert raised.value.transient
    assert breaking.state() is DomainState.RUNNING


def test_an_answer_that_is_too_long_is_no_broken_connection(libvirtd: LibvirtHypervisor) -> None:
    domain = domain_behind(libvirtd, Handle(libvirt.VIR_ERR_RPC, libvirt.VIR_FROM_RPC))
    with pytest.raises(LibvirtFailed):
        domain.xml()


def test_a_libvirt_that_stays_away_is_given_up(
    broken: LibvirtDomain, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_libvirt, "REOPEN_SECONDS", 0)
    Path(uri.removeprefix("test://")).unlink()
    with pytest.raises(HypervisorUnavailable, match="libvirt does not answer at "):
        broken.state()


def test_who_is_patient_waits_for_a_libvirt_that_is_being_restarted(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, away = Path(uri.removeprefix("test://")), tmp_path / "away"
    node.rename(away)
    with pytest.raises(HypervisorUnavailable), open_hypervisor(uri):
        pytest.fail("opened")
    monkeypatch.setattr(SystemClock, "wait", lambda _clock, _seconds: away.rename(node))
    with open_hypervisor(uri, patient=True) as hypervisor:
        assert hypervisor.domain("vm1").state() is DomainState.RUNNING


# --- events --------------------------------------------------------------------------------------


def test_a_wait_ends_by_itself(libvirtd: LibvirtHypervisor) -> None:
    deadline = Deadline(libvirtd.clock, 0.05)
    libvirtd.clock.wait(0.05)
    assert deadline.passed


def test_an_event_ends_a_wait(libvirtd: LibvirtHypervisor) -> None:
    deadline = Deadline(libvirtd.clock, 600)
    libvirtd.domain("vm1").destroy()
    libvirtd.clock.wait(600)
    assert not deadline.passed


# --- errors --------------------------------------------------------------------------------------


def test_a_missing_domain_is_said_with_those_there_are(libvirtd: LibvirtHypervisor) -> None:
    with pytest.raises(DomainNotFound) as raised:
        libvirtd.domain("vm")
    assert raised.value.message == f"no domain is named 'vm' on {libvirtd.uri}"
    assert raised.value.evidence == {"domains": sorted(["saved", "transient", "vm1", "vm10", *NASTY_NAMES])}


def test_a_domain_that_vanishes_is_not_found(libvirtd: LibvirtHypervisor) -> None:
    domain = libvirtd.domain("transient")
    domain.destroy()
    for ask in (domain.state, domain.xml, domain.is_persistent, domain.snapshots, domain.start, domain.destroy):
        with pytest.raises(DomainNotFound) as raised:
            ask()
        assert raised.value.evidence["libvirt_code"] == libvirt.VIR_ERR_NO_DOMAIN


def test_a_transient_domain_and_one_with_a_saved_image_are_told(libvirtd: LibvirtHypervisor) -> None:
    domains = [libvirtd.domain(name) for name in ("vm1", "transient", "saved")]
    assert [domain.is_persistent() for domain in domains] == [True, False, True]
    assert [domain.has_managed_save() for domain in domains] == [False, False, True]


def test_a_machine_that_tries_qemu_is_no_guest(libvirtd: LibvirtHypervisor) -> None:
    assert [machine.name for machine in libvirtd.trials()] == [TRIAL]
    assert TRIAL not in {domain.name for domain in libvirtd.domains()}
    assert TRIAL not in {surveyed.domain.name for surveyed in libvirtd.survey()}


def test_an_error_without_a_name_of_its_own_keeps_libvirts_words(libvirtd: LibvirtHypervisor) -> None:
    with pytest.raises(LibvirtFailed, match="unsupported flags") as raised:
        libvirtd.domain("vm1").shutdown(ShutdownMethod.ACPI)
    assert raised.value.evidence["libvirt_code"] == libvirt.VIR_ERR_INVALID_ARG


def test_an_agent_that_a_driver_has_no_word_for_has_failed(libvirtd: LibvirtHypervisor) -> None:
    with pytest.raises(AgentCommandFailed):
        libvirtd.domain("vm1").exchange('{"execute": "guest-ping"}', 1)


class Handle:
    """A domain's handle whose every call fails with one of libvirt's errors."""

    def __init__(self, code: int, domain: int) -> None:
        self._error = libvirt.libvirtError("what libvirt says")
        self._error.err = (code, domain, "what libvirt says", 2, "", None, None, -1, -1)

    def name(self) -> str:
        return "vm1"

    def UUIDString(self) -> str:
        return uuid_of("vm1")

    def __getattr__(self, _call: str) -> object:
        raise self._error


class RunningHandle(Handle):
    """One that still tells the domain's state."""

    def state(self) -> list[int]:
        return [libvirt.VIR_DOMAIN_RUNNING, 0]


BROUGHT_BY_LIBVIRT_11_2 = {"VIR_ERR_AGENT_COMMAND_TIMEOUT": 112, "VIR_ERR_AGENT_COMMAND_FAILED": 113}
ERRORS_OF_THE_AGENT: list[tuple[str, type[FleetError]]] = [
    ("VIR_ERR_OPERATION_INVALID", DomainNotRunning),
    ("VIR_ERR_ARGUMENT_UNSUPPORTED", NoAgentChannel),
    ("VIR_ERR_AGENT_UNRESPONSIVE", AgentSilent),
    ("VIR_ERR_AGENT_UNSYNCED", AgentSilent),
    ("VIR_ERR_AGENT_COMMAND_TIMEOUT", AgentSilent),
    ("VIR_ERR_AGENT_COMMAND_FAILED", AgentCommandFailed),
    ("VIR_ERR_INTERNAL_ERROR", AgentCommandFailed),
    ("VIR_ERR_NO_DOMAIN", DomainNotFound),
]


@pytest.mark.parametrize(("code", "kind"), ERRORS_OF_THE_AGENT)
def test_an_error_of_the_agent_is_told_by_its_code(
    libvirtd: LibvirtHypervisor, monkeypatch: pytest.MonkeyPatch, code: str, kind: type[FleetError]
) -> None:
    number = getattr(libvirt, code, BROUGHT_BY_LIBVIRT_11_2.get(code))
    assert number is not None
    monkeypatch.setattr(libvirt, code, number, raising=False)
    handle = RunningHandle(number, libvirt.VIR_FROM_QEMU)

    def fail(*_arguments: object) -> str:
        raise handle._error

    monkeypatch.setattr("libvirt_qemu.qemuAgentCommand", fail)
    with pytest.raises(kind) as raised:
        domain_behind(libvirtd, handle).exchange("{}", 1)
    assert raised.type is kind
    assert raised.value.evidence == {"libvirt_code": number, "libvirt_domain": libvirt.VIR_FROM_QEMU}


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("VIR_ERR_NO_DOMAIN", DomainNotFound),
        ("VIR_ERR_NO_DOMAIN_SNAPSHOT", SnapshotNotFound),
        ("VIR_ERR_OPERATION_TIMEOUT", DomainBusy),
        ("VIR_ERR_OPERATION_INVALID", LibvirtFailed),
        ("VIR_ERR_INTERNAL_ERROR", LibvirtFailed),
    ],
)
def test_any_other_error_is_told_by_its_code(libvirtd: LibvirtHypervisor, code: str, kind: type[FleetError]) -> None:
    domain = domain_behind(libvirtd, Handle(getattr(libvirt, code), libvirt.VIR_FROM_QEMU))
    for ask in (domain.state, domain.start, domain.memory_bytes, domain.has_managed_save):
        with pytest.raises(kind) as raised:
            ask()
        assert raised.type is kind


def test_a_request_to_shut_down_finds_a_domain_that_went_off(libvirtd: LibvirtHypervisor) -> None:
    domain = domain_behind(libvirtd, RunningHandle(libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_FROM_QEMU))
    for method in ShutdownMethod:
        with pytest.raises(DomainNotRunning):
            domain.shutdown(method)


def domain_behind(hypervisor: LibvirtHypervisor, handle: Handle) -> LibvirtDomain:
    return LibvirtDomain(hypervisor, handle)


@pytest.mark.parametrize(
    ("number", "state"),
    [
        (libvirt.VIR_DOMAIN_NOSTATE, DomainState.NO_STATE),
        (libvirt.VIR_DOMAIN_RUNNING, DomainState.RUNNING),
        (libvirt.VIR_DOMAIN_BLOCKED, DomainState.BLOCKED),
        (libvirt.VIR_DOMAIN_PAUSED, DomainState.PAUSED),
        (libvirt.VIR_DOMAIN_SHUTDOWN, DomainState.SHUTTING_DOWN),
        (libvirt.VIR_DOMAIN_SHUTOFF, DomainState.SHUT_OFF),
        (libvirt.VIR_DOMAIN_CRASHED, DomainState.CRASHED),
        (libvirt.VIR_DOMAIN_PMSUSPENDED, DomainState.SUSPENDED),
    ],
)
def test_each_state_of_libvirt_has_its_name(libvirtd: LibvirtHypervisor, number: int, state: DomainState) -> None:
    assert state_of(libvirtd, number) is state


def test_a_state_that_libvirt_may_add_one_day_is_none(libvirtd: LibvirtHypervisor) -> None:
    assert state_of(libvirtd, 99) is DomainState.NO_STATE


def state_of(hypervisor: LibvirtHypervisor, number: int) -> DomainState:
    class InState(Handle):
        def state(self) -> list[int]:
            return [number, 0]

    return domain_behind(hypervisor, InState(0, 0)).state()


OUT, IN = libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT, libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN
RUNNING = (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_BOOTED)


@pytest.mark.parametrize(
    ("state", "job", "migrating"),
    [
        (RUNNING, {}, False),
        (RUNNING, {"operation": libvirt.VIR_DOMAIN_JOB_OPERATION_SAVE}, False),
        (RUNNING, {"operation": OUT}, True),
        (RUNNING, {"operation": IN}, True),
        ((libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY), {}, True),
        ((libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER), {}, False),
        ((libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION), {}, True),
        ((libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY), {}, True),
    ],
)
def test_a_migration_is_told_by_the_state_and_by_the_job(
    libvirtd: LibvirtHypervisor, state: tuple[int, int], job: dict[str, int], migrating: bool
) -> None:
    class Working(Handle):
        def state(self) -> list[int]:
            return list(state)

        def jobStats(self) -> dict[str, int]:
            return job

    assert domain_behind(libvirtd, Working(0, 0)).is_migrating() is migrating
