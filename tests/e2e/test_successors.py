"""Containers that restart in their pod: the new one is watched and guarded without a call from anybody."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from argusd.proto import argus_pb2, janus_pb2
from demo.container import oci_spec
from tests.containers import RuncContainer, needs_runc
from tests.daemon import Daemon, until

pytestmark = needs_runc

RESTARTS: Final = 50
NODE: Final = "node-1"


BORN: Final = ("/bin/sh", "-c", "touch /data/born && exec sleep 3600")


class ShimContainer(RuncContainer):
    """A container that is created, then started, as the shims of containerd and CRI-O do it."""

    def _start(self, folder: Path) -> int:
        (folder / "config.json").write_text(json.dumps(oci_spec(self.cgroup, self._init)))
        pid_file = folder / "init.pid"
        self._runc("create", "--bundle", str(folder), "--pid-file", str(pid_file), self.id)
        return int(pid_file.read_text())

    def start(self) -> None:
        """Let its program run."""
        self._runc("start", self.id)


class RestartingPod:
    """A pod of two containers, of which the first restarts."""

    def __init__(self, stack: ExitStack, uid: str) -> None:
        self._stack = stack
        self._cgroup = f"/argusd-{uid}/kubepods/burstable/pod{uid}/{{id}}"
        self.first, self.second = self.created(), self.created()
        self.first.start()
        self.second.start()

    def created(self) -> ShimContainer:
        """Another container of the pod, which has its root, and is not started yet."""
        return self._stack.enter_context(ShimContainer(cgroup=self._cgroup, init=BORN))

    @property
    def cids(self) -> list[str]:
        """The ids as a kubelet gives them."""
        return [box.uri_as("containerd") for box in (self.first, self.second)]

    @property
    def pids(self) -> set[int]:
        """The init processes."""
        return {self.first.pid, self.second.pid}


@pytest.fixture
def pod(request: pytest.FixtureRequest) -> Iterator[RestartingPod]:
    with ExitStack() as stack:
        yield RestartingPod(stack, f"5{abs(hash(request.node.name)) % 10**6:06d}-0000-4000-8000-000000000001")


@pytest.fixture
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    with Daemon("-log=json", *getattr(request, "param", ())) as daemon:
        yield daemon


def watch(pod: RestartingPod, name: str = "w") -> argus_pb2.ArgusdConfig:
    subject = argus_pb2.ArgusWatcherSubject(path=["/data"], event=["create"], recursive=True)
    return argus_pb2.ArgusdConfig(name=name, nodeName=NODE, podName="pod-1", cid=pod.cids, subject=[subject])


def is_whole(state: list[tuple[str, str, list[int]]], pod: RestartingPod) -> bool:
    return [set(pids) for _, _, pids in state] == [pod.pids]


def seen(daemon: Daemon) -> list[tuple[str, str]]:
    return [(event["container"], event["file"]) for event in daemon.events]


def test_fifty_successors_in_a_row_are_watched_before_they_start(daemon: Daemon, pod: RestartingPod) -> None:
    daemon.stub.CreateWatch(watch(pod), timeout=10)
    expected: list[tuple[str, str]] = []
    for number in range(RESTARTS):
        assert is_whole(daemon.state(), pod)
        pod.first.close()
        assert daemon.state() == []
        pod.first = pod.created()
        daemon.wait_for_text(f"Container {pod.first.id[:12]} takes the place of")
        until(lambda: is_whole(daemon.state(), pod), "the pod is whole again")
        pod.first.start()
        (pod.second.rootfs / "data" / f"other-{number}").touch()
        expected += [(pod.first.id, "born"), (pod.second.id, f"other-{number}")]
        until(lambda number=number: len(seen(daemon)) >= 2 * number + 2, "all events")  # type: ignore[misc]  # of any type
        assert sorted(seen(daemon)) == sorted(expected)


@pytest.mark.parametrize("daemon", [["-services=janus"]], indirect=True)
def test_successors_are_guarded(daemon: Daemon, pod: RestartingPod) -> None:
    subject = janus_pb2.JanusGuardSubject(deny=["/etc/passwd"], event=["open"])
    config = janus_pb2.JanusdConfig(name="g", nodeName=NODE, podName="pod-1", cid=pod.cids, subject=[subject])
    daemon.guards.CreateGuard(config, timeout=10)
    for _ in range(5):
        pod.first.close()
        assert daemon.guard_state() == []
        pod.first = pod.created()
        until(lambda: is_whole(daemon.guard_state(), pod), "the pod is whole again")
        with pytest.raises(PermissionError):
            (pod.first.rootfs / "etc" / "passwd").read_bytes()


def test_a_pod_that_ended_altogether_comes_back_and_goes_by_its_old_pids(daemon: Daemon, pod: RestartingPod) -> None:
    handle = daemon.stub.CreateWatch(watch(pod), timeout=10)
    daemon.stub.CreateWatch(watch(pod, "v"), timeout=10)
    keep = pod.created()  # its cgroup stays as long as there is a container in it
    pod.first.close()
    pod.second.close()
    assert daemon.state() == []
    pod.first, pod.second = keep, pod.created()
    until(lambda: is_whole(daemon.state(), pod), "the pod is whole again")
    daemon.stub.DestroyWatch(argus_pb2.ArgusdConfig(nodeName=NODE, podName="pod-1", pid=handle.pid), timeout=10)
    assert daemon.state() == []


def test_a_successor_that_came_while_the_daemon_was_away_is_taken(tmp_path: Path, pod: RestartingPod) -> None:
    flags = ("-log=json", f"-state_dir={tmp_path / 'state'}")
    with Daemon(*flags) as daemon:
        daemon.stub.CreateWatch(watch(pod), timeout=10)
        daemon.kill()
    pod.first.close()
    pod.first = pod.created()
    with Daemon(*flags) as daemon:
        until(lambda: is_whole(daemon.state(), pod), "the pod is whole again")
        pod.first.start()
        until(lambda: seen(daemon) == [(pod.first.id, "born")], "its first event")
