# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Looks at guests through their agents: what they are, whether they can be managed, and if not, why.

One guest after the other. A healthy one answers in a fraction of a second, and one whose channel nobody has opened is
not asked at all; only one that hangs costs a few seconds. Threads would save those, and would need a connection to
libvirt that several of them may reopen, and a clock that several may wait on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from ansible_collections.kvm.fleet.plugins.module_utils import _guest_facts, _managers
from ansible_collections.kvm.fleet.plugins.module_utils._agent import (
    READ_COMMANDS,
    FileSystem,
    GuestAgent,
    command_blocked,
)
from ansible_collections.kvm.fleet.plugins.module_utils._agent_config import Setting, parse_version, read_config
from ansible_collections.kvm.fleet.plugins.module_utils._agent_files import AgentFiles
from ansible_collections.kvm.fleet.plugins.module_utils._clock import Deadline
from ansible_collections.kvm.fleet.plugins.module_utils._domain import (
    ACTIVE_STATES,
    AgentChannel,
    Domain,
    DomainState,
    Hypervisor,
    require_running,
)
from ansible_collections.kvm.fleet.plugins.module_utils._domain_xml import ChannelState, parse_definition
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    AgentCommandFailed,
    AgentProtocolError,
    AgentSilent,
    DomainBusy,
    DomainNotFound,
    DomainNotRunning,
    FleetError,
    GuestUnsupported,
    HypervisorUnavailable,
    InvalidRequest,
    NoAgentChannel,
    PolicyUnsupported,
    SelinuxDenied,
)
from ansible_collections.kvm.fleet.plugins.module_utils._exec import RUNNER
from ansible_collections.kvm.fleet.plugins.module_utils._guest_facts import CommandFacts, Files, plain
from ansible_collections.kvm.fleet.plugins.module_utils._job import flock_missing
from ansible_collections.kvm.fleet.plugins.module_utils._rpcs import RPCS


class AgentState(str, Enum):
    """What is to be had of a guest's agent."""

    ANSWERING = "answering"
    SILENT = "silent"
    """Something in the guest holds the channel open, and does not answer."""
    GARBLED = "garbled"
    """What answers is not of the agent's protocol."""
    DISCONNECTED = "disconnected"
    """Nobody in the guest has opened the channel."""
    ABSENT = "absent"
    """The domain has no channel."""
    NOT_RUNNING = "not_running"
    """The guest does not run."""
    UNKNOWN = "unknown"
    """libvirt could not say how the domain is."""


@dataclass(frozen=True)
class InfoOptions:
    """How to look. ``timeout`` is the seconds that each guest has."""

    run_commands: bool = False
    timeout: float = 15

    def check(self) -> None:
        """Raise InvalidRequest for what cannot be meant."""
        if self.timeout <= 0:
            raise InvalidRequest(
                f"a timeout of {self.timeout:g} s cannot be meant", remedy="Give a timeout above zero."
            )


@dataclass
class GuestInfo:
    """One guest, as far as it could be looked at: what is not known is None.

    ``rpcs`` tells which of the agent's commands are allowed, ``settings`` what blocks the others, as far as that was
    found. ``problems`` say why the guest cannot be upgraded.
    """

    name: str
    uuid: str
    state: str | None = None
    agent: AgentState = AgentState.UNKNOWN
    agent_version: str | None = None
    agent_since: datetime | None = None
    rpcs: dict[str, bool] = field(default_factory=dict)
    settings: dict[str, Setting] = field(default_factory=dict)
    os_id: str | None = None
    os_like: tuple[str, ...] = ()
    os_name: str | None = None
    os_version: str | None = None
    kernel_running: str | None = None
    kernel_installed: str | None = None
    init: str | None = None
    package_manager: str | None = None
    selinux_mode: str | None = None
    selinux_denies: bool | None = None
    reboot_required: bool | None = None
    reboot_reasons: tuple[str, ...] = ()
    failed_units: tuple[str, ...] | None = None
    file_systems: tuple[FileSystem, ...] | None = None
    problems: list[FleetError] = field(default_factory=list)

    @property
    def manageable(self) -> bool:
        return not self.problems


def look_at_guests(hypervisor: Hypervisor, names: list[str] | None, options: InfoOptions) -> list[GuestInfo]:
    """Look at the named guests in that order, or at all of them, by name. Raises DomainNotFound for the first missing.

    A guest that is undefined between being listed and being looked at is left out, unless it was asked for by name.
    """
    options.check()
    if names is not None:
        domains = [hypervisor.domain(name) for name in names]
        return [look(hypervisor, domain, options) for domain in domains]
    found = []
    for domain in sorted(hypervisor.domains(), key=lambda domain: domain.name):
        try:
            found.append(look(hypervisor, domain, options))
        except DomainNotFound:
            continue
    return found


