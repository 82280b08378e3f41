# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The commands of the guest agent that the collection has a use for, and what needs them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rpc:
    """One command of the agent. Without one that is ``required`` a guest cannot be upgraded."""

    name: str
    needed_for: str
    required: bool = False


_COMMANDS = "running commands, and so all upgrades"
_FILES = "looking at a guest, and changing its agent's settings, without guest-exec"
_QUIESCE = "snapshots of file systems at rest"

RPCS = (
    Rpc("guest-exec", _COMMANDS, required=True),
    Rpc("guest-exec-status", _COMMANDS, required=True),
    Rpc("guest-file-open", _FILES),
    Rpc("guest-file-read", _FILES),
    Rpc("guest-file-write", _FILES),
    Rpc("guest-file-flush", _FILES),
    Rpc("guest-file-close", _FILES),
    Rpc("guest-fsfreeze-freeze", _QUIESCE),
    Rpc("guest-fsfreeze-status", _QUIESCE),
    Rpc("guest-fsfreeze-thaw", _QUIESCE),
    Rpc("guest-get-fsinfo", "telling the room on its file systems"),
    Rpc("guest-get-osinfo", "telling what system it runs"),
    Rpc("guest-set-time", "setting the clock of a guest that was saved and restored"),
    Rpc("guest-shutdown", "shutting it down by its agent instead of its power button"),
)
