"""10,000 and 100,000 directories made as fast as one process can, in a watched tree: how the cost grows.

The time from the last mkdir until the daemon has come to rest is compared with that of the least program that could
watch them afterwards, walker.c. CPU is compared with itself, for each directory of the small burst and of the large.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Final

from benchmarks import processes
from benchmarks.daemon import MeasuredDaemon
from benchmarks.producer import compiled
from benchmarks.quiet import last_work_s
from benchmarks.table import Comparison, Losses, Lost, Row
from benchmarks.trees import temporary_folder
from benchmarks.watches import kernel_watches, room_for

ROUNDS: Final = 3
FEW: Final = 10_000
MANY: Final = 100_000
QUIET_S: Final = 0.2
TIME_GOAL: Final = 2.0
CPU_GOAL: Final = 1.3


class Bursts:
    """What bursts of one size have taken."""

    def __init__(self, size: int) -> None:
        """``size`` directories each."""
        self.size = size
        self.watched_s: list[float] = []
        self.cpu_us: list[float] = []
        self.walked_s: list[float] = []
        self.unwatched = 0

    def weather(self, daemon: MeasuredDaemon, tree: Path, storm: Path, walker: Path) -> None:
        """Go through one burst in a tree that the daemon watches, and remove it."""
        place = tree / "burst"
        place.mkdir()
        last_work_s(daemon.pid, QUIET_S)
        before_s = processes.cpu_s(daemon.pid)
        subprocess.run([storm, place, "make", str(self.size)], check=True)
        made_s = time.perf_counter()
        self.watched_s.append(max(0.0, last_work_s(daemon.pid, QUIET_S) - made_s))
        self.cpu_us.append((processes.cpu_s(daemon.pid) - before_s) / self.size * 1e6)
        self.unwatched += max(0, self.size - len(kernel_watches(daemon.pid)))
        self.walked_s.append(_walk(walker, place))
        subprocess.run(["rm", "-r", place], check=True)
        last_work_s(daemon.pid, QUIET_S)


def _walk(walker: Path, place: Path) -> float:
    begun_s = time.perf_counter()
    with subprocess.Popen([walker, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        if process.stdout is not None:
            process.stdout.readline()
        took_s = time.perf_counter() - begun_s
        process.kill()
    return took_s


def measure() -> list[Row]:
    """Measure; takes about a minute."""
    few, many = Bursts(FEW), Bursts(MANY)
    with temporary_folder() as folder, room_for(3 * MANY):
        storm, walker = compiled("storm"), compiled("walker")
        tree = folder / "tree"
        tree.mkdir()
        with MeasuredDaemon(folder / "argusd") as daemon:
            daemon.watch(tree, ["create"])
            for _ in range(ROUNDS):
                few.weather(daemon, tree, storm, walker)
                many.weather(daemon, tree, storm, walker)
    return [
        Comparison(
            what="100,000 made at once, until all are watched",
            unit="s",
            measured="argusd",
            reference="C walker",
            values=many.watched_s,
            reference_values=many.walked_s,
            goal=TIME_GOAL,
        ),
        Comparison(
            what="CPU per mkdir",
            unit="µs",
            measured="100,000 at once",
            reference="10,000 at once",
            values=many.cpu_us,
            reference_values=few.cpu_us,
            goal=CPU_GOAL,
        ),
        Losses(
            what="not watched in the end",
            measured="argusd",
            lost=Lost(few.unwatched + many.unwatched, ROUNDS * (FEW + MANY)),
            has_goal=True,
        ),
    ]
