# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""dnf, both dnf 4 (yum by its old name) and dnf 5: their command lines, and what their output means in the C locale.

Nothing here has to know which of the two it is, but for one option; an option that dnf 4 does not know is a warning.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ansible_collections.kvm.fleet.plugins.module_utils import _failures
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    DependencyConflict,
    DiskFull,
    FleetError,
    MaintainerScriptFailed,
    PackageListsFailed,
    PackageManagerLocked,
    PackageStateInterrupted,
    RepositoryUnreachable,
    RepositoryUntrusted,
    UpgradeFailed,
)
from ansible_collections.kvm.fleet.plugins.module_utils._exec import last_lines
from ansible_collections.kvm.fleet.plugins.module_utils._locks import LOOK
from ansible_collections.kvm.fleet.plugins.module_utils._manager import (
    Failure,
    Progress,
    Shell,
    UpgradeOptions,
    percent,
)
from ansible_collections.kvm.fleet.plugins.module_utils._packages import (
    Installed,
    KeptBack,
    KeptReason,
    PackageChange,
    Prediction,
    Room,
    named_once,
)
from ansible_collections.kvm.fleet.plugins.module_utils._rpm import (
    CERTIFICATE,
    PREPARE,
    RECORDS,
    REPLACE_CONFFILES,
    RPM_LOCKS,
    parse_records,
)

_ENVIRONMENT = {
    "LC_ALL": "C",
    # dnf 4 would keep its lines to itself until there are 8 KiB of them, and nobody would see how far it is.
    "PYTHONUNBUFFERED": "1",
}

# dnf 4 keeps a pid in a file; dnf 5 and rpm lock files.
_PID_LOCKS = (
    "/var/lib/dnf/rpmdb_lock.pid",
    "/var/cache/dnf/metadata_lock.pid",
    "/var/cache/dnf/download_lock.pid",
    "/var/log/log_lock.pid",
)
_LOCKS = (*_PID_LOCKS, "/var/lib/dnf/system-repo.lock", "/run/dnf/rpmtransaction.lock", *RPM_LOCKS)

LOCKED = 200
"""dnf 4's own exit code for a lock that it was told not to wait for."""

_STOPPED = 130

# A repository that is gone is an error, whatever the guest's configuration says. dnf 4 would wait for locks for ever.
_STRICT = ("--setopt=*.skip_if_unavailable=False", "--setopt=exit_on_lock=True", "--setopt=color=never")

# Without the reasons for which packages are installed, nothing would look unneeded.
_STATE_SCRIPT = """\
mkdir -p "$1/cache" "$1/persist" "$1/log" "$1/state" && {
  cp -a /var/lib/dnf/history.sqlite* "$1/persist/" 2>/dev/null
  cp -a /usr/lib/sysimage/libdnf5/. "$1/state/" 2>/dev/null
  true
}
"""

# forget_stale_locks: since the guest went down, the pid in a file may be that of another program, and dnf 4 would wait
# for it. All that uses dnf 4 is Python; a lock of nobody's is taken over by dnf itself.
# locked: tells about one lock that is held, and by whom.
_LOCK_FUNCTIONS = f"""\
forget_stale_locks() {{
  for lock in {shlex.join(_PID_LOCKS)}; do
    [ -s "$lock" ] || continue
    pid=$(tr -d ' \\n' <"$lock")
    case $pid in *[!0-9]*) rm -f "$lock"; continue ;; esac
    [ -d "/proc/$pid" ] || continue
    case $(readlink "/proc/$pid/exe") in *python*) ;; *) rm -f "$lock" ;; esac
  done
}}
holders() {{
{LOOK}}}
locked() {{
  told=$(holders {shlex.join(_LOCKS)} | head -n 1)
  [ -n "$told" ] || return 1
  echo "$told" | {{ IFS='	' read -r lock pid _ _ program; echo "$lock is locked by process $pid ($program)"; }}
}}
"""

