"""10,000 directories made as fast as one process can, four levels deep, in a watched tree.

Each must be reported as created, once, and be watched itself when all is over, which a file in each of them shows.
Against ``inotifywait -r``, which adds a watch when it reads the event and does not look into the new directory.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks import processes
from benchmarks.daemon import TIMEOUT_S, MeasuredDaemon
from benchmarks.producer import compiled
from benchmarks.quiet import last_work_s
from benchmarks.table import NO_GOAL, Comparison, Losses, Lost, Row
from benchmarks.trees import temporary_folder
from benchmarks.watches import room_for

ROUNDS: Final = 2
DIRECTORIES: Final = 10_000
QUIET_S: Final = 0.2


@dataclass(slots=True)
class Seen:
    """What one program has reported of all storms."""

    cpu_us: list[float] = field(default_factory=list)
    lost: int = 0
    repeated: int = 0
    unwatched: int = 0

    def add(self, wanted: set[str], told: Counter[str]) -> None:
        """Compare what was made with what was reported."""
        self.lost += len(wanted - told.keys())
        self.repeated += sum(told[path] - 1 for path in wanted & told.keys())


class Program(ABC):
    """A program that watches a tree of its own and writes what it sees to a file."""

    def __init__(self, tree: Path, log: Path, pid: int) -> None:
        """``pid`` is of its first process."""
        self._tree = tree
        self._log = log.open("rb")
        self._pid = pid
        self.seen = Seen()

    def weather(self, storm: Path, number: int) -> None:
        """Go through one storm."""
        place = self._tree / str(number)
        place.mkdir()
        last_work_s(self._pid, QUIET_S)
        before_s = processes.cpu_s(self._pid)
        subprocess.run([storm, place], check=True)
        last_work_s(self._pid, QUIET_S)
        self.seen.cpu_us.append((processes.cpu_s(self._pid) - before_s) / DIRECTORIES * 1e6)
        told = self.read()
        directories = {f"{place}/{'/'.join(str(index))}" for index in range(DIRECTORIES)}
        self.seen.add(directories, told)
        subprocess.run([storm, place, "probe"], check=True)
        last_work_s(self._pid, QUIET_S)
        self.seen.unwatched += len({f"{path}/probe" for path in directories} - self.read().keys())

    def read(self) -> Counter[str]:
        """Paths that were reported as created since the last call."""
        return Counter(path for line in self._log.read().splitlines() if (path := self.created(line)))

    @abstractmethod
    def created(self, line: bytes) -> str:
        """The path that a line reports, or nothing."""


class Daemon(Program):
    """JSON lines."""

    def created(self, line: bytes) -> str:
        """The path that a line reports as created."""
        record = json.loads(line)
        return f"{record['path']}/{record['file']}" if record.get("event") == "CREATE" else ""


class Inotifywait(Program):
    """Lines of path and name."""

    def created(self, line: bytes) -> str:
        """The path that a line reports as created."""
        return line.decode()


def measure() -> list[Row]:
    """Measure; takes about half a minute."""
    with temporary_folder() as folder, room_for(2 * (ROUNDS + 1) * DIRECTORIES):
        storm = compiled("storm")
        with _daemon(folder / "argusd") as daemon, _inotifywait(folder / "inotifywait") as reference:
            for number in range(ROUNDS):
                daemon.weather(storm, number)
                reference.weather(storm, number)
    return [*_losses(daemon.seen, reference.seen), _cpu(daemon.seen, reference.seen)]


def _losses(daemon: Seen, reference: Seen) -> Iterator[Losses]:
    for what, missing, reference_missing in (
        ("made and not reported", daemon.lost, reference.lost),
        ("reported again", daemon.repeated, reference.repeated),
        ("not watched in the end", daemon.unwatched, reference.unwatched),
    ):
        yield Losses(
            what=what,
            measured="argusd",
            lost=Lost(missing, DIRECTORIES * ROUNDS),
            reference="inotifywait -r",
            reference_lost=Lost(reference_missing, DIRECTORIES * ROUNDS),
            has_goal=True,
        )


def _cpu(daemon: Seen, reference: Seen) -> Comparison:
    return Comparison(
        what="CPU per mkdir",
        unit="µs",
        measured="argusd",
        reference="inotifywait -r",
        values=daemon.cpu_us,
        reference_values=reference.cpu_us,
        goal=NO_GOAL,
    )


@contextlib.contextmanager
def _daemon(folder: Path) -> Iterator[Program]:
    tree = folder / "tree"
    tree.mkdir(parents=True)
    with MeasuredDaemon(folder) as daemon:
        daemon.watch(tree, ["create"])
        yield Daemon(tree, daemon.log, daemon.pid)


@contextlib.contextmanager
def _inotifywait(folder: Path) -> Iterator[Program]:
    tree = folder / "tree"
    tree.mkdir(parents=True)
    command = ["inotifywait", "--monitor", "--recursive", "--event", "create", "--format", "%w%f", str(tree)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.PIPE)
    try:
        for line in process.stderr or ():
            if line.startswith(b"Watches established."):
                break
        yield Inotifywait(tree, folder / "log", process.pid)
    finally:
        process.kill()
        process.communicate(timeout=TIMEOUT_S)
