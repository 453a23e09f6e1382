"""Scripts: what was there, what was watched, what was done. Short ones that still show a violation are searched for.

``python -m tests.soak.replay FILE [TIMES]`` plays one that a soak has printed.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from tests.soak.operations import Doer, Operation, Record
from tests.soak.rounds import Outcome, Round
from tests.soak.subjects import Subject, parse
from tests.soak.watching import Watching

TRIES = 5
_worlds = itertools.count()
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Script:
    """Operations that follow each other at once."""

    subjects: tuple[Subject, ...]
    before: Sequence[tuple[str, bool]]
    operations: Sequence[Operation]

    def __str__(self) -> str:
        there = (f"{'mkdir' if directory else 'create'} {path}" for path, directory in self.before)
        lines = [
            "# before",
            *there,
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
    before: Sequence[tuple[str, bool]],
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


def shrink(script: Script, place: Path, until_s: float) -> Script | None:
    """The shortest script found until then that still shows a violation; None when not even the whole one does."""
    if not _fails(script, place):
        return None
    for subject in script.subjects:
        single = replace(script, subjects=(subject,))
        if _fails(single, place):
            script = single
            break
    full = script
    operations = _shorter(full.operations, lambda some: _fails(replace(full, operations=some), place), until_s)
    done = replace(full, operations=operations)
    return replace(done, before=_shorter(done.before, lambda some: _fails(replace(done, before=some), place), until_s))


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


def _fails(script: Script, place: Path) -> bool:
    for _ in range(TRIES):
        watching = Watching()
        try:
            if play(script, place, watching).violations:
                return True
        finally:
            watching.close()
    return False


def read(text: str) -> Script:
    """The script of a text; what does not belong to one is skipped."""
    before: list[tuple[str, bool]] = []
    subjects: list[Subject] = []
    operations: list[Operation] = []
    part = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("#"):
            part = line
        elif line and part == "# before":
            before.append((line.split()[1], line.startswith("mkdir")))
        elif line and part == "# watched":
            subjects.append(parse(line))
        elif line and part == "# then at once" and not line.startswith("("):
            operations.append(Operation(*line.split()))
    return Script(tuple(subjects), before, operations)


def main() -> int:
    """Play a script until it shows a violation."""
    script = read(Path(sys.argv[1]).read_text())
    times = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    with tempfile.TemporaryDirectory(prefix="soak-") as place:
        for number in range(1, times + 1):
            watching = Watching()
            violations = play(script, Path(place), watching).violations
            watching.close()
            if violations:
                print(f"play {number} of {times}:", *violations, sep="\n  ")
                return 1
    print(f"no violation in {times} plays")
    return 0


if __name__ == "__main__":
    sys.exit(main())
