# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who may know whom: read from the imports, so that nobody has to remember it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PLUGINS = Path(__file__).parents[2] / "plugins"
ALL = sorted(str(path.relative_to(PLUGINS)) for path in PLUGINS.rglob("*.py"))
COLLECTION = "ansible_collections.kvm.fleet.plugins."

# What decides: no Ansible, no libvirt, and nothing of the collection that has them.
PURE = [
    "module_utils/_agent.py",
    "module_utils/_agent_config.py",
    "module_utils/_agent_files.py",
    "module_utils/_apt.py",
    "module_utils/_audit.py",
    "module_utils/_channel.py",
    "module_utils/_clock.py",
    "module_utils/_destination.py",
    "module_utils/_dnf.py",
    "module_utils/_domain.py",
    "module_utils/_domain_xml.py",
    "module_utils/_drift.py",
    "module_utils/_errors.py",
    "module_utils/_exec.py",
    "module_utils/_exec_files.py",
    "module_utils/_external.py",
    "module_utils/_failures.py",
    "module_utils/_group.py",
    "module_utils/_group_lease.py",
    "module_utils/_guest_facts.py",
    "module_utils/_guest_files.py",
    "module_utils/_guest_info.py",
    "module_utils/_guestfish.py",
    "module_utils/_heartbeat.py",
    "module_utils/_hints.py",
    "module_utils/_image.py",
    "module_utils/_job.py",
    "module_utils/_kept.py",
    "module_utils/_lease.py",
    "module_utils/_locks.py",
    "module_utils/_manager.py",
    "module_utils/_managers.py",
    "module_utils/_migrate.py",
    "module_utils/_observe.py",
    "module_utils/_packages.py",
    "module_utils/_policy.py",
    "module_utils/_policy_here.py",
    "module_utils/_policy_ways.py",
    "module_utils/_power.py",
    "module_utils/_power_steps.py",
    "module_utils/_proc.py",
    "module_utils/_prune.py",
    "module_utils/_qemu_img.py",
    "module_utils/_quiesce.py",
    "module_utils/_reboot.py",
    "module_utils/_record.py",
    "module_utils/_repair.py",
    "module_utils/_repair_cycle.py",
    "module_utils/_restart.py",
    "module_utils/_results.py",
    "module_utils/_retention.py",
    "module_utils/_rollback.py",
    "module_utils/_room.py",
    "module_utils/_rpcs.py",
    "module_utils/_rpm.py",
    "module_utils/_save.py",
    "module_utils/_snapshot.py",
    "module_utils/_snapshot_policy.py",
    "module_utils/_snapshot_xml.py",
    "module_utils/_store.py",
    "module_utils/_systemd.py",
    "module_utils/_traced.py",
    "module_utils/_uninterrupted.py",
    "module_utils/_trial.py",
    "module_utils/_upgrade.py",
    "module_utils/_zypper.py",
    "plugin_utils/_ad_hoc.py",
    "plugin_utils/_agent_policy.py",
    "plugin_utils/_batches.py",
    "plugin_utils/_controller.py",
    "plugin_utils/_cycle.py",
    "plugin_utils/_events.py",
    "plugin_utils/_inventory.py",
    "plugin_utils/_migration.py",
    "plugin_utils/_panel.py",
    "plugin_utils/_plan.py",
    "plugin_utils/_progress.py",
    "plugin_utils/_prune.py",
    "plugin_utils/_reach.py",
    "plugin_utils/_rescue.py",
    "plugin_utils/_result.py",
    "plugin_utils/_rollback.py",
    "plugin_utils/_selection.py",
    "plugin_utils/_summary.py",
    "plugin_utils/_trials.py",
    "plugin_utils/_ticker.py",
]
EDGES = ["module_utils/_libvirt.py", "module_utils/_runner.py"]


def tree_of(name: str) -> ast.Module:
    return ast.parse((PLUGINS / name).read_text(encoding="utf-8"))


def imports_of(name: str) -> Iterator[str]:
    """The modules that a file imports, wherever in it."""
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def packages_of(name: str) -> set[str]:
    """The packages outside the collection that a file imports."""
    return {module.partition(".")[0] for module in imports_of(name)} - {"ansible_collections"}


def own_imports(name: str) -> set[str]:
    """The collection's files that a file imports."""
    return {
        f"{module.removeprefix(COLLECTION).replace('.', '/')}.py"
        for module in imports_of(name)
        if module.startswith(COLLECTION)
    } & set(ALL)


def files_of(*directories: str) -> list[str]:
    return [name for name in ALL if name.partition("/")[0] in directories]


def test_every_file_of_the_core_is_on_one_side() -> None:
    assert files_of("module_utils", "plugin_utils") == sorted(PURE + EDGES)


def test_this_test_can_read_imports() -> None:
    """Or everything below would hold of files that were never understood."""
    assert "libvirt" in packages_of("module_utils/_libvirt.py")
    assert "ansible" in packages_of("module_utils/_runner.py")
    assert "module_utils/_power.py" in own_imports("modules/domain_power.py")


@pytest.mark.parametrize("name", PURE)
def test_what_decides_knows_neither_ansible_nor_libvirt(name: str) -> None:
    assert not packages_of(name) & {"ansible", "libvirt", "libvirt_qemu"}
    assert own_imports(name) <= set(PURE)


@pytest.mark.parametrize("name", ALL)
def test_one_file_speaks_libvirt(name: str) -> None:
    speaks = bool(packages_of(name) & {"libvirt", "libvirt_qemu", "libvirtaio"})
    assert speaks == (name == "module_utils/_libvirt.py")


@pytest.mark.parametrize("name", files_of("module_utils"))
def test_the_module_object_goes_no_further_than_the_runner(name: str) -> None:
    names = {node.id for node in ast.walk(tree_of(name)) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree_of(name)) if isinstance(node, ast.Attribute)}
    knows = bool(names & {"AnsibleModule", "fail_json", "exit_json"}) or "ansible" in packages_of(name)
    assert knows == (name == "module_utils/_runner.py")


@pytest.mark.parametrize("name", files_of("module_utils"))
def test_what_runs_on_the_hypervisor_needs_nothing_of_the_controllers(name: str) -> None:
    """Ansible sends a module's module_utils along, and nothing else of the collection."""
    assert {path.partition("/")[0] for path in own_imports(name)} <= {"module_utils"}


@pytest.mark.parametrize("name", files_of("modules"))
def test_a_module_needs_nothing_of_the_controllers(name: str) -> None:
    assert {path.partition("/")[0] for path in own_imports(name)} == {"module_utils"}


def test_only_one_place_asks_the_agent_anything() -> None:
    """The names of the agent's commands as text are a sign of somebody speaking its protocol."""
    speakers = [
        name
        for name in files_of("module_utils")
        if any(
            isinstance(node, ast.Dict)
            and any(isinstance(key, ast.Constant) and key.value == "execute" for key in node.keys)
            for node in ast.walk(tree_of(name))
        )
    ]
    assert speakers == ["module_utils/_agent.py"]
