"""One round: a fresh world, some subscriptions, bursts of operations, and a judgement after each."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.soak.checks import Judge, armed, probed
from tests.soak.history import Found, History, walk
from tests.soak.mounts import covered, detach, mount, unmount
from tests.soak.operations import Doer, Operation, Record
from tests.soak.subjects import LINK, Subject
from tests.soak.views import view_of
from tests.soak.watching import NeverSettlesError, Report, Watching

FIRST = tuple(
    Operation(*line.split())
    for line in """
    mkdir in
    mkdir out
    mkdir in/a
    mkdir in/a/c
    mkdir in/a/c/a
    mkdir in/a/c/a/d
    mkdir in/b
    mkdir in/b/a
    mkdir in/c
    mkdir in/c/b
    mkdir out/a
    mkdir out/a/b
    mkdir out/a/b/c
    mkdir in/kept
    mkdir in/kept/a
    create in/file
    create in/a/old
    create out/a/b/old
    symlink way in/a
    """.strip().splitlines()
)
"""What is there before anything is watched."""

MOUNT_S = 10.0
"""Within which a mount must be noticed; the walker looks once a second, less often when that takes long."""

Burst = Callable[[], Sequence[Record]]
"""Something that works in the world, and returns what it did."""


@dataclass
class Outcome:
    """What a round saw."""

    operations: int = 0
    reports: int = 0
    overflows: int = 0
    refused: int = 0
    """Rounds that could not be judged, because the kernel had no watch left."""
    violations: list[str] = field(default_factory=list)


class Round:
    """A world and its subscriptions."""

    def __init__(
        self,
        watching: Watching,
        world: Path,
        subjects: Sequence[Subject],
        before: Sequence[Operation] = FIRST,
    ) -> None:
        """``before`` makes what is there from the start."""
        self.watching = watching
        self.world = world
        self.subjects = list(subjects)
        self.outcome = Outcome()
        self.over = False
        self._probes = 0
        world.mkdir()
        self._above = {(place.stat().st_ino, place.stat().st_dev) for place in (world, *world.parents)}
        doer = Doer(world)
        for operation in before:
            doer.perform(operation)
        doer.close()
        watching.reports(world)
        watching.watch(world, subjects)
        self.last: Sequence[Record] = ()
        self.before = walk(world)
        paths = {found.path: found.handle for found in self.before}
        self._followed = {subject.label: paths[subject.path] for subject in subjects if subject.follow_move}
        self._find_places(self.before)

    def burst(self, work: Burst) -> bool:
        """Let ``work`` happen and judge what was reported; False when something was wrong, or nothing is left to do."""
        overflows = self.watching.overflows()
        self.before = walk(self.world)
        try:
            self.watching.reports(self.world)
            self.last = work()
            reports = self.watching.reports(self.world)
            overflowed = self.watching.overflows() - overflows
            self.outcome.operations += len(self.last)
            self.outcome.reports += len(reports)
            self.outcome.overflows += overflowed
            history = History(self.before, self.last)
            self.outcome.violations += self._judged(history, reports, overflowed=overflowed > 0)
            self.outcome.violations += self._at_rest()
        except NeverSettlesError as error:
            self.outcome.violations.append(f"never at rest: {error}")
        if self.watching.refused:
            self.watching.refused = False
            self.over, self.outcome.refused, self.outcome.violations = True, 1, []
        return not self.outcome.violations and not self.over

    def remount(self, chance: random.Random) -> None:
        """Mount a file system over some directory, or take it away, and wait until that is noticed.

        What is reported of it is not judged: no event tells when it came.
        """
        found = walk(self.world)
        mounts = list(covered(found))
        places = [entry for entry in found if entry.directory and entry.path[:1] == ("in",)]
        try:
            if mounts:
                unmount(self.world.joinpath(*mounts[-1].path), MOUNT_S)
            elif places:
                place = self.world.joinpath(*chance.choice(places).path)
                mount(place)
                place.joinpath("a", "c").mkdir(parents=True)
                place.joinpath("c").mkdir()
                place.joinpath("file").touch()
            self._await_watches()
        except (OSError, NeverSettlesError) as error:
            self.outcome.violations.append(f"mounts: {error}")

    def _await_watches(self) -> None:
        deadline = time.monotonic() + MOUNT_S
        while True:
            self.watching.reports(self.world)
            found = walk(self.world)
            self._find_places(found)
            wrong = list(armed(found, self.subjects, self.watching.watched(), self._above))
            if not wrong:
                return
            if time.monotonic() > deadline:
                self.outcome.violations += [f"after a mount: {text}" for text in wrong]
                return
            threading.Event().wait(0.05)

    def close(self) -> None:
        """Forget the world and remove it."""
        try:
            self.watching.unwatch()
            self.outcome.violations += [
                f"still watched after the end: {len(left)}" for left in [self.watching.watched()] if left
            ]
        except NeverSettlesError as error:
            self.outcome.violations.append(f"never at rest after the end: {error}")
        for entry in reversed(list(covered(walk(self.world)))):
            detach(self.world.joinpath(*entry.path))
        shutil.rmtree(self.world)

    def _judged(self, history: History, reports: Sequence[Report], *, overflowed: bool) -> Iterator[str]:
        for subject in self.subjects:
            view = view_of(history, subject, self._followed.get(subject.label, ""))
            if subject.label == "file" or view is None:
                continue
            judge = Judge(view, reports)
            if overflowed:
                yield from judge.repeated()
                yield from judge.forgotten()
            else:
                yield from judge.violations()

    def _at_rest(self) -> Iterator[str]:
        found = walk(self.world)
        self._find_places(found)
        if self.over:
            return
        yield from armed(found, self.subjects, self.watching.watched(), self._above)
        yield from self._probed(found)
        yield from self._file_probed()

    def _find_places(self, found: Sequence[Found]) -> None:
        """Where the subjects are now whose place changes. All is over when one that is followed is gone."""
        handles = {entry.handle: entry.path for entry in found if entry.directory}
        links = [tuple(entry.target.split("/")) for entry in found if entry.path == (LINK,)]
        for number, subject in enumerate(self.subjects):
            if subject.follow_move:
                followed = self._followed[subject.label]
                self.over = self.over or followed not in handles
                self.subjects[number] = replace(subject, path=handles.get(followed, subject.path))
            elif subject.through_link:
                self.subjects[number] = replace(subject, target=links[0])

    def _probed(self, found: Sequence[Found]) -> Iterator[str]:
        probes = {}
        for entry in found:
            if entry.directory:
                self._probes += 1
                probes[f"probe{self._probes}"] = entry.path
        steps: list[tuple[Callable[[Path], None], list[str]]] = [(Path.touch, ["CREATE"]), (Path.unlink, ["DELETE"])]
        chunk: dict[str, tuple[str, ...]] = {}
        for number, (name, path) in enumerate(probes.items(), 1):
            chunk[name] = path
            if len(chunk) < 8 and number < len(probes):  # few events at a time: the queue may be a tiny one
                continue
            for operation, events in steps:
                for probe, directory in chunk.items():
                    operation(self.world.joinpath(*directory, probe))
                yield from probed(chunk, self.subjects, self.watching.reports(self.world), events)
            chunk = {}

    def _file_probed(self) -> Iterator[str]:
        for subject in self.subjects:
            target = self.world.joinpath(*subject.path)
            if subject.label != "file" or target.is_symlink() or not target.is_file():
                continue
            with target.open("a"):
                pass
            told = [r for r in self.watching.reports(self.world) if r.label == "file"]
            if told != [Report("file", "CLOSE_WRITE", False, "/".join(subject.path), "")]:
                yield f"file: one write was reported as {told}"
