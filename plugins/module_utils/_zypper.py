# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""zypper: its command lines, and what its output means in the C locale."""

from __future__ import annotations

import html
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ansible_collections.kvm.fleet.plugins.module_utils import _failures
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    DependencyConflict,
    FleetError,
    MaintainerScriptFailed,
    PackageStateInterrupted,
    UpgradeFailed,
)
from ansible_collections.kvm.fleet.plugins.module_utils._exec import Outcome, last_lines
from ansible_collections.kvm.fleet.plugins.module_utils._job import JOURNAL
from ansible_collections.kvm.fleet.plugins.module_utils._locks import holders
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
)
from ansible_collections.kvm.fleet.plugins.module_utils._rpm import (
    CERTIFICATE,
    RECORDS,
    REPLACE_CONFFILES,
    RPM_LOCKS,
    parse_records,
)
from ansible_collections.kvm.fleet.plugins.module_utils._rpm import PREPARE as RPM_PREPARE

_NO_SOLUTION, _REBOOT_NEEDED, _RESTART_NEEDED, _NOT_FOUND, _INTERRUPTED = 4, 102, 103, 104, 105
_REPOSITORY_SKIPPED, _SCRIPT_FAILED = 106, 107

_DONE = (0, _REBOOT_NEEDED, _RESTART_NEEDED)
"""What zypper exits with when it has done, or would do, what it was asked for."""

# Skipped by default where nobody can answer: every patch that wants a reboot, and so each one of a kernel.
_SECURITY_PATCHES = ("patch", "--category", "security", "--with-interactive")

# zypper has no option for leaving packages alone; its locks are what it has, and where they are is told by its
# configuration, which is to be the guest's own in all else. An option that is given twice counts as it was last.
# configure: $1: a directory of its own, $2: own or no for the guest's own locks, $3: patterns, one a line.
_CONFIGURE = """\
configure() {
  main=/etc/zypp/zypp.conf
  [ -e "$main" ] || main=/usr/etc/zypp/zypp.conf
  for file in "$main" /usr/etc/zypp/zypp.conf.d/*.conf /etc/zypp/zypp.conf.d/*.conf; do
    if [ -e "$file" ]; then cat "$file" && echo || return 1; fi
  done >"$1/zypp.conf" || return 1
  locks=$(sed -n 's/^[[:space:]]*locksfile\\.path[[:space:]]*=[[:space:]]*//p' "$1/zypp.conf" | tail -n 1)
  locks=${locks:-/etc/zypp/locks}
  printf '[main]\\nlocksfile.path = %s\\nlocksfile.apply = true\\n' "$1/zypp.locks" >>"$1/zypp.conf" || return 1
  {
    if [ "$2" = own ] && [ -e "$locks" ]; then cat "$locks" && echo || return 1; fi
    [ -z "$3" ] || printf '%s\\n' "$3" | while IFS= read -r pattern; do
      printf 'type: package\\nmatch_type: glob\\ncase_sensitive: on\\nsolvable_name: %s\\n\\n' "$pattern"
    done
  } >"$1/zypp.locks" || return 1
  export ZYPP_CONF="$1/zypp.conf"
}
"""

# $1: the directory for all that zypper writes, or nothing; $2 and $3: as configure's; the rest: zypper's arguments.
#
# What went well is told by the tags, and by the rows of a table, alone: the descriptions of a thousand packages, which
# nobody reads, would not fit into an answer of the agent. A lock that somebody holds for a moment between two looks is
# waited for here, and any other by who asks.
_LOOK = f"""\
{_CONFIGURE}
export ZYPP_LOCK_TIMEOUT=10
state=$1 locks=$2 patterns=$3; shift 3
directory=
trap '[ -z "$directory" ] || rm -rf "$directory"' EXIT
if [ "$locks$patterns" != own ]; then
  directory=$(mktemp -d) && configure "$directory" "$locks" "$patterns" || exit 1
fi
if [ -n "$state" ]; then
  export ZYPP_LOGFILE="$state/log"
  set -- --cache-dir "$state/cache" "$@"
fi
output=$(zypper --non-interactive --xmlout "$@" </dev/null)
code=$?
case $code in
  {"|".join(map(str, _DONE))}) printf '%s\\n' "$output" | grep -oE '<[^>]*>|^i[^<]*[|][^<]*$' ;;
  *) printf '%s\\n' "$output" ;;
esac
exit "$code"
"""

