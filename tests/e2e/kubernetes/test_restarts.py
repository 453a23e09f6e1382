"""What a node goes through: the daemon ends in every way it can, and the kubelet and containerd start anew."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
import pytest

from argusd.proto import argus_pb2, argus_pb2_grpc
from tests.e2e.controller import WATCHES, Controller, Resource
from tests.e2e.kubernetes import objects
from tests.e2e.kubernetes.api import Object
from tests.e2e.kubernetes.cluster import Cluster
from tests.e2e.kubernetes.conftest import Make
from tests.e2e.kubernetes.deployed import Deployed, ids_of, until
from tests.e2e.kubernetes.informer import Informer
from tests.e2e.place import HOST_LAYOUT

NAME: Final = "restarts"
LIMIT: Final = 200 << 20
NUMBERS: Final = itertools.count()


@dataclass(frozen=True, slots=True)
class Play:
    """A daemon that may be ended, a pod that it watches, and the controller that has it do so."""

    daemon: Deployed
    pod: Object
    controller: Controller

    @property
    def container(self) -> str:
        """The daemon's container, while there is one."""
        return next(iter(ids_of(self.daemon.pods[0]).values()), "")

    def watched(self) -> bool:
        """Whether the controller has had the pod watched since it connected to the daemon that is there now."""
        return (self.pod["metadata"]["uid"], NAME) in self.controller.created

    def probe(self) -> None:
        """A file in the pod is reported, once."""
        file = f"probe-{next(NUMBERS)}"
        root = self.daemon.cluster.root_of(ids_of(self.pod)["app"])
        (root / "data" / file).touch()
        self.daemon.wait_for(file=file)
        assert len(self.daemon.matching(file=file)) == 1

    def replaced(self, old: str) -> None:
        """Wait until another daemon has taken over, and the controller has found it."""
        until(lambda: self.container not in {"", old} and self.daemon.addresses, "another daemon is Ready")
        until(self.watched, f"the pod is watched again; tries failed: {self.controller.failures[-5:]}")


@pytest.fixture
def play(cluster: Cluster, run: Make, request: pytest.FixtureRequest) -> Iterator[Play]:
    probes = objects.grpc_probes()
    allowed = objects.rights("SYS_PTRACE", "SYS_ADMIN")
    limits = {"limits": {"memory": str(LIMIT)}}
    made = objects.daemon_set("argusd", securityContext=allowed, resources=limits, **probes)
    namespace = request.node.originalname.replace("_", "-").removeprefix("test-")
    resource = Resource(NAME, NAME, (argus_pb2.ArgusWatcherSubject(path=["/data"], event=["create"]),))
    with Deployed(cluster, namespace, made) as daemon, Informer(daemon, WATCHES, resource) as controller:
        pod = run(objects.pod(f"{NAME}-{namespace}", labels={"app": NAME}))
        play = Play(daemon, pod, controller)
        until(play.watched, "the pod is watched")
        play.probe()
        yield play


def test_daemon_pod_deleted(play: Play) -> None:
    old = play.container
    play.daemon.cluster.api.delete("pods", play.daemon.namespace, play.daemon.pods[0]["metadata"]["name"])
    play.replaced(old)
    play.probe()


def test_daemon_rolled_out(play: Play) -> None:
    old = play.container
    change = {"spec": {"template": {"metadata": {"annotations": {"revision": "2"}}}}}
    play.daemon.cluster.api.patch("daemonsets", play.daemon.namespace, play.daemon.name, change)
    play.replaced(old)
    play.probe()


def test_daemon_killed(play: Play) -> None:
    old = play.container
    play.daemon.cluster.ctr("tasks", "kill", "--signal=KILL", old.partition("//")[2])
    play.replaced(old)
    play.probe()


def test_daemon_out_of_memory(play: Play) -> None:
    old = play.container
    tighten(play.daemon.cluster, old)
    subject = argus_pb2.ArgusWatcherSubject(path=[f"/{number:0100}" for number in range(30_000)], event=["create"])
    config = argus_pb2.ArgusdConfig(
        name="big", nodeName="n", podName="p", cid=[ids_of(play.pod)["app"]], subject=[subject]
    )
    stub = argus_pb2_grpc.ArgusdStub(play.daemon.channel)

    def ended() -> bool:
        with contextlib.suppress(grpc.RpcError):  # that is what an end looks like from here
            stub.CreateWatch(config, timeout=5)
        (status,) = play.daemon.pods[0]["status"]["containerStatuses"]
        return "terminated" in status["lastState"]

    until(ended, "the daemon ends")
    (status,) = play.daemon.pods[0]["status"]["containerStatuses"]
    assert status["lastState"]["terminated"]["exitCode"] == 137
    play.replaced(old)
    play.probe()


def tighten(cluster: Cluster, container: str) -> None:
    """Leave a container next to no memory that it has not taken yet."""
    lines = (cluster.place.proc / str(cluster.pid(container)) / "cgroup").read_text().splitlines()
    if HOST_LAYOUT == "v2":
        folder = Path("/sys/fs/cgroup") / lines[0].split(":")[2].lstrip("/")
        limit, used = folder / "memory.max", folder / "memory.current"
    else:
        line = next(line for line in lines if line.split(":")[1] == "memory")
        folder = Path("/sys/fs/cgroup/memory") / line.split(":")[2].lstrip("/")
        limit, used = folder / "memory.limit_in_bytes", folder / "memory.usage_in_bytes"
    limit.write_text(str(int(used.read_text()) + (1 << 20)))


@pytest.mark.parametrize("program", ["kubelet", "containerd"])
def test_node_programs_start_anew(
    cluster: Cluster, argusd: Deployed, janusd: Deployed, run: Make, program: str
) -> None:
    """Containers outlive them, and so do watches and guards: nothing is missed and nothing has to be asked again."""
    pod = run(objects.pod(f"outlives-{program}"))
    name = pod["metadata"]["name"]
    root = cluster.root_of(ids_of(pod)["app"])
    (root / "data" / "secret").touch()
    argusd.watch(pod, "/data", event=["create"])
    janusd.guard(pod, "/data/secret")

    def use(file: str) -> None:
        (root / "data" / file).touch()
        with pytest.raises(PermissionError):
            (root / "data" / "secret").read_text()

    cluster.stop(program)
    try:
        use("meanwhile")
    finally:
        cluster.start(program)
    argusd.wait_for(pod=name, file="meanwhile")  # containers speak through containerd: later, where that was away
    until(cluster.node_is_ready, "the node is Ready again")
    use("after")
    argusd.wait_for(pod=name, file="after")
    for daemon in (argusd, janusd):
        (status,) = daemon.pods[0]["status"]["containerStatuses"]
        assert status["restartCount"] == 0
