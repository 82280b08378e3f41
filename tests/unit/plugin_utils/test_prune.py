# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is said of a guest whose snapshots were to be pruned."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.kvm.fleet.plugins.plugin_utils._prune import make_prune_result

GUEST = {"run": "r", "name": "web1", "hypervisor": "hv1", "uri": "qemu:///system", "domain": "web1"}
GONE = {"name": "a", "created": 1, "size": 5, "reason": "older than 7 days"}


def made(done: dict[str, Any], failure: dict[str, Any] | None = None) -> dict[str, Any]:
    return make_prune_result(GUEST, done, duration=2.04, check_mode=False, failure=failure)


@pytest.mark.parametrize(("gone", "outcome"), [([], "unchanged"), ([GONE], "changed")])
def test_a_guest_that_was_pruned(gone: list[dict[str, Any]], outcome: str) -> None:
    result = made({"pruned": gone, "kept": [], "freed": 5})
    assert (result["outcome"], result["pruned"], result["freed"], result["duration"]) == (outcome, gone, 5, 2.0)
    assert result["error"] is None


@pytest.mark.parametrize(
    ("evidence", "outcome", "names"),
    [({}, "refused", []), ({"pruned": []}, "failed", []), ({"pruned": ["a"]}, "failed", ["a"])],
)
def test_a_failure_is_a_refusal_until_something_was_deleted(
    evidence: dict[str, Any], outcome: str, names: list[str]
) -> None:
    told = {"msg": "it broke", "error_code": "libvirt_failed", "remedy": "Mend it.", "evidence": evidence}
    result = made({}, {"task": "Delete", "result": told})
    assert (result["outcome"], [one["name"] for one in result["pruned"]]) == (outcome, names)
    assert result["error"]["error_code"] == "libvirt_failed"
    assert (result["kept"], result["freed"]) == ([], None)