# $1: seconds to wait for zypp's lock, $2: patterns of packages to leave alone, one a line; the rest: zypper's own.
#
# Patches for zypper itself come first and alone, and only zypper as it is after them can be trusted with the others.
# A stop reaches this shell, and not the zypper that it waits for: that one ends by itself, and the next is not begun.
_COMMAND = f"""\
{_CONFIGURE}
export ZYPP_LOCK_TIMEOUT="$1"
[ -z "$2" ] || configure {JOURNAL} own "$2" || exit 1
shift 2
if [ "$1" = patch ]; then
  stopped=no code={_RESTART_NEEDED}
  trap 'stopped=yes' INT
  for _round in 1 2 3; do
    [ "$code$stopped" = {_RESTART_NEEDED}no ] || break
    zypper --non-interactive --no-refresh "$@" --updatestack-only
    code=$?
  done
  trap 'exit {_INTERRUPTED}' INT
  [ "$stopped" = no ] || exit {_INTERRUPTED}
  case $code in 0|{_REBOOT_NEEDED}) ;; *) exit "$code" ;; esac
fi
exec zypper --non-interactive --no-refresh "$@"
"""

_PREPARE = f"""\
{RPM_PREPARE}rm -f zypp.conf zypp.locks
"""

# The log's end is what a failure is explained by; rpm tells a script's failure where it happens.
_FINISH = f"""\
[ "$code" -ne {_REBOOT_NEEDED} ] || code=0
if [ "$code" -eq {_SCRIPT_FAILED} ]; then
  failed=$(grep -a 'scriptlet failed' log | tail -n 20)
  printf '%s\\n' "$failed"
fi
[ ! -e zypp.conf ] || export ZYPP_CONF="$PWD/zypp.conf"
export ZYPP_LOCK_TIMEOUT=60
if [ "$code" -eq 0 ] && [ "$stopped" = no ] && [ "$KVM_FLEET_AUTOREMOVE" = yes ]; then
  table=$(zypper --non-interactive --no-refresh packages --unneeded) || code=$?
  unneeded=$(printf '%s\\n' "$table" |
    awk -F ' *[|] *' '$1 ~ /^i/ && NF >= 5 {{ sub(/ +$/, "", $NF); print $(NF - 2) "." $NF "=" $(NF - 1) }}' | sort -u)
  if [ "$code" -eq 0 ] && [ -n "$unneeded" ]; then
    # One word for each package.
    zypper --non-interactive --no-refresh remove -- $unneeded || code=$?
    [ "$code" -ne {_REBOOT_NEEDED} ] || code=0
  fi
fi
if [ "$code" -eq 0 ] && [ "$KVM_FLEET_CLEAN" = yes ]; then zypper --non-interactive clean || code=$?; fi
{REPLACE_CONFFILES}"""

# Prints NAME.ARCH of each package that is there twice. Kernels may be, and so may keys.
_TWICE = """\
several=$(rpm -q --whatprovides 'multiversion(kernel)' --qf '%{NAME}.%{ARCH}\\n'; echo 'gpg-pubkey.(none)')
rpm -qa --qf '%{NAME}.%{ARCH}\\n' | grep -vxF "$several" | sort | uniq -d
"""

# Facts about the guest, one 'kind value' a line: whether its distribution has no releases, and what is there twice.
_FACTS = f"""\
for file in /etc/os-release /usr/lib/os-release; do
  [ -r "$file" ] || continue
  (. "$file"; case $ID in opensuse-tumbleweed|opensuse-slowroll) echo rolling ;; esac)
  break
done
for package in $(
{_TWICE}); do echo "twice $package"; done
"""

