"""What is watched in a world, and what the rules say of it."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Final

from argusd._inotify import EVENTS

ENTRIES: Final = EVENTS["CREATE"] | EVENTS["DELETE"] | EVENTS["MOVED_FROM"] | EVENTS["MOVED_TO"]
MORE: Final = EVENTS["CLOSE_WRITE"] | EVENTS["DELETE_SELF"] | EVENTS["MOVE_SELF"] | EVENTS["ATTRIB"]

Path = tuple[str, ...]
"""Names from the root of the world."""

LINK: Final = "way"
"""A link in the root of the world that is pointed somewhere else now and then."""

TARGETS: Final = ("in/a", "in/b", "out/a", "in/a/c")
"""Where it is pointed to."""

KEPT: Final = "kept"
"""A directory in "in" that subscriptions follow."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One subscription: a path and the rules for what is below."""

    label: str
    path: Path
    mask: int
    recursive: bool = False
    max_depth: int = 0
    ignore: tuple[str, ...] = ()
    only_dir: bool = False
    follow_move: bool = False
    target: Path = ()
    """Where the link leads that is the first name of the path; nowhere: that is no link."""

    @property
    def through_link(self) -> bool:
        """Whether the path goes through the link."""
        return self.path[0] == LINK

    @property
    def is_plain(self) -> bool:
        """Whether what the path stands for is found by its names alone."""
        return not (self.through_link or self.follow_move)

    @property
    def place(self) -> Path:
        """The path without links."""
        return self.target + self.path[1:] if self.target else self.path

    def covers(self, directory: Path) -> bool:
        """Whether the rules ask for a watch on the directory at this path."""
        size = len(self.place)
        if directory[:size] != self.place or not (self.recursive or directory == self.place):
            return False
        if self.max_depth and len(directory) - size + 1 > self.max_depth:
            return False
        return not (self.recursive and any(name in self.ignore for name in self.told(directory)[len(self.path) - 1 :]))

    def told(self, directory: Path) -> Path:
        """Under which path something in a directory that it covers is reported."""
        return self.path + directory[len(self.place) :]

    def tells(self, path: Path) -> bool:
        """Whether it covers a directory that is reported under this path."""
        size = len(self.path)
        return path[:size] == self.path and self.covers(self.place + path[size:])

    def wants(self, event: str) -> bool:
        """Whether it asked for this event."""
        return bool(self.mask & EVENTS[event])

    def __str__(self) -> str:
        rules = [f"maxDepth={self.max_depth}"] * bool(self.max_depth) + [f"ignore={','.join(self.ignore)}"] * bool(
            self.ignore
        )
        rules += ["onlyDir"] * self.only_dir + ["followMove"] * self.follow_move
        events = [name for name, bit in EVENTS.items() if self.mask & bit]
        return " ".join([self.label, "/".join(self.path), *["recursive"] * self.recursive, *rules, *events])


def parse(text: str) -> Subject:
    """What str() of a subject has written."""
    label, path, *words = text.split()
    values = dict(word.split("=", 1) for word in words if "=" in word)
    return Subject(
        label,
        tuple(path.split("/")),
        sum(bit for name, bit in EVENTS.items() if name in words),
        recursive="recursive" in words,
        max_depth=int(values.get("maxDepth", 0)),
        ignore=tuple(filter(None, values.get("ignore", "").split(","))),
        only_dir="onlyDir" in words,
        follow_move="followMove" in words,
    )


FULL: Final = (
    Subject("all", ("in",), ENTRIES, recursive=True),
    Subject("deep", ("in",), ENTRIES, recursive=True, max_depth=3),
    Subject("ignoring", ("in",), ENTRIES | MORE, recursive=True, ignore=("b",)),
    Subject("one", ("in", "a"), ENTRIES),
    Subject("file", ("in", "file"), EVENTS["CLOSE_WRITE"]),
    Subject("below", ("in", "a"), ENTRIES | MORE, recursive=True),
    Subject("far", ("in", "a", "c"), ENTRIES, recursive=True, max_depth=2),
)
"""Every kind of rule at once, with paths that lie in each other."""

MORE_KINDS: Final = (
    Subject("only", ("in", "c"), ENTRIES, recursive=True, only_dir=True),
    Subject("link", (LINK,), ENTRIES, recursive=True),
    Subject("beyond", (LINK, "c"), ENTRIES | MORE, recursive=True, max_depth=2),
    Subject("follow", ("in", KEPT), ENTRIES | MORE, recursive=True, follow_move=True),
)
"""With paths that lead elsewhere now and then."""


def some(chance: random.Random) -> tuple[Subject, ...]:
    """A few of them, now and then with other masks."""
    chosen = chance.sample((*FULL, *MORE_KINDS), chance.randint(1, len(FULL)))
    if chance.random() < 0.5:
        return tuple(chosen)
    masks = (ENTRIES, ENTRIES | MORE, EVENTS["CREATE"], EVENTS["CREATE"] | EVENTS["CLOSE_WRITE"], EVENTS["MOVED_TO"])
    return tuple(
        subject if subject.label == "file" else replace(subject, mask=chance.choice(masks)) for subject in chosen
    )
