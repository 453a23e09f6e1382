"""One mkdir in a watched tree of 50,000 directories, against one in a tree of 50.

Only ``modify`` is watched, so a first line tells that the new directory is armed: writes into it are tried until one is
reported. A tree has a daemon of its own, and the two take turns.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.daemon import TIMEOUT_S, MeasuredDaemon
from benchmarks.table import Comparison
from benchmarks.trees import temporary_folder
from benchmarks.watches import room_for

LARGE: Final = 50_000
SMALL: Final = 50
WIDTH: Final = 50
"""Directories in one directory, in both trees: what is around the new one is the same."""
GOAL: Final = 1.5
LATENCY_ROUNDS: Final = 300
CPU_ROUNDS: Final = 30
CPU_BATCH: Final = 100
TRY_AGAIN_S: Final = 0.0001


class Tree:
    """A watched tree, and directories that are made in it."""

    def __init__(self, root: Path, directories: int, daemon: MeasuredDaemon) -> None:
        """Make the tree and watch it."""
        self._daemon = daemon
        self._made = 0
        for top in range(directories // WIDTH):
            (root / str(top)).mkdir()
            for leaf in range(WIDTH - 1):
                os.mkdir(f"{root}/{top}/{leaf}")  # noqa: PTH102  (a Path takes longer to make than the directory)
        self._place = root / "0" / "0"
        daemon.watch(root, ["modify"])
        self.armed_after_s()  # warms up what is used for the first time

    def armed_after_s(self) -> float:
        """Make a directory; seconds from before the mkdir until something in it is reported."""
        path = self._new()
        start_s = time.perf_counter()
        path.mkdir()
        self._wait_until_armed(path, start_s)
        return time.perf_counter() - start_s

    def cpu_s(self) -> float:
        """Make many directories; seconds of the daemon's time for each."""
        self._place = self._place.parent / f"batch{self._made}"
        self._place.mkdir()
        self._wait_until_armed(self._place, time.perf_counter())
        paths = [self._new() for _ in range(CPU_BATCH)]
        before_s = self._daemon.cpu_s()
        for path in paths:
            path.mkdir()
        self._wait_until_armed(paths[-1], time.perf_counter())
        return (self._daemon.cpu_s() - before_s) / CPU_BATCH

    def _new(self) -> Path:
        self._made += 1
        return self._place / f"new{self._made}"

    def _wait_until_armed(self, path: Path, start_s: float) -> None:
        descriptor = os.open(path / "probe", os.O_WRONLY | os.O_CREAT, 0o600)
        expected = f"MODIFY file '{path}/probe'".encode()
        try:
            os.write(descriptor, b"x")
            while not self._daemon.says(expected, TRY_AGAIN_S):
                if time.perf_counter() - start_s > TIMEOUT_S:
                    raise TimeoutError(f"{path} is never watched")
                os.write(descriptor, b"x")
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def watched_tree(directories: int) -> Iterator[Tree]:
    """A tree with a daemon of its own."""
    with temporary_folder() as folder, MeasuredDaemon() as daemon:
        yield Tree(folder, directories, daemon)


def measure() -> list[Comparison]:
    """Measure; takes about half a minute, most of it to make the large tree and to remove it."""
    armed: dict[int, list[float]] = {LARGE: [], SMALL: []}
    cpu: dict[int, list[float]] = {LARGE: [], SMALL: []}
    with room_for(2 * LARGE), watched_tree(LARGE) as large, watched_tree(SMALL) as small:
        trees = {LARGE: large, SMALL: small}
        for _ in range(LATENCY_ROUNDS):
            for size, tree in trees.items():
                armed[size].append(tree.armed_after_s() * 1e6)
        for _ in range(CPU_ROUNDS):
            for size, tree in trees.items():
                cpu[size].append(tree.cpu_s() * 1e6)
    return [
        _comparison("mkdir until armed", armed),
        _comparison("CPU of the daemon per mkdir", cpu),
    ]


def _comparison(what: str, values: dict[int, list[float]]) -> Comparison:
    return Comparison(
        what=what,
        unit="µs",
        measured=f"{LARGE:,} directories",
        reference=f"{SMALL}",
        values=values[LARGE],
        reference_values=values[SMALL],
        goal=GOAL,
    )
