"""Which containers come and go in the pods that somebody watches or guards, from the cgroup tree, without a runtime.

The cgroup of a pod is a directory that holds those of its containers, so a container that starts is a name that comes
there. One inotify instance watches these directories, one or two for each pod, and none for what nobody asked about:
ten thousand containers cost as many watches as they have pods. Where the kernel has no instance or watch to spare the
directories are listed once a second.

What a new container is called is read from its runtime's notes (:mod:`argusd.notes`). Its init process has a root of
its own a few milliseconds after its cgroup has come, and nothing tells of that: it is looked at every 2 ms then, and
less often the longer it takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

from argusd import cgroups, notes
from argusd._directories import COME, ENDED, OVERFLOW, Directories
from argusd.containers import Container, find_below
from argusd.notes import Note

__all__ = ["Discovery", "Listener", "Pod", "Seat"]

logger = logging.getLogger("argusd.discovery")

_THREADS: Final = 4
_LIST_EVERY_S: Final = 1.0
_PATIENCE_S: Final = 1.0  # notes lie on a local file system; a request does not wait longer for one that is stuck
# How often to look for the root of a new container: at first in one go, for then it is a matter of milliseconds.
_LOOK_EVERY_S: Final = 0.001
_LOOK_FOR_S: Final = 0.25
_PACES: Final = ((5.0, 0.0), (30.0, 0.02), (float("inf"), 0.25))
_PRIORITY: Final = -20

_T = TypeVar("_T")


class Listener(Protocol):
    """Who follows pods; called on the event loop."""

    def appeared(self, pod: Pod, full: str) -> None:
        """Take note of a new container in a pod."""

    def gone(self, pod: Pod) -> None:
        """Take note that no container will come in a pod any more: its cgroups were removed."""


@dataclass(slots=True, eq=False)
class Pod:
    """The cgroups of one pod, and the ids of the containers that have one there now."""

    uid: str
    directories: tuple[bytes, ...]
    present: set[str] = field(default_factory=set)
    _wds: list[int] = field(default_factory=list)
    _users: dict[Listener, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Seat:
    """A container's place in its pod, which another one of the same name can take; ``name`` is empty when unknown."""

    id: str
    name: str = ""
    pod: str = ""
    directories: tuple[bytes, ...] = ()


