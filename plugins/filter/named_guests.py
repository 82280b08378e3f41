# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: named_guests
short_description: Refuse a choice of guests in which none is named
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Passes the wanted guests on to P(kvm.fleet.select_guests#filter), which chooses some by itself where none is named.
    For work that nobody should do to guests by accident, that is an error.
options:
  _input:
    description: Names of guests, domains or groups, as a list or separated by commas.
    type: raw
    required: true
  required:
    description: Whether at least one has to be named.
    type: bool
    default: true
"""

EXAMPLES = r"""
- name: Choose those that are named
  ansible.builtin.set_fact:
    chosen: "{{ known | kvm.fleet.select_guests(hostvars, wanted | kvm.fleet.named_guests) }}"
"""

RETURN = r"""
_value:
  description: The names, as they were given.
  type: raw
"""

from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.kvm.fleet.plugins.plugin_utils._selection import SelectionError, check_named


def named(wanted: object, required: bool = True) -> object:
    try:
        if required:
            check_named(wanted)
    except SelectionError as error:
        raise AnsibleFilterError(str(error)) from error
    return wanted


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"named_guests": named}
