"""Who is watched: which request means which watch, what an update changes, and when a container's watches go.

The choices (:func:`matching`, :func:`container_sets`, :func:`to_destroy`, :func:`draft`) are pure functions of the
watches and the request. :class:`Registry` carries them out. Its state changes only on the event loop, never across an
``await``, and the engine is told in the same order, so that neither sees the other half-way.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from argusd.arming import Arming, NoContainerError, Subscription, WatchKey, container_label
from argusd.ends import Ends

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from argusd.containers import Container
    from argusd.metrics import Metrics
    from argusd.subjects import Subject, WatchRequest

__all__ = ["Draft", "Handle", "Member", "Registry", "Watch", "container_sets", "draft", "matching", "to_destroy"]

logger = logging.getLogger("argusd.registry")


@dataclass(frozen=True, slots=True)
class Handle:
    """A watched pod, as clients see it."""

    node: str
    pod: str
    pids: tuple[int, ...]


Identity = tuple[int, int]
"""Pid and start time: never the same for two processes."""


@dataclass(frozen=True, slots=True)
class Member:
    """One container of a watch and what reports from it."""

    container: Container
    subscriptions: tuple[Subscription, ...]

    @property
    def numbers(self) -> list[int]:
        """The engine's numbers."""
        return [subscription.number for subscription in self.subscriptions]


@dataclass(slots=True, eq=False)
class Watch:
    """One live watch; ``members`` are in the order of the request."""

    key: WatchKey
    counter: int
    members: dict[Identity, Member] = field(default_factory=dict)

    @property
    def pids(self) -> list[int]:
        """The init processes of the containers."""
        return [pid for pid, _ in self.members]

    @property
    def numbers(self) -> list[int]:
        """The engine's numbers of all subscriptions."""
        return [number for member in self.members.values() for number in member.numbers]

    def holds(self, container: Container) -> bool:
        """Whether this very object belongs to the watch."""
        return any(member.container is container for member in self.members.values())


@dataclass(frozen=True, slots=True)
class Draft:
    """What one container of a request needs: subscriptions that stay, and subjects that are new."""

    container: Container
    kept: tuple[Subscription, ...]
    missing: tuple[Subject, ...]


def identity(container: Container) -> Identity:
    """Return what tells this container's init from every other process."""
    return container.pid, container.start_time


def matching(watches: Iterable[Watch], key: WatchKey, identities: Iterable[Identity]) -> list[Watch]:
    """Return the watches that a CreateWatch for these containers means: same key, and a container in common."""
    wanted = set(identities)
    return [watch for watch in watches if watch.key == key and not wanted.isdisjoint(watch.members)]


def container_sets(watches: Iterable[Watch]) -> list[list[Watch]]:
    """Group watches that have containers in common, directly or through one another: each group is one pod."""
    groups: list[tuple[set[Identity], list[Watch]]] = []
    for watch in watches:
        members, together, apart = set(watch.members), [], []
        for group in groups:
            if group[0].isdisjoint(members):
                apart.append(group)
            else:
                members |= group[0]
                together += group[1]
        groups = [*apart, (members, [*together, watch])]
    return [together for _, together in groups]


def to_destroy(watches: Iterable[Watch], key: WatchKey, pids: Iterable[int]) -> tuple[list[Watch], bool]:
    """Return what a DestroyWatch means, and whether it was left alone because several pods carry the name.

    With a pod: its watches, only those called ``key.name`` when that is given; pids decide only between pods of one
    name. Without: the node's watches that share a pid.
    """
    wanted = set(pids)
    here = [watch for watch in watches if watch.key.node == key.node]
    if key.pod:
        groups = container_sets(watch for watch in here if watch.key.pod == key.pod)
        if len(groups) > 1:
            groups = [group for group in groups if any(not wanted.isdisjoint(watch.pids) for watch in group)]
            if not groups:
                return [], True
        found = [watch for group in groups for watch in group]
    else:
        found = [watch for watch in here if not wanted.isdisjoint(watch.pids)]
    return [watch for watch in found if key.name in {"", watch.key.name}], False


def draft(olds: Iterable[Watch], request: WatchRequest, containers: Iterable[Container]) -> list[Draft]:
    """Compare a request with what is there; a subject that is asked for twice is subscribed twice."""
    present = [member for watch in olds for member in watch.members.values()]
    drafts = []
    for container in containers:
        pool = [s for member in present if member.container == container for s in member.subscriptions]
        kept, missing = [], []
        for subject in request.subjects:
            same = next((s for s in pool if s.subject == subject and s.template == request.template), None)
            if same is None:
                missing.append(subject)
            else:
                pool.remove(same)
                kept.append(same)
        drafts.append(Draft(container, tuple(kept), tuple(missing)))
    return drafts


