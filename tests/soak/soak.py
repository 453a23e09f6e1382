"""Random operations by several processes at once on watched trees, for as long as asked: ``make soak DURATION_S=600``.

Each round has a fresh world, random subscriptions and some bursts of operations; after each burst the engine comes to
rest and everything is judged. Now and then the kernel's queue is a tiny one, so that it overflows. A violation ends the
run with exit code 1; the records of the burst are kept, and a short script that shows the same is searched for.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from tests import sysctls
from tests.soak.mounts import leave_namespace
from tests.soak.operations import Record
from tests.soak.replay import Script, Shrinker, paced, remake
from tests.soak.rounds import Outcome, Round
from tests.soak.subjects import Subject, some
from tests.soak.watching import Watching
from tests.soak.writer import Process

QUEUE: Final = sysctls.INOTIFY / "max_queued_events"
TELL_S: Final = 10.0
BURST_S: Final = 4.0
SHRINK_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a round does."""

    seed: str
    subjects: tuple[Subject, ...]
    queue: int
    bursts: int
    operations: int
    mounts: bool

    @classmethod
    def of(cls, seed: str, queue: int, *, may_mount: bool) -> Plan:
        """The plan of a seed; ``queue`` 0 leaves the length of the kernel's queue to it."""
        chance = random.Random(seed)
        tiny = os.geteuid() == 0 and os.access(QUEUE, os.W_OK) and chance.random() < 0.15
        subjects = some(chance)
        return cls(
            seed=seed,
            subjects=subjects,
            queue=queue or (chance.choice([20, 100, 400]) if tiny else 0),
            bursts=chance.randint(2, 5),
            operations=chance.choice([30, 100, 300, 1000]),
            # What is followed is kept open, and so is the file system that it is in.
            mounts=may_mount and chance.random() < 0.05 and not any(subject.follow_move for subject in subjects),
        )


class Soak:
    """Plays rounds and adds up what they saw."""

    def __init__(self, place: Path, writers: int, *, queue: int, go_on: bool) -> None:
        self._may_mount = leave_namespace()
        self._place = place
        self._queue = queue
        self._go_on = go_on
        self._writers = [Process(str(number)) for number in range(writers)]
        self._watching = Watching()
        self.total = Outcome()
        self.rounds = 0

    def play(self, seed: str) -> Outcome:
        """One round."""
        plan = Plan.of(seed, self._queue, may_mount=self._may_mount)
        watching = self._watching
        if plan.queue:
            with sysctls.inotify("max_queued_events", plan.queue):
                watching = Watching()
        world, locks = self._place / f"w{self.rounds}", self._place / "locks"
        self.rounds += 1
        stage = Round(watching, world, plan.subjects)
        for number in range(plan.bursts):
            if plan.mounts:
                stage.remount(random.Random(f"{seed}.{number}"))
            if not stage.burst(lambda number=number: self._work(world, locks, f"{seed}.{number}", plan.operations)):  # type: ignore[misc] # mypy cannot infer the default
                if stage.outcome.violations:
                    self._keep(plan, stage, stage.last)
                break
        stage.close()
        if plan.queue:
            watching.close()
        elif stage.outcome.violations:  # it may be in disorder
            watching.close()
            self._watching = Watching()
        for field in ("operations", "reports", "overflows", "refused"):
            setattr(self.total, field, getattr(self.total, field) + getattr(stage.outcome, field))
        self.total.violations += stage.outcome.violations
        return stage.outcome

    def _work(self, world: Path, locks: Path, seed: str, operations: int) -> list[Record]:
        until_s = time.monotonic() + BURST_S
        for number, writer in enumerate(self._writers):
            writer.begin(world, locks, f"{seed}.{number}", operations, until_s)
        return [record for writer in self._writers for record in writer.end()]

    def _keep(self, plan: Plan, stage: Round, records: Sequence[Record]) -> None:
        before = [remake(found) for found in stage.before[1:]]
        script = Script(plan.subjects, before, paced(records))
        log = Path(tempfile.gettempdir(), f"soak-{plan.seed}.log")
        text = [f"seed {plan.seed} queue {plan.queue}", *stage.outcome.violations, str(script)]
        text += [repr(tuple(record)) for record in sorted(records)]
        log.write_text("\n".join(text))
        print(f"\nVIOLATIONS in round {plan.seed} (queue {plan.queue}), kept in {log}:")
        for violation in stage.outcome.violations[:12]:
            print(f"  {violation}")
        if not plan.queue and not self._go_on:
            shrinker = Shrinker(self._place, time.monotonic() + SHRINK_S)
            found = shrinker.shrink(script)
            shrinker.close()
            print(f"\nThe same as a script:\n{found}" if found else "\nOne process alone does not show it.")
        sys.stdout.flush()

    def line(self, seconds: float) -> str:
        """The sums."""
        total = self.total
        return (
            f"{seconds:6.0f} s  {self.rounds} rounds  {total.operations} operations  {total.reports} events  "
            f"{total.overflows} overflows  {total.refused} refused  {len(total.violations)} violations"
        )

    def close(self) -> None:
        """End all."""
        self._watching.close()
        for writer in self._writers:
            writer.close()


class Limits(NamedTuple):
    """When a soak is over, whichever comes first."""

    duration_s: float
    operations: float


def run(limits: Limits, writers: int, seed: str, place: Path, *, queue: int = 0, go_on: bool = False) -> Outcome:
    """Soak; returns the sums. Stops at the first round with a violation unless told to go on."""
    begin = told = time.monotonic()
    soak = Soak(place, writers, queue=queue, go_on=go_on)
    try:
        while time.monotonic() - begin < limits.duration_s and soak.total.operations < limits.operations:
            soak.play(f"{seed}.{soak.rounds}")
            if soak.total.violations and not go_on:
                break
            if time.monotonic() - told >= TELL_S:
                told = time.monotonic()
                print(soak.line(told - begin), flush=True)
        print(soak.line(time.monotonic() - begin), flush=True)
        return soak.total
    finally:
        soak.close()


def main() -> int:
    """Read the command line and soak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--duration-s", type=float, default=600)
    parser.add_argument("--operations", type=float, default=math.inf, help="about how many are enough")
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--seed", default=str(random.SystemRandom().randrange(10**6)))
    parser.add_argument("--place", type=Path, help="a folder for the worlds, to choose the file system")
    parser.add_argument("--queue", type=int, default=0, help="events in the kernel's queue, in every round")
    parser.add_argument("--go-on", action="store_true", help="neither stop at a violation nor look for a script")
    asked = parser.parse_args()
    print(f"seed {asked.seed}, {asked.writers} writers, {asked.duration_s:.0f} s", flush=True)
    with tempfile.TemporaryDirectory(prefix="soak-", dir=asked.place) as place:
        limits = Limits(asked.duration_s, asked.operations)
        total = run(limits, asked.writers, asked.seed, Path(place), queue=asked.queue, go_on=asked.go_on)
    return 1 if total.violations else 0


if __name__ == "__main__":
    sys.exit(main())
