"""A running daemon as the tests of watches see it: its lines, and its metrics.

Counts travel apart from lines, per key and in no promised order among keys, so they are waited for by value.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Final

import grpc

from argusd.proto import argus_pb2, argus_pb2_grpc
from tests.conformance.lines import SENTINEL, WAIT_S, Lines
from tests.containers import RuncContainer
from tests.daemon import Daemon

RPC_TIMEOUT_S: Final = 5.0

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

    def wait_while_they_come(self, watcher: str, count: int) -> bool:
        """Like :meth:`wait_for`, for as long as more messages come, however slowly."""
        before = -1
        while before < self._of_watcher[watcher]:
            before = self._of_watcher[watcher]
            if self.wait_for(watcher, count, WAIT_S):
                return True
        return False

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


class Watching(Lines):
    """A daemon with its stub, one metrics stream, and the sentinel's watch."""

    def __init__(self, daemon: Daemon, sentinel: RuncContainer) -> None:
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
        super().__init__(daemon)

    def _touch(self) -> str:
        self._touched += 1
        (self._folder / str(self._touched)).touch()
        return f"{SENTINEL} {self._touched}|"

    def take_metrics(self, expected: Counter[Metric]) -> Counter[Metric]:
        """Every metrics message since the last call, apart from the sentinel's."""
        # Two files, the second made when the first has been counted: what was on its way with the first is out.
        for _ in range(2):
            self._touch()
            if not self.metrics.wait_for(SENTINEL, self._touched, WAIT_S):
                raise TimeoutError("the sentinel's metrics message did not come")
        return self.metrics.take(expected)

    def close(self) -> None:
        """End the metrics stream; the daemon stays."""
        self.metrics.close()