# $1: seconds to wait for zypp's lock, $2: patterns of packages to leave alone, one a line.
#
# rpm records a package before it runs its last script, and removes the old version after that: two versions of a
# package tell that it was cut off, except for kernels, which may have two. zypper removes the older one, and installing
# the newer one again runs the script, without which a kernel has no initrd. Where nothing was cut off, dependencies
# that zypper cannot mend need not be the upgrade's fault; the next one will tell. And the repositories may no longer
# have a version that is to be installed again.
#
# What was cut off cannot stay as it is: zypper does nothing at all while such a package is locked.
_REPAIR = f"""\
{_CONFIGURE}
trap : INT
export ZYPP_LOCK_TIMEOUT="$1"
patterns=$2
since=$(stat -c %Y {JOURNAL}/since 2>/dev/null)
twice=$(
{_TWICE})
fresh=$(rpm -q --whatprovides 'multiversion(kernel)' --qf '%{{NAME}}.%{{ARCH}}=%{{EVR}} %{{INSTALLTIME}}\\n' |
  awk -v since="$since" 'since && NF == 2 && $2 >= since {{ print $1 }}')
patterns=$(printf '%s\\n' "$patterns" | while IFS= read -r pattern; do
  for package in $twice $fresh; do
    name=${{package%%=*}}
    case ${{name%.*}} in $pattern) continue 2 ;; esac
  done
  printf '%s\\n' "$pattern"
done)
[ -z "$patterns" ] || configure {JOURNAL} own "$patterns" || exit 1
zypper --non-interactive --no-refresh verify
code=$?
case $code in
  0|{_REBOOT_NEEDED}) ;;
  {_NO_SOLUTION}) [ -z "$twice" ] || exit "$code" ;;
  *) exit "$code" ;;
esac
for package in $twice $fresh; do
  zypper --non-interactive --no-refresh install --force -- "$package"
  code=$?
  case $code in 0|{_REBOOT_NEEDED}|{_RESTART_NEEDED}|{_NOT_FOUND}) ;; *) exit "$code" ;; esac
done
exit 0
"""


@dataclass(frozen=True)
class Zypper:
    """SUSE's package manager."""

    name: str = "zypper"
    environment: Mapping[str, str] = field(default_factory=lambda: {"LC_ALL": "C"})
    locks: tuple[str, ...] = ("/run/zypp.pid", *RPM_LOCKS)
    state_script: str = 'mkdir -p "$1/cache"\n'
    records: str = RECORDS
    prepare: str = _PREPARE
    finish: str = _FINISH

    def refresh(self, shell: Shell, state: str) -> None:
        # zypper takes no notice of rpm's lock until it has downloaded everything, and then fails.
        busy = holders(shell.agent, RPM_LOCKS)
        if busy:
            raise _failures.locked(busy[0].lock, {"lock": busy[0].lock})
        outcome = _zypper(shell, state, "refresh")
        if outcome.exit_code != 0:
            raise explain(Failure("refresh", outcome.exit_code, outcome.stdout + outcome.stderr))

    def simulate(self, shell: Shell, options: UpgradeOptions, state: str) -> Prediction:
        facts = shell.script(_FACTS).stdout.splitlines()
        _require_whole(shell, state, {line[6:] for line in facts if line.startswith("twice ")})
        # By its makers' word, what has no releases is upgraded as from one release to the next.
        upgrade = "dist-upgrade" if "rolling" in facts else "update"
        everything = parse_simulation(_answer(shell, state, upgrade, "--dry-run", exclude=options.exclude))
        patches = parse_patches(_answer(shell, state, "list-patches"))
        unsafe = _security_updates(shell, state, patches, needed=options.security_only)
        found = replace(_judged(everything, unsafe), arguments=(upgrade,))
        kept = self._kept_back(shell, options, state, everything)
        if options.security_only:
            kept += [KeptBack(one.name, KeptReason.SECURITY_UNKNOWN) for one in found.changes if one.security is None]
            found = self._only_security(shell, options, state, unsafe or Prediction(), kept)
        if options.autoremove:
            unneeded = parse_unneeded(_answer(shell, state, "packages", "--unneeded", exclude=options.exclude))
            found = replace(found, changes=(*found.changes, *_removed(unneeded, found)))
        return replace(found, kept_back=tuple(kept))

    def _kept_back(self, shell: Shell, options: UpgradeOptions, state: str, everything: Prediction) -> list[KeptBack]:
        changing = {change.name for change in everything.changes}
        newer = [name for name in parse_updates(_answer(shell, state, "list-updates", "--all")) if name not in changing]
        held = parse_locks(_answer(shell, state, "locks", "--solvables")) if newer else frozenset()
        return [KeptBack(name, _reason(name, options, held)) for name in newer]

    def _only_security(
        self, shell: Shell, options: UpgradeOptions, state: str, found: Prediction, kept: Iterable[KeptBack]
    ) -> Prediction:
        """The security patches alone. A patch is all of its packages: one that must not change keeps zypper from it,
        so then its other packages are upgraded by their names.
        """
        names = {change.name for change in found.changes}
        if names.isdisjoint(one.name for one in kept) and not any(options.excludes(name) for name in names):
            return replace(found, arguments=_SECURITY_PATCHES)
        kept_names = {one.name for one in kept}
        wanted = sorted(name for name in names if name not in kept_names and not options.excludes(name))
        if not wanted:
            return Prediction(arguments=_SECURITY_PATCHES)
        arguments = ("update", "--", *wanted)
        simulated = parse_simulation(
            _answer(shell, state, "update", "--dry-run", "--", *wanted, exclude=options.exclude)
        )
        return replace(_judged(simulated, found), arguments=arguments)

    def command(self, prediction: Prediction, options: UpgradeOptions) -> tuple[str, ...]:
        arguments = prediction.arguments or _SECURITY_PATCHES
        patience, exclude = _whole_seconds(options.lock_timeout), "\n".join(options.exclude)
        return ("/bin/sh", "-c", _COMMAND, "sh", patience, exclude, *arguments)

    def repair(self, options: UpgradeOptions) -> tuple[str, ...]:
        return ("/bin/sh", "-c", _REPAIR, "sh", _whole_seconds(options.lock_timeout), "\n".join(options.exclude))

    def parse_records(self, lines: Iterable[str]) -> Installed:
        return parse_records(lines)

    def progress(self, status: Sequence[str], log: Sequence[str]) -> Progress:  # noqa: ARG002 - what others need
        return parse_progress(log)

    def explain(self, failure: Failure) -> FleetError:
        return explain(failure)


