# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What AWX gets to read, as far as awxkit and ansible-builder can tell without an AWX."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from awxkit.api import pages
from awxkit.api.pages.api import EXPORTABLE_RESOURCES

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


ASSETS: dict[str, list[dict[str, Any]]] = yaml.safe_load((ROOT / "awx" / "assets.yml").read_text(encoding="utf-8"))
QUESTIONS = [
    pytest.param(question, id=f"{template['name']}: {question['question_name']}")
    for template in ASSETS["job_templates"]
    for question in template["related"]["survey_spec"]["spec"]
]


def references(value: object) -> Iterator[dict[str, Any]]:
    """Whatever refers to something in AWX by what it is and how it is called there."""
    if isinstance(value, dict):
        if "type" in value and "question_name" not in value:
            yield value
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def test_only_what_awx_imports_is_there() -> None:
    assert set(ASSETS) <= set(EXPORTABLE_RESOURCES)


def test_whatever_is_referred_to_is_identified_as_awx_does_it() -> None:
    found = list(references(ASSETS))
    assert {reference["type"] for reference in found} > {"credential", "inventory", "job_template", "project"}
    for reference in found:
        kind = getattr(pages, "".join(word.capitalize() for word in reference["type"].split("_")))
        assert set(reference) == {"type", *kind.NATURAL_KEY}, reference


@pytest.mark.parametrize("template", ASSETS["job_templates"], ids=lambda template: template["name"])
def test_a_template_runs_a_playbook_of_the_project(template: dict[str, Any]) -> None:
    assert (ROOT / template["playbook"]).is_file()
    assert template["project"] == ASSETS["projects"][0]["natural_key"]


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_survey_asks_for_a_documented_variable_in_a_way_that_awx_knows(question: dict[str, Any]) -> None:
    assert f"`{question['variable']}`" in (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    if question["type"] == "multiplechoice":
        assert question["default"] in question["choices"]
    else:
        assert isinstance(question["default"], {"integer": int, "text": str}[question["type"]])
        assert question["min"] <= question["max"]
    # A blank answer may be handed on as an empty text, which is no number and neither true nor false.
    assert question["required"] is (question["default"] != "" or question["min"] > 0)


def test_guests_have_to_be_named_where_the_playbook_has_no_default_for_them() -> None:
    for template in ASSETS["job_templates"]:
        playbook = (ROOT / template["playbook"]).read_text(encoding="utf-8")
        asked = {question["variable"]: question for question in template["related"]["survey_spec"]["spec"]}
        if "fleet_guests" in asked:
            assert asked["fleet_guests"]["required"] is ("fleet_named: true" in playbook), template["name"]


def test_the_execution_environment_can_be_built(tmp_path: Path) -> None:
    builder = Path(sys.executable).with_name("ansible-builder")
    subprocess.run(
        [builder, "create", "--file", ROOT / "execution-environment.yml", "--context", tmp_path],
        check=True,
        capture_output=True,
    )
    assert "kvm.fleet" in (tmp_path / "_build" / "requirements.yml").read_text(encoding="utf-8")
