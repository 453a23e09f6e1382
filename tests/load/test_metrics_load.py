"""RecordMetrics under load: one message an event for every client, and a slow one costs nearly no memory."""

from __future__ import annotations

import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from argusd.proto import argus_pb2, argus_pb2_grpc
from tests.load.watched import LoadedDaemon, build_producer, make_files, run_producer, until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as the daemon does"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for the producer"),
]

FILES = 1000
STALL_S = 10.0
STALL_MAX_KIB = 10 * 1024


class Client:
    """One RecordMetrics stream on a connection of its own, read by a thread once it is asked to."""

    def __init__(self, daemon: LoadedDaemon) -> None:
        """Come back when the daemon has subscribed the stream."""
        self._channel = daemon.new_channel()
        self._call: Any = argus_pb2_grpc.ArgusdStub(self._channel).RecordMetrics(argus_pb2.Empty())
        self._call.initial_metadata()
        self.counts: Counter[tuple[str, str, str]] = Counter()
        self._reader = threading.Thread(target=self._read, name="metrics-client", daemon=True)

    def read(self) -> None:
        """Begin to read."""
        self._reader.start()

    @property
    def total(self) -> int:
        """How many messages came."""
        return sum(self.counts.values())

    def close(self) -> None:
        """End the stream."""
        self._call.cancel()
        if self._reader.ident is not None:
            self._reader.join()
        self._channel.close()

    def _read(self) -> None:
        try:
            for message in self._call:
                self.counts[message.argusWatcher, message.event, message.nodeName] += 1
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.CANCELLED  # noqa: PT017  (the end that close() asks for)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[LoadedDaemon]:
    with LoadedDaemon(tmp_path / "log") as daemon:
        yield daemon


def expected(events: int) -> Counter[tuple[str, str, str]]:
    """What a client is to be told of so many events."""
    return Counter({("w1", "modify", "node1"): events // 2, ("w1", "close_write", "node1"): events // 2})


def make_last_event(folder: Path) -> None:
    """What comes after all that was counted before: one file is removed."""
    (folder / "0").unlink()


LAST = ("w1", "delete", "node1")


def test_two_clients_both_get_exactly_one_message_an_event(daemon: LoadedDaemon, tmp_path: Path) -> None:
    producer, folder = build_producer(tmp_path), tmp_path / "watched"
    make_files(folder, FILES)
    daemon.watch(folder, ["modify", "closewrite", "delete"])
    clients = [Client(daemon), Client(daemon)]
    try:
        for client in clients:
            client.read()
        run_producer(producer, folder, FILES, 15)
        until(lambda: all(client.total >= 30_000 for client in clients), "all messages", timeout_s=100)
        make_last_event(folder)  # counted later than any surplus
        until(lambda: all(client.counts[LAST] for client in clients), "the last message")
        assert [client.counts for client in clients] == [expected(30_000) + Counter([LAST])] * 2
    finally:
        for client in clients:
            client.close()


@pytest.mark.slow
def test_a_client_that_stops_reading_loses_nothing_and_costs_little(daemon: LoadedDaemon, tmp_path: Path) -> None:
    producer, folder = build_producer(tmp_path), tmp_path / "watched"
    make_files(folder, FILES)
    daemon.watch(folder, ["modify", "closewrite", "delete"])
    reading, stalled = Client(daemon), Client(daemon)
    try:
        reading.read()
        run_producer(producer, folder, FILES, 5)
        until(lambda: reading.total >= 10_000, "the messages of the warm-up")
        before_kib = daemon.resident_kib()
        run_producer(producer, folder, FILES, 50)
        threading.Event().wait(STALL_S)  # the stop itself is what is tested
        grown_kib = daemon.resident_kib() - before_kib

        stalled.read()
        until(lambda: min(reading.total, stalled.total) >= 110_000, "all messages", timeout_s=100)
        make_last_event(folder)
        until(lambda: reading.counts[LAST] and stalled.counts[LAST], "the last message")
        assert reading.counts == stalled.counts == expected(110_000) + Counter([LAST])
        assert grown_kib < STALL_MAX_KIB
    finally:
        reading.close()
        stalled.close()
