# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guests' file tree: what is installed into it and how it is set up to boot fast."""

from __future__ import annotations

import shlex
import shutil
from typing import TYPE_CHECKING

from lab import packages, rpms
from lab.initrd import OS_RELEASE
from lab.run import run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lab.host import Distribution
    from lab.mirrors import Archive

KERNELS = {"debian": "linux-image-cloud-amd64", "ubuntu": "linux-image-virtual"}
INCLUDED = (
    "busybox-static",
    "dbus",
    "dnf",
    "init",
    "openssh-server",
    "python3-apt",
    "python3-dateutil",
    "qemu-guest-agent",
    "rpm",
    "systemd",
    "systemd-sysv",
    "udev",
    "zypper",
)
# The plugins of dnf say that they break zypper, with which they share no file: they are unpacked beside dpkg.
DOWNLOADED = ("dnf-plugins-core", "qemu-guest-agent")

# Units that cost time at each boot or, worse, take dpkg's lock in the middle of a test.
MASKED_UNITS = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "kmod-static-nodes.service",
    "modprobe@.service",
    "motd-news.timer",
    "proc-sys-fs-binfmt_misc.automount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "sys-kernel-config.mount",
    "systemd-journal-flush.service",
    "systemd-modules-load.service",
    "systemd-networkd.service",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-sysctl.service",
    "systemd-sysusers.service",
    "systemd-timesyncd.service",
    "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-user-sessions.service",
)

# What looks at each boot for things that no guest of the lab has.
GENERATORS = "usr/lib/systemd/system-generators"
WANTED_GENERATORS = ("systemd-debug-generator", "systemd-getty-generator", "systemd-sysv-generator")

# Whoever can open the console of a lab guest is root on its host: no password to guard.
AUTOLOGIN = """\
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200 %I $TERM
"""

# The initrd has loaded all drivers, so only what a unit waits for has to be known to udev.
COLDPLUG = """\
[Service]
ExecStart=
ExecStart=/bin/udevadm trigger --action=add --subsystem-match=block --subsystem-match=input
ExecStart=/bin/udevadm trigger --action=add --subsystem-match=virtio-ports
ExecStart=/bin/udevadm trigger --action=add --subsystem-match=tty --sysname-match=ttyS0
"""

# What udev would load for devices that a guest of the lab has no use for.
UNUSED_MODULES = ("ata_generic", "ata_piix", "i2c_piix4", "kvm_amd", "kvm_intel", "powernow_k8", "serio_raw")

FEDORA = """\
NAME="Fedora Linux"
VERSION="40 (lab)"
ID=fedora
VERSION_ID=40
PRETTY_NAME="Fedora Linux 40 (lab)"
"""
OPENSUSE = """\
NAME="openSUSE Leap"
VERSION="15.6"
ID="opensuse-leap"
ID_LIKE="suse opensuse"
VERSION_ID="15.6"
PRETTY_NAME="openSUSE Leap 15.6"
"""

# For a guest that is reached by SSH: the kernel's command line asks for it.
SSH_UNIT = "lab-ssh.service"
SSH_SERVICE = """\
[Unit]
Description=The lab's way in from its host

[Service]
RuntimeDirectory=sshd
ExecStartPre=/sbin/modprobe virtio_net
ExecStartPre=/bin/busybox ip address add 10.0.2.15/24 dev eth0
ExecStartPre=/bin/busybox ip link set eth0 up
ExecStart=/usr/sbin/sshd -D
"""

FILES = {
    f"etc/systemd/system/{SSH_UNIT}": SSH_SERVICE,
    "etc/default/locale": "LANG=C.UTF-8\n",
    "etc/hostname": "lab\n",
    "etc/hosts": "127.0.0.1 localhost lab\n::1 localhost\n",
    # Empty, not absent: each guest gets an id of its own, and none has a 'first boot'.
    "etc/machine-id": "",
    "etc/modprobe.d/lab.conf": "".join(f"blacklist {module}\n" for module in UNUSED_MODULES),
    f"{OS_RELEASE.lstrip('/')}.dnf": FEDORA,
    f"{OS_RELEASE.lstrip('/')}.zypper": OPENSUSE,
    "etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf": AUTOLOGIN,
    "etc/systemd/system/systemd-udev-trigger.service.d/lab.conf": COLDPLUG,
    "etc/apt/sources.list.d/lab.list": (
        "deb [trusted=yes] file:/srv/lab/main ./\ndeb [trusted=yes] file:/srv/lab/security ./\n"
    ),
    packages.NEWER_AGENT.lstrip("/"): packages.NEWER_AGENT_IS_AT,
}

LEFT_BY_MMDEBSTRAP = (
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/apt/sources.list",
    "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    "etc/resolv.conf",
)


