# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Upgrades the packages of a guest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ansible_collections.kvm.fleet.plugins.module_utils import _apt, _job
from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._clock import Clock, pause
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    GuestUnsupported,
    PackageManagerLocked,
    PackageManagerUnknown,
)
from ansible_collections.kvm.fleet.plugins.module_utils._exec import (
    MAX_OUTPUT,
    Command,
    run_command,
    shell_script,
)
from ansible_collections.kvm.fleet.plugins.module_utils._packages import PackageChange, Prediction, changes_between


@dataclass(frozen=True)
class UpgradeOptions:
    """How to upgrade. ``timeout`` is for the upgrade itself and ``lock_delay`` between two tries, both in seconds."""

    security_only: bool = False
    autoremove: bool = False
    clean: bool = False
    lock_retries: int = 3
    lock_delay: float = 30
    timeout: float = 1800

    @property
    def lock_timeout(self) -> float:
        """Seconds to wait for a lock altogether."""
        return self.lock_retries * self.lock_delay


REFRESH_TIMEOUT = 600
"""Seconds that refreshing the package lists may take; simulating has to end within it as well."""


def require_package_manager(agent: GuestAgent) -> None:
    """Raise PackageManagerUnknown unless the guest has apt."""
    look = 'command -v apt-get && command -v dpkg-query && exit 0; . /etc/os-release; echo "$ID"; exit 1'
    outcome = run_command(agent, shell_script(look, timeout=60))
    if outcome.exit_code != 0:
        system = outcome.stdout.strip() or "unknown"
        raise PackageManagerUnknown(
            f"the guest (os-release: {system}) has no package manager that is known here; apt is",
            remedy="Upgrade this guest by other means; skip its packages with upgrade_packages: false.",
        )


def predict(agent: GuestAgent, clock: Clock, options: UpgradeOptions, *, keep_lists: bool) -> Prediction:
    """What an upgrade would do now, by fresh package lists.

    With ``keep_lists`` the guest's own lists stay as they are: fresh ones are fetched into a directory that is removed
    again. Raises PackageManagerLocked after all retries, PackageListsFailed, PackageStateInterrupted and UpgradeFailed.
    """
    with _private_state(agent) if keep_lists else _own_state() as state:
        _retry_while_locked(agent, clock, (*state, *_apt.UPDATE), options)
        everything = _simulate(agent, (*state, *_apt.full_upgrade(autoremove=options.autoremove)))
        if not options.security_only:
            return everything
        wanted = [change for change in everything.changes if change.security]
        if not wanted:
            return Prediction(())
        return _simulate(agent, (*state, *_apt.selected_upgrade(wanted, autoremove=options.autoremove)))


def upgrade(
    agent: GuestAgent, clock: Clock, prediction: Prediction, options: UpgradeOptions
) -> tuple[PackageChange, ...]:
    """Carry out what was predicted and return what changed, by dpkg's own records before and after.

    The upgrade runs as a unit of the guest and outlives restarts of its agent. Raises what ``_job`` raises, and the
    typed error behind a failed apt-get, with what had changed by then as evidence; the job's directory then stays in
    the guest.
    """
    if options.security_only:
        wanted = [change for change in prediction.changes if change.security]
        arguments = _apt.selected_upgrade(wanted, autoremove=options.autoremove)
    else:
        arguments = _apt.full_upgrade(autoremove=options.autoremove)
    job = _job.new_job(clock.now())
    command = ("apt-get", *_apt.unattended(options.lock_timeout), *arguments)
    _job.start(agent, job, _SCRIPT, ("yes" if options.clean else "no", *command))
    exit_code = _job.wait(agent, clock, job, options.timeout)
    records = _job.read(agent, job, "before", "after")
    changes = changes_between(
        _apt.parse_records(records["before"]),
        _apt.parse_records(records["after"]),
        {change.name for change in prediction.changes if change.security},
    )
    if exit_code != 0:
        error = _apt.explain(_apt.Failure("upgrade", exit_code, "\n".join(_job.tail(agent, job))))
        error.evidence["directory"] = job.directory
        error.evidence["changes"] = [vars(change) for change in changes]
        raise error
    _job.remove(agent, job)
    return changes


# $1: the job's directory, $2: 'yes' to empty the package cache afterwards; the rest is the command that upgrades.
# 'before' is written before anything changes and 'exit' last, each by renaming, so that what is there is whole.
_SCRIPT = f"""\
cd "$1" || exit 1
clean=$2; shift 2
export {" ".join(f"{name}={value}" for name, value in _apt.ENVIRONMENT.items())}
records() {{ dpkg-query -W -f='{_apt.RECORDS_FORMAT}' >"$1.new" && mv "$1.new" "$1"; }}
records before
"$@" >log 2>&1 </dev/null
code=$?
records after
if [ "$code" -eq 0 ] && [ "$clean" = yes ]; then apt-get clean >>log 2>&1; code=$?; fi
sync
echo "$code" >exit.new && mv exit.new exit
"""


@contextmanager
def _own_state() -> Iterator[tuple[str, ...]]:
    """apt's options for working on the guest's own package lists: none."""
    yield ()


@contextmanager
def _private_state(agent: GuestAgent) -> Iterator[tuple[str, ...]]:
    """apt's options for working in a directory of its own, which is there for as long as the context lasts."""
    # apt downloads as the user _apt, who has to get into the directory.
    make = (
        'directory=$(mktemp -d /var/tmp/kvm-fleet.XXXXXXXX) && chmod 755 "$directory" && '
        'mkdir -p "$directory/lists/partial" "$directory/cache/archives/partial" && '
        'printf %s "$1" >"$directory/apt.conf" && echo "$directory"'
    )
    made = run_command(agent, shell_script(make, _apt.HOOKS_OFF, timeout=60))
    directory = made.stdout.strip()
    if made.exit_code != 0 or not directory.startswith("/var/tmp/kvm-fleet."):
        raise GuestUnsupported(
            f"no directory for a simulation could be made in the guest's /var/tmp: {made.stderr.strip()}",
            remedy="See that the guest's /var/tmp can be written to and has free space.",
        )
    try:
        yield _apt.private_state(directory)
    finally:
        run_command(agent, Command(("rm", "-rf", "--", directory), timeout=60))


def _retry_while_locked(agent: GuestAgent, clock: Clock, arguments: Sequence[str], options: UpgradeOptions) -> None:
    """Run apt-get; while a lock is held, again after each pause, as often as the options say."""
    for retries_left in range(options.lock_retries, -1, -1):
        try:
            _apt_get(agent, "update", arguments)
            return
        except PackageManagerLocked:
            if not retries_left:
                raise
            pause(clock, options.lock_delay)


def _simulate(agent: GuestAgent, arguments: Sequence[str]) -> Prediction:
    return _apt.parse_simulation(_apt_get(agent, "upgrade", ("--simulate", *arguments)))


def _apt_get(agent: GuestAgent, action: str, arguments: Sequence[str]) -> str:
    """Run a short apt-get and return what it printed. Raises the typed error behind its failure."""
    outcome = run_command(
        agent,
        Command(("apt-get", *arguments), environment=_apt.ENVIRONMENT, timeout=REFRESH_TIMEOUT, max_output=MAX_OUTPUT),
    )
    if outcome.exit_code != 0:
        raise _apt.explain(_apt.Failure(action, outcome.exit_code, outcome.stdout + outcome.stderr))
    return outcome.stdout