# The command, once nobody holds a lock.
_REFRESH = f"""\
{_LOCK_FUNCTIONS}
forget_stale_locks
locked && exit {LOCKED}
exec "$@"
"""

# $1: how many seconds to wait for locks. Between two tries nothing has changed.
_WAIT = f"""\
{_LOCK_FUNCTIONS}
now() {{ cut -d . -f 1 /proc/uptime; }}
limit=$1
shift
begun=$(now)
patient() {{ [ $(($(now) - begun)) -lt "$limit" ]; }}
stopping=no
trap 'stopping=yes' INT
wait_for_locks() {{
  forget_stale_locks
  while told=$(locked); do
    [ "$stopping" = no ] || exit {_STOPPED}
    patient || {{ echo "$told"; exit {LOCKED}; }}
    sleep 1
  done
}}
"""

# The rest of the parameters is the command. SIGINT asks this shell to stop, and it is alone in getting it: dnf 5 would
# end in the middle of a transaction, with half of the packages there twice. So a transaction runs to its end, and what
# comes before one is ended at once; rpm's lock and dnf's own words tell the two apart. dnf cannot go from one into the
# other meanwhile, being halted.
_COMMAND = f"""\
{_WAIT}
stopped=no
in_transaction() {{
  [ -f "/proc/$$/fd/1" ] || return 0
  grep -q '^Running transaction$' "/proc/$$/fd/1" && return 0
  holders {shlex.join(RPM_LOCKS)} | cut -f 2 | grep -qx "$child"
}}
perform() {{
  while :; do
    wait_for_locks
    (trap - INT QUIT; exec "$@") </dev/null &
    child=$!
    while :; do
      wait "$child"
      code=$?
      kill -0 "$child" 2>/dev/null || break
      [ "$stopping" = yes ] || continue
      kill -STOP "$child"
      trap '' INT
      stopping=no stopped=yes
      if in_transaction; then
        kill -CONT "$child"
      else
        kill -KILL "$child"
        wait "$child"
        exit {_STOPPED}
      fi
    done
    [ "$code" -eq {LOCKED} ] && patient || return "$code"
    sleep 1
  done
}}
perform "$@" || exit
"""

# What is not needed any more is told only once the upgrade is done; and not if that has not gone well, which is told
# with an exit code by _FINISH.
_AUTOREMOVE = """\
[ "$stopped" = no ] && ! grep -qs '%[a-z]*([^)]*) scriptlet failed, ' "/proc/$$/fd/1" || exit 0
perform {autoremove}
"""

# What is there twice was cut off between the installation of the new one and the removal of the old one. dnf 4 fails
# where nothing is there twice. 'dnf check' would complain about much that is no upgrade's fault.
#
# dnf 5 can remove duplicates since 5.4.3. Before, installing the newest again does: it replaces the others and upgrades
# what needs those, where removing them by name would remove that. Where no repository has the newest any more, rpm
# removes the others, unless something needs them.
_REPAIR = f"""\
{_WAIT}
wait_for_locks
trap : INT
rpm -qa >/dev/null || rpm --rebuilddb || exit 1
duplicates() {{ "$@" -q repoquery --duplicates; }}
remove_duplicates() {{
  case $("$@" remove --help) in *' --duplicates'*) "$@" -y remove --duplicates; return ;; esac
  newest=$("$@" -q repoquery --duplicates --latest-limit=1) || return 1
  "$@" -y reinstall --skip-unavailable $newest || return
  older=$("$@" -q repoquery --duplicates --latest-limit=-1) || return 1
  [ -z "$older" ] || rpm -e -- $older
}}
found=$(duplicates "$@") || exit 1
[ -n "$found" ] || exit 0
echo "installed twice: $found"
remove_duplicates "$@" || exit
found=$(duplicates "$@") || exit 1
[ -z "$found" ] || {{ echo "still installed twice: $found"; exit 1; }}
"""

