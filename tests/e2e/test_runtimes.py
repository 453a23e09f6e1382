"""Containers as real runtimes make them: found by id, watched through their own root, missed when they end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from argusd.proto import argus_pb2
from tests.daemon import Daemon
from tests.e2e.place import Place, PlacedDaemon, until
from tests.e2e.runtimes import Runtime

RPC_TIMEOUT_S = 5.0
EVENTS = ("create", "modify", "delete", "move")


@pytest.fixture
def daemon(place: Place) -> Iterator[PlacedDaemon]:
    with PlacedDaemon(place, "-log=json") as daemon:
        yield daemon


@pytest.fixture
def container(runtime: Runtime) -> Iterator[str]:
    container = runtime.run()
    yield container
    if runtime.runs(container):
        runtime.remove(container)


def watch(daemon: Daemon, uri: str) -> argus_pb2.ArgusdHandle:
    subject = argus_pb2.ArgusWatcherSubject(path=["/data"], event=EVENTS, recursive=True, tags={"k": "v"})
    request = argus_pb2.ArgusdConfig(name="w1", nodeName="node1", podName="pod1", cid=[uri], subject=[subject])
    handle: argus_pb2.ArgusdHandle = daemon.stub.CreateWatch(request, timeout=RPC_TIMEOUT_S)
    return handle


def wait_for_events(daemon: Daemon, expected: list[tuple[str, str, str]]) -> None:
    """Compare the whole list, when as many events are there as are expected."""
    try:
        until(lambda: len(daemon.events) >= len(expected), RPC_TIMEOUT_S, f"{len(expected)} events")
    finally:
        reported = [(event["event"], event["ftype"], f"{event['path']}/{event['file']}") for event in daemon.events]
        assert reported == expected


def test_files_of_a_container_are_reported_in_order(runtime: Runtime, daemon: Daemon, container: str) -> None:
    handle = watch(daemon, runtime.uri(container))
    assert (handle.nodeName, handle.podName, list(handle.pid)) == ("node1", "pod1", [runtime.pid(container)])

    runtime.exec(container, "sh", "-c", "echo a >/data/x; mv /data/x /data/y; echo b >>/data/y; mkdir /data/d")
    expected = [
        ("CREATE", "file", "/data/x"),
        ("MODIFY", "file", "/data/x"),
        ("MOVED_FROM", "file", "/data/x"),
        ("MOVED_TO", "file", "/data/y"),
        ("MODIFY", "file", "/data/y"),
        ("CREATE", "directory", "/data/d"),
    ]
    wait_for_events(daemon, expected)

    runtime.exec(container, "sh", "-c", "echo c >/data/d/z; rm -r /data/d /data/y")
    expected += [
        ("CREATE", "file", "/data/d/z"),
        ("MODIFY", "file", "/data/d/z"),
        ("DELETE", "file", "/data/d/z"),
        ("DELETE", "directory", "/data/d"),
        ("DELETE", "file", "/data/y"),
    ]
    wait_for_events(daemon, expected)
    assert {event["container"] for event in daemon.events} == {container}
    assert {(event["pod"], event["node"], event["watcher"]) for event in daemon.events} == {("pod1", "node1", "w1")}


def test_a_bare_id_and_a_short_one_find_the_container(runtime: Runtime, daemon: Daemon, container: str) -> None:
    for written in (container, container[:12], f"cri-o://{container}"):
        assert list(watch(daemon, written).pid) == [runtime.pid(container)]


def test_files_of_another_container_are_not_reported(runtime: Runtime, daemon: Daemon, container: str) -> None:
    other = runtime.run()
    try:
        watch(daemon, runtime.uri(container))
        runtime.exec(other, "sh", "-c", "echo a >/data/of-another-container")
        runtime.exec(container, "touch", "/data/x")
        wait_for_events(daemon, [("CREATE", "file", "/data/x")])
    finally:
        runtime.remove(other)


def test_the_end_of_a_container_ends_its_watch(runtime: Runtime, daemon: PlacedDaemon, container: str) -> None:
    before = daemon.watches
    watch(daemon, runtime.uri(container))
    assert daemon.state() == [("node1", "pod1", [runtime.pid(container)])]
    assert daemon.watches != before
    runtime.remove(container)
    until(lambda: daemon.state() == [], RPC_TIMEOUT_S, "a state without the pod")
    until(lambda: daemon.watches == before, RPC_TIMEOUT_S, "no watches")
