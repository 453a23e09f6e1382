"""Subscriptions in the engine: armed on walker threads within a request's time, taken back when that fails.

This is the one place that talks to the engine about watches. It knows subjects and containers, not whose they are.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from argusd import privileges
from argusd._inotify import DeniedError
from argusd._records import Encoder

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from argusd._inotify import Armed
    from argusd.containers import Container
    from argusd.subjects import Subject
    from argusd.templates import Template

__all__ = [
    "WATCH_LIMIT",
    "AccessDeniedError",
    "Arming",
    "LimitReachedError",
    "NoContainerError",
    "Outcome",
    "RequestRefusedError",
    "StoppingError",
    "Subscription",
    "WatchEngine",
    "WatchKey",
    "container_label",
    "sysctl",
]

logger = logging.getLogger("argusd.arming")

_WALKERS: Final = 4
_FREE_AGAIN_S: Final = 0.05
_LEAST_WALK_S: Final = 0.1  # a request that spent its time looking for containers still gets this much
WATCH_LIMIT: Final = "fs.inotify.max_user_watches"


class WatchEngine(Protocol):
    """The part of the native engine that arms watches."""

    def subscribe(
        self,
        encoder: Encoder,
        counter: int,
        pid: int,
        pidfd: int,
        paths: Sequence[bytes],
        mask: int,
        ignore: Sequence[bytes],
        only_dir: bool,  # noqa: FBT001  (the native face is positional)
        recursive: bool,  # noqa: FBT001
        max_depth: int,
        follow_move: bool,  # noqa: FBT001
    ) -> int:
        """Register one subject in one container, silent and unarmed."""

    def arm(self, subscription: int) -> Armed:
        """Watch the subject's paths; blocks for as long as the walk takes."""

    def switch(self, on: Sequence[int], off: Sequence[int]) -> bool:
        """In one step: ``on`` begin to report, ``off`` stop and are freed; True when a later call has to free some."""


class RequestRefusedError(Exception):
    """A request that cannot be carried out; ``str()`` is for the client. Nothing was changed."""


class NoContainerError(RequestRefusedError):
    """None of the containers is running."""


class LimitReachedError(RequestRefusedError):
    """The kernel has no more watches to give."""


class AccessDeniedError(RequestRefusedError):
    """The daemon may not look into the container."""


class StoppingError(RequestRefusedError):
    """The daemon is about to end."""


@dataclass(frozen=True, slots=True)
class WatchKey:
    """What a request calls its watch; not unique, since a pod's namespace is not part of it."""

    node: str
    pod: str
    name: str

    def __str__(self) -> str:
        """Return the form of the log lines."""
        return f"({self.pod}:{self.node})"


@dataclass(frozen=True, slots=True)
class Subscription:
    """One subject in one container, by its number in the engine."""

    number: int
    subject: Subject
    template: Template


@dataclass(frozen=True, slots=True)
class Outcome:
    """The subscriptions, one for each item that was asked for, and the pids of containers that ended meanwhile."""

    subscriptions: tuple[Subscription, ...]
    gone: frozenset[int]


@dataclass(slots=True)
class _Walk:
    key: WatchKey
    container: Container
    subscription: Subscription
    gone: bool = False
    late: bool = False  # nobody waits for it any more


class Arming:
    """The walker threads, and every subscription that is live in the engine."""

    def __init__(self, engine: WatchEngine) -> None:
        """Must be made inside the running event loop."""
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._walkers = ThreadPoolExecutor(_WALKERS, thread_name_prefix="walker")
        # Freeing a large tree takes the kernel a while. One thread, so that switches happen in the order of the calls.
        self._switcher = ThreadPoolExecutor(1, thread_name_prefix="switch")
        self._live: dict[int, WatchKey] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._freeing: asyncio.TimerHandle | None = None
        self._closed = False

    def close(self) -> None:
        """Leave the engine alone from now on: it ends, and all its watches with it."""
        self._closed = True

    def owner(self, number: int) -> WatchKey | None:
        """Return whose subscription this is; None when it is gone."""
        return self._live.get(number)

    async def switch(self, on: Sequence[int], off: Sequence[int]) -> None:
        """Let ``on`` report and free ``off``. The order of calls is kept, also among tasks."""
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
        key: WatchKey,
        counter: int,
        items: Iterable[tuple[Container, Subject]],
        template: Template,
        answer_by: float,
    ) -> Outcome:
        """Subscribe and arm ``items``, silent until :meth:`switch`.

        Returns at ``answer_by`` (loop time) at the latest; what is not done then goes on, and says when it is.
        Raises RequestRefusedError with everything taken back.
        """
        if self._closed:
            raise StoppingError("the daemon is stopping")
        walks: list[_Walk] = []
        tasks: list[asyncio.Task[None]] = []
        try:
            for container, subject in items:
                number = self._subscribe(key, counter, container, subject, template)
                walks.append(_Walk(key, container, Subscription(number, subject, template)))
                self._live[number] = key
            tasks = [self._start(walk) for walk in walks]
            await self._wait(tasks, answer_by)
        except BaseException:
            for walk in walks:
                walk.late = True
            await self.switch([], [walk.subscription.number for walk in walks])
            raise
        for walk in walks:
            walk.late = True
        gone = frozenset(walk.container.pid for walk in walks if walk.gone)
        return Outcome(tuple(walk.subscription for walk in walks), gone)

    def _subscribe(
        self, key: WatchKey, counter: int, container: Container, subject: Subject, template: Template
    ) -> int:
        return self._engine.subscribe(
            Encoder(template.segments, key.pod, key.node, key.name, container.id, subject.tags),
            counter,
            container.pid,
            container.pidfd,
            [path.encode() for path in subject.paths],
            subject.mask,
            [name.encode() for name in subject.ignore],
            subject.only_dir,
            subject.recursive,
            subject.max_depth,
            subject.follow_move,
        )

    def _start(self, walk: _Walk) -> asyncio.Task[None]:
        task = self._loop.create_task(self._walk(walk))
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)
        return task

    async def _wait(self, tasks: Sequence[asyncio.Task[None]], answer_by: float) -> None:
        if not tasks:
            return
        timeout_s = max(answer_by - self._loop.time(), _LEAST_WALK_S)
        done, _ = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION)
        errors = [error for task in done if (error := task.exception())]
        if errors:
            raise errors[0]

    async def _walk(self, walk: _Walk) -> None:
        number = walk.subscription.number
        try:
            armed = await self._loop.run_in_executor(self._walkers, self._engine.arm, number)
            _check_rights(walk, armed)
        except ProcessLookupError:
            walk.gone = True  # its pidfd tells the registry
        except (OSError, AccessDeniedError) as error:
            refusal = _refusal(error, walk.container) if isinstance(error, OSError) else error
            if not walk.late:
                raise refusal from error
            if number in self._live:
                logger.error("Watch %s is incomplete: %s", walk.key, refusal)  # noqa: TRY400  (the message says it all)
        else:
            if number in self._live:
                _report(walk, armed)


