# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Upgrades the packages of a guest."""

from __future__ import annotations

import base64
import json
import random
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from ansible_collections.kvm.fleet.plugins.module_utils import _failures, _job
from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._clock import Clock, Deadline, pause
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    FleetError,
    GuestUnsupported,
    PackageManagerLocked,
    PackageStateInterrupted,
    UpgradeFailed,
    UpgradeInterrupted,
    UpgradeTimeout,
)
from ansible_collections.kvm.fleet.plugins.module_utils._exec import (
    MAX_OUTPUT,
    Command,
    output_of,
    run_command,
    shell_script,
)
from ansible_collections.kvm.fleet.plugins.module_utils._job import Job, JobLook, JobState
from ansible_collections.kvm.fleet.plugins.module_utils._locks import Holder, holders
from ansible_collections.kvm.fleet.plugins.module_utils._manager import (
    Failure,
    PackageManager,
    Progress,
    Shell,
    UpgradeOptions,
)
from ansible_collections.kvm.fleet.plugins.module_utils._packages import (
    KeptBack,
    KeptReason,
    PackageChange,
    Prediction,
    changes_between,
)
from ansible_collections.kvm.fleet.plugins.module_utils._room import require_room

STOP_TIMEOUT = 600
"""Seconds that the package manager has to end by itself after it was asked to: the transaction that it is in."""

_UPGRADE, _REPAIR = "upgrade", "repair"

_T = TypeVar("_T")

EXPLAINED_LINES = 3000
"""Lines of a failed job's log in which its cause is looked for: package managers go on for long after an error."""

_RANDOM = random.SystemRandom()


@dataclass(frozen=True)
class Guest:
    """Whose packages are upgraded: the agent that reaches it, the clock, its package manager."""

    agent: GuestAgent
    clock: Clock
    manager: PackageManager

    @property
    def shell(self) -> Shell:
        """Where the package manager's short commands run."""
        return Shell(self.agent, self.manager.environment)


@dataclass(frozen=True)
class Preview:
    """What an upgrade would do, and what an earlier one has left undone: NONE where nothing."""

    prediction: Prediction
    unfinished: JobState


@dataclass(frozen=True)
class Upgraded:
    """What an upgrade came to. ``config_files`` are those that it left beside others for a person to compare."""

    changes: tuple[PackageChange, ...] = ()
    kept_back: tuple[KeptBack, ...] = ()
    config_files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Underway:
    """An upgrade that still runs, ``elapsed`` seconds after it began."""

    progress: Progress
    elapsed: float


# --- looking ahead -------------------------------------------------------------------------------


def preview(guest: Guest, options: UpgradeOptions) -> Preview:
    """Look ahead without changing anything, not even the guest's package lists.

    While an earlier upgrade still runs, or has to be repaired first, nobody can tell what will be left to do after it.
    Raises what ``predict`` raises, and PackageManagerLocked where an upgrade would meet a lock.
    """
    unfinished = _job.look(guest.agent).state
    if unfinished is JobState.RUNNING:
        return Preview(Prediction(), unfinished)
    _patiently(guest, options, lambda: _require_no_lock(guest))
    try:
        with _private_state(guest) as state:
            return Preview(predict(guest, options, state), unfinished)
    except PackageStateInterrupted:
        return Preview(Prediction(), JobState.CUT_OFF)


def predict(guest: Guest, options: UpgradeOptions, state: str = "") -> Prediction:
    """What an upgrade would do now, by fresh package lists, which are written to ``state`` if it is given.

    Raises DiskFull for an upgrade that the guest has no room for, PackageManagerLocked after all retries, and what else
    the package manager's failures are explained as.
    """
    _patiently(guest, options, lambda: guest.manager.refresh(guest.shell, state))
    prediction = _patiently(guest, options, lambda: guest.manager.simulate(guest.shell, options, state))
    require_room(guest.agent, prediction)
    return prediction


def _require_no_lock(guest: Guest) -> None:
    found = holders(guest.agent, guest.manager.locks)
    if found:
        raise _failures.locked(found[0].lock, {})


def _patiently(guest: Guest, options: UpgradeOptions, attempt: Callable[[], _T]) -> _T:
    """Try, and try again while a lock is held: at growing intervals, until it was held for as long as the options say.

    The intervals are shortened at random, or guests that met the same lock on shared storage would meet again.
    """
    deadline = Deadline(guest.clock, options.lock_timeout)
    longest = options.lock_delay / 8
    while True:
        try:
            return attempt()
        except PackageManagerLocked as error:
            if deadline.passed:
                raise _naming_the_holder(guest, error, deadline.seconds) from None
            longest = min(longest * 2, options.lock_delay)
            pause(guest.clock, min(deadline.remaining, longest * _RANDOM.uniform(0.5, 1)))


