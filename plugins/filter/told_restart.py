# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: told_restart
short_description: Choose which of several restarts of a guest is to be told
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - A run that brings an earlier one's restart to its end asks for a restart once more later on, which then has nothing
    left to do.
options:
  _input:
    description: What M(kvm.fleet.domain_power) returned each time, or that it was skipped, in order.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Tell of the restart
  ansible.builtin.debug:
    var: "[restart_that_was_resumed, restart_of_this_run] | kvm.fleet.told_restart"
"""

RETURN = r"""
_value:
  description: The last that has failed or done something, or else the last.
  type: dict
"""

from typing import Any

from ansible_collections.kvm.fleet.plugins.plugin_utils._cycle import told_restart


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"told_restart": told_restart}
