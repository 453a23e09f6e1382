"""A container that comes back: what was watched is let go, and CreateWatch finds what runs now."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from argusd.proto import argus_pb2
from demo.container import missing_for_runc
from tests.e2e.client import create_watch
from tests.e2e.containerd import Cri
from tests.e2e.docker import Docker
from tests.e2e.place import Place, PlacedDaemon, command_of, missing_for_chosen_pids, until
from tests.e2e.runtime import Runtime

WAIT_S = 10.0


@pytest.fixture
def daemon(place: Place) -> Iterator[PlacedDaemon]:
    with PlacedDaemon(place, "-log=json") as daemon:
        yield daemon


def watch(daemon: PlacedDaemon, uri: str) -> list[int]:
    subject = argus_pb2.ArgusWatcherSubject(path=["/data"], event=["create"], recursive=True)
    config = argus_pb2.ArgusdConfig(name="w", nodeName="n", podName="p", cid=[uri], subject=[subject])
    return list(create_watch(daemon.channel, config).pid)


def created(daemon: PlacedDaemon) -> list[tuple[str, str]]:
    return [(event["container"], event["file"]) for event in daemon.events]


def wait_for_created(daemon: PlacedDaemon, expected: list[tuple[str, str]]) -> None:
    """Compare the whole list, when as many events are there as are expected."""
    until(lambda: len(created(daemon)) >= len(expected), WAIT_S, f"{len(expected)} events")
    assert created(daemon) == expected


def wait_for_release(daemon: PlacedDaemon, before: list[str]) -> None:
    until(lambda: daemon.state() == [], WAIT_S, "a state without the pod")
    until(lambda: daemon.watches == before, WAIT_S, "no watches")


@pytest.mark.parametrize("runtime", ["docker"], indirect=True)
def test_restart_under_the_same_id(runtime: Runtime, daemon: PlacedDaemon) -> None:
    assert isinstance(runtime, Docker)
    before = daemon.watches
    with ExitStack() as stack:
        container = runtime.run()
        stack.callback(runtime.remove, container)
        first = runtime.pid(container)
        assert watch(daemon, runtime.uri(container)) == [first]
        assert daemon.watches != before
        runtime.exec(container, "touch", "/data/before")
        wait_for_created(daemon, [(container, "before")])

        runtime.restart(container)
        second = runtime.pid(container)
        assert second != first
        wait_for_release(daemon, before)
        runtime.exec(container, "touch", "/data/unwatched")

        assert watch(daemon, runtime.uri(container)) == [second]
        assert daemon.state() == [("n", "p", [second])]
        runtime.exec(container, "touch", "/data/after")
        wait_for_created(daemon, [(container, "before"), (container, "after")])
    wait_for_release(daemon, before)


@pytest.mark.parametrize("runtime", ["cri"], indirect=True)
def test_restart_under_a_new_id(runtime: Runtime, daemon: PlacedDaemon) -> None:
    assert isinstance(runtime, Cri)
    before = daemon.watches
    with ExitStack() as stack:
        first = runtime.run()
        assert watch(daemon, runtime.uri(first)) == [runtime.pid(first)]
        second = runtime.replace(first)
        stack.callback(runtime.remove, second)
        # It takes the place of the first in the watch, and a controller that does not know that asks for it again.
        until(lambda: daemon.state() == [("n", "p", [runtime.pid(second)])], WAIT_S, "the new container in the state")
        assert watch(daemon, runtime.uri(second)) == [runtime.pid(second)]
        assert daemon.state() == [("n", "p", [runtime.pid(second)])]
        runtime.exec(second, "touch", "/data/after")
        wait_for_created(daemon, [(second, "after")])
    wait_for_release(daemon, before)


@pytest.mark.parametrize("runtime", ["cri"], indirect=True)
def test_watch_of_the_new_id_before_the_end_of_the_old_was_seen(runtime: Runtime, daemon: PlacedDaemon) -> None:
    assert isinstance(runtime, Cri)
    before = daemon.watches
    with ExitStack() as stack:
        first = runtime.run()
        watch(daemon, runtime.uri(first))
        with daemon.paused():
            second = runtime.replace(first)
            stack.callback(runtime.remove, second)
        assert watch(daemon, runtime.uri(second)) == [runtime.pid(second)]
        until(lambda: daemon.state() == [("n", "p", [runtime.pid(second)])], WAIT_S, "the new container alone")
        runtime.exec(second, "touch", "/data/after")
        wait_for_created(daemon, [(second, "after")])
    wait_for_release(daemon, before)


def test_pid_that_is_given_away_again_is_not_the_container(tmp_path: Path) -> None:
    if reason := missing_for_runc() or missing_for_chosen_pids():
        pytest.skip(reason)
    container = secrets.token_hex(32)
    # Nobody else is in this place: while the daemon is paused, the next process gets the next pid.
    with Place(tmp_path) as place, PlacedDaemon(place) as daemon, ExitStack() as old, ExitStack() as new:
        before = daemon.watches
        cgroup = f"{place.cgroup}/kubepods/{container}"
        old.enter_context(place.process_in(cgroup))
        (pid,) = watch(daemon, container)
        assert daemon.watches != before
        with daemon.paused():
            old.close()
            place.next_pids(pid)
            new.enter_context(place.process_in(cgroup))
            assert command_of(place.proc / str(pid)) == "sleep"
        wait_for_release(daemon, before)

        assert watch(daemon, container) == [pid]
        assert daemon.state() == [("n", "p", [pid])]
        new.close()
        wait_for_release(daemon, before)