class Registry:
    """Every live watch. Owns the containers it is given, and their place in the event loop."""

    def __init__(self, arming: Arming, metrics: Metrics) -> None:
        """Start with no watch; must be made inside the running event loop."""
        self._arming = arming
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._ends = Ends()
        self._watches: list[Watch] = []
        # One request at a time for a pod; a lock lives only as long as somebody holds it or waits for it.
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()

    async def create(self, request: WatchRequest, containers: Sequence[Container], answer_by: float) -> Handle:
        """Watch ``containers`` as asked, or change what is watched there; they are the registry's from now on.

        Returns when everything is armed, or at ``answer_by`` (loop time) with the rest going on in the background.
        Raises RequestRefusedError with nothing changed.
        """
        key = WatchKey(request.node_name, request.pod_name, request.name)
        try:
            async with self._lock(key):
                return await self._create(key, request, containers, answer_by)
        finally:  # a container that ended, was named twice, or belongs to a request that failed
            for container in containers:
                if not any(watch.holds(container) for watch in self._watches):
                    container.close()

    async def destroy(self, key: WatchKey, pids: Sequence[int]) -> None:
        """Stop what a DestroyWatch means; when this returns nothing more is reported from it."""
        found, _ = to_destroy(self._watches, key, pids)
        keys = sorted({(watch.key.node, watch.key.pod) for watch in found}) or [(key.node, key.pod)]
        for node, pod in keys:
            async with self._lock(WatchKey(node, pod, key.name)):
                found, left_alone = to_destroy(self._watches, key, pids)
                if left_alone:
                    logger.warning("Several pods are called %s and none has a pid of the request: nothing stopped", key)
                here = [watch for watch in found if (watch.key.node, watch.key.pod) == (node, pod)]
                for watch in here:
                    logger.info("Stopping `inotify` watcher %s", watch.key, extra={"watcher": watch.key.name})
                await self._retire(here, on=[], kept=set())

    def state(self) -> list[Handle]:
        """Return one handle per watched pod, with the containers that still run."""
        pods: dict[tuple[str, str], list[Watch]] = {}
        for watch in self._watches:
            pods.setdefault((watch.key.node, watch.key.pod), []).append(watch)
        handles = []
        for (node, pod), watches in pods.items():
            for group in container_sets(watches):
                members = {who: member for watch in group for who, member in watch.members.items()}
                pids = tuple(pid for (pid, _), member in members.items() if member.container.alive())
                if pids:
                    handles.append(Handle(node, pod, pids))
        return handles

    def _lock(self, key: WatchKey) -> asyncio.Lock:
        return self._locks.setdefault((key.node, key.pod), asyncio.Lock())

    async def _create(
        self, key: WatchKey, request: WatchRequest, containers: Sequence[Container], answer_by: float
    ) -> Handle:
        """Arm what is new, then put a new watch in the place of those that it continues."""
        containers = list({identity(container): container for container in containers}.values())
        olds = matching(self._watches, key, map(identity, containers))
        verb = "Updating" if olds else "Starting"
        logger.info("%s `inotify` watcher %s", verb, key, extra={"watcher": key.name})
        drafts = draft(olds, request, containers)
        watch = Watch(key, self._metrics.acquire(key.name, key.node))
        try:
            items = [(item.container, subject) for item in drafts for subject in item.missing]
            outcome = await self._arming.arm(key, watch.counter, items, request.template, answer_by)
            # No await from here to the switch: containers may have ended while the arming went on.
            live = {number for old in olds for number in old.numbers}
            fresh = iter(outcome.subscriptions)
            for item in drafts:
                added = tuple(itertools.islice(fresh, len(item.missing)))
                ended = item.container.pid in outcome.gone or not live.issuperset(s.number for s in item.kept)
                if not ended:
                    watch.members[identity(item.container)] = Member(item.container, item.kept + added)
            numbers = {subscription.number for subscription in outcome.subscriptions}
            if not watch.members:
                await self._arming.switch([], sorted(numbers))
                raise NoContainerError(f"the containers of {key} ended while they were being armed")  # noqa: TRY301
        except BaseException:
            self._metrics.release(watch.counter)
            raise
        handle = Handle(key.node, key.pod, tuple(watch.pids))
        self._adopt(watch)
        on = sorted(numbers.intersection(watch.numbers))
        lost = sorted(numbers.difference(watch.numbers))
        await self._retire([old for old in olds if old in self._watches], on=on, kept=set(watch.numbers), lost=lost)
        return handle

    def _adopt(self, watch: Watch) -> None:
        self._watches.append(watch)
        for who, member in watch.members.items():
            self._ends.add(member.container, functools.partial(self._ended, watch, who))

    async def _retire(
        self, watches: Sequence[Watch], *, on: list[int], kept: set[int], lost: Sequence[int] = ()
    ) -> None:
        """Forget ``watches`` and free what reported for them, except ``kept``; ``on`` begin in the same step."""
        off = list(lost)
        for watch in watches:
            self._watches.remove(watch)
            off += [number for number in watch.numbers if number not in kept]
            for member in watch.members.values():
                self._release(member.container)
        await self._arming.switch(on, off)
        for watch in watches:
            self._metrics.release(watch.counter)

    def _ended(self, watch: Watch, who: Identity) -> None:
        """Called by the loop when a container's init process has ended."""
        member = watch.members.pop(who)
        self._release(member.container)
        logger.info("%s has ended %s", container_label(member.container).capitalize(), watch.key)
        last = not watch.members
        if last:
            self._watches.remove(watch)
        task = self._loop.create_task(self._free(member, watch.counter if last else None))
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)

    async def _free(self, member: Member, counter: int | None) -> None:
        await self._arming.switch([], member.numbers)
        if counter is not None:
            self._metrics.release(counter)

    def _release(self, container: Container) -> None:
        self._ends.remove(container)
        container.close()
