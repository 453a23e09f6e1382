"""File systems that cover a directory of a world for a while."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tests.soak.history import Found

CLONE_NEWNS: Final = 0x20000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000
MNT_DETACH: Final = 2

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _call(result: int, what: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def leave_namespace() -> bool:
    """Have mounts of our own, which nobody else sees; False without the right to."""
    if os.geteuid() != 0 or _libc.unshare(CLONE_NEWNS):
        return False
    _call(_libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None), "private mounts")
    return True


def mount(at: Path) -> None:
    """Cover a directory with an empty tmpfs."""
    _call(_libc.mount(b"none", os.fsencode(at), b"tmpfs", 0, None), f"mount {at}")


def unmount(at: Path, within_s: float) -> None:
    """Uncover it. Whoever looks into it at the moment is waited for."""
    deadline = time.monotonic() + within_s
    while _libc.umount2(os.fsencode(at), 0):
        if ctypes.get_errno() != errno.EBUSY or time.monotonic() > deadline:
            _call(-1, f"umount {at}")
        threading.Event().wait(0.01)


def detach(at: Path) -> None:
    """Uncover it, whoever uses it."""
    _call(_libc.umount2(os.fsencode(at), MNT_DETACH), f"umount {at}")


def covered(found: Sequence[Found]) -> Iterator[Found]:
    """The roots of file systems that are mounted in a world, innermost last."""
    devices = {entry.handle: entry.inode[1] for entry in found if entry.directory}
    for entry in sorted(found):
        if entry.directory and entry.path and entry.inode[1] != devices[entry.parent]:
            yield entry
