# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Brings the events along, as fleet_summary does with the summary. They are written where a file is named for them."""

from __future__ import annotations

DOCUMENTATION = r"""
name: fleet_events
type: aggregate
short_description: Write what happens in a run to a file, one JSON object a line
description:
  - See P(kvm.fleet.events#callback).
extends_documentation_fragment:
  - kvm.fleet.callback.events
"""

from ansible_collections.kvm.fleet.plugins.callback import events


class CallbackModule(events.CallbackModule):
    """The same callback, loaded without being asked for."""

    CALLBACK_NAME = "fleet_events"
    CALLBACK_NEEDS_ENABLED = False
