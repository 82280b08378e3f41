# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """The options of the callbacks, which are the same wherever Ansible has loaded them from."""

    LIVE = r"""
options:
  mode:
    description:
      - V(auto) redraws the lines in place at the foot of a terminal, and prints plain lines elsewhere and in AWX.
      - V(plain) prints plain lines everywhere, V(off) nothing.
    type: str
    choices: [auto, plain, "off"]
    default: auto
    ini:
      - section: kvm_fleet
        key: live
    env:
      - name: KVM_FLEET_LIVE
    version_added: 0.1.0
"""

    EVENTS = r"""
options:
  path:
    description:
      - The file on the controller that the events are appended to, one a line. Directories that it lacks are made.
      - The extra variable C(fleet_events) goes before it, as for a job template of AWX.
      - Without either, nothing is written.
    type: path
    ini:
      - section: kvm_fleet
        key: events
    env:
      - name: KVM_FLEET_EVENTS
    version_added: 0.1.0
"""
