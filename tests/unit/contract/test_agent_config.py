# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What qemu-ga itself makes of its options and its configuration file, and what is read out of them here."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from ansible_collections.kvm.fleet.plugins.module_utils._agent_config import ListKind, read_config
from lab import agent
from tests.unit.fake_files import SYSTEMD, UNIT, FakeFiles

CASES = [
    ("", ""),
    ("", "[general]\nblock-rpcs=guest-exec,guest-ping\n"),
    ("", "[general]\nblacklist=guest-exec\n"),
    ("", "[general]\nblock-rpcs=guest-exec\nblacklist=guest-ping\n"),
    ("", "[general]\nblacklist=guest-ping\nblock-rpcs=guest-exec\n"),
    ("--blacklist=guest-info", "[general]\nblacklist=\nblock-rpcs=guest-exec\n"),
    ("", "[general]\r\nblock-rpcs = guest-exec,guest-ping\r\n"),
    ("", "[general]\nblock-rpcs=guest-exec, guest-ping,,\n"),
    ("", "[general]\nblock-rpcs=guest-exec \n"),
    ("", "[general]\nblock-rpcs=\n"),
    ("", "# block-rpcs=guest-a\n\n[other]\nblock-rpcs=guest-b\n[general]\n  block-rpcs=guest-exec\n"),
    ("", "[general]\nblock-rpcs=guest-exec\nblock-rpcs=guest-ping\n"),
    ("", "[general]\nblock-rpcs=guest-exec\n[other]\n[general]\nverbose=1\n"),
    ("-b guest-exec", "[general]\nblock-rpcs=guest-ping\n"),
    ("-bguest-exec -b guest-ping --block-rpcs=guest-info", ""),
    ("-vbguest-exec", ""),
    ("--blacklist guest-exec", ""),
    ("--block guest-exec --blac=guest-ping", ""),
    ("--block-rpcs=", "[general]\nblock-rpcs=guest-ping\n"),
    ("word -b guest-exec", ""),
    ("-p -b -l --block-rpcs=guest-exec -m unix-listen", ""),
    ("-F/hook,guest-exec -b guest-ping", ""),
    ("-F guest-exec -b guest-ping", ""),
    ("--fsfreeze-hook --block-rpcs=guest-exec", ""),
    ("-b guest-exec -- -b guest-ping", ""),
]


@pytest.mark.parametrize(("options", "conf"), CASES)
def test_the_real_agent_blocks_what_is_read_here(tmp_path: Path, options: str, conf: str) -> None:
    path = tmp_path / "qemu-ga.conf"
    path.write_text(conf, encoding="utf-8", newline="")
    done = subprocess.run(
        [agent.binary(), *options.split(), "-D"]
        if "--" not in options.split()
        else [agent.binary(), "-D", *options.split()],
        env={**os.environ, "QGA_CONF": str(path)},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    dumped = re.search(r"^block-rpcs=(.*)$", done.stdout, re.MULTILINE)
    assert dumped is not None
    unit = f"[Service]\nEnvironment=QGA_CONF={path}\nExecStart=-/usr/sbin/qemu-ga {options}\n"
    config = read_config(FakeFiles({**SYSTEMD, UNIT: unit, str(path): conf}), (7, 2))
    names = [item.text for found in config.of_kind(ListKind.BLOCK) for item in found.items()]
    assert sorted(names) == sorted(name.replace("\\s", " ") for name in dumped[1].split(",")) or (
        names == [] and dumped[1] == ""
    )


@pytest.mark.parametrize("conf", ["nonsense\n", "[general]\nnonsense\n", "[general]\nblock-rpcs=a\\qb\n"])
def test_the_real_agent_does_not_start_with_what_is_refused_here(tmp_path: Path, conf: str) -> None:
    path = tmp_path / "qemu-ga.conf"
    path.write_text(conf, encoding="utf-8")
    done = subprocess.run([agent.binary(), "-D"], env={"QGA_CONF": str(path)}, capture_output=True, check=False)
    assert done.returncode != 0
