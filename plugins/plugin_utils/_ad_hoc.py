# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs a module on hosts by a command of Ansible's own, as a user could from a terminal."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

RESULTS = "KVM_FLEET_RESULTS"
"""The variable of the environment that tells the callback where results go."""

GROUP = "kvm_fleet_ad_hoc"

_GRACE_S = 10
_START_S = 60
_LONGEST_CAUSE = 2000

# Ansible's options, by the names that it keeps their values under. A prompt has nobody to answer it.
_OPTIONS = {
    "remote_user": "--user",
    "private_key_file": "--private-key",
    "connection": "--connection",
    "timeout": "--timeout",
    "ssh_common_args": "--ssh-common-args",
    "ssh_extra_args": "--ssh-extra-args",
    "become_method": "--become-method",
    "become_user": "--become-user",
    "become_password_file": "--become-password-file",
    "connection_password_file": "--connection-password-file",
}
_REPEATED_OPTIONS = {
    "extra_vars": "--extra-vars",
    "vault_password_files": "--vault-password-file",
    "vault_ids": "--vault-id",
}


class AdHocFailed(Exception):
    """Ansible's command has told of no host at all; the message has its words."""


@dataclass(frozen=True)
class AdHoc:
    """How to reach hosts.

    ``sources`` are inventories, ``directory`` has variables beside it, ``options`` are those that Ansible was started
    with. Each host has ``timeout`` seconds for a module, and so many ``forks`` are looked at together.
    """

    sources: Sequence[str]
    directory: Path
    options: Mapping[str, Any]
    timeout: int
    forks: int
    environment: Mapping[str, str] = field(default_factory=dict)

    def words(self, module: str, arguments: Mapping[str, Any], hosts: Path) -> list[str]:
        """The command line. ``hosts`` is an inventory of those to run the module on, in the group GROUP."""
        inventories = [f"--inventory={source}" for source in [*dict.fromkeys(self.sources), str(hosts)]]
        return [
            *(sys.executable, "-m", "ansible", "adhoc", GROUP, *inventories),
            *(f"--playbook-dir={self.directory}", f"--forks={self.forks}", f"--task-timeout={self.timeout}"),
            *passed_on(self.options),
            *(f"--module-name={module}", f"--args={json.dumps(arguments)}"),
        ]

    def run(
        self, module: str, arguments: Mapping[str, Any], hosts: Mapping[str, Mapping[str, Any]], group: str
    ) -> dict[str, dict[str, Any]]:
        """What the module returned on each host. Raises AdHocFailed.

        ``hosts`` are members of ``group``, by variables of their own. A host that nothing was heard of has a result
        with the reason as its ``msg``.
        """
        with tempfile.TemporaryDirectory(prefix="kvm-fleet-") as made:
            inventory, results, said = Path(made, "hosts.yml"), Path(made, "results"), Path(made, "said")
            members = {"hosts": {name: dict(variables) for name, variables in hosts.items()}}
            inventory.write_text(json.dumps({group: members, GROUP: {"hosts": dict.fromkeys(hosts)}}), encoding="utf-8")
            results.touch()
            # An empty path would be the working directory.
            nowhere = {"ANSIBLE_CALLBACK_PLUGINS": str(Path(made, "callbacks"))}
            environment = {**os.environ, **_QUIET, **nowhere, **self.environment, RESULTS: str(results)}
            # A file, since what Ansible leaves running, such as ssh's shared connection, would keep a pipe open.
            with (
                said.open("wb") as output,
                _child(self.words(module, arguments, inventory), environment, output) as child,
            ):
                cause = _wait(child, _START_S + self.timeout * 2 * math.ceil(len(hosts) / self.forks))
            told = dict(read_results(results.read_text(encoding="utf-8")))
            last_words = said.read_text(encoding="utf-8", errors="replace").strip()[-_LONGEST_CAUSE:]
        why = f"{cause}: {last_words or 'it said nothing'}"
        if not told:
            raise AdHocFailed(why)
        missing = {"msg": f"nothing was heard of it: {why}"}
        return {name: told.get(name, missing) for name in hosts}


def passed_on(options: Mapping[str, Any]) -> list[str]:
    """The options of the command line that Ansible was started with, as far as they say how to reach hosts."""
    words = [f"{word}={options[name]}" for name, word in _OPTIONS.items() if options.get(name)]
    words += ["--become"] if options.get("become") else []
    return words + [
        f"{word}={value}"
        for name, word in _REPEATED_OPTIONS.items()
        for value in options.get(name) or []
        if name != "vault_ids" or not str(value).rpartition("@")[2].startswith("prompt")
    ]


def read_results(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Hosts and their results, a line each."""
    for line in text.splitlines():
        told = json.loads(line)
        yield told["host"], told["result"]


# What the user's own callbacks record or show is the run that was asked for, not what an inventory does beside it.
_QUIET = {
    "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1",
    "ANSIBLE_STDOUT_CALLBACK": "kvm.fleet.results",
    "ANSIBLE_CALLBACKS_ENABLED": "kvm.fleet.results",  # and no others; an empty one is taken for a name
    "ANSIBLE_NOCOLOR": "1",
    "ANSIBLE_FORCE_COLOR": "0",
}


@contextmanager
def _child(
    words: Sequence[str], environment: Mapping[str, str], output: IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process without a terminal, so that nothing in it waits for an answer. It does not outlive the context."""
    child = subprocess.Popen(
        words,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield child
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if child.poll() is None:
                os.killpg(child.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    child.wait(_GRACE_S)


def _wait(child: subprocess.Popen[bytes], seconds: float) -> str:
    """How the process ended, or that it has not."""
    try:
        code = child.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"ansible did not end within {seconds:g} s"
    return f"ansible ended with exit code {code}"