def _zypper(shell: Shell, state: str, *arguments: str, locks: str = "own", exclude: Iterable[str] = ()) -> Outcome:
    """Ask zypper something, with the guest's own locks or with none, and with those for packages to leave alone."""
    return shell.script(_LOOK, state, locks, "\n".join(exclude), *arguments)


def _answer(shell: Shell, state: str, *arguments: str, locks: str = "own", exclude: Iterable[str] = ()) -> str:
    """What zypper knows by the lists that it has. Raises the typed error behind a failure."""
    outcome = _zypper(shell, state, "--no-refresh", *arguments, locks=locks, exclude=exclude)
    if outcome.stdout_truncated:
        raise _unreadable("is longer than any that is to be expected")
    if outcome.exit_code not in _DONE:
        raise explain(Failure("upgrade", outcome.exit_code, outcome.stdout + outcome.stderr))
    return outcome.stdout


def _require_whole(shell: Shell, state: str, twice: Collection[str]) -> None:
    """Raise PackageStateInterrupted where a package, told as NAME.ARCH, is there twice that ought not to be."""
    if not twice:
        return
    try:
        # Of which packages there may be several versions is for the guest to say: zypper would mend the others.
        mended = parse_simulation(_answer(shell, state, "verify", "--dry-run")).changes
    except (DependencyConflict, UpgradeFailed):  # what keeps zypper from it keeps it from upgrading, which will tell
        return
    broken = sorted(one.name for one in mended if one.new is None and f"{one.name}.{one.arch}" in twice)
    if broken:
        raise PackageStateInterrupted(
            f"an earlier package operation in the guest was interrupted; there twice: {', '.join(broken)}",
            remedy="Run 'zypper verify' and 'zypper install --force' of these packages in the guest, then run again.",
            evidence={"packages": broken},
        )


