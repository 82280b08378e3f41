# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which kind of snapshot fits a guest, as a table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._domain_xml import Disk, Nvram, parse_definition
from ansible_collections.kvm.fleet.plugins.module_utils._errors import SnapshotImpossible
from ansible_collections.kvm.fleet.plugins.module_utils._snapshot_policy import (
    Room,
    SnapshotFacts,
    Way,
    choose,
    growth,
)

MIB, GIB = 1 << 20, 1 << 30
QCOW2, RAW = Disk("vda", "qcow2", "/i/a.qcow2"), Disk("vdb", "raw", "/i/b.raw")
BLOCK = Disk("vdc", "raw", None, "/dev/vg/c", "block")
ROOM = Room("/i/a.qcow2", 20 * GIB, "here", 100 * GIB)
FACTS = SnapshotFacts("web1", True, (QCOW2,), (ROOM,), False, (), 512 * MIB)
MIXED: dict[str, Any] = {"disks": (QCOW2, RAW), "rooms": (ROOM, replace(ROOM, file="/i/b.raw"))}
FULL: dict[str, Any] = {"rooms": (replace(ROOM, free=(512 + 64) * MIB - 1),)}
FULLER: dict[str, Any] = {"rooms": (replace(ROOM, free=64 * MIB - 1),)}
UEFI: dict[str, Any] = {"pflash_firmware": True, "nvram": Nvram("/v/web1.fd", "raw")}
UEFI_QCOW2: dict[str, Any] = {**UEFI, "nvram": Nvram("/v/web1.fd", "qcow2")}
GPU: dict[str, Any] = {"unsaveable": ("hostdev pci",)}
TPM: dict[str, Any] = {"tpm": True}
LOUD: dict[str, Any] = {"quiesce_problem": "the guest agent does not allow guest-fsfreeze-freeze"}
OFF: dict[str, Any] = {"active": False}

INSIDE_LIVE, BESIDE_LIVE = (Way.LIVE, False), (Way.EXTERNAL_LIVE, True)
BESIDE, INSIDE_OFF, BESIDE_OFF = (Way.EXTERNAL, True), (Way.OFFLINE, False), (Way.OFFLINE, True)


@pytest.mark.parametrize(
    ("facts", "asked", "chosen"),
    [
        ({}, "auto", INSIDE_LIVE),
        ({}, "live", INSIDE_LIVE),
        ({}, "external_live", BESIDE_LIVE),
        ({}, "external", BESIDE),
        ({}, "offline", INSIDE_OFF),
        ({"rooms": (replace(ROOM, free=None),)}, "auto", INSIDE_LIVE),
        (FULL, "auto", INSIDE_OFF),
        (MIXED, "auto", BESIDE_LIVE),
        (MIXED, "offline", BESIDE_OFF),
        (UEFI, "auto", BESIDE_LIVE),
        ({**UEFI, **TPM}, "auto", BESIDE_LIVE),
        (TPM, "auto", INSIDE_LIVE),
        (GPU, "auto", BESIDE),
        (GPU, "online", BESIDE),
        ({**GPU, **LOUD}, "auto", INSIDE_OFF),
        ({**GPU, **LOUD, **MIXED}, "auto", BESIDE_OFF),
        ({**GPU, **UEFI_QCOW2}, "auto", BESIDE_OFF),
        ({**UEFI, "tpm": True}, "online", BESIDE_LIVE),
        ({**MIXED, **LOUD}, "auto", BESIDE_LIVE),
        ({"internal": ("theirs",)}, "auto", INSIDE_LIVE),
        ({"internal": ("theirs",), **GPU}, "auto", INSIDE_OFF),
        ({"external": ("ours",)}, "auto", BESIDE_LIVE),
        ({"external": ("ours",)}, "offline", BESIDE_OFF),
        ({"persistent": False}, "auto", INSIDE_LIVE),
        (OFF, "auto", INSIDE_OFF),
        (OFF, "live", INSIDE_OFF),
        (OFF, "external", INSIDE_OFF),
        ({**OFF, **MIXED}, "live", BESIDE_OFF),
        ({**OFF, **UEFI_QCOW2}, "live", BESIDE_OFF),
        ({**OFF, **FULL, **GPU}, "live", INSIDE_OFF),
        ({**OFF, "managed_save": True}, "live", INSIDE_OFF),
    ],
)
def test_the_gentlest_way_that_is_open_is_taken(facts: dict[str, Any], asked: str, chosen: tuple[Way, bool]) -> None:
    choice = choose(replace(FACTS, **facts), asked)
    assert (choice.way, choice.layers) == chosen


