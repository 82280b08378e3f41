# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The files of a running guest through commands that its agent runs, and the agent's own restart by one of them."""

from __future__ import annotations

from collections.abc import Sequence

from ansible_collections.kvm.fleet.plugins.module_utils._agent import GuestAgent
from ansible_collections.kvm.fleet.plugins.module_utils._exec import Command, output_of, raw_output_of
from ansible_collections.kvm.fleet.plugins.module_utils._guest_files import MAX_FILE

TIMEOUT = 60
"""Seconds that each of these commands may take."""

_READ = """\
if [ -e "$1" ]; then echo there; cat -- "$1"; else echo gone; fi
"""

# All at once, since each command takes a process of its own and a few messages: a directory's names, and a file's
# content with its length before it. What is neither is passed over.
_FETCH = """\
for path; do
  if [ -d "$path" ]; then
    printf 'directory\\0%s\\0' "$path"
    cd -- "$path" || exit
    for name in * .[!.]* ..?*; do
      if [ -e "$name" ] || [ -L "$name" ]; then printf '%s\\0' "$name"; fi
    done
    printf '\\0'
  elif [ -e "$path" ]; then
    size=$(wc -c <"$path") || exit
    printf 'file\\0%s\\0%d\\0' "$path" "$size"
    head -c "$size" -- "$path" || exit
  fi
done
"""

_NAMES = """\
cd -- "$1" 2>/dev/null || exit 0
for name in * .[!.]* ..?*; do
  if [ -e "$name" ] || [ -L "$name" ]; then printf '%s\\0' "$name"; fi
done
"""

# The new content goes into a file beside the old one, which it then replaces in one step, with that one's owner, mode
# and SELinux label, or those of the file that it is to be like. A link is followed, or it would be replaced by a file.
# Where SELinux is off, no label can be set.
_WRITE = """\
set -e
umask 022
target=$1
if [ -L "$target" ]; then target=$(readlink -f -- "$target"); fi
like=${2:-$target}
mkdir -p -- "${target%/*}"
new=$(mktemp "$target.XXXXXXXX")
trap 'rm -f -- "$new"' EXIT
if [ -e "$like" ]; then
  cp -p -- "$like" "$new"
  if [ -d /sys/fs/selinux/booleans ]; then chcon --reference="$like" -- "$new"; fi
else
  chmod 0644 "$new"
fi
cat >"$new"
sync "$new" 2>/dev/null || sync
mv -f -- "$new" "$target"
trap - EXIT
"""

_REMOVE = 'rm -f -- "$1"\n'

# What runs it is not the agent's child, which the agent's own restart would end. It then sees that the agent came up,
# since nobody else could: otherwise it puts back the files that it was given (target and copy in turn, an empty copy
# for a file that was not there) and starts the agent again. systemd has to forget how often it has failed by then, or
# it would not. What is not active is not the unit that has started the agent.
_RESTART = """\
unit=$1; shift
sleep 1
restart() {
  if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemctl reset-failed "$unit"
    systemctl restart "$unit"
  else
    /etc/init.d/qemu-guest-agent restart
  fi
}
is_up() {
  if [ -d /run/systemd/system ]; then
    systemctl is-active --quiet "$unit"
  else
    /etc/init.d/qemu-guest-agent status
  fi
}
is_up || exit
restart
sleep 3
is_up && exit 0
while [ $# -gt 0 ]; do
  if [ -n "$2" ]; then cat -- "$2" >"$1"; else rm -f -- "$1"; fi
  shift 2
done
restart
"""

# systemd before 236 has no --collect, by which a unit that failed is forgotten.
_LAUNCH = """\
script=$1; shift
if [ -d /run/systemd/system ]; then
  set -- --quiet --on-active=100ms --timer-property=AccuracySec=10ms /bin/sh -c "$script" sh "$@"
  systemd-run --collect "$@" 2>/dev/null || systemd-run "$@"
else
  setsid /bin/sh -c "$script" sh "$@" </dev/null >/dev/null 2>&1 &
fi
"""

# SELinux of the RHEL family lets the agent start neither of these.
_PROBE = """\
if [ -d /run/systemd/system ]; then systemd-run --version; else setsid true; fi
"""


class ExecFiles:
    """The port RootFiles, for a guest whose agent allows guest-exec."""

    def __init__(self, agent: GuestAgent) -> None:
        self._agent = agent
        self._contents: dict[str, bytes | None] = {}
        self._listings: dict[str, Sequence[str]] = {}

    def fetch(self, paths: Sequence[str], directories: Sequence[str]) -> None:
        """Read these files and list these directories at once, for whoever asks for them next."""
        told = raw_output_of(self._agent, _command(_FETCH, *paths, *directories, most=MAX_FILE))
        self._contents.update(dict.fromkeys(paths))
        self._listings.update(dict.fromkeys(directories, ()))
        while told:
            kind, path, rest = told.split(b"\0", 2)
            name = path.decode("utf-8", "surrogateescape")
            if kind == b"file":
                size, _nul, rest = rest.partition(b"\0")
                self._contents[name], told = rest[: int(size)], rest[int(size) :]
            else:
                names, _nul, told = (b"\0" + rest).partition(b"\0\0")
                self._listings[name] = _listed(names)

    def read(self, path: str) -> bytes | None:
        if path in self._contents:
            return self._contents[path]
        told = raw_output_of(self._agent, _command(_READ, path, most=MAX_FILE + len("there\n")))
        state, _newline, content = told.partition(b"\n")
        return content if state == b"there" else None

    def write(self, path: str, content: bytes, *, like: str | None = None) -> None:
        self._contents.pop(path, None)
        raw_output_of(self._agent, _command(_WRITE, path, like or "", stdin=content))

    def names(self, directory: str) -> Sequence[str] | None:
        if directory in self._listings:
            return self._listings[directory]
        return _listed(raw_output_of(self._agent, _command(_NAMES, directory)))

    def remove(self, path: str) -> None:
        self._contents.pop(path, None)
        raw_output_of(self._agent, _command(_REMOVE, path))

    def probe(self) -> None:
        """Raise CommandFailed where the agent could not be restarted from here."""
        output_of(self._agent, _command(_PROBE))

    def restart_agent(self, unit: str, undo: Sequence[tuple[str, str]]) -> None:
        """Have the agent restarted in a second. ``undo`` are files with their copies, for an agent that then fails."""
        pairs = [text for pair in undo for text in pair]
        output_of(self._agent, _command(_LAUNCH, _RESTART, unit, *pairs))


def _listed(names: bytes) -> Sequence[str]:
    return sorted(name.decode("utf-8", "surrogateescape") for name in names.split(b"\0") if name)


def _command(script: str, *arguments: str, stdin: bytes | None = None, most: int = 1024 * 1024) -> Command:
    return Command(("/bin/sh", "-c", script, "sh", *arguments), stdin=stdin, timeout=TIMEOUT, max_output=most)
