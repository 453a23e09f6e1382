"""Subscriptions in the engine: armed on threads of their own within a request's time, taken back when that fails.

This is the one place that talks to the engine about subscriptions. It knows subjects and containers, not whose they
are; what a watch and a guard do differently is its :class:`argusd.kinds.Kind`.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, Protocol

from argusd import mounts, privileges
from argusd.kinds import Kind, PodKey
from argusd.refusals import (
    AccessDeniedError,
    LimitReachedError,
    OutOfTimeError,
    RequestRefusedError,
    StoppingError,
    container_label,
)
from argusd.subjects import SubjectT
from argusd.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from argusd._inotify import Armed
    from argusd.containers import Container
    from argusd.templates import Template

__all__ = ["Arming", "ArmingEngine", "Outcome", "Subscription"]

logger = logging.getLogger("argusd.arming")

_WALKERS: Final = 4  # more would not be quicker
_TURN_S: Final = 0.25  # a walk that takes longer lets the next one begin: what it waits for may never answer
_MOST_WALKS: Final = 256
_MOST_STUCK: Final = 4  # in one container; each is a process and two threads
_SILENT_S: Final = 3.0  # without progress, and the operator hears of it
_LOOK_S: Final = 5.0  # the longest time between two looks at a walk that makes no progress
_FREE_AGAIN_S: Final = 0.05
_MOUNTED: Final = frozenset({"/proc", "/sys", "/dev"})  # by every runtime that shares the node's kernel
_MOST_DOUBTED: Final = 1024
_LEAST_WALK_S: Final = 0.1  # a request that spent its time looking for containers still gets this much


class ArmingEngine(Protocol):
    """The part of the native engine that arms what is subscribed."""

    def arm(self, subscription: int) -> Armed:
        """Arm the subject's paths; blocks for as long as the walk takes."""

    def walked(self, subscription: int) -> tuple[int, int] | None:
        """How many directories a walk has armed so far, and at which path it is; None when none is under way."""

    def switch(self, on: Sequence[int], off: Sequence[int]) -> bool:
        """In one step: ``on`` take effect, ``off`` stop and are freed; True when a later call has to free some."""


@dataclass(frozen=True, slots=True)
class Subscription(Generic[SubjectT]):
    """One subject in one container, by its number in the engine."""

    number: int
    subject: SubjectT
    template: Template


@dataclass(frozen=True, slots=True)
class Outcome(Generic[SubjectT]):
    """The subscriptions, one for each item that was asked for, and the pids of containers that ended meanwhile."""

    subscriptions: tuple[Subscription[SubjectT], ...]
    gone: frozenset[int]


@dataclass(eq=False, slots=True)
class _Walk(Generic[SubjectT]):
    key: PodKey
    container: Container
    subscription: Subscription[SubjectT]
    begun: bool = False
    gone: bool = False
    late: bool = False  # nobody waits for it any more
    progress: tuple[int, int] | None = None
    silent_since: float = 0.0  # loop time of the last progress
    silent_told: bool = False


