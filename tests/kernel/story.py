r"""Tree stories: steps and what must be reported, side by side, played on a real engine and a real file system.

    a directory moved out of the tree goes quiet
        watch    /d recursive create movedfrom
        mkdir    /d/a        -> CREATE directory /d/a
        write    /d/a/x      -> CREATE file /d/a/x
        rename   /d/a /out   -> MOVED_FROM directory /d/a
        write    /out/y      ->

A line without indent is a title. A step is reported as what stands behind ``->``, in that order; further reports stand
on lines of their own that begin with ``->``. ``~>`` instead means: in any order. A step without an arrow reports
nothing. Operations with a ``;`` between them follow each other at once.
``/`` is the root of a process that is chrooted into a folder of the test; ``/d`` and ``/e`` are there from the start.
``repoint TARGET LINK`` makes a new link beside the old one and renames it over it, as ``ln -sfn`` does.
In names ``\xNN`` is a byte, and ``<255>`` a name of 255 letters.

``watch PATH… [recursive] [onlyDir] [followMove] [maxDepth=N] [ignore=NAME,…] [as=LABEL] EVENT…`` reports each path that
could not be watched as ``ENOENT /d/x``; with a label, its reports are ``LABEL: CREATE file /d/x``. Reports of different
labels have no order among them. ``unwatch [LABEL]`` ends it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import select
import shutil
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from argusd._inotify import EVENTS, Engine
from argusd._output import TEXT, Output
from argusd._records import Encoder
from argusd.templates import compile_format
from tests.kernel.container import MNT_DETACH, MS_BIND, Container, Way

TIMEOUT_S: Final = 20.0
ALL: Final = sum(EVENTS.values())
WORDS: Final = {
    **{name.lower().replace("_", ""): bit for name, bit in EVENTS.items()},
    "close": EVENTS["CLOSE_WRITE"] | EVENTS["CLOSE_NOWRITE"],
    "move": EVENTS["MOVED_FROM"] | EVENTS["MOVED_TO"],
    "all": ALL,
}

AT_FDCWD: Final = -100
RENAME_EXCHANGE: Final = 2

_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a story and those that belong to it."""

    line: int
    words: tuple[str, ...]
    reports: tuple[str, ...]
    ordered: bool


@dataclass(frozen=True, slots=True)
class Story:
    """A title and its steps."""

    title: str
    steps: tuple[Step, ...]


def parse(text: str) -> list[Story]:
    """Read stories; ValueError names the line that is none."""
    stories: list[Story] = []
    for number, line in enumerate(textwrap.dedent(text).splitlines(), 1):
        if not line.strip():
            continue
        if not line[0].isspace():
            stories.append(Story(line.strip(), ()))
            continue
        if not stories:
            raise ValueError(f"line {number}: a step before the first title")
        story = stories[-1]
        stories[-1] = Story(story.title, _with_line(story.steps, number, line))
    return stories


def _with_line(steps: tuple[Step, ...], number: int, line: str) -> tuple[Step, ...]:
    match = re.fullmatch(r"(.*?)(?:([-~])>(.*))?", re.sub(r"<(\d+)>", lambda match: "n" * int(match[1]), line))
    assert match
    words, report = tuple(match[1].split()), (match[3] or "").strip()
    reports = (report,) if report else ()
    if words:
        return (*steps, Step(number, words, reports, match[2] != "~"))
    if not steps or not reports:
        raise ValueError(f"line {number}: neither a step nor a report of one: {line!r}")
    last = steps[-1]
    return (*steps[:-1], Step(last.line, last.words, last.reports + reports, last.ordered and match[2] != "~"))


def raw(name: str) -> bytes:
    r"""The bytes of a name in which ``\xNN`` is one of them."""
    return name.encode().decode("unicode_escape").encode("latin-1")


