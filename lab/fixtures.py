# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab as pytest fixtures: `pytest_plugins = ["lab.fixtures"]`.

`lab`            the session's test bed; `lab.guest(…)` is the context manager behind all of these
`fleet`          two hypervisors, each reached by SSH; `lab.guest(…, on=hypervisor)` makes guests on one
`make_guest`     makes guests that are gone at the end of the test
`kept_guest`     one running guest for the whole session, for fixtures that outlive a test
`shared_guest`   the same guest as it first came up, for tests that change neither it nor its QEMU
`pristine_guest` likewise, for tests that change it: whoever comes next has it put back

A test that fails leaves what may explain it in build/lab-failures/.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import pytest

from lab import host

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from typing_extensions import Unpack

    from lab.fleets import Fleet
    from lab.guests import Guest
    from lab.session import GuestOptions, Session


class MakeGuest(Protocol):
    """What the fixture `make_guest` gives: see Session.guest."""

    def __call__(
        self, name: str | None = None, *, start: bool = True, wait: bool = True, **options: Unpack[GuestOptions]
    ) -> Guest: ...


FAILURES = "build/lab-failures"
SESSION = pytest.StashKey["Session"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what a person has to allow."""
    parser.addoption(
        "--allow-foreign-guests",
        action="store_true",
        help="let the lab work beside guests that it did not make; they are left alone",
    )


@pytest.fixture(scope="session")
def lab(pytestconfig: pytest.Config) -> Iterator[Session]:
    """The test bed, without guests. Fails at its end if something of this session is left over."""
    host.prepare()
    # These import libvirt-python, which works only once libvirt is installed.
    from lab.session import session

    allowed = pytestconfig.getoption("--allow-foreign-guests")
    with ExitStack() as stack:
        opened = stack.enter_context(session(allow_foreign_guests=allowed, failures=pytestconfig.rootpath / FAILURES))
        pytestconfig.stash[SESSION] = opened
        yield opened


@pytest.fixture(scope="session")
def fleet(lab: Session) -> Iterator[Fleet]:
    """Two hypervisors, both on and on the network: who takes one away brings it back."""
    with lab.fleet(2) as made:
        yield made


@pytest.fixture
def make_guest(lab: Session) -> Iterator[MakeGuest]:
    """Make a guest as `lab.guest` does; it is destroyed at the end of the test."""
    with ExitStack() as stack:

        def make(
            name: str | None = None, *, start: bool = True, wait: bool = True, **options: Unpack[GuestOptions]
        ) -> Guest:
            return stack.enter_context(lab.guest(name, start=start, wait=wait, **options))

        yield make


@dataclass
class Kept:
    """A guest that is put back to how it first came up only when somebody needs that, since it takes seconds."""

    guest: Guest
    changed: bool = False

    def as_new(self) -> Guest:
        """As it first came up, for somebody who does not change it."""
        if self.changed:
            self.guest.reset()
            self.changed = False
        return self.guest

    def to_change(self) -> Guest:
        """As it first came up, for somebody who changes it."""
        guest = self.as_new()
        self.changed = True
        return guest


@pytest.fixture(scope="session")
def kept_guest(lab: Session) -> Iterator[Kept]:
    """A running guest for the whole session, which is offered no newer agent."""
    with lab.guest() as guest:
        guest.offer_newer_agent(offered=False)
        guest.take_pristine()
        yield Kept(guest)


@pytest.fixture
def shared_guest(kept_guest: Kept) -> Guest:
    """The kept guest as it first came up, for a test that changes neither it nor its QEMU."""
    return kept_guest.as_new()


@pytest.fixture
def pristine_guest(kept_guest: Kept) -> Guest:
    """The kept guest as it first came up, for a test that changes it."""
    return kept_guest.to_change()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep evidence of a failed test while its guests are still there."""
    report = yield
    session = item.config.stash.get(SESSION, None)
    if report.failed and session is not None:
        session.keep_evidence(item.nodeid)
    return report
