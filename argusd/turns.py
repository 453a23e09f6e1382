"""Who may walk next: a few at a time, containers in turn, and those that wait for a file system in nobody's way.

More walks at once than there are processors are not quicker, so only a few hold a *turn*. A walk that takes long gives
its turn back and goes on: what it waits for may be a file system that never answers. A container whose walks make no
progress begins no further ones once a few of them are *stuck*; all others do.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

__all__ = ["Turn", "Turns"]


@dataclass(eq=False, slots=True)
class Turn:
    """One walk that has begun. Changed by :class:`Turns` alone."""

    owner: Hashable
    held: bool = True
    stuck: bool = False


class Turns:
    """Admits walks. Belongs to one event loop."""

    def __init__(self, at_once: int, stuck_each: int, most: int) -> None:
        """``at_once`` turns, ``stuck_each`` stuck walks for each owner, and ``most`` walks under way in all."""
        self._at_once: Final = at_once
        self._stuck_each: Final = stuck_each
        self._most: Final = most
        self._under_way: Final[set[Turn]] = set()
        self._held: Final[Counter[Hashable]] = Counter()  # turns, by owner
        self._stuck: Final[Counter[Hashable]] = Counter()
        self._waiting: Final[dict[Hashable, deque[asyncio.Future[Turn]]]] = {}  # the next owner comes first

    @property
    def full(self) -> bool:
        """Whether as many walks are under way as there may be."""
        return len(self._under_way) >= self._most

    @property
    def under_way(self) -> int:
        """The number of walks that have begun and not ended."""
        return len(self._under_way)

    def stuck(self, owner: Hashable) -> int:
        """Return how many walks of ``owner`` make no progress."""
        return self._stuck[owner]

    async def take(self, owner: Hashable) -> Turn:
        """Wait for a turn, to be given back with :meth:`end`."""
        future: asyncio.Future[Turn] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(future)
        self._admit()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.end(future.result())
            raise

    def go_on(self, turn: Turn, *, stuck: bool) -> None:
        """Let the next walk begin although this one has not ended; ``stuck``: it has made no progress lately."""
        self._forget(turn)
        turn.held, turn.stuck = False, stuck
        self._stuck[turn.owner] += stuck
        self._admit()

    def end(self, turn: Turn) -> None:
        """Say that a walk has ended."""
        self._forget(turn)
        self._under_way.discard(turn)
        self._admit()

    def _forget(self, turn: Turn) -> None:
        """Take a walk out of the counts, which hold nothing but what is not 0."""
        for counts, counted in ((self._held, turn.held), (self._stuck, turn.stuck)):
            counts[turn.owner] -= counted
            if not counts[turn.owner]:
                del counts[turn.owner]

    def _admit(self) -> None:
        admitted = True
        while admitted:
            admitted = False
            for owner in list(self._waiting):
                if self._held.total() >= self._at_once or self.full:
                    return
                admitted = self._admit_one(owner) or admitted

    def _admit_one(self, owner: Hashable) -> bool:
        """Let one walk of ``owner`` begin if it may, and send the owner to the end of the row."""
        waiting = self._waiting[owner]
        while waiting and waiting[0].done():  # cancelled
            waiting.popleft()
        admitted = bool(waiting) and self._may_begin(owner)
        if admitted:
            turn = Turn(owner)
            self._under_way.add(turn)
            self._held[owner] += 1
            waiting.popleft().set_result(turn)
            self._waiting[owner] = self._waiting.pop(owner)
        if not waiting:
            del self._waiting[owner]
        return admitted

    def _may_begin(self, owner: Hashable) -> bool:
        """One turn is always left for others; what may still turn out to be stuck counts as if it were."""
        held = self._held[owner]
        return held < max(1, self._at_once - 1) and held + self._stuck[owner] < self._stuck_each
