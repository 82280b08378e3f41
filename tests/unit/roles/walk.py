# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The tasks of a role, one after the other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

ROLES = Path(__file__).resolve().parents[3] / "roles"


def tasks(path: Path) -> Iterator[dict[str, Any]]:
    """The tasks of a file in the order in which they come, those of blocks, rescues and included files in their place.

    What is reported is handed on as that, by the variables that it is given. What is included of another role comes
    with the names that the variables have here.
    """
    for task in yaml.safe_load(path.read_text(encoding="utf-8")):
        yield from _with_those_inside(path, task)


def _with_those_inside(path: Path, task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    parts = [part for part in ("block", "rescue", "always") if part in task]
    for inner in (inner for part in parts for inner in task[part]):
        yield from _with_those_inside(path, inner)
    if parts:
        return
    role = task.get("ansible.builtin.include_role")
    if role is not None and "tasks_from" in role:
        for inner in tasks(ROLES / role["name"].rpartition(".")[2] / "tasks" / role["tasks_from"]):
            yield _renamed(inner, task["vars"])
        return
    file = task.get("ansible.builtin.import_tasks") or task.get("ansible.builtin.include_tasks")
    if file is None:
        yield task
    elif file == "report.yml":
        yield {"report": task["vars"]}
    else:
        yield from tasks(path.with_name(file))


def _renamed(task: dict[str, Any], variables: dict[str, str]) -> dict[str, Any]:
    text = json.dumps(task)
    for name, value in variables.items():
        text = re.sub(rf"\b{name}\b", value.strip("{} "), text)
    renamed: dict[str, Any] = json.loads(text)
    return renamed
