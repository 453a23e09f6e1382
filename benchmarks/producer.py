"""The process that makes events, and the C programs of the benchmarks."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from benchmarks.daemon import PROJECT, TIMEOUT_S

__all__ = ["Producer", "compiled", "next_line"]

FILES: Final = 1000
BUILT: Final = PROJECT / "build" / "benchmarks"


def compiled(name: str) -> Path:
    """The program made from ``name.c``, which lies beside this file."""
    source, program = Path(__file__).with_name(f"{name}.c"), BUILT / name
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        BUILT.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", program, source], check=True)
    return program


def next_line(stream: IO[bytes] | None) -> bytes:
    """What a program says next, without the newline."""
    line = stream.readline() if stream is not None else b""
    if not line:
        raise RuntimeError("a program of the benchmark has ended")
    return line.rstrip()


class Producer:
    """One producer and the folder of files that it works on."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is made. The process is started by the ``with`` block."""
        self.folder: Final = folder
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        """Make the files, and wait until all are open: from now on nothing happens unasked."""
        self.folder.mkdir()
        for number in range(FILES):
            (self.folder / str(number)).touch()
        command = [str(compiled("producer")), str(self.folder), str(FILES)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if next_line(self._process.stdout) != b"ready":
            raise RuntimeError("the producer did not start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End it."""
        self._process.communicate(timeout=TIMEOUT_S)  # closes its input

    def produce(self, kind: str, times: int, rate: int) -> float:
        """Do an operation ``times`` times, ``rate`` a second (0: as fast as it goes); returns the seconds it took."""
        if self._process.stdin is None:
            raise RuntimeError("the producer has no input")
        self._process.stdin.write(f"{kind} {times} {rate}\n".encode())
        self._process.stdin.flush()
        return int(next_line(self._process.stdout)) / 1e9
