# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a package manager has to be able to do for an upgrade, and which one a guest has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._errors import FleetError, InvalidRequest
from ansible_collections.kvm.fleet.plugins.module_utils._exec import MAX_OUTPUT, Command, Outcome, run_command
from ansible_collections.kvm.fleet.plugins.module_utils._packages import Installed, Prediction

RUN = re.compile(r"[!-~]{1,200}")
"""What the id of a run looks like."""

SHORT_TIMEOUT = 600
"""Seconds that anything but the upgrade itself may take, such as refreshing the package lists."""


@dataclass(frozen=True)
class UpgradeOptions:
    """How to upgrade. ``timeout``, ``lock_delay`` and ``interval`` are in seconds.

    ``timeout`` counts from the beginning of the upgrade in the guest. With ``interval``, following an upgrade ends
    after so long although it still runs; None waits until it has ended. ``run`` is whose upgrade it is.
    """

    run: str = ""
    package_manager: str = "auto"
    security_only: bool = False
    exclude: tuple[str, ...] = ()
    conffiles: str = "keep"
    autoremove: bool = False
    clean: bool = False
    lock_retries: int = 3
    lock_delay: float = 30
    timeout: float = 1800
    interval: float | None = None

    @property
    def lock_timeout(self) -> float:
        """Seconds to wait for a lock altogether."""
        return self.lock_retries * self.lock_delay

    def excludes(self, name: str) -> bool:
        """Whether a package is to be left alone; the shell's wildcards mean in names what they mean in paths."""
        return any(fnmatchcase(name, pattern) for pattern in self.exclude)

    def check(self) -> None:
        """Raise InvalidRequest for what cannot be meant."""
        problem = ""
        if self.timeout <= 0 or self.lock_retries < 0 or self.lock_delay < 0:
            problem = (
                f"a timeout of {self.timeout:g} s, or {self.lock_retries} retries {self.lock_delay:g} s apart, cannot "
                "be meant"
            )
        elif self.interval is not None and self.interval <= 0:
            problem = f"an interval of {self.interval:g} s cannot be meant"
        elif self.run and not RUN.fullmatch(self.run):
            problem = f"{self.run!r} cannot be the id of a run"
        for pattern in self.exclude:
            # Patterns become arguments of package managers, where a leading dash would make options of them.
            if not pattern or pattern.startswith("-") or any(character.isspace() for character in pattern):
                problem = f"{pattern!r} in exclude is no package's name"
        if problem:
            raise InvalidRequest(
                problem,
                remedy="Give a timeout and an interval above zero, retries and a delay of zero or more, names of "
                "packages, and as a run's id at most 200 characters of printable ASCII without spaces.",
            )


@dataclass(frozen=True)
class Shell:
    """Where a package manager's short commands run."""

    agent: GuestAgent
    environment: Mapping[str, str]

    def run(self, argv: Sequence[str]) -> Outcome:
        """Run a command to its end, whatever its return code is, and again while the agent is away. Raises what
        run_command raises.
        """
        command = Command(tuple(argv), environment=self.environment, timeout=SHORT_TIMEOUT, max_output=MAX_OUTPUT)
        return self.agent.patiently(lambda: run_command(self.agent, command))

    def script(self, text: str, *arguments: str) -> Outcome:
        """Run a POSIX shell script in the same way."""
        return self.run(("/bin/sh", "-c", text, "sh", *arguments))


@dataclass(frozen=True)
class Failure:
    """What a package manager was doing when it failed, and what it printed. ``action`` is refresh or upgrade."""

    action: str
    exit_code: int | None
    output: str


@dataclass(frozen=True)
class Progress:
    """How far an upgrade is. ``percent`` is None where the package manager does not tell."""

    percent: int | None = None
    package: str = ""
    activity: str = ""


def percent(done: str, total: str) -> int | None:
    """How much is done, of two numbers in a log; None where there is nothing to do."""
    return min(100, 100 * int(done) // int(total)) if int(total) else None


class PackageManager(Protocol):
    """A package manager, by what an upgrade needs of it. It keeps no state and runs nothing by itself.

    ``state`` is a directory of the guest in which a refresh and a simulation write all that they write, prepared by
    ``state_script`` ($1 is the directory); empty for the package manager's own places. The texts are POSIX shell:
    ``records`` prints the package database for ``parse_records``, in no time and without a lock; ``prepare`` and
    ``finish`` surround the upgrade in its journal, as _job.Job has them. Both see ``KVM_FLEET_AUTOREMOVE`` and
    ``KVM_FLEET_CLEAN``, yes or no, and ``KVM_FLEET_CONFFILES``, keep or replace.
    """

    @property
    def name(self) -> str:
        """By which users choose it."""

    @property
    def environment(self) -> Mapping[str, str]:
        """What its commands run with, beside the agent's own."""

    @property
    def locks(self) -> tuple[str, ...]:
        """Its lock files, as _locks.holders takes them."""

    @property
    def state_script(self) -> str:
        """Prepares a private state."""

    @property
    def records(self) -> str:
        """Prints the package database."""

    @property
    def prepare(self) -> str:
        """Runs before the command."""

    @property
    def finish(self) -> str:
        """Runs after the command."""

    def refresh(self, shell: Shell, state: str) -> None:
        """Fetch fresh package lists. Raises the typed error behind a failure."""

    def simulate(self, shell: Shell, options: UpgradeOptions, state: str) -> Prediction:
        """What an upgrade would do by the present lists. Raises the typed error behind a failure."""

    def command(self, prediction: Prediction, options: UpgradeOptions) -> tuple[str, ...]:
        """The command that does what was predicted and asks no questions; autoremoval and cleaning may be left to
        ``finish``.
        """

    def repair(self, options: UpgradeOptions) -> tuple[str, ...]:
        """The command that finishes what an interrupted operation has left half done; harmless where nothing is."""

    def parse_records(self, lines: Iterable[str]) -> Installed:
        """Read what ``records`` prints."""

    def progress(self, status: Sequence[str], log: Sequence[str]) -> Progress:
        """How far the upgrade is, by the last lines of its status descriptor (3) and of its log."""

    def explain(self, failure: Failure) -> FleetError:
        """The typed error behind a failed command, from its output in the C locale."""
