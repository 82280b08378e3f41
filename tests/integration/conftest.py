# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guests of the integration tests, besides the lab's own fixtures."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.guests import Guest
    from lab.session import Session

pytest_plugins = ["lab.fixtures"]

# Sessions that run at once have one each.
NASTY_NAME = f"""-Zoë's <b>&amp; "\\db" {{{{ {os.getpid()} + 1 }}}}"""


class Pair(NamedTuple):
    """Two running guests, each of which drifts alone."""

    plain: Guest
    nasty: Guest
    """Its name is what shells, XML and command lines stumble over."""


@pytest.fixture(scope="session")
def pair(lab: Session) -> Iterator[Pair]:
    """Two guests for tests of playbooks, which are offered no newer agent.

    Whoever uses them makes them fresh first: see proof.make_fresh.
    """
    with (
        lab.guest(wait=False, private_emulator=True) as plain,
        lab.guest(NASTY_NAME, wait=False, private_emulator=True) as nasty,
    ):
        for guest in (plain, nasty):
            guest.wait_until_ready()
        for guest in (plain, nasty):
            guest.offer_newer_agent(offered=False)
            guest.take_pristine()
        yield Pair(plain, nasty)
