"""From a container's id to its init process, with nothing but ``/proc``, and a pidfd that holds it.

Some facts about processes and their containers:

- ``/proc/PID/cgroup`` names the container for every runtime, on cgroup v1, v2 and both at once, from the host and from
  a private cgroup namespace. Rootless podman on v1 is the one exception.
- A zombie keeps its cgroup and its pid, so both must be checked together with the state of the process.
- Whatever was read about a pid belongs to the process behind a pidfd if that process still runs afterwards: its pid
  cannot have been given to another one meanwhile. This is what every check below rests on.
- A command may call itself anything, brackets and newlines included, and ``/proc/PID/stat`` does not escape it.
"""

from __future__ import annotations

import errno
import os
import re
import select
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

__all__ = ["AmbiguousId", "Container", "find", "open_pid"]

_ID: Final = re.compile(r"[0-9a-f]{12,64}", re.ASCII)

# One component of a cgroup path that stands for a container. With a prefix: the scopes of systemd, and what CRI-O and
# podman call a plain folder. Without one: the folders of docker and containerd, also in the form
# "system.slice:docker:<id>" that a runtime makes of a systemd path when it manages cgroups by itself.
# The prefix must be followed by the id at once: crio-conmon-<id>.scope is the container's monitor, outside of it.
_COMPONENT: Final = re.compile(
    rb"/(?:"
    rb"(?:docker|cri-containerd|crio|libpod|nerdctl|runc|crun)-([0-9a-f]{12,64})(?:\.scope)?"
    rb"|(?:[^/\n]*:[a-z-]+:)?([0-9a-f]{12,64})"
    rb")(?=[/\n]|$)"
)

# Far above what the kernel writes, so that only a bug of ours could make us read on.
_CGROUP_BYTES: Final = 1 << 17  # a path of up to 4 KiB for each of a dozen hierarchies
_STAT_BYTES: Final = 1 << 13
_STATUS_BYTES: Final = 1 << 20  # 65,536 supplementary groups stand before the line that we need

_ATTEMPTS: Final = 5  # scans, when processes come and go while we look
_ENDED_STATES: Final = frozenset({b"Z", b"X", b"x"})  # proc_pid_stat(5): zombie, dead
_NOT_THERE: Final = (FileNotFoundError, ProcessLookupError, PermissionError)  # it has ended, or is hidden from us
_START_TIME: Final = 22 - 3  # the field's place behind the command, of which field 3 is the first


class AmbiguousId(LookupError):  # noqa: N818  (what is wrong is all in the name)
    """A shortened id that several containers have in common."""

    def __init__(self, short: str, full: Iterable[str]) -> None:
        """``short`` is what was asked for, ``full`` are the ids that begin with it."""
        self.short = short
        self.full = tuple(sorted(full))
        super().__init__(f"container id {short} is not unique: {self.full[0]} and {self.full[1]} begin with it")


@dataclass(frozen=True, slots=True)
class Container:
    """The init process of a container; owns ``pidfd``.

    ``id`` is the full id, empty when the process was asked for by its pid. ``start_time`` is in clock ticks since boot.
    Two are equal when they mean the same process of the same container.
    """

    id: str
    pid: int
    start_time: int
    pidfd: int = field(compare=False)

    def alive(self) -> bool:
        """Whether the process still runs. Raises ValueError after :meth:`close`."""
        if self.pidfd < 0:
            raise ValueError("the container is closed")
        return not _has_ended(self.pidfd)

    def close(self) -> None:
        """Let go of the process. May be called twice."""
        pidfd = self.pidfd
        object.__setattr__(self, "pidfd", -1)
        if pidfd >= 0:
            os.close(pidfd)


def find(ids: Sequence[str]) -> dict[str, Container]:
    """Find the running containers among ``ids``, which are hexadecimal, without a scheme, full or shortened.

    Returns them by the id that was asked for; the caller closes them. Ids that mean one container share its object.
    Raises AmbiguousId, ValueError for what is no id, OSError when the kernel refuses a pidfd.
    Blocks: about 15 µs a process on the node.
    """
    for short in ids:
        if not _ID.fullmatch(short):
            raise ValueError(f"{short!r} is no container id")
    found: dict[str, Container] = {}
    held: dict[str, Container] = {}
    try:
        for _ in range(_ATTEMPTS):
            full_ids, members = _scan([short for short in ids if short not in found])
            changed = False
            for short, full in full_ids.items():
                candidate = _choose(members[full])
                if candidate is None:  # nothing but zombies
                    continue
                container = held.get(full) or _hold(full, candidate)
                if container is None:
                    changed = True
                else:
                    found[short] = held[full] = container
            if not changed:
                break
    except BaseException:
        for container in held.values():
            container.close()
        raise
    return {short: found[short] for short in ids if short in found}


def open_pid(pid: int) -> Container:
    """Hold the process ``pid`` as a container without an id.

    Raises ProcessLookupError when there is no such process, OSError when the kernel refuses a pidfd.
    """
    pidfd = _open_pidfd(pid)
    try:
        stat = _stat(pid)
        gone = stat is None or stat.ended or _has_ended(pidfd)
    except BaseException:
        os.close(pidfd)
        raise
    if stat is None or gone:
        os.close(pidfd)
        raise ProcessLookupError(errno.ESRCH, f"no process {pid}")
    return Container("", pid, stat.start_time, pidfd)


