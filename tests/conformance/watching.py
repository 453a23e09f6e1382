"""A running daemon as the tests see it: its lines, its metrics, and a sentinel that tells when an operation is over.

The daemon reads all its watches from one kernel queue, in order. So a file made in the sentinel's own container after
an operation is reported after everything that the operation caused: once its line is out, all lines are out. Counts
travel apart from lines, per key and in no promised order among keys, so they are waited for by value.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Final

import grpc

from argusd.proto import argus_pb2, argus_pb2_grpc
from tests.conformance.scenarios import normalise, strip_prefix
from tests.containers import RuncContainer
from tests.daemon import Daemon

SENTINEL: Final = "sentinel"
RPC_TIMEOUT_S: Final = 5.0
WAIT_S: Final = 5.0

Metric = tuple[str, str, str]


class Metrics:
    """One RecordMetrics stream, read by a thread of its own until it is closed."""

    def __init__(self, stub: argus_pb2_grpc.ArgusdStub) -> None:
        self._changed = threading.Condition()
        self._received: list[Metric] = []
        self._of_watcher: Counter[str] = Counter()  # so that a wait for many messages does not count them all each time
        self._taken = 0
        self._call = stub.RecordMetrics(argus_pb2.Empty())
        self._call.initial_metadata()  # comes when the daemon has the stream: it counts from here on
        self._thread = threading.Thread(target=self._read, name="record-metrics", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for message in self._call:
                with self._changed:
                    self._received.append((message.argusWatcher, message.event, message.nodeName))
                    self._of_watcher[message.argusWatcher] += 1
                    self._changed.notify_all()
        except grpc.RpcError:
            pass  # cancelled by close(), or the daemon has gone, which the next rpc tells

    def wait_for(self, watcher: str, count: int, timeout_s: float) -> bool:
        """Wait until that many messages about ``watcher`` have come; False when they do not come in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._of_watcher[watcher] >= count, timeout_s)

    def take(self, expected: Counter[Metric]) -> Counter[Metric]:
        """The messages since the last call, apart from the sentinel's, once they are as expected or time is over."""

        def new() -> Counter[Metric]:
            return Counter(metric for metric in self._received[self._taken :] if metric[0] != SENTINEL)

        with self._changed:
            self._changed.wait_for(lambda: new().total() >= expected.total(), WAIT_S)
            taken = new()
            self._taken = len(self._received)
            return taken

    def close(self) -> None:
        """End the stream. May be called twice."""
        self._call.cancel()
        self._thread.join(WAIT_S)


class Watching:
    """A daemon with its stub, one metrics stream, and the sentinel's watch."""

    def __init__(self, daemon: Daemon, sentinel: RuncContainer) -> None:
        self.daemon = daemon
        self.stub = daemon.stub
        self.metrics = Metrics(self.stub)
        self._folder = sentinel.rootfs / "sentinel"
        self._folder.mkdir()
        self._touched = 0
        subject = argus_pb2.ArgusWatcherSubject(path=["/sentinel"], event=["create"])
        self.stub.CreateWatch(
            argus_pb2.ArgusdConfig(
                name=SENTINEL,
                nodeName=SENTINEL,
                podName=SENTINEL,
                cid=[sentinel.uri],
                subject=[subject],
                logFormat=f"{SENTINEL} {{file}}|",
            ),
            timeout=RPC_TIMEOUT_S,
        )
        self._line = len(daemon.lines)

    def _touch(self) -> int:
        self._touched += 1
        (self._folder / str(self._touched)).touch()
        return self._touched

    def take_lines(self, at_least: int = 0) -> tuple[str, ...]:
        """Every line since the last call, apart from the sentinel's, when all that was caused so far is out.

        One thing can be out later than the sentinel: what the daemon found by listing a new directory is reported when
        it is sure that no event tells of it. So fewer lines than ``at_least`` are waited for.
        """
        start = self._line
        self._wait_for_sentinel()
        missing = at_least - len(self._lines_since(start))
        try:
            for _ in range(missing):
                self._line += 1 + self._index_of(lambda line: not self._is_sentinel(line))
            if missing > 0:
                self._wait_for_sentinel()
        except TimeoutError:
            self._line = len(self.daemon.lines)  # too few: the comparison that follows shows which
        return self._lines_since(start)

    def _wait_for_sentinel(self) -> None:
        wanted = f"I {SENTINEL} {self._touch()}|"
        self._line += 1 + self._index_of(lambda line: strip_prefix(line) == wanted)

    def _index_of(self, matches: Callable[[str], bool]) -> int:
        """Wait for a line; returns its place behind the last one that was looked at."""
        line = self.daemon.wait_for(matches, WAIT_S, after=self._line)
        return self.daemon.lines[self._line :].index(line)

    def _lines_since(self, start: int) -> tuple[str, ...]:
        lines = self.daemon.lines[start : self._line]
        return tuple(normalise(strip_prefix(line)) for line in lines if not self._is_sentinel(line))

    def _is_sentinel(self, line: str) -> bool:
        return strip_prefix(line).startswith(f"I {SENTINEL} ")

    def take_metrics(self, expected: Counter[Metric]) -> Counter[Metric]:
        """Every metrics message since the last call, apart from the sentinel's."""
        # Two files, the second made when the first has been counted: what was on its way with the first is out.
        for _ in range(2):
            if not self.metrics.wait_for(SENTINEL, self._touch(), WAIT_S):
                raise TimeoutError("the sentinel's metrics message did not come")
        return self.metrics.take(expected)

    def close(self) -> None:
        """End the metrics stream; the daemon stays."""
        self.metrics.close()
