"""CreateWatch again for a tree of 10,000 directories: with the same config, and with another one each time.

All the while a process writes to files in the tree; each write must be reported, once. Watches that were asked for anew
are found by their numbers. One that is asked for again with the same mask keeps its number: that would take time for
each directory, so an update with the same config is compared with one in a tree of 10 directories, too.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from argusd.proto import argus_pb2, argus_pb2_grpc
from benchmarks.daemon import TIMEOUT_S, MeasuredDaemon
from benchmarks.table import NO_GOAL, Comparison, Losses, Lost, Row
from benchmarks.told import told
from benchmarks.trees import grown_tree, temporary_folder
from benchmarks.watches import kernel_watches, room_for

LARGE: Final = 10_000
SMALL: Final = 10
UNCHANGED: Final = 200
CHANGED: Final = 6
FIRST: Final = 5
FILES: Final = 20
CALM_S: Final = 0.5
GOAL_UNCHANGED: Final = 1.5

# Writes to each file in turn, so that the kernel merges no event into the one before it, until its stdin ends; then
# prints how often it has been round. The pause is there because the daemon has more to do than to read events.
PRODUCER: Final = r"""
import os, select, sys
descriptors = [os.open(path, os.O_WRONLY) for path in sys.argv[1:]]
rounds = 0
print("ready", flush=True)
while not select.select([0], [], [], 0.001)[0]:
    for descriptor in descriptors:
        os.pwrite(descriptor, b"x", 0)
    rounds += 1
print(rounds)
"""


class Tree:
    """A watched tree of which the config is sent again and again."""

    def __init__(self, root: Path, directories: int, daemon: MeasuredDaemon) -> None:
        """Make it; it is not watched yet."""
        self.root = root
        grown_tree(root, directories)
        self._stub = argus_pb2_grpc.ArgusdStub(daemon.channel)

    def watch_ms(self, **fields: dict[str, str] | list[str]) -> float:
        """Send CreateWatch; how long the answer took."""
        request = argus_pb2.ArgusdConfig(name="benchmark", nodeName="node", podName=self.root.name, pid=[os.getpid()])
        request.subject.add(path=[str(self.root)], recursive=True, **{"event": ["modify"], **fields})
        start_s = time.perf_counter()
        self._stub.CreateWatch(request, timeout=TIMEOUT_S)
        return (time.perf_counter() - start_s) * 1e3

    def forget(self) -> None:
        """Send DestroyWatch."""
        request = argus_pb2.ArgusdConfig(nodeName="node", podName=self.root.name)
        self._stub.DestroyWatch(request, timeout=TIMEOUT_S)

    def files(self) -> list[Path]:
        """Make the files that are written to: in the tree's top and in others of its directories."""
        folders = [self.root, *(path for path in self.root.iterdir() if path.is_dir())]
        paths = [folders[number % len(folders)] / f"written{number}" for number in range(FILES)]
        for path in paths:
            path.touch()
        return paths


def measure() -> list[Row]:
    """Measure; takes about half a minute."""
    with temporary_folder() as folder, room_for(3 * LARGE), MeasuredDaemon(folder) as daemon:
        large, small = Tree(folder / "large", LARGE, daemon), Tree(folder / "small", SMALL, daemon)
        first: list[float] = []
        for _ in range(FIRST):
            large.forget()
            first.append(large.watch_ms())
        small.watch_ms()
        files = large.files()
        with _written(files) as calm:
            time.sleep(CALM_S)
        counts = [_counts(daemon, large, files, calm[0])]
        with _written(files) as busy:
            watches = [kernel_watches(daemon.pid)]
            same, same_small = [], []
            for _ in range(UNCHANGED):
                same.append(large.watch_ms())
                same_small.append(small.watch_ms())
            watches.append(kernel_watches(daemon.pid))
            events = [large.watch_ms(event=["modify", *["attrib"] * (number % 2)]) for number in range(CHANGED)]
            watches.append(kernel_watches(daemon.pid))
            tags = [large.watch_ms(tags={"version": str(number)}) for number in range(CHANGED)]
        counts.append(_counts(daemon, large, files, calm[0] + busy[0]))
    size = f"{LARGE:,} directories"
    return [
        _touched(watches),
        Comparison("  each", "ms", size, f"{SMALL}", same, same_small, GOAL_UNCHANGED),
        Comparison("  each", "ms", size, "first CreateWatch", same, first, NO_GOAL),
        Comparison("update of tags", "ms", size, "first CreateWatch", tags, first, NO_GOAL),
        Comparison("update of events", "ms", size, "first CreateWatch", events, first, NO_GOAL),
        _missed(counts, calm[0], busy[0]),
    ]


def _touched(watches: Sequence[Sequence[str]]) -> Losses:
    """Compare the kernel's watches before any update, after those that change nothing, after those of events."""
    before, unchanged, changed = map(set, watches)
    return Losses(
        what=f"watches changed by {UNCHANGED} updates",
        measured="same config",
        lost=Lost(len(before ^ unchanged), len(before)),
        reference=f"{CHANGED} other configs",
        reference_lost=Lost(len(before - changed), len(before)),
        has_goal=True,
    )


def _counts(daemon: MeasuredDaemon, tree: Tree, files: Sequence[Path], rounds: int) -> list[int]:
    """How often each file was reported so far, when so many rounds of writing are over."""
    counts = told(daemon.log, "MODIFY", rounds * len(files))
    return [counts[tree.root.name, str(path)] for path in files]


def _missed(counts: Sequence[Sequence[int]], calm: int, busy: int) -> Losses:
    """Compare how often each file was written to, before the updates and meanwhile, with what was reported."""
    before, after = counts
    return Losses(
        what="writes not reported, or again",
        measured="during updates",
        lost=Lost(sum(abs(busy - (after[at] - before[at])) for at in range(FILES)), busy * FILES),
        reference="before",
        reference_lost=Lost(sum(abs(calm - count) for count in before), calm * FILES),
        has_goal=True,
    )


@contextlib.contextmanager
def _written(files: list[Path]) -> Iterator[list[int]]:
    """Have a process write to files; afterwards the list has how often it wrote to each."""
    command = [sys.executable, "-c", PRODUCER, *map(str, files)]
    rounds: list[int] = []
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        if process.stdout is None or process.stdout.readline() != "ready\n":
            raise RuntimeError("the files could not be opened")
        yield rounds
    finally:
        output, _ = process.communicate(timeout=TIMEOUT_S)  # closes its input
    rounds.append(int(output))
