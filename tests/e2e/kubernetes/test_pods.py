"""Every kind of container that a pod may have, and every way into one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.kubernetes import objects
from tests.e2e.kubernetes.cluster import Cluster
from tests.e2e.kubernetes.conftest import Make
from tests.e2e.kubernetes.deployed import NAMESPACE, Deployed, ids_of, is_ready, until
from tests.e2e.place import IMAGE


def test_what_kubectl_does_in_a_container(cluster: Cluster, argusd: Deployed, run: Make) -> None:
    pod = run(objects.pod("kubectl"))
    argusd.watch(pod, "/data", event=["create"], recursive=True)
    cluster.kubectl("exec", "kubectl", "--", "touch", "/data/by-exec")
    argusd.wait_for(pod="kubectl", file="by-exec")
    source = cluster.folder / "by-cp"
    source.write_text("x")
    cluster.kubectl("cp", str(source), "kubectl:/data/by-cp")
    argusd.wait_for(pod="kubectl", file="by-cp")


def test_a_guard_refuses_kubectl(cluster: Cluster, janusd: Deployed, run: Make) -> None:
    pod = run(objects.pod("refused"))
    (cluster.root_of(ids_of(pod)["app"]) / "data" / "secret").write_text("x")
    janusd.guard(pod, "/data/secret")
    with pytest.raises(Exception, match="not permitted"):
        cluster.kubectl("exec", "refused", "--", "cat", "/data/secret")
    janusd.wait_for(pod="refused", response="DENY", path="/data/secret")


def test_init_containers_come_and_go(cluster: Cluster, argusd: Deployed, run: Make) -> None:
    """What an init container leaves in a shared volume is there before the watch; what comes later is reported."""
    mounts = [{"name": "it", "mountPath": "/it"}]
    first = objects.shell("first", "echo x >/it/before", volumeMounts=mounts)
    app = objects.container(volumeMounts=mounts)
    pod = run(objects.pod("init", app, initContainers=[first], volumes=[{"name": "it", "emptyDir": {}}]))
    assert set(ids_of(pod)) == {"app"}
    argusd.watch(pod, "/it", event=["create"], recursive=True)
    (cluster.root_of(ids_of(pod)["app"]) / "it" / "after").write_text("x")
    argusd.wait_for(pod="init", file="after")
    assert not argusd.matching(pod="init", file="before")


def test_an_init_container_that_runs_is_watched(cluster: Cluster, argusd: Deployed) -> None:
    """It is no app container, and the pod is not Ready; its id is as good as any."""
    cluster.api.create(
        "pods",
        NAMESPACE,
        objects.pod("init-runs", initContainers=[objects.container("first"), objects.container("next")]),
    )
    try:
        until(lambda: "first" in ids_of(cluster.api.get("pods", NAMESPACE, "init-runs")), "the init container runs")
        pod = cluster.api.get("pods", NAMESPACE, "init-runs")
        argusd.watch(pod, "/data", event=["create"])
        (cluster.root_of(ids_of(pod)["first"]) / "data" / "made").write_text("x")
        argusd.wait_for(pod="init-runs", file="made")
    finally:
        cluster.api.delete("pods", NAMESPACE, "init-runs")


def test_a_sidecar_beside_the_app(cluster: Cluster, argusd: Deployed, run: Make) -> None:
    """An init container that is restarted for ever: it runs before the app and along with it."""
    sidecar = objects.container("sidecar", restartPolicy="Always")
    pod = run(objects.pod("sidecar", initContainers=[sidecar]))
    ids = ids_of(pod)
    assert set(ids) == {"app", "sidecar"}
    argusd.watch(pod, "/data", event=["create"])
    for name, container in ids.items():
        (cluster.root_of(container) / "data" / f"by-{name}").write_text("x")
        event = argusd.wait_for(pod="sidecar", file=f"by-{name}")
        assert event["container"] == container.partition("//")[2]


def test_an_ephemeral_container(cluster: Cluster, argusd: Deployed, run: Make) -> None:
    """It can be watched itself, and what it does to the app's files is an event of the app's."""
    pod = run(objects.pod("debugged"))
    argusd.watch(pod, "/data", event=["create"])
    script = "touch /proc/1/root/data/by-debugger; sleep 3600"
    target = ("--target=app", "--container=debugger", f"--image={IMAGE}", "--image-pull-policy=Never", "--quiet")
    cluster.kubectl("debug", "debugged", *target, "--profile=sysadmin", "--", "sh", "-c", script)
    argusd.wait_for(pod="debugged", file="by-debugger")
    until(lambda: "debugger" in ids_of(cluster.api.get("pods", NAMESPACE, "debugged")), "the status names the debugger")
    pod = cluster.api.get("pods", NAMESPACE, "debugged")
    argusd.watch(pod, "/data", "/root", event=["create"])
    (cluster.root_of(ids_of(pod)["debugger"]) / "root" / "made").write_text("x")
    event = argusd.wait_for(pod="debugged", file="made")
    assert event["container"] == ids_of(pod)["debugger"].partition("//")[2]


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("own-pids", {}),
        ("shared-pids", {"shareProcessNamespace": True}),
        ("node-pids", {"hostPID": True}),
        ("node-network", {"hostNetwork": True}),
    ],
)
def test_namespaces_that_a_pod_shares(
    cluster: Cluster, argusd: Deployed, janusd: Deployed, run: Make, name: str, spec: Any
) -> None:
    """Each container is found by its own init, whoever else its processes see."""
    pod = run(objects.pod(name, objects.container("one"), objects.container("two"), **spec))
    argusd.watch(pod, "/data", event=["create"])
    ids = ids_of(pod)
    for container, identity in ids.items():
        (cluster.root_of(identity) / "data" / f"by-{container}").write_text("x")
    for container, identity in ids.items():
        event = argusd.wait_for(pod=name, file=f"by-{container}")
        assert event["container"] == identity.partition("//")[2]
    janusd.guard(pod, "/data/by-one")
    with pytest.raises(PermissionError):
        (cluster.root_of(ids["one"]) / "data" / "by-one").read_text()
    assert (cluster.root_of(ids["two"]) / "data" / "by-two").read_text() == "x"


def test_a_user_namespace_of_its_own(cluster: Cluster, argusd: Deployed, run: Make) -> None:
    (node,) = cluster.api.list("nodes")
    handlers = node["status"].get("runtimeHandlers", ())
    if not any(handler.get("features", {}).get("userNamespaces") for handler in handlers):
        pytest.skip(f"{node['status']['nodeInfo']['containerRuntimeVersion']} cannot map users: containerd 2 can")
    pod = run(objects.pod("mapped", hostUsers=False))
    argusd.watch(pod, "/data", event=["create"])
    cluster.kubectl("exec", "mapped", "--", "touch", "/data/made")
    argusd.wait_for(pod="mapped", file="made")


def test_a_container_that_crashes_is_watched_again_once_asked(cluster: Cluster, argusd: Deployed, run: Make) -> None:
    pod = run(objects.pod("crashes"))
    argusd.watch(pod, "/data", event=["create"])
    old = ids_of(pod)["app"]
    cluster.ctr("tasks", "kill", "--signal=KILL", old.partition("//")[2])

    def restarted() -> bool:
        now = cluster.api.get("pods", NAMESPACE, "crashes")
        return is_ready(now) and ids_of(now)["app"] != old

    until(restarted, "another container in its place")
    pod = cluster.api.get("pods", NAMESPACE, "crashes")
    argusd.watch(pod, "/data", event=["create"])
    (cluster.root_of(ids_of(pod)["app"]) / "data" / "made").write_text("x")
    assert argusd.wait_for(pod="crashes", file="made")["container"] == ids_of(pod)["app"].partition("//")[2]
