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
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar
from weakref import WeakValueDictionary

from argusd.arming import Arming, Subscription
from argusd.discovery import Pod, Seat
from argusd.ends import Ends
from argusd.kinds import PodKey
from argusd.refusals import NoContainerError, RequestRefusedError, container_label
from argusd.subjects import Request, SubjectT, container_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence

    from argusd.containers import Container
    from argusd.discovery import Discovery

__all__ = ["Draft", "Entry", "Handle", "Member", "Registry", "container_sets", "draft", "matching", "to_destroy"]

logger = logging.getLogger("argusd.registry")

_FORMER_PIDS: Final = 64  # of one entry; a client that destroys has the pids of the last answer it got
_ARM_WITHIN_S: Final = 3.8  # as long as a call may take


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
    """One live watch or guard; ``members`` are in the order of the request.

    ``vacant`` are the seats of containers that ended, or were never found; where such a seat is in a pod another
    container can take it. ``seen`` are the containers of the pod that were there when the request came: those are no
    successors, but for one that is known by name. ``former`` are pids of members that ended.
    """

    key: PodKey
    counter: int
    members: dict[Identity, Member[SubjectT]] = field(default_factory=dict)
    request: Request[SubjectT] | None = None
    seats: dict[Identity, Seat] = field(default_factory=dict)
    vacant: list[Seat] = field(default_factory=list)
    pods: list[Pod] = field(default_factory=list)
    seen: frozenset[str] = frozenset()
    ended: set[str] = field(default_factory=set)
    """Containers that ended, and have a cgroup still."""
    former: deque[int] = field(default_factory=lambda: deque(maxlen=_FORMER_PIDS))
    leaving: deque[asyncio.Task[None]] = field(default_factory=lambda: deque(maxlen=_FORMER_PIDS))
    """The switching off of members that ended."""

    @property
    def pids(self) -> list[int]:
        """The init processes of the containers."""
        return [pid for pid, _ in self.members]

    @property
    def numbers(self) -> list[int]:
        """The engine's numbers of all subscriptions."""
        return [number for member in self.members.values() for number in member.numbers]

    @property
    def ties(self) -> set[Identity | str]:
        """What entries of one pod have in common: containers, or the pod itself."""
        return {*self.members, *(seat.pod for seat in (*self.seats.values(), *self.vacant) if seat.pod)}

    @property
    def awaits(self) -> bool:
        """Whether a container may come that belongs to the entry."""
        return any(seat.pod for seat in self.vacant)

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


def matching(
    entries: Iterable[EntryT], key: PodKey, identities: Iterable[Identity], pods: Iterable[str] = ()
) -> list[EntryT]:
    """Return the entries that a request for these containers means: same key, and a container in common.

    An entry whose containers have all ended is meant by a request for others of their pod.
    """
    wanted, pods = set(identities), set(pods)
    return [
        entry
        for entry in entries
        if entry.key == key and not (wanted.isdisjoint(entry.members) if entry.members else pods.isdisjoint(entry.ties))
    ]


def container_sets(entries: Iterable[EntryT]) -> list[list[EntryT]]:
    """Group entries that have containers or a pod in common, directly or through one another: each group is one pod."""
    groups: list[tuple[set[Identity | str], list[EntryT]]] = []
    for entry in entries:
        members = entry.ties
        together: list[EntryT] = []
        apart: list[tuple[set[Identity | str], list[EntryT]]] = []
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
            meant = [group for group in groups if any(not wanted.isdisjoint(entry.pids) for entry in group)]
            # The client may not know yet that a container has restarted.
            groups = meant or [group for group in groups if any(not wanted.isdisjoint(entry.former) for entry in group)]
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


def successor_of(seats: Iterable[Seat], full: str, name: str, *, known: bool) -> Seat | None:
    """Return the vacant seat that the container ``full`` called ``name`` takes, if any.

    Names decide where both are noted. Where they are not, a container that came after the request (not ``known``)
    takes any seat in its pod.
    """
    seats = list(seats)
    by_name = [seat for seat in seats if name and seat.name == name]
    unnamed = [] if known else [seat for seat in seats if not (name and seat.name)]
    itself = [seat for seat in seats if seat.id and full.startswith(seat.id)]
    return next(iter(itself + by_name + unnamed), None)


def not_found(cids: Iterable[str], found: Sequence[Seat], known: Iterable[Seat]) -> list[Seat]:
    """Return the seats of the containers of a request that do not run; ``known`` are those of earlier requests."""
    somewhere = next((seat for seat in found if seat.pod), Seat(""))
    by_id = {seat.id: seat for seat in known if seat.id}
    seats = []
    for short in map(container_id, cids):
        if not any(seat.id.startswith(short) for seat in found):
            seat = next((seat for full, seat in by_id.items() if full.startswith(short)), None)
            seats.append(seat or replace(somewhere, id=short, name=""))
    return seats


