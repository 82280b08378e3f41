# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: summary
type: aggregate
short_description: Summarize at its end what a run did to each guest
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Prints at the end one paragraph for each guest that a run of this collection was about, those that it never reached
    included, and the totals.
  - The collection's own playbooks bring it along. Enable it for playbooks of your own that use the role
    P(kvm.fleet.upgrade#role).
requirements:
  - enable in configuration (C(callbacks_enabled = kvm.fleet.summary)), unless one of the collection's playbooks is run
"""

from typing import Any

from ansible.plugins.callback import CallbackBase

from ansible_collections.kvm.fleet.plugins.plugin_utils._summary import (
    records_of,
    render_plan,
    render_status,
    render_summary,
)


class CallbackModule(CallbackBase):
    """Reads what the plays left in Ansible's custom statistics under 'kvm_fleet'.

    Statistics outlive a run that stopped in the middle of a batch, which the plays that would come next do not.
    """

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "kvm.fleet.summary"
    CALLBACK_NEEDS_ENABLED = True

    # Enabled in the configuration and brought along by a playbook, it is loaded twice; one summary is enough.
    _speaker: CallbackModule | None = None

    def _speaks(self) -> bool:
        CallbackModule._speaker = CallbackModule._speaker or self
        return CallbackModule._speaker is self

    def v2_playbook_on_stats(self, stats: Any) -> None:
        fleet = stats.custom.get("_run", {}).get("kvm_fleet")
        if not fleet or not self._speaks():
            return
        failed_looks = fleet.get("failed_looks", [])
        if "status" in fleet:
            self._print(render_status(fleet["status"], failed_looks))
        if "plan" in fleet:
            self._print(render_plan(fleet["plan"], list(fleet.get("guests", {}).values()), failed_looks))
        elif "targets" in fleet or "guests" in fleet:
            records = records_of(fleet, {*stats.dark, *stats.failures})
            self._print(render_summary(fleet.get("job", "upgrade"), records, failed_looks))

    def _print(self, lines: list[str]) -> None:
        self._display.display("\n".join(lines))
