"""The folders that the one-file binary unpacks itself into, and those of daemons that were killed.

A launcher that gets SIGKILL leaves its folder behind. Each daemon therefore puts a mark into its own folders and keeps
a lock on it, which the kernel drops when the process is gone, however it ended. A mark that can be locked belongs to no
living daemon, and its folder can go. A folder without a mark is one that is just being unpacked, or is not ours.

The folder that they lie in is usually /tmp, where anybody can put anything. Only a directory of our own user that no
other may write to is considered. It is opened once, without following a link, and its contents are removed through that
descriptor.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

__all__ = ["MARK", "keep", "remove_left"]

MARK: Final = ".argusd-unpacked"
_PREFIXES: Final = ("staticx-", "_MEI")
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def keep(folders: Iterable[Path]) -> None:
    """Mark folders as those of this process, for as long as it lives."""
    for folder in folders:
        with contextlib.suppress(OSError):  # a full disk: then it is not removed later on, which is all there is to it
            mark = os.open(folder / MARK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)  # never closed


def remove_left(parent: Path) -> list[str]:
    """Remove what killed daemons of this user have left in a folder; returns the names."""
    removed = []
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        top = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, top)
        names = [entry.name for entry in os.scandir(top)]
        removed = [name for name in names if name.startswith(_PREFIXES) and _remove(top, name)]
    return removed


def _remove(top: int, name: str) -> bool:
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        folder = os.open(name, _FOLDER, dir_fd=top)
        stack.callback(os.close, folder)
        found = os.fstat(folder)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
            return False
        mark = os.open(MARK, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        stack.callback(os.close, mark)
        if not stat.S_ISREG(os.fstat(mark).st_mode) or os.fstat(mark).st_uid != os.geteuid():
            return False
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: that daemon lives
        for entry in os.scandir(folder):
            if entry.name == MARK:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.name, dir_fd=folder)
            else:
                os.unlink(entry.name, dir_fd=folder)
        os.unlink(MARK, dir_fd=folder)  # last: what is half removed is found again
        os.rmdir(name, dir_fd=top)
        return True
    return False
