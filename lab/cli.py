# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command: python -m lab up | drift | status | down | packages."""

from __future__ import annotations

import argparse
import sys

from lab.errors import LabError
from lab.host import BINDING_PACKAGES, LAB_PACKAGES

DEFAULT_GUESTS = 3


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(prog="python -m lab", description=__doc__)
    verbs = top.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="have guests lab1 … labN running and answering")
    up.add_argument("--guests", type=int, default=DEFAULT_GUESTS, metavar="N")
    up.add_argument(
        "--allow-foreign-guests",
        action="store_true",
        help="work beside guests that the lab did not make, and leave them alone",
    )
    verbs.add_parser("drift", help="replace the QEMU that the guests run, as an upgrade does")
    verbs.add_parser("status", help="show each guest: state, QEMU, drift, agent")
    down = verbs.add_parser("down", help="remove all that the lab made, except the image cache")
    down.add_argument("--purge", action="store_true", help="remove the image cache too")
    verbs.add_parser("packages", help="print the Debian packages that the lab needs")
    return top


def main(arguments: list[str] | None = None) -> int:
    """Do one verb; returns the exit status."""
    asked = parser().parse_args(arguments)
    if asked.verb == "packages":
        print(*LAB_PACKAGES, *BINDING_PACKAGES)
        return 0
    from lab import bed

    try:
        if asked.verb == "up":
            bed.up(asked.guests, allow_foreign_guests=asked.allow_foreign_guests)
        elif asked.verb == "drift":
            bed.drift()
        elif asked.verb == "down":
            bed.down(purge=asked.purge)
        print(bed.table(bed.status()) if asked.verb != "down" else "the lab is down")
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0