def _naming_the_holder(guest: Guest, error: PackageManagerLocked, waited: float) -> PackageManagerLocked:
    found: tuple[Holder, ...] = ()
    with suppress(FleetError):  # the lock is what the user is told, whoever holds it
        found = holders(guest.agent, guest.manager.locks)
    if not found:
        return error
    holder = found[0]
    return PackageManagerLocked(
        f"{holder.lock} is locked in the guest by process {holder.pid} ({holder.program}), which has been running for "
        f"{holder.age:.0f} s; it was waited for for {waited:g} s",
        remedy=error.remedy,
        evidence={
            **error.evidence,
            "lock": holder.lock,
            "holder_pid": holder.pid,
            "holder": holder.program,
            "holder_age": holder.age,
        },
    )


# --- upgrading -----------------------------------------------------------------------------------


def upgrade(guest: Guest, options: UpgradeOptions) -> Upgraded | Underway:
    """Upgrade, and return what changed by the package database's own records; or how far it is, after the interval.

    What an earlier run has left is brought to an end first: a job that still runs is waited for, one that failed or was
    cut off is repaired after. What that run changed is part of the result, since nobody else has told it yet. A later
    call of the same run goes on where this one has left off.

    The journal stays in the guest until ``forget``, so that a result which gets lost on its way can be had again.
    Raises what ``predict`` and ``_job`` raise, UpgradeTimeout, UpgradeInterrupted, and the typed error behind a failed
    command, with what had changed by then as evidence.
    """
    try:
        return _Work(guest, options).to_the_end()
    except _StillRunning as still:
        return still.underway


def forget(guest: Guest, of_runs: Collection[str] | None = None) -> None:
    """Remove the journal from the guest, its result being told; with ``of_runs``, if it is one of theirs."""
    if of_runs is not None:
        found = _job.look(guest.agent)
        if found.run not in of_runs or found.state is not JobState.ENDED:
            return
    _job.remove(guest.agent)


class _StillRunning(Exception):
    """The interval has passed, and the job has not ended."""

    def __init__(self, underway: Underway) -> None:
        super().__init__()
        self.underway = underway