# dnf 4 calls an upgrade a success in which a script of a package failed.
_FINISH = """\
if [ "$code" -eq 0 ] && grep -q '%[a-z]*([^)]*) scriptlet failed, ' log; then code=1; fi
if [ "$code" -eq 0 ] && [ "$KVM_FLEET_CLEAN" = yes ]; then {dnf} clean packages || code=$?; fi
"""

# $1: the private state, $2: the program. Facts about the guest, one 'kind value' a line: whether it is dnf 5, which
# repositories tell about security updates, and whether somebody holds packages.
_FACTS = """\
cache=/var/cache/dnf
case $(readlink -f "$(command -v "$2")") in */dnf5) echo five; cache=/var/cache/libdnf5 ;; esac
set_to=$(sed -n 's/^ *cachedir *= *//p' /etc/dnf/dnf.conf 2>/dev/null)
[ -z "$set_to" ] || cache=$set_to
[ -z "$1" ] || cache=$1/cache
for file in "$cache"/*/repodata/repomd.xml; do
  grep -q 'type="updateinfo"' "$file" 2>/dev/null || continue
  directory=${file%/repodata/repomd.xml}
  echo "advisories ${directory##*/}"
done
held() {
  grep -qsE '^ *(exclude|excludepkgs|includepkgs) *= *[^ ]' \
    /etc/dnf/dnf.conf /etc/yum.repos.d/*.repo /etc/dnf/libdnf5.conf.d/*.conf && return 0
  grep -qsE '^ *[^# ]' /etc/dnf/plugins/versionlock.list /etc/yum/pluginconf.d/versionlock.list && return 0
  grep -qsE '^ *name *=' /etc/dnf/versionlock.toml
}
held && echo held
exit 0
"""


