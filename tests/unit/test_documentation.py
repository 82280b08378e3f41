# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is written down and what is so: defaults, options, groups and error codes are the same everywhere."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.kvm.fleet.plugins.module_utils import _errors
from ansible_collections.kvm.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.kvm.fleet.plugins.plugin_utils import _events
from ansible_collections.kvm.fleet.plugins.plugin_utils._progress import step_of

ROOT = Path(__file__).parents[2]
MODULES = sorted(path.stem for path in (ROOT / "plugins" / "modules").glob("*.py"))
ROLES = ROOT / "roles"
ROLE_NAMES = sorted(path.name for path in ROLES.iterdir())


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


# --- roles ---------------------------------------------------------------------------------------


def options_of(role: str) -> dict[str, Any]:
    specified: dict[str, Any] = read_yaml(ROLES / role / "meta" / "argument_specs.yml")["argument_specs"]["main"][
        "options"
    ]
    return specified


def defaults_of(role: str) -> dict[str, Any]:
    used: dict[str, Any] = read_yaml(ROLES / role / "defaults" / "main.yml")
    return used


# Their defaults are told in words: Ansible would evaluate those of the specification even where the option is given.
TOLD_IN_WORDS = ("hypervisor", "uri", "ways")


@pytest.mark.parametrize("role", ROLE_NAMES)
def test_a_role_specifies_what_it_has_defaults_for(role: str) -> None:
    assert list(options_of(role)) == list(defaults_of(role))
    assert all(option.startswith(f"{role}_") for option in options_of(role))


@pytest.mark.parametrize("role", ROLE_NAMES)
def test_what_is_true_or_false_may_come_as_text(role: str) -> None:
    """As from ``-e name=false`` or a survey of AWX. Ansible converts it for a module only, not for a condition."""
    options = [name for name, spec in options_of(role).items() if spec["type"] == "bool"]
    for path in (ROLES / role / "tasks").glob("*.yml"):
        for line in path.read_text(encoding="utf-8").splitlines():
            for option in options:
                handed_on = line.endswith(f': "{{{{ {option} }}}}"')
                bare = re.search(rf"\b{option}\b(?! \| bool)", line)
                assert handed_on or not bare, f"{path.name}: {line.strip()}"


@pytest.mark.parametrize("role", ROLE_NAMES)
def test_only_defaults_that_depend_on_other_variables_are_told_in_words(role: str) -> None:
    told = {option for option, spec in options_of(role).items() if "default" not in spec}
    assert told == {f"{role}_{name}" for name in TOLD_IN_WORDS} & set(options_of(role))
    assert all("{{" in defaults_of(role)[option] for option in told)


@pytest.mark.parametrize(
    ("role", "option"),
    [(role, option) for role in ROLE_NAMES for option, spec in options_of(role).items() if "default" in spec],
)
def test_a_default_of_a_role_is_the_one_that_is_specified(role: str, option: str) -> None:
    spec, used = options_of(role)[option], defaults_of(role)[option]
    assert (spec["default"], type(spec["default"])) == (used, type(used))
    assert type(used).__name__ == spec["type"]
    several = used if isinstance(used, list) else [used]
    assert set(map(str, several)) <= set(map(str, spec.get("choices", several)))


@pytest.mark.parametrize("role", ROLE_NAMES)
def test_every_option_of_a_role_is_used(role: str) -> None:
    files = [*(ROLES / role / "tasks").glob("*.yml"), *(ROLES / role / "vars").glob("*.yml")]
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    assert [option for option in options_of(role) if not re.search(rf"\b{option}\b", text)] == []


# --- modules -------------------------------------------------------------------------------------


class Specified(Exception):
    """Stops a module as soon as it has said what it takes."""


