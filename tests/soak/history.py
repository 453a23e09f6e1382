"""What was where, and when: the world as the records of all writers tell it.

Operations of different processes overlap in time. What is known of one is that it happened between its begin and its
end. So a directory has a *placement* from the begin of the operation that put it there to the end of the one that took
it away; neighbouring placements may overlap. The paths that a directory can have had in a span of time follow from the
placements of its ancestors. That is never too few paths, and with one process never too many.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple

from tests.soak.operations import Record, identify
from tests.soak.subjects import LINK, TARGETS
from tests.soak.subjects import Path as Names

ALWAYS: Final = -1
FOREVER: Final = 1 << 62


class Found(NamedTuple):
    """A file of the world, as a walk finds it."""

    path: Names
    parent: str
    directory: bool
    handle: str
    inode: tuple[int, int]
    target: str = ""


def walk(world: Path) -> list[Found]:
    """Everything below the world and itself, links not followed; the world first."""
    found: list[Found] = []
    stack: list[tuple[Names, str]] = [((), "")]
    while stack:
        path, parent = stack.pop()
        fd = os.open(world.joinpath(*path), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            status = os.fstat(fd)
            handle = identify(fd)
            found.append(Found(path, parent, directory=True, handle=handle, inode=(status.st_ino, status.st_dev)))
            with os.scandir(fd) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(((*path, entry.name), handle))
                        continue
                    inode = (entry.inode(), status.st_dev)
                    target = os.readlink(entry.name, dir_fd=fd) if entry.is_symlink() else ""
                    found.append(Found((*path, entry.name), handle, False, "", inode, target))
        finally:
            os.close(fd)
    return found


@dataclass(slots=True)
class Placement:
    """A directory under a name of another one, for a time. ``before`` is where it was moved from."""

    parent: str
    name: str
    since: int
    until: int = FOREVER
    before: str = ""


@dataclass(slots=True)
class Presence:
    """Some file under a name of a directory, for a time."""

    parent: str
    since: int
    until: int = FOREVER


class Chain(NamedTuple):
    """A path that a directory had, and the directories on the way, itself included."""

    path: Names
    handles: tuple[str, ...]


@dataclass(frozen=True)
class Happening:
    """What the kernel tells of an operation in one directory, if anyone asks."""

    event: str
    parent: str
    name: str
    directory: bool
    record: Record
    history: History

    @cached_property
    def chains(self) -> list[Chain]:
        """Where the directory can have been when it happened."""
        return list(self.history.chains(self.parent, self.record.begin, self.record.end))


@dataclass
class History:
    """From a walk when all was at rest, through the records since then."""

    start: Sequence[Found]
    records: Sequence[Record]
    placements: dict[str, list[Placement]] = field(default_factory=lambda: defaultdict(list))
    presences: dict[tuple[str, bool], list[Presence]] = field(default_factory=lambda: defaultdict(list))
    happenings: dict[tuple[str, str, bool], list[Happening]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self._open: dict[tuple[str, str], tuple[Presence, bool]] = {}
        self._top = self.start[0].handle
        for found in self.start[1:]:
            self._appear(found.parent, found.path[-1], ALWAYS, directory=found.directory)
            if found.directory:
                self.placements[found.handle].append(Placement(found.parent, found.path[-1], ALWAYS))
        for record in sorted(self.records):
            self._take(record)

    def targets(self) -> list[Names]:
        """Where the link has led in this time, the first first."""
        led = [found.target for found in self.start if found.path == (LINK,)]
        led += [TARGETS[int(record.name.split(".")[1])] for record in self.pointings()]
        return [tuple(target.split("/")) for target in dict.fromkeys(led)]

    def pointings(self) -> list[Record]:
        """When the link was pointed somewhere."""
        return [record for record in sorted(self.records) if record.to_name == LINK]

    def stays(self, path: Names) -> bool:
        """Whether the directory that is at a path at the start is there all the time, and so is each above it."""
        handle = next((found.handle for found in self.start if found.directory and found.path == path), "")
        always, at_last = self.chains(handle, ALWAYS, FOREVER), self.chains(handle, FOREVER, FOREVER)
        return len(list(always)) == len(list(at_last)) == 1

    def chains(self, handle: str, begin: int, end: int, below: frozenset[str] = frozenset()) -> Iterator[Chain]:
        """Every path that a directory can have had at a time between ``begin`` and ``end``."""
        if handle == self._top:
            yield Chain((), (handle,))
            return
        for place in self.placements.get(handle, ()):
            if place.since > end or place.until < begin or place.parent in below:
                continue
            above = self.chains(place.parent, max(begin, place.since), min(end, place.until), below | {handle})
            for chain in above:
                yield Chain((*chain.path, place.name), (*chain.handles, handle))

    def _take(self, record: Record) -> None:
        kind = record.operation.kind
        if kind in {"mkdir", "create", "symlink", "link"}:
            self._happen("CREATE", record.parent, record.name, record, directory=record.directory)
            self._appear(record.parent, record.name, record.begin, directory=record.directory)
            if record.directory:
                self.placements[record.child].append(Placement(record.parent, record.name, record.begin))
        elif kind in {"unlink", "rmdir"}:
            self._happen("DELETE", record.parent, record.name, record, directory=record.directory)
            self._disappear(record.parent, record.name, record.end)
            self._leave(record.child, record.end)
        elif kind == "chmod":
            self._happen("ATTRIB", record.parent, record.name, record, directory=record.directory)
        if kind in {"create", "write"}:
            self._happen("CLOSE_WRITE", record.parent, record.name, record, directory=False)
        if kind in {"rename", "exchange"}:
            self._move(record)

    def _move(self, record: Record) -> None:
        old, new = (record.parent, record.name), (record.to_parent, record.to_name)
        self._happen("MOVED_FROM", *old, record, directory=record.directory)
        self._happen("MOVED_TO", *new, record, directory=record.directory)
        self._disappear(*old, record.end)
        if record.replaced:
            self._disappear(*new, record.end)
        self._appear(*new, record.begin, directory=record.directory)
        self._place(record.child, *new, record)
        if record.operation.kind == "exchange":
            self._happen("MOVED_FROM", *new, record, directory=record.other_directory)
            self._happen("MOVED_TO", *old, record, directory=record.other_directory)
            self._appear(*old, record.begin, directory=record.other_directory)
            self._place(record.other, *old, record)
        else:
            self._leave(record.other, record.end)

    def _place(self, handle: str, parent: str, name: str, record: Record) -> None:
        if handle:
            before = self._leave(handle, record.end)
            self.placements[handle].append(Placement(parent, name, record.begin, before=before))

    def _leave(self, handle: str, when: int) -> str:
        if not handle:
            return ""
        self.placements[handle][-1].until = when
        return self.placements[handle][-1].parent

    def _appear(self, parent: str, name: str, when: int, *, directory: bool) -> None:
        presence = Presence(parent, when)
        self._open[parent, name] = presence, directory
        self.presences[name, directory].append(presence)

    def _disappear(self, parent: str, name: str, when: int) -> None:
        self._open.pop((parent, name))[0].until = when

    def _happen(self, event: str, parent: str, name: str, record: Record, *, directory: bool) -> None:
        happening = Happening(event, parent, name, directory, record, self)
        self.happenings[event, name, directory].append(happening)
