# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images of disks that remember what was written to them: small files, renamed and removed as real ones are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible_collections.kvm.fleet.plugins.module_utils._domain import Image, LayerUse
from ansible_collections.kvm.fleet.plugins.module_utils._errors import DiskImageFailed

SIZE = 2 << 30
WRITE = 1 << 20
"""Bytes that each write takes up."""


def failed(words: str) -> DiskImageFailed:
    return DiskImageFailed(words, remedy="See what qemu-img says.")


class FakeImages:
    """qemu-img. ``faults`` has, by the method's name, the error that its next call raises.

    A QEMU has the files that are ``open``, and libvirt does not know of that. It is ``there``, or not installed.
    """

    def __init__(self) -> None:
        self.open: set[str] = set()
        self.there = True
        self.faults: dict[str, DiskImageFailed] = {}

    def installed(self) -> bool:
        return self.there

    def chain(self, file: str, image_format: str) -> tuple[Image, ...]:
        self._fault("chain")
        found, at, of = [], file, image_format
        while True:
            content = self.load(at)
            size = len(content["writes"]) * WRITE
            found.append(Image(at, of, content["size"], size, tuple(content["snapshots"])))
            if not content["below"]:
                return tuple(found)
            at, of = content["below"]

    def use_of(self, file: str) -> LayerUse:
        self._fault("use_of")
        if self.is_open(file):
            return LayerUse.OPEN
        if not Path(file).read_text("utf-8"):
            return LayerUse.BROKEN
        return LayerUse.WRITTEN if self.load(file)["writes"] else LayerUse.EMPTY

    def is_open(self, file: str) -> bool:
        return file in self.open

    def create_layer(self, file: str, over: Image) -> None:
        self._fault("create_layer")
        self.put_layer(file, over.file, over.format)

    def commit(self, layer: str, base: Image) -> None:
        self._fault("commit")
        below = self.load(base.file)
        below["writes"] += self.load(layer)["writes"]
        self._store(base.file, below)

    def rebase(self, layer: str, onto: Image) -> None:
        self._fault("rebase")
        self._store(layer, {**self.load(layer), "below": [onto.file, onto.format]})

    def put_layer(self, file: str, below: str, below_format: str) -> None:
        self._store(file, {"below": [below, below_format], "size": SIZE, "writes": [], "snapshots": []})

    def write(self, file: str, text: str) -> None:
        content = self.load(file)
        self._store(file, {**content, "writes": [*content["writes"], text]})

    def put_snapshot(self, file: str, name: str) -> None:
        content = self.load(file)
        self._store(file, {**content, "snapshots": [*content["snapshots"], name]})

    def read(self, file: str) -> list[str]:
        """All that was written, in that order."""
        content = self.load(file)
        return (self.read(content["below"][0]) if content["below"] else []) + list(content["writes"])

    def load(self, file: str) -> dict[str, Any]:
        try:
            text = Path(file).read_text("utf-8")
        except FileNotFoundError as error:
            raise failed(f"Could not open '{file}': No such file or directory") from error
        # A disk that nobody has written to is a file that is empty.
        found: dict[str, Any] = json.loads(
            text or json.dumps({"below": None, "size": SIZE, "writes": [], "snapshots": []})
        )
        return found

    def _store(self, file: str, content: dict[str, Any]) -> None:
        Path(file).write_text(json.dumps(content), encoding="utf-8")

    def _fault(self, method: str) -> None:
        if method in self.faults:
            raise self.faults.pop(method)
