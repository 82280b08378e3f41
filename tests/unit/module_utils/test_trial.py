# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""QEMU is tried on machines that nobody misses, of the kinds that the guests are of."""

from __future__ import annotations

from datetime import timedelta
from xml.etree import ElementTree

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._domain import TRIAL_NAME, DomainState
from ansible_collections.kvm.fleet.plugins.module_utils._domain_xml import Kind, kind_of
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    DomainNotFound,
    HypervisorUnavailable,
    QemuTrialFailed,
)
from ansible_collections.kvm.fleet.plugins.module_utils._trial import (
    OLD,
    kinds_of,
    old,
    trial_name,
    trial_xml,
    try_kind,
)
from tests.unit.fake_hypervisor import FakeHypervisor

DEFINITION = """\
<domain type='kvm'><name>web1</name><memory unit='KiB'>8388608</memory><vcpu>8</vcpu>
<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><boot dev='hd'/></os>
<cpu mode='custom' match='exact'>
  <model fallback='forbid'>Skylake</model><topology sockets='1' cores='8' threads='1'/>
  <feature policy='require' name='vmx'/><numa><cell id='0' cpus='0-7' memory='8388608'/></numa>
</cpu>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator><disk type='file'><source file='/d'/></disk></devices>
</domain>"""
PLAIN = Kind("qemu", None, "", "", "")


def test_a_kind_is_what_qemu_has_to_start_and_nothing_of_the_guests_size() -> None:
    kind = kind_of(DEFINITION)
    assert kind.facts() == {
        "virtualization": "kvm",
        "emulator": "/usr/bin/qemu-system-x86_64",
        "architecture": "x86_64",
        "machine": "pc-q35-7.2",
        "processor": "Skylake",
    }
    assert kind_of(DEFINITION.replace("8388608", "4194304").replace("<vcpu>8", "<vcpu>2")) == kind
    assert kind_of(DEFINITION.replace("vmx", "svm")) != kind
    assert kind_of("<domain type='qemu'/>") == PLAIN


@pytest.mark.parametrize(("cpu", "processor"), [("", ""), ("<cpu mode='host-model'/>", "host-model")])
def test_a_processor_goes_by_its_model_or_its_mode(cpu: str, processor: str) -> None:
    assert kind_of(f"<domain type='kvm'>{cpu}</domain>").processor == processor


def test_the_machine_has_nothing_that_is_the_guests() -> None:
    root = ElementTree.fromstring(trial_xml(kind_of(DEFINITION), "name"))
    assert (root.get("type"), root.findtext("name"), root.findtext("memory"), root.findtext("vcpu")) == (
        *("kvm", "name"),
        *("64", "1"),
    )
    kind = root.find("./os/type")
    assert kind is not None
    assert kind.attrib == {"arch": "x86_64", "machine": "pc-q35-7.2"}
    assert root.findtext("./cpu/model") == "Skylake"
    assert root.find("./cpu/feature") is not None
    for part in ("./cpu/topology", "./cpu/numa", "./devices/disk", "./devices/interface", "uuid"):
        assert root.find(part) is None
    bare = ElementTree.fromstring(trial_xml(PLAIN, "name"))
    assert bare.find("cpu") is None
    assert bare.find("./devices/emulator") is None


def test_each_kind_is_tried_once(hypervisor: FakeHypervisor) -> None:
    domains = [hypervisor.add(name) for name in ("web1", "web2")]
    kinds = kinds_of(domains)
    assert list(kinds.values()) == [["web1", "web2"]]
    for kind, guests in kinds.items():
        try_kind(hypervisor, kind, guests)
    [xml] = hypervisor.tried
    assert f"<emulator>{hypervisor.emulator}</emulator>" in xml
    assert list(hypervisor.trials()) == []
    assert [domain.name for domain in hypervisor.domains()] == ["web1", "web2"]


def test_a_domain_that_vanishes_is_of_no_kind(hypervisor: FakeHypervisor) -> None:
    domain = hypervisor.add("web1")
    domain.faults["persistent_xml"] = DomainNotFound("no domain is named 'web1'", remedy="Compare with the list.")
    assert kinds_of([domain]) == {}


def test_a_machine_that_is_refused_is_told_in_libvirts_words(hypervisor: FakeHypervisor) -> None:
    hypervisor.refuses_machines = True
    with pytest.raises(QemuTrialFailed, match="like that of web1, web2") as raised:
        try_kind(hypervisor, kind_of(DEFINITION), ["web1", "web2"])
    assert raised.value.evidence["guests"] == ["web1", "web2"]
    assert "unsupported configuration" in raised.value.message
    assert "No guest was touched" in raised.value.remedy


def test_a_machine_that_does_not_last_is_no_success(hypervisor: FakeHypervisor) -> None:
    hypervisor.machines_go_off = True
    with pytest.raises(QemuTrialFailed, match="it was started and went off at once"):
        try_kind(hypervisor, PLAIN, ["web1"])
    assert list(hypervisor.trials()) == []


def test_a_machine_that_does_not_run_is_ended_and_told(
    hypervisor: FakeHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = hypervisor.start_for_now

    def start_paused(xml: str) -> object:
        domain = start(xml)
        domain.be(DomainState.PAUSED)
        return domain

    monkeypatch.setattr(hypervisor, "start_for_now", start_paused)
    with pytest.raises(QemuTrialFailed, match="it was started and is paused"):
        try_kind(hypervisor, PLAIN, ["web1"])
    assert list(hypervisor.trials()) == []


def test_a_libvirt_that_is_away_says_nothing_of_qemu(
    hypervisor: FakeHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(_xml: str) -> None:
        raise HypervisorUnavailable("the connection to libvirt broke", remedy="Start libvirt.")

    monkeypatch.setattr(hypervisor, "start_for_now", unavailable)
    with pytest.raises(HypervisorUnavailable):
        try_kind(hypervisor, PLAIN, ["web1"])


def test_only_what_was_left_long_ago_is_ended(hypervisor: FakeHypervisor) -> None:
    now = hypervisor.clock.now()
    left, young = trial_name(now - OLD - timedelta(seconds=1)), trial_name(now - OLD + timedelta(seconds=60))
    for name in (left, young):
        assert TRIAL_NAME.fullmatch(name)
        hypervisor.add(name)
    hypervisor.add("kvm-fleet-trial-of-mine")
    assert [machine.name for machine in old(hypervisor)] == [left]
    assert [domain.name for domain in hypervisor.domains()] == ["kvm-fleet-trial-of-mine"]
