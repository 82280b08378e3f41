# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Text in, text out."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.evidence import file_name
from lab.libraries import parse_ldd
from lab.table import table


def test_columns_line_up() -> None:
    assert table([["GUEST", "STATE"], ["a long name", "off"]]) == "GUEST        STATE\na long name  off"


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("tests/test_a.py::test_b[x]", "tests_test_a.py_test_b[x]"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ("-rf /", "rf_"),
        ("..", "_"),
        ("a" * 300, "a" * 150),
    ],
)
def test_a_name_for_evidence_leads_nowhere_else(name: str, safe: str) -> None:
    assert file_name(name) == safe


def test_a_library_is_found_in_what_ldd_says() -> None:
    said = "\tlinux-vdso.so.1 (0x0)\n\tlibz.so.1 => /lib/libz.so.1 (0x0)\n\tlibslirp.so.0 => /lib/libslirp.so.0 (0x0)\n"
    assert parse_ldd(said, "libslirp.so.0") == Path("/lib/libslirp.so.0")
    assert parse_ldd(said, "libslirp.so") is None