def argument_spec(module: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a module hands to AnsibleModule."""
    given: dict[str, Any] = {}

    def take(**arguments: Any) -> None:
        given.update(arguments)
        raise Specified

    imported = importlib.import_module(f"ansible_collections.kvm.fleet.plugins.modules.{module}")
    monkeypatch.setattr(imported, "AnsibleModule", take)
    with pytest.raises(Specified):
        imported.main()
    return given


def documentation(module: str) -> dict[str, Any]:
    imported = importlib.import_module(f"ansible_collections.kvm.fleet.plugins.modules.{module}")
    documented: dict[str, Any] = yaml.safe_load(imported.DOCUMENTATION)
    documented["options"].update(shared_options(documented))
    return documented


def shared_options(documented: dict[str, Any]) -> dict[str, Any]:
    """The options that come from fragments, of which a name has the file and, after a dot, the part."""
    options = {}
    for fragment in documented.get("extends_documentation_fragment", []):
        file, _dot, part = fragment.removeprefix("kvm.fleet.").partition(".")
        imported = importlib.import_module(f"ansible_collections.kvm.fleet.plugins.doc_fragments.{file}")
        options.update(yaml.safe_load(getattr(imported.ModuleDocFragment, part.upper() or "DOCUMENTATION"))["options"])
    return options


FACTS = ("type", "elements", "default", "choices", "required")


@pytest.mark.parametrize("module", MODULES)
def test_a_module_takes_the_options_that_it_documents(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    documented = {
        name: {fact: option[fact] for fact in FACTS if fact in option}
        for name, option in documentation(module)["options"].items()
    }
    assert argument_spec(module, monkeypatch)["argument_spec"] == documented


@pytest.mark.parametrize("module", MODULES)
def test_a_module_supports_check_mode_as_it_documents(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert argument_spec(module, monkeypatch)["supports_check_mode"] is True
    assert documentation(module)["attributes"]["check_mode"]["support"] in ("full", "partial")


@pytest.mark.parametrize("module", MODULES)
def test_a_module_goes_by_its_files_name(module: str) -> None:
    assert documentation(module)["module"] == module


def test_the_action_group_lists_the_modules_that_take_its_options() -> None:
    """What is set for all of them, as a connection is, would be refused by any other."""
    takers = [module for module in MODULES if "uri" in documentation(module)["options"]]
    assert read_yaml(ROOT / "meta" / "runtime.yml")["action_groups"]["all"] == takers


# --- filters -------------------------------------------------------------------------------------

FILTERS = sorted(path.stem for path in (ROOT / "plugins" / "filter").glob("*.py"))


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_takes_the_options_that_it_documents(name: str) -> None:
    imported = importlib.import_module(f"ansible_collections.kvm.fleet.plugins.filter.{name}")
    [(offered, function)] = imported.FilterModule().filters().items()
    documented = yaml.safe_load(imported.DOCUMENTATION)
    arguments = list(inspect.signature(function).parameters)
    assert (offered, documented["name"]) == (name, name)
    options = {**shared_options(documented), **documented["options"]}
    assert arguments[1:] == [option for option in options if option != "_input"]


# --- events --------------------------------------------------------------------------------------

EVENTS = (ROOT / "docs" / "events.md").read_text(encoding="utf-8")


def rows_after(header: str) -> list[str]:
    """The names in the first column of a table."""
    table = EVENTS.partition(f"| {header} |")[2].partition("\n\n")[0]
    return re.findall(r"^\| `([a-z_]+)` \|", table, re.MULTILINE)


def test_an_event_has_the_fields_that_are_documented_in_their_order() -> None:
    [event] = _events.Events("run", 0.0).end_run([{"guest": "web1", "outcome": "failed"}], 1.0, failed=True)[1:2]
    assert rows_after("field") == ["ts", *event]
    examples = [json.loads(line) for line in EVENTS.splitlines() if line.startswith("{")]
    assert {tuple(example) for example in examples} == {("ts", *event)}


def test_every_event_is_documented() -> None:
    written = inspect.getsource(_events.Events)
    assert re.findall(r'self\._event\(\s*"([a-z_]+)"', written)
    assert set(re.findall(r'self\._event\(\s*"([a-z_]+)"', written)) == set(rows_after("event"))


def test_the_steps_of_the_roles_are_those_that_are_documented() -> None:
    files = [path.read_text(encoding="utf-8") for path in ROLES.glob("*/tasks/*.yml")]
    steps = {step for text in files for step in re.findall(r"^ +fleet_step: (\w+)$", text, re.MULTILINE)}
    assert steps == set(rows_after("step"))
    assert all(step_of({"fleet_step": step}) == step for step in steps)


@pytest.mark.parametrize("name", ["live", "events", "summary"])
def test_a_callback_that_comes_with_the_playbooks_has_the_options_of_the_collections_own(name: str) -> None:
    own = importlib.import_module(f"ansible_collections.kvm.fleet.plugins.callback.{name}")
    brought = importlib.import_module(f"ansible_collections.kvm.fleet.playbooks.callback_plugins.fleet_{name}")
    fragments = [yaml.safe_load(one.DOCUMENTATION).get("extends_documentation_fragment") for one in (own, brought)]
    assert fragments[0] == fragments[1]
    assert issubclass(brought.CallbackModule, own.CallbackModule)


# --- error codes ---------------------------------------------------------------------------------

ERRORS = [
    error
    for error in vars(_errors).values()
    if isinstance(error, type) and issubclass(error, FleetError) and error is not FleetError
]
_ROW = re.compile(r"^\| `([a-z_]+)` \| (yes|no) \|", re.MULTILINE)
DOCUMENTED = _ROW.findall((ROOT / "docs" / "errors.md").read_text(encoding="utf-8"))
# Met without any error of the family.
BESIDE = {
    *("libvirt_python_missing", "hypervisor_unreachable", "drift_unknown", "guest_unhealthy"),
    *(
        "no_terminal",
        "runs_elsewhere",
        "task_failed",
        "run_ended",
        "provider_failed",
        "canary_failed",
        "nothing_chosen",
    ),
    "rollback_unconfirmed",
}


def test_error_codes_are_unique_and_say_what_their_class_says() -> None:
    codes = [error.error_code for error in ERRORS]
    assert len(codes) == len(set(codes))
    spelled = [re.sub(r"(?<!^)(?=[A-Z])", "_", error.__name__).lower() for error in ERRORS]
    assert codes == spelled


def test_every_error_code_is_documented_once() -> None:
    codes = [code for code, _transient in DOCUMENTED]
    assert sorted(codes) == sorted([*(error.error_code for error in ERRORS), *BESIDE])


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error.error_code))
def test_an_error_is_transient_as_documented(error: type[FleetError]) -> None:
    assert dict(DOCUMENTED)[error.error_code] == ("yes" if error.transient else "no")


@pytest.mark.parametrize("code", sorted(BESIDE))
def test_a_code_outside_the_family_is_used_somewhere(code: str) -> None:
    kinds = ("plugins/**/*.py", "roles/**/*.yml", "playbooks/**/*.yml")
    sources = [path for kind in kinds for path in ROOT.glob(kind)]
    assert any(code in path.read_text(encoding="utf-8") for path in sources)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error.error_code))
def test_an_error_carries_message_remedy_and_evidence(error: type[FleetError]) -> None:
    evidence = {"pid": 7}
    raised = error("it broke", remedy="Mend it.", evidence=evidence)
    assert (str(raised), raised.message, raised.remedy, raised.evidence) == (*["it broke"] * 2, "Mend it.", evidence)
    assert raised.evidence is not evidence
