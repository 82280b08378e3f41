# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The packages that guests upgrade: old ones to install, newer ones in two repositories."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lab.run import run

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lab.host import Distribution

ASK_FOR_A_REBOOT = """\
#!/bin/sh
set -e
if [ "$1" = configure ] && [ -n "$2" ]; then
    : > /run/reboot-required
    echo lab-kernel >> /run/reboot-required.pkgs
fi
"""


@dataclass(frozen=True)
class Deb:
    """One version of one self-built package."""

    name: str
    version: str
    depends: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    conffiles: tuple[str, ...] = ()
    postinst: str = ""

    @property
    def control(self) -> str:
        """The package's control file."""
        relation = f"Depends: {self.depends}\n" if self.depends else ""
        return (
            f"Package: {self.name}\nVersion: {self.version}\nArchitecture: all\n"
            f"Maintainer: kvm.fleet <lab@kvm.fleet>\nSection: misc\nPriority: optional\n"
            f"{relation}Description: {self.name} {self.version} of the kvm.fleet lab\n"
        )


def payload(name: str, version: str) -> dict[str, str]:
    """A file that tells from inside a guest which version is really unpacked."""
    return {f"usr/share/{name}/version": f"{version}\n"}


def plain(name: str, version: str, depends: str = "") -> Deb:
    """A package that is nothing but its version."""
    return Deb(name, version, depends, payload(name, version))


def with_conffile(version: str) -> Deb:
    """A package whose configuration file differs in each version."""
    path = "etc/lab-config.conf"
    files = {**payload("lab-config", version), path: f"# lab-config {version}\nsetting = default\n"}
    return Deb("lab-config", version, files=files, conffiles=(f"/{path}",))


def asking_for_a_reboot(version: str) -> Deb:
    """A package that asks for a reboot when it is upgraded, as kernels do."""
    return Deb("lab-kernel", version, files=payload("lab-kernel", version), postinst=ASK_FOR_A_REBOOT)


# Installed in the image. lab-obsolete is there only because lab-app 1.0 wants it.
INSTALLED = (
    plain("lab-obsolete", "1.0"),
    plain("lab-library", "1.0"),
    plain("lab-app", "1.0", "lab-obsolete, lab-library"),
    with_conffile("1.0"),
    asking_for_a_reboot("1.0"),
)
AUTOMATICALLY_INSTALLED = ("lab-obsolete",)
# lab-app 2.0 needs a package that is not installed yet: a plain `apt-get upgrade` keeps it back.
MAIN = (
    plain("lab-app", "2.0", "lab-library, lab-plugin"),
    plain("lab-plugin", "1.0"),
    with_conffile("1.1"),
    asking_for_a_reboot("1.1"),
)
SECURITY = (plain("lab-library", "1.1"),)
LOCALLY_EDITED = {"etc/lab-config.conf": "# lab-config 1.0\nsetting = edited-by-the-administrator\n"}

REPACKED_SUFFIX = "+lab1"

# The newer agent has a repository of its own, which a guest may be without: on an emulated processor, to upgrade it
# takes twice as long as to upgrade all the others.
NEWER_AGENT = "/etc/apt/sources.list.d/lab-agent.list"
NEWER_AGENT_IS_AT = "deb [trusted=yes] file:/srv/lab/agent ./\n"


def build(deb: Deb, directory: Path, scratch: Path) -> None:
    """Build one package into `directory`."""
    tree = scratch / f"{deb.name}_{deb.version}"
    control = tree / "DEBIAN"
    control.mkdir(parents=True)
    for path, text in deb.files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text, encoding="utf-8")
    (control / "control").write_text(deb.control, encoding="utf-8")
    if deb.conffiles:
        (control / "conffiles").write_text("\n".join(deb.conffiles) + "\n", encoding="utf-8")
    if deb.postinst:
        (control / "postinst").write_text(deb.postinst, encoding="utf-8")
        (control / "postinst").chmod(0o755)
    _pack(tree, directory)


def repack(original: Path, directory: Path, scratch: Path) -> None:
    """Build the same package as `original`, as a version that is just newer."""
    tree = scratch / "repacked"
    run(["dpkg-deb", "--raw-extract", original, tree])
    control = tree / "DEBIAN" / "control"
    lines = control.read_text(encoding="utf-8").splitlines()
    newer = [f"{ln}{REPACKED_SUFFIX}" if ln.startswith("Version: ") else ln for ln in lines]
    control.write_text("\n".join(newer) + "\n", encoding="utf-8")
    _pack(tree, directory)


def _pack(tree: Path, directory: Path) -> None:
    # gzip: guests unpack these on an emulated processor.
    run(["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", tree, directory])


def release_fields(distribution: Distribution, *, security: bool) -> dict[str, str]:
    """What a repository's Release file says, as the distribution's own do."""
    codename = distribution.codename
    fields = {"Origin": distribution.origin, "Version": distribution.version}
    if distribution.id == "ubuntu":
        suite = f"{codename}-security" if security else codename
        return {**fields, "Label": "Ubuntu", "Suite": suite, "Codename": codename}
    if security:
        return {
            **fields,
            "Label": "Debian-Security",
            "Suite": "stable-security",
            "Codename": f"{codename}-security",
        }
    return {**fields, "Label": "Debian", "Suite": "stable", "Codename": codename}


def index(repository: Path, fields: Mapping[str, str]) -> None:
    """Make a directory of packages a flat apt repository."""
    listing = run(["apt-ftparchive", "packages", "."], cwd=repository)
    (repository / "Packages").write_text(listing, encoding="utf-8")
    options = [f"-oAPT::FTPArchive::Release::{name}={value}" for name, value in fields.items()]
    release = run(["apt-ftparchive", *options, "release", "."], cwd=repository)
    (repository / "Release").write_text(release, encoding="utf-8")
