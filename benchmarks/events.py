"""CPU for each event, and events lost, against other programs that read inotify.

One process makes events, at full speed or evenly spaced in time, and one program after the other reads those of its
folder: every round runs each once, in rotating order. CPU is the time that all processes of a reader have run, divided
by the events that it has told of; the producer is not in it. Nothing is bound to a core: at full speed a reader and the
producer have one each, and the benchmark itself sleeps. The C reader runs as it is started; argusd gives its reading
and writing threads a higher priority, as it does for users.

An even pace is one that the producer keeps as long as it can: to wake up a reader that sleeps takes it tens of
microseconds on a virtual machine, so that 60,000/s is not always reached.

The watched folders are in memory, where files are written fastest. Outputs are files in the folder for temporary files.
The queue is as large as the kernel's default, or what the machine has made of it.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.peers import ARGUSD, BARE, INOTIFYWAIT, ONE_SINK, SCRIPTS, Reader, Told, readers
from benchmarks.producer import Producer
from benchmarks.table import NO_GOAL, Comparison, Losses, Lost, Row

ROUNDS: Final = 5
LOSS_ROUNDS: Final = 20
"""At full speed, argusd alone in those that come after ``ROUNDS``."""
BARE_GOAL: Final = 1.5
INOTIFYWAIT_GOAL: Final = 0.25
MEMORY: Final = Path("/dev/shm")  # noqa: S108  (a folder of our own is made in it)


@dataclass(frozen=True, slots=True)
class Case:
    """A kind of work."""

    what: str
    operation: str
    """A word of producer.c."""
    events_each: int
    times: int
    rate: int = 0
    """Operations a second; 0 is as fast as it goes."""


CASES: Final = (
    Case("open, write, close at full speed", "rewrite", events_each=3, times=60_000),
    Case("pwrite at full speed", "pwrite", events_each=1, times=200_000),
    Case("create, delete at full speed", "create", events_each=2, times=60_000),
    Case("pwrite, 60,000/s", "pwrite", events_each=1, times=30_000, rate=60_000),
    Case("pwrite, 20,000/s", "pwrite", events_each=1, times=10_000, rate=20_000),
    Case("pwrite, 10,000/s", "pwrite", events_each=1, times=5_000, rate=10_000),
)


@dataclass(frozen=True, slots=True)
class Run:
    """One reader, one case, once."""

    events: int
    """As many were made."""
    took_s: float
    """To make them."""
    cpu_s: float
    told: Told

    @property
    def cpu_ns(self) -> float:
        """CPU for each event that was told."""
        return self.cpu_s * 1e9 / max(self.told.events, 1)


class Results:
    """What was measured, by case and the name of the reader."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._runs: dict[tuple[Case, str], list[Run]] = defaultdict(list)

    def add(self, case: Case, reader: Reader, producer: Producer) -> None:
        """Run a case."""
        before_s = reader.cpu_s()
        took_s = producer.produce(case.operation, case.times, case.rate)
        reader.finish()
        cpu_s = reader.cpu_s() - before_s
        self._runs[case, reader.name].append(Run(case.events_each * case.times, took_s, cpu_s, reader.told()))

    def compared(self, case: Case) -> Iterator[Row]:
        """The rows of a case."""
        yield self._cpu(case, ARGUSD, BARE, BARE_GOAL)
        yield self._cpu(case, ONE_SINK, BARE, NO_GOAL)
        yield self._cpu(case, ONE_SINK, INOTIFYWAIT, INOTIFYWAIT_GOAL)
        for name in SCRIPTS:
            yield self._cpu(case, ONE_SINK, name, NO_GOAL)
        for name in (BARE, INOTIFYWAIT):
            if not case.rate:
                yield self._producer(case, name)
        for name in (BARE, INOTIFYWAIT, *SCRIPTS):
            if name == BARE or self._lost(case, name).missing:
                yield self._losses(case, name)

    def _cpu(self, case: Case, name: str, reference: str, goal: float) -> Comparison:
        return Comparison(
            what=f"{case.what}: CPU",
            unit="ns",
            measured=name,
            reference=reference,
            values=[run.cpu_ns for run in self._runs[case, name]],
            reference_values=[run.cpu_ns for run in self._runs[case, reference]],
            goal=goal,
        )

    def _producer(self, case: Case, reference: str) -> Comparison:
        """How long the work of the producer takes: each time that the reader has to be woken up holds it up."""
        return Comparison(
            what=f"{case.what}: time of the producer for an event",
            unit="ns",
            measured=ARGUSD,
            reference=reference,
            values=[run.took_s * 1e9 / run.events for run in self._runs[case, ARGUSD]],
            reference_values=[run.took_s * 1e9 / run.events for run in self._runs[case, reference]],
            goal=NO_GOAL,
        )

    def _losses(self, case: Case, reference: str) -> Losses:
        return Losses(
            what=f"{case.what}: not reported",
            measured=ARGUSD,
            lost=self._lost(case, ARGUSD),
            reference=reference,
            reference_lost=self._lost(case, reference),
            has_goal=reference == BARE,
        )

    def _lost(self, case: Case, name: str) -> Lost:
        """Of all runs; too many events in one would not make up for too few in another."""
        runs = self._runs[case, name]
        return Lost(
            missing=sum(abs(run.events - run.told.events) for run in runs),
            total=sum(run.events for run in runs),
            overflows=sum(run.told.overflows for run in runs),
        )


def measure() -> Sequence[Row]:
    """Measure; takes about three minutes."""
    results = Results()
    names = (ARGUSD, ONE_SINK, BARE, INOTIFYWAIT, *SCRIPTS)
    with contextlib.ExitStack() as stack:
        watched = _folder(stack, MEMORY if MEMORY.is_dir() else None)
        producers = [stack.enter_context(Producer(watched / str(number))) for number in range(len(names))]
        folders = {name: producer.folder for name, producer in zip(names, producers, strict=True)}
        pairs = list(zip(stack.enter_context(readers(_folder(stack), folders)), producers, strict=True))
        for reader, producer in pairs:  # warms up what is used for the first time
            Results().add(Case("", "pwrite", events_each=1, times=5000), reader, producer)
        for number in range(ROUNDS):
            start = number % len(pairs)
            for case in CASES:
                for reader, producer in (*pairs[start:], *pairs[:start]):
                    results.add(case, reader, producer)
        for _ in range(ROUNDS, LOSS_ROUNDS):
            for case in CASES:
                if not case.rate:
                    results.add(case, *pairs[0])
    return [row for case in CASES for row in results.compared(case)]


def _folder(stack: contextlib.ExitStack, place: Path | None = None) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="argusd-benchmark-", dir=place)))
