# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command line."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import lab
from lab import cli, host
from lab.errors import Unsupported

TOP = Path(lab.__file__).parent.parent


def test_packages_are_printed_by_a_python_that_has_nothing_installed() -> None:
    # -I and -S keep out every site directory; the packages come from the current directory alone.
    script = "import sys; sys.path.insert(0, '.'); from lab.cli import main; sys.exit(main(['packages']))"
    said = subprocess.run(
        ["/usr/bin/python3", "-I", "-S", "-c", script], cwd=TOP, capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == list(host.packages())


def test_three_guests_and_no_foreign_ones_unless_asked() -> None:
    asked = cli.parser().parse_args(["up"])
    assert (asked.guests, asked.allow_foreign_guests) == (3, False)


@pytest.mark.parametrize("arguments", [[], ["sideways"], ["up", "--guests", "many"], ["down", "--guests", "1"]])
def test_what_is_no_command_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        cli.main(arguments)
    assert refusal.value.code == 2


def test_a_failure_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*, install: bool) -> None:
        assert not install, "status only looks"
        raise Unsupported("the lab needs root", "run it as root")

    monkeypatch.setattr(host, "prepare", refuse)
    assert cli.main(["status"]) == 1
    assert capsys.readouterr().err == "lab: the lab needs root\n  remedy: run it as root\n"
