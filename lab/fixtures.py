# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab as pytest fixtures: `pytest_plugins = ["lab.fixtures"]`.

`lab`            the session's test bed; `lab.guest(…)` is the context manager behind all of these
`make_guest`     makes guests that are gone at the end of the test
`shared_guest`   one running guest for all tests that only look at it
`pristine_guest` the same guest, put back to how it first came up, for tests that change its inside

A test that fails leaves what may explain it in build/lab-failures/.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol

import pytest

from lab import host

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from typing_extensions import Unpack

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


@pytest.fixture
def make_guest(lab: Session) -> Iterator[MakeGuest]:
    """Make a guest as `lab.guest` does; it is destroyed at the end of the test."""
    with ExitStack() as stack:

        def make(
            name: str | None = None, *, start: bool = True, wait: bool = True, **options: Unpack[GuestOptions]
        ) -> Guest:
            return stack.enter_context(lab.guest(name, start=start, wait=wait, **options))

        yield make


@pytest.fixture(scope="session")
def shared_guest(lab: Session) -> Iterator[Guest]:
    """A running guest for tests that change neither it nor its QEMU."""
    with lab.guest() as guest:
        guest.take_pristine()
        yield guest


@pytest.fixture
def pristine_guest(shared_guest: Guest) -> Iterator[Guest]:
    """The shared guest, for a test that changes it: as it first came up, before and after."""
    shared_guest.reset()
    yield shared_guest
    shared_guest.reset()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep evidence of a failed test while its guests are still there."""
    report = yield
    session = item.config.stash.get(SESSION, None)
    if report.failed and session is not None:
        session.keep_evidence(item.nodeid)
    return report
