# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Ways to the settings of a guest's agent, and what is done by the one that is open.

By guest-exec, where the agent allows it, as when only other RPCs are blocked or guest-exec is to be. By the agent's
own commands for files, and a power cycle, since nothing gentler restarts the agent from outside. Or in the guest's
image, while the guest is shut down for it, which needs no agent that answers. Whatever fails on the way, the guest is
left running as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import Any, Protocol, Union

from ansible_collections.kvm.fleet.plugins.module_utils import _power, _restart
from ansible_collections.kvm.fleet.plugins.module_utils._agent import (
    READ_COMMANDS,
    WRITE_COMMANDS,
    AgentInfo,
    GuestAgent,
    command_blocked,
)
from ansible_collections.kvm.fleet.plugins.module_utils._agent_config import (
    DROP_IN_DIRECTORIES,
    USUAL_FILES,
    AgentConfig,
    Setting,
    parse_version,
    read_config,
)
from ansible_collections.kvm.fleet.plugins.module_utils._agent_files import AgentFiles
from ansible_collections.kvm.fleet.plugins.module_utils._audit import Audit, who
from ansible_collections.kvm.fleet.plugins.module_utils._clock import Deadline, ticks
from ansible_collections.kvm.fleet.plugins.module_utils._domain import (
    ACTIVE_STATES,
    Domain,
    Hypervisor,
    require_running,
)
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    AgentCommandFailed,
    AgentSilent,
    CommandFailed,
    DomainBusy,
    DomainUnsafe,
    FleetError,
    GuestUnsupported,
    ImageFailed,
    ImageToolsMissing,
    InvalidRequest,
    NoWayOpen,
    PolicyUnsupported,
    ProofFailed,
    RecordUnavailable,
)
from ansible_collections.kvm.fleet.plugins.module_utils._exec_files import ExecFiles
from ansible_collections.kvm.fleet.plugins.module_utils._guest_files import RootFiles
from ansible_collections.kvm.fleet.plugins.module_utils._lease import Recorder
from ansible_collections.kvm.fleet.plugins.module_utils._observe import Observation, observe
from ansible_collections.kvm.fleet.plugins.module_utils._policy import (
    EXEC_RPCS,
    LIFELINES,
    FileChange,
    Wanted,
    plan,
)
from ansible_collections.kvm.fleet.plugins.module_utils._power import PowerOptions, PowerReport, PowerState
from ansible_collections.kvm.fleet.plugins.module_utils._traced import decode, shown

Files = Union[AgentFiles, RootFiles]

BACKUP = ".kvm-fleet-backup"
PROOF_SECONDS = 30
"""For how long an agent that answers may still be the one from before its restart."""

_WHILE_FROZEN = {
    *("guest-ping", "guest-info", "guest-sync", "guest-sync-delimited"),
    *("guest-fsfreeze-status", "guest-fsfreeze-thaw"),
}


class Way(str, Enum):
    EXEC = "exec"
    FILES = "files"
    OFFLINE = "offline"


class Image(Protocol):
    """A guest's image that is open."""

    @property
    def files(self) -> RootFiles: ...


class Images(Protocol):
    """What opens the images of domains that are off; for a look, also of those that run, as their disks are then."""

    def check(self, domain: Domain, *, uri: str, shut_off: bool, block_devices: bool) -> object:
        """Raise what would keep the image from being opened. Unless ``shut_off``, the domain may still run."""

    def open_image(
        self, domain: Domain, *, uri: str, read_only: bool, shut_off: bool, block_devices: bool
    ) -> AbstractContextManager[Image]: ...


@dataclass(frozen=True)
class Request:
    """What is wanted, and what may be done for it. Without ``way`` the first one that is open is taken.

    ``block_devices`` says that nothing starts the domain while its image is worked on.
    """

    wanted: Wanted
    way: Way | None
    power_cycle: bool
    power: PowerOptions
    block_devices: bool = False
    run: str | None = None
    owner: str | None = None

    def check(self) -> None:
        """Raise InvalidRequest for what cannot be meant."""
        self.wanted.check()
        self.power.check()
        if not self.power.agent_timeout:
            raise InvalidRequest(
                "without an agent_timeout nothing could prove the change",
                remedy="Give the seconds that the guest takes to start.",
            )


