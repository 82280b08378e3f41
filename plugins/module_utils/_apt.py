# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""apt: its command lines, and what its output means in the C locale."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ansible_collections.kvm.fleet.plugins.module_utils import _failures
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    DependencyConflict,
    FleetError,
    MaintainerScriptFailed,
    PackageStateInterrupted,
    UpgradeFailed,
)
from ansible_collections.kvm.fleet.plugins.module_utils._exec import last_lines
from ansible_collections.kvm.fleet.plugins.module_utils._manager import (
    Failure,
    Progress,
    Shell,
    UpgradeOptions,
)
from ansible_collections.kvm.fleet.plugins.module_utils._packages import (
    Installed,
    KeptBack,
    KeptReason,
    PackageChange,
    Prediction,
    Room,
    installed,
    named_once,
)

RECORDS_FORMAT = "${Package}\\t${Architecture}\\t${Version}\\t${db:Status-Status}\\n"

# A simulation with exclusions is made again while it still brings in something that is excluded.
_EXCLUDING_ROUNDS = 5

_ENVIRONMENT = {
    "LC_ALL": "C",
    "DEBIAN_FRONTEND": "noninteractive",
    # needrestart's hook would restart services, the guest agent among them, in the middle of the upgrade.
    "NEEDRESTART_SUSPEND": "1",
    "APT_LISTCHANGES_FRONTEND": "none",
    "APT_LISTBUGS_FRONTEND": "none",
}

# apt downloads as the user _apt, who has to get into the directory. The hooks of 'update' would write elsewhere.
_STATE_SCRIPT = """\
mkdir -p "$1/lists/partial" "$1/cache/archives/partial" && cat >"$1/apt.conf" <<'END'
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
END
"""

_PREPARE = """\
[ -e auto ] || { apt-mark showauto | sort >auto.new && mv auto.new auto; } || exit 1
"""

# Naming a package on apt-get's command line marks it as wanted by hand, and autoremove would then spare it for ever.
# An apt-get that was asked to stop ends between two calls of dpkg, and may leave packages that are not configured.
_FINISH = """\
apt-mark showauto | sort | comm -23 auto - | xargs -r apt-mark auto
if [ "$stopped" = yes ] && [ -n "$(dpkg --audit)" ]; then
  force='--force-confdef --force-confold'
  [ "$KVM_FLEET_CONFFILES" = keep ] || force=--force-confnew
  dpkg $force --configure -a
fi
if [ "$code" -eq 0 ] && [ "$KVM_FLEET_CLEAN" = yes ]; then apt-get clean || code=$?; fi
"""

# $1: seconds to wait for dpkg's lock; $2: dpkg's options. dpkg itself does not wait, and what it says of the lock is
# told only if that was not got in time. A package whose files were being replaced dpkg refuses to configure, and
# 'apt-get -f install' leaves it as it is, without an error where it is half installed: it is to be unpacked once more.
_REPAIR = """\
to_unpack() { dpkg-query -W -f='${db:Status-Eflag} ${binary:Package}\\n' | sed -n 's/^reinstreq //p'; }
end=$(($(date +%s) + $1))
errors=$(mktemp) || exit 1
until dpkg $2 --configure -a 2>"$errors"; do
  code=$?
  if grep -q 'locked by another process' "$errors"; then
    if [ "$(date +%s)" -lt "$end" ]; then
      sleep 5
      continue
    fi
  elif [ -n "$(to_unpack)" ]; then
    break
  fi
  cat "$errors" >&2
  rm -f "$errors"
  exit "$code"
done
cat "$errors" >&2
rm -f "$errors"
unpack=$(to_unpack)
exec apt-get -y -o "DPkg::Lock::Timeout=$1" $(printf ' -o Dpkg::Options::=%s' $2) \
  -f ${unpack:+--reinstall} install $unpack
"""

