# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The real qemu-img keeps the contract that the unit tests' fake keeps."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._domain import LayerUse
from ansible_collections.kvm.fleet.plugins.module_utils._qemu_img import QemuImg
from lab.run import run
from tests.unit.contract.images import ImagesContract

LETTERS = "ABC"
BLOCK = 64 * 1024


class RealWriter:
    """Each letter has a block of its own."""

    def make(self, file: str, image_format: str) -> None:
        run(["qemu-img", "create", "-q", "-f", image_format, file, str(16 * BLOCK)])

    def write(self, file: str, letter: str) -> None:
        with Path(file).open("rb") as image:
            image_format = "qcow2" if image.read(4) == b"QFI\xfb" else "raw"
        what = f"write -q -P {ord(letter)} {LETTERS.index(letter) * BLOCK} {BLOCK}"
        run(["qemu-io", "-f", image_format, "-c", what, file])

    def read(self, file: str, image_format: str) -> list[str]:
        flat = Path(f"{file}.flat")
        run(["qemu-img", "convert", "-f", image_format, "-O", "raw", file, flat])
        content = flat.read_bytes()
        flat.unlink()
        return [letter for at, letter in enumerate(LETTERS) if content[at * BLOCK] == ord(letter)]


class TestQemuImg(ImagesContract):
    @pytest.fixture
    def images(self) -> QemuImg:
        return QemuImg()

    @pytest.fixture
    def writer(self) -> RealWriter:
        return RealWriter()


def test_a_layer_that_somebody_has_open_is_told_from_others(tmp_path: Path) -> None:
    base, top = str(tmp_path / "base"), str(tmp_path / "top")
    RealWriter().make(base, "qcow2")
    QemuImg().create_layer(top, QemuImg().chain(base, "qcow2")[0])
    with subprocess.Popen(
        ["qemu-io", "-f", "qcow2", top], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write(b"length\n")
        holder.stdout.readline()  # it has opened the image by then
        assert (QemuImg().use_of(top), QemuImg().is_open(top)) == (LayerUse.OPEN, True)
        assert len(QemuImg().chain(top, "qcow2")) == 2
        holder.stdin.close()
    assert QemuImg().use_of(top) is LayerUse.EMPTY
