# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command: python -m lab up | drift | status | down | packages."""

from __future__ import annotations

import argparse
import sys

from lab import host
from lab.errors import LabError

DEFAULT_GUESTS = 3


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(prog="python -m lab", description="A test bed of real guests on this machine.")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    up = verbs.add_parser("up", help="have guests lab1 … labN running and answering")
    up.add_argument("--guests", type=int, default=DEFAULT_GUESTS, metavar="N", help="how many (default: %(default)s)")
    up.add_argument(
        "--hypervisors",
        type=int,
        metavar="N",
        help="have so many hypervisors of the lab's own, each with so many guests, rather than use this machine itself",
    )
    up.add_argument(
        "--allow-foreign-guests",
        action="store_true",
        help="work beside guests that the lab did not make; they are left alone",
    )
    verbs.add_parser("drift", help="replace the QEMU that the guests run, as an upgrade does")
    verbs.add_parser("status", help="show each guest: state, QEMU, drift, agent")
    down = verbs.add_parser("down", help="remove all that the lab made, except for the cached image")
    down.add_argument("--purge", action="store_true", help="remove the cached image too")
    verbs.add_parser("packages", help="print the Debian packages that the lab needs")
    return top


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line asks; returns the exit status."""
    asked = parser().parse_args(arguments)
    if asked.verb == "packages":
        # Runs under a bare Python, before anything is installed.
        print(*host.packages())
        return 0
    try:
        host.prepare(install=asked.verb == "up")
        _do(asked)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _do(asked: argparse.Namespace) -> None:
    # These import libvirt-python, which works only once libvirt is installed.
    import libvirt

    from lab import bed, status
    from lab.progress import say

    try:
        if asked.verb == "up":
            if asked.hypervisors is None:
                bed.up(asked.guests, allow_foreign_guests=asked.allow_foreign_guests)
            else:
                say(f"inventory: {bed.up_fleet(asked.hypervisors, asked.guests)}")
        elif asked.verb == "drift":
            bed.drift()
        elif asked.verb == "down":
            bed.down(purge=asked.purge)
            return
        print(status.report())
    except libvirt.libvirtError as error:
        raise LabError(f"libvirt: {error}", "if it stays so: python -m lab down, then up again") from error
