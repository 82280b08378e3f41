# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Brings the live lines along, as fleet_summary does with the summary."""

from __future__ import annotations

DOCUMENTATION = r"""
name: fleet_live
type: aggregate
short_description: Tell how far each guest is while a run goes on
description:
  - See P(kvm.fleet.live#callback).
extends_documentation_fragment:
  - kvm.fleet.callback.live
"""

from ansible_collections.kvm.fleet.plugins.callback import live


class CallbackModule(live.CallbackModule):
    """The same callback, loaded without being asked for."""

    CALLBACK_NAME = "fleet_live"
    CALLBACK_NEEDS_ENABLED = False
