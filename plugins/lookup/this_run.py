# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: this_run
short_description: Tell the id of this run of a playbook, who runs it, and whether somebody can be asked
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - The same for the whole run, for every guest and wherever it is asked for. On a controller without C(/proc), the id
    is a new one each time.
  - In a job of AWX the owner begins with the job's number and user.
  - A person can be asked where the standard input of C(ansible-playbook) is a terminal, as far as C(/proc) shows it.
options:
  _terms:
    description: Nothing.
"""

EXAMPLES = r"""
- name: Take a guest for this run
  kvm.fleet.guest_lease:
    name: web1
    run: "{{ lookup('kvm.fleet.this_run').run }}"
    owner: "{{ lookup('kvm.fleet.this_run').owner }}"
  delegate_to: hypervisor1
"""

RETURN = r"""
_list:
  description: One element, with the id as C(run), the C(owner), and whether there is a C(terminal).
  type: list
  elements: dict
  sample:
    - run: 20261124-003000-3f2a9c1e
      owner: root@control1 (pid 4711, started 123456, in pid:[4026531836], boot 0b1d3a7d-2f8a-4a0e-9d0b-6c8e58b40c55)
      terminal: true
"""

from datetime import datetime, timezone
from typing import Any

from ansible.plugins.lookup import LookupBase

from ansible_collections.kvm.fleet.plugins.plugin_utils._controller import (
    awx_job,
    has_terminal,
    owner_of,
    playbook_pid,
    run_of,
)


class LookupModule(LookupBase):
    """Asks the kernel, so that nobody has to hand the answer on."""

    def run(self, terms: Any, variables: Any = None, **kwargs: Any) -> list[dict[str, Any]]:
        del terms, kwargs  # nothing to be asked for
        pid = playbook_pid()
        owner = owner_of(pid, job=awx_job(variables or {}))
        run = run_of(owner, pid, datetime.now(timezone.utc))
        return [{"run": run, "owner": owner, "terminal": has_terminal(pid)}]
