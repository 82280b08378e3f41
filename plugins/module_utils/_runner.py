# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Between Ansible's module object and the collection's own code, which know nothing of each other."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from ansible_collections.kvm.fleet.plugins.module_utils import _results
from ansible_collections.kvm.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.kvm.fleet.plugins.module_utils._libvirt import (
    LIBVIRT_IMPORT_ERROR,
    LibvirtHypervisor,
    open_hypervisor,
)

HYPERVISOR_ARGUMENTS: dict[str, Any] = {"uri": {"type": "str", "default": "qemu:///system"}}
"""For modules that look at a whole hypervisor."""

DOMAIN_ARGUMENTS: dict[str, Any] = {"name": {"type": "str", "required": True}, **HYPERVISOR_ARGUMENTS}
"""For modules that work on one domain."""


def run(module: AnsibleModule, work: Callable[[LibvirtHypervisor], dict[str, Any]]) -> None:
    """Do a module's work on the hypervisor and end the module, with its result or with the typed error that it met.

    What is not of the collection's own family of errors is a defect: it keeps its traceback.
    """
    if LIBVIRT_IMPORT_ERROR:
        module.fail_json(
            msg=missing_required_lib("libvirt-python"),
            error_code="libvirt_python_missing",
            transient=False,
            remedy="Install it for the Python that Ansible uses on the hypervisor (python3-libvirt in "
            "Debian and RHEL).",
            evidence={},
            exception=LIBVIRT_IMPORT_ERROR,
        )
    # libvirt keeps the last error of a thread until the next call, and freeing a handle is one: collected between a
    # failure and its exception, a handle would take the error's code with it. A module ends before memory matters.
    gc.disable()
    # A task of a run is none of the first to ask this libvirt: if it is away, it is being restarted.
    patient = bool(module.params.get("run"))
    try:
        with open_hypervisor(module.params["uri"], patient=patient) as hypervisor:
            result = work(hypervisor)
    except FleetError as error:
        module.fail_json(**_results.failure(error))
    module.exit_json(**result)


def run_here(module: AnsibleModule, work: Callable[[], dict[str, Any]]) -> None:
    """The same for a module that needs no libvirt, such as one that runs in a guest."""
    try:
        result = work()
    except FleetError as error:
        module.fail_json(**_results.failure(error))
    module.exit_json(**result)
