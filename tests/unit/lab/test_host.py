# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the lab asks of a machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from lab import host
from lab.errors import Unsupported
from lab.host import Distribution, missing, parse_os_release, require_a_suitable_machine, require_room

BOOKWORM = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\nID=debian\n'
NOBLE = "ID=ubuntu\nID_LIKE=debian\nVERSION_ID='24.04'\nVERSION_CODENAME=noble\nUBUNTU_CODENAME=noble\n"


@pytest.mark.parametrize(
    ("text", "distribution", "origin"),
    [
        (BOOKWORM, Distribution("debian", "12", "bookworm"), "Debian"),
        (NOBLE, Distribution("ubuntu", "24.04", "noble"), "Ubuntu"),
    ],
)
def test_debian_and_ubuntu_are_known(text: str, distribution: Distribution, origin: str) -> None:
    assert parse_os_release(text) == distribution
    assert distribution.origin == origin


@pytest.mark.parametrize("text", ["", "ID=fedora\nVERSION_CODENAME=\n", "ID=debian\nPRETTY_NAME=sid\n"])
def test_a_distribution_without_a_known_archive_is_refused(text: str) -> None:
    with pytest.raises(Unsupported, match="run it on a Debian or Ubuntu machine"):
        parse_os_release(text)


@pytest.mark.parametrize(
    ("kernels", "codename", "more"),
    [([], BOOKWORM, ["linux-image-cloud-amd64"]), ([], NOBLE, ["linux-image-virtual"]), (["vmlinuz-6.1"], NOBLE, [])],
)
def test_a_kernel_is_wanted_only_where_there_is_none(
    kernels: list[str], codename: str, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kernel in kernels:
        (tmp_path / kernel).touch()
    monkeypatch.setattr(host, "BOOT", tmp_path)
    monkeypatch.setattr(host, "distribution", lambda: parse_os_release(codename))
    assert host.packages() == (*host.LAB_PACKAGES, *more)


def test_only_what_is_fully_installed_counts() -> None:
    installed = "mmdebstrap ii \nqemu-utils rc \nlibvirt-clients iU \nqemu-utils-extra ii \n"
    assert missing(installed, ("mmdebstrap", "qemu-utils", "libvirt-clients", "gcc")) == [
        "qemu-utils",
        "libvirt-clients",
        "gcc",
    ]


def test_too_little_room_is_told_in_numbers(tmp_path: Path) -> None:
    require_room(tmp_path / "new", 1)
    with pytest.raises(Unsupported, match=f"{tmp_path} has [0-9]+ MiB left, and {2**40} MiB are needed"):
        require_room(tmp_path, 2**40)


def test_somebody_else_than_root_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Unsupported, match="run it as root"):
        require_a_suitable_machine()


def test_another_architecture_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(Unsupported, match="this machine is aarch64"):
        require_a_suitable_machine()
