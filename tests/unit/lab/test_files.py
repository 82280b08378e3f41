# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the lab puts where."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from lab import emulator, files, image, places
from lab.domain_xml import GuestSpec
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
    for path in (places.STATE, places.CACHE, places.EMULATOR, places.LOCK, places.HERE.private_emulator("u")):
        assert "kvm-fleet-lab" in path.name
    assert places.HERE.guest_directory("u").is_relative_to(places.STATE)


def test_a_guests_logs_go_and_no_other_guests(tmp_path: Path) -> None:
    logs, tpm_logs = tmp_path / "qemu", tmp_path / "swtpm"
    here = replace(places.HERE, own=((places.QEMU_LOGS, logs), (places.TPM_LOGS, tpm_logs)))
    files.remove_logs(here, "web")  # where libvirt has never started a guest
    logs.mkdir()
    tpm_logs.mkdir()
    for name in ("web-swtpm.log", "web1-swtpm.log"):
        (tpm_logs / name).touch()
    others = {"web.log.log", "web.log.1.log", "web1.log", "aweb.log", "wab.log", "web.logs", "web.log.x"}
    for name in {"web.log", "web.log.0", "web.log.12", *others}:
        (logs / name).touch()
    files.remove_logs(here, "../qemu/web1")
    files.remove_logs(here, "w.b")
    files.remove_logs(here, "*")
    files.remove_logs(here, "web")
    assert {path.name for path in logs.iterdir()} == others
    assert [path.name for path in tpm_logs.iterdir()] == ["web1-swtpm.log"]


def test_a_guest_has_the_files_that_it_was_asked_to_have_and_keeps_what_it_wrote_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    variables = tmp_path / "OVMF_VARS.fd"
    variables.write_bytes(b"as shipped")
    monkeypatch.setattr(files, "OVMF_VARIABLES", variables)
    monkeypatch.setattr(files, "run", lambda words: Path(words[-2]).write_bytes(f"{words[4]}".encode()))
    here = replace(places.HERE, guests=tmp_path / "guests")
    built = image.Image(tmp_path / "image")
    for uuid in ("plain", "other"):
        here.guest_directory(uuid).mkdir(parents=True)
        here.disk_path(uuid).touch()
    files.provide(here, GuestSpec("plain"), "plain", built)
    assert list(here.guest_directory("plain").iterdir()) == [here.disk_path("plain")]

    other = GuestSpec("other", second_disk="raw", firmware="uefi")
    files.provide(here, other, "other", built)
    assert (here.nvram("other").read_bytes(), here.second_disk_path("other").read_bytes()) == (b"as shipped", b"raw")
    here.nvram("other").write_bytes(b"an entry")
    here.second_disk_path("other").write_bytes(b"data")
    files.provide(here, other, "other", built)
    assert (here.nvram("other").read_bytes(), here.second_disk_path("other").read_bytes()) == (b"an entry", b"data")
    files.remove(here, "other")
    assert not here.guest_directory("other").exists()


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