class _Stat(NamedTuple):
    ended: bool
    start_time: int


class _Candidate(NamedTuple):
    """A process in a container's cgroup, in the order in which we would take it for the init."""

    depth: int
    """How many other containers' cgroups its own lies in: a container may name a cgroup of its own after another."""
    not_init: bool
    """It is not process 1 of a pid namespace."""
    namespaces: int
    """How deep its pid namespace is nested, for the init of one."""
    start_time: int
    pid: int


def _scan(ids: Sequence[str]) -> tuple[dict[str, str], dict[str, dict[int, int]]]:
    """Go through all processes once.

    Returns the full id of each of ``ids`` that has any, and each full id's processes with their depth.
    """
    prefixes = {short[:12].encode() for short in ids}
    members: dict[str, dict[int, int]] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208  (measurably cheaper than Path.iterdir, and there may be thousands)
        if not entry.isdecimal():
            continue
        for full, depth in _cgroup_ids(int(entry)).items():
            if full[:12] in prefixes:
                members.setdefault(full.decode(), {})[int(entry)] = depth
    full_ids: dict[str, str] = {}
    for short in ids:
        matches = {short} & members.keys() or {full for full in members if full.startswith(short)}
        if len(matches) > 1:
            raise AmbiguousId(short, matches)
        if matches:
            full_ids[short] = matches.pop()
    return full_ids, members


def _cgroup_ids(pid: int) -> dict[bytes, int]:
    """The ids of the containers that hold a process, each with the number of ids above it in the path."""
    depths: dict[bytes, int] = {}
    for line in _read(f"/proc/{pid}/cgroup", _CGROUP_BYTES).splitlines():
        for depth, groups in enumerate(_COMPONENT.findall(line)):
            full = groups[0] or groups[1]
            depths[full] = min(depth, depths.get(full, depth))
    return depths


def _choose(members: dict[int, int]) -> _Candidate | None:
    """The init among a container's processes: not one that was brought in later, whatever its pid."""
    candidates = (_candidate(pid, depth) for pid, depth in members.items())
    return min((candidate for candidate in candidates if candidate is not None), default=None)


def _candidate(pid: int, depth: int) -> _Candidate | None:
    stat = _stat(pid)
    if stat is None or stat.ended:
        return None
    pids = _namespace_pids(pid)
    is_init = pids[-1:] == [b"1"]
    return _Candidate(depth, not is_init, len(pids) if is_init else 0, stat.start_time, pid)


def _hold(full: str, candidate: _Candidate) -> Container | None:
    """Open a pidfd and make sure that it is of the process that was chosen; None when that has gone or moved."""
    try:
        pidfd = _open_pidfd(candidate.pid)
    except ProcessLookupError:
        return None
    try:
        unchanged = (
            _stat(candidate.pid) == _Stat(ended=False, start_time=candidate.start_time)
            and full.encode() in _cgroup_ids(candidate.pid)
            and not _has_ended(pidfd)
        )
    except BaseException:
        os.close(pidfd)
        raise
    if not unchanged:
        os.close(pidfd)
        return None
    return Container(full, candidate.pid, candidate.start_time, pidfd)


def _open_pidfd(pid: int) -> int:
    """pidfd_open(2), which sets close-on-exec."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in {errno.ESRCH, errno.EINVAL, errno.ENOENT}:  # the latter two: a pid below 1, a thread
            raise ProcessLookupError(errno.ESRCH, f"no process {pid}") from None
        if error.errno in {errno.ENOSYS, errno.EPERM}:  # EPERM is how old seccomp profiles say ENOSYS
            message = "pidfd_open(2) is refused: it needs Linux 5.3 and a seccomp profile that knows it"
            raise OSError(error.errno, message) from None
        raise


def _has_ended(pidfd: int) -> bool:
    """Whether the process has ended; a zombie has (pidfd_open(2))."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _stat(pid: int) -> _Stat | None:
    """State and start time, from proc_pid_stat(5); None when the process has gone."""
    text = _read(f"/proc/{pid}/stat", _STAT_BYTES)
    fields = text[text.rfind(b")") + 1 :].split()
    if len(fields) <= _START_TIME:
        return None
    return _Stat(ended=fields[0] in _ENDED_STATES, start_time=int(fields[_START_TIME]))


def _namespace_pids(pid: int) -> list[bytes]:
    """The pids of a process in its pid namespaces, the innermost last (proc_pid_status(5)).

    This file does escape the command's name, so no process can forge the line.
    """
    _, _, rest = _read(f"/proc/{pid}/status", _STATUS_BYTES).partition(b"\nNSpid:")
    return rest.partition(b"\n")[0].split()


def _read(path: str, limit: int) -> bytes:
    """Up to ``limit`` bytes of a file in /proc; nothing when its process has gone or is not ours to see."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
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
