"""The machine is one for all test runs on it: a run that changes fs.inotify must not break another one.

A test runs under a lock that is shared; one with the mark ``changes_sysctls`` has it to itself. Whoever waits keeps
later ones from overtaking, or a lock that others share would never come free.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

INOTIFY: Final = Path("/proc/sys/fs/inotify")
LOCK: Final = Path("/tmp/argusd-tests.lock")  # noqa: S108  (one name for all users; what it holds is of no interest)
TURN: Final = Path("/tmp/argusd-tests.turn")  # noqa: S108
HELD: Final = "ARGUSD_TESTS_LOCK"
"""How this process or an ancestor holds the lock: ``shared`` or ``exclusive``."""


@contextlib.contextmanager
def machine(*, exclusive: bool) -> Iterator[None]:
    """Hold the lock of all test runs on this machine, unless an ancestor of this process does."""
    if HELD in os.environ:
        yield
        return
    with _opened(LOCK) as lock:
        with _opened(TURN) as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            fcntl.flock(lock, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        os.environ[HELD] = "exclusive" if exclusive else "shared"
        try:
            yield
        finally:
            del os.environ[HELD]


@contextlib.contextmanager
def inotify(name: str, value: int) -> Iterator[None]:
    """Another value of fs.inotify's ``name`` for a while, which should be a short one."""
    assert os.environ.get(HELD) != "shared", "a test that changes sysctls needs the mark changes_sysctls"
    with machine(exclusive=True):
        path = INOTIFY / name
        before = path.read_text()
        path.write_text(str(value))
        try:
            yield
        finally:
            path.write_text(before)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open a lock file that any user may have made: O_CREAT on another user's file in /tmp is refused even to root."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