def look(hypervisor: Hypervisor, domain: Domain, options: InfoOptions) -> GuestInfo:
    """Look at one guest. What goes wrong with it is among its problems. Raises DomainNotFound, and
    HypervisorUnavailable when libvirt stays away.
    """
    found = GuestInfo(domain.name, domain.uuid)
    try:
        reachable = _look_from_outside(domain, found)
    except (DomainNotFound, HypervisorUnavailable):
        raise
    except FleetError as error:
        found.problems.append(error)
        return found
    if reachable:
        try:
            _Interview(hypervisor, domain, options, found).ask()
        except DomainNotFound:
            raise
        except FleetError as error:
            found.problems.append(error)
    return found


# --- from outside --------------------------------------------------------------------------------


def _look_from_outside(domain: Domain, found: GuestInfo) -> bool:
    """What libvirt knows of the guest. Returns whether its agent can be asked."""
    state = domain.state()
    found.state = state.value
    if state in ACTIVE_STATES and domain.is_migrating():
        found.state = "migrating"
        found.problems.append(
            DomainBusy(
                f"domain {domain.name!r} is being migrated",
                remedy="Wait until it has arrived ('virsh domjobinfo'), then look at it on the hypervisor it is on.",
            )
        )
    else:
        try:
            require_running(domain.name, state)
        except DomainNotRunning as error:
            found.problems.append(error)
    channel = parse_definition(domain.xml()).channel
    running = state in (DomainState.RUNNING, DomainState.BLOCKED)
    if channel is ChannelState.ABSENT:
        found.agent = AgentState.ABSENT
        found.problems.append(_no_channel(domain.name))
    elif not running:
        found.agent = AgentState.NOT_RUNNING
    elif channel is ChannelState.DISCONNECTED:
        found.agent = AgentState.DISCONNECTED
        found.problems.append(_disconnected(domain.name))
    return running and found.agent is AgentState.UNKNOWN


def _no_channel(name: str) -> NoAgentChannel:
    return NoAgentChannel(
        f"domain {name!r} has no channel for the guest agent",
        remedy="Give it one with kvm.fleet.domain_channel, and see that the guest has qemu-guest-agent.",
    )


def _disconnected(name: str) -> AgentSilent:
    return AgentSilent(
        f"no agent in the guest has opened the channel of domain {name!r}",
        remedy="See that the guest has booted, and that qemu-guest-agent is installed there and runs ('systemctl "
        "status qemu-guest-agent').",
    )


# --- from inside ---------------------------------------------------------------------------------


class _Within:
    """A channel that nobody waits on past a deadline."""

    def __init__(self, channel: AgentChannel, deadline: Deadline) -> None:
        self._channel = channel
        self._deadline = deadline

    def exchange(self, request: str, timeout: int) -> str:
        if self._deadline.passed:
            raise AgentSilent(
                f"the guest agent has not told everything within {self._deadline.seconds:g} s",
                remedy="Give it more time (timeout), or find out in the guest why it is slow.",
            )
        return self._channel.exchange(request, min(timeout, max(1, math.ceil(self._deadline.remaining))))


