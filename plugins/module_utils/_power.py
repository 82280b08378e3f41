# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Decides the steps by which a domain is shut down, started, or put on a new QEMU process."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from enum import Enum

from ansible_collections.kvm.fleet.plugins.module_utils._clock import Clock, timestamp
from ansible_collections.kvm.fleet.plugins.module_utils._domain import (
    ACTIVE_STATES,
    DomainState,
    ShutdownMethod,
    Storage,
    require_running,
)
from ansible_collections.kvm.fleet.plugins.module_utils._drift import DriftState
from ansible_collections.kvm.fleet.plugins.module_utils._errors import (
    DomainUnsafe,
    InvalidRequest,
)
from ansible_collections.kvm.fleet.plugins.module_utils._observe import Observation
from ansible_collections.kvm.fleet.plugins.module_utils._proc import QemuProcess
from ansible_collections.kvm.fleet.plugins.module_utils._save import ClockReport


class PowerState(str, Enum):
    """What a domain is wanted to be."""

    STARTED = "started"
    STOPPED = "stopped"
    RESTARTED = "restarted"


class Strategy(str, Enum):
    """How a running domain comes to a new QEMU process."""

    POWER_CYCLE = "power_cycle"
    SAVE_RESTORE = "save_restore"
    MIGRATE = "migrate"
    AUTO = "auto"
    """The gentlest of these that the domain allows."""


class Step(str, Enum):
    SHUT_DOWN = "shut_down"
    SAVE = "save"
    MIGRATE = "migrate"
    MIGRATE_BACK = "migrate_back"
    START = "start"
    RESTORE = "restore"
    WAIT_FOR_AGENT = "wait_for_agent"
    SET_CLOCK = "set_clock"


DOWN = frozenset({Step.SHUT_DOWN, Step.SAVE, Step.MIGRATE})
"""The steps that end a QEMU process."""

UP = frozenset({Step.START, Step.RESTORE})
"""The steps that begin one."""


@dataclass(frozen=True)
class PowerOptions:
    """How to get there. Timeouts are in seconds; an ``agent_timeout`` of zero means not to wait for the agent.

    With ``keep_image``, a guest whose saved RAM is refused by the installed QEMU stays off, and its RAM is kept.
    ``destinations`` are the URIs of hypervisors that it may be migrated to. With ``come_back``, it does not stay there.
    """

    method: ShutdownMethod = ShutdownMethod.ACPI
    shutdown_timeout: float = 300
    force: bool = False
    agent_timeout: float = 300
    strategy: Strategy = Strategy.POWER_CYCLE
    save_timeout: float = 300
    keep_image: bool = False
    destinations: tuple[str, ...] = ()
    come_back: bool = False
    storage: Storage = Storage.SHARED
    migrate_timeout: float = 600

    def check(self) -> None:
        """Raise InvalidRequest for numbers that cannot be meant."""
        above_zero = (self.shutdown_timeout, self.save_timeout, self.migrate_timeout)
        if min(above_zero) <= 0 or self.agent_timeout < 0:
            raise InvalidRequest(
                f"a shutdown_timeout of {self.shutdown_timeout:g} s, a save_timeout of {self.save_timeout:g} s, a "
                f"migrate_timeout of {self.migrate_timeout:g} s or an agent_timeout of {self.agent_timeout:g} s cannot "
                "be meant",
                remedy="Give a shutdown_timeout, a save_timeout and a migrate_timeout above zero, and an agent_timeout "
                "of zero or more.",
            )


@dataclass(frozen=True)
class Transition:
    """A state of the domain, and when it was first seen in it."""

    state: DomainState
    at: str

    def facts(self) -> dict[str, str]:
        """As results and evidence have it."""
        return {"state": self.state.value, "at": self.at}


@dataclass(frozen=True)
class Migration:
    """Where a guest was migrated to, by a URI, and whether it is there or came back.

    ``left_behind`` are the images that it no longer uses, since they were copied.
    """

    destination: str
    came_back: bool
    left_behind: tuple[str, ...] = ()

    def facts(self) -> dict[str, object]:
        """As results have it."""
        return {
            "destination": self.destination,
            "came_back": self.came_back,
            "left_behind": list(self.left_behind),
        }


@dataclass
class PowerReport:
    """What happened. Fields stay None where something was not looked at or could not be told."""

    transitions: list[Transition] = field(default_factory=list)
    forced: bool = False
    process_before: QemuProcess | None = None
    process_after: QemuProcess | None = None
    boot_id_before: str | None = None
    boot_id_after: str | None = None
    strategy: Strategy | None = None
    """By what it was restarted."""
    closed: dict[Strategy, str] = field(default_factory=dict)
    """The gentler strategies that were not open, where the gentlest was asked for, and why."""
    off_for: float | None = None
    """Seconds for which its processors stood still, as the hypervisor saw it."""
    longest_gap: float | None = None
    """Seconds for which it was away, as the guest saw it."""
    clock: ClockReport | None = None
    migration: Migration | None = None
    pending: tuple[str, ...] = ()
    """What was edited in the definition and waits for the next cold start."""
    warnings: list[str] = field(default_factory=list)
    """What somebody should know who wanted it done."""

    def saw(self, state: DomainState, clock: Clock) -> DomainState:
        """Note the domain's state when it is another than before, and return it."""
        if not self.transitions or self.transitions[-1].state is not state:
            self.transitions.append(Transition(state, timestamp(clock.now())))
        return state


