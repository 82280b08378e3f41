# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether KVM really boots a guest on this machine: opening /dev/kvm does not prove it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from lab.errors import CommandFailed
from lab.image import Image
from lab.places import INSTALLED_EMULATOR, STATE
from lab.progress import say
from lab.run import run

KVM = Path("/dev/kvm")
VERDICT = STATE / "accelerator.json"
BOOTS_WITHIN_S = 15
# The user that Debian's and Ubuntu's libvirt runs QEMU as.
AS_QEMU_USER = ("setpriv", "--reuid=libvirt-qemu", "--regid=kvm", "--init-groups")
NOTHING = ("-nodefaults", "-no-user-config")
# Without a root file system a kernel that boots at all ends in this panic.
PROOF = "Unable to mount root fs"


def choose(image: Image) -> str:
    """`kvm` where a guest boots with it, else `qemu`. Probed once per boot of the machine."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    asked = {"boot": boot, "image": image.directory.name, "device": KVM.exists()}
    try:
        known = json.loads(VERDICT.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = {}
    if known.get("asked") == asked:
        return str(known["verdict"])
    verdict = "kvm" if KVM.exists() and may_open_kvm() and _boots(image) else "qemu"
    say("KVM boots a guest" if verdict == "kvm" else "KVM boots no guest here: emulating")
    STATE.mkdir(mode=0o755, parents=True, exist_ok=True)
    # Others may read it at this moment.
    new = VERDICT.with_name(f"{VERDICT.name}.{os.getpid()}")
    new.write_text(json.dumps({"asked": asked, "verdict": verdict}), encoding="utf-8")
    new.rename(VERDICT)
    return verdict


def may_open_kvm() -> bool:
    """Whether the user that libvirt runs QEMU as may open /dev/kvm."""
    try:
        run([*AS_QEMU_USER, "test", "-r", KVM, "-a", "-w", KVM])
    except CommandFailed:
        return False
    return True


def is_useless() -> bool:
    """Whether there is a /dev/kvm that QEMU may not open.

    libvirt probes QEMU with the right to open any file, so it finds KVM, then sees that its QEMU user cannot open
    /dev/kvm, and so throws the result away and probes again: forty times, and a minute, for each guest that it defines.
    """
    return KVM.exists() and not may_open_kvm()


def _boots(image: Image) -> bool:
    machine = ["-machine", "pc", "-accel", "kvm", "-cpu", "host", "-m", "256", "-no-reboot"]
    console = ["-display", "none", "-serial", "stdio", "-monitor", "none", "-nic", "none"]
    kernel: list[str | Path] = ["-kernel", image.kernel, "-append", "console=ttyS0 panic=-1"]
    try:
        said = run(
            [*AS_QEMU_USER, INSTALLED_EMULATOR, *NOTHING, *machine, *console, *kernel],
            deadline_s=BOOTS_WITHIN_S,
        )
    except CommandFailed:
        return False
    return PROOF in said