def _security_updates(shell: Shell, state: str, patches: Sequence[str] | None, *, needed: bool) -> Prediction | None:
    """What the security patches would change if nothing were locked; None where nobody can tell.

    They are named one by one: by itself zypper would take those for itself first, and not tell of the others.
    """
    if not patches:
        return None if patches is None else Prediction()
    wanted = [f"patch:{name}" for name in patches]
    try:
        found = parse_simulation(_answer(shell, state, "install", "--dry-run", "--", *wanted, locks="no"))
    except (DependencyConflict, UpgradeFailed):
        # A patch that cannot be installed keeps nobody from upgrading what is no security update, or not known to be.
        if needed:
            raise
        return None
    return _judged(found, found)


def _judged(found: Prediction, unsafe: Prediction | None) -> Prediction:
    """The same changes, each with whether it is a security update."""
    names = frozenset(change.name for change in unsafe.changes) if unsafe else frozenset()
    changes = (
        replace(change, security=None if unsafe is None else change.name in names) if change.new else change
        for change in found.changes
    )
    return replace(found, changes=tuple(changes))


def _reason(name: str, options: UpgradeOptions, held: frozenset[str]) -> KeptReason:
    if options.excludes(name):
        return KeptReason.EXCLUDED
    return KeptReason.HELD if name in held else KeptReason.DEPENDENCIES


def _removed(unneeded: Iterable[PackageChange], found: Prediction) -> tuple[PackageChange, ...]:
    removed = {(change.name, change.arch, change.old) for change in found.changes if change.new is None}
    return tuple(change for change in unneeded if (change.name, change.arch, change.old) not in removed)


def _whole_seconds(seconds: float) -> str:
    """A time for zypper, to which anything below zero means for ever."""
    return str(math.ceil(min(max(seconds, 0), 10**9)))


# --- reading what it prints ----------------------------------------------------------------------

_UNPRINTABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _parse(output: str) -> ET.Element:
    """Read zypper's XML. Raises UpgradeFailed for what is none.

    A summary may contain control characters, which XML has no place for and zypper does not mind.
    """
    # Of zypper's own is neither a document type nor what could expand; a hostile guest's is not worth reading.
    if "<!" in output:
        raise _unreadable("has declarations")
    try:
        return ET.fromstring(_UNPRINTABLE.sub("?", output))
    except (ET.ParseError, ValueError) as error:
        raise _unreadable(f"is no XML ({error})", output) from None


def _unreadable(what: str, output: str = "") -> UpgradeFailed:
    return UpgradeFailed(
        f"zypper's answer about the guest's packages {what}",
        remedy="See what 'zypper --xmlout update --dry-run' prints in the guest.",
        evidence={"output": list(last_lines(output[-4000:]))},
    )


def parse_simulation(output: str) -> Prediction:
    """Read what ``zypper --xmlout … --dry-run`` prints. Raises UpgradeFailed."""
    summary = _parse(output).find("install-summary")
    if summary is None:
        raise _unreadable("has no summary", output)
    changes = [
        change
        for section in summary
        for solvable in section.iter("solvable")
        if solvable.get("type") == "package" and solvable.get("name")
        for change in _changes_of(section.tag, solvable.attrib)
    ]
    room = Room(download=_number(summary.get("download-size")), unpacked=_number(summary.get("space-usage-diff")))
    return Prediction(tuple(changes), room=room)


def _changes_of(section: str, told: Mapping[str, str]) -> list[PackageChange]:
    name, arch, edition = told["name"], told.get("arch", ""), told.get("edition", "")
    old, old_arch = told.get("edition-old") or None, told.get("arch-old") or arch
    if section == "to-remove":
        return [PackageChange(name, arch, edition, None)]
    if old and old_arch != arch:
        return [PackageChange(name, old_arch, old, None), PackageChange(name, arch, None, edition)]
    return [] if old == edition else [PackageChange(name, arch, old, edition)]


def _number(text: str | None) -> int:
    """A size in bytes; one that shrinks needs none."""
    return int(text) if text and re.fullmatch("[0-9]{1,18}", text) else 0


def parse_patches(output: str) -> tuple[str, ...] | None:
    """The names of the needed security patches in ``zypper --xmlout list-patches``; None if there are none at all."""
    root = _parse(output)
    if any(told.get("status") == "no-update-repositories" for told in root.iter("appletinfo")):
        return None
    return tuple(
        patch.get("name", "")
        for patch in root.iter("update")
        if patch.get("kind") == "patch" and patch.get("category") == "security" and patch.get("name")
    )


