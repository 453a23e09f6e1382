"""Counts to streams, with an engine that counts what it is told."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from argusd.metrics import Metrics, Stream
from argusd.proto.argus_pb2 import ArgusdMetricsHandle

EVENTS = ("access", "modify", "q_overflow")


class FakeCounts:
    def __init__(self) -> None:
        self.counters: set[int] = set()
        self._last = 0
        self.wanted = True
        self._counts: Counter[tuple[int, int]] = Counter()

    def new_counter(self) -> int:
        self._last += 1
        self.counters.add(self._last)
        return self._last

    def free_counter(self, counter: int) -> None:
        assert not any(number == counter for number, _ in self._counts), "freed before it was drained"
        self.counters.remove(counter)

    def want_counts(self, wanted: bool) -> None:  # noqa: FBT001  (the native face)
        self.wanted = wanted

    def drain_counts(self) -> list[tuple[int, int, int]]:
        counts, self._counts = self._counts, Counter()
        return [(number, index, events) for (number, index), events in counts.items()]

    def count(self, counter: int, index: int, events: int = 1) -> None:
        assert counter in self.counters
        self._counts[counter, index] += events


async def received(stream: Stream) -> Counter[tuple[str, str, str]]:
    """Everything that a stream sends until it ends."""
    handles: list[ArgusdMetricsHandle] = []

    async def write(message: bytes) -> None:
        handles.append(ArgusdMetricsHandle.FromString(message))

    await stream.send(write)
    return Counter((handle.argusWatcher, handle.event, handle.nodeName) for handle in handles)


@pytest.mark.asyncio
async def test_every_stream_gets_every_event_once() -> None:
    counts = FakeCounts()
    metrics = Metrics(counts, EVENTS)
    counter = metrics.acquire("w", "n")
    streams = [metrics.subscribe(), metrics.subscribe()]
    counts.count(counter, 0, 3)
    metrics.drain()
    counts.count(counter, 2)
    metrics.finish()
    for stream in streams:
        assert await received(stream) == {("w", "access", "n"): 3, ("w", "q_overflow", "n"): 1}


@pytest.mark.asyncio
async def test_a_stream_starts_with_what_happens_after_it() -> None:
    counts = FakeCounts()
    metrics = Metrics(counts, EVENTS)
    counter = metrics.acquire("w", "n")
    first = metrics.subscribe()
    counts.count(counter, 0, 5)
    second = metrics.subscribe()
    counts.count(counter, 1, 2)
    metrics.finish()
    assert await received(first) == {("w", "access", "n"): 5, ("w", "modify", "n"): 2}
    assert await received(second) == {("w", "modify", "n"): 2}


@pytest.mark.asyncio
async def test_backlog_is_counts_not_events() -> None:
    counts = FakeCounts()
    metrics = Metrics(counts, EVENTS)
    counter = metrics.acquire("w", "n")
    stream = metrics.subscribe()
    for _ in range(1000):
        counts.count(counter, 1, 1000)
        metrics.drain()
    assert len(stream._pending) == 1
    assert sum(stream._pending.values()) == 1_000_000


@pytest.mark.asyncio
async def test_what_comes_while_a_stream_is_sending_is_sent_too() -> None:
    counts = FakeCounts()
    metrics = Metrics(counts, EVENTS)
    counter = metrics.acquire("w", "n")
    stream = metrics.subscribe()
    counts.count(counter, 0)
    metrics.drain()
    sent = 0

    async def write(_message: bytes) -> None:
        nonlocal sent
        sent += 1
        if sent == 1:
            counts.count(counter, 0, 2)
            metrics.finish()

    await stream.send(write)
    assert sent == 3


@pytest.mark.asyncio
async def test_an_idle_stream_waits_without_turning() -> None:
    metrics = Metrics(FakeCounts(), EVENTS)
    stream = metrics.subscribe()
    waiting = asyncio.ensure_future(received(stream))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not waiting.done()
    metrics.finish()
    assert await waiting == {}


@pytest.mark.asyncio
async def test_a_counter_lives_as_long_as_its_users_and_its_last_counts_arrive() -> None:
    counts = FakeCounts()
    metrics = Metrics(counts, EVENTS)
    stream = metrics.subscribe()
    counter = metrics.acquire("w", "n")
    assert metrics.acquire("w", "n") == counter
    assert metrics.acquire("w", "other") != counter
    metrics.release(counter)
    assert counter in counts.counters
    counts.count(counter, 0, 7)
    metrics.release(counter)
    assert counter not in counts.counters
    assert not [key for key in metrics._messages if key[0] == counter]
    metrics.finish()
    assert await received(stream) == {("w", "access", "n"): 7}


@pytest.mark.asyncio
async def test_nobody_listening_costs_nothing() -> None:
    counts = FakeCounts()
    metrics = Metrics(counts, EVENTS)
    assert not counts.wanted
    counts.count(metrics.acquire("w", "n"), 0, 7)
    stream = metrics.subscribe()
    assert metrics.active
    assert counts.wanted
    metrics.unsubscribe(stream)
    assert not metrics.active
    assert not counts.wanted
    metrics.drain()
    assert stream._pending == {}