# What a package operation that was cut off leaves, whoever's it was: apt-get would go on beside it as long as it only
# simulates. 'dpkg --audit' names as well what has nothing to do with that. Names of packages come last.
_PACKAGES = """\
dpkg-query -W -f='package ${db:Status-Want} ${db:Status-Eflag} ${db:Status-Status} ${Package}\\n' || exit
for file in "${DPKG_ADMINDIR:-/var/lib/dpkg}"/updates/[0-9]*; do
  [ ! -e "$file" ] || { echo interrupted; break; }
done
"""
_HALF_DONE = ("unpacked", "half-configured", "triggers-awaited", "triggers-pending")


@dataclass(frozen=True)
class Apt:
    """Debian's and Ubuntu's package manager."""

    name: str = "apt"
    environment: Mapping[str, str] = field(default_factory=lambda: dict(_ENVIRONMENT))
    locks: tuple[str, ...] = (
        "/var/lib/dpkg/lock-frontend",
        "/var/lib/dpkg/lock",
        "/var/lib/apt/lists/lock",
        "/var/cache/apt/archives/lock",
    )
    state_script: str = _STATE_SCRIPT
    records: str = f"dpkg-query -W -f='{RECORDS_FORMAT}'"
    prepare: str = _PREPARE
    finish: str = _FINISH

    def refresh(self, shell: Shell, state: str) -> None:
        # apt-get exits 0 when a repository could not be reached, unless told to mind.
        arguments = ("apt-get", *private_state(state), "-o", "APT::Update::Error-Mode=any", "update")
        outcome = shell.run(arguments)
        # Releases before 2.1.16 do not know that option.
        if outcome.exit_code != 0 or _NOT_FETCHED.search(outcome.stdout + outcome.stderr):
            raise explain(Failure("refresh", outcome.exit_code, outcome.stdout + outcome.stderr))

    def simulate(self, shell: Shell, options: UpgradeOptions, state: str) -> Prediction:
        held = self._held(shell)
        found = self._simulate(shell, full_upgrade(options), state)
        kept: list[KeptBack] = []
        pins: tuple[str, ...] = ()
        for _round in range(_EXCLUDING_ROUNDS):
            unwanted = [change for change in found.changes if options.excludes(change.name)]
            if not unwanted:
                break
            kept += [KeptBack(change.name, KeptReason.EXCLUDED) for change in unwanted if change.new]
            pins += tuple(pin(change) for change in unwanted)
            found = self._simulate(shell, (*full_upgrade(options), *pins), state)
        else:
            raise DependencyConflict(
                f"apt goes on to find other ways to install what is excluded: {unwanted[-1].name} for one",
                remedy="Exclude as well the packages that need what is excluded.",
                evidence={"excluded": list(options.exclude)},
            )
        kept += found.kept_back
        found = self._with_security(shell, found, state)
        if options.security_only:
            kept += [KeptBack(one.name, KeptReason.SECURITY_UNKNOWN) for one in found.changes if one.security is None]
            found = self._security_updates(shell, found, options, pins, state)
        room = self._room(shell, found, state) if found.changes else Room()
        upgraded = {change.name for change in found.changes}
        kept_back = named_once(_judged(one, held, options) for one in kept if one.name not in upgraded)
        return replace(found, kept_back=kept_back, room=room)

    def _security_updates(
        self, shell: Shell, found: Prediction, options: UpgradeOptions, pins: Sequence[str], state: str
    ) -> Prediction:
        if not found.security:
            return Prediction()
        security = {change.name: change.security for change in found.changes}
        selected = self._simulate(shell, (*selected_upgrade(found.security, options), *pins), state)
        changes = (replace(one, security=security.get(one.name, one.security)) for one in selected.changes)
        return replace(selected, changes=tuple(changes))

    def _held(self, shell: Shell) -> frozenset[str]:
        """The packages on hold. Raises PackageStateInterrupted where an operation was cut off, whoever's it was.

        Not by 'apt-mark showhold', which writes to apt's cache.
        """
        lines = [line.split() for line in shell.script(_PACKAGES).stdout.splitlines()]
        packages = [words[1:] for words in lines if words[:1] == ["package"] and len(words) == 5]
        to_unpack = {name for _want, flag, _status, name in packages if flag == "reinstreq"}
        half_done = to_unpack | {name for _want, _flag, status, name in packages if status in _HALF_DONE}
        if half_done or ["interrupted"] in lines:
            raise _interrupted({"packages": sorted(half_done)}, sorted(to_unpack))
        return frozenset(name for want, _flag, _status, name in packages if want == "hold")

    def _with_security(self, shell: Shell, found: Prediction, state: str) -> Prediction:
        """The same, with updates as security updates that bring one along from an archive below their own.

        What apt tells of a version is only where that very version comes from. One that superseded a security update
        comes from another archive.
        """
        unsure = [_qualified(change) for change in found.changes if change.old and change.new and not change.security]
        if not unsure:
            return found
        policy = ("apt-cache", *private_state(state), "policy")
        names = security_below(shell.run(policy).stdout, shell.run((*policy, *unsure)).stdout)
        changes = (
            replace(one, security=True) if names & {one.name, f"{one.name}:{one.arch}"} else one
            for one in found.changes
        )
        return replace(found, changes=tuple(changes))

    def _simulate(self, shell: Shell, arguments: Sequence[str], state: str) -> Prediction:
        outcome = shell.run(("apt-get", "--simulate", *private_state(state), *arguments))
        if outcome.exit_code != 0 or outcome.stdout_truncated:
            raise explain(Failure("upgrade", outcome.exit_code, outcome.stdout + outcome.stderr))
        return replace(parse_simulation(outcome.stdout), arguments=tuple(arguments))

    def _room(self, shell: Shell, found: Prediction, state: str) -> Room:
        new = [f"{_qualified(change)}={change.new}" for change in found.changes if change.new]
        old = [_qualified(change) for change in found.changes if change.old]
        offered = shell.run(("apt-cache", *private_state(state), "show", *new)).stdout
        present = shell.run(("dpkg-query", "-W", "-f=${Installed-Size}\n", *old)).stdout if old else ""
        return parse_room(offered, present)

    def command(self, prediction: Prediction, options: UpgradeOptions) -> tuple[str, ...]:
        # Configuration files that packages keep by ucf, such as those of sshd and grub, do not mind dpkg's policy.
        ucf = "UCF_FORCE_CONFFNEW=1" if options.conffiles == "replace" else "UCF_FORCE_CONFFOLD=1"
        return ("env", ucf, "apt-get", *unattended(options), *prediction.arguments)

    def repair(self, options: UpgradeOptions) -> tuple[str, ...]:
        return ("/bin/sh", "-c", _REPAIR, "sh", f"{options.lock_timeout:.0f}", " ".join(_conffile_policy(options)))

    def parse_records(self, lines: Iterable[str]) -> Installed:
        """A package whose files are there counts, even while it waits to be configured or for a trigger; one that is
        not installed, or of which only configuration files are left, does not.
        """
        fields = [line.split("\t") for line in lines]
        absent = ("not-installed", "config-files")
        return installed((one[0], one[1], one[2]) for one in fields if len(one) == 4 and one[3] not in absent)

    def progress(self, status: Sequence[str], log: Sequence[str]) -> Progress:  # noqa: ARG002 - what others need
        return parse_progress(status)

    def explain(self, failure: Failure) -> FleetError:
        return explain(failure)


