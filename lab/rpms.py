# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The same packages as RPMs, for guests that dnf and zypper upgrade: old ones, and a repository of newer ones."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lab.run import run

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

RELEASE = "1"
# As the distributions' own: the agent lives through it only if it is not what runs the upgrade.
RESTART_THE_AGENT = """\
if [ $1 -gt 1 ]; then
    systemctl try-restart qemu-guest-agent.service || :
fi
"""
CONFIGURATION = "etc/lab-config-rpm.conf"


@dataclass(frozen=True)
class Rpm:
    """One version of one self-built package."""

    name: str
    version: str
    requires: tuple[str, ...] = ()
    provides: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    configuration: tuple[str, ...] = ()
    """Those of `files` that an upgrade leaves as the administrator made them."""
    post: str = ""
    epoch: int = 0
    architecture: str = "noarch"

    @property
    def file_name(self) -> str:
        """What rpmbuild calls it."""
        return f"{self.name}-{self.version}-{RELEASE}.{self.architecture}.rpm"

    def spec(self, tree: Path) -> str:
        """Its spec file, with `tree` holding its files."""
        # noarch is asked for; another architecture is the builder's own.
        architecture = "BuildArch: noarch\n" if self.architecture == "noarch" else ""
        epoch = f"Epoch: {self.epoch}\n" if self.epoch else ""
        relations = [
            *(f"Requires: {what}\n" for what in self.requires),
            *(f"Provides: {what}\n" for what in self.provides),
        ]
        marked = [f"{'%config(noreplace) ' if path in self.configuration else ''}/{path}" for path in self.files]
        return (
            f"Name: {self.name}\n{epoch}Version: {self.version}\nRelease: {RELEASE}\n"
            f"Summary: {self.name} {self.version} of the kvm.fleet lab\nLicense: GPL-3.0-or-later\n"
            f"AutoReqProv: no\n{architecture}{''.join(relations)}"
            f"%description\n%{{summary}}\n"
            f"%install\ncp -a {tree}/. %{{buildroot}}/\n"
            f"{f'%post{chr(10)}{self.post}' if self.post else ''}"
            f"%files\n{chr(10).join(marked)}\n"
        )


@dataclass(frozen=True)
class Advisory:
    """What updateinfo.xml says of one newer package: dnf's advisory, zypper's patch."""

    id: str
    type: str
    severity: str
    package: Rpm
    reboot: bool = False

    def element(self) -> ET.Element:
        """Its part of updateinfo.xml."""
        package = self.package
        update = ET.Element("update", {"from": "lab@kvm.fleet", "status": "stable", "type": self.type, "version": "1"})
        for tag, text in (
            ("id", self.id),
            ("title", f"{package.name} {package.version}"),
            ("severity", self.severity),
            ("release", "lab"),
            ("description", f"{self.type} update of {package.name}"),
        ):
            ET.SubElement(update, tag).text = text
        ET.SubElement(update, "issued", date="2025-01-01 00:00:00")
        ET.SubElement(update, "references")
        collection = ET.SubElement(ET.SubElement(update, "pkglist"), "collection", short="lab")
        ET.SubElement(collection, "name").text = "lab"
        identity = {"name": package.name, "epoch": str(package.epoch), "version": package.version, "release": RELEASE}
        listed = ET.SubElement(collection, "package", {**identity, "arch": package.architecture, "src": ""})
        ET.SubElement(listed, "filename").text = package.file_name
        if self.reboot:
            ET.SubElement(listed, "reboot_suggested").text = "True"
        return update


def payload(name: str, version: str) -> dict[str, str]:
    """A file that tells which version is really unpacked, apart from that of the .deb of this name."""
    return {f"usr/share/lab-rpm/{name}/version": f"{version}\n"}


def plain(name: str, version: str, *requires: str) -> Rpm:
    """A package that is nothing but its version."""
    return Rpm(name, version, requires, files=payload(name, version))


def with_configuration(version: str) -> Rpm:
    """A package whose configuration file differs in each version."""
    files = {**payload("lab-config", version), CONFIGURATION: f"# lab-config {version}\nsetting = default\n"}
    return Rpm("lab-config", version, files=files, configuration=(CONFIGURATION,))


def asking_for_a_reboot(version: str) -> Rpm:
    """A package that asks for a reboot when it is upgraded: zypper by a hint in it, dnf by a list that it extends."""
    asks = {"etc/dnf/plugins/needs-restarting.d/lab-kernel.conf": "lab-kernel\n"}
    files = {**payload("lab-kernel", version), **asks}
    return Rpm("lab-kernel", version, provides=("installhint(reboot-needed)",), files=files)


