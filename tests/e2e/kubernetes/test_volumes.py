"""What a kubelet puts into containers is watched as the container sees it: with a real kubelet's mounts and swaps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import pytest

from tests.e2e.kubernetes import objects
from tests.e2e.kubernetes.api import Object
from tests.e2e.kubernetes.cluster import Cluster
from tests.e2e.kubernetes.conftest import Make
from tests.e2e.kubernetes.deployed import NAMESPACE, Deployed, ids_of, until

EVENTS: Final = ["create", "modify", "delete", "movedto"]


def mounts(*paths: tuple[str, str], **fields: Any) -> list[Object]:
    return [{"name": name, "mountPath": path, **fields} for name, path in paths]


def with_volume(name: str, volume: Object) -> Object:
    container = objects.container(volumeMounts=mounts(("it", "/it")))
    return objects.pod(name, container, volumes=[{"name": "it", **volume}])


def modified(daemon: Deployed, pod: str) -> Counter[str]:
    """How often each entry was reported as changed."""
    return Counter(event["file"] for event in daemon.matching(pod=pod, event="MODIFY"))


VOLUMES: Final[dict[str, tuple[str, Callable[[str], Object], frozenset[str]]]] = {
    "configmap": ("configmaps", lambda name: {"configMap": {"name": name}}, frozenset({"first", "second"})),
    "secret": ("secrets", lambda name: {"secret": {"secretName": name}}, frozenset({"first", "second"})),
    "projected": (
        "configmaps",
        lambda name: {
            "projected": {
                "sources": [{"configMap": {"name": name}}, {"serviceAccountToken": {"path": "token"}}],
            }
        },
        frozenset({"first", "second", "token"}),
    ),
}
"""By name: the plural of what is changed, the volume that is made of it, and the entries that it has."""


@pytest.mark.parametrize("kind", VOLUMES)
def test_a_swap_of_a_kubelets_volume_is_a_change_of_each_entry(
    cluster: Cluster, argusd: Deployed, run: Make, kind: str
) -> None:
    plural, volume, entries = VOLUMES[kind]
    name = f"swap-{kind}"
    make = objects.secret if plural == "secrets" else objects.config_map
    cluster.api.create(plural, NAMESPACE, make(name, first="1", second="2"))
    pod = run(with_volume(name, volume(name)))
    argusd.watch(pod, "/it", event=["modify"])
    for round_ in (1, 2):
        field = "stringData" if plural == "secrets" else "data"
        cluster.api.patch(plural, NAMESPACE, name, {field: {"first": f"changed {round_}"}})
        until(lambda round_=round_: modified(argusd, name) >= Counter(dict.fromkeys(entries, round_)), f"swap {round_}")  # type: ignore[misc]  # a lambda of any type
        assert modified(argusd, name) == Counter(dict.fromkeys(entries, round_))


def test_one_file_of_a_config_map_under_its_own_path(cluster: Cluster, argusd: Deployed, run: Make) -> None:
    """The path is a link to a link: what it leads to is what is watched."""
    cluster.api.create("configmaps", NAMESPACE, objects.config_map("single", first="1"))
    pod = run(with_volume("single", {"configMap": {"name": "single"}}))
    argusd.watch(pod, "/it/first", event=["modify"])
    cluster.api.patch("configmaps", NAMESPACE, "single", {"data": {"first": "changed"}})
    assert argusd.wait_for(pod="single", event="MODIFY")["path"] == "/it/first"


def test_an_empty_dir_of_two_containers(cluster: Cluster, argusd: Deployed, run: Make) -> None:
    """What one of them does is reported under the path that each has it at."""
    reader = objects.container("reader", volumeMounts=mounts(("it", "/in")))
    writer = objects.container("writer", volumeMounts=mounts(("it", "/out")))
    pod = run(objects.pod("shared", reader, writer, volumes=[{"name": "it", "emptyDir": {}}]))
    argusd.watch(pod, "/in", "/out", event=["create"], recursive=True)
    ids = ids_of(pod)
    (cluster.root_of(ids["writer"]) / "out" / "made").write_text("x")
    until(lambda: len(argusd.matching(pod="shared", file="made")) == 2, "one report for each container")
    seen = {(event["container"], event["path"]) for event in argusd.matching(pod="shared", file="made")}
    assert seen == {(ids["reader"].partition("//")[2], "/in"), (ids["writer"].partition("//")[2], "/out")}


def test_a_sub_path(cluster: Cluster, argusd: Deployed, run: Make) -> None:
    """The rest of the volume is not the container's: nothing of it is reported."""
    part = objects.container("part", volumeMounts=mounts(("it", "/part"), subPath="one"))
    whole = objects.container("whole", volumeMounts=mounts(("it", "/whole")))
    pod = run(objects.pod("sub-path", part, whole, volumes=[{"name": "it", "emptyDir": {}}]))
    argusd.watch(pod, "/part", containers=("part",), event=["create"], recursive=True)
    volume = cluster.root_of(ids_of(pod)["whole"]) / "whole"
    (volume / "outside").write_text("x")
    (volume / "one" / "inside").write_text("x")
    argusd.wait_for(pod="sub-path", path="/part", file="inside")
    assert not argusd.matching(pod="sub-path", file="outside")


def test_a_folder_of_the_node(cluster: Cluster, argusd: Deployed, run: Make) -> None:
    folder = cluster.folder / "lib" / "of-the-node"
    folder.mkdir()
    pod = run(with_volume("host-path", objects.host_path("/var/lib/of-the-node")))
    argusd.watch(pod, "/it", event=["create"], recursive=True)
    (folder / "made").write_text("x")
    argusd.wait_for(pod="host-path", path="/it", file="made")


def test_a_guard_on_a_secret(cluster: Cluster, janusd: Deployed, run: Make) -> None:
    """The container's own mount is guarded: reading what the kubelet put there is refused, the rest is not."""
    cluster.api.create("secrets", NAMESPACE, objects.secret("guarded", key="k"))
    pod = run(with_volume("guarded", {"secret": {"secretName": "guarded"}}))
    janusd.guard(pod, "/it/key")
    root = cluster.root_of(ids_of(pod)["app"])
    (root / "data" / "free").write_text("x")
    with pytest.raises(PermissionError):
        (root / "it" / "..data" / "key").read_text()
    janusd.wait_for(pod="guarded", response="DENY", path="/it/key")
