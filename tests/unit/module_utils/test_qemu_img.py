# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What qemu-img says of an image, and how it is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._domain import Image, LayerUse
from ansible_collections.kvm.fleet.plugins.module_utils._errors import DiskImageFailed
from ansible_collections.kvm.fleet.plugins.module_utils._qemu_img import (
    QemuImg,
    allocated_bytes,
    parse_chain,
    parse_snapshots,
    parse_written,
    snapshot_sizes,
)

# From qemu-img 7.2, of a running guest with 64 MiB of RAM that were hardly used.
LIVE = """{"snapshots": [{"vm-clock-nsec": 0, "name": "s1", "date-sec": 1795735599, "date-nsec": 709835000,
 "vm-clock-sec": 0, "id": "1", "vm-state-size": 468739}], "virtual-size": 1073741824, "filename": "d.qcow2"}"""


def test_the_ram_that_a_snapshot_holds() -> None:
    assert parse_snapshots(LIVE) == {"s1": 468739}


@pytest.mark.parametrize("said", ["", "[]", '{"snapshots": [{"name": "s1"}]}', '{"snapshots": 1}', "null"])
def test_what_is_not_understood_tells_nothing(said: str) -> None:
    assert parse_snapshots(said) is None


@pytest.fixture
def qemu_img(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a qemu-img into PATH that is this shell script, and returns the directory that it is in."""

    def install(script: str) -> Path:
        program = tmp_path / "qemu-img"
        program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        return tmp_path

    return install


def test_an_image_is_asked_about_by_its_format_though_somebody_has_it_open(qemu_img: Callable[[str], Path]) -> None:
    where = qemu_img(f"cat <<'END'\n{LIVE}\nEND\nprintf '%s\\n' \"$@\" >$(dirname $0)/asked")
    assert snapshot_sizes("-d.qcow2") == {"s1": 468739}
    asked = (where / "asked").read_text(encoding="utf-8").split("\n")[:-1]
    assert asked == ["info", "--force-share", "--output", "json", "-f", "qcow2", "--", "-d.qcow2"]


def test_a_qemu_img_that_fails_or_is_missing_tells_nothing(
    qemu_img: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = qemu_img("echo '{}'; exit 1")
    assert snapshot_sizes("d.qcow2") is None
    (where / "qemu-img").unlink()
    monkeypatch.setenv("PATH", str(where))
    assert snapshot_sizes("d.qcow2") is None


# From qemu-img 7.2, of a layer over a raw disk.
CHAIN = """[{"virtual-size": 67108864, "filename": "/i/r.1", "cluster-size": 65536, "format": "qcow2",
 "actual-size": 462848, "full-backing-filename": "/i/r", "backing-filename": "/i/r", "backing-filename-format": "raw",
 "snapshots": [{"vm-clock-nsec": 0, "name": "s1", "id": "1", "vm-state-size": 0}]},
 {"virtual-size": 67108864, "filename": "/i/r", "format": "raw", "actual-size": 4743168}]"""
# Likewise of one that nothing was written to, and of one that has a block of zeros.
EMPTY = """[{ "start": 0, "length": 67108864, "depth": 1, "present": true, "zero": false, "data": true, "offset": 0}]"""
ZEROS = """[{ "start": 0, "length": 65536, "depth": 0, "present": true, "zero": true, "data": false},
{ "start": 65536, "length": 67043328, "depth": 1, "present": false, "zero": true, "data": false}]"""


def test_a_chain_is_read_from_its_top() -> None:
    assert parse_chain("/i/r.1", CHAIN) == (
        Image("/i/r.1", "qcow2", 67108864, 462848, ("s1",)),
        Image("/i/r", "raw", 67108864, 4743168),
    )


@pytest.mark.parametrize("said", ["", "{}", "[]", "[1]", "[{}]", "null"])
def test_what_is_not_understood_is_no_chain(said: str) -> None:
    with pytest.raises(DiskImageFailed, match="what 'qemu-img info' says of /i/r is not understood"):
        parse_chain("/i/r", said)


@pytest.mark.parametrize("said", ["", "[1]", "[{}]", "null"])
def test_what_is_not_understood_is_no_map(said: str) -> None:
    with pytest.raises(DiskImageFailed, match="what 'qemu-img map' says of /i/r is not understood"):
        parse_written("/i/r", said)


def test_zeros_are_written_too() -> None:
    assert (parse_written("/i/r", EMPTY), parse_written("/i/r", ZEROS)) == (False, True)


@pytest.fixture
def layer(tmp_path: Path) -> str:
    """A file that begins as a qcow2 image does."""
    file = tmp_path / "r.1"
    file.write_bytes(b"QFI\xfb\0\0\0\3")
    return str(file)


def test_the_use_of_a_layer_is_told_by_its_lock_and_by_what_is_in_it(
    qemu_img: Callable[[str], Path], layer: str
) -> None:
    qemu_img('case "$*" in *force-share*) echo "[]";; *) echo "Failed to get shared lock" >&2; exit 1;; esac')
    assert QemuImg().use_of(layer) is LayerUse.OPEN
    qemu_img(f"case $1 in map) echo '{EMPTY}';; *) echo '[]';; esac")
    assert QemuImg().use_of(layer) is LayerUse.EMPTY
    qemu_img(f"case $1 in map) echo '{ZEROS}';; *) echo '[]';; esac")
    assert QemuImg().use_of(layer) is LayerUse.WRITTEN
    Path(layer).write_bytes(b"QFI")
    assert QemuImg().use_of(layer) is LayerUse.BROKEN


def test_a_layer_is_not_broken_because_qemu_img_is_missing_or_fails(
    qemu_img: Callable[[str], Path], layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = qemu_img("echo 'Input/output error' >&2; exit 1")
    for ask in (QemuImg().use_of, QemuImg().is_open):
        with pytest.raises(DiskImageFailed, match="Input/output error"):
            ask(layer)
    assert QemuImg().installed()
    (where / "qemu-img").unlink()
    monkeypatch.setenv("PATH", str(where))
    assert not QemuImg().installed()
    with pytest.raises(DiskImageFailed, match="'qemu-img info' failed"):
        QemuImg().use_of(layer)
    with pytest.raises(DiskImageFailed, match="cannot be read"):
        QemuImg().use_of(str(where / "gone"))


def test_a_layer_names_its_base_and_what_that_is(qemu_img: Callable[[str], Path]) -> None:
    where = qemu_img("printf '%s\\n' \"$@\" >$(dirname $0)/asked")
    base = Image("/i/-r", "raw", 1, 1)

    def asked() -> str:
        return (where / "asked").read_text(encoding="utf-8").replace("\n", " ").strip()

    QemuImg().create_layer("-r.1", base)
    assert asked() == "create -q -f qcow2 -b /i/-r -F raw -- -r.1"
    QemuImg().commit("-r.1", base)
    assert asked() == "commit -q -d -f qcow2 -b /i/-r -- -r.1"
    QemuImg().rebase("-r.1", base)
    assert asked() == "rebase -q -u -f qcow2 -b /i/-r -F raw -- -r.1"


def test_what_qemu_img_says_of_a_failure_is_told(qemu_img: Callable[[str], Path]) -> None:
    qemu_img("echo 'No space left on device' >&2; exit 1")
    with pytest.raises(DiskImageFailed, match=r"'qemu-img commit' failed for /i/r\.1: No space left on device"):
        QemuImg().commit("/i/r.1", Image("/i/r", "raw", 1, 1))


def test_the_room_that_an_image_takes_up(tmp_path: Path) -> None:
    image = tmp_path / "sparse"
    with image.open("wb") as file:
        file.truncate(1 << 30)
    assert allocated_bytes(str(image)) == 0
    assert allocated_bytes(str(tmp_path / "gone")) is None
