# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The files of a running guest, through its agent's own commands for files: no process is started for it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._errors import FleetError, GuestUnsupported, ProofFailed
from ansible_collections.kvm.fleet.plugins.module_utils._guest_files import MAX_FILE


class AgentFiles:
    """The port GuestFiles. It changes files which are there, and makes neither files nor directories.

    The agent gives each file that it makes the mode 0666, whatever its umask is: any user of the guest could change
    settings that are read as root. It has no command that changes a mode, renames a file or makes a directory, nor one
    that lists a directory.
    """

    def __init__(self, agent: GuestAgent) -> None:
        self._agent = agent

    def read(self, path: str) -> bytes | None:
        return self._agent.read_file(path, MAX_FILE)

    def write(self, path: str, content: bytes) -> None:
        """Raises GuestUnsupported for a file that is not there, and ProofFailed when it then reads differently.

        A write that fails in between is followed by one of the old content.
        """
        before = self.read(path)
        if before is None:
            raise GuestUnsupported(
                f"there is no {path} in the guest, and a file that its agent makes can be changed by every user there",
                remedy=f"Make {path} in the guest, owned by root and with mode 0644, or let it be edited another way.",
                evidence={"path": path},
            )
        try:
            self._put(path, content, over=before)
            after = self.read(path)
        except FleetError:
            with suppress(FleetError):  # what went wrong first is what the user is told
                self._put(path, before, over=self.read(path) or b"")
            raise
        if after != content:
            raise ProofFailed(
                f"{path} was written in the guest, and reads differently now",
                remedy=f"Compare it with its backup in the guest; something else may have changed {path} meanwhile.",
                evidence={"path": path},
            )

    def names(self, directory: str) -> Sequence[str] | None:
        del directory  # whichever it is
        return None

    def _put(self, path: str, content: bytes, *, over: bytes) -> None:
        # A file that does not shrink is at no moment empty, and keeps its room on a disk that is full.
        self._agent.write_file(path, content, in_place=len(content) >= len(over))
