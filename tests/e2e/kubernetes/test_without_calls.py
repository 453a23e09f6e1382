"""What the daemon makes good by itself, before any controller calls: containers that are replaced, and its own end."""

from __future__ import annotations

import pytest

from tests.e2e.kubernetes import objects
from tests.e2e.kubernetes.api import Object
from tests.e2e.kubernetes.cluster import Cluster
from tests.e2e.kubernetes.conftest import Make
from tests.e2e.kubernetes.deployed import NAMESPACE, Deployed, ids_of, until

CREATES = "sleep 1; touch /data/first; sleep 3600"
READS = "echo x >/data/secret; sleep 1; cat /data/secret; sleep 3600"


def kill(cluster: Cluster, container: str) -> None:
    cluster.ctr("tasks", "kill", "--signal=KILL", container.partition("://")[2])


def successor(cluster: Cluster, pod: Object, name: str) -> str:
    """The id of the container that a kubelet has put in the place of the one that a pod had."""
    old = ids_of(pod)[name]

    def now() -> str:
        return ids_of(cluster.api.get("pods", NAMESPACE, pod["metadata"]["name"])).get(name, old)

    until(lambda: now() != old, f"another container in the place of {name}")
    return now().partition("://")[2]


@pytest.mark.parametrize("name", ["one", "two"])
def test_the_successor_of_one_of_two_containers_is_watched(
    cluster: Cluster, argusd: Deployed, run: Make, name: str
) -> None:
    pod = run(objects.pod(f"replaced-{name}", objects.shell("one", CREATES), objects.shell("two", CREATES)))
    argusd.watch(pod, "/data", event=["create"], recursive=True)
    kill(cluster, ids_of(pod)[name])
    argusd.wait_for(pod=f"replaced-{name}", container=successor(cluster, pod, name), file="first")


def test_the_successor_of_one_of_two_containers_is_guarded(cluster: Cluster, janusd: Deployed, run: Make) -> None:
    pod = run(objects.pod("replaced-guarded", objects.shell("one", READS), objects.container("two")))
    janusd.guard(pod, "/data/secret")
    kill(cluster, ids_of(pod)["one"])
    container = successor(cluster, pod, "one")
    janusd.wait_for(pod="replaced-guarded", container=container, path="/data/secret", response="DENY")


def test_a_killed_daemon_takes_up_what_was_in_force(cluster: Cluster, run: Make) -> None:
    state = {"hostPath": {"path": "/var/lib/kept", "type": "DirectoryOrCreate"}}
    made = objects.daemon_set(
        "argusd",
        *("/argusd", "-services=argus,janus", "-state_dir=/var/lib/argusd"),
        volumes={"state": ("/var/lib/argusd", state)},
        securityContext=objects.rights("SYS_PTRACE", "SYS_ADMIN"),
        **objects.grpc_probes(),
    )
    with Deployed(cluster, "keeping", made) as daemon:
        pods = [run(objects.pod(f"kept-{number}")) for number in range(3)]
        roots = [cluster.root_of(ids_of(pod)["app"]) for pod in pods]
        for pod, root in zip(pods, roots, strict=True):
            (root / "root" / "secret").touch()
            daemon.watch(pod, "/data", event=["create"])
            daemon.guard(pod, "/root/secret")
        (old,) = ids_of(daemon.pods[0]).values()
        kill(cluster, old)
        daemon.until(lambda: old not in {*ids_of(daemon.pods[0]).values()} and daemon.addresses, "it is back")
        for pod, root in zip(pods, roots, strict=True):
            (root / "data" / "after").touch()
            daemon.wait_for(pod=pod["metadata"]["name"], file="after")
            with pytest.raises(PermissionError):
                (root / "root" / "secret").read_text()
