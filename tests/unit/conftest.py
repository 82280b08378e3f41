# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Settings of the unit tests."""

from __future__ import annotations

from hypothesis import settings

# Deadlines measure the machine, not the code; a fixed seed makes a failure the next run's failure too.
settings.register_profile("fleet", deadline=None, derandomize=True, database=None)
settings.load_profile("fleet")
