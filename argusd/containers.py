"""From a container's id to its init process, and a handle that holds it.

Three ways lead there, the cheapest first: what the runtime wrote down, the cgroup tree, all of ``/proc``. The first two
only propose processes. They are for full ids of containers that lie in no other one, and their word counts only where
``/proc/PID/cgroup`` says the same; what they do not settle is left to the third, which needs nothing but ``/proc``.

Rootless podman on cgroup v1 makes no cgroup, so its containers are not found. Their id stands in
``/proc/PID/mountinfo``, but any container can have any id there by a mount of its own, and nothing would contradict it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from argusd import cgroups, pidfiles, processes

__all__ = ["AmbiguousId", "Container", "find", "find_below", "open_again", "open_pid"]

_ID: Final = re.compile(r"[0-9a-f]{12,64}", re.ASCII)
_FULL: Final = 64

_NODE_INIT: Final = 1
_ATTEMPTS: Final = 5  # scans, when processes come and go while we look


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
    ``pidfd`` is the folder of the process in ``/proc`` where the kernel knows no pidfds: that does not tell of the end.
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
        return not processes.has_ended(self.pidfd)

    @property
    def tells(self) -> bool:
        """Whether ``pidfd`` becomes readable at the end of the process; else :meth:`alive` must be asked."""
        return not stat.S_ISDIR(os.fstat(self.pidfd).st_mode)

    def set_up(self) -> bool:
        """Whether the process has a root of its own; until then a runtime is at work, and the root is the node's.

        Some containers never get one: what they see is the node. Raises PermissionError where that cannot be told.
        """
        before = processes.stat(self.pid)
        root = processes.root_identity(self.pid)
        if before is None or root is None or root == _root_of_other(_NODE_INIT):
            return False
        if not before.parent:
            return True  # an init process of our own pid namespace, or its parent is not ours to see
        if root == _root_of_other(before.parent):
            return False
        # The parent may have ended meanwhile, and its pid been given to another one.
        after = processes.stat(self.pid)
        return after is not None and after.parent == before.parent and self.alive()

    def close(self) -> None:
        """Let go of the process. May be called twice."""
        pidfd = self.pidfd
        object.__setattr__(self, "pidfd", -1)
        if pidfd >= 0:
            os.close(pidfd)


def _root_of_other(pid: int) -> tuple[int, int] | None:
    """The root of a runtime, or of the node's process 1."""
    try:
        return processes.root_identity(pid)
    except PermissionError:
        # Until it has a root of its own an init has the rights of the runtime that started it. We can look into the one
        # and not into the other: that is over, or its runtime has ended, and some process 1 took its place.
        return processes.root_identity(os.getpid())


def find(ids: Sequence[str]) -> dict[str, Container]:
    """Find the running containers among ``ids``, which are hexadecimal, without a scheme, full or shortened.

    Returns them by the id that was asked for; the caller closes them. Ids that mean one container share its object.
    Raises AmbiguousId, ValueError for what is no id, OSError when the kernel refuses a handle.
    Blocks: about 10 µs a cgroup, and 20 µs a process on the node where that does not settle it.
    """
    for short in ids:
        if not _ID.fullmatch(short):
            raise ValueError(f"{short!r} is no container id")
    held: dict[str, Container] = {}
    try:
        _find_proposed({short for short in ids if len(short) == _FULL}, held)
        found = {short: held[short] for short in ids if short in held}
        _find_listed([short for short in ids if short not in found], held, found)
    except BaseException:
        for container in held.values():
            container.close()
        raise
    return {short: found[short] for short in ids if short in found}


def find_below(full: str, directories: Iterable[bytes]) -> Container | None:
    """Find the container ``full``, whose cgroups are ``directories``; None while no process is in them."""
    pids: set[int] = set()
    for directory in directories:
        pids |= cgroups.pids_below(directory)
    candidate = _choose(_confirmed(full, pids))
    return _hold(full, candidate) if candidate is not None else None


def open_again(full: str, pid: int, start_time: int) -> Container | None:
    """Hold a container that was known before, ``full`` or by its process alone; None when that has ended."""
    try:
        container = open_pid(pid)
    except ProcessLookupError:
        return None
    if container.start_time != start_time or (full and full.encode() not in cgroups.depths(pid)):
        container.close()
        return None
    return replace(container, id=full)


