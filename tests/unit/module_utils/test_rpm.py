# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""rpm's records, and the shell text that follows the package's side in configuration files."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvm.fleet.plugins.module_utils._rpm import PREPARE, REPLACE_CONFFILES, parse_records

if TYPE_CHECKING:
    from pathlib import Path


def test_packages_are_on_record_and_keys_are_not() -> None:
    lines = [
        "bash\tx86_64\t5.2.15-1",
        "kernel-core\tx86_64\t6.1-1",
        "kernel-core\tx86_64\t6.2-1",
        "qemu-guest-agent\tx86_64\t2:8.2-1",
        "zero\tnoarch\t0:1.0-1",
        "gpg-pubkey\t(none)\t29b700a4-62b07e22",
        "warning: something",
        "too\tmany\tfields\there",
        "\tnoarch\t1",
        "",
    ]
    assert parse_records(lines) == {
        ("bash", "x86_64"): {"5.2.15-1"},
        ("kernel-core", "x86_64"): {"6.1-1", "6.2-1"},
        ("qemu-guest-agent", "x86_64"): {"2:8.2-1"},
        ("zero", "noarch"): {"1.0-1"},
    }


@given(st.lists(st.text()))
def test_whatever_the_guest_prints_is_records_or_none(lines: list[str]) -> None:
    parse_records(lines)


def run(text: str, journal: Path, conffiles: str, code: int = 0) -> int:
    """A part of a job, as its wrapper runs it."""
    script = f"code={code}\n{text}exit $code"
    environment = {"PATH": "/usr/bin:/bin", "KVM_FLEET_CONFFILES": conffiles}
    return subprocess.run(["/bin/sh", "-c", script], cwd=journal, env=environment, check=False).returncode


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """A guest's /etc with a configuration file that its owner has changed, and with one put beside it long ago."""
    etc = tmp_path / "etc"
    (etc / "with space").mkdir(parents=True)
    (etc / "with space" / "a.conf").write_text("owner's")
    (etc / "old.conf").write_text("owner's")
    (etc / "old.conf.rpmnew").write_text("an earlier upgrade's")
    run(PREPARE, tmp_path, "replace")
    # Written within the same tick of the kernel's clock, it would not be newer.
    while (etc / "with space" / "a.conf.rpmnew").write_text("package's"):
        if (etc / "with space" / "a.conf.rpmnew").stat().st_ctime_ns > (tmp_path / "since").stat().st_ctime_ns:
            break
    return etc


@pytest.mark.parametrize("code", [0, 8])
def test_the_packages_configuration_replaces_the_owners_which_is_kept(tmp_path: Path, etc: Path, code: int) -> None:
    (etc / "with space" / "a.conf.rpmsave").write_text("saved before")
    assert run(REPLACE_CONFFILES.replace("/etc", str(etc)), tmp_path, "replace", code) == code
    found = {str(path.relative_to(etc)): path.read_text() for path in etc.rglob("*") if path.is_file()}
    assert found == {
        "with space/a.conf": "package's",
        "with space/a.conf.rpmsave": "owner's",
        "with space/a.conf.rpmsave.~1~": "saved before",
        "old.conf": "owner's",
        "old.conf.rpmnew": "an earlier upgrade's",
    }


def test_the_owners_configuration_is_kept_by_default(tmp_path: Path, etc: Path) -> None:
    assert run(REPLACE_CONFFILES.replace("/etc", str(etc)), tmp_path, "keep") == 0
    assert (etc / "with space" / "a.conf").read_text() == "owner's"
    assert (etc / "with space" / "a.conf.rpmnew").read_text() == "package's"


def test_a_file_that_cannot_be_replaced_fails_the_job(tmp_path: Path, etc: Path) -> None:
    (etc / "with space" / "a.conf").unlink()
    assert run(REPLACE_CONFFILES.replace("/etc", str(etc)), tmp_path, "replace") == 1
    assert (etc / "with space" / "a.conf.rpmnew").read_text() == "package's"


def test_an_upgrade_that_goes_on_counts_from_its_first_job(tmp_path: Path, etc: Path) -> None:
    assert run(PREPARE, tmp_path, "replace") == 0
    assert run(REPLACE_CONFFILES.replace("/etc", str(etc)), tmp_path, "replace") == 0
    assert (etc / "with space" / "a.conf").read_text() == "package's"
