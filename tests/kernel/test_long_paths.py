"""Directories deeper than any path that a program can use: what is reported of them is bounded."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from argusd._inotify import EVENTS, Engine
from argusd._output import JSON, Output
from argusd._records import Encoder
from argusd.templates import DEFAULT_WATCH_TEMPLATE
from tests.waiting import TIMEOUT_S, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as the other tests of the engine")

PATH_LONGEST: Final = 4095
LINE_LONGEST: Final = (
    45_000  # bytes: a path of PATH_LONGEST bytes of which each becomes five, twice, and what is around
)


class Watching:
    """An engine whose JSON lines go into a pipe, read only when asked for."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self.output = Output()
        self.output.add_descriptor(self.writing, JSON)
        self.engine = Engine(self.output)
        self.engine.start()
        self.counter = self.engine.new_counter()

    def watch(self, folder: Path, *, follow_move: bool = False) -> None:
        """Report what is created below ``folder`` from now on."""
        encoder = Encoder(DEFAULT_WATCH_TEMPLATE.segments, "p", "n", "w", "c", [])
        pidfd = os.pidfd_open(os.getpid())
        try:
            number = self.engine.subscribe(
                encoder, self.counter, os.getpid(), pidfd, [os.fsencode(folder)], EVENTS["CREATE"], [], False, True, 0,
                follow_move,
            )  # fmt: skip
        finally:
            os.close(pidfd)
        assert self.engine.arm(number).errors == (0,)
        self.engine.switch([number], [])

    def settle(self) -> None:
        """Wait until nothing is left to be done for what the reader has seen."""
        until(self.engine.settled, "the engine comes to rest")

    def lines(self, count: int) -> list[bytes]:
        """All lines, when there are ``count``; the pipe is read from now on."""
        until(lambda: self.engine.statistics()["lines"] >= count, f"{count} lines")
        found = bytearray()

        def read() -> None:
            while piece := os.read(self.reading, 1 << 20):
                found.extend(piece)

        reader = threading.Thread(target=read)
        reader.start()
        self.engine.close()
        assert self.output.close(TIMEOUT_S)
        os.close(self.writing)
        reader.join()
        os.close(self.reading)
        return bytes(found).splitlines()