def test_the_ways_that_were_closed_are_told() -> None:
    choice = choose(replace(FACTS, **MIXED, **GPU), "auto")
    assert dict(choice.closed) == {
        Way.LIVE: "disk vdb of domain 'web1' is raw, which cannot hold a snapshot",
        Way.EXTERNAL_LIVE: "domain 'web1' has hostdev pci, with which its RAM cannot be stored",
    }


def refused(facts: dict[str, Any], asked: str) -> SnapshotImpossible:
    with pytest.raises(SnapshotImpossible) as raised:
        choose(replace(FACTS, **facts), asked)
    assert raised.value.remedy.startswith("Go without a snapshot on purpose (upgrade_snapshot: false), or ")
    return raised.value


HAS_TPM = "domain 'web1' has a TPM, whose state no snapshot holds that is without RAM"
LAYERS = "the layers of an external snapshot of domain 'web1'"
NO_DISK = "domain 'web1' has no writable disk that could hold a snapshot"


@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize("asked", ["auto", "online", "live", "external", "external_live", "offline"])
def test_one_cause_is_told_as_it_is(active: bool, asked: str) -> None:
    error = refused({"disks": (), "rooms": (), "active": active}, asked)
    assert error.message == NO_DISK


@pytest.mark.parametrize(
    ("facts", "asked", "message", "evidence"),
    [
        (MIXED, "live", "disk vdb of domain 'web1' is raw, which cannot hold a snapshot", {"disk": "vdb"}),
        (UEFI, "live", "domain 'web1' boots from UEFI firmware, which internal snapshots do not cover", {}),
        (
            GPU,
            "live",
            "domain 'web1' has hostdev pci, with which its RAM cannot be stored",
            {"devices": ["hostdev pci"]},
        ),
        (
            FULL,
            "live",
            (
                "a live snapshot of domain 'web1' needs 576 MiB beside /i/a.qcow2, 512 MiB of these for its RAM, where "
                "575 MiB are free"
            ),
            {"needed_bytes": 576 * MIB, "free_bytes": 576 * MIB - 1},
        ),
        (
            FULLER,
            "offline",
            (
                "a snapshot of domain 'web1' needs 64 MiB beside /i/a.qcow2, for what the guest writes after it, where "
                f"63 MiB are free; {LAYERS} need 2048 MiB beside /i/a.qcow2, where 63 MiB are free"
            ),
            {"needed_bytes": 2 * GIB},
        ),
        (
            {"external": ("ours",)},
            "live",
            "domain 'web1' has the external snapshot 'ours', in whose layers an internal one would be lost",
            {"snapshots": ["ours"]},
        ),
        (
            {"internal": ("theirs",)},
            "external",
            (
                "domain 'web1' has the internal snapshot 'theirs': a revert to that changes what an external one "
                "stands on"
            ),
            {"snapshots": ["theirs"]},
        ),
        (
            FULL,
            "external",
            f"{LAYERS} need 2048 MiB beside /i/a.qcow2, where 575 MiB are free",
            {"needed_bytes": 2 * GIB, "free_bytes": 576 * MIB - 1},
        ),
        (
            {"rooms": (replace(ROOM, free=2 * GIB),)},
            "external_live",
            f"{LAYERS} need 2560 MiB beside /i/a.qcow2, where 2048 MiB are free",
            {"needed_bytes": 2 * GIB + 512 * MIB},
        ),
        (TPM, "external", HAS_TPM, {}),
        (TPM, "offline", HAS_TPM, {}),
        (
            UEFI_QCOW2,
            "external",
            "the UEFI variables of domain 'web1' are in a qcow2 file, which cannot be copied while QEMU has it open",
            {"file": "/v/web1.fd"},
        ),
        (
            LOUD,
            "external",
            "the file systems of domain 'web1' cannot be frozen: the guest agent does not allow guest-fsfreeze-freeze",
            {},
        ),
        ({"persistent": False}, "external", "domain 'web1' is transient", {}),
        (
            {"layers_known": False},
            "external",
            "the QEMU of domain 'web1' cannot put layers over disks, as libvirt's capabilities say",
            {},
        ),
        (
            {"disks": (BLOCK,), "rooms": (Room(None, 0, "", None),)},
            "external",
            "disk vdc of domain 'web1' is on block, beside which no layer can be put",
            {"disk": "vdc", "file": "/dev/vg/c"},
        ),
        (
            {"disks": (replace(QCOW2, encrypted=True),)},
            "external",
            "disk vda of domain 'web1' is encrypted by QEMU, which layers are not made for",
            {"disk": "vda"},
        ),
        (
            {"disks": (replace(QCOW2, shared=True),)},
            "external",
            "disk vda of domain 'web1' is shared with other guests",
            {"disk": "vda"},
        ),
        (
            {"disks": (replace(QCOW2, format="vmdk"),)},
            "external",
            "disk vda of domain 'web1' is vmdk, which no layer is put over",
            {"disk": "vda"},
        ),
    ],
)
def test_what_is_in_the_way_of_the_one_that_was_asked_for_is_named(
    facts: dict[str, Any], asked: str, message: str, evidence: dict[str, Any]
) -> None:
    error = refused(facts, asked)
    assert error.message == message
    assert {key: error.evidence[key] for key in evidence} == evidence
    assert error.evidence["closed"] == {asked: message}
    assert "upgrade_snapshot_way: auto, with an upgrade_restart and an upgrade_strategy" in error.remedy


