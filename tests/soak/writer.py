"""A process that works at random in a world, on demand, and tells what it did."""

from __future__ import annotations

import pickle
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tests.soak.operations import Doer, Operation, Record
from tests.soak.subjects import LINK, TARGETS

NAMES: Final = ("a", "b", "c", "d", "file")
"""Names that are used again and again, for directories and files alike."""


class Writer:
    """Chooses operations as it goes, and carries them out."""

    def __init__(self, doer: Doer, chance: random.Random, name: str) -> None:
        """``name`` keeps the names of this writer's files apart from those of others."""
        self._doer = doer
        self._chance = chance
        self._name = name
        self._made = 0
        self._directories = ["", "in", "out", "in/a", "in/b", "in/c", "out/a", "in/kept"]
        self._files: list[str] = ["in/file"]
        self._deeds: Final[list[tuple[int, Callable[[], None]]]] = [
            (20, self._create),
            (8, self._write),
            (8, self._rename_file),
            (6, self._unlink),
            (10, self._mkdir),
            (5, self._plant),
            (12, self._move_directory),
            (4, self._exchange),
            (5, self._rmtree),
            (2, self._rmdir),
            (3, self._save),
            (2, self._symlink),
            (2, self._link),
            (3, self._chmod),
            (3, self._look),
            (1, self._move_subject),
            (1, self._point),
        ]

    def work(self, operations: int, until_s: float) -> list[Record]:
        """Do about as many operations, or until that monotonic time."""
        self._doer.records = []
        weights = [weight for weight, _ in self._deeds]
        while len(self._doer.records) < operations and time.monotonic() < until_s:
            for _, deed in self._chance.choices(self._deeds, weights, k=8):
                deed()
        return self._doer.records

    def _do(self, kind: str, path: str, to: str = "") -> bool:
        if (kind in {"rename", "exchange", "link"} and "/l" in path) or (kind == "exchange" and "/l" in to):
            return False
        return self._doer.perform(Operation(kind, path.removeprefix("/"), to.removeprefix("/")))

    def _new(self) -> str:
        self._made += 1
        return f"u{self._name}.{self._made}"

    def _directory(self) -> str:
        return self._chance.choice(self._directories)

    def _file_name(self) -> str:
        return self._chance.choice(NAMES) if self._chance.random() < 0.1 else self._new()

    def _keep(self, known: list[str], path: str) -> None:
        known.append(path.removeprefix("/"))
        if len(known) > 60:
            del known[self._chance.randrange(1, len(known))]

    def _create(self, directory: str | None = None) -> None:
        path = f"{self._directory() if directory is None else directory}/{self._file_name()}"
        if self._do("create", path):
            self._keep(self._files, path)

    def _write(self) -> None:
        self._do("write", self._chance.choice(self._files))

    def _chmod(self) -> None:
        self._do("chmod", self._chance.choice(self._files + self._directories[3:]))

    def _rename_file(self) -> None:
        old = self._chance.choice(self._files)
        new = f"{self._directory()}/{self._file_name()}"
        if self._do("rename", old, new):
            self._keep(self._files, new)

    def _save(self) -> None:
        path = self._chance.choice(self._files)
        draft = f"{path.rpartition('/')[0]}/{self._new()}"
        if self._do("create", draft):
            self._do("write", draft)
            self._do("rename", draft, path)

    def _unlink(self) -> None:
        self._do("unlink", self._chance.choice(self._files))

    def _link(self) -> None:
        self._do("link", self._chance.choice(self._files), f"{self._directory()}/{self._new()}")

    def _symlink(self) -> None:
        self._do("symlink", f"{self._directory()}/l{self._new()}", self._chance.choice(["a", "../b", "/", "file"]))

    def _mkdir(self) -> None:
        path = f"{self._directory()}/{self._chance.choice(NAMES)}"
        if path.count("/") < 12 and self._do("mkdir", path):
            self._keep(self._directories, path)
            if self._chance.random() < 0.5:
                self._create(path)

    def _plant(self) -> None:
        """Make a deep tree with files in it at once; often aside, to be moved in."""
        top = path = f"{self._directory()}/{self._chance.choice(NAMES)}"
        for _ in range(self._chance.randint(2, 6)):
            if path.count("/") > 12 or not self._do("mkdir", path):
                break
            self._keep(self._directories, path)
            for _ in range(self._chance.randint(0, 2)):
                self._create(path)
            path = f"{path}/{self._chance.choice(NAMES)}"
        if self._chance.random() < 0.5:
            self._do("rename", top, f"{self._directory()}/{self._chance.choice(NAMES)}")

    def _move_directory(self) -> None:
        old = self._directory()
        if "/" not in old:
            return
        new = f"{self._directory()}/{self._chance.choice(NAMES)}"
        if self._do("rename", old, new):
            self._keep(self._directories, new)
            if self._chance.random() < 0.3:
                self._create(new)
            if self._chance.random() < 0.2:
                self._do("rename", new, old)

    def _move_subject(self) -> None:
        """Replace what subscriptions are about, or what stands above it, and often put it back."""
        path = self._chance.choice(["in", "in/a", "in/a/c", "in/file"])
        aside = f"out/{self._chance.choice(NAMES)}"
        if self._do("rename", path, aside):
            if self._chance.random() < 0.4:
                self._do("mkdir", path)
                self._create(path)
            if self._chance.random() < 0.8:
                self._do("rename", aside, path)
        if path == "in":
            self._do("mkdir", "in")

    def _point(self) -> None:
        """Point the link somewhere else."""
        number = self._chance.randrange(len(TARGETS))
        draft = f"{LINK}.{number}.{self._new()}"
        if self._do("symlink", draft, TARGETS[number]):
            self._do("rename", draft, LINK)

    def _exchange(self) -> None:
        pool = self._directories[3:] + self._files if self._chance.random() < 0.3 else self._directories[3:]
        self._do("exchange", self._chance.choice(pool), self._chance.choice(pool))

    def _rmdir(self) -> None:
        self._do("rmdir", self._directory())

    def _rmtree(self) -> None:
        path = self._directory()
        if "/" in path:
            self._empty(path, 0)
            self._do("rmdir", path)

    def _empty(self, path: str, depth: int) -> None:
        for name, directory in self._doer.list(path):
            if directory and depth < 20:
                self._empty(f"{path}/{name}", depth + 1)
            self._do("rmdir" if directory else "unlink", f"{path}/{name}")

    def _look(self) -> None:
        """Find out what is where by now, going down at random."""
        path = self._chance.choice(["in", "in", "out"])
        while True:
            found = self._doer.list(path)
            for name, directory in found[:6]:
                self._keep(self._directories if directory else self._files, f"{path}/{name}")
            below = [name for name, directory in found if directory]
            if not below or self._chance.random() < 0.2:
                return
            path = f"{path}/{self._chance.choice(below)}"


class Process:
    """A writer in a process of its own."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.soak.writer"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )  # fmt: skip

    def begin(self, world: Path, locks: Path, seed: str, operations: int, until_s: float) -> None:
        """Have it work."""
        assert self._process.stdin
        pickle.dump((str(world), str(locks), seed, f"{self._name}.{seed}", operations, until_s), self._process.stdin)
        self._process.stdin.flush()

    def end(self) -> list[Record]:
        """Wait until it is done; what it did."""
        assert self._process.stdout
        (size,) = struct.unpack("I", self._process.stdout.read(4))
        records: list[Record] = pickle.loads(self._process.stdout.read(size))  # noqa: S301 - of our own process
        return records

    def close(self) -> None:
        """End it."""
        self._process.communicate()


def _serve() -> None:
    while True:
        try:
            world, locks, seed, name, operations, until_s = pickle.load(sys.stdin.buffer)  # noqa: S301 - of our own parent
        except EOFError:
            return
        doer = Doer(Path(world), Path(locks))
        records: Sequence[Record] = Writer(doer, random.Random(seed), name).work(operations, until_s)
        doer.close()
        answer = pickle.dumps(records)
        sys.stdout.buffer.write(struct.pack("I", len(answer)) + answer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