class Arming(Generic[SubjectT]):
    """The walks of one kind, and every subscription of it that is live in the engine."""

    def __init__(self, engine: ArmingEngine, kind: Kind[SubjectT]) -> None:
        """Must be made inside the running event loop."""
        self.kind: Final = kind
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._turns: Final = Turns(_WALKERS, _MOST_STUCK, _MOST_WALKS)
        self._walks: Final[set[_Walk[SubjectT]]] = set()  # that have begun
        # Freeing a large tree takes the kernel a while. One thread, so that switches happen in the order of the calls.
        self._switcher = ThreadPoolExecutor(1, thread_name_prefix="switch")
        self._live: dict[int, PodKey] = {}
        self._doubted: Final[set[Container]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._freeing: asyncio.TimerHandle | None = None
        self._closed = False

    def close(self) -> None:
        """Leave the engine alone from now on: it ends, and all its watches with it."""
        self._closed = True

    def release(self, counter: int) -> None:
        """Give a counter back for which nothing is armed any more; not at the end, when nothing is switched off."""
        if not self._closed:
            self.kind.release(counter)

    def owner(self, number: int) -> PodKey | None:
        """Return whose subscription this is; None when it is gone."""
        return self._live.get(number)

    async def switch(self, on: Sequence[int], off: Sequence[int]) -> None:
        """Let ``on`` take effect and free ``off``. The order of calls is kept, also among tasks."""
        for number in off:
            self._live.pop(number, None)
        if (on or off) and not self._closed:
            held = await self._loop.run_in_executor(self._switcher, self._engine.switch, on, off)
            if held and self._freeing is None:
                self._freeing = self._loop.call_later(_FREE_AGAIN_S, self._free)

    def _free(self) -> None:
        """A walk was still busy with what had been switched off, and holds descriptors in a container: ask again."""
        self._freeing = None
        if not self._closed:
            task = self._loop.create_task(self._ask_again())
            self._tasks.add(task)  # the loop itself holds tasks weakly
            task.add_done_callback(self._tasks.discard)

    async def _ask_again(self) -> None:
        with suppress(RuntimeError):  # the engine was closed meanwhile
            held = await self._loop.run_in_executor(self._switcher, self._engine.switch, (), ())
            if held and self._freeing is None:
                self._freeing = self._loop.call_later(_FREE_AGAIN_S, self._free)

    async def arm(
        self,
        key: PodKey,
        counter: int,
        items: Iterable[tuple[Container, SubjectT]],
        template: Template,
        answer_by: float,
    ) -> Outcome[SubjectT]:
        """Subscribe and arm ``items``, without effect until :meth:`switch`.

        Returns at ``answer_by`` (loop time) at the latest. What has begun by then goes on, and says when it is done;
        where the kind does not allow that, or something has not begun, it is an OutOfTimeError. Raises
        RequestRefusedError with everything taken back.
        """
        if self._closed:
            raise StoppingError("the daemon is stopping")
        walks: list[_Walk[SubjectT]] = []
        tasks: list[asyncio.Task[None]] = []
        try:
            for container, subject in items:
                self._refuse_hopeless(container)
                number = self._subscribe(key, counter, container, subject, template)
                walks.append(_Walk(key, container, Subscription(number, subject, template)))
                self._live[number] = key
            tasks = [self._start(walk) for walk in walks]
            await self._wait(walks, tasks, answer_by)
        except BaseException:
            for walk in walks:
                walk.late = True
            await self.switch([], [walk.subscription.number for walk in walks])
            raise
        for walk in walks:
            walk.late = True
        gone = frozenset(walk.container.pid for walk in walks if walk.gone)
        return Outcome(tuple(walk.subscription for walk in walks), gone)

    def _subscribe(self, key: PodKey, counter: int, container: Container, subject: SubjectT, template: Template) -> int:
        try:
            return self.kind.subscribe(key, counter, container, subject, template)
        except OSError as error:
            raise self.kind.refusal(error, container) from error

    def _start(self, walk: _Walk[SubjectT]) -> asyncio.Task[None]:
        task = self._loop.create_task(self._walk(walk))
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)
        return task

    def _refuse_hopeless(self, container: Container) -> None:
        """Raise when walks hang that nobody waits for any more, in the container, or as many as there may be."""
        hanging = [walk for walk in self._walks if walk.container == container and self._is_abandoned(walk)]
        if len(hanging) >= _MOST_STUCK:
            raise OutOfTimeError(self._silence(container))
        if self._turns.full:
            raise LimitReachedError(
                f"cannot look into {container_label(container)}: {self._turns.under_way} walks are under way already, "
                "most of them in file systems that do not answer"
            )

    def _is_abandoned(self, walk: _Walk[SubjectT]) -> bool:
        return walk.subscription.number not in self._live

    def _silence(self, container: Container) -> str:
        """Return why walks in the container cannot begin."""
        where = container_label(container)
        for walk in self._walks:
            if walk.container == container and walk.silent_since:
                return f"a file system in {where} does not answer: '{self._path(walk)}'"
        return f"there was no time to look into {where}: {self._turns.under_way} other walks are under way"

    def _path(self, walk: _Walk[SubjectT]) -> str:
        """Return the subject path at which a walk is."""
        paths = self.kind.paths(walk.subscription.subject)
        at = walk.progress[1] if walk.progress else 0
        return paths[min(at, len(paths) - 1)]

    async def _wait(
        self, walks: Sequence[_Walk[SubjectT]], tasks: Sequence[asyncio.Task[None]], answer_by: float
    ) -> None:
        if not tasks:
            return
        timeout_s = max(answer_by - self._loop.time(), _LEAST_WALK_S)
        done, late = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION)
        errors = [error for task in done if (error := task.exception())]
        if errors:
            raise errors[0]
        for walk in walks:
            if not walk.begun:
                raise OutOfTimeError(self._silence(walk.container))
        if late and not self.kind.may_lag:
            key = walks[0].key
            raise OutOfTimeError(f"not everything could be {self.kind.done} in time, so nothing is {key}")

    async def _walk(self, walk: _Walk[SubjectT]) -> None:
        number = walk.subscription.number
        try:
            armed = await self._armed(walk)
            if armed is None:
                return
            self._check(walk, armed)
        except ProcessLookupError:
            walk.gone = True  # its pidfd tells the registry
        except (OSError, RequestRefusedError) as error:
            refusal = self.kind.refusal(error, walk.container) if isinstance(error, OSError) else error
            if not walk.late:
                raise refusal from error
            if number in self._live:
                noun = self.kind.noun.capitalize()
                logger.error("%s %s is incomplete: %s", noun, walk.key, refusal)  # noqa: TRY400  (it says it all)
        else:
            if number in self._live:
                self._report(walk, armed)

    async def _armed(self, walk: _Walk[SubjectT]) -> Armed | None:
        """Arm in a thread, in turn; None when that was taken back before its turn came."""
        number = walk.subscription.number
        turn = await self._turns.take(walk.container)
        self._walks.add(walk)
        try:
            if number not in self._live:
                return None
            walk.begun = True
            future = self._in_thread(number)
            await asyncio.wait([future], timeout=_TURN_S)
            pause_s = _TURN_S
            while not future.done():
                self._turns.go_on(turn, stuck=self._is_silent(walk))
                await asyncio.wait([future], timeout=pause_s)
                pause_s = min(pause_s * 2, _LOOK_S) if turn.stuck else _TURN_S
            return future.result()
        finally:
            self._walks.discard(walk)
            self._turns.end(turn)

    def _in_thread(self, number: int) -> asyncio.Future[Armed]:
        """Arm in a thread of its own, which the interpreter does not wait for at its end."""
        future: asyncio.Future[Armed] = self._loop.create_future()

        def run() -> None:
            try:
                armed = self._engine.arm(number)
            except BaseException as error:  # noqa: BLE001  (it is raised where the future is awaited)
                answer = functools.partial(future.set_exception, error)
            else:
                answer = functools.partial(future.set_result, armed)
            with suppress(RuntimeError):  # the loop was closed meanwhile
                self._loop.call_soon_threadsafe(answer)

        try:
            threading.Thread(target=run, name="walker", daemon=True).start()
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, f"no thread can be started ({error})") from error
        return future

    def _is_silent(self, walk: _Walk[SubjectT]) -> bool:
        """Return whether a walk has armed nothing since the last call; once that has gone on for long, say so."""
        progress, now = self._engine.walked(walk.subscription.number), self._loop.time()
        if progress != walk.progress or not walk.silent_since:
            moved = progress is not None and progress > (walk.progress or (0, 0))
            walk.progress, walk.silent_since = progress, now
            return not moved
        if now - walk.silent_since >= _SILENT_S and not walk.silent_told:
            walk.silent_told = True
            logger.warning("%s", self._silent_text(walk))
        return True

    def _silent_text(self, walk: _Walk[SubjectT]) -> str:
        path = self._path(walk)
        kinds = mounts.that_may_wait(walk.container.pid, path)
        where = f" ({', '.join(kinds)})" if kinds else ""
        return (
            f"A file system in {container_label(walk.container)} does not answer: '{path}'{where} "
            f"is not {self.kind.done} until it does {walk.key}"
        )

    def _check(self, walk: _Walk[SubjectT], armed: Armed) -> None:
        """Refuse what could not be armed for the lack of a capability, and what its kind cannot do without.

        Where the daemon has the capability, permission is denied by a file system of its own rules (FUSE, NFS): no
        other daemon could do better.
        """
        paths = self.kind.paths(walk.subscription.subject)
        failed = [(path, code) for path, code in zip(paths, armed.errors, strict=True) if code]
        denied = [path for path, code in failed if code in {errno.EACCES, errno.EPERM}]
        denied += [armed.unreadable] if armed.unreadable else []
        lacking = privileges.missing([privileges.DAC_READ_SEARCH], privileges.held()) if denied else ()
        if lacking:
            raise AccessDeniedError(
                f"'{denied[0]}' in {container_label(walk.container)} is closed to the daemon, which lacks {lacking[0]}"
            )
        for path, code in failed:
            if refusal := self.kind.unusable(path, code, walk.container):
                raise refusal

    def _report(self, walk: _Walk[SubjectT], armed: Armed) -> None:
        """Log the end of a walk that outlived its request, and every path that could not be armed."""
        subject, where, done = walk.subscription.subject, container_label(walk.container), self.kind.done
        paths = self.kind.paths(subject)
        if walk.late:
            logger.info(
                "Walk of %s in %s is done %s: %d directories in %.1f s",
                ", ".join(paths),
                where,
                walk.key,
                armed.directories,
                armed.seconds,
            )
        for name, code in zip(paths, armed.errors, strict=True):
            if not code:
                continue
            if code == errno.ENOENT:
                logger.info("'%s' does not exist in %s, not %s yet %s", name, where, done, walk.key)
            elif code == errno.ENOTDIR and subject.only_dir:
                logger.debug("'%s' in %s is not a directory, left out %s", name, where, walk.key)
            else:
                logger.warning("'%s' in %s cannot be %s %s: %s", name, where, done, walk.key, os.strerror(code))
        if all(code == errno.ENOENT for code in armed.errors):
            self._doubt_root(walk)

    def _doubt_root(self, walk: _Walk[SubjectT]) -> None:
        """Warn, once for each container, when no path exists in a root in which no runtime has mounted anything."""
        container = walk.container
        if container in self._doubted or any(mount.place in _MOUNTED for mount in mounts.pid_mounts(container.pid)):
            return
        if len(self._doubted) >= _MOST_DOUBTED:
            self._doubted.clear()
        self._doubted.add(container)
        logger.warning(
            "Nothing of %s can be seen through its process %d: none of the paths exists there, nor a /proc %s. "
            "A sandboxed runtime such as gVisor or Kata Containers keeps the files where the node's kernel does not "
            "see them: such containers cannot be %s",
            container_label(container), container.pid, walk.key, self.kind.done,
        )  # fmt: skip
