#!/bin/sh
# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Installs the runner in the system that it runs in, which is that of a guest's image, mounted while the guest is off or
# copied while it runs. Expects these shell variables: path, content, type and boolean, and config, the file that says
# whether SELinux is on.
#
# The kernel has no SELinux policy here. semanage works on the guest's store all the same, and with -N does not load
# what it has built. It takes the rule and the boolean together or not at all, and comes last; what was done before is
# undone where it fails. So a failure leaves the guest as it was.
# shellcheck disable=SC2154
set -e
export LC_ALL=C

refuse() {
  echo "$1" >&2
  exit 1
}

SELINUX=disabled
# shellcheck source=/dev/null
[ ! -e "$config" ] || . "$config"
if [ "$SELINUX" = disabled ]; then
  echo 'SELinux is off'
  exit 0
fi

# Asked with commands of their own, since a pipe would hide that they have failed.
command -v semanage >/dev/null ||
  refuse 'the guest has no semanage: install policycoreutils-python-utils there (RHEL 7: policycoreutils-python)'
booleans=$(semanage boolean --list --noheading)
value=$(printf '%s\n' "$booleans" | grep "^${boolean}[[:space:]]") ||
  refuse "the guest's SELinux policy has no boolean $boolean: upgrade selinux-policy in the guest first"
rules=$(semanage fcontext --list --locallist --noheading)
rule=$(printf '%s\n' "$rules" | grep "^${path}[[:space:]]") || true

orders=
case $rule in
  *":$type:"*) ;;
  '') orders="fcontext -a -f a -t $type '$path'" ;;
  *) orders="fcontext -m -f a -t $type '$path'" ;;
esac
case $value in
  *'(on '*' on)'*) ;;
  *) orders="$orders
boolean -m -1 $boolean" ;;
esac

label="system_u:object_r:$type:s0"
is_there() {
  [ -f "$path" ] && [ "$(cat "$path")" = "$content" ] && [ "$(stat -c '%u %g %a %C' "$path")" = "0 0 755 $label" ]
}
if is_there && [ -z "$orders" ]; then
  echo 'the runner is there'
  exit 0
fi

directory=${path%/*}
new=$path.kvm-fleet-new
old=$path.kvm-fleet-old
made_directory=
undo() {
  status=$?
  [ "$status" = 0 ] && return
  rm -f "$new"
  if [ -e "$old" ]; then mv "$old" "$path"; elif [ -n "$installed" ]; then rm -f "$path"; fi
  [ -z "$made_directory" ] || rmdir "$directory" || true
  exit "$status"
}
installed=
rm -f "$new" "$old"
trap undo EXIT

if [ ! -d "$directory" ]; then
  mkdir -m 0755 "$directory"
  made_directory=yes
  # What is made here has no label, and the agent might not pass through it. All below /usr/libexec has this one.
  chcon system_u:object_r:bin_t:s0 "$directory"
fi
if ! is_there; then
  printf '%s\n' "$content" >"$new"
  chown 0:0 "$new"
  chmod 0755 "$new"
  chcon "$label" "$new"
  [ ! -e "$path" ] || cp -a "$path" "$old"
  installed=yes
  mv "$new" "$path"
fi
if [ -n "$orders" ]; then
  said=$(printf '%s\n' "$orders" | semanage import -N 2>&1) ||
    refuse "the guest's SELinux policy does not take $type and $boolean: $(printf '%s\n' "$said" | tail -n 1)"
fi
rm -f "$old"
echo 'the runner was installed'
