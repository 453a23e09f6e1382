"""An engine that watches a world, its reports, and what the kernel says that it watches."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from argusd._inotify import Engine
from argusd._output import TEXT, Output
from argusd._records import Encoder
from argusd.templates import compile_format
from tests.soak.subjects import Subject

SETTLE_S: Final = 30.0
_TEMPLATE: Final = compile_format("|{pod}|{event}|{ftype}|{path}|{file}")
_WATCH: Final = re.compile(r"inotify wd:\w+ ino:(\w+) sdev:(\w+) mask:(\w+)")


class NeverSettlesError(Exception):
    """The engine did not come to rest."""


class Report(NamedTuple):
    """One line; ``path`` is from the root of the world."""

    label: str
    event: str
    directory: bool
    path: str
    file: str


class Watching:
    """One engine, reused for any number of worlds."""

    def __init__(self, settle_s: float = SETTLE_S) -> None:
        self._settle_s = settle_s
        self.refused = False
        """Whether the kernel had no watch left: somebody else has them, or has lowered the limit."""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._at = 0
        self.output = Output()
        self.output.add_descriptor(self._log.fileno(), TEXT)
        before = _inotify_descriptors()
        self.engine = Engine(self.output)
        (self._descriptor,) = _inotify_descriptors() - before
        self.engine.start()
        self._counter = self.engine.new_counter()
        self._pidfd = os.pidfd_open(os.getpid())
        self._numbers: list[int] = []
        fence = os.memfd_create("fence")
        self._fence_device = os.fstat(fence).st_dev
        os.close(fence)

    def watch(self, world: Path, subjects: Sequence[Subject]) -> None:
        """Watch from now on."""
        for subject in subjects:
            number = self.engine.subscribe(
                Encoder(_TEMPLATE.segments, subject.label, "", "", "", []),
                self._counter, os.getpid(), self._pidfd, [os.fsencode(world.joinpath(*subject.path))], subject.mask,
                [os.fsencode(name) for name in subject.ignore], subject.only_dir, subject.recursive, subject.max_depth,
                subject.follow_move,
            )  # fmt: skip
            self._numbers.append(number)
            self.engine.arm(number)
        self.engine.switch(self._numbers, [])

    def unwatch(self) -> None:
        """Forget the world."""
        self.engine.switch([], self._numbers)
        self._numbers = []
        self.settle()

    def settle(self) -> None:
        """Wait until all that happened is handled."""
        deadline = time.monotonic() + self._settle_s
        while not (self.engine.settled() and self.engine.settled()):  # the reader may take events while it looks
            if time.monotonic() > deadline:
                raise NeverSettlesError(str(self.engine.statistics()))
            threading.Event().wait(0.0005)

    def reports(self, world: Path) -> list[Report]:
        """What was reported since the last call, once the engine is at rest."""
        self.settle()
        if not self.output.flush(SETTLE_S) or self.output.dropped():
            raise NeverSettlesError("the log does not take the lines")
        size = os.fstat(self._log.fileno()).st_size
        lines = os.pread(self._log.fileno(), size - self._at, self._at).decode()
        self._at = size
        self.refused = self.refused or any(notice.errno == errno.ENOSPC for notice in self.engine.notices())
        return list(_parse(lines, str(world)))

    def watched(self) -> dict[tuple[int, int], int]:
        """Inode and device of each watch that the kernel knows, with its mask, without those of the engine itself."""
        text = Path(f"/proc/self/fdinfo/{self._descriptor}").read_text()
        found = {(int(m[1], 16), _device(int(m[2], 16))): int(m[3], 16) for m in _WATCH.finditer(text)}
        fences = [key for key in found if key[1] == self._fence_device]
        return {key: mask for key, mask in found.items() if key not in fences[:1]}

    def overflows(self) -> int:
        """How often the kernel's queue overflowed."""
        return self.engine.statistics()["overflows"]

    def close(self) -> None:
        """Stop the engine."""
        self.engine.close()
        self.output.close(SETTLE_S)
        os.close(self._pidfd)
        self._log.close()


def _parse(lines: str, world: str) -> Iterator[Report]:
    for line in lines.splitlines():
        _, label, event, ftype, path, file = line.split("|")
        yield Report(label, event, ftype == "directory", path.removeprefix(world).lstrip("/"), file)


def _device(kernel: int) -> int:
    """A device number as fdinfo shows it (20 bits minor) in the form of st_dev."""
    return os.makedev(kernel >> 20, kernel & 0xFFFFF)


def _inotify_descriptors() -> set[int]:
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if str(link.readlink()) == "anon_inode:inotify":
                found.add(int(link.name))
    return found