@dataclass(frozen=True)
class Written:
    """A file that was changed, or would be. ``backup_on`` is None where there was nothing to keep."""

    path: str
    change: FileChange
    backup: str | None = None
    backup_on: str | None = None

    def facts(self) -> dict[str, Any]:
        """As results and the audit have it. What comes from a guest is made fit to be shown."""
        lines = [
            {side: None if text is None else shown(text) for side, text in asdict(line).items()}
            for line in self.change.lines()
        ]
        return {"path": shown(self.path), "backup": self.backup, "backup_on": self.backup_on, "lines": lines}

    def difference(self) -> dict[str, str]:
        """For Ansible's diff mode."""
        before, after = (
            "".join(f"{shown(line)}\n" for line in decode(content or b"").splitlines())
            for content in (self.change.before, self.change.after)
        )
        header = shown(self.path)
        return {"before_header": header, "after_header": header, "before": before, "after": after}


@dataclass
class Report:
    """What was done, or would be.

    ``known`` is False in check mode, where the files could only be read after a shutdown. What else is told of a guest
    that runs is as its disks were at that moment. ``proved`` tells whether the agent itself was asked afterwards.
    """

    changed: bool
    way: Way | None = None
    settings: dict[str, list[Setting]] = field(default_factory=dict)
    files: list[Written] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    restarted: bool = False
    known: bool = True
    proved: bool = False
    audit: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)


def apply_policy(
    hypervisor: Hypervisor,
    domain: Domain,
    request: Request,
    recorder: Recorder,
    images: Images,
    *,
    check: bool,
) -> Report:
    """Have the guest's agent allow or block what is wanted.

    Raises NoWayOpen, PolicyUnsupported, ProofFailed, UpgradeRunning, and what the way that is taken raises.
    """
    request.check()
    observed = observe(hypervisor, domain)
    work = _Work(
        hypervisor=hypervisor,
        domain=domain,
        request=request,
        recorder=recorder,
        images=images,
        observed=observed,
        check=check,
    )
    if observed.state not in ACTIVE_STATES:
        return work.while_off()
    require_running(domain.name, observed.state)
    info = _ask(work.agent, request.wanted)
    if isinstance(info, _Closed):
        work.mind_that_the_agent_does_not_answer()
    else:
        if request.wanted.met_by(lambda rpc: info.commands.get(rpc, False)):
            return Report(changed=False, proved=True)
        _refuse_what_no_setting_changes(domain, request.wanted, info)
        work.version = parse_version(info.version)
    return work.by(work.choose(info))


def _ask(agent: GuestAgent, wanted: Wanted) -> AgentInfo | _Closed:
    """What the agent allows, or why it does not tell: it hangs, or it may not. Raises AgentCommandBlocked."""
    try:
        return agent.info()
    except AgentSilent as error:
        return _Closed(error.message)
    except AgentCommandFailed as error:
        if not wanted.allowed:  # nothing could prove that
            raise command_blocked(["guest-info"]) from error
        return _Closed(f"the agent does not tell what it allows, as where guest-info is blocked ({error.message})")


def _refuse_what_no_setting_changes(domain: Domain, wanted: Wanted, info: AgentInfo) -> None:
    unknown = [rpc for rpc in wanted.rpcs if rpc not in info.commands]
    if unknown and wanted.allowed:
        raise PolicyUnsupported(
            f"the agent of {domain.name!r} has no {', '.join(unknown)}, whatever its settings are",
            remedy="Upgrade qemu-guest-agent in the guest, or correct the names.",
            evidence={"version": shown(info.version), "unknown": unknown},
        )
    enabled = {rpc for rpc, allowed in info.commands.items() if allowed}
    if "guest-fsfreeze-thaw" in enabled and enabled <= _WHILE_FROZEN:
        raise DomainBusy(
            f"the file systems of {domain.name!r} are frozen, as for a backup; its agent allows nothing else then",
            remedy="Wait until the backup has ended, or thaw them with 'virsh domfsthaw'.",
            evidence={"enabled": sorted(enabled)},
        )


@dataclass(frozen=True)
class _Closed:
    """A way that is not open, and why."""

    why: str


@dataclass(frozen=True)
class _Open:
    """A way that is open, with what was read and planned by it.

    Without ``files``, the guest has to be off to be changed. What was planned is then made anew, if anything was.
    """

    way: Way
    files: Files | None = None
    config: AgentConfig | None = None
    changes: tuple[FileChange, ...] = ()