class _Work:
    """One call's work on a guest's upgrade."""

    def __init__(self, guest: Guest, options: UpgradeOptions) -> None:
        self._guest = guest
        self._options = options
        self._interval = Deadline(guest.clock, float("inf") if options.interval is None else options.interval)
        self._status: Sequence[str] = ()
        self._log: deque[str] = deque(maxlen=200)

    def to_the_end(self) -> Upgraded:
        """Raises _StillRunning after the interval."""
        guest, options = self._guest, self._options
        found = self._follow(_job.look(guest.agent))
        if found.state is not JobState.NONE:
            kind = "".join(_job.read(guest.agent, "kind")["kind"])
            well = found.state is JobState.ENDED and found.exit_code == 0
            ours = bool(options.run) and found.run == options.run
            if ours and not well:
                raise self._failure(found, kind)
            if ours and kind == _UPGRADE and not found.stopping:
                return _result(guest, ())
            if not well:
                self._repair()
        try:
            prediction = predict(guest, options)
        except PackageStateInterrupted:
            self._repair()
            prediction = predict(guest, options)
        if prediction.changes:
            self._run(_UPGRADE, guest.manager.command(prediction, options), prediction)
        return _result(guest, prediction.kept_back)

    def _repair(self) -> None:
        """Finish what an interrupted package operation has left half done."""
        self._run(_REPAIR, self._guest.manager.repair(self._options), Prediction())

    def _run(self, kind: str, command: Sequence[str], prediction: Prediction) -> None:
        """Run a command as the guest's upgrade job, to its end. Raises the typed error behind its failure."""
        _job.start(self._guest.agent, _job_of(self._guest.manager, self._options, kind, command, prediction))
        ended = self._follow(_job.look(self._guest.agent))
        if ended.exit_code != 0:
            raise self._failure(ended, kind)

    def _follow(self, look: JobLook) -> JobLook:
        """The first look that finds the job not running. Raises _StillRunning, and UpgradeTimeout at the deadline."""
        # Getting here may have taken all of the interval, and then this look is the only one that tells anything.
        self._take_note(look)
        seen = Deadline(self._guest.clock, self._options.timeout)
        while look.state is JobState.RUNNING:
            # The guest's own word is not enough: one that never says how long it has been at it is not waited for.
            elapsed = max(look.elapsed or 0.0, seen.elapsed)
            if elapsed >= self._options.timeout:
                return self._stop(elapsed)
            if self._interval.passed:
                raise _StillRunning(Underway(self._progress(), elapsed))
            patience = min(self._interval.remaining, self._options.timeout - elapsed)
            look = _job.wait(self._guest.agent, self._guest.clock, patience, self._take_note)
        return look

    def _take_note(self, look: JobLook) -> None:
        self._status = look.progress or self._status
        self._log.extend(look.log)

    def _progress(self) -> Progress:
        return self._guest.manager.progress(self._status, tuple(self._log))

    def _stop(self, elapsed: float) -> JobLook:
        """Have the package manager end after what it is doing now.

        Raises UpgradeTimeout, which says how far it came, unless all was done by then; and the typed error behind a job
        that failed for a reason of its own meanwhile.
        """
        agent = self._guest.agent
        _job.stop(agent)
        found = _job.wait(agent, self._guest.clock, STOP_TIMEOUT, self._take_note)
        if found.exit_code == 0 and self._nothing_is_left():
            return found
        if found.state is JobState.CUT_OFF or found.exit_code:
            failure = self._failure(found, _UPGRADE)
            # What ends by being asked to may have been waiting for a lock or a repository, or says nothing at all.
            if not (failure.transient or isinstance(failure, UpgradeFailed)):
                raise failure
        progress = self._progress()
        percent = "" if progress.percent is None else f"{progress.percent} %, "
        if found.state is JobState.RUNNING:
            what = f"was asked to stop and has not ended {STOP_TIMEOUT} s later; it goes on in the guest"
            remedy = "Run again: it will wait for this upgrade to end, and then go on."
        else:
            what = "was stopped between two steps, and what was half done was finished"
            remedy = "Run again, with a longer timeout: it will go on with the packages that are left."
        changes = _changes(self._guest)
        evidence = {
            "journal": _job.JOURNAL,
            "stopped": found.state is not JobState.RUNNING,
            "percent": progress.percent,
            "activity": progress.activity,
            "changes": [vars(change) for change in changes],
            "output": _job.tail(agent, 20),
        }
        raise UpgradeTimeout(
            f"the upgrade had not ended after {elapsed:.0f} s (it was last at: {percent}"
            f"{progress.activity or 'nothing that it told'}; packages done: {len(changes)}); it {what}",
            remedy=remedy,
            evidence=evidence,
        )

    def _nothing_is_left(self) -> bool:
        """Whether all is upgraded: exit code 0 does not say so of an apt-get that was asked to stop."""
        try:
            return not predict(self._guest, self._options).changes
        except FleetError:  # nobody knows, and that the time is over is what the user is told
            return False

    def _failure(self, ended: JobLook, kind: str) -> FleetError:
        """The typed error behind a job that did not end well."""
        log = _job.tail(self._guest.agent, EXPLAINED_LINES)
        if ended.exit_code is None:
            return UpgradeInterrupted(
                "the upgrade is gone from the guest and left no result: it was killed, or the guest restarted",
                remedy="Run again: what it left half done is repaired first.",
                evidence={"journal": _job.JOURNAL, "output": log[-20:]},
            )
        error = self._guest.manager.explain(Failure("upgrade", ended.exit_code, "\n".join(log)))
        if isinstance(error, PackageManagerLocked):
            error = _naming_the_holder(self._guest, error, self._options.lock_timeout)
        error.evidence["journal"] = _job.JOURNAL
        error.evidence["changes"] = [vars(change) for change in _changes(self._guest)]
        if kind != _REPAIR or error.transient:
            return error
        return PackageStateInterrupted(
            f"an interrupted package operation in the guest could not be repaired: {error.message}",
            remedy=f"{error.remedy} Or revert a snapshot.",
            evidence=error.evidence,
        )


# --- the job and its journal ---------------------------------------------------------------------

# 'before' is written once, before anything changes, and compared with in the end whatever the number of jobs; the
# predictions are those of all of them.
_PREPARE = """\
rm -f after review
[ -e before ] || { {records} >before.new && sync before.new && mv before.new before; } || exit 1
base64 -d >>predictions <<'END' || exit 1
{prediction}
END
echo {kind} >kind
{prepare}"""

# A configuration file that was put beside another is newer than 'before' by the time of its last change of any kind;
# the time that its content has is that of its package.
_FINISH = """\
{finish}
{records} >after.new && sync after.new && mv after.new after
find /etc -xdev -type f -cnewer before {review} -print >review 2>/dev/null
"""

_LEFT_FOR_REVIEW = ("*.dpkg-dist", "*.dpkg-old", "*.ucf-dist", "*.ucf-old", "*.rpmnew", "*.rpmsave", "*.rpmorig")