def private_state(directory: str) -> tuple[str, ...]:
    """Options that keep all that 'update' and a simulation write in a directory; none without one."""
    if not directory:
        return ()
    return (
        "-c",
        f"{directory}/apt.conf",
        "-o",
        f"Dir::State::Lists={directory}/lists",
        "-o",
        f"Dir::Cache={directory}/cache",
        "-o",
        f"Dir::Log={directory}",  # a simulation leaves its plan there
    )


def full_upgrade(options: UpgradeOptions) -> tuple[str, ...]:
    """Arguments that upgrade everything, new dependencies included, as a new kernel needs them."""
    return ("--with-new-pkgs", *_autoremove(options), "upgrade")


def selected_upgrade(changes: Iterable[PackageChange], options: UpgradeOptions) -> tuple[str, ...]:
    """Arguments that upgrade just these packages to just these versions, and what they depend on.

    apt-get has no option for security updates only, so they are selected by where their versions come from.
    """
    wanted = [f"{_qualified(change)}={change.new}" for change in changes if change.old and change.new]
    return (*_autoremove(options), "install", "--only-upgrade", *wanted)


def _autoremove(options: UpgradeOptions) -> tuple[str, ...]:
    return ("--autoremove",) if options.autoremove else ()


def pin(change: PackageChange) -> str:
    """An argument of 'upgrade' by which a package stays as it is: at its old version, or not installed."""
    return f"{_qualified(change)}={change.old}" if change.old else f"{_qualified(change)}-"