@dataclass(frozen=True)
class Dnf:
    """Fedora's and RHEL's package manager. ``program`` is what the guest calls it: dnf or dnf5."""

    program: str = "dnf"
    name: str = "dnf"
    environment: Mapping[str, str] = field(default_factory=lambda: dict(_ENVIRONMENT))
    locks: tuple[str, ...] = _LOCKS
    state_script: str = _STATE_SCRIPT
    records: str = RECORDS
    prepare: str = PREPARE

    @property
    def finish(self) -> str:
        return _FINISH.replace("{dnf}", shlex.join((self.program, *_STRICT))) + REPLACE_CONFFILES

    def refresh(self, shell: Shell, state: str) -> None:
        # A repository whose lists are signed has its key in the cache, into which it is taken from where the guest's
        # configuration says; without -y that would be asked, and a cache that is new or was emptied has none.
        command = (*self._dnf(state), "-y", "makecache", "--refresh")
        # What only looks ahead meets no lock, its state being its own.
        outcome = shell.run(command) if state else shell.script(_REFRESH, *command)
        if outcome.exit_code != 0:
            raise explain(Failure("refresh", outcome.exit_code, outcome.stdout + outcome.stderr))

    def simulate(self, shell: Shell, options: UpgradeOptions, state: str) -> Prediction:
        present = self._present(shell, state)
        facts = parse_facts(shell.script(_FACTS, state, self.program).stdout.splitlines())
        everything = self._resolve(shell, state, ("upgrade",))
        excluding = excluded(options)
        full = self._resolve(shell, state, ("upgrade", *excluding)) if excluding else everything
        arguments = ("upgrade", *(("--security",) if options.security_only else ()), *excluding)
        found = self._resolve(shell, state, arguments) if options.security_only and full.rows else full
        unneeded = self._resolve(shell, state, ("autoremove", *excluding)) if options.autoremove else Simulation()
        advised = bool(full.rows and facts.advising)
        told = Told(facts.advising, self._advisories(shell, state) if advised else frozenset())
        changes = tuple(changes_of(found, present, told))
        gone = {(row.name, row.arch): row for row in unneeded.rows if row.action == _REMOVE}
        kept = [
            *_kept(everything, full, KeptReason.EXCLUDED),
            *_kept(self._unheld(shell, facts, state), everything, KeptReason.HELD),
            *_skipped(full, present),
        ]
        if options.security_only:
            coming = {change.name for change in changes}
            unknown = [one for one in changes_of(full, present, told) if one.old and one.new and one.security is None]
            kept += [KeptBack(one.name, KeptReason.SECURITY_UNKNOWN) for one in unknown if one.name not in coming]
        return Prediction(
            changes=(
                *(change for change in changes if (change.name, change.arch) not in gone),
                *(PackageChange(row.name, row.arch, row.version, None) for row in gone.values()),
            ),
            kept_back=named_once(kept),
            room=found.room,
            arguments=arguments,
        )

    def _dnf(self, state: str) -> tuple[str, ...]:
        return (self.program, *_STRICT, *private_state(state))

    def _present(self, shell: Shell, state: str) -> Installed:
        """What is installed. Raises PackageStateInterrupted where a package is there twice that ought not to be."""
        records = shell.script(self.records)
        if records.exit_code != 0 or records.stdout_truncated:
            raise explain(Failure("upgrade", records.exit_code, records.stdout[-2000:] + records.stderr))
        present = parse_records(records.stdout.splitlines())
        if any(len(versions) > 1 for versions in present.values()):
            # Of some packages, such as kernels, several versions are meant to be there, and dnf knows of which.
            twice = shell.run((*self._dnf(state), "-C", "-q", "repoquery", "--duplicates"))
            if twice.exit_code == 0 and twice.stdout.strip():
                raise _interrupted({"packages": twice.stdout.split()})
        return present

    def _resolve(self, shell: Shell, state: str, arguments: Sequence[str]) -> Simulation:
        """What dnf would do, by the metadata that a refresh has fetched."""
        outcome = shell.run((*self._dnf(state), "-C", *arguments, "--assumeno"))
        output = outcome.stdout + outcome.stderr
        # It does nothing with an error's exit code, unless there is nothing to do.
        well = outcome.exit_code == 0 or (outcome.exit_code == 1 and _ABORTED.search(output))
        if not well or outcome.stdout_truncated:
            raise explain(Failure("upgrade", outcome.exit_code, output))
        return parse_simulation(output)

    def _unheld(self, shell: Shell, facts: Facts, state: str) -> Simulation:
        """What dnf would do if nobody held anything."""
        if not facts.held:
            return Simulation()
        free = (
            ("--setopt=disable_excludes=*",) if facts.five else ("--disableexcludes=all", "--disableplugin=versionlock")
        )
        try:
            return self._resolve(shell, state, (*free, "upgrade"))
        except DependencyConflict:  # maybe that is why it is held
            return Simulation()

    def _advisories(self, shell: Shell, state: str) -> frozenset[tuple[str, str]]:
        """Name and architecture of each package for which there is a security update."""
        outcome = shell.run((*self._dnf(state), "-C", "-q", "updateinfo", "list", "--security"))
        if outcome.exit_code != 0 or outcome.stdout_truncated:
            raise explain(Failure("upgrade", outcome.exit_code, outcome.stdout[-2000:] + outcome.stderr))
        return parse_advisories(outcome.stdout)

    def command(self, prediction: Prediction, options: UpgradeOptions) -> tuple[str, ...]:
        dnf = (self.program, *_STRICT, "-y")
        autoremove = shlex.join((*dnf, "autoremove", *excluded(options)))
        script = _COMMAND + (_AUTOREMOVE.replace("{autoremove}", autoremove) if options.autoremove else "")
        return self._patiently(script, options, *dnf, *prediction.arguments)

    def repair(self, options: UpgradeOptions) -> tuple[str, ...]:
        return self._patiently(_REPAIR, options, self.program, *_STRICT)

    def _patiently(self, script: str, options: UpgradeOptions, *command: str) -> tuple[str, ...]:
        return ("/bin/sh", "-c", script, "sh", str(math.ceil(options.lock_timeout)), *command)

    def parse_records(self, lines: Iterable[str]) -> Installed:
        return parse_records(lines)

    def progress(self, status: Sequence[str], log: Sequence[str]) -> Progress:  # noqa: ARG002 - what others need
        return parse_progress(log)

    def explain(self, failure: Failure) -> FleetError:
        return explain(failure)