class _Work:
    """One guest, on its way to what is wanted."""

    def __init__(
        self,
        *,
        hypervisor: Hypervisor,
        domain: Domain,
        request: Request,
        recorder: Recorder,
        images: Images,
        observed: Observation,
        check: bool,
    ) -> None:
        self.agent = GuestAgent(domain, hypervisor.clock)
        self.version: tuple[int, int] | None = None
        self._agent_answers = True
        self._has_written = False
        self._hypervisor = hypervisor
        self._clock = hypervisor.clock
        self._domain = domain
        self._request = request
        self._wanted = request.wanted
        self._recorder = recorder
        self._images = images
        self._observed = observed
        self._check = check
        self._audit = Audit(hypervisor.uri, hypervisor.clock)
        self._report = Report(changed=True)

    # --- which way --------------------------------------------------------------------------------

    def mind_that_the_agent_does_not_answer(self) -> None:
        """It has to be allowed what libvirt needs to speak to it, or what proves the change, as well."""
        self._agent_answers = False
        if self._wanted.allowed:
            self._wanted = replace(self._wanted, rpcs=tuple(dict.fromkeys((*self._wanted.rpcs, *LIFELINES))))

    def choose(self, info: AgentInfo | _Closed) -> _Open:
        """The first way that is open, or the one that was asked for. Raises NoWayOpen."""
        closed: dict[str, str] = {}
        for way, look in (
            (Way.EXEC, self._look_by_exec),
            (Way.FILES, self._look_by_files),
            (Way.OFFLINE, self._look_offline),
        ):
            if self._request.way not in (None, way):
                continue
            found = look(info)
            if isinstance(found, _Open):
                return found
            closed[way.value] = found.why
        raise NoWayOpen(
            f"the agent of {self._domain.name!r} cannot be set up from here: "
            + "; ".join(f"{way}: {why}" for way, why in closed.items()),
            remedy="Open one of these ways, or log in to the guest: kvm.fleet.agent_policy_local does the same there.",
            evidence={"ways": closed},
        )

    def _look_by_exec(self, info: AgentInfo | _Closed) -> _Open | _Closed:
        blocked = _blocked(info, EXEC_RPCS)
        if blocked:
            return blocked
        files = ExecFiles(self.agent)
        try:
            files.probe()
        except CommandFailed as error:
            return _Closed(f"the agent may not run what restarts it ({error.evidence['stderr']}), as under SELinux")
        files.fetch(USUAL_FILES, DROP_IN_DIRECTORIES)
        return self._planned(Way.EXEC, files)

    def _look_by_files(self, info: AgentInfo | _Closed) -> _Open | _Closed:
        closed = _blocked(info, tuple(dict.fromkeys((*READ_COMMANDS, *WRITE_COMMANDS)))) or self._no_power_cycle()
        if closed:
            return closed
        try:
            found = self._planned(Way.FILES, AgentFiles(self.agent))
        except (AgentCommandFailed, GuestUnsupported, PolicyUnsupported) as error:
            # The agent lists no directory, so what decides may be in a file that nobody has seen.
            return _Closed(f"what could be seen of the settings is not enough to change them: {error.message}")
        new = [change.path for change in found.changes if change.before is None]
        if new:
            return _Closed(
                f"{new[0]} would have to be made, which the agent does with a mode that lets everybody write"
            )
        if not found.changes and found.config and found.config.unseen and not self._is_only_to_be_restarted():
            return _Closed(
                "what blocks these RPCs is in none of the files that could be seen; "
                f"the agent cannot list {found.config.unseen[0]} and others"
            )
        return found

    def _is_only_to_be_restarted(self) -> bool:
        """Whether a change that was begun for what is wanted, and did not come to its end, has written the files."""
        begun = self._audit.last(self._domain.uuid)
        if begun is None or begun["event"] != "changing":
            return False
        return (begun["state"] == "enabled") is self._wanted.allowed and set(self._wanted.rpcs) <= set(begun["rpcs"])

    def _look_offline(self, info: AgentInfo | _Closed) -> _Open | _Closed:
        """What can be refused is refused before the guest is shut down, by its disks as they are while it runs.

        A guest whose agent does not answer is shut down only for what is to be edited: it may just be booting, or have
        no agent. Whoever asks for this way knows better.
        """
        closed = self._no_power_cycle() or self._no_image()
        if closed:
            return closed
        has_to_help = self._request.way is None and isinstance(info, _Closed)
        try:
            with self._image(read_only=True, shut_off=False) as image:
                found = self._planned(Way.OFFLINE, image.files)
        except DomainUnsafe as error:
            return _Closed(error.message)
        except ImageFailed as error:  # disks that are written to meanwhile may make no sense
            return _Closed(error.message) if has_to_help else _Open(Way.OFFLINE)
        if found.changes:
            return replace(found, files=None)
        if has_to_help:
            return _Closed("the settings are as wanted, so it is the agent that has to be mended, or only restarted")
        return _Open(Way.OFFLINE)  # the agent has not read them yet, or the guest has not written them to its disks

    def _no_image(self) -> _Closed | None:
        try:
            self._check_image()
        except (DomainUnsafe, ImageFailed, ImageToolsMissing) as error:
            return _Closed(error.message)
        return None

    def _check_image(self) -> None:
        self._images.check(
            self._domain, uri=self._hypervisor.uri, shut_off=False, block_devices=self._request.block_devices
        )

    def _image(self, *, read_only: bool, shut_off: bool = True) -> AbstractContextManager[Image]:
        return self._images.open_image(
            self._domain,
            uri=self._hypervisor.uri,
            read_only=read_only,
            shut_off=shut_off,
            block_devices=self._request.block_devices,
        )

    def _no_power_cycle(self) -> _Closed | None:
        """Why the guest cannot be shut down and started, which is all that restarts its agent from outside."""
        if not self._request.power_cycle:
            return _Closed("it needs a power cycle, which 'power_cycle: false' forbids")
        try:
            _power.plan(self._observed, PowerState.RESTARTED, self._request.power)
        except DomainUnsafe as error:
            return _Closed(error.message)
        return None

    def _planned(self, way: Way, files: Files) -> _Open:
        config = read_config(files, self.version)
        return _Open(way, files, config, plan(config, self._wanted))

    # --- by that way ------------------------------------------------------------------------------

    def by(self, found: _Open) -> Report:
        """Do it, or in check mode tell what would be done."""
        self._report.way = found.way
        if found.config:
            self._tell(found.config, found.changes)
        else:
            self._report.known = not self._check
        self._report.restarted = True
        if found.way is not Way.EXEC:  # which restarts the agent alone
            self._report.warnings = _restart.see_no_upgrade(self._hypervisor, self._domain, self._recorder)
        if self._check:
            return self._report
        with self._audited():
            if found.files is None or found.config is None:
                self._change_in_image()
            elif found.way is Way.FILES:
                with self._undone_on_the_image(), self._changed(found.files, found.changes):
                    self._power_cycle()
                    self._prove(PROOF_SECONDS)
            else:
                self._change_by_exec(ExecFiles(self.agent), found.config.unit, found.changes)
            self._prove(PROOF_SECONDS)
        return self._report

    def _tell(self, config: AgentConfig, changes: Sequence[FileChange]) -> None:
        self._report.settings = {rpc: config.settings_against(rpc) for rpc in self._wanted.rpcs}
        self._report.unseen = config.unseen
        self._report.files = [Written(change.path, change) for change in changes]

    def while_off(self) -> Report:
        """A guest that is off is edited so and stays off, unless it is off only since a run has shut it down."""
        if self._request.way not in (None, Way.OFFLINE):
            raise NoWayOpen(
                f"the way {self._request.way.value!r} needs an agent that answers, and {self._domain.name!r} is off",
                remedy="Start the guest, or take the way 'offline'.",
                evidence={"ways": {self._request.way.value: "the guest is off"}},
            )
        self._report.way = Way.OFFLINE
        record = self._recorder.record
        self._report.restarted = record is not None and record.shut_down_by_us
        if self._check:
            with self._image(read_only=True) as image:
                config = read_config(image.files, None)
                self._tell(config, plan(config, self._wanted))
            self._report.changed = bool(self._report.files) or self._report.restarted
            return self._report
        with self._audited():
            if self._report.restarted:
                self._change_in_image()
            else:
                self._edit_image()
        self._report.changed = bool(self._report.files) or self._report.restarted
        return self._report

    def _edit_image(self) -> None:
        with self._image(read_only=False) as image:
            config = read_config(image.files, self.version)
            changes = plan(config, self._wanted)
            self._tell(config, changes)
            self._write(image.files, changes)

    def _change_in_image(self) -> None:
        self._report.files = []  # what was planned may come to nothing
        with self._undone_on_the_image():
            self._power_cycle(self._edit_image)
            self._prove(PROOF_SECONDS)

    @contextmanager
    def _undone_on_the_image(self) -> Iterator[None]:
        """What fails once files were written, and could not be put back otherwise, is undone by another power cycle."""
        try:
            yield
        except FleetError as error:
            if self._has_written and error.evidence.get("put_back") is not True:
                self._undo_on_the_image(error)
            raise

    def _undo_on_the_image(self, error: FleetError) -> None:
        """Bring the old files back, and say with the error what has come of that."""
        error.evidence["put_back"] = False

        def edit() -> None:
            with self._image(read_only=False) as image:
                for one in self._report.files:
                    put_back(image.files, one.change)
            error.evidence["put_back"] = True

        try:
            self._check_image()
            self._observed = observe(self._hypervisor, self._domain)
            self._agent_answers = False
            self._power_cycle(edit)
        except FleetError as second:
            error.evidence["undoing"] = second.message

    def _power_cycle(self, meanwhile: Callable[[], None] = lambda: None) -> PowerReport:
        self._audit_restart()
        return _restart.cycle(
            self._hypervisor,
            self._domain,
            self._observed,
            self._request.power,
            self._recorder,
            meanwhile=meanwhile,
            agent_answers=self._agent_answers,
        )

    def _change_by_exec(self, files: ExecFiles, unit: str, changes: Sequence[FileChange]) -> None:
        try:
            with self._changed(files, changes):
                self._audit_restart()
                files.restart_agent(unit, [(written.path, written.backup or "") for written in self._report.files])
                self._prove(self._request.power.agent_timeout)
        except ProofFailed as error:
            if error.evidence["put_back"]:  # the agent has to take notice of the old files once more
                files.restart_agent(unit, ())
            raise

    @contextmanager
    def _changed(self, files: Files, changes: Sequence[FileChange]) -> Iterator[None]:
        """Change the files for what is then tried, and put them back where that fails."""
        self._write(files, changes)
        try:
            yield
        except FleetError as error:
            error.evidence["put_back"] = _put_all_back(files, self._report.files)
            raise

    def _write(self, files: Files, changes: Sequence[FileChange]) -> None:
        """Keep what was there, say in the audit what will be, and write it: all of the files, or none."""

        def announce(written: list[Written]) -> None:
            self._report.files = written
            self._report.audit = self._audit.add("changing", self._facts())
            self._has_written = True

        kept = [self._kept(files, change) for change in changes]
        self._report.files = []
        change_files(files, kept, announce)

    def _kept(self, files: Files, change: FileChange) -> Written:
        if not isinstance(files, AgentFiles):
            return kept_in_guest(files, change)
        if change.before is None:
            return Written(change.path, change)
        # It cannot make a file in the guest that only root may change.
        kept = self._audit.keep(self._domain.uuid, change.path, change.before)
        return Written(change.path, change, backup=kept, backup_on="hypervisor")

    # --- proof and audit --------------------------------------------------------------------------

    def _prove(self, seconds: float) -> None:
        """Raise ProofFailed unless the agent comes to say what was wanted."""
        if self._report.proved:
            return
        wanted = self._request.wanted
        said: dict[str, bool] = {}
        for _tick in ticks(Deadline(self._clock, seconds), self._clock):
            try:
                said.update(self.agent.info().commands)
            except AgentCommandFailed:
                continue  # it may not even tell
            except FleetError as error:
                if not error.transient:
                    raise
                continue
            if wanted.met_by(lambda rpc: said.get(rpc, False)):
                self._report.proved = True
                return
        backups = {one.path: one.backup for one in self._report.files}
        raise ProofFailed(
            f"the agent of {self._domain.name!r} was restarted with the changed settings and still does not "
            f"{'allow' if wanted.allowed else 'block'} all of {', '.join(wanted.rpcs)}",
            remedy="See 'systemctl cat qemu-guest-agent' and 'systemctl status qemu-guest-agent' in the guest: another "
            "setting may decide, or SELinux may. The evidence names the copies of what was changed.",
            evidence={"allowed": {rpc: said.get(rpc) for rpc in wanted.rpcs}, "backups": backups},
        )

    @contextmanager
    def _audited(self) -> Iterator[None]:
        """Write down what has become of a change that the audit knows to have begun, or of a restart."""
        try:
            yield
            if self._report.audit:
                event = "changed" if self._report.files else "restarted"
                self._report.audit = self._audit.add(event, {**self._facts(), "proved": self._report.proved})
        except FleetError as error:
            if self._has_written:
                tell_of_copies(error, self._report.files)
            if self._report.audit:
                self._audit_failure(error)
            raise

    def _audit_restart(self) -> None:
        """Write down that the agent, or the guest, is about to be restarted, unless a change that was begun says so."""
        if not self._report.audit:
            self._report.audit = self._audit.add("restarting", self._facts())

    def _audit_failure(self, error: FleetError) -> None:
        """Write down what went wrong. The error tells what the audit has, since by then it is not as if nothing was."""
        try:
            told = {**self._facts(), "error_code": error.error_code, "msg": error.message}
            self._report.audit = self._audit.add("failed", told)
        except RecordUnavailable as unavailable:
            error.evidence["audit_failed"] = unavailable.message
        error.evidence["audit"] = self._report.audit

    def _facts(self) -> dict[str, Any]:
        return audit_facts(
            self._domain.name,
            self._domain.uuid,
            self._report.way.value if self._report.way else "",
            self._wanted,
            [written.facts() for written in self._report.files],
            run=self._request.run,
            owner=self._request.owner,
        )


