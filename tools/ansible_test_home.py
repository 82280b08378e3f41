# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Prepares a home directory in which ansible-test can build its virtual environments from a package index alone.

Usage: python ansible_test_home.py HOME

Two habits of ansible-test need this where only package registries are reachable:

- It downloads get-pip.py from a server of its own, unless its cache below the home directory has a copy.
- It runs pip without the PIP_* and proxy variables of its caller.

So HOME gets a stand-in for get-pip.py and a pip.conf with the settings that pip has here, wherever they come from.
It is a directory of the project, so the caches of the user's own ansible-test are left alone.
"""

from __future__ import annotations

import ast
import configparser
import os
import shutil
import subprocess
import sys
from pathlib import Path

from ansible_test._internal.host_configs import VirtualPythonConfig
from ansible_test._internal.python_requirements import get_venv_packages


def pip_settings() -> configparser.RawConfigParser:
    """Return pip's settings in effect, from its files and its environment, as one file's content."""
    settings = configparser.RawConfigParser()
    settings["global"] = {"quiet": "1"}
    if proxy := os.environ.get("https_proxy", os.environ.get("HTTPS_PROXY")):
        settings["global"]["proxy"] = proxy
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    for line in listing.splitlines():
        name, value = line.split("=", maxsplit=1)
        section, key = name.rsplit(".", maxsplit=1)
        section = "global" if section == ":env:" else section
        if not settings.has_section(section):
            settings.add_section(section)
        settings[section][key] = ast.literal_eval(value)
    return settings


def main() -> None:
    """Write both files below the directory named on the command line."""
    home = Path(sys.argv[1])

    python = VirtualPythonConfig(version="{}.{}".format(*sys.version_info), path=sys.executable)
    pip_version = get_venv_packages(python)["pip"]
    get_pip = home / f".ansible/test/cache/get_pip_{pip_version.replace('.', '_')}.py"
    get_pip.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(__file__).with_name("get_pip.py"), get_pip)

    pip_conf = home / ".config/pip/pip.conf"
    pip_conf.parent.mkdir(parents=True, exist_ok=True)
    with pip_conf.open("w") as file:
        pip_settings().write(file)


if __name__ == "__main__":
    main()
