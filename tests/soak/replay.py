"""Scripts: what was there, what was watched, what was done. Short ones that still show a violation are searched for.

``python -m tests.soak.replay FILE`` plays one that a soak has printed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from tests.soak.history import Found
from tests.soak.operations import Doer, Operation, Record
from tests.soak.rounds import Outcome, Round
from tests.soak.subjects import Subject, parse
from tests.soak.watching import Watching

TRIES = 8
SETTLE_S = 2.0
PAUSE_US = 20
"""What an operation takes anyway."""

_worlds = itertools.count()
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Script:
    """Operations that follow each other at once."""

    subjects: tuple[Subject, ...]
    before: Sequence[Operation]
    operations: Sequence[Operation]

    def __str__(self) -> str:
        lines = [
            "# before",
            *map(str, self.before),
            "# watched",
            *map(str, self.subjects),
            "# then at once",
            *map(str, self.operations),
        ]
        return "\n".join(f"  {line}" for line in lines)


def play(script: Script, place: Path, watching: Watching) -> Outcome:
    """Do what a script says in a world of its own and judge it."""
    return play_all(script.subjects, script.before, [script.operations], place, watching)


def play_all(
    subjects: tuple[Subject, ...],
    before: Sequence[Operation],
    bursts: Sequence[Sequence[Operation]],
    place: Path,
    watching: Watching,
) -> Outcome:
    """Do one burst after the other in a world of its own and judge each; stops at the first violation."""
    stage = Round(watching, place / f"soak-{os.getpid()}-{next(_worlds)}", subjects, before)
    doer = Doer(stage.world)

    def work(operations: Sequence[Operation]) -> list[Record]:
        doer.records = []
        for operation in operations:
            doer.perform(operation)
        return doer.records

    try:
        for operations in bursts:
            if not stage.burst(lambda operations=operations: work(operations)):  # type: ignore[misc] # mypy cannot infer the default
                break
    finally:
        doer.close()
        stage.close()
    return stage.outcome


def remake(found: Found) -> Operation:
    """What makes a file that was found."""
    if found.target:
        return Operation("symlink", "/".join(found.path), found.target)
    return Operation("mkdir" if found.directory else "create", "/".join(found.path))


def paced(records: Sequence[Record]) -> list[Operation]:
    """The operations of several processes one after the other, with the pauses between them."""
    operations: list[Operation] = []
    end = 0
    for record in sorted(records):
        pause_us = (record.begin - end) // 1000
        if operations and pause_us > PAUSE_US:
            operations.append(Operation("pause", str(pause_us - PAUSE_US)))
        operations.append(record.operation)
        end = max(end, record.end)
    return operations


class Shrinker:
    """Searches for the shortest script that still shows a violation."""

    def __init__(self, place: Path, until_s: float) -> None:
        """``until_s`` is a monotonic time."""
        self._place = place
        self._until_s = until_s
        self._watching = Watching(SETTLE_S)

    def close(self) -> None:
        """Stop the engine."""
        self._watching.close()

    def shrink(self, script: Script) -> Script | None:
        """The shortest script found; None when not even the whole one shows it."""
        if not self._fails(script, 4 * TRIES):
            return None
        for subject in script.subjects:
            single = replace(script, subjects=(subject,))
            if self._fails(single):
                script = single
                break
        text = "\n".join(map(str, script.operations))
        touched = replace(script, before=[made for made in script.before if made.path in text])
        if self._fails(touched):
            script = touched
        now = time.monotonic()
        for until_s in (now + (self._until_s - now) / 2, self._until_s):
            script = self._shorter_before(self._shorter_operations(script, until_s), until_s)
        return script

    def _shorter_operations(self, script: Script, until_s: float) -> Script:
        shorter = _shorter(script.operations, lambda some: self._fails(replace(script, operations=some)), until_s)
        return replace(script, operations=shorter)

    def _shorter_before(self, script: Script, until_s: float) -> Script:
        until_s = max(until_s, time.monotonic() + 5.0)
        shorter = _shorter(script.before, lambda some: self._fails(replace(script, before=some)), until_s)
        return replace(script, before=shorter)

    def _fails(self, script: Script, tries: int = TRIES) -> bool:
        for _ in range(tries):
            if play(script, self._place, self._watching).violations:
                self._watching.close()  # it may be in disorder
                self._watching = Watching(SETTLE_S)
                return True
        return False


def _shorter(all_items: Sequence[_Item], fails: Callable[[Sequence[_Item]], bool], until_s: float) -> Sequence[_Item]:
    """Leave out ever smaller pieces for as long as it still fails."""
    items = list(all_items)
    size = max(1, len(items) // 2)
    while time.monotonic() < until_s:
        at, removed = 0, False
        while at < len(items) and time.monotonic() < until_s:
            fewer = items[:at] + items[at + size :]
            if fails(fewer):
                items, removed = fewer, True
            else:
                at += size
        if size == 1 and not removed:
            break
        size = max(1, size // 2)
    return items


def read(text: str) -> Script:
    """The script of a text; what does not belong to one is skipped."""
    before: list[Operation] = []
    subjects: list[Subject] = []
    operations: list[Operation] = []
    part = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("#"):
            part = line
        elif line and part == "# before":
            before.append(Operation(*line.split()))
        elif line and part == "# watched":
            subjects.append(parse(line))
        elif line and part == "# then at once" and not line.startswith("("):
            operations.append(Operation(*line.split()))
    return Script(tuple(subjects), before, operations)


def main() -> int:
    """Play a script until it shows a violation, or make it shorter."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("times", type=int, nargs="?", default=20)
    parser.add_argument("--shrink-s", type=float, default=0, help="search so long for a shorter script")
    asked = parser.parse_args()
    script = read(asked.file.read_text())
    with tempfile.TemporaryDirectory(prefix="soak-") as place:
        if asked.shrink_s:
            shrinker = Shrinker(Path(place), time.monotonic() + asked.shrink_s)
            print(shrinker.shrink(script))
            shrinker.close()
            return 0
        for number in range(1, asked.times + 1):
            watching = Watching()
            violations = play(script, Path(place), watching).violations
            watching.close()
            if violations:
                print(f"play {number} of {asked.times}:", *violations, sep="\n  ")
                return 1
    print(f"no violation in {asked.times} plays")
    return 0


if __name__ == "__main__":
    sys.exit(main())