class _Interview:
    """Asks one guest, and writes down at once what it tells: it may fall silent at any time."""

    def __init__(self, hypervisor: Hypervisor, domain: Domain, options: InfoOptions, found: GuestInfo) -> None:
        self._options = options
        self._deadline = Deadline(hypervisor.clock, options.timeout)
        self._agent = GuestAgent(_Within(domain, self._deadline), hypervisor.clock)
        # A command that has to be ended is ended after the deadline, too.
        self._shell = GuestAgent(domain, hypervisor.clock)
        self._found = found
        self._filtered: list[str] = []

    def ask(self) -> None:
        try:
            self._greet()
        except AgentSilent:
            self._found.agent = AgentState.SILENT
            raise
        except AgentProtocolError:
            self._found.agent = AgentState.GARBLED
            raise
        except NoAgentChannel:
            self._found.agent = AgentState.ABSENT
            raise
        except DomainNotRunning:
            self._found.agent = AgentState.NOT_RUNNING
            raise
        if self._allows("guest-get-osinfo"):
            self._ask_system()
        if self._allows("guest-get-fsinfo"):
            self._ask_file_systems()
        if self._options.run_commands and self._allows("guest-exec", "guest-exec-status"):
            self._judge_commands(_guest_facts.run_commands(self._shell, max(1, self._deadline.remaining)))
        elif self._allows(*READ_COMMANDS):
            files: dict[str, str | None] = {}
            try:
                _guest_facts.read_files(self._agent, files)
            finally:
                self._judge_files(files)
        if self._filtered and self._allows(*READ_COMMANDS):
            self._look_for_settings()

    def _look_for_settings(self) -> None:
        found = self._found
        try:
            config = read_config(AgentFiles(self._agent), parse_version(found.agent_version or ""))
        except (AgentCommandFailed, GuestUnsupported, PolicyUnsupported):
            return  # what cannot be read or understood blocks them, or another file does
        for rpc in self._filtered:
            settings = config.settings_against(rpc)
            if settings:
                found.settings[rpc] = settings[0]

    def _allows(self, *commands: str) -> bool:
        return all(self._found.rpcs.get(command, False) for command in commands)

    def _greet(self) -> None:
        found = self._found
        try:
            info = self._agent.info()
        except AgentCommandFailed:
            # An agent that is well can always tell this, unless it is forbidden to.
            self._agent.ping()
            found.agent = AgentState.ANSWERING
            raise command_blocked(["guest-info"]) from None
        found.agent = AgentState.ANSWERING
        found.agent_version = plain(info.version)
        found.rpcs = {rpc.name: info.commands.get(rpc.name, False) for rpc in RPCS}
        self._filtered = [rpc.name for rpc in RPCS if info.commands.get(rpc.name) is False]
        blocked = [rpc.name for rpc in RPCS if rpc.required and not found.rpcs[rpc.name]]
        if blocked:
            found.problems.append(self._agent.why_blocked(info.commands, blocked))

    def _ask_system(self) -> None:
        try:
            told = self._agent.os_info()
        except AgentCommandFailed:
            return  # it knows of no os-release; the files may
        found = self._found
        found.os_id, found.os_name = plain(told.id) or None, plain(told.name) or None
        found.os_version, found.kernel_running = plain(told.version) or None, plain(told.kernel) or None

    def _ask_file_systems(self) -> None:
        try:
            told = self._agent.file_systems()
        except AgentCommandFailed:
            return  # one that cannot be looked at hides all of them, as a network file system that hangs
        self._found.file_systems = tuple(
            FileSystem(plain(one.mountpoint), plain(one.type), one.total, one.used)
            for one in told[: _guest_facts.MOST_ENTRIES]
        )

    def _judge_files(self, files: Files) -> None:
        found = self._found
        release = _guest_facts.parse_os_release(
            files.get(_guest_facts.OS_RELEASE) or files.get(_guest_facts.VENDORS_OS_RELEASE) or ""
        )
        found.os_id = release.get("ID") or found.os_id
        found.os_like = tuple(release.get("ID_LIKE", "").split())
        found.os_name = release.get("PRETTY_NAME") or found.os_name
        found.os_version = release.get("VERSION_ID") or found.os_version
        found.kernel_running = _guest_facts.parse_word(files.get(_guest_facts.KERNEL)) or found.kernel_running
        found.init = _guest_facts.parse_word(files.get(_guest_facts.INIT))
        found.agent_since = _guest_facts.parse_since(files.get(_guest_facts.AGENT), files.get(_guest_facts.BOOT))
        self._judge_selinux(files)
        reboot = _guest_facts.parse_reboot_files(files)
        if reboot:
            found.reboot_required = reboot.required
            found.reboot_reasons = tuple(_guest_facts.reboot_reasons(reboot))

    def _judge_selinux(self, files: Files) -> None:
        found = self._found
        enforce = files.get(_guest_facts.ENFORCE)
        enforces = _guest_facts.parse_enforce(enforce)
        if enforces is not None:
            found.selinux_mode = "enforcing" if enforces else "permissive"
        elif _guest_facts.ENFORCE in files and enforce is None:
            found.selinux_mode = "disabled"
        if found.selinux_mode in ("permissive", "disabled"):
            found.selinux_denies = False
        elif enforces and files.get(_guest_facts.CONTEXT) is not None:
            found.selinux_denies = _managers.is_confined(files[_guest_facts.CONTEXT] or "")
            if not found.selinux_denies or self._options.run_commands:
                return
            if files.get(RUNNER, "") is None:
                found.problems.append(_managers.selinux_denied({}))
            else:
                found.selinux_denies = None  # whether SELinux starts the runner as it should, only a command tells

    def _judge_commands(self, facts: CommandFacts) -> None:
        found = self._found
        self._judge_files(facts.files)
        found.kernel_installed = facts.kernel_installed
        found.failed_units = facts.failed_units
        found.reboot_required = facts.reboot.required
        found.reboot_reasons = tuple(_guest_facts.reboot_reasons(facts.reboot))
        if not facts.has_flock:
            found.problems.append(flock_missing())
        try:
            found.package_manager = _managers.choose(facts.system, "auto").name
            found.selinux_denies = False
        except SelinuxDenied as error:
            found.selinux_denies = True
            found.problems.append(error)
