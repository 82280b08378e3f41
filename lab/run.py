# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one place that runs commands."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from lab.errors import CommandFailed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike
    from pathlib import Path

# A command sees these of our environment and no more: the way out of a closed network.
PASSED_ON = (
    "http_proxy",
    "https_proxy",
    "ftp_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
)
EVIDENCE_LINES = 20


def clean_environment() -> dict[str, str]:
    """The environment of every command: fixed paths, no locale, no questions."""
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
        "DEBIAN_FRONTEND": "noninteractive",
        **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
    }


def run(
    argv: Sequence[str | PathLike[str]],
    *,
    stdin: str = "",
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    deadline_s: float = 600,
    accept: Sequence[int] = (0,),
    inherit: Sequence[int] = (),
) -> str:
    """Run a command and return what it wrote to stdout.

    `environment` adds to the clean one; `inherit` lists file descriptors that the command
    keeps open. Raises CommandFailed, with the command and the end of its stderr, when it
    cannot be started, outlives `deadline_s` or ends with a status outside `accept`.
    """
    words = [os.fspath(word) for word in argv]
    try:
        done = subprocess.run(
            words,
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            cwd=cwd,
            env={**clean_environment(), **(environment or {})},
            timeout=deadline_s,
            pass_fds=tuple(inherit),
            check=False,
        )
    except FileNotFoundError as error:
        raise CommandFailed(
            f"cannot run {words[0]}: {error}", "install what the lab needs: python -m lab packages"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(
            f"{' '.join(words)}: not done after {deadline_s:.0f} s",
            "look at the machine's load, then try again",
        ) from error
    if done.returncode not in accept:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-EVIDENCE_LINES:]
        raise CommandFailed(
            "\n    ".join([f"{' '.join(words)}: exit status {done.returncode}", *said]),
            "mend what the command complains about, then run the same again",
        )
    return done.stdout