def unattended(options: UpgradeOptions) -> tuple[str, ...]:
    """Options for a run that nobody watches.

    dpkg's lock is waited for inside apt. How far it has come goes to file descriptor 3.
    """
    plain_log = ("-q", "-o", "Dpkg::Use-Pty=0")  # no percentages that overwrite each other
    return (
        *("-y", *plain_log, "-o", f"DPkg::Lock::Timeout={options.lock_timeout:g}", "-o", "APT::Status-Fd=3"),
        *(word for force in _conffile_policy(options) for word in ("-o", f"Dpkg::Options::={force}")),
    )


def _conffile_policy(options: UpgradeOptions) -> tuple[str, ...]:
    """Options by which dpkg asks nobody about a configuration file that both its owner and the new package changed.

    The default that confdef stands for is to keep a file that was changed; where dpkg has none, confold decides.
    """
    return ("--force-confnew",) if options.conffiles == "replace" else ("--force-confdef", "--force-confold")


def _qualified(change: PackageChange) -> str:
    """A package's name with its architecture, where it has one."""
    return change.name if change.arch in ("", "all") else f"{change.name}:{change.arch}"


def _judged(kept: KeptBack, held: frozenset[str], options: UpgradeOptions) -> KeptBack:
    """To be excluded or on hold is a better reason than dependencies, which is what apt tells."""
    if options.excludes(kept.name):
        return KeptBack(kept.name, KeptReason.EXCLUDED)
    if kept.name in held and kept.reason is KeptReason.DEPENDENCIES:
        return KeptBack(kept.name, KeptReason.HELD)
    return kept


_INSTALL = re.compile(r"Inst (\S+) (?:\[([^\]]+)\] )?\((\S+) (.*?)\s*\[([^\]]+)\]\)")
_REMOVE = re.compile(r"(?:Remv|Purg) (\S+) \[([^\]]+)\]")
_KEPT_BACK = {
    "The following packages have been kept back:": KeptReason.DEPENDENCIES,
    # Ubuntu, from apt 2.4 on
    "The following upgrades have been deferred due to phasing:": KeptReason.PHASED,
}


def parse_simulation(output: str) -> Prediction:
    """Read what ``apt-get --simulate`` prints."""
    changes, kept_back = [], []
    reason = None
    for line in output.splitlines():
        if reason and line.startswith("  "):
            kept_back += [KeptBack(_bare(name), reason) for name in line.split()]
            continue
        reason = _KEPT_BACK.get(line)
        install, remove = _INSTALL.match(line), _REMOVE.match(line)
        if install:
            name, old, new, origins, arch = install.groups()
            changes.append(PackageChange(_bare(name), arch, old, new, is_security(origins)))
        elif remove:
            name, old = remove.groups()
            changes.append(PackageChange(_bare(name), "", old, None))
    return Prediction(tuple(changes), tuple(kept_back))


def _bare(name: str) -> str:
    """A package's name without the architecture that apt adds for a foreign one."""
    return name.partition(":")[0]


def is_security(origins: str) -> bool | None:
    """Whether one of a version's origins, such as ``Debian-Security:12/stable-security``, is a security archive.

    Debian's is told by its label, Ubuntu's and the derivatives' by the suffix of the archive's name. Of an archive
    whose label is neither distribution's, nobody can tell: it may bring security updates among others.
    """
    archives = [part.strip() for part in origins.split(",")]
    labels = [archive.partition(":")[0] for archive in archives]
    if "Debian-Security" in labels or any(archive.endswith("-security") for archive in archives):
        return True
    return False if any(label in ("Debian", "Debian Backports", "Ubuntu") for label in labels) else None


