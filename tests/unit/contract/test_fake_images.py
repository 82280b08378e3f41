# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The fake images keep the contract of the real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.contract.images import ImagesContract
from tests.unit.fake_images import FakeImages


class FakeWriter:
    def __init__(self, images: FakeImages) -> None:
        self._images = images

    def make(self, file: str, image_format: str) -> None:
        assert image_format
        Path(file).touch()

    def write(self, file: str, letter: str) -> None:
        self._images.write(file, letter)

    def read(self, file: str, image_format: str) -> list[str]:
        assert image_format
        return self._images.read(file)


class TestFakeImages(ImagesContract):
    @pytest.fixture
    def images(self) -> FakeImages:
        return FakeImages()

    @pytest.fixture
    def writer(self, images: FakeImages) -> FakeWriter:
        return FakeWriter(images)
