# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The real apt of this machine, with a package database and repositories that are a test's own."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from tests.unit.host_agent import HostAgent

_CONFIGURATION = """\
Dir "{root}/";
Dir::State "{root}/state";
Dir::State::status "{root}/dpkg/status";
Dir::Cache "{root}/cache";
Dir::Etc "{root}/etc";
Dir::Log "{root}/log";
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; "i386"; }};
APT::Sandbox::User "root";
APT::Update::Post-Invoke-Success "";
"""


def stanza(name: str, version: str, **fields: object) -> str:
    """A package as repositories and dpkg describe it; underscores in the names of fields are dashes."""
    told = {"Package": name, "Version": version, "Architecture": "amd64", "Maintainer": "x <x@x>", "Description": "x"}
    told |= {key.replace("_", "-"): str(value) for key, value in fields.items()}
    return "".join(f"{key}: {value}\n" for key, value in told.items()) + "\n"


class RealApt:
    """What a guest's agent runs meets apt, with these packages."""

    def __init__(self, host: HostAgent, root: Path) -> None:
        self.root = root
        for directory in (
            "state",
            "cache",
            "log",
            "dpkg/info",
            "dpkg/updates",
            "etc/apt.conf.d",
            "etc/preferences.d",
            "etc/trusted.gpg.d",
            "files",
        ):
            (root / directory).mkdir(parents=True)
        (root / "apt.conf").write_text(_CONFIGURATION.format(root=root), encoding="utf-8")
        (root / "dpkg" / "status").touch()
        (root / "etc" / "sources.list").touch()
        host.environment |= {
            "APT_CONFIG": f"{root}/apt.conf",
            "DPKG_ADMINDIR": f"{root}/dpkg",
            "DPKG_ROOT": f"{root}/files",
        }

    def install(
        self,
        name: str,
        version: str,
        *,
        want: str = "install",
        flag: str = "ok",
        status: str = "installed",
        **fields: object,
    ) -> None:
        """Put a package into the database, as dpkg does."""
        with (self.root / "dpkg" / "status").open("a", encoding="utf-8") as file:
            file.write(stanza(name, version, Status=f"{want} {flag} {status}", **fields))

    def mark_auto(self, *names: str) -> None:
        """Say of packages that they came in as dependencies."""
        marks = "".join(f"Package: {name}\nArchitecture: amd64\nAuto-Installed: 1\n\n" for name in names)
        (self.root / "state" / "extended_states").write_text(marks, encoding="utf-8")

    def build(self, name: str, version: str) -> str:
        """Build a package without files, and tell of it as a repository does."""
        tree, archive = self.root / f"build-{name}", self.root / f"{name}.deb"
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "DEBIAN" / "control").write_text(stanza(name, version).rstrip("\n") + "\n", encoding="utf-8")
        subprocess.run(["dpkg-deb", "--build", tree, archive], check=True, stdout=subprocess.DEVNULL)
        content = archive.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        return offered(name, version, Filename=f"../{name}.deb", Size=len(content), SHA256=digest)

    def states(self) -> dict[str, str]:
        """What dpkg says of each package: what is wanted, the flag, the state and the version."""
        query = ["dpkg-query", f"--admindir={self.root}/dpkg", "-W", "-f=${Package}\t${Status} ${Version}\n"]
        listed = subprocess.run(query, check=True, capture_output=True, text=True).stdout
        return dict(line.split("\t") for line in listed.splitlines())

    def publish(self, label: str, suite: str, *packages: str) -> None:
        """Make a repository, and have the guest know it."""
        repository = self.root / f"{label}-{suite}".replace(" ", "-")
        repository.mkdir()
        content = "".join(packages).encode()
        (repository / "Packages").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        release = f"Label: {label}\nVersion: 12\nSuite: {suite}\nSHA256:\n {digest} {len(content)} Packages\n"
        (repository / "Release").write_text(release, encoding="utf-8")
        with (self.root / "etc" / "sources.list").open("a", encoding="utf-8") as sources:
            sources.write(f"deb [trusted=yes] file:{repository} ./\n")


def offered(name: str, version: str, **fields: object) -> str:
    """A package as a repository has it."""
    more = {"Filename": f"./{name}.deb", "Size": 1000, "Installed_Size": 10, "SHA256": "0" * 64}
    return stanza(name, version, **(more | fields))
