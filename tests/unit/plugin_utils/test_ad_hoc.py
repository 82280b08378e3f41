# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A command of Ansible's own: what it is told, and what becomes of its results."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.kvm.fleet.plugins.plugin_utils import _ad_hoc
from ansible_collections.kvm.fleet.plugins.plugin_utils._ad_hoc import AdHoc, AdHocFailed, passed_on

HOSTS: dict[str, dict[str, Any]] = {"hv1": {}, "hv2": {"ansible_port": 2222}}


def ad_hoc(**options: Any) -> AdHoc:
    return AdHoc(["/etc/a.yml", "b,", "/etc/a.yml"], Path("/etc/fleet"), options, timeout=30, forks=7)


def test_it_is_what_a_user_could_type() -> None:
    assert ad_hoc(become=True).words("kvm.fleet.domain_info", {"snapshots": False}, Path("/tmp/hosts.yml")) == [
        *(sys.executable, "-m", "ansible", "adhoc", "kvm_fleet_ad_hoc"),
        *("--inventory=/etc/a.yml", "--inventory=b,", "--inventory=/tmp/hosts.yml"),
        *("--playbook-dir=/etc/fleet", "--forks=7", "--task-timeout=30", "--become"),
        *("--module-name=kvm.fleet.domain_info", '--args={"snapshots": false}'),
    ]


def test_how_to_reach_hosts_is_passed_on_and_nothing_else_is() -> None:
    options = {
        "remote_user": "admin",
        "private_key_file": "/root/.ssh/fleet",
        "ssh_common_args": "-o ProxyJump=jump",
        "timeout": None,
        "become": False,
        "extra_vars": ("a=1", "@vars.yml"),
        "vault_ids": ["prod@/root/secret", "dev@prompt", "@prompt_ask_vault_pass"],
        "check": True,
        "tags": ["never"],
        "subset": "drifted",
    }
    assert passed_on(options) == [
        *("--user=admin", "--private-key=/root/.ssh/fleet", "--ssh-common-args=-o ProxyJump=jump"),
        *("--extra-vars=a=1", "--extra-vars=@vars.yml", "--vault-id=prod@/root/secret"),
    ]


@pytest.fixture
def ansible(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has a few lines of Python take the place of Ansible."""

    def instead(script: str) -> None:
        monkeypatch.setattr(AdHoc, "words", lambda *_arguments: [sys.executable, "-c", script])

    return instead


TELL_OF_HV1 = """
import os
with open(os.environ["KVM_FLEET_RESULTS"], "a") as file:
    file.write('{"host": "hv1", "result": {"domains": []}}\\n')
"""


def test_a_host_that_nothing_was_heard_of_has_failed_with_ansibles_words(ansible: Any) -> None:
    ansible(f"{TELL_OF_HV1}\nprint('it went dark')\nraise SystemExit(4)")
    told = ad_hoc().run("m", {}, HOSTS, "kvm_hypervisors")
    assert told == {
        "hv1": {"domains": []},
        "hv2": {"msg": "nothing was heard of it: ansible ended with exit code 4: it went dark"},
    }


def test_an_ansible_that_tells_of_no_host_is_an_error_with_its_words(ansible: Any) -> None:
    ansible("raise SystemExit('[ERROR]: no vault secrets found')")
    with pytest.raises(AdHocFailed, match=r"ansible ended with exit code 1: \[ERROR\]: no vault secrets found"):
        ad_hoc().run("m", {}, HOSTS, "kvm_hypervisors")


def test_an_ansible_that_does_not_end_is_ended_and_what_it_told_is_kept(
    ansible: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_ad_hoc, "_START_S", -50)
    monkeypatch.setattr(_ad_hoc, "_GRACE_S", 1)
    pid = tmp_path / "pid"
    ansible(
        f"{TELL_OF_HV1}\nimport pathlib, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"pathlib.Path({str(pid)!r}).write_text(str(os.getpid()))\ntime.sleep(600)"
    )
    deadline = time.monotonic() + 60
    told = AdHoc([], tmp_path, {}, timeout=30, forks=7).run("m", {}, HOSTS, "kvm_hypervisors")
    assert time.monotonic() < deadline
    assert told["hv1"] == {"domains": []}
    assert told["hv2"]["msg"].startswith("nothing was heard of it: ansible did not end within 10 s")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_it_has_no_terminal_to_ask_at(ansible: Any) -> None:
    ansible("import sys\nopen('/dev/tty')")
    with pytest.raises(AdHocFailed, match="No such device"):
        ad_hoc().run("m", {}, HOSTS, "kvm_hypervisors")