def _blocked(info: AgentInfo | _Closed, rpcs: Sequence[str]) -> _Closed | None:
    if isinstance(info, _Closed):
        return info
    missing = [rpc for rpc in rpcs if not info.commands.get(rpc, False)]
    return _Closed(f"the agent does not allow {', '.join(missing)}") if missing else None


def audit_facts(
    name: str,
    uuid: str,
    way: str,
    wanted: Wanted,
    files: Sequence[Mapping[str, Any]],
    *,
    run: str | None,
    owner: str | None,
) -> dict[str, Any]:
    """What the audit says of a change, by whichever way."""
    return {
        **who(owner),
        "guest": name,
        "uuid": uuid,
        "way": way,
        "state": "enabled" if wanted.allowed else "disabled",
        "rpcs": list(wanted.rpcs),
        "files": list(files),
        "run": run,
    }


def change_files(files: Files, kept: Sequence[Written], announce: Callable[[list[Written]], None]) -> None:
    """Write files whose old content is kept: all of them, or none. ``announce`` is told before the first, if any."""
    if not kept:
        return
    announce(list(kept))
    for number, one in enumerate(kept):
        try:
            files.write(one.path, one.change.after)
        except FleetError as error:
            error.evidence["put_back"] = _put_all_back(files, kept[:number])
            raise