class World:
    """The folder of a story, and what can be done in it."""

    def __init__(self, root: Path) -> None:
        """``root`` stands for ``/``."""
        self.root = root
        self._held: dict[str, int] = {}
        self._mounted: list[Path] = []
        self.operations: Final[dict[str, Callable[..., None]]] = {
            "mkdir": lambda path: self.path(path).mkdir(),
            "makedirs": lambda path: self.path(path).mkdir(parents=True),
            "rmdir": lambda path: self.path(path).rmdir(),
            "rmtree": lambda path: shutil.rmtree(self.path(path)),
            "unlink": lambda path: self.path(path).unlink(),
            "rename": self._rename,
            "exchange": lambda one, other: exchange(self.path(one), self.path(other)),
            "mv": self._mv,
            "link": lambda old, new: self.path(new).hardlink_to(self.path(old)),
            "mkfifo": lambda path: os.mkfifo(self.path(path)),
            "symlink": lambda target, link: self.path(link).symlink_to(target),
            "repoint": self._repoint,
            "copytree": self._copytree,
            "listdir": self._listdir,
            "chmod": lambda mode, path: self.path(path).chmod(int(mode, 8)),
            "truncate": lambda path: os.truncate(self.path(path), 0),
            "touch": self._touch,
            "write": lambda path: self._write(path, os.O_CREAT | os.O_TRUNC),
            "append": lambda path: self._write(path, os.O_APPEND),
            "read": self._read,
            "hold": self._hold,
            "release": lambda path: os.close(self._held.pop(path)),
            "mount": self._mount,
            "bind": self._bind,
            "umount": self._umount,
        }

    def path(self, name: str) -> Path:
        """A path of the story as it is on disk."""
        return Path(os.fsdecode(os.fsencode(self.root) + raw(name)))

    def close(self) -> None:
        """Let go of all that was held or mounted."""
        for descriptor in self._held.values():
            os.close(descriptor)
        for path in reversed(self._mounted):
            _libc.umount2(os.fsencode(path), MNT_DETACH)

    def _rename(self, old: str, new: str) -> None:
        self.path(old).rename(self.path(new))

    def _repoint(self, target: str, link: str) -> None:
        temporary = self.path(link + ".tmp")
        temporary.symlink_to(target)
        temporary.rename(self.path(link))

    def _mv(self, old: str, new: str) -> None:
        shutil.move(self.path(old), self.path(new))

    def _copytree(self, old: str, new: str) -> None:
        shutil.copytree(self.path(old), self.path(new))

    def _listdir(self, path: str) -> None:
        list(self.path(path).iterdir())

    def _touch(self, path: str) -> None:
        descriptor = os.open(self.path(path), os.O_WRONLY | os.O_CREAT)
        os.utime(descriptor)
        os.close(descriptor)

    def _write(self, path: str, flags: int) -> None:
        descriptor = os.open(self.path(path), os.O_WRONLY | flags)
        os.write(descriptor, b"x")
        os.close(descriptor)

    def _read(self, path: str) -> None:
        descriptor = os.open(self.path(path), os.O_RDONLY)
        os.read(descriptor, 100)
        os.close(descriptor)

    def _hold(self, path: str) -> None:
        self._held[path] = os.open(self.path(path), os.O_RDONLY)

    def _mount(self, path: str) -> None:
        _check(_libc.mount(b"argusd-story", os.fsencode(self.path(path)), b"tmpfs", 0, b"size=1m"))
        self._mounted.append(self.path(path))

    def _bind(self, source: str, path: str) -> None:
        _check(_libc.mount(os.fsencode(self.path(source)), os.fsencode(self.path(path)), None, MS_BIND, None))
        self._mounted.append(self.path(path))

    def _umount(self, path: str) -> None:
        _check(_libc.umount2(os.fsencode(self.path(path)), 0))
        self._mounted.remove(self.path(path))


def exchange(one: Path, other: Path) -> None:
    """Let two names swap what they stand for (renameat2(2))."""
    _check(_libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE))


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Watching:
    """An engine that watches in one container, and its lines as they come."""

    def __init__(self, place: Path, pid: int, pidfd: int, enter: str = "auto") -> None:
        """``place`` is a folder of its own for the sentinels, seen from our root; ``enter`` the way into containers."""
        self._place = place
        self._pid, self._pidfd = os.getpid(), os.pidfd_open(os.getpid())
        self._sentinels = 0
        self._buffer = b""
        self._labels: dict[str, int] = {}
        self._read_fd, self._write_fd = os.pipe()
        self.output = Output()
        self.output.add_descriptor(self._write_fd, TEXT)
        self.engine = Engine(self.output, enter)
        self.engine.start()
        self.counter = self.engine.new_counter()
        self.watch("sentinel", [os.fsencode(place)], EVENTS["CREATE"])
        os.close(self._pidfd)
        self._pid, self._pidfd = pid, pidfd

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def watch(
        self,
        label: str,
        paths: Sequence[bytes],
        mask: int,
        *,
        ignore: Sequence[bytes] = (),
        only_dir: bool = False,
        recursive: bool = False,
        max_depth: int = 0,
        follow_move: bool = False,
    ) -> tuple[int, ...]:
        """Watch from now on; returns an errno or 0 for each path."""
        template = compile_format("{pod}: {event} {ftype} {path}{sep}{file}")
        number = self.engine.subscribe(
            Encoder(template.segments, label, "", "", "", []),
            self.counter, self._pid, self._pidfd, paths, mask, ignore, only_dir, recursive, max_depth, follow_move,
        )  # fmt: skip
        self._labels[label] = number
        try:
            armed = self.engine.arm(number)
        except OSError:
            self.unwatch(label)
            raise
        self.engine.switch([number], [])
        return armed.errors

    def unwatch(self, label: str) -> None:
        """End a watch."""
        self.engine.switch([], [self._labels.pop(label)])

    def lines(self) -> list[str]:
        """Every line of what was done until now, ``LABEL: EVENT FTYPE PATH``.

        Events of one inotify instance come in order, and the sentinel's is the last. What a new directory held is
        found out by a thread of the engine: only when that is at rest, a second sentinel ends the lines.
        """
        lines = self._until_sentinel()
        deadline = time.monotonic() + TIMEOUT_S
        while not self.engine.settled():
            assert time.monotonic() < deadline, f"the engine never came to rest: {self.engine.statistics()}"
            select.select([], [], [], 0.001)
        return lines + self._until_sentinel()

    def _until_sentinel(self) -> list[str]:
        self._sentinels += 1
        sentinel = self._place / str(self._sentinels)
        sentinel.touch()
        found: list[str] = []
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            *whole, self._buffer = self._buffer.split(b"\n")
            found += [line.decode().split("] ", 1)[1] for line in whole]
            last = f"sentinel: CREATE file {sentinel}"
            if last in found:
                return [line for line in found if not line.startswith("sentinel: ")]
            left_s = max(0.0, deadline - time.monotonic())
            assert select.select([self._read_fd], [], [], left_s)[0], f"no sentinel, only {found}"
            self._buffer += os.read(self._read_fd, 1 << 20)

    def close(self) -> None:
        """Stop the engine, and close all descriptors."""
        self.engine.close()
        assert self.output.close(TIMEOUT_S)
        for descriptor in (self._read_fd, self._write_fd):
            os.close(descriptor)


