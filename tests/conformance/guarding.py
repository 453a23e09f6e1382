"""A running daemon as the tests of guards see it, and the operations of their recordings.

They are done by a process of the host, by one that was brought into the container, by the container's init itself, by a
child of it, and by a grandchild.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from argusd.proto import janus_pb2
from tests.conformance.lines import SENTINEL, Lines
from tests.conformance.watching import RPC_TIMEOUT_S
from tests.containers import RuncContainer
from tests.daemon import Daemon

FOLDER: Final = "/data/d"
INIT: Final = (
    "sh",
    "-c",
    # Each line is one command. The three files are made before the container starts.
    'while read -r command <"/ctl/command"; do eval "$command" >/ctl/said 2>&1; echo done >/ctl/done; done',
)
"""An init that does what it is told, so that things can be done by it and by its children."""
SHELL_PREFIX: Final = re.compile(r"^sh: eval: line \d+: ", re.MULTILINE)
"""How a shell begins its complaints about what it was told so."""


class Guarding(Lines):
    """A daemon with its stub, and the sentinel's guard."""

    def __init__(self, daemon: Daemon, sentinel: RuncContainer) -> None:
        self.stub = daemon.guards
        self._folder = sentinel.rootfs / "sentinel"
        self._folder.mkdir()
        self._touched = 0
        subject = janus_pb2.JanusGuardSubject(allow=["/sentinel"], event=["open"])
        self.stub.CreateGuard(
            janus_pb2.JanusdConfig(
                name=SENTINEL,
                nodeName=SENTINEL,
                podName=SENTINEL,
                cid=[sentinel.uri],
                subject=[subject],
                logFormat=f"{SENTINEL} {{path}}|",
            ),
            timeout=RPC_TIMEOUT_S,
        )
        super().__init__(daemon)

    def _touch(self) -> str:
        self._touched += 1
        (self._folder / str(self._touched)).touch()
        return f"{SENTINEL} /sentinel/{self._touched}|"


class GuardedContainer(RuncContainer):
    """A container whose init can be told what to do."""

    def __init__(self) -> None:
        super().__init__(init=INIT)

    def _start(self, folder: Path) -> int:
        control = self.rootfs / "ctl"
        control.mkdir()
        for name in ("command", "done"):
            os.mkfifo(control / name)
        return super()._start(folder)

    def prepare(self, line: str) -> None:
        """Do one line of a recording's setup. Raises ValueError for an unknown one."""
        words = shlex.split(line)
        match words:
            case ["mkdir", "-p", *folders]:
                for folder in folders:
                    self._path(folder).mkdir(parents=True, exist_ok=True)
            case ["files", *files, "containing", text]:
                for file in files:
                    self._path(file).write_text(text.replace("\\n", "\n"))
            case _:
                raise ValueError(line)

    def perform(self, operation: str) -> Any:
        """Do one operation; returns what a recording has as its result. Raises KeyError for an unknown one."""
        if operation in BY_THE_HOST:
            try:
                BY_THE_HOST[operation](self._path(FOLDER))
            except OSError as error:
                return errno.errorcode[error.errno or 0]
            return "ok"
        if operation in BY_INIT:
            return self._have_init(BY_INIT[operation])
        done = self.try_exec(["sh", "-c", f"exec {IN_THE_CONTAINER[operation]} 2>&1"])
        return {"rc": done.returncode, "out": done.stdout.strip()}

    def _have_init(self, command: str) -> str:
        control = self.rootfs / "ctl"
        (control / "command").write_text(f"{command}\n")
        (control / "done").read_text()
        return SHELL_PREFIX.sub("sh: ", (control / "said").read_text().strip())

    def _path(self, path: str) -> Path:
        return self.rootfs / path.lstrip("/")


def _open(path: Path, flags: int, data: bytes = b"") -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        if data:
            os.write(descriptor, data)
    finally:
        os.close(descriptor)


def _read(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.read(descriptor, 100)
    finally:
        os.close(descriptor)


BY_THE_HOST: Final[dict[str, Callable[[Path], object]]] = {
    "open_file": lambda folder: _open(folder / "f", os.O_RDONLY),
    "read_file": lambda folder: _read(folder / "f"),
    "write_file": lambda folder: _open(folder / "f", os.O_WRONLY, b"z"),
    "list_dir": os.listdir,
    "stat_file": lambda folder: (folder / "f").stat(),
    "read_subdir_file": lambda folder: _read(folder / "sub/g"),
    "list_subdir": lambda folder: os.listdir(folder / "sub"),  # noqa: PTH208  (one open, and no more)
    "create_file": lambda folder: _open(folder / "new", os.O_WRONLY | os.O_CREAT),
    "read_outside": lambda folder: _read(folder.parent / "o"),
}
IN_THE_CONTAINER: Final = {
    "cat_file": f"cat {FOLDER}/f",
    "ls_dir": f"ls {FOLDER}",
    "cat_sub": f"cat {FOLDER}/sub/g",
}
BY_INIT: Final = {
    "owner_builtin_read": f"x=; {{ read x <{FOLDER}/f; }} 2>/ctl/error; echo rc=$? x=$x; cat /ctl/error",
    "owner_child_cat": f"cat {FOLDER}/f; echo rc=$?",
    "owner_grandchild_cat": f"sh -c 'cat {FOLDER}/f; true'",
}
