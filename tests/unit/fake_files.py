# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest's files in memory, and the agent's settings as distributions ship them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.kvm.fleet.plugins.module_utils._errors import FleetError


class FakeFiles:
    """Files by their paths. ``lists`` is False for a way that cannot list a directory, as the agent's own.

    ``faults`` has the error that a write of a path raises.
    """

    def __init__(self, contents: Mapping[str, str | bytes], *, lists: bool = True) -> None:
        self.contents = {
            path: content.encode() if isinstance(content, str) else content for path, content in contents.items()
        }
        self.lists = lists
        self.written: list[str] = []
        self.faults: dict[str, FleetError] = {}

    def read(self, path: str) -> bytes | None:
        return self.contents.get(path)

    def write(self, path: str, content: bytes, *, like: str | None = None) -> None:
        if path in self.faults:
            raise self.faults[path]
        assert like is None or like in self.contents
        self.written.append(path)
        self.contents[path] = content

    def remove(self, path: str) -> None:
        del self.contents[path]

    def names(self, directory: str) -> Sequence[str] | None:
        if not self.lists:
            return None
        below = [path.removeprefix(f"{directory}/") for path in self.contents if path.startswith(f"{directory}/")]
        return sorted({path.partition("/")[0] for path in below})

    def text(self, path: str) -> str:
        return self.contents[path].decode()


@dataclass(frozen=True)
class Family:
    """The agent's settings of a distribution. ``decides`` is the file that an administrator would edit."""

    name: str
    version: tuple[int, int]
    files: Mapping[str, str]
    decides: str
    blocked: tuple[str, ...]
    """Of the RPCs that concern us."""


SYSTEMD = {"/proc/1/comm": "systemd\n"}
UNIT = "/usr/lib/systemd/system/qemu-guest-agent.service"
TEMPLATE = "/usr/lib/systemd/system/qemu-ga@.service"
FILES = ("guest-file-open", "guest-file-close", "guest-file-read", "guest-file-write", "guest-file-seek")
EXEC = ("guest-exec", "guest-exec-status")
_PORT = "--method=virtio-serial --path=/dev/virtio-ports/org.qemu.guest_agent.0"


def _unit(exec_start: str, *more: str) -> str:
    lines = ["[Unit]", "Description=QEMU Guest Agent", "", "[Service]", "UMask=0077", *more]
    return "\n".join([*lines, f"ExecStart={exec_start}", "Restart=always", "", "[Install]", ""])


_RHEL_7 = f"""\
# This is a systemd environment file, not a shell script.
# It provides settings for "/lib/systemd/system/qemu-guest-agent.service".

# Comma-separated blacklist of RPCs to disable, or empty list to enable all.
#
# You can get the list of RPC commands using "qemu-ga --blacklist='?'".
# There should be no spaces between commas and commands in the blacklist.
BLACKLIST_RPC={",".join((*FILES, "guest-file-flush", *EXEC))}

# Fsfreeze hook script specification.
FSFREEZE_HOOK_PATHNAME=/etc/qemu-ga/fsfreeze-hook
"""

_ALLOWED = "guest-sync-delimited,guest-sync,guest-ping,guest-get-time,guest-set-time,guest-info,guest-shutdown"
_RHEL_9 = f"""\
# This is a systemd environment file, not a shell script.
# It provides settings for "/lib/systemd/system/qemu-guest-agent.service".

# Options for RPC filtering, see "qemu-ga --help". You can get the list with "qemu-ga --block-rpcs='?'".
# FILTER_RPC_ARGS="--block-rpcs={",".join(FILES)}"
FILTER_RPC_ARGS="--allow-rpcs={_ALLOWED},guest-fsfreeze-freeze"

# Fsfreeze hook script specification.
FSFREEZE_HOOK_PATHNAME=/etc/qemu-ga/fsfreeze-hook
"""
_FILTERED = f"/usr/bin/qemu-ga {_PORT} $FILTER_RPC_ARGS -F${{FSFREEZE_HOOK_PATHNAME}}"
_SYSCONFIG = "EnvironmentFile=/etc/sysconfig/qemu-ga"
_RHEL_ID = 'NAME="Rocky Linux"\nID="rocky"\nID_LIKE="rhel centos fedora"\n'

