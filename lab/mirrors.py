# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The host's own sources of its distribution, from which guests are built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lab.errors import Unsupported
from lab.progress import step
from lab.run import run

if TYPE_CHECKING:
    from lab.host import Distribution

TARGETS = ("apt-get", "indextargets", "--format", "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)")


@dataclass(frozen=True)
class Archive:
    """Where a distribution's packages come from, and how apt gets there."""

    distribution: Distribution
    sources: tuple[str, ...]
    """Lines as in sources.list(5)."""
    apt_options: tuple[str, ...]
    """Lines as in apt.conf(5), without the semicolon."""


def parse_targets(text: str, wanted: Distribution) -> list[str]:
    """Source lines from apt's own list of what it reads.

    A source belongs to the distribution if its Release file says so: a third party's may have
    the same suite and component names. Flat repositories have no component and are left out.
    """
    components: dict[tuple[str, str], list[str]] = {}
    for line in text.splitlines():
        origin, uri, suite, component = line.split("|")
        if origin != wanted.origin or component.startswith("$") or not component:
            continue
        if suite == wanted.codename or suite.startswith((f"{wanted.codename}-", f"{wanted.codename}/")):
            known = components.setdefault((uri, suite), [])
            if component not in known:
                known.append(component)
    return [f"deb {uri} {suite} {' '.join(names)}" for (uri, suite), names in components.items()]


def source_lines(wanted: Distribution) -> list[str]:
    """The host's sources that serve the distribution itself."""
    lines = parse_targets(run([*TARGETS, "Created-By: Packages"]), wanted)
    if lines:
        return lines
    with step("fetching apt's lists, to know whose they are"):
        run(["apt-get", "update"])
    lines = parse_targets(run([*TARGETS, "Created-By: Packages"]), wanted)
    if not lines:
        raise Unsupported(
            f"no apt source of this machine serves {wanted.origin} {wanted.codename}",
            "add one that does, then run apt-get update",
        )
    return lines


def parse_acquire_options(dump: str) -> list[str]:
    """apt-config's dump lines that say how to reach the sources (proxies, CAs, dates, retries)."""
    wanted = ("http", "https", "check-", "retries", "forceipv", "ftp")
    return [
        line.removesuffix(";")
        for line in dump.splitlines()
        if line.lower().startswith(tuple(f"acquire::{name}" for name in wanted)) and not line.endswith(' "";')
    ]


def archive(wanted: Distribution) -> Archive:
    """The host's own way to its distribution; mmdebstrap does not read the host's settings."""
    return Archive(wanted, tuple(source_lines(wanted)), tuple(parse_acquire_options(run(["apt-config", "dump"]))))