def excluded(options: UpgradeOptions) -> tuple[str, ...]:
    """Options that leave packages alone: what is installed is not removed either."""
    return tuple(f"--exclude={pattern}" for pattern in options.exclude)


def private_state(directory: str) -> tuple[str, ...]:
    """Options that keep all that dnf writes in a directory; none without one."""
    if not directory:
        return ()
    places = {
        "cachedir": "cache",
        "system_cachedir": "cache",
        "persistdir": "persist",
        "logdir": "log",
        "system_state_dir": "state",
    }
    # A plugin that writes to its own place, whatever the options say.
    return (
        *(f"--setopt={option}={directory}/{place}" for option, place in places.items()),
        "--disableplugin=generate_completion_cache",
    )


@dataclass(frozen=True)
class Facts:
    """What a guest tells about its dnf. ``advising`` are the repositories that say what is a security update."""

    five: bool
    held: bool
    advising: frozenset[str]


_CACHED_REPOSITORY = re.compile(r"advisories (.+)-[0-9a-f]{16}")


def parse_facts(lines: Collection[str]) -> Facts:
    """Read what the guest tells."""
    cached = [_CACHED_REPOSITORY.fullmatch(line) for line in lines]
    return Facts("five" in lines, "held" in lines, frozenset(found.group(1) for found in cached if found))


# --- simulations ---------------------------------------------------------------------------------

_INSTALL, _UPGRADE, _REMOVE, _SKIP = "install", "upgrade", "remove", "skip"

_SECTIONS = {
    "Installing": _INSTALL,
    "Upgrading": _UPGRADE,
    "Downgrading": _UPGRADE,
    "Removing": _REMOVE,
    "Skipping packages": _SKIP,
}
"""What the table's sections begin with; 'Installing dependencies:' is one of installations, too."""

_ABORTED = re.compile(r"^Operation aborted", re.MULTILINE)


@dataclass(frozen=True)
class Row:
    """One package in dnf's table. ``replaces`` are the names, architectures and versions that go for it."""

    action: str
    name: str
    arch: str
    version: str
    repository: str = ""
    replaces: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class Simulation:
    """What dnf says that it would do."""

    rows: tuple[Row, ...] = ()
    skipped: tuple[str, ...] = ()
    room: Room = field(default_factory=Room)

    @property
    def upgraded(self) -> frozenset[str]:
        """The names of the packages that would get another version."""
        return frozenset(row.name for row in self.rows if row.action == _UPGRADE)


@dataclass(frozen=True)
class Told:
    """What a guest's repositories tell about security: which of them do, and of which names and architectures."""

    advising: frozenset[str]
    advisories: frozenset[tuple[str, str]]

    def about(self, row: Row) -> bool | None:
        """Whether it is a security update."""
        if (row.name, row.arch) in self.advisories:
            return True
        return False if row.repository in self.advising else None


def parse_simulation(output: str) -> Simulation:
    """Read what ``dnf upgrade --assumeno`` prints, of dnf 4 and of dnf 5."""
    rows: list[Row] = []
    for action, words in _table(output.splitlines()):
        if action == "replacing" and rows:
            replaced = _replaced(words)
            rows[-1] = replace(rows[-1], replaces=(*rows[-1].replaces, *replaced))
        elif len(words) >= 3 and "-" in words[2]:
            repository = words[3] if len(words) > 3 else ""
            rows.append(Row(action, words[0], words[1], _without_epoch_zero(words[2]), repository))
    return Simulation(
        rows=tuple(row for row in rows if row.action != _SKIP),
        skipped=tuple(row.name for row in rows if row.action == _SKIP),
        room=parse_room(output),
    )


