# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Brings the summary along wherever one of the playbooks beside this directory is run.

Ansible loads callbacks from beside a playbook on its own, while those of a collection wait to be enabled in the user's
configuration.
"""

from __future__ import annotations

DOCUMENTATION = r"""
name: fleet_summary
type: aggregate
short_description: Summarize at its end what a run did to each guest
description:
  - See P(kvm.fleet.summary#callback).
"""

from ansible_collections.kvm.fleet.plugins.callback import summary


class CallbackModule(summary.CallbackModule):
    """The same callback, loaded without being asked for."""

    CALLBACK_NAME = "fleet_summary"
    CALLBACK_NEEDS_ENABLED = False
