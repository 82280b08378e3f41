# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The packages that guests upgrade."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import packages
from lab.host import Distribution
from lab.packages import Deb
from lab.run import run

BOOKWORM = Distribution("debian", "12", "bookworm")
NOBLE = Distribution("ubuntu", "24.04", "noble")


def field(deb: Path, name: str) -> str:
    return run(["dpkg-deb", "--field", deb, name]).strip()


def versions(debs: tuple[Deb, ...]) -> dict[str, str]:
    return {deb.name: deb.version for deb in debs}


def test_each_package_in_the_repositories_is_newer_or_new() -> None:
    installed = versions(packages.INSTALLED)
    for name, version in versions((*packages.MAIN, *packages.SECURITY)).items():
        if name in installed:
            run(["dpkg", "--compare-versions", version, "gt", installed[name]])
        else:
            assert name == "lab-plugin"


def test_the_upgrade_of_one_package_needs_a_new_one_and_leaves_an_old_one_over() -> None:
    (old,) = (deb for deb in packages.INSTALLED if deb.name == "lab-app")
    (new,) = (deb for deb in packages.MAIN if deb.name == "lab-app")
    assert ("lab-obsolete" in old.depends, "lab-obsolete" in new.depends) == (True, False)
    assert ("lab-plugin" in old.depends, "lab-plugin" in new.depends) == (False, True)


def test_only_the_security_repository_has_the_newer_library() -> None:
    assert versions(packages.SECURITY) == {"lab-library": "1.1"}
    assert "lab-library" not in versions(packages.MAIN)


def test_a_local_edit_differs_from_every_packaged_configuration_file() -> None:
    ((path, edited),) = packages.LOCALLY_EDITED.items()
    packaged = [deb.files[path] for deb in (*packages.INSTALLED, *packages.MAIN) if deb.name == "lab-config"]
    assert len({edited, *packaged}) == 3


@pytest.mark.parametrize("deb", [*packages.INSTALLED, *packages.MAIN, *packages.SECURITY])
def test_a_built_package_is_what_it_says(deb: Deb, tmp_path: Path) -> None:
    packages.build(deb, tmp_path, tmp_path / "scratch")
    built = tmp_path / f"{deb.name}_{deb.version}_all.deb"
    assert field(built, "Depends") == deb.depends
    run(["dpkg-deb", "--extract", built, tmp_path / "tree"])
    assert (tmp_path / f"tree/usr/share/{deb.name}/version").read_text() == f"{deb.version}\n"


def test_a_repacked_package_is_just_newer(tmp_path: Path) -> None:
    packages.build(Deb("tool", "1:2.0-3"), tmp_path, tmp_path / "scratch")
    (original,) = tmp_path.glob("*.deb")
    repository = tmp_path / "repository"
    repository.mkdir()
    packages.repack(original, repository, tmp_path / "scratch")
    (newer,) = repository.glob("*.deb")
    assert field(newer, "Version") == "1:2.0-3+lab1"


@pytest.mark.parametrize(
    ("distribution", "security", "label", "suite"),
    [
        (BOOKWORM, False, "Debian", "stable"),
        (BOOKWORM, True, "Debian-Security", "stable-security"),
        (NOBLE, False, "Ubuntu", "noble"),
        (NOBLE, True, "Ubuntu", "noble-security"),
    ],
)
def test_a_repository_says_that_it_is_what_the_distributions_own_is(
    distribution: Distribution, security: bool, label: str, suite: str, tmp_path: Path
) -> None:
    packages.build(Deb("tool", "1.0"), tmp_path, tmp_path / "scratch")
    packages.index(tmp_path, packages.release_fields(distribution, security=security))
    release = (tmp_path / "Release").read_text().splitlines()
    for line in (f"Origin: {distribution.origin}", f"Label: {label}", f"Suite: {suite}"):
        assert line in release
    assert "Package: tool" in (tmp_path / "Packages").read_text().splitlines()