def bootstrap(tree: Path, downloads: Path, archive: Archive, *, inherit: Sequence[int]) -> None:
    """Install the distribution into `tree`, and fetch packages that are not for dpkg into `downloads`."""
    # In a file: an option may hold a proxy's password, and command lines are seen and reported.
    options = downloads / "apt.conf"
    options.touch(mode=0o600)
    options.write_text("".join(f"{option};\n" for option in (*archive.apt_options, "Acquire::Languages none")), "utf-8")
    included = (*INCLUDED, KERNELS[archive.distribution.id])
    download = f'APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get download {" ".join(DOWNLOADED)}'
    run(
        [
            # A view of its own: what a killed mmdebstrap has mounted is gone with its last process.
            *("unshare", "--mount", "--propagation=private"),
            "mmdebstrap",
            "--mode=root",
            "--variant=minbase",
            "--format=directory",
            f"--include={','.join(included)}",
            f"--aptopt={options}",
            *(f"--dpkgopt=path-exclude=/usr/share/{what}/*" for what in ("doc", "locale", "man")),
            f"--customize-hook=cd {shlex.quote(str(downloads))} && {download}",
            archive.distribution.codename,
            tree,
            "-",
        ],
        stdin="\n".join(archive.sources),
        # The lab makes its own initrd; the kernel's package would spend seconds on another.
        environment={"INITRD": "No"},
        deadline_s=1800,
        inherit=inherit,
    )


def publish_repositories(tree: Path, agent: Path, scratch: Path, distribution: Distribution) -> None:
    """Put the repositories with the newer packages into the tree."""
    main, security, agents = (tree / "srv/lab" / name for name in ("main", "security", "agent"))
    for directory in (main, security, agents):
        directory.mkdir(parents=True)
    for deb in packages.MAIN:
        packages.build(deb, main, scratch)
    for deb in packages.SECURITY:
        packages.build(deb, security, scratch)
    packages.repack(agent, agents, scratch)
    for directory in (main, agents):
        packages.index(directory, packages.release_fields(distribution, security=False))
    packages.index(security, packages.release_fields(distribution, security=True))


def install_old_packages(tree: Path, scratch: Path) -> None:
    """Install the older packages in the tree, with one configuration file edited."""
    inside = tree / "srv/lab/installed"
    inside.mkdir()
    for deb in packages.INSTALLED:
        packages.build(deb, inside, scratch)
    debs = [f"/srv/lab/installed/{deb.name}_{deb.version}_all.deb" for deb in packages.INSTALLED]
    run(["chroot", tree, "dpkg", "--install", *debs])
    run(["chroot", tree, "apt-mark", "auto", *packages.AUTOMATICALLY_INSTALLED])
    shutil.rmtree(inside)
    _write(tree, packages.LOCALLY_EDITED)


def provide_dnf_plugins(tree: Path, downloads: Path) -> None:
    """Unpack dnf's plugins, compiled as dpkg leaves them: dnf then has no reason to write into /usr."""
    (plugins,) = downloads.glob("dnf-plugins-core_*.deb")
    run(["dpkg-deb", "--extract", plugins, tree])
    run(["chroot", tree, "python3", "-m", "compileall", "-q", "/usr/lib/python3/dist-packages/dnf-plugins"])


def publish_rpms(tree: Path, scratch: Path) -> None:
    """Put the repository with the newer RPMs into the tree, and have dnf and zypper know it."""
    repository = tree / "srv/lab/rpm"
    repository.mkdir()
    for rpm in rpms.REPOSITORY:
        rpms.build(rpm, repository, scratch)
    rpms.index(repository, scratch)
    _write(tree, rpms.FILES)
    for path, target in rpms.LINKS.items():
        (tree / path).symlink_to(target)


def install_old_rpms(tree: Path, scratch: Path) -> None:
    """Install the older RPMs in the tree, with one configuration file edited."""
    inside = tree / "srv/lab/installed"
    inside.mkdir()
    for rpm in rpms.INSTALLED:
        rpms.build(rpm, inside, scratch)
    files = [f"/srv/lab/installed/{rpm.file_name}" for rpm in rpms.INSTALLED]
    run(["chroot", tree, "rpm", "--install", "--force-debian", *files])
    run(["chroot", tree, "dnf", "--quiet", "--assumeyes", "mark", "remove", *rpms.AUTOMATICALLY_INSTALLED])
    shutil.rmtree(inside)
    _write(tree, rpms.LOCALLY_EDITED)


def settle(tree: Path) -> None:
    """Cut the tree off from the network's sources, and have it boot fast and log in by itself."""
    shutil.rmtree(tree / "var/lib/apt/lists")
    (tree / "var/lib/apt/lists/partial").mkdir(parents=True)
    for leftover in LEFT_BY_MMDEBSTRAP:
        (tree / leftover).unlink(missing_ok=True)
    _write(tree, FILES)
    run(["systemctl", f"--root={tree}", "mask", *MASKED_UNITS])
    masked = tree / "etc/systemd/system-generators"
    masked.mkdir()
    for generator in (tree / GENERATORS).iterdir():
        if generator.name not in WANTED_GENERATORS:
            (masked / generator.name).symlink_to("/dev/null")
    run(["systemctl", f"--root={tree}", "disable", "ssh.service", "ssh.socket"])
    run(["chroot", tree, "passwd", "--delete", "root"])


def _write(tree: Path, files: Mapping[str, str]) -> None:
    for path, text in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text, encoding="utf-8")
