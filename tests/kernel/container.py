"""A process in a root of its own, which is all that the engine knows of a container, and the ways to enter that."""

from __future__ import annotations

import contextlib
import ctypes
import enum
import os
import signal
import time
from pathlib import Path
from typing import Final

__all__ = ["MNT_DETACH", "MS_BIND", "Container", "Way", "holder_of"]

TIMEOUT_S: Final = 20.0
CLONE_NEWNS: Final = 0x20000
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_SLAVE: Final = 0x80000
MS_SHARED: Final = 0x100000
MNT_DETACH: Final = 2

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Way(enum.Enum):
    """How the engine looks into a container, and what kind of container that is."""

    OPENAT2 = "openat2"
    SETNS = "setns"
    SETNS_AT_HOME = "setns_at_home"
    """The container is a process of our own mount namespace: only its root is another one."""

    @property
    def enter(self) -> str:
        """The word that the engine knows."""
        return "openat2" if self is Way.OPENAT2 else "setns"

    @property
    def own_mounts(self) -> bool:
        """Whether the container has a mount namespace of its own."""
        return self is Way.SETNS


def holder_of(pid: int) -> int:
    """A descriptor that holds a process: a pidfd, or where there are none its folder in /proc."""
    try:
        return os.pidfd_open(pid)
    except PermissionError:
        return os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY)


class Container:
    """A process with a root of its own, which does nothing."""

    def __init__(self, root: Path, *, own_mounts: bool = False) -> None:
        """Start it; call this before there are descriptors that it must not inherit.

        With ``own_mounts`` it has a mount namespace, and what is mounted in ``root`` later on shows up there, as a
        volume with mountPropagation does. Unmounting it fails when somebody keeps it busy in there.
        """
        self._bound = root if own_mounts else None
        if self._bound:
            _mount(root, root, MS_BIND)
            _mount(None, root, MS_SHARED)
        self.pid = os.fork()
        if self.pid == 0:
            with contextlib.suppress(BaseException):
                _live_in(root, own_mounts=own_mounts)
            os._exit(1)
        self.pidfd = holder_of(self.pid)
        deadline = time.monotonic() + TIMEOUT_S
        while {Path(f"/proc/{self.pid}/{name}").readlink() for name in ("root", "cwd")} != {root}:
            assert time.monotonic() < deadline, "no process in a root of its own"

    def end(self) -> None:
        """Kill it, and wait until it is gone."""
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def unmount(self) -> None:
        """Unmount the root of one with mounts of its own that has ended; OSError EBUSY when somebody still uses it."""
        if self._bound:
            _check(_libc.umount2(os.fsencode(self._bound), 0))
        self._bound = None

    def close(self) -> None:
        """End it and take its mounts down."""
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            self.end()
        os.close(self.pidfd)
        if self._bound:
            _libc.umount2(os.fsencode(self._bound), MNT_DETACH)


def _live_in(root: Path, *, own_mounts: bool) -> None:
    if own_mounts:
        _check(_libc.unshare(CLONE_NEWNS))
        _mount(None, Path("/"), MS_REC | MS_SLAVE)
    os.chroot(root)
    os.chdir("/")
    signal.pause()


def _mount(source: Path | None, target: Path, flags: int) -> None:
    _check(_libc.mount(os.fsencode(source) if source else None, os.fsencode(target), None, flags, None))


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
