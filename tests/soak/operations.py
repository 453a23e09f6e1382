"""Operations on a tree, each carried out with a record of what it did, to which directories, and when.

A path says little while other processes rename its directories. So every operation holds its parent directories open,
and records them by file handle, which no other file of the file system ever has. While an operation works on an entry
of a directory, no other process of the test does: a lock for each entry keeps the record exact. What stands above that
entry may be renamed meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import stat
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

AT_EMPTY_PATH: Final = 0x1000
AT_HANDLE_FID: Final = 0x200
RENAME_EXCHANGE: Final = 2
HANDLE_BYTES: Final = 128

_libc: Final = ctypes.CDLL(None, use_errno=True)
_handle: Final = ctypes.create_string_buffer(8 + HANDLE_BYTES)
_mount: Final = ctypes.c_int()


class Operation(NamedTuple):
    """One step of a script: ``kind path [to]``, paths from the root of the world; ``pause`` takes microseconds."""

    kind: str
    path: str
    to: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.path} {self.to}".rstrip()


class Record(NamedTuple):
    """What an operation did. Times are monotonic nanoseconds just before and just after its system call.

    ``child`` and ``other`` are the handles of the directories that were moved, made or removed; empty for other files.
    """

    begin: int
    end: int
    operation: Operation
    parent: str
    name: str
    directory: bool
    child: str = ""
    to_parent: str = ""
    to_name: str = ""
    replaced: bool = False
    other_directory: bool = False
    other: str = ""


class BusyError(Exception):
    """Another process works on the same entry."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in an open directory."""

    parent_fd: int
    parent: str
    name: str

    def mode(self) -> int:
        """The st_mode of what the name stands for; FileNotFoundError when there is nothing."""
        return os.stat(self.name, dir_fd=self.parent_fd, follow_symlinks=False).st_mode

    def identity(self) -> str:
        """The handle of the directory that the name stands for."""
        fd = os.open(self.name, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY, dir_fd=self.parent_fd)
        try:
            return identify(fd)
        finally:
            os.close(fd)


