"""Who is watched or guarded: which request means which entry, what an update changes, when a container's part goes.

The choices (:func:`matching`, :func:`container_sets`, :func:`to_destroy`, :func:`draft`) are pure functions of the
entries and the request. :class:`Registry` carries them out. Its state changes only on the event loop, never across an
``await``, and the engine is told in the same order, so that neither sees the other half-way.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import WeakValueDictionary

from argusd.arming import Arming, Subscription
from argusd.ends import Ends
from argusd.kinds import PodKey
from argusd.refusals import NoContainerError, container_label
from argusd.subjects import SubjectT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from argusd.containers import Container
    from argusd.subjects import Request

__all__ = ["Draft", "Entry", "Handle", "Member", "Registry", "container_sets", "draft", "matching", "to_destroy"]

logger = logging.getLogger("argusd.registry")


@dataclass(frozen=True, slots=True)
class Handle:
    """A pod with an entry, as clients see it."""

    node: str
    pod: str
    pids: tuple[int, ...]


Identity = tuple[int, int]
"""Pid and start time: never the same for two processes."""


@dataclass(frozen=True, slots=True)
class Member(Generic[SubjectT]):
    """One container of an entry and its subscriptions."""

    container: Container
    subscriptions: tuple[Subscription[SubjectT], ...]

    @property
    def numbers(self) -> list[int]:
        """The engine's numbers."""
        return [subscription.number for subscription in self.subscriptions]


@dataclass(slots=True, eq=False)
class Entry(Generic[SubjectT]):
    """One live watch or guard; ``members`` are in the order of the request."""

    key: PodKey
    counter: int
    members: dict[Identity, Member[SubjectT]] = field(default_factory=dict)
    complete: bool = True
    """Every container of the request runs; else nobody knows what has taken the place of the missing one."""

    @property
    def pids(self) -> list[int]:
        """The init processes of the containers."""
        return [pid for pid, _ in self.members]

    @property
    def numbers(self) -> list[int]:
        """The engine's numbers of all subscriptions."""
        return [number for member in self.members.values() for number in member.numbers]

    def holds(self, container: Container) -> bool:
        """Whether this very object belongs to the entry."""
        return any(member.container is container for member in self.members.values())


@dataclass(frozen=True, slots=True)
class Draft(Generic[SubjectT]):
    """What one container of a request needs: subscriptions that stay, and subjects that are new."""

    container: Container
    kept: tuple[Subscription[SubjectT], ...]
    missing: tuple[SubjectT, ...]


EntryT = TypeVar("EntryT", bound=Entry[Any])


def identity(container: Container) -> Identity:
    """Return what tells this container's init from every other process."""
    return container.pid, container.start_time


def matching(entries: Iterable[EntryT], key: PodKey, identities: Iterable[Identity]) -> list[EntryT]:
    """Return the entries that a request for these containers means: same key, and a container in common."""
    wanted = set(identities)
    return [entry for entry in entries if entry.key == key and not wanted.isdisjoint(entry.members)]


def container_sets(entries: Iterable[EntryT]) -> list[list[EntryT]]:
    """Group entries that have containers in common, directly or through one another: each group is one pod."""
    groups: list[tuple[set[Identity], list[EntryT]]] = []
    for entry in entries:
        members: set[Identity] = set(entry.members)
        together: list[EntryT] = []
        apart: list[tuple[set[Identity], list[EntryT]]] = []
        for group in groups:
            if group[0].isdisjoint(members):
                apart.append(group)
            else:
                members |= group[0]
                together += group[1]
        groups = [*apart, (members, [*together, entry])]
    return [together for _, together in groups]