def guest_agent(version: str) -> Rpm:
    """The agent's package: it restarts the agent, whose files remain those of the .deb."""
    files = payload("qemu-guest-agent", version)
    return Rpm("qemu-guest-agent", version, files=files, post=RESTART_THE_AGENT, epoch=2, architecture="x86_64")


# Stands for all that is installed as .debs.
SYSTEM = Rpm("lab-release", "12", provides=("/bin/sh", "system-release = 12"), files=payload("lab-release", "12"))
# Installed in the image. lab-obsolete is there only because lab-app 1.0 wants it.
INSTALLED = (
    SYSTEM,
    plain("lab-obsolete", "1.0"),
    plain("lab-library", "1.0"),
    plain("lab-app", "1.0", "lab-obsolete", "lab-library"),
    with_configuration("1.0"),
    asking_for_a_reboot("1.0"),
    guest_agent("1.0"),
)
AUTOMATICALLY_INSTALLED = ("lab-obsolete",)
NEW_LIBRARY = plain("lab-library", "1.1")
NEW_KERNEL = asking_for_a_reboot("1.1")
REPOSITORY = (
    # Needs a package that is not installed yet.
    plain("lab-app", "2.0", "lab-library", "lab-plugin"),
    plain("lab-plugin", "1.0"),
    with_configuration("1.1"),
    guest_agent("1.1"),
    NEW_KERNEL,
    NEW_LIBRARY,
)
ADVISORIES = (
    Advisory("LAB-2025-1", "security", "Important", NEW_LIBRARY),
    Advisory("LAB-2025-2", "bugfix", "None", NEW_KERNEL, reboot=True),
)
LOCALLY_EDITED = {CONFIGURATION: "# lab-config 1.0\nsetting = edited-by-the-administrator\n"}

REPOSITORY_SETTINGS = """\
[lab]
name=lab
baseurl=file:///srv/lab/rpm
enabled=1
gpgcheck=0
autorefresh=1
"""
PRODUCT = """\
<?xml version="1.0" encoding="UTF-8"?>
<product schemeversion="0">
  <vendor>kvm.fleet</vendor>
  <name>lab</name>
  <version>12</version>
  <release>1</release>
  <arch>x86_64</arch>
  <summary>kvm.fleet lab</summary>
</product>
"""
# Fedora does not install these plugins of dnf by default.
OFF_BY_DEFAULT = ("local", "show-leaves")
FILES = {
    # Debian's rpm has its database in a user's home.
    "etc/rpm/macros": "%_dbpath /var/lib/rpm\n",
    # Or it tells zypper, for each package, that alien is what to use on Debian.
    "etc/popt": "rpm\talias --percent --force-debian --percent\nrpm\talias -e --erase --force-debian\n",
    **{f"etc/dnf/plugins/{plugin}.conf": "[main]\nenabled = false\n" for plugin in OFF_BY_DEFAULT},
    "etc/yum.repos.d/lab.repo": REPOSITORY_SETTINGS,
    "etc/zypp/repos.d/lab.repo": REPOSITORY_SETTINGS,
    "etc/products.d/lab.prod": PRODUCT,
    # What zypper would otherwise make the first time that it looks at anything.
    "var/lib/zypp/AnonymousUniqueId": "00000000-0000-4000-8000-000000000000",
    "var/log/zypp/history": "",
    "var/lib/zypp/AutoInstalled": "".join(f"{name}\n" for name in AUTOMATICALLY_INSTALLED),
}
LINKS = {"etc/products.d/baseproduct": "lab.prod"}


def build(rpm: Rpm, directory: Path, scratch: Path) -> None:
    """Build one package into `directory`."""
    top = scratch / f"{rpm.name}-{rpm.version}"
    tree = top / "tree"
    for path, text in rpm.files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text, encoding="utf-8")
    spec = top / f"{rpm.name}.spec"
    spec.write_text(rpm.spec(tree), encoding="utf-8")
    settings = {
        "_topdir": top / "rpmbuild",
        "_rpmdir": directory,
        "_build_name_fmt": "%%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm",
        # gzip: guests unpack these on an emulated processor.
        "_binary_payload": "w1.gzdio",
    }
    run(["rpmbuild", "-bb", "--quiet", *(f"--define={name} {value}" for name, value in settings.items()), spec])


def index(repository: Path, scratch: Path) -> None:
    """Make a directory of packages a repository, with its advisories."""
    updates = ET.Element("updates")
    updates.extend(advisory.element() for advisory in ADVISORIES)
    updateinfo = scratch / "updateinfo.xml"
    ET.ElementTree(updates).write(updateinfo, encoding="utf-8", xml_declaration=True)
    run(["createrepo_c", "--quiet", repository])
    run(["modifyrepo_c", "--mdtype=updateinfo", updateinfo, repository / "repodata"])
