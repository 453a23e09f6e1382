"""The inotify watches of a process, as the kernel lists them, and how many it gives."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks import processes

__all__ = ["instances", "kernel_watches", "room_for"]

LIMIT: Final = Path("/proc/sys/fs/inotify/max_user_watches")


def instances(pid: int) -> list[list[str]]:
    """The inotify instances of a process and all below it; each as its watches: number, inode, file system, mask."""
    found = []
    for process in processes.tree(pid):
        for descriptor in Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                if str(descriptor.readlink()) == "anon_inode:inotify":
                    text = Path(f"/proc/{process}/fdinfo/{descriptor.name}").read_text()
                    found.append([line for line in text.splitlines() if line.startswith("inotify wd:")])
    return found


def kernel_watches(pid: int) -> list[str]:
    """All watches of a process and all below it."""
    return sorted(line for instance in instances(pid) for line in instance)


@contextlib.contextmanager
def room_for(count: int) -> Iterator[None]:
    """Have the kernel give at least so many watches; needs root where it gives fewer."""
    before = LIMIT.read_text()
    if int(before) >= count:
        yield
        return
    LIMIT.write_text(f"{count}\n")
    try:
        yield
    finally:
        LIMIT.write_text(before)
