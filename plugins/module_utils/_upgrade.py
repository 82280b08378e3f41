# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Upgrades the packages of a guest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ansible_collections.kvm.fleet.plugins.module_utils import _apt, _job
from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._clock import Clock, pause
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    FleetError,
    GuestUnsupported,
    InvalidRequest,
    PackageManagerLocked,
    PackageManagerUnknown,
    PackageStateInterrupted,
    UpgradeFailed,
    UpgradeInterrupted,
)
from ansible_collections.kvm.fleet.plugins.module_utils._exec import (
    MAX_OUTPUT,
    Command,
    output_of,
    run_command,
    shell_script,
)
from ansible_collections.kvm.fleet.plugins.module_utils._job import JobState
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

    def check(self) -> None:
        """Raise InvalidRequest for numbers that cannot be meant."""
        if self.timeout <= 0 or self.lock_retries < 0 or self.lock_delay < 0:
            raise InvalidRequest(
                f"a timeout of {self.timeout:g} s, or {self.lock_retries} retries {self.lock_delay:g} s apart, cannot "
                "be meant",
                remedy="Give a timeout above zero, and retries and a delay of zero or more.",
            )


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
        if not everything.security:
            return Prediction(())
        return _simulate(agent, (*state, *_apt.selected_upgrade(everything.security, autoremove=options.autoremove)))


@dataclass(frozen=True)
class Preview:
    """What an upgrade would do, and what an earlier one has left undone: NONE where nothing."""

    prediction: Prediction
    unfinished: JobState


def preview(agent: GuestAgent, clock: Clock, options: UpgradeOptions) -> Preview:
    """Look ahead without changing anything. Raises what ``predict`` raises.

    While an earlier upgrade still runs, or has to be repaired first, nobody can tell what will be left to do after it.
    """
    unfinished = _job.look(agent).state
    if unfinished in _job.UNFINISHED:
        return Preview(Prediction(()), unfinished)
    try:
        return Preview(predict(agent, clock, options, keep_lists=True), unfinished)
    except PackageStateInterrupted:
        return Preview(Prediction(()), JobState.CUT_OFF)


def upgrade(agent: GuestAgent, clock: Clock, options: UpgradeOptions) -> Prediction:
    """Upgrade, and return what changed, by dpkg's own records, and what was kept back.

    What an earlier run has left is brought to an end first: a job that still runs is waited for, one that failed or was
    cut off is repaired after. What that run changed is part of the result, since nobody else has told it yet.

    Raises what ``predict`` and ``_job`` raise, UpgradeInterrupted, and the typed error behind a failed apt-get, with
    what had changed by then as evidence. The journal then stays in the guest for the next run.
    """
    left = _job.wait(agent, clock, options.timeout)
    if left.state is JobState.CUT_OFF or left.exit_code:
        _repair(agent, clock, options)
    try:
        prediction = predict(agent, clock, options, keep_lists=False)
    except PackageStateInterrupted:
        _repair(agent, clock, options)
        prediction = predict(agent, clock, options, keep_lists=False)
    if prediction.changes:
        security = [change.name for change in prediction.security]
        _run_job(agent, clock, options, _upgrade_command(prediction, options), security)
    return Prediction(_finish(agent), prediction.kept_back)


def _upgrade_command(prediction: Prediction, options: UpgradeOptions) -> tuple[str, ...]:
    if options.security_only:
        arguments = _apt.selected_upgrade(prediction.security, autoremove=options.autoremove)
    else:
        arguments = _apt.full_upgrade(autoremove=options.autoremove)
    return ("apt-get", *_apt.unattended(options.lock_timeout), *arguments)


def _repair(agent: GuestAgent, clock: Clock, options: UpgradeOptions) -> None:
    """Finish what an interrupted package operation has left half done. Raises PackageStateInterrupted if that fails."""
    try:
        _run_job(agent, clock, options, ("/bin/sh", "-c", _apt.REPAIR, "sh", f"{options.lock_timeout:g}"), ())
    except UpgradeFailed as error:
        raise PackageStateInterrupted(
            f"an interrupted package operation in the guest could not be repaired: {error.message}",
            remedy="Finish it in the guest ('dpkg --configure -a', 'apt-get -f install'), or revert a snapshot.",
            evidence=error.evidence,
        ) from error