class Registry(Generic[SubjectT]):
    """Every live entry of one kind. Owns the containers it is given, and their place in the event loop."""

    def __init__(
        self,
        arming: Arming[SubjectT],
        discovery: Discovery | None = None,
        keep: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Start with no entry; must be made inside the running event loop.

        ``discovery`` tells of containers that take the place of others; ``keep`` is called after each change.
        """
        self._discovery = discovery
        self.keep = keep
        self._coming: set[tuple[int, str]] = set()
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
                handle = await self._create(key, request, containers, answer_by)
            await self._kept()
            return handle
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
        await self._kept()

    def state(self) -> list[Handle]:
        """Return one handle per pod of which every container of the last request runs, or one in its place.

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
                if running and not any(entry.vacant for entry in group):
                    handles.append(Handle(node, pod, tuple(pid for pid, _ in members)))
        return handles

    def armed(self) -> list[str]:
        """Return every pod that has an entry, as the log names it, also one of which a container has ended."""
        return list(dict.fromkeys(str(entry.key) for entry in self._entries if entry.members))

    @property
    def entries(self) -> Sequence[Entry[SubjectT]]:
        """What is watched or guarded now."""
        return self._entries

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
        seats = await self._seats(containers)
        pods = {seat.pod for seat in seats.values() if seat.pod}
        olds = matching(self._entries, key, map(identity, containers), pods)
        drafts = draft(olds, request, containers)
        entry: Entry[SubjectT] = Entry(key, self._kind.acquire(key), request=request)
        self._follow(entry, seats.values())
        entry.seen = frozenset(full for pod in entry.pods for full in pod.present)
        for old in olds:
            entry.seen &= old.seen  # what came since then is a successor still
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
                    entry.seats[identity(item.container)] = seats[item.container.id]
                else:
                    entry.vacant.append(seats[item.container.id])
            numbers = {subscription.number for subscription in outcome.subscriptions}
            if not entry.members:
                await self._arming.switch([], sorted(numbers))
                raise NoContainerError(f"the containers of {key} ended while they were being armed")  # noqa: TRY301
        except BaseException:
            self._arming.release(entry.counter)
            self._leave(entry)
            raise
        known = [seat for old in olds for seat in (*old.vacant, *old.seats.values())]
        entry.vacant += not_found(request.cids, [*seats.values()], known)
        if not request.cids:
            entry.vacant += [Seat("")] * (len(request.pids) - found)
        entry.former.extend(pid for old in olds for pid in (*old.former, *old.pids) if pid not in entry.pids)
        handle = Handle(key.node, key.pod, tuple(entry.pids))
        same = bool(olds) and not numbers and {n for old in olds for n in old.numbers} == set(entry.numbers)
        verb = "Updating" if olds else "Starting"
        level = logging.DEBUG if same else logging.INFO
        logger.log(level, "%s %s %s", verb, self._kind.label, key, extra=self._named(key))
        self._adopt(entry)
        on = sorted(numbers.intersection(entry.numbers))
        lost = sorted(numbers.difference(entry.numbers))
        await self._retire([old for old in olds if old in self._entries], on=on, kept=set(entry.numbers), lost=lost)
        self._look(entry)
        return handle

    async def _seats(self, containers: Iterable[Container]) -> dict[str, Seat]:
        known = await self._discovery.seats(containers) if self._discovery is not None else {}
        return {container.id: known.get(container.id, Seat(container.id)) for container in containers}

    async def _kept(self) -> None:
        if self.keep is not None:
            await self.keep()

    def _follow(self, entry: Entry[SubjectT], seats: Iterable[Seat]) -> None:
        """Learn of the containers that come in the pods of ``seats``."""
        if self._discovery is not None:
            for seat in {seat.pod: seat for seat in seats}.values():
                if pod := self._discovery.follow(seat, self):
                    entry.pods.append(pod)

    def _leave(self, entry: Entry[SubjectT]) -> None:
        if self._discovery is not None:
            for pod in entry.pods:
                self._discovery.leave(pod, self)
        entry.pods.clear()

    async def resume(
        self,
        request: Request[SubjectT],
        containers: Sequence[Container],
        vacant: Sequence[Seat],
        seen: Iterable[str],
        former: Iterable[int],
        ended: Iterable[str],
    ) -> bool:
        """Take up again what another daemon did, for the containers that still run; False when there is nothing to do.

        ``vacant`` are the seats of the others, ``ended`` the ids of those that another daemon saw running.
        """
        key = PodKey(request.node_name, request.pod_name, request.name)
        entry: Entry[SubjectT] | None
        if containers:
            await self.create(request, containers, self._loop.time() + _ARM_WITHIN_S)
            entry = next(iter(matching(self._entries, key, map(identity, containers))), None)
        else:
            entry = Entry(key, self._kind.acquire(key), request=request)
            self._follow(entry, vacant)
            if entry.pods:
                self._entries.append(entry)
            else:
                self._arming.release(entry.counter)
                return False
        if entry is not None:
            entry.vacant = list(vacant)
            entry.ended.update(ended)
            entry.seen = frozenset(seen)
            entry.former.extend(former)
            self._look(entry)
        return entry is not None

    # Containers that take the place of others; called by the discovery.

    def appeared(self, pod: Pod, full: str) -> None:
        """See whether a new container belongs to an entry."""
        for entry in self._entries:
            if pod in entry.pods:
                self._consider(entry, pod, full)

    def gone(self, pod: Pod) -> None:
        """Give up waiting for containers in a pod that is no more."""
        for entry in [entry for entry in self._entries if pod in entry.pods]:
            entry.vacant = [replace(seat, pod="") if seat.pod == pod.uid else seat for seat in entry.vacant]
            entry.pods.remove(pod)
            if self._discovery is not None:
                self._discovery.leave(pod, self)
            self._drop_if_over(entry)

    def _look(self, entry: Entry[SubjectT]) -> None:
        """Consider every container that is there for the vacant seats."""
        for pod in entry.pods:
            for full in sorted(pod.present):
                self._consider(entry, pod, full)

    def _consider(self, entry: Entry[SubjectT], pod: Pod, full: str) -> None:
        wanted = any(seat.pod == pod.uid for seat in entry.vacant) and full not in entry.ended
        if wanted and (id(entry), full) not in self._coming and not self._has(entry.key, full):
            self._coming.add((id(entry), full))
            self._spawn(self._take_seat(entry, pod, full))

    def _has(self, key: PodKey, full: str) -> bool:
        """Whether a container is watched under this key."""
        return any(
            member.container.id == full
            for entry in self._entries
            if entry.key == key
            for member in entry.members.values()
        )

    async def _take_seat(self, entry: Entry[SubjectT], pod: Pod, full: str) -> None:
        """Watch or guard a new container in the place of one that has ended, if that is what it is."""
        discovery, container = self._discovery, None
        if discovery is None:
            return
        try:
            note = await discovery.note(full)
            if note.sandbox:
                return

            def seat() -> Seat | None:
                seats = [seat for seat in entry.vacant if seat.pod == pod.uid] if entry in self._entries else []
                return successor_of(seats, full, note.name, known=full in entry.seen)

            container = await discovery.ready(pod, full, lambda: seat() is not None)
            if container is not None:
                async with self._lock(entry.key):
                    taken = None if self._has(entry.key, full) else seat()
                    if taken is not None:
                        new = replace(taken, id=full, name=note.name or taken.name)
                        await self._arm_successor(entry, taken, new, container)
        except (RequestRefusedError, OSError) as error:
            logger.warning("Container %s cannot be %s in the place of another %s: %s",
                           full[:12], self._kind.done, entry.key, error)  # fmt: skip
        finally:
            self._coming.discard((id(entry), full))
            if container is not None and not entry.holds(container):
                container.close()
        await self._kept()

    async def _arm_successor(self, entry: Entry[SubjectT], old: Seat, new: Seat, container: Container) -> None:
        """Arm everything in ``container``, then let it begin."""
        request = entry.request
        if request is None:
            return
        items = [(container, subject) for subject in request.subjects]
        answer_by = self._loop.time() + _ARM_WITHIN_S
        outcome = await self._arming.arm(entry.key, entry.counter, items, request.template, answer_by)
        numbers = [subscription.number for subscription in outcome.subscriptions]
        if outcome.gone or entry not in self._entries or old not in entry.vacant:
            await self._arming.switch([], numbers)
            return
        who = identity(container)
        entry.members[who] = Member(container, outcome.subscriptions)
        entry.seats[who] = new
        entry.vacant.remove(old)
        self._ends.add(container, functools.partial(self._ended, entry, who))
        logger.info(
            "Container %s takes the place of %s %s",
            new.id[:12], old.id[:12] or "one that was not found", entry.key, extra=self._named(entry.key),
        )  # fmt: skip
        await self._arming.switch(numbers, [])

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
            self._leave(entry)
        await self._arming.switch(on, off)
        for entry in entries:
            await asyncio.gather(*entry.leaving)
            self._arming.release(entry.counter)

    def _ended(self, entry: Entry[SubjectT], who: Identity) -> None:
        """Called by the loop when a container's init process has ended."""
        member = entry.members.pop(who)
        self._release(member.container)
        entry.former.append(member.container.pid)
        entry.ended.intersection_update(*(pod.present for pod in entry.pods))
        entry.ended.add(member.container.id)
        seat = entry.seats.pop(who, Seat(member.container.id))
        entry.vacant.append(seat if any(pod.uid == seat.pod for pod in entry.pods) else replace(seat, pod=""))
        logger.info("%s has ended %s", container_label(member.container).capitalize(), entry.key)
        entry.leaving.append(self._spawn(self._arming.switch([], member.numbers)))
        self._drop_if_over(entry)
        self._look(entry)
        self._spawn(self._kept())

    def _drop_if_over(self, entry: Entry[SubjectT]) -> None:
        """Forget an entry whose containers have all ended, if no other can come."""
        if entry in self._entries and not entry.members and not entry.awaits:
            self._entries.remove(entry)
            self._leave(entry)
            self._spawn(self._free(entry))

    async def _free(self, entry: Entry[SubjectT]) -> None:
        await asyncio.gather(*entry.leaving)
        self._arming.release(entry.counter)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)
        return task

    def _release(self, container: Container) -> None:
        self._ends.remove(container)
        container.close()