class Discovery:
    """Owns the inotify instance and its place in the event loop; must be made inside the running event loop."""

    def __init__(self) -> None:
        """Watch nothing yet."""
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="discovery", initializer=_hurry)
        self._pods: dict[str, Pod] = {}
        self._by_wd: dict[int, Pod] = {}
        self._tree: Directories | None = None
        self._listing: asyncio.Task[None] | None = None
        self._closed = False

    def close(self) -> None:
        """Tell of nothing from now on."""
        self._closed = True
        if self._listing is not None:
            self._listing.cancel()
        if self._tree is not None:
            self._loop.remove_reader(self._tree.fileno())
            self._tree.close()
            self._tree = None
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def seats(self, containers: Iterable[Container]) -> dict[str, Seat]:
        """Return the seats of containers, by id."""
        known = [(container.pid, container.id) for container in containers if container.id]
        if not known:
            return {}
        try:
            async with asyncio.timeout(_PATIENCE_S):
                return await self._in_thread(_seats, known)
        except TimeoutError:
            logger.warning("What runtimes note about containers cannot be read within %.0f s", _PATIENCE_S)
            return {}

    def follow(self, seat: Seat, listener: Listener) -> Pod | None:
        """Tell ``listener`` of a seat's pod until it leaves as often; None when there is no such pod (any more)."""
        if not seat.pod or self._closed:
            return None
        pod = self._pods.get(seat.pod)
        if pod is None:
            pod = Pod(seat.pod, seat.directories)
            self._watch(pod)
            pod.present = _present(pod.directories) or set()
            if _present(pod.directories) is None:
                self._forget(pod)
                return None
            self._pods[pod.uid] = pod
        pod._users[listener] = pod._users.get(listener, 0) + 1  # noqa: SLF001  (a part of this class)
        return pod

    def leave(self, pod: Pod, listener: Listener) -> None:
        """Undo one :meth:`follow`."""
        pod._users[listener] -= 1  # noqa: SLF001
        if not pod._users[listener]:  # noqa: SLF001
            del pod._users[listener]  # noqa: SLF001
        if not pod._users:  # noqa: SLF001
            self._forget(pod)

    async def note(self, full: str) -> Note:
        """Return what is noted about a container."""
        return await self._in_thread(notes.read, full)

    async def ready(self, pod: Pod, full: str, wanted: Callable[[], bool]) -> Container | None:
        """Wait until a new container has a root of its own; None when it has gone or is not ``wanted`` any more."""
        begin = self._loop.time()
        while wanted() and full in pod.present and not self._closed:
            elapsed_s = self._loop.time() - begin
            pause_s = next(pause_s for until_s, pause_s in _PACES if elapsed_s < until_s)
            container = await self._in_thread(_set_up, full, pod.directories, 0.0 if pause_s else _LOOK_FOR_S)
            if container is not None:
                return container
            await asyncio.sleep(pause_s)
        return None

    async def _in_thread(self, work: Callable[..., _T], *arguments: object) -> _T:
        return await self._loop.run_in_executor(self._threads, work, *arguments)

    def _watch(self, pod: Pod) -> None:
        """Watch the directories of a pod, or see to it that they are listed."""
        try:
            if self._tree is None:
                self._tree = Directories()
                self._loop.add_reader(self._tree.fileno(), self._on_ready)
            for directory in pod.directories:
                wd = self._tree.add(directory)
                pod._wds.append(wd)  # noqa: SLF001
                self._by_wd[wd] = pod
        except FileNotFoundError:
            pass  # its pod has gone
        except OSError as error:
            if self._listing is None:
                logger.warning(
                    "The cgroups of pods cannot be watched (%s): they are listed once a second", error.strerror
                )
                self._listing = self._loop.create_task(self._list())

    def _forget(self, pod: Pod) -> None:
        self._pods.pop(pod.uid, None)
        for wd in pod._wds:  # noqa: SLF001
            if self._by_wd.pop(wd, None) is not None and self._tree is not None:
                self._tree.remove(wd)

    def _on_ready(self) -> None:
        """Take over a part of what has happened; the loop calls again while there is more."""
        if self._tree is None:
            return
        for wd, mask, name in self._tree.read():
            pod = self._by_wd.get(wd)
            if mask & OVERFLOW:
                for one in list(self._pods.values()):
                    self._update(one, _present(one.directories))
            elif pod is None:
                continue
            elif mask & ENDED:
                self._lose(pod, wd)
            elif full := cgroups.container_in(name):
                still = mask & COME or full in (_present(pod.directories) or ())  # in another hierarchy
                self._update(pod, pod.present | {full} if still else pod.present - {full})

    def _lose(self, pod: Pod, wd: int) -> None:
        """One of the cgroups of a pod was removed: with the last one the pod has gone."""
        del self._by_wd[wd]
        if not any(self._by_wd.get(other) is pod for other in pod._wds):  # noqa: SLF001
            self._update(pod, None)

    async def _list(self) -> None:
        """Look where the kernel does not tell, as long as the daemon runs."""
        while True:
            await asyncio.sleep(_LIST_EVERY_S)
            for pod in list(self._pods.values()):
                present = await self._in_thread(_present, pod.directories)
                if pod.uid in self._pods:
                    self._update(pod, present)

    def _update(self, pod: Pod, present: set[str] | None) -> None:
        """Take over what is in a pod now, and tell of what is new; None when the pod has gone."""
        new = (present or set()) - pod.present
        pod.present = present or set()
        for listener in list(pod._users):  # noqa: SLF001
            if present is None:
                listener.gone(pod)
            for full in sorted(new):
                listener.appeared(pod, full)
        if present is None:
            self._forget(pod)


def _seats(known: Sequence[tuple[int, str]]) -> dict[str, Seat]:
    seats = {}
    for pid, full in known:
        parents = [directory.rpartition(b"/")[0] for directory in cgroups.directories(pid, full)]
        pods = [(uid, parent) for parent in parents if (uid := cgroups.pod_in(parent))]
        uid = pods[0][0] if pods else ""
        seats[full] = Seat(full, notes.read(full).name, uid, tuple(parent for other, parent in pods if other == uid))
    return seats


def _present(directories: Iterable[bytes]) -> set[str] | None:
    """Return the containers in a pod's cgroups; None when there are no such cgroups any more."""
    lists = [found for directory in directories if (found := cgroups.children(directory)) is not None]
    return set().union(*lists) if lists else None


def _set_up(full: str, directories: Sequence[bytes], for_s: float) -> Container | None:
    """Find a container that has a root of its own; looks again and again ``for_s`` seconds long."""
    until = time.monotonic() + for_s
    while True:
        container = find_below(full, cgroups.named(directories, full))
        if container is not None:
            ready = False
            try:
                ready = container.set_up()
            finally:
                if not ready:
                    container.close()
            if ready:
                return container
        if time.monotonic() >= until:
            return None
        time.sleep(_LOOK_EVERY_S)


def _hurry() -> None:
    """Ask for the highest priority of this thread: what a container does before it is watched is not seen."""
    with contextlib.suppress(OSError):  # without CAP_SYS_NICE
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _PRIORITY)
