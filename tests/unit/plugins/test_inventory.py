# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The inventory plugin as Ansible uses it, over hypervisors of libvirt's own test driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.unit.contract.test_libvirt import domain_xml

ROOT = Path(__file__).parents[3]
OFF = "<test:runstate>5</test:runstate>"
LIMIT_S = 300


def metadata(text: str) -> str:
    return f"<metadata><guest xmlns='https://kvm.fleet/xmlns/guest/1'>{text}</guest></metadata>"


@dataclass(frozen=True)
class Ran:
    """What a program of Ansible's has printed."""

    exit_code: int
    output: str
    warnings: str

    @property
    def listed(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.output)
        return found

    @property
    def variables(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = plain(self.listed["_meta"]["hostvars"])
        return found

    def members(self, group: str) -> list[str]:
        found: list[str] = self.listed.get(group, {}).get("hosts", [])
        return found

    @property
    def told(self) -> str:
        """The warnings, however their lines were broken."""
        return " ".join(self.warnings.split())


def plain(value: Any) -> Any:
    """A value without the marks that keep it from being a template."""
    if isinstance(value, dict):
        unsafe = value.get("__ansible_unsafe")
        return {name: plain(more) for name, more in value.items()} if unsafe is None else unsafe
    return [plain(more) for more in value] if isinstance(value, list) else value


class Controller:
    """A directory with inventories, and Ansible to use them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.hypervisors: dict[str, dict[str, Any]] = {}
        (directory / "home").mkdir()

    def add(self, name: str, domains: Mapping[str, str], **variables: Any) -> None:
        """A hypervisor with these domains, by what their XML has besides the usual."""
        node = self.directory / f"{name}.xml"
        xml = "".join(domain_xml(domain, more) for domain, more in domains.items())
        node.write_text(f"<node>{xml}</node>", encoding="utf-8")
        self.hypervisors[name] = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "kvm_uri": f"test://{node}",
            **variables,
        }

    def write(self, name: str, content: object) -> Path:
        path = self.directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    def listing(self, *words: str, **options: Any) -> Ran:
        return self.run("ansible-inventory", "--list", *words, **options)

    def run(self, program: str, *words: str, before: tuple[str, ...] = (), **options: Any) -> Ran:
        """Run it with the plugin's options, and with these words before its inventory."""
        listed = self.write("hypervisors.yml", {"kvm_hypervisors": {"hosts": self.hypervisors}})
        config = self.write("fleet.kvm.yml", {"plugin": "kvm.fleet.guests", **options})
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        environment |= {
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "build" / "collections"),
            "ANSIBLE_HOME": str(self.directory / "home"),
            "ANSIBLE_NOCOLOR": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        done = subprocess.run(
            [program, "-i", str(listed), *before, "-i", str(config), *words],
            env=environment,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=LIMIT_S,
            check=False,
        )
        print(done.stdout, done.stderr)
        return Ran(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def controller(tmp_path: Path) -> Controller:
    return Controller(tmp_path)


def interpreter(controller: Controller, script: str) -> str:
    """What takes the place of a hypervisor's Python."""
    path = controller.directory / "python3"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_guests_of_all_hypervisors_are_hosts_and_a_broken_one_is_told_of(controller: Controller) -> None:
    controller.add("hv1", {"web1": "", "a:80": OFF})
    controller.add("hv2", {"web1": ""})
    without = interpreter(controller, f'exec {sys.executable} -I -S "$@"')
    controller.add("hv3", {"db1": ""}, ansible_python_interpreter=without)
    ran = controller.listing()
    assert ran.exit_code == 0
    assert sorted(ran.members("kvm_guests")) == ["a%3A80", "web1@hv1", "web1@hv2"]
    assert sorted(ran.members("running")) == sorted(ran.members("drift_unknown")) == ["web1@hv1", "web1@hv2"]
    assert sorted(ran.members("agent_missing")) == ["web1@hv1", "web1@hv2"]
    assert (ran.members("off"), ran.members("unreachable_hypervisors")) == (["a%3A80"], ["hv3"])
    web1 = ran.variables["web1@hv2"]
    assert (web1["kvm_hypervisor"], web1["kvm_domain"]) == ("hv2", "web1")
    assert web1["kvm_uri"] == controller.hypervisors["hv2"]["kvm_uri"]
    assert "hv3 could not be looked at" in ran.told
    assert "(libvirt_python_missing). Install it for the Python that Ansible uses on the hypervisor" in ran.told
    assert "Its guests are missing from the inventory" in ran.told


def test_hypervisors_may_be_named_and_have_their_variables_beside_the_file(controller: Controller) -> None:
    controller.add("hv1", {"web1": ""})
    common = controller.hypervisors.pop("hv1")
    for name in ("hv1", "hv2"):
        controller.write(f"host_vars/{name}.yml", {"kvm_uri": common["kvm_uri"]})
    controller.write("group_vars/kvm_hypervisors.yml", {**common, "kvm_uri": "qemu:///nowhere"})
    ran = controller.listing(hypervisors=["hv[1:2]"])
    assert sorted(ran.members("kvm_hypervisors")) == ["hv1", "hv2"]
    assert sorted(ran.members("kvm_guests")) == ["web1@hv1", "web1@hv2"]


def test_what_comes_from_a_hypervisor_is_no_template(controller: Controller) -> None:
    name, tag = "{{ 7 * 191 }}", "{{ 7 * 193 }}"
    controller.add("hv1", {name: metadata(f"<tag>{tag}</tag>")})
    ran = controller.run("ansible", "kvm_guests", "-m", "debug", "-a", "msg={{ [kvm_domain, kvm_tags] | to_json }}")
    assert ran.exit_code == 0
    assert "1337" not in ran.output
    assert "1351" not in ran.output
    assert "7 * 191" in ran.output
    assert "7 * 193" in ran.output


def test_groups_and_variables_are_composed_and_owners_have_the_last_word(controller: Controller) -> None:
    said = "<tag>web</tag><group>cluster</group><depends-on>db1</depends-on>"
    controller.add("hv1", {"web1": metadata(said), "db1": metadata("<tag>db</tag><canary/>"), "old1": OFF})
    controller.write("group_vars/tag_web.yml", {"kvm_group": "by the owner"})
    controller.write("host_vars/db1.yml", {"kvm_tags": ["by the owner"]})
    ran = controller.listing(
        keyed_groups=[{"prefix": "tag", "key": "kvm_tags"}],
        groups={"first": "kvm_canary | default(false)"},
        compose={"ansible_host": "kvm_domain ~ '.example.com'"},
        filters=["kvm_state == 'running'"],
        strict=True,
    )
    assert sorted(ran.members("kvm_guests")) == ["db1", "web1"]
    web1, db1 = ran.variables["web1"], ran.variables["db1"]
    assert (web1["kvm_tags"], web1["kvm_group"], web1["kvm_depends_on"]) == (["web"], "by the owner", ["db1"])
    assert (db1["kvm_tags"], db1["kvm_canary"], "kvm_group" in db1) == (["by the owner"], True, False)
    assert (ran.members("tag_web"), ran.members("tag_by_the_owner"), ran.members("tag_db")) == (["web1"], ["db1"], [])
    assert ran.members("first") == ["db1"]
    assert web1["ansible_host"] == "web1.example.com"
    assert ran.variables["hv1"]["kvm_only_listed"] is True


def test_a_host_that_says_by_templates_where_it_is_is_that_guest(controller: Controller) -> None:
    controller.add("hv1", {"web1.example.com": ""})
    by_template = {"kvm_hypervisor": "hv{{ nr }}", "kvm_domain": "{{ inventory_hostname }}.example.com", "nr": 1}
    controller.write("listed.yml", {"all": {"hosts": {"web1": {}}}})
    controller.write("host_vars/web1.yml", {**by_template, "kvm_uri": controller.hypervisors["hv1"]["kvm_uri"]})
    listed = ("-i", str(controller.directory / "listed.yml"))
    ran = controller.listing(before=listed)
    assert ran.members("kvm_guests") == ["web1"]
    assert ran.variables["web1"]["kvm_uuid"]
    controller.write("host_vars/web1.yml", {**by_template, "kvm_domain": "{{ hostvars.hv1.nobodys }}"})
    ran = controller.listing(before=listed)
    assert "kvm_domain of web1 is a template, which can use no more here" in ran.told
    assert ran.members("kvm_guests") == []


def test_playbooks_work_on_these_guests_and_on_no_others_where_there_are_filters(controller: Controller) -> None:
    controller.add("hv1", {"web1": metadata("<depends-on>db1</depends-on>"), "db1": "", "old1": ""})
    everyone = ("-e", "fleet_guests=all", "kvm.fleet.plan")
    ran = controller.run("ansible-playbook", *everyone, "--limit", "drift_unknown")
    assert ran.exit_code == 0
    assert "PLAN: 3 VM(s) in 3 batch(es)" in ran.output
    assert ran.output.index("  db1 on hv1") < ran.output.index("  web1 on hv1, after db1")
    ran = controller.run("ansible-playbook", *everyone, filters=["kvm_domain != 'old1'"])
    assert ran.exit_code == 0
    assert "PLAN: 2 VM(s) in 2 batch(es)" in ran.output
    assert "old1" not in ran.output


@pytest.mark.parametrize(
    "options",
    [
        {"filters": ["kvm_domain != 'web1'"], "timeout": 0},
        {"filters": ["kvm_domain != 'web1'"], "grups": {}},
        {"filter": ["kvm_domain != 'web1'"]},
        {"filters": ["kvm_domain != 'web1'"], "hypervisors": ["hv1"], "timeout": 0},
        {"filters": ["kvm_domain"]},
    ],
)
def test_guests_are_left_alone_where_what_filters_them_has_failed(
    controller: Controller, options: dict[str, Any]
) -> None:
    controller.add("hv1", {"web1": "", "db1": ""})
    ran = controller.run("ansible-playbook", "-e", "fleet_guests=all", "kvm.fleet.plan", **options)
    assert "PLAN: 0 VM(s)" in ran.output
    assert "Unable to parse" in ran.told


def test_a_cache_is_used_until_it_is_flushed(controller: Controller) -> None:
    controller.add("hv1", {"web1": ""})
    caching = {
        "cache": True,
        "cache_plugin": "ansible.builtin.jsonfile",
        "cache_connection": str(controller.directory / "cache"),
    }
    first = controller.listing(**caching)
    (controller.directory / "hv1.xml").unlink()
    controller.add("hv2", {"db1": ""})
    second, flushed = controller.listing(**caching), controller.listing("--flush-cache", **caching)
    assert first.members("kvm_guests") == ["web1"]
    assert sorted(second.members("kvm_guests")) == ["db1", "web1"]
    assert second.variables["web1"] == first.variables["web1"]
    assert (flushed.members("kvm_guests"), flushed.members("unreachable_hypervisors")) == (["db1"], ["hv1"])


def test_a_hypervisor_that_hangs_is_given_up_and_the_others_are_there(controller: Controller) -> None:
    controller.add("hv1", {"web1": ""})
    controller.add("hv2", {"db1": ""}, ansible_python_interpreter=interpreter(controller, "exec sleep 600"))
    ran = controller.listing(timeout=30)
    assert ran.exit_code == 0
    assert (ran.members("kvm_guests"), ran.members("unreachable_hypervisors")) == (["web1"], ["hv2"])
    assert "hv2 could not be looked at" in ran.told


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hypervisors": []}, "hypervisors is empty"),
        ({"hypervisor": ["hv1"]}, "no option is named hypervisor"),
        ({"group": "nobodys"}, "no inventory that was parsed before has a group 'nobodys'"),
        ({"group": "ungrouped"}, "the group 'ungrouped' has no hosts"),
        ({"timeout": 0}, "timeout is 0; it can be 1 or more seconds"),
        ({"filters": ["kvm_state"]}, "filters: 'kvm_state' is neither true nor false of web1"),
        (
            {"filters": ["kvm_stat == 'running'"]},
            "filters: \"kvm_stat == 'running'\" is neither true nor false of web1",
        ),
        (
            {"filters": ["kvm_domain == 'web1' or kvm_group == 'web'"]},
            "filters: \"kvm_domain == 'web1' or kvm_group == 'web'\" is neither true nor false of web2",
        ),
    ],
)
def test_bad_input_is_refused_by_name(controller: Controller, options: dict[str, Any], words: str) -> None:
    controller.add("hv1", {"web1": "", "web2": ""})
    ran = controller.listing(**options)
    assert words in ran.told
    assert ran.members("kvm_guests") == []