@dataclass(frozen=True)
class Begun:
    """A restart that is on record: what ran before it, and what ran after it if it came to its end.

    A process of an earlier boot of the hypervisor is None, since it is gone; ``process_known`` tells that from one that
    nobody could look at. A guest that has ``moved`` runs on another hypervisor after it, on whatever process.
    """

    process: QemuProcess | None
    process_known: bool
    boot_id: str | None
    ended: bool
    process_after: QemuProcess | None
    forced: bool
    strategy: Strategy = Strategy.POWER_CYCLE
    moved: bool = False


def plan_again(observed: Observation, begun: Begun, options: PowerOptions) -> tuple[Step, ...]:
    """The steps that are left of a restart that is on record. Raises what ``plan`` raises.

    A domain that is off was shut down by that restart, unless it was to be migrated: that ends no guest. One that is on
    another process was started by it, or by somebody else since; either way there is only the proof left. What still
    runs on the old process, or is outdated again, is restarted: by a power cycle, if it was asked to shut down before,
    or it would be resumed to go off.
    """
    saved = begun.strategy is Strategy.SAVE_RESTORE
    if begun.ended:
        process, after = observed.process, begun.process_after
        still = begun.moved or (process is not None and after is not None and process.is_same(after))
        current = observed.drift.state is not DriftState.DRIFTED
        enough = begun.strategy is Strategy.POWER_CYCLE or options.strategy is not Strategy.POWER_CYCLE
        return () if still and current and enough else plan(observed, PowerState.RESTARTED, options)
    if observed.state not in ACTIVE_STATES and begun.strategy is not Strategy.MIGRATE:
        return (Step.RESTORE, *_afterwards(options)) if saved else plan(observed, PowerState.STARTED, options)
    if is_on_its_way_down(observed, begun):
        return plan(observed, PowerState.RESTARTED, replace(options, strategy=Strategy.POWER_CYCLE))
    unknown = observed.process is None or not begun.process_known
    outdated = observed.drift.state is DriftState.DRIFTED
    if unknown or outdated or _still_runs(observed, begun):
        return plan(observed, PowerState.RESTARTED, options)
    if saved:
        return _afterwards(options)
    return (Step.WAIT_FOR_AGENT,) if options.agent_timeout else ()


def _afterwards(options: PowerOptions) -> tuple[Step, ...]:
    """The steps that follow once a saved domain runs again. Its clock is set by its agent."""
    return (Step.WAIT_FOR_AGENT, Step.SET_CLOCK) if options.agent_timeout else ()


def _still_runs(observed: Observation, begun: Begun) -> bool:
    process = observed.process
    return not begun.ended and process is not None and begun.process is not None and process.is_same(begun.process)


def is_on_its_way_down(observed: Observation, begun: Begun) -> bool:
    """Whether the domain may have been asked to shut down by a restart that was cut off, and still runs."""
    return begun.strategy is Strategy.POWER_CYCLE and _still_runs(observed, begun)


def may_have_been_booted(observed: Observation, begun: Begun) -> bool:
    """Whether a domain that was saved runs on another process, and its image is gone: resumed from it, or without."""
    saved = begun.strategy is Strategy.SAVE_RESTORE and not begun.ended and not observed.managed_save
    return saved and observed.state in ACTIVE_STATES and not _still_runs(observed, begun)


def plan(observed: Observation, wanted: PowerState, options: PowerOptions) -> tuple[Step, ...]:
    """The steps from what was observed to what is wanted. Raises DomainNotRunning and DomainUnsafe.

    A domain that is off is not restarted: somebody wanted it off.
    """
    wait = (Step.WAIT_FOR_AGENT,) if options.agent_timeout else ()
    off = observed.state not in ACTIVE_STATES
    if wanted is PowerState.STARTED and off:
        return (Step.START, *wait)
    if wanted is PowerState.STOPPED and off:
        return ()
    require_running(observed.name, observed.state)
    if wanted is PowerState.STARTED:
        return ()
    _require_safe_leave(observed)
    if wanted is PowerState.RESTARTED and options.strategy is Strategy.SAVE_RESTORE:
        return (Step.SAVE, Step.RESTORE, *_afterwards(options))
    if wanted is PowerState.RESTARTED and options.strategy is Strategy.MIGRATE:
        return (Step.MIGRATE, *((Step.MIGRATE_BACK,) if options.come_back else ()), *wait)
    _require_safe_shutdown(observed)
    return (Step.SHUT_DOWN,) if wanted is PowerState.STOPPED else (Step.SHUT_DOWN, Step.START, *wait)


def _require_safe_leave(observed: Observation) -> None:
    if not observed.persistent:
        raise DomainUnsafe(
            f"domain {observed.name!r} is transient: without its QEMU process, it would be gone for good",
            remedy="Make it persistent first: 'virsh dumpxml' it to a file and 'virsh define' that file.",
        )
    if observed.managed_save:
        raise DomainUnsafe(
            f"domain {observed.name!r} runs and also has a managed save image: its next start would bring back old RAM",
            remedy="Remove the image with 'virsh managedsave-remove' if nobody needs it.",
        )


def _require_safe_shutdown(observed: Observation) -> None:
    if observed.definition.restarts_on_poweroff:
        raise DomainUnsafe(
            f"domain {observed.name!r} is defined to restart when its guest powers off: it would never be off, and "
            "keep its QEMU process",
            remedy="Have it go off: "
            f"virsh set-lifecycle-action {shlex.quote(observed.name)} poweroff destroy --live --config",
        )
