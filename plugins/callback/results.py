# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: results
type: stdout
short_description: Write each host's result to a file
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Writes a line of JSON for each result of a host, with C(host) and C(result), and shows nothing.
  - The inventory plugin P(kvm.fleet.guests#inventory) reads them. It is of no other use.
requirements:
  - set as stdout callback
options:
  path:
    description: The file to append to.
    type: path
    required: true
    env:
      - name: KVM_FLEET_RESULTS
"""

import json
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "kvm.fleet.results"

    def v2_runner_on_ok(self, result: Any) -> None:
        self._write(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:  # noqa: ARG002
        self._write(result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._write(result)

    def _write(self, result: Any) -> None:
        with Path(self.get_option("path")).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"host": result._host.get_name(), "result": result._result}, default=str) + "\n")
