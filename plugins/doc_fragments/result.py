# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Documentation that the filters share by which roles put a guest's record together."""

from __future__ import annotations


class ModuleDocFragment:
    """What they are told besides what the role's tasks returned."""

    DOCUMENTATION = r"""
options:
  guest:
    description: The guest's C(name), C(hypervisor), C(uri) and C(domain), and the id of the C(run).
    type: dict
    required: true
  started:
    description: When work on the guest began, in seconds since the epoch.
    type: float
    required: true
  check_mode:
    description: Whether everything was only predicted.
    type: bool
    default: false
  failure:
    description:
      - The name of the task that failed, as C(task), its C(result), and whether that is C(hidden), as by C(no_log).
    type: dict
"""