_ARCHIVE = re.compile(r" *-?\d+ (\S.*)\n +release (\S.*)")
_VERSIONS = re.compile(r"^(\S+):\n(?:  .*\n)*?  Version table:\n((?: .*\n)*)", re.MULTILINE)


def security_below(archives: str, versions: str) -> frozenset[str]:
    """The packages that have a version above the installed one in a security archive.

    From ``apt-cache policy``, which describes the archives, and the same of packages, which lists the versions of each,
    highest first, with the archives that have them.
    """
    security = set()
    for archive, release in _ARCHIVE.findall(archives):
        told = dict(part.split("=", 1) for part in release.split(",") if "=" in part)
        if is_security(f"{told.get('l', '')}:{told.get('v', '')}/{told.get('a', '')}"):
            security.add(archive.strip())
    found = set()
    for name, table in _VERSIONS.findall(f"{versions}\n"):
        above = f"\n{table}".partition("\n *** ")[0]
        if any(line.strip().partition(" ")[2] in security for line in above.splitlines()):
            found.add(name)
    return frozenset(found)


_FIELD = re.compile(r"^(Size|Installed-Size): (\d+)$", re.MULTILINE)


def parse_room(offered: str, present: str) -> Room:
    """How much room an upgrade needs, from ``apt-cache show`` of the new versions and the KiB that the old ones use.

    dpkg unpacks a package beside its old files, and then removes those: what is needed beyond the growth is the room of
    the largest package.
    """
    sizes: dict[str, list[int]] = {"Size": [], "Installed-Size": []}
    for key, value in _FIELD.findall(offered):
        sizes[key].append(int(value))
    new = sizes["Installed-Size"]
    old = [int(line) for line in present.split() if line.isdigit()]
    growth = max(0, sum(new) - sum(old))
    return Room(download=sum(sizes["Size"]), unpacked=(growth + max(new, default=0)) * 1024)


_STATUS = re.compile(r"(pmstatus|dlstatus):([^:]*):([0-9.]+):(.*)")


def parse_progress(status: Sequence[str]) -> Progress:
    """Read apt's status lines, such as ``pmstatus:bash:42.8:Unpacking bash (amd64)``; the last one counts.

    What a download's line names is no package but a number.
    """
    for line in reversed(status):
        found = _STATUS.fullmatch(line)
        if found:
            kind, package, percent, activity = found.groups()
            try:
                share = min(100, int(float(percent)))
            except ValueError:
                continue
            return Progress(share, _bare(package) if kind == "pmstatus" else "", activity)
    return Progress()


# Only an error tells that the lock was not got: a line without 'E:' says that apt waited for it, maybe with success.
_LOCKED = re.compile(
    r"^E: (?:Could not get lock|Unable to acquire the dpkg frontend lock|Unable to lock)"
    r"|^dpkg: error: .*lock (?:is|was) locked by another process",
    re.MULTILINE,
)
_HOLDER = re.compile(
    r"Could not get lock (\S+?)\.?(?: It is held by process (\d+) \(([^)]*)\))?(?:\.\.\.| - .*)?$", re.MULTILINE
)
_DPKGS_HOLDER = re.compile(
    r"^dpkg: error: .*\block (?:is|was) locked by another process(?: with pid (\d+))?", re.MULTILINE
)
_BROKEN_PACKAGE = re.compile(r"dpkg: error processing (?:package|archive) (\S+)")
_SCRIPT_FAILED = re.compile(r"^.*(?:pre|post)-(?:installation|removal) script subprocess.*$", re.MULTILINE)
_DISK_FULL = re.compile(r"No space left on device|You don't have enough free space in (\S+?)\.?$", re.MULTILINE)
_CONFLICT = re.compile(r"unmet dependencies|held broken packages|Unable to correct problems|pkgProblemResolver")
_UNTRUSTED = re.compile(
    r"NO_PUBKEY|EXPKEYSIG|KEYEXPIRED|REVKEYSIG|BADSIG|signatures? (?:were|was) invalid|signatures couldn't be verified"
    r"|is not signed|is not valid yet|is expired|unauthenticated packages"
    r"|[Cc]ertificate (?:verification|is |chain |issuer |has )"  # not what a package with certificates says
    r"|signature verification failed|Missing key|sqv returned"  # apt 3
)
_UNREACHABLE = re.compile(
    r"Could not resolve|Temporary failure resolving|Could not connect|Connection (?:failed|refused|timed out)"
    r"|Unable to connect|Failed to fetch|Some index files failed to download|(?:no longer|not) have a Release file"
    r"|Hash Sum mismatch"  # a mirror that is just being renewed
)

