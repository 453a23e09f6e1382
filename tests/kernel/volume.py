"""Kubernetes volumes as kubelet's atomic writer makes them (pkg/volume/util/atomic_writer.go)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

DATA: Final = "..data"
NEW_DATA: Final = "..data_tmp"


class Volume:
    """A ConfigMap, Secret or projected volume: ``KEY -> ..data/KEY``, and ``..data`` a link to a directory of its own.

    The steps of an update, in kubelet's order: a directory with a timestamp for its name, the files in it, a link to it
    called ``..data_tmp``, its rename to ``..data``, links for keys that are new, the links of keys that went, the old
    directory.
    """

    def __init__(self, folder: Path) -> None:
        """``folder`` is made when it is not there; it stays empty until the first update."""
        self._folder = folder
        self._updates = 0
        folder.mkdir(exist_ok=True)

    def update(self, payload: Mapping[str, bytes]) -> None:
        """Let the volume hold ``payload``: contents by key, which may be a path of several names."""
        self._updates += 1
        name = f"..2026_11_22_00_00_{self._updates % 60:02}.{100_000_000 + self._updates}"
        (self._folder / name).mkdir(mode=0o755)
        for key, content in payload.items():
            file = self._folder / name / key
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            file.chmod(0o644)
        data = self._folder / DATA
        old = data.readlink().name if data.is_symlink() else None
        (self._folder / NEW_DATA).symlink_to(name)
        (self._folder / NEW_DATA).rename(data)
        tops = {key.split("/")[0] for key in payload}
        links = {path.name for path in self._folder.iterdir() if not path.name.startswith("..")}
        for top in sorted(tops - links):
            (self._folder / top).symlink_to(f"{DATA}/{top}")
        for top in sorted(links - tops):
            (self._folder / top).unlink()
        if old is not None:
            shutil.rmtree(self._folder / old)