def _check_rights(walk: _Walk, armed: Armed) -> None:
    """Refuse what could not be watched for the lack of a capability; AccessDeniedError names it.

    Where the daemon has the capability, permission is denied by a file system of its own rules (FUSE, NFS): that is a
    warning, since no other daemon could do better.
    """
    denied = [
        path
        for path, code in zip(walk.subscription.subject.paths, armed.errors, strict=True)
        if code in {errno.EACCES, errno.EPERM}
    ]
    denied += [armed.unreadable] if armed.unreadable else []
    lacking = privileges.missing([privileges.DAC_READ_SEARCH], privileges.held()) if denied else ()
    if lacking:
        raise AccessDeniedError(
            f"'{denied[0]}' in {container_label(walk.container)} is closed to the daemon, which lacks {lacking[0]}"
        )


def _report(walk: _Walk, armed: Armed) -> None:
    """Log the end of a walk that outlived its request, and every path that could not be armed."""
    subject, where = walk.subscription.subject, container_label(walk.container)
    if walk.late:
        paths = ", ".join(subject.paths)
        logger.info(
            "Walk of %s in %s is done %s: %d directories in %.1f s",
            paths,
            where,
            walk.key,
            armed.directories,
            armed.seconds,
        )
    for name, code in zip(subject.paths, armed.errors, strict=True):
        if not code:
            continue
        if code == errno.ENOENT:
            logger.info("'%s' does not exist in %s, not watched yet %s", name, where, walk.key)
        elif code == errno.ENOTDIR and subject.only_dir:
            logger.debug("'%s' in %s is not a directory, left out %s", name, where, walk.key)
        else:
            logger.warning("'%s' in %s cannot be watched %s: %s", name, where, walk.key, os.strerror(code))


def _refusal(error: OSError, container: Container) -> RequestRefusedError:
    where = container_label(container)
    if error.errno == errno.ENOSPC:
        return LimitReachedError(f"no inotify watches left for {where}: {WATCH_LIMIT} is {sysctl(WATCH_LIMIT)}")
    if error.errno in {errno.ENOMEM, errno.EMFILE, errno.ENFILE}:
        return LimitReachedError(
            f"{os.strerror(error.errno)} while arming {where} ({WATCH_LIMIT} is {sysctl(WATCH_LIMIT)})"
        )
    if isinstance(error, DeniedError):
        return _denial(error, where)
    return RequestRefusedError(f"cannot watch {where}: {error}")


def _denial(error: DeniedError, where: str) -> AccessDeniedError:
    """Say which capability it takes to get into a container, or that none would help."""
    if error.step == "root":
        what, wanted = f"cannot see the root of {where}", [privileges.SYS_PTRACE]
    else:
        what, wanted = f"cannot enter {where} with setns", [privileges.SYS_ADMIN, privileges.SYS_CHROOT]
    lacking = privileges.missing(wanted, privileges.held())
    if lacking:
        return AccessDeniedError(f"{what}: the daemon lacks {' and '.join(map(str, lacking))}")
    return AccessDeniedError(
        f"{what}: {error.strerror}, although the daemon has {' and '.join(map(str, wanted))}; "
        "a security module, a seccomp profile or a user namespace around the daemon forbids it"
    )


def container_label(container: Container) -> str:
    """Return what to call a container in a message."""
    return f"container {container.id}" if container.id else f"process {container.pid}"


def sysctl(name: str) -> str:
    """Return the current value of a sysctl, for a message."""
    try:
        return Path("/proc/sys", *name.split(".")).read_text().strip()
    except OSError as error:
        return f"unknown ({error.strerror})"