def tell_of_copies(error: FleetError, written: Sequence[Written]) -> None:
    """Say with an error where the old content of what was written is, and that it is only there, if so it is."""
    backups = {one.path: one.backup for one in written}
    error.evidence["backups"] = backups
    if error.evidence.get("put_back") is not True:
        changed = ", ".join(
            f"{path} (its copy is {copy})" if copy else f"{path} (which was made)" for path, copy in backups.items()
        )
        error.remedy += f" The settings could not be put back: {shown(changed)}."


def _put_all_back(files: Files, written: Sequence[Written]) -> bool:
    """Give the files their old content; tells whether that is known to have been done."""
    try:
        for one in written:
            put_back(files, one.change)
    except FleetError:
        return False  # what went wrong first is what the user is told; this goes with it as evidence
    return True


def kept_in_guest(files: RootFiles, change: FileChange) -> Written:
    """A change, after what it replaces was kept beside it."""
    if change.before is None:
        return Written(change.path, change)
    return Written(change.path, change, backup=keep_beside(files, change.path, change.before), backup_on="guest")


def keep_beside(files: RootFiles, path: str, content: bytes) -> str:
    """Keep the content of a file in a copy beside it, for the same eyes, and return that one's path.

    A copy is never overwritten.
    """
    for number in range(1000):
        kept = f"{path}{BACKUP}.{number}" if number else f"{path}{BACKUP}"
        there = files.read(kept)
        if there is None:
            files.write(kept, content, like=path)
        if there in (None, content):
            return kept
    raise PolicyUnsupported(
        f"there are a thousand copies of {path} beside it",
        remedy="Remove those that nobody needs.",
        evidence={"file": path},
    )


def put_back(files: Files, change: FileChange) -> None:
    """Give a file its old content. One that was not there is removed; by the agent's own commands none is made."""
    if change.before is not None:
        files.write(change.path, change.before)
    elif not isinstance(files, AgentFiles):
        files.remove(change.path)
