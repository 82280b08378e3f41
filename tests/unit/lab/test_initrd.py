# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab's own initrd."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from lab.errors import Unsupported
from lab.initrd import build, module_files, newc
from lab.tree import FILES

# As depmod writes it: what is needed, from the last to load to the first.
MODULES_DEP = """\
kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio_ring.ko:
kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/legacy.ko kernel/drivers/virtio/virtio.ko \
kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/legacy.ko:
kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/block/floppy.ko:
"""


def names(paths: list[str]) -> list[str]:
    return [Path(path).name.split(".")[0] for path in paths]


def test_each_module_comes_once_and_after_what_it_needs() -> None:
    files = module_files(MODULES_DEP)
    assert names(files) == ["virtio_ring", "virtio", "legacy", "virtio_pci", "virtio_blk"]


def test_a_kernel_that_has_all_built_in_needs_no_module() -> None:
    assert module_files("kernel/drivers/block/floppy.ko:\n") == []


def test_compressed_modules_are_known_by_the_same_names() -> None:
    assert module_files("kernel/virtio_blk.ko.xz:\n") == ["kernel/virtio_blk.ko.xz"]


def unpack(archive: bytes) -> dict[str, bytes]:
    """A cpio archive's entries, read by the format's own description."""
    found: dict[str, bytes] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        size, name_size = fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        at += (110 + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = archive[at : at + size]
        at += (size + 3) // 4 * 4


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5])
def test_an_archive_keeps_contents_of_any_length(size: int) -> None:
    assert unpack(newc(("dev",), {"init": b"x" * size, "b": b"y"})) == {"dev": b"", "init": b"x" * size, "b": b"y"}


def tree(top: Path, suffix: str, content: bytes) -> Path:
    modules = top / "usr/lib/modules/6.1.0"
    modules.mkdir(parents=True)
    (modules / f"virtio_blk.ko{suffix}").write_bytes(content)
    (modules / "modules.dep").write_text(f"virtio_blk.ko{suffix}:\n")
    (top / "bin").mkdir()
    (top / "bin/busybox").write_bytes(b"busybox")
    return top


@pytest.mark.parametrize(("suffix", "content"), [("", b"module"), (".xz", lzma.compress(b"module"))])
def test_modules_are_in_it_uncompressed_and_are_loaded(suffix: str, content: bytes, tmp_path: Path) -> None:
    inside = unpack(build(tree(tmp_path, suffix, content)))
    assert inside["lib/virtio_blk.ko"] == b"module"
    assert inside["bin/busybox"] == b"busybox"
    assert b"for module in /lib/virtio_blk.ko; do" in inside["init"]


def test_os_release_is_another_systems_only_where_the_kernel_was_told_so(tmp_path: Path) -> None:
    init = unpack(build(tree(tmp_path, "", b"module")))["init"].decode()
    linking = """
if [ -n "$lab_package_manager" ]; then
    $busybox ln -sf "/usr/lib/os-release.$lab_package_manager" /root/etc/os-release
"""
    assert linking in init
    assert {f"usr/lib/os-release.{name}" for name in ("dnf", "zypper")} <= set(FILES)


def test_an_unknown_compression_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"virtio_blk\.ko\.zst"):
        build(tree(tmp_path, ".zst", b"?"))