_NOT_FETCHED = re.compile(
    r"^(?:Err:|W: (?:Failed to fetch|Some index files failed|An error occurred during the signature))", re.MULTILINE
)


def explain(failure: Failure) -> FleetError:
    """The typed error behind a failed apt-get."""
    output = failure.output
    evidence: dict[str, object] = {"exit_code": failure.exit_code, "output": list(last_lines(output))}
    if _LOCKED.search(output):
        dpkgs = [("/var/lib/dpkg/lock-frontend", pid, "") for pid in _DPKGS_HOLDER.findall(output)]
        path, pid, program = ([*_HOLDER.findall(output), *dpkgs, ("the package manager", "", "")])[0]
        return _failures.locked_by(path, pid, program, evidence)
    if "dpkg was interrupted" in output:
        return _interrupted(evidence)
    first = _first_error(output)
    full = next((line.strip() for line in output.splitlines() if _DISK_FULL.search(line)), "")
    if full:
        return _failures.full(full, "apt-get clean", evidence)
    if failure.action == "refresh":
        return _explain_refresh(output, first, evidence)
    return _explain_upgrade(output, first, evidence)


def _interrupted(evidence: Mapping[str, object], to_unpack: Iterable[str] = ()) -> PackageStateInterrupted:
    command = " ".join(("apt-get -f --reinstall install", *to_unpack)) if to_unpack else "dpkg --configure -a"
    return PackageStateInterrupted(
        "an earlier package operation in the guest was interrupted",
        remedy=f"Run '{command}' in the guest, then run again.",
        evidence=evidence,
    )


def _explain_upgrade(output: str, first: str, evidence: Mapping[str, object]) -> FleetError:
    broken = sorted({_package_of(found) for found in _BROKEN_PACKAGE.findall(output)})
    script = _SCRIPT_FAILED.search(output)
    culprit = f" at {', '.join(broken)}" if broken else ""
    remedy = "Mend the package in the guest ('apt-get -f install', 'dpkg --configure -a'), or revert the snapshot."
    if broken and script:
        return MaintainerScriptFailed(
            f"a maintainer script failed in the guest{culprit}: {script.group().strip()}",
            remedy=remedy,
            evidence={**evidence, "packages": broken},
        )
    if not broken and _CONFLICT.search(output):
        return DependencyConflict(
            f"the dependencies of the guest's packages cannot be satisfied: {first}",
            remedy="See 'apt-get --simulate upgrade' in the guest; exclude, hold or mend the package that it names.",
            evidence=evidence,
        )
    if not broken and (_UNTRUSTED.search(output) or _UNREACHABLE.search(output)):
        return _explain_refresh(output, first, evidence)
    return UpgradeFailed(
        f"apt-get upgrade failed in the guest{culprit}: {first}",
        remedy=remedy,
        evidence={**evidence, "packages": broken},
    )


def _explain_refresh(output: str, first: str, evidence: Mapping[str, object]) -> FleetError:
    if _UNTRUSTED.search(output):
        return _failures.untrusted(first, evidence)
    if _UNREACHABLE.search(output):
        return _failures.unreachable(first, evidence)
    return _failures.lists_failed("apt-get update", first, evidence)


def _package_of(named: str) -> str:
    """The package that dpkg names, either by itself or by an archive such as ``/tmp/…/4-lab-config_1.1_all.deb``."""
    if not named.endswith(".deb"):
        return _bare(named)
    return re.sub(r"\A[0-9]+-", "", named.rpartition("/")[2]).partition("_")[0]


def _first_error(output: str) -> str:
    lines = output.splitlines()
    errors = [line for line in lines if line.startswith("E: ")]
    return _failures.first_of(errors or [line for line in lines if _NOT_FETCHED.match(line)], output)
