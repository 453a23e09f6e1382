"""A file that stands as long as guards do: where one is left behind, what it names was not guarded any more.

The kernel lets everything through once nobody answers it. A daemon that was killed cannot say so; the next one can.

The file is in a folder that may be open to everybody, such as /tmp. Nothing but a plain file of our own with one name
is read, written or removed, and what it says is believed no further than to be logged. It is one page, written with one
system call, so that no death leaves half of it.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from argusd import processes

__all__ = ["Left", "Marker", "MarkerFile", "listing"]

logger = logging.getLogger("argusd.marker")

FILE_NAME: Final = "janusd.guarding"
_BYTES: Final = 4096
_NAMES_BYTES: Final = 3000
_NAME_CHARACTERS: Final = 200
_MOST_LISTED: Final = 20
SIGN_OF_LIFE_S: Final = 10.0
PATIENCE_S: Final = 1.0
_FLAGS: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Left:
    """What a daemon left behind; ``seen_at`` is its last sign of life, in seconds since 1970."""

    pid: int
    running: bool
    same_boot: bool
    seen_at: float
    guarded: tuple[str, ...]
    more: int

    def __str__(self) -> str:
        """Return the line for the log."""
        moment = datetime.fromtimestamp(self.seen_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        names = listing(self.guarded, self.more)
        return (
            f"The daemon with pid {self.pid} did not end in order: since {moment}, or up to {SIGN_OF_LIFE_S:.0f} s "
            f"later, what it guarded is open to everybody, until it is guarded again: {names}"
        )


def listing(names: Sequence[str], more: int = 0) -> str:
    """Return names for a line of the log: some of them, and how many others there are."""
    more += len(names[_MOST_LISTED:])
    return ", ".join(names[:_MOST_LISTED]) + (f" and {more} more" if more else "")


class MarkerFile:
    """The file itself. All methods block, and raise OSError."""

    def __init__(self, folder: str) -> None:
        """Touch nothing yet."""
        self.path: Final = Path(folder) / FILE_NAME
        self._fd = -1

    def read(self) -> Left | None:
        """Return what is left behind, None when nothing is, or nothing that can be read."""
        try:
            fd = os.open(self.path, os.O_RDONLY | _FLAGS)
        except FileNotFoundError:
            return None
        try:
            status = self._own(fd)
            return _parsed(os.read(fd, _BYTES), status.st_mtime)
        finally:
            os.close(fd)

    def write(self, guarded: Sequence[str]) -> None:
        """Make the file, or bring it up to date, with the names of what is guarded; also a sign of life."""
        if self._fd >= 0 and not os.fstat(self._fd).st_nlink:  # somebody tidied up
            os.close(self._fd)
            self._fd = -1
        if self._fd < 0:
            self._fd = self._open()
        os.pwrite(self._fd, _page(guarded), 0)

    def remove(self) -> None:
        """Take the file away, if it stands and is our own. May be called twice."""
        fd, self._fd = self._fd, -1
        try:
            if fd < 0:
                fd = os.open(self.path, os.O_RDONLY | _FLAGS)
            if self._own(fd).st_nlink:
                self.path.unlink()
        except FileNotFoundError:
            return
        finally:
            if fd >= 0:
                os.close(fd)

    def _open(self) -> int:
        try:
            fd = os.open(self.path, os.O_WRONLY | _FLAGS)
        except FileNotFoundError:
            return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
        try:
            self._own(fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _own(self, fd: int) -> os.stat_result:
        """Refuse what is not a plain file of this user with one name, or none: it may have been planted."""
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_nlink > 1:
            raise FileExistsError(errno.EEXIST, "it is not a plain file of our own", str(self.path))
        return status


class Marker:
    """Keeps the file in step with the guards. With no folder there is no file."""

    def __init__(self, folder: str, guarded: Callable[[], Sequence[str]]) -> None:
        """``guarded`` returns the names of what is guarded now. Must be made inside the running event loop."""
        self._file = MarkerFile(folder) if folder else None
        self._guarded = guarded
        self._loop = asyncio.get_running_loop()
        # The loop's own threads may all be looking for containers.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="marker")
        self._lock = asyncio.Lock()
        self._stands = False
        self._closed = False
        self._signs: asyncio.Task[None] | None = None

    async def look_back(self) -> None:
        """Say what was left behind, once."""
        async with self._lock:
            await self._try(self._look_back)

    async def update(self) -> None:
        """Write, or take away, what is guarded now."""
        async with self._lock:
            guarded = [] if self._closed else list(self._guarded())
            if guarded:
                await self._try(self._write, guarded)
            elif self._stands:
                await self._try(self._remove)
        if guarded and self._signs is None and self._file is not None:
            self._signs = self._loop.create_task(self._give_signs())

    async def close(self) -> None:
        """Take the file away for good: an orderly end."""
        self._closed = True
        if self._signs is not None:
            self._signs.cancel()
            self._signs = None
        async with self._lock:
            if self._stands:
                await self._try(self._remove)

    async def _give_signs(self) -> None:
        """Show that we live, and notice what ended by itself, as long as something is guarded."""
        while True:
            await asyncio.sleep(SIGN_OF_LIFE_S)
            await self.update()
            if not self._stands:
                self._signs = None
                return

    async def _try(self, work: Callable[..., None], *arguments: Any) -> None:
        """Run in a thread what may block. A file that cannot be had is one warning, never a failure of the guard."""
        if self._file is None:
            return
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._loop.run_in_executor(self._thread, work, self._file, *arguments)
        except OSError as error:  # also TimeoutError
            reason = error.strerror or f"the folder does not answer within {PATIENCE_S:.0f} s"
            logger.warning("No marker %s, so a sudden end would go unnoticed: %s", self._file.path, reason)
            self._file = None
            self._stands = False

    def _look_back(self, file: MarkerFile) -> None:
        left = file.read()
        if left is not None and left.running:
            raise FileExistsError(errno.EEXIST, f"it is that of the daemon with pid {left.pid}, which runs")
        if left is not None and left.same_boot:
            logger.warning("%s", left)
        file.remove()

    def _write(self, file: MarkerFile, guarded: Sequence[str]) -> None:
        self._stands = True
        file.write(guarded)

    def _remove(self, file: MarkerFile) -> None:
        file.remove()
        self._stands = False


def _boot() -> str:
    return processes.read("/proc/sys/kernel/random/boot_id", 64).decode().strip()


def _page(guarded: Sequence[str]) -> bytes:
    """One page of JSON; names for which there is no room are counted."""
    me = processes.stat(os.getpid())
    names: list[str] = []
    room = _NAMES_BYTES
    for name in guarded:
        shown = name[:_NAME_CHARACTERS]
        room -= len(json.dumps(shown)) + 2
        if room < 0:
            break
        names.append(shown)
    content = {
        "pid": os.getpid(),
        "start_time": me.start_time if me else 0,
        "boot": _boot(),
        "guarded": names,
        "more": len(guarded) - len(names),
    }
    return json.dumps(content).encode().ljust(_BYTES - 1) + b"\n"


def _parsed(page: bytes, seen_at: float) -> Left | None:
    try:
        content = json.loads(page)
        pid, start_time = int(content["pid"]), int(content["start_time"])
        guarded = tuple(str(name)[:_NAME_CHARACTERS] for name in content["guarded"])
        more, boot = int(content["more"]), str(content["boot"])
    except (ValueError, TypeError, KeyError):  # written by nobody we know, or never written to
        return None
    same_boot = boot == _boot()
    process = processes.stat(pid) if same_boot and pid > 0 else None
    running = process is not None and not process.ended and process.start_time == start_time and pid != os.getpid()
    return Left(pid, running, same_boot, seen_at, guarded, more)