def to_destroy(entries: Iterable[EntryT], key: PodKey, pids: Iterable[int]) -> tuple[list[EntryT], bool]:
    """Return what a request to destroy means, and whether it was left alone because several pods carry the name.

    With a pod: its entries, only those called ``key.name`` when that is given; pids decide only between pods of one
    name. Without: the node's entries that share a pid.
    """
    wanted = set(pids)
    here = [entry for entry in entries if entry.key.node == key.node]
    if key.pod:
        groups = container_sets(entry for entry in here if entry.key.pod == key.pod)
        if len(groups) > 1:
            groups = [group for group in groups if any(not wanted.isdisjoint(entry.pids) for entry in group)]
            if not groups:
                return [], True
        found = [entry for group in groups for entry in group]
    else:
        found = [entry for entry in here if not wanted.isdisjoint(entry.pids)]
    return [entry for entry in found if key.name in {"", entry.key.name}], False


def draft(
    olds: Iterable[Entry[SubjectT]], request: Request[SubjectT], containers: Iterable[Container]
) -> list[Draft[SubjectT]]:
    """Compare a request with what is there; a subject that is asked for twice is subscribed twice."""
    present = [member for entry in olds for member in entry.members.values()]
    drafts = []
    for container in containers:
        pool = [s for member in present if member.container == container for s in member.subscriptions]
        kept: list[Subscription[SubjectT]] = []
        missing: list[SubjectT] = []
        for subject in request.subjects:
            same = next((s for s in pool if s.subject == subject and s.template == request.template), None)
            if same is None:
                missing.append(subject)
            else:
                pool.remove(same)
                kept.append(same)
        drafts.append(Draft(container, tuple(kept), tuple(missing)))
    return drafts


