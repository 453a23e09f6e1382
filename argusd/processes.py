"""One process as ``/proc`` tells it, and a handle that holds it.

Some facts about processes:

- Whatever was read about a pid belongs to the process behind a handle if that process still runs afterwards: its pid
  cannot have been given to another one meanwhile. This is what every check rests on.
- A zombie keeps its cgroup and its pid, so both must be checked together with the state of the process.
- A process whose main thread has ended lives on in its other threads. Its own state is that of a zombie then, and its
  root, its namespaces and its mounts are told by the folders of those threads only.
- A command may call itself anything, brackets and newlines included, and ``/proc/PID/stat`` does not escape it.
- A descriptor of ``/proc/PID`` stays with its process, like a pidfd: after its end nothing can be opened through it,
  also when another process has the pid by then. It does not tell of the end, and a thread has such a folder too.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from argusd._roots import identity

__all__ = ["Stat", "has_ended", "hold", "listed", "namespace_pids", "pidfds_work", "read", "root_identity", "stat"]

# Far above what the kernel writes, so that only a bug of ours could make us read on.
_STAT_BYTES: Final = 1 << 13
_STATUS_BYTES: Final = 1 << 20  # 65,536 supplementary groups stand before the line that we need

_ENDED_STATES: Final = frozenset({b"Z", b"X", b"x"})  # proc_pid_stat(5): zombie, dead
_NOT_THERE: Final = (FileNotFoundError, ProcessLookupError, PermissionError)  # it has ended, or is hidden from us
_PARENT: Final = 4 - 3  # the fields' places behind the command, of which field 3 is the first
_THREADS: Final = 20 - 3
_START_TIME: Final = 22 - 3

# EPERM is how old seccomp profiles say ENOSYS. No process may refuse to be held, so it has no other meaning here.
_NO_PIDFDS: Final = frozenset({errno.ENOSYS, errno.EPERM})
_NO_PROCESS: Final = frozenset({errno.ESRCH, errno.EINVAL, errno.ENOENT})  # the latter two: a pid below 1, a thread


class Stat(NamedTuple):
    """What ``/proc/PID/stat`` says; ``start_time`` is in clock ticks since boot, ``parent`` 0 when we cannot see it."""

    ended: bool
    start_time: int
    parent: int


def hold(pid: int) -> int:
    """Open a handle of a process: a pidfd, or its folder in ``/proc`` where pidfd_open(2) is missing.

    Close-on-exec. Raises ProcessLookupError when there is no such process, OSError when no descriptor is to be had.
    """
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in _NO_PROCESS:
            raise ProcessLookupError(errno.ESRCH, f"no process {pid}") from None
        if error.errno in _NO_PIDFDS:
            return _hold_folder(pid)
        raise


def has_ended(handle: int) -> bool:
    """Whether the process behind a handle has ended; a zombie has. Raises OSError when that cannot be told."""
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    if not poll.poll(0):
        return False  # a pidfd, and its process lives (pidfd_open(2))
    try:
        text = read("stat", _STAT_BYTES, folder=handle)
    except NotADirectoryError:
        return True  # a pidfd
    found = _parse_stat(text)
    return found is None or found.ended


def pidfds_work() -> bool:
    """Whether this kernel, and what filters our system calls, know pidfd_open(2) (Linux 5.3)."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        if error.errno in _NO_PIDFDS:
            return False
        raise
    return True


def listed() -> list[int]:
    """The pids of all processes."""
    return [int(entry) for entry in os.listdir("/proc") if entry.isdecimal()]  # noqa: PTH208  (cheapest for thousands)


def stat(pid: int) -> Stat | None:
    """State, start time and parent, from proc_pid_stat(5); None when the process has gone."""
    return _parse_stat(read(f"/proc/{pid}/stat", _STAT_BYTES))


def namespace_pids(pid: int) -> list[bytes]:
    """The pids of a process in its pid namespaces, the innermost last (proc_pid_status(5))."""
    return _status(pid, b"NSpid")


def root_identity(pid: int) -> tuple[int, int] | None:
    """Device and inode of the root of a process; None when it has gone. Raises PermissionError.

    Asks no file system: the root may be on one that does not answer.
    """
    for folder in _thread_folders(pid):
        path = folder / "root"
        try:
            return identity(str(path))
        except (FileNotFoundError, ProcessLookupError):
            continue
        except PermissionError as error:
            raise PermissionError(error.errno, f"no access to {path}: the daemon needs CAP_SYS_PTRACE") from None
    return None


def read(path: str | bytes, limit: int, *, folder: int | None = None) -> bytes:
    """Up to ``limit`` bytes of a file in /proc; nothing when its process has gone or is not ours to see."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    except _NOT_THERE:
        return b""
    chunks: list[bytes] = []
    try:
        while limit > 0 and (chunk := os.read(fd, limit)):
            chunks.append(chunk)
            limit -= len(chunk)
    except _NOT_THERE:
        return b""
    finally:
        os.close(fd)
    return b"".join(chunks)


def _hold_folder(pid: int) -> int:
    try:
        handle = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ProcessLookupError(errno.ESRCH, f"no process {pid}") from None
    if _status(pid, b"Tgid") != [str(pid).encode()]:
        os.close(handle)
        raise ProcessLookupError(errno.ESRCH, f"no process {pid}")
    return handle


def _thread_folders(pid: int) -> Iterator[Path]:
    """The folder of a process, then those of its threads."""
    folder = Path(f"/proc/{pid}")
    yield folder
    with suppress(FileNotFoundError, ProcessLookupError):
        yield from (folder / "task").iterdir()


def _parse_stat(text: bytes) -> Stat | None:
    fields = text[text.rfind(b")") + 1 :].split()
    if len(fields) <= _START_TIME:
        return None
    # A main thread that has ended alone is a zombie, too, but its process has other threads.
    ended = fields[0] in _ENDED_STATES and int(fields[_THREADS]) <= 1
    return Stat(ended, int(fields[_START_TIME]), int(fields[_PARENT]))


def _status(pid: int, name: bytes) -> list[bytes]:
    """The words of one line. This file does escape the command's name, so no process can forge a line."""
    _, _, rest = read(f"/proc/{pid}/status", _STATUS_BYTES).partition(b"\n" + name + b":")
    return rest.partition(b"\n")[0].split()