def _table(lines: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """The rows of the table, each as its section's action and its words.

    A cell that is too long ends its line, and its row goes on in the next one, further to the right.
    """
    action = None
    row: tuple[str, list[str]] | None = None
    for line in lines:
        words = line.split()
        deep = line.startswith("  ")
        if action and row and deep and words and words[0] != "replacing":
            row[1].extend(words)
            continue
        if row:
            yield row
        row = None
        if line.startswith(" ") and words:
            if action:
                row = ("replacing", words[1:]) if words[0] == "replacing" else (action, words)
        elif not line.startswith("("):  # a section's heading may have such a second line
            begins = [section for section in _SECTIONS if line.startswith(section) and line.rstrip().endswith(":")]
            action = _SECTIONS[begins[0]] if begins else _SKIP if line.startswith("Skipping packages") else None
    if row:
        yield row


def _replaced(words: Sequence[str]) -> list[tuple[str, str, str]]:
    """dnf 4 names what is replaced as ``NAME.ARCH VERSION``, dnf 5 in columns."""
    if len(words) == 2:
        name, _dot, arch = words[0].rpartition(".")
        return [(name, arch, _without_epoch_zero(words[1]))] if name else []
    return [(words[0], words[1], _without_epoch_zero(words[2]))] if len(words) > 2 else []


def _without_epoch_zero(version: str) -> str:
    """The version as rpm's records have it."""
    return version.removeprefix("0:")


def changes_of(simulation: Simulation, present: Installed, told: Told) -> Iterator[PackageChange]:
    """What a simulation would change, the old versions being those on record."""
    for row in simulation.rows:
        if row.action == _REMOVE:
            yield PackageChange(row.name, row.arch, row.version, None)
            continue
        old = _old_version(row, present) if row.action == _UPGRADE else None
        yield PackageChange(row.name, row.arch, old, row.version, told.about(row))
        for name, arch, version in row.replaces:
            if name != row.name:  # dnf 5 tells of a package's own old version as well
                yield PackageChange(name, arch, version, None)


def _old_version(row: Row, present: Installed) -> str | None:
    """The version that is upgraded, maybe of another architecture."""
    own = present.get((row.name, row.arch))
    versions = own or frozenset(
        version for (name, _arch), found in present.items() if name == row.name for version in found
    )
    return max(versions, default=None)


def _kept(without: Simulation, having: Simulation, reason: KeptReason) -> list[KeptBack]:
    """What would be upgraded without something, and is not, having it, although its dependencies would allow it."""
    return [KeptBack(name, reason) for name in sorted(without.upgraded - having.upgraded - set(having.skipped))]


def _skipped(simulation: Simulation, present: Installed) -> list[KeptBack]:
    there = {name for name, _arch in present}
    return [KeptBack(name, KeptReason.DEPENDENCIES) for name in simulation.skipped if name in there]


_SIZE = r"(\d{1,12}(?:\.\d{1,3})?)\s*([kKMGT]?)(?:iB|B)?"
# dnf 4 tells of both only if there is something to download or nothing is upgraded. dnf 5 tells how much is unpacked.
_DOWNLOAD = re.compile(
    rf"^(?:Total download size: |Total size of inbound .* Need to download ){_SIZE}\.?\s*$", re.MULTILINE
)
_INSTALLED_SIZE = re.compile(rf"^Installed size: {_SIZE}\s*$", re.MULTILINE)
_EXTRA = re.compile(rf"^After this operation, {_SIZE} extra will be used", re.MULTILINE)
_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}


def parse_room(output: str) -> Room:
    """The bytes that dnf says an upgrade needs; it rounds."""
    unpacked = _INSTALLED_SIZE.search(output) or _EXTRA.search(output)
    return Room(download=_bytes(_DOWNLOAD.search(output)), unpacked=_bytes(unpacked))


def _bytes(found: re.Match[str] | None) -> int:
    return int(float(found.group(1)) * _UNITS[found.group(2).lower()]) if found else 0


_NEVRA = re.compile(r"(\S+)-[^-\s]+-[^-\s]+\.([^.\s]+)")