class Registry(Generic[SubjectT]):
    """Every live entry of one kind. Owns the containers it is given, and their place in the event loop."""

    def __init__(self, arming: Arming[SubjectT]) -> None:
        """Start with no entry; must be made inside the running event loop."""
        self._arming = arming
        self._kind = arming.kind
        self._loop = asyncio.get_running_loop()
        self._ends = Ends()
        self._entries: list[Entry[SubjectT]] = []
        # One request at a time for a pod; a lock lives only as long as somebody holds it or waits for it.
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()

    async def create(self, request: Request[SubjectT], containers: Sequence[Container], answer_by: float) -> Handle:
        """Watch or guard ``containers`` as asked, or change that; they are the registry's from now on.

        Returns when everything is armed, or at ``answer_by`` (loop time) with the rest going on in the background.
        Raises RequestRefusedError with nothing changed.
        """
        key = PodKey(request.node_name, request.pod_name, request.name)
        try:
            async with self._lock(key):
                return await self._create(key, request, containers, answer_by)
        finally:  # a container that ended, was named twice, or belongs to a request that failed
            for container in containers:
                if not any(entry.holds(container) for entry in self._entries):
                    container.close()

    async def destroy(self, key: PodKey, pids: Sequence[int]) -> None:
        """Stop what a request to destroy means; when this returns nothing more comes of it."""
        found, _ = to_destroy(self._entries, key, pids)
        keys = sorted({(entry.key.node, entry.key.pod) for entry in found}) or [(key.node, key.pod)]
        for node, pod in keys:
            async with self._lock(PodKey(node, pod, key.name)):
                found, left_alone = to_destroy(self._entries, key, pids)
                if left_alone:
                    logger.warning("Several pods are called %s and none has a pid of the request: nothing stopped", key)
                here = [entry for entry in found if (entry.key.node, entry.key.pod) == (node, pod)]
                for entry in here:
                    logger.info("Stopping %s %s", self._kind.label, entry.key, extra=self._named(entry.key))
                await self._retire(here, on=[], kept=set())

    def state(self) -> list[Handle]:
        """Return one handle per pod of which every container of the last request still runs.

        The others are left out, so that a controller asks for them again.
        """
        pods: dict[tuple[str, str], list[Entry[SubjectT]]] = {}
        for entry in self._entries:
            pods.setdefault((entry.key.node, entry.key.pod), []).append(entry)
        handles = []
        for (node, pod), entries in pods.items():
            for group in container_sets(entries):
                members = {who: member for entry in group for who, member in entry.members.items()}
                running = all(member.container.alive() for member in members.values())
                if running and all(entry.complete for entry in group):
                    handles.append(Handle(node, pod, tuple(pid for pid, _ in members)))
        return handles

    def armed(self) -> list[str]:
        """Return every pod that has an entry, as the log names it, also one of which a container has ended."""
        return list(dict.fromkeys(str(entry.key) for entry in self._entries))

    def _named(self, key: PodKey) -> dict[str, str]:
        """The name of an entry, for the JSON form of a line."""
        return {self._kind.noun: key.name}

    def _lock(self, key: PodKey) -> asyncio.Lock:
        return self._locks.setdefault((key.node, key.pod), asyncio.Lock())

    async def _create(
        self, key: PodKey, request: Request[SubjectT], containers: Sequence[Container], answer_by: float
    ) -> Handle:
        """Arm what is new, then put a new entry in the place of those that it continues."""
        found = len(containers)
        containers = list({identity(container): container for container in containers}.values())
        olds = matching(self._entries, key, map(identity, containers))
        drafts = draft(olds, request, containers)
        entry: Entry[SubjectT] = Entry(key, self._kind.acquire(key))
        try:
            items = [(item.container, subject) for item in drafts for subject in item.missing]
            outcome = await self._arming.arm(key, entry.counter, items, request.template, answer_by)
            # No await from here to the switch: containers may have ended while the arming went on.
            live = {number for old in olds for number in old.numbers}
            fresh = iter(outcome.subscriptions)
            for item in drafts:
                added = tuple(itertools.islice(fresh, len(item.missing)))
                ended = item.container.pid in outcome.gone or not live.issuperset(s.number for s in item.kept)
                if not ended:
                    entry.members[identity(item.container)] = Member(item.container, item.kept + added)
            numbers = {subscription.number for subscription in outcome.subscriptions}
            if not entry.members:
                await self._arming.switch([], sorted(numbers))
                raise NoContainerError(f"the containers of {key} ended while they were being armed")  # noqa: TRY301
        except BaseException:
            self._arming.release(entry.counter)
            raise
        handle = Handle(key.node, key.pod, tuple(entry.pids))
        all_found = found >= len(request.cids or request.pids)
        entry.complete = all_found and len(entry.members) == len(containers)
        same = bool(olds) and not numbers and {n for old in olds for n in old.numbers} == set(entry.numbers)
        verb = "Updating" if olds else "Starting"
        level = logging.DEBUG if same else logging.INFO
        logger.log(level, "%s %s %s", verb, self._kind.label, key, extra=self._named(key))
        self._adopt(entry)
        on = sorted(numbers.intersection(entry.numbers))
        lost = sorted(numbers.difference(entry.numbers))
        await self._retire([old for old in olds if old in self._entries], on=on, kept=set(entry.numbers), lost=lost)
        return handle

    def _adopt(self, entry: Entry[SubjectT]) -> None:
        self._entries.append(entry)
        for who, member in entry.members.items():
            self._ends.add(member.container, functools.partial(self._ended, entry, who))

    async def _retire(
        self, entries: Sequence[Entry[SubjectT]], *, on: list[int], kept: set[int], lost: Sequence[int] = ()
    ) -> None:
        """Forget ``entries`` and free what was done for them, except ``kept``; ``on`` begin in the same step."""
        off = list(lost)
        for entry in entries:
            self._entries.remove(entry)
            off += [number for number in entry.numbers if number not in kept]
            for member in entry.members.values():
                self._release(member.container)
        await self._arming.switch(on, off)
        for entry in entries:
            self._arming.release(entry.counter)

    def _ended(self, entry: Entry[SubjectT], who: Identity) -> None:
        """Called by the loop when a container's init process has ended."""
        member = entry.members.pop(who)
        self._release(member.container)
        logger.info("%s has ended %s", container_label(member.container).capitalize(), entry.key)
        entry.complete = False
        last = not entry.members
        if last:
            self._entries.remove(entry)
        task = self._loop.create_task(self._free(member, entry.counter if last else None))
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)

    async def _free(self, member: Member[SubjectT], counter: int | None) -> None:
        await self._arming.switch([], member.numbers)
        if counter is not None:
            self._arming.release(counter)

    def _release(self, container: Container) -> None:
        self._ends.remove(container)
        container.close()
