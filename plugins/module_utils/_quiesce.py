# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sees to it that a guest whose file systems were frozen is thawed, whoever dies meanwhile.

libvirt freezes them for a snapshot, and thaws them after it. It does so too where the module that asked for it is dead.
Where libvirt itself dies in between, nobody would: a frozen guest can neither write nor be asked to do anything but to
thaw. So a process of its own waits on the hypervisor, out of the controller's reach, and thaws the guest where the
module is gone or the snapshot takes too long. And what a run has begun is on record, so that the next one looks.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent, frozen
from ansible_collections.kvm.fleet.plugins.module_utils._clock import Clock, Deadline, ticks
from ansible_collections.kvm.fleet.plugins.module_utils._domain import ACTIVE_STATES, Domain, Hypervisor
from ansible_collections.kvm.fleet.plugins.module_utils._errors import FleetError, GuestFrozen
from ansible_collections.kvm.fleet.plugins.module_utils._lease import Recorder
from ansible_collections.kvm.fleet.plugins.module_utils._record import FREEZES, StepName

COMMANDS = ("guest-fsfreeze-freeze", "guest-fsfreeze-thaw", "guest-fsfreeze-status")

PATIENCE = 60.0
"""Seconds for which a guest may be frozen, or on its way there, before it is thawed all the same."""

THAW_PATIENCE = 120.0
"""Seconds for which a thaw is tried again, as while libvirt is restarted."""

LIBVIRT_PATIENCE = 900.0
"""Seconds for which a libvirt that is away is waited for, so that a guest whose module has died can be thawed."""

SETTLE = 3.0
"""Seconds for which nothing must happen before a dead module's guest counts as left alone: its last request may still
be on its way to libvirt."""


def problem(agent: GuestAgent) -> str | None:
    """Why the guest's file systems cannot be frozen, None where they can. Raises GuestFrozen where they are."""
    try:
        allowed = agent.info().commands
        if all(allowed.get(command) for command in COMMANDS):
            return None
        require_thawed(agent)
    except GuestFrozen:
        raise
    except FleetError as error:
        return error.message
    return f"the guest agent does not allow {', '.join(one for one in COMMANDS if not allowed.get(one))}"


def require_thawed(agent: GuestAgent) -> None:
    """Raise GuestFrozen for a guest that is frozen. One whose agent does not tell counts as thawed."""
    try:
        is_frozen = agent.is_frozen()
    except FleetError:
        return
    if is_frozen:
        raise frozen()


def thaw(agent: GuestAgent, clock: Clock) -> bool:
    """Thaw a guest that is frozen, trying for as long as its agent may be away. Returns whether it was frozen."""
    failure: FleetError = frozen()
    tried = False
    for _tick in ticks(Deadline(clock, THAW_PATIENCE), clock):
        try:
            if not agent.is_frozen():
                return tried  # of a thaw, only the answer may have got lost
            tried = True
            agent.thaw()
        except FleetError as error:
            failure = error
            if not error.transient:
                break
        else:
            return True
    raise GuestFrozen(
        f"the guest's file systems may still be frozen, and could not be thawed: {failure.message}",
        remedy="Thaw it with 'virsh domfsthaw'. If that fails, 'virsh reset' restarts it as a power failure would.",
        evidence={"error_code": failure.error_code},
    ) from failure


def thaw_if_answering(domain: Domain, clock: Clock) -> bool:
    """Thaw a guest that an earlier run may have left frozen. Returns whether it is known to be thawed by then.

    One that does not answer is left to what comes next. So is one of which libvirt makes a snapshot: it thaws it then.
    Raises GuestFrozen.
    """
    if domain.state() not in ACTIVE_STATES:
        return True
    if domain.is_making_snapshot():
        return False
    agent = GuestAgent(domain, clock)
    try:
        if not agent.is_frozen():
            return True
    except FleetError:
        return False
    thaw(agent, clock)
    return True


def thaw_left(domain: Domain, clock: Clock, recorder: Recorder) -> None:
    """Likewise where it is on record that the guest may be frozen. Raises GuestFrozen."""
    if recorder.record and recorder.record.may_be_frozen and thaw_if_answering(domain, clock):
        recorder.note(StepName.SNAPSHOT, {FREEZES: False})


# --- the watch -----------------------------------------------------------------------------------

_THAWED = 3
"""The exit status of a watch that has thawed the guest while the module was alive."""


class Watch:
    """A process that thaws a guest, see ``watching``."""

    def __init__(self) -> None:
        self.lost_patience = False


@contextmanager
def watching(
    connect: Callable[[], AbstractContextManager[Hypervisor]], name: str, patience: float = PATIENCE
) -> Iterator[Watch]:
    """As long as this lasts, have another process thaw the guest where this one dies or takes longer than ``patience``.

    It makes a connection of its own, and only when it has to. It keeps what locks this process holds until it ends.
    """
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(writes)
            status = _watch(reads, connect, name, patience)
        finally:
            os._exit(status)
    os.close(reads)
    watch = Watch()
    try:
        yield watch
    finally:
        with suppress(BrokenPipeError):  # it has ended
            os.write(writes, b".")
        os.close(writes)
        _pid, status = os.waitpid(pid, 0)
        watch.lost_patience = os.WIFEXITED(status) and os.WEXITSTATUS(status) == _THAWED


def _watch(pipe: int, connect: Callable[[], AbstractContextManager[Hypervisor]], name: str, patience: float) -> int:
    """What the process does: wait for a word that all is well, or for the end of whoever would say it."""
    os.setsid()
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # whoever reads our module's output waits for the last process that may write there
        os.dup2(nowhere, stream)
    readable, _writable, _failed = select.select([pipe], [], [], patience)
    if readable and os.read(pipe, 1):
        return 0
    module_lives = not readable
    deadline = time.monotonic() + LIBVIRT_PATIENCE
    while time.monotonic() < deadline:
        try:
            with connect() as hypervisor:
                domain = hypervisor.domain(name)
                clock = hypervisor.clock
                if not module_lives:
                    _thaw_what_is_left(domain, clock)
                elif thaw(GuestAgent(domain, clock), clock):
                    return _THAWED
                return 0
        except FleetError:
            time.sleep(1)  # libvirt may be on its way up
    return 1


def _thaw_what_is_left(domain: Domain, clock: Clock) -> None:
    """Thaw a guest whose module has died, once libvirt has ended what it was asked to do."""
    quiet = Deadline(clock, SETTLE)
    for _tick in ticks(Deadline(clock, PATIENCE), clock, longest=0.5):
        if domain.state() not in ACTIVE_STATES:
            return
        if domain.is_making_snapshot():
            quiet = Deadline(clock, SETTLE)
        elif GuestAgent(domain, clock).is_frozen():
            if not domain.is_making_snapshot():  # it may have begun in between
                break
        elif quiet.passed:
            return
    thaw(GuestAgent(domain, clock), clock)