def parse_advisories(output: str) -> frozenset[tuple[str, str]]:
    """Read the packages in ``dnf updateinfo list``, whose columns differ between dnf 4 and dnf 5."""
    words = (_NEVRA.fullmatch(word) for line in output.splitlines() for word in line.split())
    return frozenset((found.group(1), found.group(2)) for found in words if found)


# --- progress ------------------------------------------------------------------------------------

_DOWNLOADING = re.compile(r"\((\d{1,6})/(\d{1,6})\): (\S+)\.rpm\s.*")
_STEP = re.compile(r"  ([A-Z][a-z]+(?: scriptlet)?)\s*: (\S+)\s+(\d{1,6})/(\d{1,6})\s*")
_STEP_OF_5 = re.compile(r"\[\s*(\d{1,6})/(\d{1,6})\] (?:([A-Z][a-z]+) )?(\S+)\s.*")


def parse_progress(log: Sequence[str]) -> Progress:
    """How far an upgrade is, by the last line of its log that tells; downloads are counted apart from the rest."""
    for line in reversed(log):
        four, five, download = _STEP.fullmatch(line), _STEP_OF_5.fullmatch(line), _DOWNLOADING.fullmatch(line)
        if four:
            activity, named, done, total = four.groups()
            if activity == "Verifying":  # all is done by then, and it counts anew
                done = total
        elif five and five.group(4) != "Total":
            done, total, activity, named = five.groups()
        elif download:
            done, total, named = download.groups()
            activity = None
        else:
            continue
        package = _name_of(named)
        return Progress(percent(done, total), package, f"{activity or 'Downloading'} {package}".strip())
    return Progress()


_CUT = re.compile(r"(.+?)-\d+:.*")


def _name_of(named: str) -> str:
    """The name in ``NAME-VERSION-RELEASE.ARCH``, of which dnf 5 cuts off what does not fit, but not the epoch."""
    whole, cut = _NEVRA.fullmatch(named), _CUT.fullmatch(named)
    return cut.group(1) if cut else whole.group(1) if whole else named


# --- failures ------------------------------------------------------------------------------------

_RPM_LOCKED = re.compile(r"^(?:RPM: error: |>>> \[RPM\] )can't create transaction lock on (\S+)", re.MULTILINE)
_HOLDERS = (
    re.compile(r"^(?P<lock>/\S+) is locked by process (?P<pid>\d{1,10}) \((?P<program>.*)\)$", re.MULTILINE),
    re.compile(
        r"^(?P<lock>.*) already locked by (?P<pid>\d{1,10})(?:\n  The application with PID \d+ is: (?P<program>.*))?$",
        re.MULTILINE,
    ),
    re.compile(r"^Malformed lock file found: (?P<lock>\S+?)\.?$", re.MULTILINE),
)
_INTERRUPTED = re.compile(
    r"rpmdb open failed|cannot open Packages (?:database|index)|^still installed twice: ", re.MULTILINE
)
_SCRIPT_FAILED = re.compile(r"%\w+\(([^)\s]+)\) scriptlet failed, .*")


@dataclass(frozen=True)
class Cause:
    """A cause of failures: the words by which it is told in the output, and what the user is told."""

    words: re.Pattern[str]
    error: type[FleetError]
    message: str
    remedy: str