def _job_of(
    manager: PackageManager, options: UpgradeOptions, kind: str, command: Sequence[str], prediction: Prediction
) -> Job:
    told = {
        "security": [change.name for change in prediction.changes if change.security],
        "unknown": [change.name for change in prediction.changes if change.security is None],
        "kept_back": [[kept.name, kept.reason.value] for kept in prediction.kept_back],
    }
    # Base64: names of packages, which come from the guest's repositories, must not mean anything to its shell.
    encoded = base64.encodebytes(f"{json.dumps(told)}\n".encode()).decode("ascii").strip()
    names = " -o ".join(f"-name '{pattern}'" for pattern in _LEFT_FOR_REVIEW)
    fill = {
        "{records}": manager.records,
        "{prediction}": encoded,
        "{kind}": kind,
        "{prepare}": manager.prepare,
        "{finish}": manager.finish,
        "{review}": f"'(' {names} ')'",
    }
    return Job(
        run=options.run or uuid.uuid4().hex,
        prepare=_filled(_PREPARE, fill),
        command=tuple(command),
        finish=_filled(_FINISH, fill),
        environment={
            **manager.environment,
            "KVM_FLEET_AUTOREMOVE": "yes" if options.autoremove and kind == _UPGRADE else "no",
            "KVM_FLEET_CLEAN": "yes" if options.clean and kind == _UPGRADE else "no",
            "KVM_FLEET_CONFFILES": options.conffiles,
        },
    )


def _filled(text: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(name, value)
    return text


def _result(guest: Guest, kept_back: tuple[KeptBack, ...]) -> Upgraded:
    """What has changed since the journal was begun. ``kept_back`` counts where the journal does not tell it."""
    journal = _job.read(guest.agent, "before", "after", "predictions", "review")
    if not journal["before"]:
        return Upgraded((), kept_back)
    told = Told.parse(journal["predictions"])
    return Upgraded(_changes_in(guest, journal, told), kept_back or told.kept_back, tuple(journal["review"]))


def _changes(guest: Guest) -> tuple[PackageChange, ...]:
    """What has changed since the journal was begun; nothing where none was."""
    journal = _job.read(guest.agent, "before", "after", "predictions")
    return _changes_in(guest, journal, Told.parse(journal["predictions"])) if journal["before"] else ()


def _changes_in(guest: Guest, journal: Mapping[str, list[str]], told: Told) -> tuple[PackageChange, ...]:
    after = journal["after"]
    if not after:  # a job that still runs, or was cut off
        records = shell_script(guest.manager.records, timeout=60)
        after = output_of(guest.agent, replace(records, max_output=MAX_OUTPUT)).split("\n")
    parse = guest.manager.parse_records
    return changes_between(parse(journal["before"]), parse(after), told.security)


@dataclass(frozen=True)
class Told:
    """What the journal says of all predictions: which updates are security updates, and what was kept back last."""

    security: Mapping[str, bool | None]
    kept_back: tuple[KeptBack, ...]

    @classmethod
    def parse(cls, lines: Sequence[str]) -> Told:
        """Read the journal. What is no prediction, as a line that a crash has cut off, tells nothing."""
        security: dict[str, bool | None] = {}
        kept_back: tuple[KeptBack, ...] = ()
        for line in lines:
            with suppress(ValueError, KeyError, TypeError, RecursionError):
                told = json.loads(line)
                security.update(dict.fromkeys(map(str, told["unknown"]), None))
                security.update(dict.fromkeys(map(str, told["security"]), True))
                kept_back = tuple(KeptBack(str(name), KeptReason(reason)) for name, reason in told["kept_back"])
        return cls(security, kept_back)


@contextmanager
def _private_state(guest: Guest) -> Iterator[str]:
    """A directory for all that a look ahead writes, which is there for as long as the context lasts."""
    # What a controller that died has left behind is nobody's after a day.
    make = (
        "find /var/tmp -maxdepth 1 -name 'kvm-fleet.????????' -mmin +1440 -exec rm -rf '{}' + 2>/dev/null\n"
        'directory=$(mktemp -d /var/tmp/kvm-fleet.XXXXXXXX) && chmod 755 "$directory" || exit 1\nset -- "$directory"\n'
        f'{{ {guest.manager.state_script.strip()}\n}} >&2 && echo "$directory"'
    )
    made = run_command(guest.agent, shell_script(make, timeout=60, terse=True))
    directory = made.stdout.strip()
    if made.exit_code != 0 or not directory.startswith("/var/tmp/kvm-fleet."):
        raise GuestUnsupported(
            f"no directory for a simulation could be made in the guest's /var/tmp: {made.stderr.strip()}",
            remedy="See that the guest's /var/tmp can be written to and has free space.",
        )
    remove = Command(("rm", "-rf", "--", directory), timeout=60, terse=True)
    try:
        yield directory
    except FleetError:
        with suppress(FleetError):  # the first cause is the one to tell
            run_command(guest.agent, remove)
        raise
    output_of(guest.agent, remove)
