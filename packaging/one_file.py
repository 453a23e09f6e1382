"""Runs staticx so that the same input gives the same file: one time and one owner for all that it packs."""

from __future__ import annotations

import os
import sys
import tarfile
from typing import Any, Final

from staticx import api  # type: ignore[import-untyped]

MTIME: Final = int(os.environ["SOURCE_DATE_EPOCH"])


class _Archive(tarfile.TarFile):
    def addfile(self, tarinfo: tarfile.TarInfo, *arguments: Any, **named: Any) -> None:
        """Add the entry without what differs between two machines."""
        tarinfo.mtime = MTIME
        tarinfo.uid = tarinfo.gid = 0
        tarinfo.uname = tarinfo.gname = "root"
        super().addfile(tarinfo, *arguments, **named)


tarfile.open = _Archive.open

if __name__ == "__main__":
    source, target = sys.argv[1:]
    # PyInstaller compresses what it packs; twice would only cost start-up time.
    api.generate(source, target, compress=False)
