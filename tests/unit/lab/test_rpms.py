# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The packages that guests upgrade through dnf and zypper."""

from __future__ import annotations

import gzip
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from lab import packages, rpms
from lab.rpms import Rpm
from lab.run import run


def query(rpm: Path, what: str) -> list[str]:
    return run(["rpm", "--query", "--package", f"--queryformat={what}", rpm]).split()


def versions(built: tuple[Rpm, ...]) -> dict[str, str]:
    return {rpm.name: rpm.version for rpm in built}


def test_they_mirror_the_debian_packages() -> None:
    installed, newer = versions(rpms.INSTALLED), versions(rpms.REPOSITORY)
    assert {deb.name: deb.version for deb in packages.INSTALLED}.items() <= installed.items()
    assert {deb.name: deb.version for deb in (*packages.MAIN, *packages.SECURITY)}.items() <= newer.items()
    assert set(installed) - {deb.name for deb in packages.INSTALLED} == {"lab-release", "qemu-guest-agent"}


def test_the_upgrade_of_one_package_needs_a_new_one_and_leaves_an_old_one_over() -> None:
    (old,) = (rpm for rpm in rpms.INSTALLED if rpm.name == "lab-app")
    (new,) = (rpm for rpm in rpms.REPOSITORY if rpm.name == "lab-app")
    assert ("lab-obsolete" in old.requires, "lab-obsolete" in new.requires) == (True, False)
    assert ("lab-plugin" in old.requires, "lab-plugin" in new.requires) == (False, True)


def test_no_file_is_one_of_a_debian_package() -> None:
    of_debs = {path for deb in (*packages.INSTALLED, *packages.MAIN, *packages.SECURITY) for path in deb.files}
    assert not of_debs & {path for rpm in (*rpms.INSTALLED, *rpms.REPOSITORY) for path in rpm.files}


def test_a_local_edit_differs_from_every_packaged_configuration_file() -> None:
    ((path, edited),) = rpms.LOCALLY_EDITED.items()
    packaged = [rpm.files[path] for rpm in (*rpms.INSTALLED, *rpms.REPOSITORY) if rpm.name == "lab-config"]
    assert len({edited, *packaged}) == 3


@pytest.mark.parametrize("rpm", [*rpms.INSTALLED, *rpms.REPOSITORY])
def test_a_built_package_is_what_it_says(rpm: Rpm, tmp_path: Path) -> None:
    rpms.build(rpm, tmp_path, tmp_path / "scratch")
    built = tmp_path / rpm.file_name
    epoch = f"{rpm.epoch}:" if rpm.epoch else ""
    assert query(built, "%{NAME} %{EVR} %{ARCH}") == [rpm.name, f"{epoch}{rpm.version}-1", rpm.architecture]
    assert query(built, "[%{FILENAMES} ]") == sorted(f"/{path}" for path in rpm.files)
    assert set(rpm.requires) <= set(query(built, "[%{REQUIRENAME} ]"))
    assert {what.split()[0] for what in rpm.provides} <= set(query(built, "[%{PROVIDENAME} ]"))
    assert ("try-restart qemu-guest-agent" in " ".join(query(built, "%{POSTIN}"))) == (rpm.name == "qemu-guest-agent")


def test_only_a_configuration_file_is_marked_as_one(tmp_path: Path) -> None:
    rpms.build(rpms.with_configuration("1.0"), tmp_path, tmp_path / "scratch")
    (built,) = tmp_path.glob("*.rpm")
    assert run(["rpm", "--query", "--package", "--configfiles", built]).split() == ["/etc/lab-config-rpm.conf"]


def test_a_repository_has_its_advisories(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    rpms.build(rpms.NEW_LIBRARY, repository, tmp_path / "scratch")
    rpms.index(repository, tmp_path)
    (updateinfo,) = (repository / "repodata").glob("*updateinfo.xml*")
    updates = ET.fromstring(gzip.decompress(updateinfo.read_bytes()))
    told = {
        update.get("type"): [package.get("name") for package in update.iter("package")]
        for update in updates.iter("update")
    }
    assert told == {"security": ["lab-library"], "bugfix": ["lab-kernel"]}
    assert [update.get("type") for update in updates if update.find(".//reboot_suggested") is not None] == ["bugfix"]


def test_advisories_name_packages_of_the_repository() -> None:
    assert {advisory.package.file_name for advisory in rpms.ADVISORIES} <= {rpm.file_name for rpm in rpms.REPOSITORY}
