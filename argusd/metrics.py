"""Counts of the engine, by watcher and node, handed to any number of RecordMetrics streams.

A stream's backlog is a count per (watcher, event, node), never a queue of events: a client that reads slowly, or not
at all, costs as much memory as there are keys and loses nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from argusd.proto.argus_pb2 import ArgusdMetricsHandle

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

__all__ = ["CountSource", "Metrics", "Stream"]


class CountSource(Protocol):
    """The part of the engine that counts."""

    def new_counter(self) -> int:
        """Return a new set of event counts."""

    def free_counter(self, counter: int) -> None:
        """Give a set of counts back."""

    def want_counts(self, wanted: bool) -> None:  # noqa: FBT001  (the native face)
        """Tell whether somebody waits for counts; they are kept all the same."""

    def drain_counts(self) -> list[tuple[int, int, int]]:
        """Return (counter, event index, events) since the last call."""


@dataclass(slots=True)
class _Counter:
    number: int
    watcher: str
    node: str
    users: int = 0


class Stream:
    """What one client has still to be sent."""

    def __init__(self) -> None:
        """Start with nothing pending."""
        self._pending: dict[bytes, int] = {}
        self._wake = asyncio.Event()
        self._finished = False

    def add(self, message: bytes, events: int) -> None:
        """Count ``events`` more of one message."""
        self._pending[message] = self._pending.get(message, 0) + events
        self._wake.set()

    def finish(self) -> None:
        """End the stream once everything pending is sent."""
        self._finished = True
        self._wake.set()

    async def send(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Write one serialised ``ArgusdMetricsHandle`` per event, until :meth:`finish`."""
        while True:
            while self._pending:
                batch, self._pending = self._pending, {}
                for message, events in batch.items():
                    for _ in range(events):
                        await write(message)
            if self._finished:
                return
            self._wake.clear()
            await self._wake.wait()


class Metrics:
    """Which engine counter stands for which (watcher, node), and the open streams."""

    def __init__(self, source: CountSource, events: Sequence[str]) -> None:
        """``events`` are the names that clients see, by the event index of ``source.drain_counts``."""
        self._source = source
        self._events = events
        self._counters: dict[tuple[str, str], _Counter] = {}
        self._by_number: dict[int, _Counter] = {}
        self._messages: dict[tuple[int, int], bytes] = {}
        self._streams: set[Stream] = set()
        source.want_counts(False)

    @property
    def active(self) -> bool:
        """Whether anyone listens."""
        return bool(self._streams)

    def acquire(self, watcher: str, node: str) -> int:
        """Return the engine's counter for (watcher, node); give it back with :meth:`release`."""
        counter = self._counters.get((watcher, node))
        if counter is None:
            counter = _Counter(self._source.new_counter(), watcher, node)
            self._counters[watcher, node] = counter
            self._by_number[counter.number] = counter
        counter.users += 1
        return counter.number

    def release(self, number: int) -> None:
        """Undo one :meth:`acquire`; the last one frees the counter, after what it counted is on its way."""
        counter = self._by_number[number]
        counter.users -= 1
        if counter.users:
            return
        self.drain()
        del self._by_number[number]
        del self._counters[counter.watcher, counter.node]
        for key in [key for key in self._messages if key[0] == number]:
            del self._messages[key]
        self._source.free_counter(number)

    def subscribe(self) -> Stream:
        """Open a stream that gets every event from now on."""
        self.drain()  # what happened before goes to the others only
        stream = Stream()
        self._streams.add(stream)
        self._source.want_counts(True)
        return stream

    def unsubscribe(self, stream: Stream) -> None:
        """Forget a stream, whatever it had not been sent."""
        self._streams.discard(stream)
        self._source.want_counts(bool(self._streams))

    def drain(self) -> None:
        """Hand what the engine counted to every stream."""
        for number, index, events in self._source.drain_counts():
            message = self._message(number, index)
            for stream in self._streams:
                stream.add(message, events)

    def finish(self) -> None:
        """Let every stream end once it has sent what is pending."""
        self.drain()
        for stream in self._streams:
            stream.finish()

    def _message(self, number: int, index: int) -> bytes:
        message = self._messages.get((number, index))
        if message is None:
            counter = self._by_number[number]
            handle = ArgusdMetricsHandle(argusWatcher=counter.watcher, event=self._events[index], nodeName=counter.node)
            message = self._messages[number, index] = handle.SerializeToString()
        return message