def parse_updates(output: str) -> tuple[str, ...]:
    """The names of the packages in ``zypper --xmlout list-updates``."""
    found = (one.get("name", "") for one in _parse(output).iter("update") if one.get("kind") == "package")
    return tuple(dict.fromkeys(name for name in found if name))


def parse_locks(output: str) -> frozenset[str]:
    """The names of the packages that ``zypper --xmlout locks --solvables`` tells to be locked."""
    return frozenset(one.get("name", "") for one in _parse(output).iter("match") if one.get("kind") == "package")


def parse_unneeded(output: str) -> tuple[PackageChange, ...]:
    """The packages in the table of ``zypper packages --unneeded``, as what their removal would be.

    A package that several repositories have is told once for each.
    """
    found = {}
    for line in output.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) >= 5 and cells[0].startswith("i") and all(cells[-3:]):
            name, version, arch = cells[-3:]
            found[PackageChange(name, arch, version, None)] = True
    return tuple(found)


_STEP = re.compile(r"\((\d{1,7})/(\d{1,7})\) ((?:Install|Remov|Reinstall|Updat|Clean)ing):? (\S+)")
_RETRIEVAL = re.compile(r"Retrieving(?: package|:) (\S+).* \((\d{1,7})/(\d{1,7})\)")


def parse_progress(log: Sequence[str]) -> Progress:
    """Read zypper's log, such as ``(3/12) Installing: bash-5.2-1.x86_64 [...done]``; the last such line counts."""
    for line in reversed(log):
        step, retrieval = _STEP.match(line), _RETRIEVAL.match(line)
        if step:
            done, total, activity, package = step.groups()
        elif retrieval:
            package, done, total = retrieval.groups()
            activity = "Retrieving"
        else:
            continue
        return Progress(percent(done, total), _name_of(package), f"{activity} {package}")
    return Progress()


def _name_of(package: str) -> str:
    """The name in a package's full one, such as ``qemu-guest-agent-2:8.2-1.x86_64``."""
    return package.rsplit("-", 2)[0]


# --- failures ------------------------------------------------------------------------------------

_HOLDER = re.compile(r"System management is locked by the application with pid (\d{1,10}) \(([^)\n]*)\)")
_RPM_LOCK = re.compile(r"can't create transaction lock on (\S+)")
_BROKEN_DATABASE = re.compile(r"database disk image is malformed|DB_RUNRECOVERY|run database recovery")
_DISK_FULL = re.compile(r"more space on the|No space left on device|[Nn]ot enough (?:free )?(?:disk )?space")
_FAILED_SCRIPT = re.compile(r"%([a-z]+)\((\S+)\) scriptlet failed.*")
_FAILED_PACKAGE = re.compile(r"^Installation of (\S+) failed|^Removal of (\S+) failed", re.MULTILINE)
_LICENCE = re.compile(r"In order to install '([^'\n]+)'")
_CONFLICT = re.compile(r"^\s*(?:Problem: |Detected \d+ file conflict).*", re.MULTILINE)
_UNTRUSTED = re.compile(
    r"Signature verification failed|is unsigned|is not signed|not trusted|[Uu]nknown (?:GnuPG |GPG )?key"
    r"|[Kk]ey .*expired|Digest verification failed|corrupted during transfer|integrity check failed"
    rf"|{CERTIFICATE}"
)
_UNREACHABLE = re.compile(
    r"Valid metadata not found|Problem retrieving|is not a directory|Connection failed"
    r"|Could(?:n't| not) (?:resolve|connect)|Timeout exceeded|Download \(curl\) error|[Nn]ot found on (?:the )?medi"
    r"|Permission to access|have not been refreshed|Failed to mount|Location '.*' is temporarily unaccessible"
)