# What dnf says of a mirror that fails is no cause by itself: it goes on to the next one.
_CAUSES = (
    Cause(
        re.compile(
            r"needs \S+ more space on the|more space needed on the|No space left on device|Disk quota exceeded"
            r"|Curl error \(23\)"
        ),
        DiskFull,
        _failures.FULL,
        _failures.full_remedy("dnf clean packages"),
    ),
    Cause(
        re.compile(r"^Error:\s*\n Problem|^Failed to resolve the transaction", re.MULTILINE),
        DependencyConflict,
        "the dependencies of the guest's packages cannot be satisfied",
        "See 'dnf upgrade --assumeno' in the guest; exclude, lock or mend the package that it names.",
    ),
    Cause(
        _SCRIPT_FAILED,
        MaintainerScriptFailed,
        "a maintainer script failed in the guest",
        "See what the script wanted ('rpm -q --scripts'), mend it and run 'dnf reinstall' of the package in the guest, "
        "or revert the snapshot.",
    ),
    Cause(
        re.compile(
            r"GPG check FAILED|GPG signature|GPG keys|Public key for \S+ is not installed|OpenPGP check for package"
            r"|Signature verification failed|is not signed|checksum doesn't match|incorrect checksum"
            rf"|^(?!\[MIRROR\]).*(?:{CERTIFICATE})",
            re.MULTILINE,
        ),
        RepositoryUntrusted,
        _failures.UNTRUSTED,
        _failures.UNTRUSTED_REMEDY,
    ),
    Cause(
        re.compile(
            r"Failed to download|Cannot download|No more mirrors|Usable URL not found|Error downloading packages"
            r"|Cannot prepare internal mirrorlist"
        ),
        RepositoryUnreachable,
        _failures.UNREACHABLE,
        _failures.UNREACHABLE_REMEDY,
    ),
)
_UNKNOWN = {
    "refresh": Cause(
        re.compile(""),
        PackageListsFailed,
        "dnf makecache failed in the guest",
        _failures.LISTS_REMEDY,
    ),
    "upgrade": Cause(
        re.compile(""),
        UpgradeFailed,
        "dnf upgrade failed in the guest",
        "See 'dnf check' and 'dnf history' in the guest and mend what they name, or revert the snapshot.",
    ),
}


def explain(failure: Failure) -> FleetError:
    """The typed error behind a failed dnf."""
    output = failure.output
    evidence: dict[str, object] = {"exit_code": failure.exit_code, "output": list(last_lines(output))}
    if failure.exit_code == LOCKED or _RPM_LOCKED.search(output):
        return _locked(output, evidence)
    if _INTERRUPTED.search(output):
        return _interrupted(evidence)
    cause = next((cause for cause in _CAUSES if cause.words.search(output)), _UNKNOWN[failure.action])
    first, culprit = _first_error(output), ""
    scripts = list(_SCRIPT_FAILED.finditer(output))
    if cause.error is MaintainerScriptFailed:
        packages = sorted({_name_of(script.group(1)) for script in scripts})
        first, culprit = scripts[0].group(), f" at {', '.join(packages)}"
        evidence["packages"] = packages
    return cause.error(f"{cause.message}{culprit}: {first}", remedy=cause.remedy, evidence=evidence)


def _locked(output: str, evidence: Mapping[str, object]) -> PackageManagerLocked:
    told = [found for found in (pattern.search(output) for pattern in _HOLDERS) if found]
    holder = told[0].groupdict() if told else {}
    rpm = _RPM_LOCKED.search(output)
    lock = holder.get("lock") or (rpm.group(1) if rpm else "the package manager")
    return _failures.locked_by(lock, holder.get("pid"), holder.get("program"), evidence)


def _interrupted(evidence: Mapping[str, object]) -> PackageStateInterrupted:
    return PackageStateInterrupted(
        "an earlier package operation in the guest was interrupted",
        remedy="Run 'dnf remove --duplicates' in the guest (before dnf 5.4.3: 'dnf reinstall' the newest of what 'dnf "
        "repoquery --duplicates' names), then run again.",
        evidence=evidence,
    )


_ERROR = re.compile(
    r"(?:Error: |[Ee]rror: |RPM: error: |\s*installing package .* needs |Failed to |Transaction failed"
    r"|OpenPGP check ).*"
)


def _first_error(output: str) -> str:
    """dnf 4 begins an error about dependencies with an empty line of its own."""
    lines = output.splitlines()
    for number, line in enumerate(lines):
        if line.strip() == "Error:" or line.startswith("Failed to resolve"):
            return " ".join(word.strip() for word in lines[number + 1 : number + 3]) or line
    errors = [line.strip() for line in lines if _ERROR.match(line) and not line.endswith(":")]
    return _failures.first_of(errors, output)