def open_pid(pid: int) -> Container:
    """Hold the process ``pid`` as a container without an id.

    Raises ProcessLookupError when there is no such process, OSError when the kernel refuses a handle.
    """
    handle = processes.hold(pid)
    try:
        found = processes.stat(pid)
        gone = found is None or found.ended or processes.has_ended(handle)
    except BaseException:
        os.close(handle)
        raise
    if found is None or gone:
        os.close(handle)
        raise ProcessLookupError(errno.ESRCH, f"no process {pid}")
    return Container("", pid, found.start_time, handle)


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


def _find_proposed(full_ids: set[str], held: dict[str, Container]) -> None:
    """Put into ``held`` what runtimes or the cgroup tree know of the containers ``full_ids``."""
    for full in full_ids:
        pid = pidfiles.init_pid(full)
        candidate = _choose(_confirmed(full, [pid])) if pid else None
        # The note may be old. Only a process 1 is the init whoever else is there.
        if candidate and not candidate.not_init:
            _keep(full, candidate, held)
    for tree in cgroups.trees():
        missing = {full.encode() for full in full_ids if full not in held}
        if not missing:
            return
        for name, pids in cgroups.members(tree, missing).items():
            full = name.decode()
            _keep(full, _choose(_confirmed(full, pids)), held)


def _confirmed(full: str, pids: Iterable[int]) -> dict[int, int]:
    """Those of ``pids`` that are in the container ``full``, which lies in no other one, with their depth: 0."""
    return {pid: 0 for pid in pids if cgroups.depths(pid).get(full.encode()) == 0}


def _find_listed(ids: Sequence[str], held: dict[str, Container], found: dict[str, Container]) -> None:
    """Put into ``found`` and ``held`` what all processes together tell of ``ids``."""
    for _ in range(_ATTEMPTS):
        full_ids, members = _scan([short for short in ids if short not in found])
        settled = True
        for short, full in full_ids.items():
            candidate = _choose(members[full])
            if candidate is None:  # nothing but zombies
                continue
            if _keep(full, candidate, held):
                found[short] = held[full]
            else:
                settled = False
        if settled:
            return


def _keep(full: str, candidate: _Candidate | None, held: dict[str, Container]) -> bool:
    """Make sure that ``held`` has the container; False when the candidate has gone or moved."""
    if full not in held and candidate is not None and (container := _hold(full, candidate)) is not None:
        held[full] = container
    return full in held


def _scan(ids: Sequence[str]) -> tuple[dict[str, str], dict[str, dict[int, int]]]:
    """Go through all processes once.

    Returns the full id of each of ``ids`` that has any, and each full id's processes with their depth.
    """
    if not ids:
        return {}, {}
    prefixes = {short[:12].encode() for short in ids}
    members: dict[str, dict[int, int]] = {}
    for pid in processes.listed():
        for name, depth in cgroups.depths(pid).items():
            if name[:12] in prefixes:
                members.setdefault(name.decode(), {})[pid] = depth
    return {short: full for short in ids if (full := _meant(short, members)) is not None}, members


def _meant(short: str, members: Mapping[str, object]) -> str | None:
    """The one full id that a shortened one stands for. Raises AmbiguousId."""
    if short in members:
        return short
    matches = [full for full in members if full.startswith(short)]
    if len(matches) > 1:
        raise AmbiguousId(short, matches)
    return matches[0] if matches else None


def _choose(members: Mapping[int, int]) -> _Candidate | None:
    """The init among a container's processes: not one that was brought in later, whatever its pid."""
    return min(_candidates(members), default=None)


def _candidates(members: Mapping[int, int]) -> Iterator[_Candidate]:
    for pid, depth in members.items():
        found = processes.stat(pid)
        if found is None or found.ended:
            continue
        pids = processes.namespace_pids(pid)
        is_init = pids[-1:] == [b"1"]
        yield _Candidate(depth, not is_init, len(pids) if is_init else 0, found.start_time, pid)


def _hold(full: str, candidate: _Candidate) -> Container | None:
    """Open a handle and make sure that it is of the process that was chosen; None when that has gone or moved."""
    try:
        handle = processes.hold(candidate.pid)
    except ProcessLookupError:
        return None
    try:
        found = processes.stat(candidate.pid)
        unchanged = (
            found is not None
            and not found.ended
            and found.start_time == candidate.start_time
            and cgroups.depths(candidate.pid).get(full.encode()) == candidate.depth
            and not processes.has_ended(handle)
        )
    except BaseException:
        os.close(handle)
        raise
    if not unchanged:
        os.close(handle)
        return None
    return Container(full, candidate.pid, candidate.start_time, handle)
