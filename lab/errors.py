# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What can go wrong in the lab, each with the one thing to do about it."""

from __future__ import annotations


class LabError(Exception):
    """A failure that a person can act on; `remedy` says how."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}\n  remedy: {remedy}")
        self.problem = problem
        self.remedy = remedy


class CommandFailed(LabError):
    """A command ended with an exit status that its caller does not accept, or not in time."""


class Unsupported(LabError):
    """This machine or this user cannot host the lab."""


class ForeignGuests(LabError):
    """The machine has guests that the lab did not make."""


class GuestNotReady(LabError):
    """A guest did not come up, or stopped answering, within its deadline."""


class AgentFailed(LabError):
    """A guest's agent did not answer, or refused what it was asked."""


class LeftOver(LabError):
    """Something of the lab outlived what it was made for."""
