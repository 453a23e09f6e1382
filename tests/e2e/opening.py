"""Processes that open files when told to, wherever a program can be started: see opener.c."""

from __future__ import annotations

import functools
import os
import select
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final, Self

ANSWER_TIMEOUT_S: Final = 20.0
GENERATIONS: Final = {"child": 1, "grandchild": 2, "orphan": -1}


def missing() -> str:
    """Why there is no opener here, in words for a skip; empty when there is one."""
    return "" if shutil.which("cc") else "needs a C compiler for the program that opens files"


@functools.cache
def _program() -> bytes:
    source = Path(__file__).with_name("opener.c")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["cc", "-O2", "-Wall", "-static", "-o", f"{folder}/opener", source], check=True)
        return Path(folder, "opener").read_bytes()


def write_opener(path: Path) -> None:
    """Make the program."""
    path.write_bytes(_program())
    path.chmod(0o755)


class Opener:
    """What one such process is told through: a folder that it sees, too. It may be started later."""

    def __init__(self, folder: Path) -> None:
        """Make ``folder``, which is the argument of the program."""
        folder.mkdir()
        for name in ("tasks", "answers"):
            os.mkfifo(folder / name)
        self._tasks = os.open(folder / "tasks", os.O_RDWR | os.O_CLOEXEC)
        self._answers = os.open(folder / "answers", os.O_RDWR | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def do(self, operation: str, *paths: str | Path, generation: int = 0) -> str:
        """Have an operation carried out, by the process itself or a descendant; an errno's name, or nothing."""
        os.write(self._tasks, f"{generation} {operation} {' '.join(map(str, paths))}\n".encode())
        answer = b""
        while not answer.endswith(b"\n"):
            if not select.select([self._answers], [], [], ANSWER_TIMEOUT_S)[0]:
                raise TimeoutError(f"{operation} {paths}: no answer within {ANSWER_TIMEOUT_S:.0f} s")
            answer += os.read(self._answers, 100)
        return answer.decode().strip().strip("-")

    def close(self) -> None:
        """Let go of the pipes. The process ends with its container."""
        os.close(self._tasks)
        os.close(self._answers)
