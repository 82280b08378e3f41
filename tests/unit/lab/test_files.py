# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the lab puts where."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lab import emulator, image, places
from lab.host import Distribution


def test_another_recipe_makes_another_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bookworm, noble = Distribution("debian", "12", "bookworm"), Distribution("ubuntu", "24.04", "noble")
    assert image.recipe_hash(bookworm) == image.recipe_hash(bookworm)
    assert image.recipe_hash(bookworm) != image.recipe_hash(noble)
    before = image.recipe_hash(bookworm)
    for name in image.RECIPE_MODULES:
        (tmp_path / name).write_bytes(Path(image.__file__).with_name(name).read_bytes())
    monkeypatch.setattr(image, "__file__", str(tmp_path / "image.py"))
    assert image.recipe_hash(bookworm) == before
    for name in image.RECIPE_MODULES:
        with (tmp_path / name).open("a", encoding="utf-8") as recipe:
            recipe.write("# changed\n")
        changed = image.recipe_hash(bookworm)
        assert changed != before
        before = changed


def test_all_that_the_lab_makes_is_named_as_its_own() -> None:
    for path in (places.STATE, places.CACHE, places.EMULATOR, places.LOCK, places.private_emulator("u")):
        assert "kvm-fleet-lab" in path.name
    assert places.guest_directory("u").is_relative_to(places.STATE)


class TestEmulator:
    @pytest.fixture(autouse=True)
    def installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        original = tmp_path / "qemu"
        original.write_bytes(b"one")
        original.chmod(0o755)
        monkeypatch.setattr(emulator, "INSTALLED_EMULATOR", original)
        monkeypatch.setattr(emulator, "EMULATOR", tmp_path / "qemu-lab")
        return original

    def test_a_copy_stays_until_the_hosts_own_changes(self, installed: Path, tmp_path: Path) -> None:
        copy = tmp_path / "qemu-lab"
        emulator.install(copy)
        assert copy.stat().st_mode & 0o777 == 0o755
        first = copy.stat().st_ino
        emulator.install(copy)
        assert copy.stat().st_ino == first
        installed.write_bytes(b"two")
        emulator.install(copy)
        assert copy.read_bytes() == b"two"

    def test_a_replaced_copy_is_another_file_and_nothing_lies_beside_it(self, tmp_path: Path) -> None:
        copy = tmp_path / "qemu-lab"
        emulator.install(copy)
        with copy.open("rb") as running:
            emulator.replace(copy)
            assert os.fstat(running.fileno()).st_nlink == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == ["qemu", "qemu-lab"]

    def test_every_copy_goes_and_the_hosts_own_stays(self, installed: Path, tmp_path: Path) -> None:
        for name in ("qemu-lab", "qemu-lab-1234", "qemu-lab.dpkg-new"):
            (tmp_path / name).write_bytes(b"")
        emulator.remove_all()
        assert list(tmp_path.iterdir()) == [installed]
