"""RecordMetrics: exact counts for everybody, whoever reads slowly."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pytest

from argusd.proto import argus_pb2, argus_pb2_grpc
from tests.daemon import WAIT_S, Daemon

Key = tuple[str, str, str]
BACKLOG: Final = 100_000
LONG_S: Final = 60.0
MOST_GROWTH_BYTES: Final = 10_000_000


class Client:
    """A RecordMetrics client with a connection of its own; it reads only what it is told to read."""

    def __init__(self, daemon: Daemon) -> None:
        self._channel = daemon.new_channel()
        self._call: Any = argus_pb2_grpc.ArgusdStub(self._channel).RecordMetrics(argus_pb2.Empty(), timeout=LONG_S)
        self._call.initial_metadata()  # the daemon sends it when the subscription stands

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._call.cancel()
        self._channel.close()

    def read(self, count: int) -> Counter[Key]:
        """The next messages, which must come."""
        return Counter(self._next() for _ in range(count))

    def read_to_end(self) -> Counter[Key]:
        """Everything until the daemon ends the stream, without an error."""
        return Counter((message.argusWatcher, message.event, message.nodeName) for message in self._call)

    def _next(self) -> Key:
        message = next(self._call)
        return message.argusWatcher, message.event, message.nodeName


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon("-log=json") as daemon:
        yield daemon


def touch(folder: Path, count: int, prefix: str = "f") -> None:
    for number in range(count):
        (folder / f"{prefix}{number}").touch()


def append(folder: Path, events: int, files: int = 1000) -> None:
    """Write to many files in turn: the kernel merges an event with an equal one just before it."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context((folder / f"f{i}").open("ab", buffering=0)) for i in range(files)]
        for number in range(events):
            opened[number % files].write(b"x")


def memory_bytes(pid: int) -> int:
    """Anonymous memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


def test_two_clients_get_every_event_once(daemon: Daemon, pod: Callable[[], int], tmp_path: Path) -> None:
    daemon.create_watch(pod(), str(tmp_path), event=["create", "closewrite"])
    with Client(daemon) as first, Client(daemon) as second:
        touch(tmp_path, 500)
        expected = {("w1", "create", "node1"): 500, ("w1", "close_write", "node1"): 500}
        assert first.read(1000) == expected
        assert second.read(1000) == expected
        assert daemon.stop() == 0
        assert first.read_to_end() == {}
        assert second.read_to_end() == {}


def test_a_client_gets_what_happens_after_it_came(daemon: Daemon, pod: Callable[[], int], tmp_path: Path) -> None:
    daemon.create_watch(pod(), str(tmp_path), event=["create"])
    touch(tmp_path, 10, "before")
    daemon.wait_for_text("/before9'")
    with Client(daemon) as client:
        touch(tmp_path, 3, "after")
        assert client.read(3) == {("w1", "create", "node1"): 3}
        assert daemon.stop() == 0
        assert client.read_to_end() == {}


def test_counts_are_by_watcher_and_node(daemon: Daemon, pod: Callable[[], int], tmp_path: Path) -> None:
    pid = pod()
    daemon.create_watch(pid, str(tmp_path), event=["create"], name="w1")
    daemon.create_watch(pid, str(tmp_path), event=["create"], name="w2")
    daemon.create_watch(pid, str(tmp_path), event=["create"], name="w1", nodeName="node2")
    with Client(daemon) as client:
        touch(tmp_path, 5)
        keys = [("w1", "create", "node1"), ("w2", "create", "node1"), ("w1", "create", "node2")]
        assert client.read(15) == dict.fromkeys(keys, 5)


def test_counts_survive_the_end_of_their_watch(daemon: Daemon, pod: Callable[[], int], tmp_path: Path) -> None:
    with Client(daemon) as client:
        daemon.create_watch(pod(), str(tmp_path), event=["create"])
        touch(tmp_path, 100)
        daemon.stub.DestroyWatch(argus_pb2.ArgusdConfig(nodeName="node1", podName="pod1"), timeout=WAIT_S)
        assert daemon.stop() == 0
        counted = client.read_to_end()
    logged = sum(event["event"] == "CREATE" for event in daemon.events)
    assert counted == ({("w1", "create", "node1"): logged} if logged else {})


def test_a_client_that_does_not_read_loses_nothing_and_costs_little(
    daemon: Daemon, pod: Callable[[], int], tmp_path: Path
) -> None:
    touch(tmp_path, 1000)
    daemon.create_watch(pod(), str(tmp_path), event=["modify"])
    with Client(daemon) as slow, Client(daemon) as quick:
        append(tmp_path, 1000)  # buffers have their size before the measurement
        assert quick.read(1000).total() == 1000
        before = memory_bytes(daemon.pid)
        append(tmp_path, BACKLOG)
        assert quick.read(BACKLOG).total() == BACKLOG
        # Lines that wait to be written have their own bound, and give the memory back when they are out.
        deadline = time.monotonic() + WAIT_S
        while (growth := memory_bytes(daemon.pid) - before) >= MOST_GROWTH_BYTES:
            assert time.monotonic() < deadline, growth
        assert slow.read(BACKLOG + 1000) == {("w1", "modify", "node1"): BACKLOG + 1000}


def test_other_calls_stay_quick_while_counts_are_sent(daemon: Daemon, pod: Callable[[], int], tmp_path: Path) -> None:
    touch(tmp_path, 1000)
    daemon.create_watch(pod(), str(tmp_path), event=["modify"])
    with Client(daemon) as client:
        reader = threading.Thread(target=client.read, args=(BACKLOG,))
        reader.start()
        append(tmp_path, BACKLOG)
        answered_meanwhile = 0
        while reader.is_alive():
            assert daemon.state()
            answered_meanwhile += 1
        reader.join()
    assert answered_meanwhile >= 10


def test_a_client_that_goes_leaves_nothing_behind(daemon: Daemon, pod: Callable[[], int], tmp_path: Path) -> None:
    daemon.create_watch(pod(), str(tmp_path), event=["create"])
    for _ in range(5):
        with Client(daemon):
            touch(tmp_path, 1, "while-there")
    with Client(daemon) as client:
        touch(tmp_path, 1, "x")
        assert client.read(1).total() == 1
    assert not any("Traceback" in line for line in daemon.lines)