def events(lines: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


@contextlib.contextmanager
def deep_tree(folder: Path, names: list[bytes]) -> Iterator[None]:
    """Directories inside one another; removed at the end, since few programs can do that."""
    subprocess.run(["mkdir", folder], check=True)
    try:
        for descriptor in _descend(folder, names, make=True):
            del descriptor
        yield
    finally:
        subprocess.run(["rm", "-rf", folder], check=True)


def _descend(folder: Path, names: list[bytes], *, make: bool = False) -> Generator[int]:
    """The descriptor of each directory in turn."""
    descriptor = os.open(folder, os.O_PATH)
    try:
        for name in names:
            if make:
                os.mkdir(name, dir_fd=descriptor)
            below = os.open(name, os.O_PATH | os.O_DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
            yield descriptor
    finally:
        os.close(descriptor)


def create_in_each(folder: Path, names: list[bytes]) -> None:
    for descriptor in _descend(folder, names):
        os.close(os.open("f", os.O_WRONLY | os.O_CREAT, dir_fd=descriptor))


def expected(path: str) -> str:
    """What is written of a path, said as plainly as can be."""
    if len(path) <= PATH_LONGEST:
        return path
    begin = path[: path.rindex("/", 0, 1025)] if path[1024] != "/" else path[:1024]
    end = path[path.index("/", len(path) - 2048) :]
    left_out = path.count("/") - begin.count("/") - end.count("/")
    return f"{begin}//…{left_out} directories…/{end}"


@pytest.mark.parametrize("size", [1, 37, 255])
def test_a_path_that_no_program_can_use_is_shortened(tmp_path: Path, size: int) -> None:
    folder = tmp_path / "t"
    count = 6_000 // (size + 1)
    names = [str(number).zfill(size)[-size:].encode() for number in range(count)]
    watching = Watching()
    with deep_tree(folder, names):
        watching.watch(folder)
        create_in_each(folder, names)
        found = events(watching.lines(count))
    paths = [f"{folder}/{'/'.join(name.decode() for name in names[: depth + 1])}" for depth in range(count)]
    assert [event["path"] for event in found] == [expected(path) for path in paths]
    assert all("'" + event["path"] + "/f'" in event["message"] for event in found)
    assert any(len(path) > PATH_LONGEST for path in paths)


@pytest.mark.parametrize("size", [PATH_LONGEST, PATH_LONGEST + 1])
def test_the_longest_path_is_whole(tmp_path: Path, size: int) -> None:
    folder = tmp_path / "t"
    left = size - len(str(folder))
    names = [b"n" * 199] * (left // 200 - 1)
    names.append(b"e" * ((left - 200 * len(names)) // 2 - 1))
    names.append(b"f" * (left - 200 * (len(names) - 1) - len(names[-1]) - 2))
    path = f"{folder}/{b'/'.join(names).decode()}"
    assert len(path) == size
    watching = Watching()
    with deep_tree(folder, names):
        watching.watch(folder)
        create_in_each(folder, names)
        found = events(watching.lines(len(names)))
    assert found[-1]["path"] == expected(path)
    assert ("//" in found[-1]["path"]) == (size > PATH_LONGEST)


def test_a_directory_cannot_be_named_like_the_mark(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    names = ["…7 directories…".encode(), b"x"]
    watching = Watching()
    with deep_tree(folder, names):
        watching.watch(folder)
        create_in_each(folder, names)
        found = events(watching.lines(len(names)))
    assert not any("//" in event["path"] for event in found)


def test_a_long_subject_path_is_shortened_too(tmp_path: Path) -> None:
    """The tree begins deeper than what is kept of the beginning."""
    names = [b"s%0199d" % number for number in range(40)]
    folder = tmp_path / "t"
    subject = folder.joinpath(*(name.decode() for name in names[:15]))
    watching = Watching()
    with deep_tree(folder, names):
        watching.watch(subject)
        create_in_each(folder, names)
        found = events(watching.lines(len(names) - 14))
    assert found[-1]["path"] == expected(f"{folder}/{b'/'.join(names).decode()}")


def test_a_deep_tree_of_long_names_does_not_drown_what_others_do(tmp_path: Path) -> None:
    """Nobody reads the log meanwhile: all lines have room in the ring only because each is bounded."""
    names = [b"\xff" * 255] * 500
    other = tmp_path / "other"
    other.mkdir()
    watching = Watching()
    with deep_tree(tmp_path / "deep", names):
        watching.watch(tmp_path / "deep")
        watching.watch(other)
        create_in_each(tmp_path / "deep", names)
        for number in range(100):
            (other / str(number)).touch()
        lines = watching.lines(len(names) + 100)
    assert max(map(len, lines)) < LINE_LONGEST
    assert [event["file"] for event in events(lines) if event["path"] == str(other)] == [str(n) for n in range(100)]
    assert len(lines) == len(names) + 100
    assert watching.output.dropped() == 0


@contextlib.contextmanager
def nowhere(folder: Path) -> Iterator[int]:
    """The descriptor of a directory to which no path leads that a program can use."""
    names = [b"n" * 250] * 20
    with deep_tree(folder, names):
        descents = _descend(folder, names)
        for _name in names[1:]:
            next(descents)
        yield next(descents)
        descents.close()


def test_a_followed_directory_is_moved_where_no_path_leads(tmp_path: Path) -> None:
    """It is reported under its last path, with one notice, until it has a path again."""
    followed = tmp_path / "followed"
    (followed / "in").mkdir(parents=True)
    watching = Watching()
    with nowhere(tmp_path / "deep") as there:
        watching.watch(followed, follow_move=True)
        os.rename(followed, "x", dst_dir_fd=there)
        watching.settle()
        followed.touch()  # what is at the last path now is something else
        watching.settle()
        os.rename("x", "y", src_dir_fd=there, dst_dir_fd=there)
        watching.settle()
        os.mkdir("y/in/new", dir_fd=there)
        watching.settle()
        os.close(os.open("y/in/new/f", os.O_WRONLY | os.O_CREAT, dir_fd=there))
        watching.settle()
        os.rename("y", followed.with_name("back"), src_dir_fd=there)
        watching.settle()
        (followed.with_name("back") / "g").touch()
        watching.settle()
        notices = [(notice.kind, notice.path) for notice in watching.engine.notices()]
        found = events(watching.lines(3))
    assert [(event["path"], event["file"]) for event in found] == [
        (f"{followed}/in", "new"),
        (f"{followed}/in/new", "f"),
        (f"{tmp_path}/back", "g"),
    ]
    assert notices == [("beyond", str(followed))]
