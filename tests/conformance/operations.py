"""The operations of the recordings, done on a container's files by a process of the host: the inodes are the same.

How an operation is done decides which events the kernel makes, so each is the plain system calls of its name and no
more: one ``read`` for a file, two ``getdents`` for a directory, a tree removed with files first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final


def _open_and_close(path: Path, flags: int, *, data: bytes = b"", size_bytes: int = 0) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        if data:
            os.write(descriptor, data)
        if size_bytes:
            os.read(descriptor, size_bytes)
    finally:
        os.close(descriptor)


def _remove_tree(path: Path) -> None:
    """Remove files before directories and keep each directory open until it is empty, as the recorded one did."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        names = sorted(os.listdir(descriptor))  # noqa: PTH208 - pathlib cannot list an open directory
        directories = [name for name in names if (path / name).is_dir() and not (path / name).is_symlink()]
        for name in names:
            if name not in directories:
                (path / name).unlink()
        for name in directories:
            _remove_tree(path / name)
    finally:
        os.close(descriptor)
    path.rmdir()


ONE_PATH: Final[dict[str, Callable[[Path], object]]] = {
    "write": lambda path: _open_and_close(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, data=b"hello\n"),
    "append": lambda path: _open_and_close(path, os.O_WRONLY | os.O_APPEND, data=b"more\n"),
    "openw": lambda path: _open_and_close(path, os.O_WRONLY),
    "openr": lambda path: _open_and_close(path, os.O_RDONLY),
    "read": lambda path: _open_and_close(path, os.O_RDONLY, size_bytes=65536),
    "listdir": os.listdir,
    "truncate": lambda path: os.truncate(path, 0),
    "unlink": Path.unlink,
    "mkdir": Path.mkdir,
    "makedirs": lambda path: path.mkdir(parents=True),
    "rmdir": Path.rmdir,
    "rmtree": _remove_tree,
}


def perform(rootfs: Path, operation: Sequence[str | int]) -> None:
    """Do one operation below ``rootfs``. Raises KeyError for an unknown one, OSError when it fails."""
    name, *arguments = operation
    first = _inside(rootfs, arguments[0])
    match name:
        case "chmod":
            first.chmod(int(arguments[1]))
        case "rename":
            first.rename(_inside(rootfs, arguments[1]))
        case "link":
            _inside(rootfs, arguments[1]).hardlink_to(first)
        case "symlink":
            _inside(rootfs, arguments[1]).symlink_to(str(arguments[0]))
        case _:
            ONE_PATH[str(name)](first)


def _inside(rootfs: Path, path: str | int) -> Path:
    return rootfs / str(path).lstrip("/")
