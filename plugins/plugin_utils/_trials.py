# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which hypervisors' QEMU is tried for which guests, and what a trial that fails means for the run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._result import bounded
from ansible_collections.kvm.fleet.plugins.plugin_utils._selection import HostVars, Inventory, Place, place_of

FAILED = "qemu_trial_failed"


def plan_trials(hosts: Iterable[HostVars], inventory: Inventory) -> dict[str, dict[str, Any]]:
    """The ``uri`` and the ``names`` of the domains there, by the first guest of each place."""
    places: dict[Place, list[HostVars]] = {}
    for host in hosts:
        places.setdefault(place_of(host, inventory), []).append(host)
    return {
        str(guests[0]["inventory_hostname"]): {
            "uri": place.uri,
            "names": [str(guest.get("kvm_domain") or guest["inventory_hostname"]) for guest in guests],
        }
        for place, guests in places.items()
    }


def untouched(hosts: Iterable[HostVars]) -> dict[str, dict[str, Any]]:
    """A record for the summary of each guest, none of which is attempted; empty where no trial has failed.

    A host's 'fleet_trial' is what qemu_trial returned through it. That it could not be done at all is for the guests'
    own modules to meet: they tell more of it, and of the guests that it concerns.
    """
    guests = list(hosts)
    failed = [host for host in guests if (host.get("fleet_trial") or {}).get("error_code") == FAILED]
    if not failed:
        return {}
    trial = failed[0]["fleet_trial"]
    error = {
        "error_code": FAILED,
        "msg": bounded(f"on {failed[0]['kvm_hypervisor']}, {trial['msg']}"),
        "remedy": bounded(trial["remedy"]),
        "transient": False,
        "evidence": bounded(trial["evidence"]),
    }
    return {
        str(host["inventory_hostname"]): {
            "guest": host["inventory_hostname"],
            "hypervisor": host.get("kvm_hypervisor"),
            "domain": host.get("kvm_domain"),
            "outcome": "not_attempted",
            "error": error,
        }
        for host in guests
    }