class Stage:
    """Plays one story."""

    def __init__(self, folder: Path, way: Way = Way.OPENAT2) -> None:
        """Make a world in ``folder``, to be entered by ``way``."""
        for name in ("root/d", "root/e", "sentinels"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.world = World(folder / "root")
        self.container = Container(folder / "root", own_mounts=way.own_mounts)
        try:
            self.watching = Watching(folder / "sentinels", self.container.pid, self.container.pidfd, way.enter)
        except BaseException:
            self.container.close()
            raise

    def play(self, story: Story) -> None:
        """Do each step and compare; AssertionError names the first that was reported otherwise."""
        for step in story.steps:
            armed = list(self._do(step))
            reported = armed + [line.removeprefix("-: ") for line in self.watching.lines()]
            if _arranged(reported, ordered=step.ordered) != _arranged(step.reports, ordered=step.ordered):
                told = "\n".join(f"    {kind:8} {line}" for kind, lines in (
                    ("expected", step.reports), ("reported", reported)) for line in lines)  # fmt: skip
                raise AssertionError(f"{story.title}: {' '.join(step.words)[:100]}\n{told}")

    def _do(self, step: Step) -> Iterator[str]:
        words = list(step.words)
        while ";" in words:
            end = words.index(";")
            self.world.operations[words[0]](*words[1:end])
            words = words[end + 1 :]
        name, *arguments = words
        if name == "watch":
            yield from self._watch(arguments)
        elif name == "unwatch":
            self.watching.unwatch(arguments[0] if arguments else "-")
        else:
            self.world.operations[name](*arguments)

    def _watch(self, words: Iterable[str]) -> Iterator[str]:
        paths = [word for word in words if "/" in word]
        flags = {word for word in words if word in {"recursive", "onlyDir", "followMove"}}
        values = dict(word.split("=", 1) for word in words if "=" in word)
        mask = 0
        for word in set(words) - set(paths) - flags - {f"{key}={value}" for key, value in values.items()}:
            mask |= WORDS[word]
        errors = self.watching.watch(
            values.get("as", "-"),
            [raw(path) for path in paths],
            mask,
            ignore=[name.encode() for name in values.get("ignore", "").split(",") if name],
            only_dir="onlyDir" in flags,
            recursive="recursive" in flags,
            max_depth=int(values.get("maxDepth", "0")),
            follow_move="followMove" in flags,
        )
        for path, code in zip(paths, errors, strict=True):
            if code:
                yield f"{errno.errorcode[code]} {path}"

    def close(self) -> None:
        """Take the world down."""
        with contextlib.closing(self.container), contextlib.closing(self.world):
            self.watching.close()


def _arranged(reports: Iterable[str], *, ordered: bool) -> list[str]:
    """Reports by label, since only those of one label have an order, and of a ``~>`` step not even those."""
    reports = list(reports)
    return sorted(reports, key=_label) if ordered else sorted(reports)


def _label(report: str) -> str:
    first = report.split(" ", 1)[0]
    return first if first.endswith(":") else ""
