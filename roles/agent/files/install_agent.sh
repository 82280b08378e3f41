#!/bin/sh
# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Installs and enables the guest agent in the system that it runs in, which is that of a guest's image, mounted while
# the guest is off. The package comes from the guest's own repositories: a network has to be there, or a repository in
# the image. Nothing is started here. A system that has the agent is left as it is.
set -e
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
if command -v qemu-ga >/dev/null; then
  echo 'the agent is installed'
elif command -v apt-get >/dev/null; then
  apt-get update
  apt-get install --yes --no-install-recommends qemu-guest-agent
elif command -v dnf >/dev/null; then
  dnf --assumeyes install qemu-guest-agent
elif command -v yum >/dev/null; then
  yum --assumeyes install qemu-guest-agent
elif command -v zypper >/dev/null; then
  zypper --non-interactive install qemu-guest-agent
else
  echo 'the guest has none of apt-get, dnf, yum and zypper' >&2
  exit 1
fi
# There may be no unit of its own, as in SUSE, where udev starts one of a template; that, and one of Debian's, need not be
# enabled. systemctl tells it from the files: there is no init system here that could be asked.
if command -v systemctl >/dev/null; then
  case $(systemctl is-enabled qemu-guest-agent.service 2>/dev/null) in
    disabled) systemctl enable qemu-guest-agent.service ;;
    masked*)
      echo 'qemu-guest-agent.service is masked: somebody wants the agent off' >&2
      exit 1
      ;;
  esac
fi
