# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How many guests make a batch, in Ansible's own terms."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SIZE = re.compile(r"([0-9]+)(%?)")


class BatchError(Exception):
    """The guests cannot be put into batches as was asked for; the message says why."""


def check_sizes(sizes: object) -> list[str]:
    """The sizes as ``serial`` takes them: numbers and percentages, one or a growing list of them.

    Raises BatchError for what cannot be one. Ansible itself takes a size of 0 for all guests at once.
    """
    listed = sizes if isinstance(sizes, Sequence) and not isinstance(sizes, str) else str(sizes).split(",")
    return [_check_size(str(size).strip()) for size in listed] or [_check_size("")]


def _check_size(size: str) -> str:
    match = _SIZE.fullmatch(size)
    number = int(match.group(1)) if match else 0
    if not match or number == 0 or (match.group(2) and number > 100):
        raise BatchError(f"fleet_batch: {size!r} is no batch size; it can be 1 or more guests, or 1% to 100% of them")
    return size


def count_of(size: str, total: int) -> int:
    """How many of so many guests a size means, by Ansible's own arithmetic: it takes 28 of 100 for 29%."""
    number = int(size.rstrip("%"))
    return int((number / 100.0) * total) or 1 if size.endswith("%") else number


def check_number(variable: str, value: object, least: int) -> int:
    """The whole number that a variable has, however it was given. Raises BatchError for anything else."""
    match = _SIZE.fullmatch(str(value))
    if not match or match.group(2) or int(match.group(1)) < least:
        raise BatchError(f"{variable}: {str(value)!r} is no number of guests; it can be {least} or more")
    return int(match.group(1))