def explain(failure: Failure) -> FleetError:
    """The typed error behind a failed zypper."""
    output = _words(failure.output)
    evidence: dict[str, object] = {"exit_code": failure.exit_code, "output": list(last_lines(output))}
    first = _first_error(output)
    holder, lock = _HOLDER.search(output), _RPM_LOCK.search(output)
    if holder:
        return _failures.locked_by("/run/zypp.pid", holder.group(1), holder.group(2), evidence)
    if lock:
        return _failures.locked_by(lock.group(1), None, None, evidence)
    if _BROKEN_DATABASE.search(output):
        return PackageStateInterrupted(
            "the guest's package database was left half written",
            remedy="Run 'rpm --rebuilddb' in the guest, then run again.",
            evidence=evidence,
        )
    if _DISK_FULL.search(output):
        return _failures.full(first, "zypper clean", evidence)
    if failure.action == "refresh":
        return _explain_refresh(output, first, evidence)
    return _explain_upgrade(failure, output, first, evidence)


def _explain_upgrade(failure: Failure, output: str, first: str, evidence: Mapping[str, object]) -> FleetError:
    licences = sorted(set(_LICENCE.findall(output)))
    if licences or "need for license confirmation" in output:
        return UpgradeFailed(
            f"a licence has to be agreed to in the guest before its packages can be upgraded: "
            f"{', '.join(licences) or first}",
            remedy="Agree to it in the guest ('zypper update'), or exclude the package.",
            evidence={**evidence, "packages": licences},
        )
    scripts = _FAILED_SCRIPT.findall(output)
    failed = {_name_of(package) for found in _FAILED_PACKAGE.findall(output) for package in found if package}
    broken = sorted(failed | {_name_of(package) for _script, package in scripts})
    culprit = f" at {', '.join(broken)}" if broken else ""
    remedy = "Mend the package in the guest ('zypper verify', 'zypper install --force'), or revert the snapshot."
    found = _FAILED_SCRIPT.search(output)
    if found or failure.exit_code == _SCRIPT_FAILED:
        said = found.group() if found else first
        return MaintainerScriptFailed(
            f"a script of a package failed in the guest{culprit}: {said}",
            remedy=remedy,
            evidence={**evidence, "packages": broken},
        )
    conflict = _CONFLICT.search(output)
    if conflict:
        return DependencyConflict(
            f"the dependencies of the guest's packages cannot be satisfied: {conflict.group().strip()}",
            remedy="See 'zypper update --dry-run' in the guest; exclude, lock or mend the package that it names.",
            evidence=evidence,
        )
    if _UNTRUSTED.search(output):
        return _failures.untrusted(first, evidence)
    if failure.exit_code == _REPOSITORY_SKIPPED or (_UNREACHABLE.search(output) and not broken):
        return _failures.unreachable(first, evidence)
    if failure.exit_code == _RESTART_NEEDED:
        remedy = "Run again: patches for zypper itself were installed, and the others come after them."
    elif failure.exit_code == _INTERRUPTED:
        remedy = "Run again: it goes on with the packages that are left."
    return UpgradeFailed(
        f"zypper {failure.action} failed in the guest{culprit}: {first}",
        remedy=remedy,
        evidence={**evidence, "packages": broken},
    )


def _explain_refresh(output: str, first: str, evidence: Mapping[str, object]) -> FleetError:
    if _UNTRUSTED.search(output):
        return _failures.untrusted(first, evidence)
    if _UNREACHABLE.search(output):
        return _failures.unreachable(first, evidence)
    return _failures.lists_failed("zypper refresh", first, evidence)


def _words(output: str) -> str:
    """What zypper said, without the XML around it."""
    if "<stream>" not in output:
        return output
    lines = html.unescape(re.sub(r"<[^>]*>", "\n", output)).splitlines()
    return "\n".join(line for line in lines if line.strip())


_ERROR = re.compile(
    r"Problem|Error: |error: |Repository '.*' is invalid|System management|Installation of .* failed"
    r"|.*verification failed|.*\bfailed\b|.*\bAborting\b"
)


def _first_error(output: str) -> str:
    """The line that tells what went wrong; where zypper has a reason for it, its next line is that."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for line, following in zip(lines, [*lines[1:], ""]):
        if _ERROR.match(line):
            return f"{line} {following}" if line.endswith((".", ":")) and following else line
    return lines[-1] if lines else "it printed nothing"