def identify(fd: int) -> str:
    """The handle of an open file: inode and generation (name_to_handle_at(2))."""
    for flags in (AT_EMPTY_PATH, AT_EMPTY_PATH | AT_HANDLE_FID):
        struct.pack_into("Ii", _handle, 0, HANDLE_BYTES, 0)
        if _libc.name_to_handle_at(fd, b"", _handle, ctypes.byref(_mount), flags) == 0:
            size = struct.unpack_from("I", _handle)[0]
            return f"{os.fstat(fd).st_dev:x}:{_handle.raw[8 : 8 + size].hex()}"
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Doer:
    """Carries out operations in a world and keeps the records."""

    def __init__(self, world: Path, locks: Path | None = None) -> None:
        """``locks`` is a file that all processes share which work in this world; None when there is only this one."""
        self.world_fd = os.open(world, os.O_PATH | os.O_DIRECTORY)
        self._locks_fd = -1 if locks is None else os.open(locks, os.O_RDWR | os.O_CREAT)
        self.records: list[Record] = []
        self._kinds: Final[dict[str, Callable[[Operation, Sequence[Entry]], Record]]] = {
            "mkdir": _mkdir,
            "create": _create,
            "write": _write,
            "chmod": _chmod,
            "symlink": _symlink,
            "unlink": _unlink,
            "rmdir": _rmdir,
            "link": _link,
            "rename": _rename,
            "exchange": _exchange,
        }

    def close(self) -> None:
        """Close what is open."""
        os.close(self.world_fd)
        if self._locks_fd >= 0:
            os.close(self._locks_fd)

    def perform(self, operation: Operation) -> bool:
        """Do it and record it; False when it could not be done."""
        if operation.kind == "pause":
            end = time.monotonic_ns() + int(operation.path) * 1000
            while time.monotonic_ns() < end:
                pass
            return True
        try:
            with contextlib.ExitStack() as held:
                paths = [operation.path]
                if operation.kind in {"link", "rename", "exchange"}:
                    paths.append(operation.to)
                entries = [self._entry(path, held) for path in paths]
                if self._locks_fd >= 0:
                    held.enter_context(self._locked(entries))
                self.records.append(self._kinds[operation.kind](operation, entries))
        except (OSError, BusyError):
            return False
        return True

    def list(self, path: str) -> list[tuple[str, bool]]:
        """Names in a directory, and which of them are directories; empty when it is gone."""
        try:
            fd = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=self.world_fd)
        except OSError:
            return []
        try:
            with os.scandir(fd) as found:
                return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
        finally:
            os.close(fd)

    def _entry(self, path: str, held: contextlib.ExitStack) -> Entry:
        parent, _, name = path.rpartition("/")
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
        fd = os.open(parent or ".", flags, dir_fd=self.world_fd)
        held.callback(os.close, fd)
        return Entry(fd, identify(fd), name)

    @contextlib.contextmanager
    def _locked(self, entries: Sequence[Entry]) -> Iterator[None]:
        places = {zlib.crc32(f"{entry.parent}/{entry.name}".encode()) for entry in entries}
        locked = []
        try:
            for place in places:
                try:
                    fcntl.lockf(self._locks_fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
                except OSError as error:
                    raise BusyError from error
                locked.append(place)
            yield
        finally:
            for place in locked:
                fcntl.lockf(self._locks_fd, fcntl.LOCK_UN, 1, place)


def _record(operation: Operation, entry: Entry, begin: int, **more: str | bool) -> Record:
    return Record(begin, time.monotonic_ns(), operation, entry.parent, entry.name, **more)  # type: ignore[arg-type] # kinds of fields are mixed


def _mkdir(operation: Operation, entries: Sequence[Entry]) -> Record:
    (entry,) = entries
    begin = time.monotonic_ns()
    os.mkdir(entry.name, dir_fd=entry.parent_fd)
    return _record(operation, entry, begin, directory=True)._replace(child=entry.identity())


def _create(operation: Operation, entries: Sequence[Entry]) -> Record:
    (entry,) = entries
    begin = time.monotonic_ns()
    fd = os.open(entry.name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, dir_fd=entry.parent_fd)
    os.close(fd)
    return _record(operation, entry, begin, directory=False)


def _write(operation: Operation, entries: Sequence[Entry]) -> Record:
    (entry,) = entries
    flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    begin = time.monotonic_ns()
    fd = os.open(entry.name, flags, dir_fd=entry.parent_fd)
    os.write(fd, b"x")
    os.close(fd)
    return _record(operation, entry, begin, directory=False)


def _chmod(operation: Operation, entries: Sequence[Entry]) -> Record:
    (entry,) = entries
    mode = entry.mode()
    if stat.S_ISLNK(mode):
        raise OSError("the mode of a link is nobody's")
    directory = stat.S_ISDIR(mode)
    child = entry.identity() if directory else ""
    if os.stat(entry.name, dir_fd=entry.parent_fd).st_dev != os.fstat(entry.parent_fd).st_dev:
        raise OSError("a mount point: the directory above is not told of it")
    begin = time.monotonic_ns()
    os.chmod(entry.name, mode ^ 0o010, dir_fd=entry.parent_fd)
    return _record(operation, entry, begin, directory=directory, child=child)


def _symlink(operation: Operation, entries: Sequence[Entry]) -> Record:
    (entry,) = entries
    begin = time.monotonic_ns()
    os.symlink(operation.to, entry.name, dir_fd=entry.parent_fd)
    return _record(operation, entry, begin, directory=False)


def _unlink(operation: Operation, entries: Sequence[Entry]) -> Record:
    (entry,) = entries
    begin = time.monotonic_ns()
    os.unlink(entry.name, dir_fd=entry.parent_fd)
    return _record(operation, entry, begin, directory=False)


def _rmdir(operation: Operation, entries: Sequence[Entry]) -> Record:
    (entry,) = entries
    child = entry.identity()
    begin = time.monotonic_ns()
    os.rmdir(entry.name, dir_fd=entry.parent_fd)
    return _record(operation, entry, begin, directory=True, child=child)


def _link(operation: Operation, entries: Sequence[Entry]) -> Record:
    old, new = entries
    begin = time.monotonic_ns()
    os.link(old.name, new.name, src_dir_fd=old.parent_fd, dst_dir_fd=new.parent_fd, follow_symlinks=False)
    return _record(operation, new, begin, directory=False)


def _rename(operation: Operation, entries: Sequence[Entry]) -> Record:
    return _moved(operation, entries, 0)


def _exchange(operation: Operation, entries: Sequence[Entry]) -> Record:
    return _moved(operation, entries, RENAME_EXCHANGE)


def _moved(operation: Operation, entries: Sequence[Entry], flags: int) -> Record:
    old, new = entries
    status = os.stat(old.name, dir_fd=old.parent_fd, follow_symlinks=False)
    directory = stat.S_ISDIR(status.st_mode)
    child = old.identity() if directory else ""
    replaced = other_directory = False
    other = ""
    with contextlib.suppress(FileNotFoundError):
        target = os.stat(new.name, dir_fd=new.parent_fd, follow_symlinks=False)
        if (target.st_dev, target.st_ino) == (status.st_dev, status.st_ino):
            raise OSError("two names of one file: nothing happens")
        replaced, other_directory = True, stat.S_ISDIR(target.st_mode)
        other = new.identity() if other_directory else ""
    begin = time.monotonic_ns()
    names = os.fsencode(old.name), os.fsencode(new.name)
    if _libc.renameat2(old.parent_fd, names[0], new.parent_fd, names[1], flags) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return _record(
        operation, old, begin, directory=directory, child=child, to_parent=new.parent, to_name=new.name,
        replaced=replaced, other_directory=other_directory, other=other,
    )  # fmt: skip
