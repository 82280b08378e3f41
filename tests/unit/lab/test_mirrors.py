# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which of a host's sources guests are built from."""

from __future__ import annotations

from lab.host import Distribution
from lab.mirrors import parse_acquire_options, parse_targets

BOOKWORM = Distribution("debian", "12", "bookworm")

TARGETS = """\
Debian|http://mirror.example.org/debian/|bookworm|main
Debian|http://mirror.example.org/debian/|bookworm|contrib
Debian|http://mirror.example.org/debian/|bookworm|main
Debian|http://mirror.example.org/debian/|bookworm-updates|main
Debian|http://mirror.example.org/debian-security/|bookworm-security|main
Debian|http://mirror.example.org/debian/|trixie|main
Debian Backports|http://mirror.example.org/debian/|bookworm-backports|main
Docker|https://download.docker.com/linux/debian/|bookworm|stable
apt.postgresql.org|https://apt.postgresql.org/pub/repos/apt/|bookworm-pgdg|main
.|https://deb.nodesource.com/node_20.x/|nodistro|main
$(ORIGIN)|https://never.fetched.example/debian/|bookworm|main
Debian|file:/srv/flat/|./|$(COMPONENT)
"""


def test_only_the_distributions_own_sources_of_its_own_release_are_taken() -> None:
    assert parse_targets(TARGETS, BOOKWORM) == [
        "deb http://mirror.example.org/debian/ bookworm main contrib",
        "deb http://mirror.example.org/debian/ bookworm-updates main",
        "deb http://mirror.example.org/debian-security/ bookworm-security main",
    ]


def test_lists_that_were_never_fetched_give_no_source() -> None:
    assert parse_targets("$(ORIGIN)|http://mirror.example.org/debian/|bookworm|main\n", BOOKWORM) == []
    assert parse_targets("", BOOKWORM) == []


def test_the_way_to_the_sources_is_taken_over_and_nothing_else() -> None:
    dump = """\
APT::Architecture "amd64";
Acquire "";
Acquire::Languages:: "none";
Acquire::http::Proxy "http://proxy.example:3128";
Acquire::https::CaInfo "/etc/ssl/certs/own.pem";
Acquire::https "";
Acquire::Check-Valid-Until "false";
Acquire::Retries "3";
Acquire::GzipIndexes "true";
"""
    assert parse_acquire_options(dump) == [
        'Acquire::http::Proxy "http://proxy.example:3128"',
        'Acquire::https::CaInfo "/etc/ssl/certs/own.pem"',
        'Acquire::Check-Valid-Until "false"',
        'Acquire::Retries "3"',
    ]