FAMILIES = [
    Family(
        "debian 12",
        (7, 2),
        {
            **SYSTEMD,
            "/lib/systemd/system/qemu-guest-agent.service": _unit("-/usr/sbin/qemu-ga"),
            "/etc/init.d/qemu-guest-agent": "#!/bin/sh\n",
            "/etc/default/qemu-guest-agent": "# Set extra command-line options here\nDAEMON_ARGS=-bguest-exec\n",
            "/etc/qemu/qemu-ga.conf": "# ours\n[general]\nverbose = 0\nblock-rpcs = guest-exec,guest-exec-status\n",
        },
        "/etc/qemu/qemu-ga.conf",
        EXEC,
    ),
    Family(
        "debian 11",
        (5, 2),
        {
            **SYSTEMD,
            "/lib/systemd/system/qemu-guest-agent.service": _unit("-/usr/sbin/qemu-ga"),
            "/etc/qemu/qemu-ga.conf": "[general]\nblacklist=guest-exec,guest-exec-status\n",
        },
        "/etc/qemu/qemu-ga.conf",
        EXEC,
    ),
    Family(
        "debian 12 without systemd",
        (7, 2),
        {
            "/proc/1/comm": "init\n",
            "/lib/systemd/system/qemu-guest-agent.service": _unit("-/usr/sbin/qemu-ga"),
            "/etc/init.d/qemu-guest-agent": "#!/bin/sh\n",
            "/etc/default/qemu-guest-agent": "# options\nDAEMON_ARGS='-v -b guest-exec,guest-exec-status'\n",
        },
        "/etc/default/qemu-guest-agent",
        EXEC,
    ),
    Family(
        "ubuntu 22.04",
        (6, 2),
        {
            **SYSTEMD,
            "/etc/os-release": "ID=ubuntu\nID_LIKE=debian\n",
            "/lib/systemd/system/qemu-guest-agent.service": _unit("-/usr/sbin/qemu-ga"),
            "/etc/init.d/qemu-guest-agent": "#!/bin/sh\n",
            "/etc/qemu/qemu-ga.conf": "[general]\nblacklist=guest-exec,guest-exec-status\n",
        },
        "/etc/qemu/qemu-ga.conf",
        EXEC,
    ),
    Family(
        "ubuntu 18.04",
        (2, 11),
        {
            **SYSTEMD,
            "/etc/init.d/qemu-guest-agent": "#!/bin/sh\n",
            "/etc/default/qemu-guest-agent": 'DAEMON_ARGS="--blacklist=guest-exec,guest-exec-status"\n',
        },
        "/etc/default/qemu-guest-agent",
        EXEC,
    ),
    Family(
        "rhel 7",
        (2, 12),
        {
            **SYSTEMD,
            UNIT: _unit(
                f"/usr/bin/qemu-ga \\\n  {_PORT} \\\n  --blacklist=${{BLACKLIST_RPC}} \\\n"
                "  -F${FSFREEZE_HOOK_PATHNAME}",
                _SYSCONFIG,
            ),
            "/etc/sysconfig/qemu-ga": _RHEL_7,
        },
        "/etc/sysconfig/qemu-ga",
        (*FILES, *EXEC),
    ),
    Family(
        "rhel 8",
        (6, 2),
        {
            **SYSTEMD,
            "/etc/os-release": _RHEL_ID,
            "/etc/inittab": "# inittab is no longer used.\n",
            UNIT: _unit(
                f"/usr/bin/qemu-ga {_PORT} --blacklist=${{BLACKLIST_RPC}} -F${{FSFREEZE_HOOK_PATHNAME}}", _SYSCONFIG
            ),
            "/etc/sysconfig/qemu-ga": _RHEL_7,
        },
        "/etc/sysconfig/qemu-ga",
        (*FILES, *EXEC),
    ),
    Family(
        "rhel 9",
        (7, 0),
        {
            **SYSTEMD,
            "/etc/os-release": _RHEL_ID,
            UNIT: _unit(
                f"/usr/bin/qemu-ga {_PORT} --block-rpcs=${{BLOCK_RPCS}} -F${{FSFREEZE_HOOK_PATHNAME}}", _SYSCONFIG
            ),
            "/etc/sysconfig/qemu-ga": _RHEL_7.replace("BLACKLIST_RPC", "BLOCK_RPCS"),
        },
        "/etc/sysconfig/qemu-ga",
        (*FILES, *EXEC),
    ),
    Family(
        "rhel 9.4",
        (8, 2),
        {
            **SYSTEMD,
            "/etc/os-release": _RHEL_ID,
            UNIT: _unit(_FILTERED, _SYSCONFIG),
            "/etc/sysconfig/qemu-ga": _RHEL_9,
        },
        "/etc/sysconfig/qemu-ga",
        (*FILES, *EXEC),
    ),
    Family(
        "rhel 10",
        (9, 1),
        {
            **SYSTEMD,
            "/etc/os-release": _RHEL_ID,
            UNIT: _unit(_FILTERED, _SYSCONFIG),
            "/etc/sysconfig/qemu-ga": _RHEL_9,
        },
        "/etc/sysconfig/qemu-ga",
        (*FILES, *EXEC),
    ),
    Family(
        "fedora",
        (9, 1),
        {
            **SYSTEMD,
            UNIT: _unit(_FILTERED.replace("FILTER_RPC_ARGS", "QEMU_GA_ARGS"), _SYSCONFIG),
            "/etc/sysconfig/qemu-ga": f'QEMU_GA_ARGS="-v --block-rpcs={",".join(EXEC)}"\n',
        },
        "/etc/sysconfig/qemu-ga",
        EXEC,
    ),
    Family(
        "suse 15.3",
        (5, 2),
        {
            **SYSTEMD,
            "/etc/os-release": 'ID="sles"\nID_LIKE="suse"\n',
            TEMPLATE: _unit("-/usr/bin/qemu-ga -p /dev/%I"),
            "/etc/qemu/qemu-ga.conf": "[general]\nblacklist=guest-exec,guest-exec-status\n",
        },
        "/etc/qemu/qemu-ga.conf",
        EXEC,
    ),
    Family(
        "suse 15.4",
        (6, 2),
        {
            **SYSTEMD,
            "/etc/os-release": 'ID="sles"\nID_LIKE="suse"\n',
            UNIT: _unit("-/usr/bin/qemu-ga -p /dev/virtio-ports/org.qemu.guest_agent.0"),
            "/etc/qemu/qemu-ga.conf": "[general]\nblacklist=guest-exec,guest-exec-status\n",
        },
        "/etc/qemu/qemu-ga.conf",
        EXEC,
    ),
    Family(
        "tumbleweed",
        (10, 0),
        {
            **SYSTEMD,
            UNIT: _unit(
                _FILTERED, "EnvironmentFile=-/usr/etc/sysconfig/qemu-ga", "EnvironmentFile=-/etc/sysconfig/qemu-ga"
            ),
            "/usr/etc/sysconfig/qemu-ga": 'FILTER_RPC_ARGS="--block-rpcs=guest-exec,guest-exec-status"\nOTHER=1\n',
        },
        "/etc/sysconfig/qemu-ga",
        EXEC,
    ),
]
