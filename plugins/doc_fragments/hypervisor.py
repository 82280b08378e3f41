# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Documentation that the modules share."""

from __future__ import annotations


class ModuleDocFragment:
    """Options and notes of every module that talks to libvirt on the hypervisor."""

    DOCUMENTATION = r"""
options:
  uri:
    description:
      - The local libvirt connection.
      - A URI that leads to another machine is refused, since a QEMU process can only be judged where it runs. Use
        C(delegate_to) to reach another hypervisor.
    type: str
    default: qemu:///system
requirements:
  - libvirt-python on the hypervisor
notes:
  - Runs on the hypervisor, usually by C(delegate_to), as a user that may manage the domains (root for
    V(qemu:///system)).
  - A failed task has RV(ignore:error_code), RV(ignore:transient), RV(ignore:remedy) and RV(ignore:evidence) besides
    C(msg). The codes are listed in the collection's documentation.
"""

    DOMAIN = r"""
options:
  name:
    description:
      - The domain's name, matched exactly.
    type: str
    required: true
"""

    ATTRIBUTES = r"""
options: {}
attributes:
  action_group:
    description: The action group that this module belongs to, for C(module_defaults).
    support: full
    membership:
      - kvm.fleet.all
  check_mode:
    description: Can run in check mode and tell what it would do, without changing anything.
  diff_mode:
    description: Shows what has changed, or would change, in diff mode.
  platform:
    description: The hypervisor's operating system.
    support: full
    platforms: linux
"""
