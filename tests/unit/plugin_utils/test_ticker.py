# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What happens again and again while Ansible waits for a task."""

from __future__ import annotations

import threading

from ansible_collections.kvm.fleet.plugins.plugin_utils._ticker import Ticker

LIMIT_S = 60


def test_it_ticks_again_after_it_was_stopped() -> None:
    ticked = threading.Event()
    ticker = Ticker(ticked.set)
    for _playbook in range(2):
        ticked.clear()
        ticker.start()
        assert ticked.wait(LIMIT_S)
        ticker.stop()
