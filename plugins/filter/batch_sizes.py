# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: batch_sizes
short_description: Check the sizes of batches before a play uses them
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Passes batch sizes on to C(serial), and refuses those that would mean something else there. Ansible takes a size of
    0 for all hosts at once.
options:
  _input:
    description: A number of hosts, a percentage of them, or several of these, as a list or separated by commas.
    type: raw
    required: true
"""

EXAMPLES = r"""
- name: Work in batches
  hosts: fleet_selected
  serial: "{{ fleet_batch | default(1) | kvm.fleet.batch_sizes }}"
  gather_facts: false
  tasks: []
"""

RETURN = r"""
_value:
  description: The sizes, as C(serial) takes them.
  type: list
  elements: str
"""

from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.kvm.fleet.plugins.plugin_utils._batches import BatchError, check_sizes


def batch_sizes(sizes: object) -> list[str]:
    try:
        return check_sizes(sizes)
    except BatchError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"batch_sizes": batch_sizes}
