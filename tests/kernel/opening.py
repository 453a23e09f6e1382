"""Processes that open files when told to, in a container or on the host: the daemon's own opens are never refused."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.kernel.container import Container

CLONE_NEWNS: Final = 0x20000
MS_READ_ONLY_VIEW: Final = 0x1 | 0x20 | 0x1000  # MS_RDONLY | MS_REMOUNT | MS_BIND
PR_SET_NAME: Final = 15
ANSWER_BYTES: Final = 4096

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _open(path: str, flags: int) -> None:
    os.close(os.open(path, flags))


def _read(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.read(descriptor, 1)
    finally:
        os.close(descriptor)


def _map(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        mmap.mmap(descriptor, 1, access=mmap.ACCESS_READ).close()
    finally:
        os.close(descriptor)


OPERATIONS: Final[dict[str, Callable[[str], object]]] = {
    "open": lambda path: _open(path, os.O_RDONLY | os.O_NONBLOCK),
    "open_to_write": lambda path: _open(path, os.O_WRONLY),
    "open_to_create": lambda path: _open(path, os.O_WRONLY | os.O_CREAT),
    "open_unnamed": lambda path: _open(path, os.O_WRONLY | os.O_TMPFILE),
    "open_path": lambda path: _open(path, os.O_PATH),
    "read": _read,
    "map": _map,
    "list": os.listdir,
    "exec": lambda path: os.execv(path, [path]),  # noqa: S606  (what is tested)
    "stat": os.stat,
    "mkdir": os.mkdir,
    "rmdir": os.rmdir,
    "unlink": os.unlink,
    "rename": lambda paths: Path(paths.split(" ")[0]).rename(paths.split(" ")[1]),
    "link": lambda paths: os.link(*paths.split(" ")),
    "chroot": os.chroot,
    "name": lambda name: _check(_libc.prctl(PR_SET_NAME, os.fsencode(name), 0, 0, 0)),
    "make_read_only": lambda path: _check(_libc.mount(None, os.fsencode(path), None, MS_READ_ONLY_VIEW, None)),
    "unshare": lambda _path: _check(_libc.unshare(CLONE_NEWNS)),
}


class Process:
    """A child that carries out one operation after the other."""

    def __init__(self, inside: Container | None = None) -> None:
        """``inside``: it joins the container as a process that a runtime executes there; else it stays on the host."""
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            with contextlib.suppress(BaseException):
                os.close(self._commands)
                os.close(self._answers)
                if inside is not None:
                    _join(inside)
                _obey(commands, answers)
            os._exit(0)
        os.close(commands)
        os.close(answers)
        assert self.do("stat", "/") == ""  # it is where it is to be

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def do(self, operation: str, path: str | Path, *, generation: int = 0) -> str:
        """Carry one out: itself, by a child (generation 1) or by a child of one. An errno's name, or nothing."""
        os.write(self._commands, os.fsencode(f"{operation} {generation} {path}\0"))
        return os.read(self._answers, ANSWER_BYTES).decode().strip()

    def close(self) -> None:
        """End it."""
        os.close(self._commands)
        os.close(self._answers)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _join(container: Container) -> None:
    root = os.open(f"/proc/{container.pid}/root", os.O_RDONLY)
    space = os.open(f"/proc/{container.pid}/ns/mnt", os.O_RDONLY)
    if not os.path.sameopenfile(space, os.open("/proc/self/ns/mnt", os.O_RDONLY)):
        _check(_libc.unshare(0x200))  # CLONE_FS
        _check(_libc.setns(space, CLONE_NEWNS))
    os.fchdir(root)
    os.chroot(".")
    os.chdir("/")


def _obey(commands: int, answers: int) -> None:
    while command := os.read(commands, ANSWER_BYTES):
        operation, generation, path = os.fsdecode(command).rstrip("\0").split(" ", 2)
        os.write(answers, (_carry_out(operation, path, int(generation)) + "\n").encode())


def _carry_out(operation: str, path: str, generation: int) -> str:
    if generation == 0 and operation != "exec":
        try:
            OPERATIONS[operation](path)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return ""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        if operation == "exec":
            try:
                OPERATIONS[operation](path)
            except OSError as error:
                os.write(writable, errno.errorcode[error.errno or 0].encode())
        else:
            os.write(writable, _carry_out(operation, path, generation - 1).encode())
        os._exit(0)
    os.close(writable)
    answer = os.read(readable, ANSWER_BYTES).decode()
    os.close(readable)
    os.waitpid(child, 0)
    return answer
