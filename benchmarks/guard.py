"""open() and close() of a guarded file, against the least that can answer: a responder in C that reads and writes.

Root and a C compiler are needed. The C responder guards a directory of its own with the same mark and gives the same
answer, without any question, and tells nobody. One process opens, by turns, a file of the one and of the other, from
another core than theirs, without a pause. Without a goal it also opens with pauses, for a responder may do better while
it is busy, and from the same core, where what they do behind an answer is waited for, too. Once more with a thread that
keeps Python's lock busy in the daemon, whatever is measured.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.daemon import BINARY, MeasuredDaemon, on_core
from benchmarks.producer import compiled
from benchmarks.table import NO_GOAL, Comparison

ROUNDS: Final = 9
OPENS: Final = 2000
RARE_OPENS: Final = 200
PAUSE_US: Final = 1000
GOAL: Final = 1.1
TIMEOUT_S: Final = 60.0

BUSY: Final = (sys.executable, "-m", "benchmarks.busy_daemon")


@dataclass(slots=True)
class Times:
    """What opening has taken, µs: one value for each round."""

    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Way:
    """Of opening."""

    name: str
    core: int
    opens: int
    pause_us: int
    goal: float


@dataclass(slots=True)
class Case:
    """A guard, and a file of which it decides."""

    what: str
    denied: bool
    """What the answer is."""
    ours: Path
    """The file that the daemon guards."""
    bare: Path
    """The one that the C responder guards."""
    times: dict[tuple[Path, Way], Times] = field(default_factory=lambda: defaultdict(Times))

    @property
    def answer(self) -> str:
        """The word for the C program."""
        return "deny" if self.denied else "allow"

    def measure(self, program: Path, ways: Sequence[Way]) -> None:
        """Measure one round."""
        for way, file in itertools.product(ways, (self.bare, self.ours)):
            numbers = [str(way.opens), str(way.pause_us)]
            command = [*on_core(way.core), str(program), "open", str(file), *numbers, self.answer]
            words = subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_S).stdout.split()
            self.times[file, way].p50.append(int(words[0]) / 1e3)
            self.times[file, way].p99.append(int(words[1]) / 1e3)

    def compared(self, name: str, ways: Sequence[Way]) -> Iterator[Comparison]:
        """The results."""
        for way in ways:
            ours, bare = self.times[self.ours, way], self.times[self.bare, way]
            yield _comparison(f"{self.what}{name}{way.name}, p50", ours.p50, bare.p50, way.goal)
            if not way.name:
                yield _comparison(f"{self.what}{name}, p99", ours.p99, bare.p99, NO_GOAL)


def measure() -> list[Comparison]:
    """Measure all cases, with an idle and with a busy interpreter."""
    found: list[Comparison] = []
    cores = sorted(os.sched_getaffinity(0))
    near, far = cores[0], cores[-1]
    ways = (
        Way("", far, OPENS, 0, GOAL),
        Way(", with pauses", far, RARE_OPENS, PAUSE_US, NO_GOAL),
        Way(", same core", near, OPENS, 0, NO_GOAL),
    )
    with tempfile.TemporaryDirectory(prefix="argusd-benchmark-") as top:
        program = compiled("guard")
        for command, name in (((str(BINARY),), ""), (BUSY, ", Python busy")):
            with contextlib.ExitStack() as stack:
                daemon = MeasuredDaemon(program=command, flags=["-services=janus"], core=near)
                stack.enter_context(daemon).keep_reading()
                cases = list(_cases(Path(top, f"files{name}"), daemon))
                for case in cases:
                    stack.enter_context(_responder(program, case, near))
                for _, case in itertools.product(range(ROUNDS), cases):
                    case.measure(program, ways)
            for case in cases:
                found += case.compared(name, ways)
    return found


def _cases(place: Path, daemon: MeasuredDaemon) -> Iterator[Case]:
    """Make the files and the guards."""
    guards: tuple[tuple[str, str, bool, dict[str, Any]], ...] = (
        ("directory, denied", "f", True, {"deny": [""]}),
        ("directory, allowed", "f", False, {"allow": [""]}),
        ("file, denied", "f", True, {"deny": ["f"]}),
        ("file, allowed", "f", False, {"allow": ["f"]}),
        ("beside a denied file", "f", False, {"deny": ["g"]}),
        ("directory, its owner", "f", False, {"deny": [""], "owner": True}),
    )
    for number, (what, opened, denied, guard) in enumerate(guards):
        folders = place / "ours" / str(number), place / "bare" / str(number)
        for folder in folders:
            folder.mkdir(parents=True)
            for name in ("f", "g"):
                (folder / name).touch()
        paths = {kind: [folders[0] / name for name in guard.get(kind, ())] for kind in ("deny", "allow")}
        daemon.guard(f"pod{number}", **paths, owner=guard.get("owner", False))
        yield Case(what, denied, folders[0] / opened, folders[1] / opened)


@contextlib.contextmanager
def _responder(program: Path, case: Case, core: int) -> Iterator[None]:
    command = [*on_core(core), str(program), "respond", str(case.bare.parent), case.answer]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        if process.stdout is None or process.stdout.readline() != b"ready\n":
            raise RuntimeError("the C responder did not start")
        yield
    finally:
        process.kill()
        process.communicate(timeout=TIMEOUT_S)


def _comparison(what: str, values: list[float], bare_values: list[float], goal: float) -> Comparison:
    return Comparison(
        what=what,
        unit="µs",
        measured="open and close",
        reference="C",
        values=values,
        reference_values=bare_values,
        goal=goal,
    )
