# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What all package managers that install RPMs share: rpm's database, and what rpm does with configuration files."""

from __future__ import annotations

from collections.abc import Iterable

from ansible_collections.kvm.fleet.plugins.module_utils._packages import Installed, installed

RPM_LOCKS = ("/var/lib/rpm/.rpm.lock", "/usr/lib/sysimage/rpm/.rpm.lock")
"""The lock of rpm's own transactions, which is where its database is. On SUSE the first leads to the second."""

RECORDS = "rpm -qa --qf '%{NAME}\\t%{ARCH}\\t%{EVR}\\n'"
"""Shell text that prints the package database."""

CERTIFICATE = (
    r"SSL.*\bcertificate\b|SSL CA cert|[Cc]ertificate (?:problem|verif|has expired|is not )"
    r"|setting certificate (?:file|verif)"
)
"""What is said of a server's certificate, as a regular expression; a package may be called ca-certificates."""

PREPARE = """\
[ -e since ] || : >since || exit 1
"""
"""Part of a job's ``prepare``, for REPLACE_CONFFILES: the time after which configuration files are of this upgrade."""

# rpm puts a configuration file that its owner has changed beside the new one, and has no option for the reverse. The
# original is copied rather than moved, so that there is a file at every moment.
REPLACE_CONFFILES = """\
if [ "$KVM_FLEET_CONFFILES" = replace ]; then
  find /etc -xdev -type f -name '*.rpmnew' -cnewer since -exec /bin/sh -c '
    for new; do
      file=${new%.rpmnew}
      cp -a --backup=numbered -- "$file" "$file.rpmsave" && mv -f -- "$new" "$file" || exit 1
    done' sh '{}' + || [ "$code" -ne 0 ] || code=1
fi
"""
"""Part of a job's ``finish``, which follows the package's side where KVM_FLEET_CONFFILES says so."""


def parse_records(lines: Iterable[str]) -> Installed:
    """Read what RECORDS prints. The keys that rpm trusts are no packages; an epoch of 0 is as good as none."""
    fields = [line.split("\t") for line in lines]
    return installed((one[0], one[1], one[2].removeprefix("0:")) for one in fields if _is_package(one))


def _is_package(fields: list[str]) -> bool:
    return len(fields) == 3 and all(fields) and fields[0] != "gpg-pubkey"
