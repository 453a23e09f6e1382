"""The programs that read events and tell them: argusd in two ways, and what else there is for that.

Each watches a folder of its own and writes to a file of its own. All run at the same time; those whose folder is quiet
sleep. What one has told so far is known by a mark: a file that is made in its folder, whose name comes out at the end
of all that was before, because the kernel's queue is in order.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from benchmarks import processes
from benchmarks.daemon import TIMEOUT_S, MeasuredDaemon
from benchmarks.producer import BUILT, compiled

__all__ = ["ARGUSD", "BARE", "INOTIFYWAIT", "ONE_SINK", "SCRIPTS", "Reader", "Told", "readers"]

ARGUSD: Final = "argusd"
"""As users run it: JSON in a file that stderr goes to, text in ``argusd.INFO``."""
ONE_SINK: Final = "argusd, one output"
"""Without ``argusd.INFO``."""
BARE: Final = "C reader"
INOTIFYWAIT: Final = "inotifywait -m"
SCRIPTS: Final = ("inotify_simple", "watchdog", "watchfiles")
MARK: Final = "end-"
LOOK_AGAIN_S: Final = 0.005
MARK_AGAIN_S: Final = 0.1
_OVERFLOW: Final = re.compile(rb"overflow", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Told:
    """What a program has told of one run."""

    events: int
    overflows: int
    """Of the kernel's queue, as far as the program tells of them."""


class Reader:
    """A program that watches ``folder`` and appends lines to ``output``, one for each event."""

    def __init__(self, name: str, folder: Path, output: Path, pid: int) -> None:
        """It runs already, and watches."""
        self.name: Final = name
        self._folder = folder
        self._output = output
        self._pid = pid
        self._marks = 0
        self._pieces: list[bytes] = []

    def cpu_s(self) -> float:
        """The time that its processes have run."""
        return processes.cpu_s(self._pid)

    def finish(self) -> None:
        """Wait until it has told all that has happened, and has noticed that there is no more."""
        self._marks += 1
        mark = self._folder / f"{MARK}{self._marks:06}"
        start_s = marked_s = time.monotonic()
        mark.touch()
        with self._output.open("rb") as output:
            output.seek(sum(map(len, self._pieces)))
            while not self._hears(output, mark.name.encode()):
                now_s = time.monotonic()
                if now_s > start_s + TIMEOUT_S:
                    raise TimeoutError(f"{self.name} does not tell of {mark}")
                if now_s > marked_s + MARK_AGAIN_S:  # the queue was full, and the mark is lost
                    marked_s = now_s
                    mark.write_bytes(b"x")
                time.sleep(LOOK_AGAIN_S)

    def told(self) -> Told:
        """What it has told since the last time."""
        lines = b"".join(self._pieces).splitlines()
        self._pieces.clear()
        os.truncate(self._output, 0)
        return self._count(lines)

    def _hears(self, output: IO[bytes], mark: bytes) -> bool:
        """Read on; whether the mark is in what is new."""
        rest = self._pieces[-1][-len(mark) :] if self._pieces else b""
        self._pieces.append(output.read())
        return mark in rest + self._pieces[-1]

    def _count(self, lines: Sequence[bytes]) -> Told:
        place, mark = bytes(self._folder) + b"/", MARK.encode()
        events = sum(place in line and mark not in line for line in lines)
        return Told(events, sum(place not in line and _OVERFLOW.search(line) is not None for line in lines))


class BareReader(Reader):
    """The C reader, which counts instead of writing."""

    def _count(self, lines: Sequence[bytes]) -> Told:
        counts = [tuple(map(int, line.split()[1:])) for line in lines if line.startswith(MARK.encode())]
        return Told(sum(events for events, _ in counts), sum(overflows for _, overflows in counts))


@contextlib.contextmanager
def readers(top: Path, folders: dict[str, Path]) -> Iterator[list[Reader]]:
    """All of them, each watching the folder of its name; outputs go below ``top``."""
    with contextlib.ExitStack() as stack:
        found = []
        for number, (name, folder) in enumerate(folders.items()):
            place = top / str(number)
            place.mkdir()
            if name in {ARGUSD, ONE_SINK}:
                daemon = stack.enter_context(MeasuredDaemon(place, flags=["-log_dir="] if name == ONE_SINK else []))
                daemon.watch(folder, ["all"])
                found.append(Reader(name, folder, daemon.log, daemon.pid))
            else:
                kind = BareReader if name == BARE else Reader
                process = stack.enter_context(_started(_command(name, folder), place / "lines"))
                found.append(kind(name, folder, place / "lines", process.pid))
        yield found


def _command(name: str, folder: Path) -> list[str]:
    if name == BARE:
        return [str(compiled("reader")), str(folder), MARK]
    if name == INOTIFYWAIT:
        return ["inotifywait", "-m", str(folder)]
    return [
        str(BUILT / "venv" / "bin" / "python"),
        str(Path(__file__).parent / "scripts" / f"{name}_lines.py"),
        str(folder),
    ]


@contextlib.contextmanager
def _started(command: list[str], lines: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program and wait until it says, on stdout or stderr, that it watches."""
    errors = lines.with_name("errors")
    with lines.open("ab") as stdout, errors.open("ab") as stderr:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while b"ready" not in lines.read_bytes() and b"Watches established" not in errors.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not watch: {errors.read_text()}")
            time.sleep(LOOK_AGAIN_S)
        yield process
    finally:
        process.kill()
        process.wait()
