# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the collection relies on in the images of disks. The same tests run against the fake and the real qemu-img."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._domain import Images, LayerUse
from ansible_collections.kvm.fleet.plugins.module_utils._errors import DiskImageFailed


class Writer(Protocol):
    """Whoever uses the images."""

    def make(self, file: str, image_format: str) -> None:
        """Make an empty one with nothing below it."""

    def write(self, file: str, letter: str) -> None:
        """Write a letter to an image, at a place of its own."""

    def read(self, file: str, image_format: str) -> list[str]:
        """The letters that a guest would find there, in their order."""


class ImagesContract:
    """Needs the fixtures ``images``, an Images, and ``writer``, a Writer."""

    @pytest.fixture(params=["qcow2", "raw"])
    def base(self, request: pytest.FixtureRequest, writer: Writer, tmp_path: Path) -> tuple[str, str]:
        """An image with its format."""
        file, image_format = str(tmp_path / f"web1.{request.param}"), str(request.param)
        writer.make(file, image_format)
        writer.write(file, "A")
        return file, image_format

    def layer(self, images: Images, over: tuple[str, str], name: str) -> str:
        """A new layer over an image."""
        file = str(Path(over[0]).with_name(name))
        images.create_layer(file, images.chain(*over)[0])
        return file

    def test_a_layer_stands_on_its_base(self, images: Images, writer: Writer, base: tuple[str, str]) -> None:
        top = self.layer(images, base, "top")
        assert [(image.file, image.format) for image in images.chain(top, "qcow2")] == [(top, "qcow2"), base]
        assert len({image.size for image in images.chain(top, "qcow2")}) == 1
        writer.write(top, "B")
        assert (writer.read(top, "qcow2"), writer.read(*base)) == (["A", "B"], ["A"])
        assert images.chain(top, "qcow2")[0].snapshots == ()

    def test_a_layer_takes_the_place_of_another(self, images: Images, writer: Writer, base: tuple[str, str]) -> None:
        top = self.layer(images, base, "top")
        writer.write(top, "B")
        assert self.layer(images, base, "top") == top
        assert writer.read(top, "qcow2") == ["A"]

    def test_a_commit_writes_to_the_base_and_keeps_the_layer(
        self, images: Images, writer: Writer, base: tuple[str, str]
    ) -> None:
        top = self.layer(images, base, "top")
        writer.write(top, "B")
        for _again in range(2):  # it may be done twice
            images.commit(top, images.chain(*base)[0])
            assert "B" in writer.read(*base)
            assert images.use_of(top) is LayerUse.WRITTEN

    def test_what_was_above_a_committed_layer_is_put_on_the_base(
        self, images: Images, writer: Writer, base: tuple[str, str]
    ) -> None:
        middle = self.layer(images, base, "middle")
        writer.write(middle, "B")
        top = self.layer(images, (middle, "qcow2"), "top")
        writer.write(top, "C")
        images.commit(middle, images.chain(*base)[0])
        images.rebase(top, images.chain(*base)[0])
        Path(middle).unlink()
        assert [image.file for image in images.chain(top, "qcow2")] == [top, base[0]]
        assert writer.read(top, "qcow2") == ["A", "B", "C"]

    def test_the_use_of_a_layer_is_told(self, images: Images, writer: Writer, base: tuple[str, str]) -> None:
        top = self.layer(images, base, "top")
        assert (images.use_of(top), images.is_open(top)) == (LayerUse.EMPTY, False)
        writer.write(top, "B")
        assert images.use_of(top) is LayerUse.WRITTEN
        Path(top).write_bytes(b"")
        assert images.use_of(top) is LayerUse.BROKEN

    def test_what_is_not_there_is_an_error(self, images: Images, base: tuple[str, str]) -> None:
        with pytest.raises(DiskImageFailed):
            images.chain(f"{base[0]}.gone", "qcow2")
