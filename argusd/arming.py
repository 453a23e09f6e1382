"""Subscriptions in the engine: armed on walker threads within a request's time, taken back when that fails.

This is the one place that talks to the engine about subscriptions. It knows subjects and containers, not whose they
are; what a watch and a guard do differently is its :class:`argusd.kinds.Kind`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, Protocol

from argusd import privileges
from argusd.kinds import Kind, PodKey
from argusd.refusals import AccessDeniedError, OutOfTimeError, RequestRefusedError, StoppingError, container_label
from argusd.subjects import SubjectT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from argusd._inotify import Armed
    from argusd.containers import Container
    from argusd.templates import Template

__all__ = ["Arming", "ArmingEngine", "Outcome", "Subscription"]

logger = logging.getLogger("argusd.arming")

_WALKERS: Final = 4  # more would not be quicker
# A walk that takes longer than this lets the next one begin: what it waits for may be a file system that never answers.
_TURN_S: Final = 2.0
_MOST_WALKS: Final = 64
_MOST_STUCK: Final = 4  # in one container: a client repeats what fails, and each time would leave a thread behind
_FREE_AGAIN_S: Final = 0.05
_LEAST_WALK_S: Final = 0.1  # a request that spent its time looking for containers still gets this much


class ArmingEngine(Protocol):
    """The part of the native engine that arms what is subscribed."""

    def arm(self, subscription: int) -> Armed:
        """Arm the subject's paths; blocks for as long as the walk takes."""

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


@dataclass(slots=True)
class _Walk(Generic[SubjectT]):
    key: PodKey
    container: Container
    subscription: Subscription[SubjectT]
    gone: bool = False
    late: bool = False  # nobody waits for it any more


class Arming(Generic[SubjectT]):
    """The walker threads of one kind, and every subscription of it that is live in the engine."""

    def __init__(self, engine: ArmingEngine, kind: Kind[SubjectT]) -> None:
        """Must be made inside the running event loop."""
        self.kind: Final = kind
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._walkers = ThreadPoolExecutor(_MOST_WALKS, thread_name_prefix="walker")
        self._turns = asyncio.Semaphore(_WALKERS)
        self._overdue: dict[int, Container] = {}
        # Freeing a large tree takes the kernel a while. One thread, so that switches happen in the order of the calls.
        self._switcher = ThreadPoolExecutor(1, thread_name_prefix="switch")
        self._live: dict[int, PodKey] = {}
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

        Returns at ``answer_by`` (loop time) at the latest. What is not done then goes on, and says when it is;
        where the kind does not allow that, it is an OutOfTimeError. Raises RequestRefusedError with everything taken
        back.
        """
        if self._closed:
            raise StoppingError("the daemon is stopping")
        walks: list[_Walk[SubjectT]] = []
        tasks: list[asyncio.Task[None]] = []
        try:
            for container, subject in items:
                self._refuse_stuck(container)
                number = self._subscribe(key, counter, container, subject, template)
                walks.append(_Walk(key, container, Subscription(number, subject, template)))
                self._live[number] = key
            tasks = [self._start(walk) for walk in walks]
            await self._wait(tasks, answer_by, key)
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

    def _refuse_stuck(self, container: Container) -> None:
        """Raise OutOfTimeError when walks in the container hang that nobody waits for any more."""
        stuck = [one for number, one in self._overdue.items() if number not in self._live and one == container]
        if len(stuck) >= _MOST_STUCK:
            raise OutOfTimeError(f"a file system in {container_label(container)} does not answer")

    async def _wait(self, tasks: Sequence[asyncio.Task[None]], answer_by: float, key: PodKey) -> None:
        if not tasks:
            return
        timeout_s = max(answer_by - self._loop.time(), _LEAST_WALK_S)
        done, late = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION)
        errors = [error for task in done if (error := task.exception())]
        if errors:
            raise errors[0]
        if late and not self.kind.may_lag:
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
        async with self._turns:
            if number not in self._live:
                return None
            future = self._loop.run_in_executor(self._walkers, self._engine.arm, number)
            await asyncio.wait([future], timeout=_TURN_S)
        if not future.done():
            self._overdue[number] = walk.container
        try:
            return await future
        finally:
            self._overdue.pop(number, None)

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