def _run_job(
    agent: GuestAgent, clock: Clock, options: UpgradeOptions, command: Sequence[str], security: Sequence[str]
) -> None:
    """Run a command as the guest's upgrade unit, to its end. Raises the typed error behind its failure."""
    _job.start(agent, _SCRIPT, ("yes" if options.clean else "no", " ".join(security), *command))
    ended = _job.wait(agent, clock, options.timeout)
    if ended.exit_code == 0:
        return
    log = _job.tail(agent)
    if ended.exit_code is None:
        raise UpgradeInterrupted(
            "the upgrade's unit is gone from the guest and left no result: it was stopped, or the guest restarted",
            remedy="Run again: what it left half done is repaired first.",
            evidence={"journal": _job.JOURNAL, "log": log},
        )
    error = _apt.explain(_apt.Failure("upgrade", ended.exit_code, "\n".join(log)))
    error.evidence["journal"] = _job.JOURNAL
    error.evidence["changes"] = [vars(change) for change in _changes(agent)]
    raise error


def _finish(agent: GuestAgent) -> tuple[PackageChange, ...]:
    """What has changed since the journal was begun; then the journal is removed, its result being told."""
    changes = _changes(agent)
    output_of(agent, Command(("rm", "-rf", "--", _job.JOURNAL), timeout=_job.STEP_TIMEOUT))
    return changes


def _changes(agent: GuestAgent) -> tuple[PackageChange, ...]:
    """From the journal's 'before' to dpkg's records of this moment; nothing where no journal was begun."""
    files = _job.read(agent, "before", "security")
    if not files["before"]:
        return ()
    query = Command(("dpkg-query", "-W", f"-f={_apt.RECORDS_FORMAT}"), timeout=60, max_output=MAX_OUTPUT)
    now = _apt.parse_records(output_of(agent, query).split("\n"))
    return changes_between(_apt.parse_records(files["before"]), now, set(files["security"]))


# $1: the journal, $2: 'yes' to empty the package cache afterwards, $3: names of security updates; the rest is the
# command. 'auto' and 'before' are written once, before anything changes, and 'exit' last. What
# others rely on is renamed into place, so that what is there is whole however the guest went down.
_SCRIPT = f"""\
cd "$1" || exit 1
clean=$2 security=$3; shift 3
export {" ".join(f"{name}={value}" for name, value in _apt.ENVIRONMENT.items())}
if [ ! -e before ]; then
  apt-mark showauto | sort >auto || exit 1
  dpkg-query -W -f='{_apt.RECORDS_FORMAT}' >before.new && sync before.new && mv before.new before || exit 1
fi
for name in $security; do echo "$name"; done >>security
"$@" >log 2>&1 </dev/null 3>progress
code=$?
# Naming a package on apt-get's command line marks it as wanted by hand, and autoremove would then spare it for ever.
apt-mark showauto | sort | comm -23 auto - | xargs -r apt-mark auto >>log 2>&1
if [ "$code" -eq 0 ] && [ "$clean" = yes ]; then apt-get clean >>log 2>&1; code=$?; fi
sync
echo "$code" >exit.new && sync exit.new && mv exit.new exit
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
    remove = Command(("rm", "-rf", "--", directory), timeout=60)
    try:
        yield _apt.private_state(directory)
    except FleetError:
        with suppress(FleetError):  # the first cause is the one to tell
            run_command(agent, remove)
        raise
    output_of(agent, remove)


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
    if outcome.exit_code != 0 or outcome.stdout_truncated:
        raise _apt.explain(_apt.Failure(action, outcome.exit_code, outcome.stdout + outcome.stderr))
    return outcome.stdout
