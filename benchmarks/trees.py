"""Trees of directories as file systems have them: most are small, some are wide, some are deep."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

__all__ = ["WORDS", "grown_tree", "temporary_folder"]

WORDS: Final = (
    "src", "test", "lib", "docs", "assets", "locale", "messages", "includes", "templates", "migrations", "resources",
    "fixtures", "components", "node_modules", "site-packages", "integration-tests",
)  # fmt: skip
FILES: Final = ("README.md", "index.js", "package.json")


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that goes with all in it; rm(1) does that in half the time that Python takes."""
    path = Path(tempfile.mkdtemp(prefix="argusd-benchmark-"))
    try:
        yield path
    finally:
        subprocess.run(["rm", "-rf", path], check=True)


def _block_size(size: int) -> int:
    """What malloc(3) of the GNU C library takes for so many bytes: 8 more, in steps of 16, 32 at the least."""
    return max(32, (size + 8 + 15) // 16 * 16)


def grown_tree(root: Path, directories: int, files: Sequence[str] = FILES) -> int:
    """Make ``root`` and directories below, so many altogether, with files in each; returns the bytes that names take.

    Each is made in one that is picked among those before it: half of them have none below, a few have many, and the
    depth is 10 on average for 10,000 of them. The same number gives the same tree.
    """
    pick = random.Random(directories)  # noqa: S311  (no secret)
    paths, names_size = [str(root)], 0
    for number in range(directories):
        if number:
            name = f"{pick.choice(WORDS)}-{number:x}"
            names_size += _block_size(len(name) + 1)
            paths.append(f"{pick.choice(paths)}/{name}")
        os.mkdir(paths[-1])  # noqa: PTH102  (a Path would take longer to make than the directory)
        for name in files:
            os.mknod(f"{paths[-1]}/{name}")
    return names_size