def test_where_no_way_is_open_each_is_named_with_what_closes_it() -> None:
    error = refused({"disks": (QCOW2, BLOCK), "rooms": (ROOM, Room(None, 0, "", None)), **TPM}, "auto")
    raw, block = (
        "disk vdc of domain 'web1' is raw, which cannot hold a snapshot",
        "disk vdc of domain 'web1' is on block, beside which no layer can be put",
    )
    assert error.message == (
        f"no way is open to make a snapshot of domain 'web1'. live: {raw}; external_live, external: {block}; "
        f"offline: {raw}; {block}"
    )
    assert error.evidence["closed"] == {
        "live": raw,
        "external_live": block,
        "external": block,
        "offline": f"{raw}; {block}",
    }
    assert "convert the disk" in error.remedy
    assert "upgrade_snapshot_way" not in error.remedy


def test_a_managed_save_would_write_below_layers() -> None:
    assert "managed save image" in refused({**OFF, **MIXED, "managed_save": True}, "auto").message


def test_variables_of_which_nobody_tells_are_not_forgotten() -> None:
    unknown = {**UEFI, "nvram": None}
    assert "does not tell while it is off" in refused({**OFF, **unknown}, "auto").message
    running = refused({**MIXED, **unknown}, "external")
    assert "its definition names no file of its variables" in running.message
    assert "start it" not in running.remedy


@pytest.mark.parametrize(("size", "room"), [(64 * MIB, 64 * MIB), (5 * GIB, GIB), (500 * GIB, 50 * GIB)])
def test_a_layer_needs_a_tenth_of_its_disk(size: int, room: int) -> None:
    assert growth(size) == room


def test_disks_that_share_a_file_system_share_its_room() -> None:
    tight: dict[str, Any] = {**MIXED, "rooms": tuple(replace(room, free=3 * GIB) for room in (ROOM, ROOM))}
    assert "need 4096 MiB" in refused(tight, "external").message
    apart: dict[str, Any] = {**MIXED, "rooms": (replace(ROOM, free=3 * GIB), replace(ROOM, pool="there", free=3 * GIB))}
    assert choose(replace(FACTS, **apart), "external").way is Way.EXTERNAL


def test_the_devices_that_keep_ram_from_being_stored_are_read_from_the_definition() -> None:
    devices = (
        "<hostdev type='pci'/><hostdev type='usb'/><interface type='hostdev'/><interface type='network'/>"
        "<filesystem type='mount'><driver type='virtiofs'/><target dir='share'/></filesystem>"
        "<tpm model='tpm-tis'><backend type='passthrough'/></tpm>"
    )
    found = parse_definition(f"<domain><devices>{devices}</devices></domain>").unsaveable
    assert found == ("hostdev pci", "interface hostdev", "tpm passthrough", "filesystem virtiofs share")
    emulated = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
    definition = parse_definition(f"<domain><devices>{emulated}</devices></domain>")
    assert (definition.unsaveable, definition.tpm) == ((), True)
