"""A daemon that a DaemonSet runs on the node, found as a controller finds it: by the endpoints of its service."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

import grpc

from argusd.proto import argus_pb2, argus_pb2_grpc, janus_pb2, janus_pb2_grpc
from tests import waiting
from tests.e2e.kubernetes import objects
from tests.e2e.kubernetes.api import ApiError, Object
from tests.e2e.kubernetes.cluster import NODE, Cluster

RPC_TIMEOUT_S: Final = 5.0
READY_S: Final = 60.0
EVENT_S: Final = 30.0
NAMESPACE: Final = "default"


def until(condition: Callable[[], object], what: str, timeout_s: float = READY_S) -> None:
    """Wait for what the cluster does; a server that is away meanwhile is waited for too."""

    def holds() -> object:
        try:
            return condition()
        except (ApiError, OSError, grpc.RpcError, LookupError):
            return False

    waiting.until(holds, what, timeout_s)


class Deployed:
    """As a context: the DaemonSet is there, with its service, in a namespace of its own; afterwards it is deleted."""

    def __init__(self, cluster: Cluster, namespace: str, daemon_set: Object, *others: tuple[str, Object]) -> None:
        """``others`` are objects of the namespace that it needs, each with the plural of its kind."""
        self.cluster: Final = cluster
        self.namespace: Final = namespace
        self.name: Final[str] = daemon_set["metadata"]["name"]
        self._others = others
        self._objects = [*others, ("services", objects.service(self.name)), ("daemonsets", daemon_set)]
        self._stack = ExitStack()
        self._channels: dict[str, grpc.Channel] = {}

    def __enter__(self) -> Self:
        make_namespace(self.cluster, self.namespace)
        self._stack.callback(self.cluster.api.delete, "namespaces", "", self.namespace)
        for plural, value in self._objects:
            self.cluster.api.create(plural, self.namespace, value)
        return self

    def __exit__(self, *_: object) -> None:
        for channel in self._channels.values():
            channel.close()
        self._stack.close()

    def until(self, condition: Callable[[], object], what: str, timeout_s: float = READY_S) -> None:
        """Wait for what it does; a failure says what it has logged until then."""
        try:
            until(condition, what, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; its log ends: {self.lines[-20:]}") from None

    @property
    def pods(self) -> list[Object]:
        """Its pods that are not on their way out."""
        found = self.cluster.api.list("pods", self.namespace)
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    @property
    def addresses(self) -> list[str]:
        """Where the service says that it is: none before it is Ready."""
        endpoints = self.cluster.api.get("endpoints", self.namespace, f"{self.name}-svc")
        return [
            f"{address['ip']}:{port['port']}"
            for subset in endpoints.get("subsets", ())
            for port in subset["ports"]
            for address in subset.get("addresses", ())
        ]

    @property
    def channel(self) -> grpc.Channel:
        """A channel to it, once it is Ready."""
        self.until(lambda: len(self.addresses) == 1, f"{self.name} is Ready in {self.namespace}")
        address = self.addresses[0]
        if address not in self._channels:
            self._channels[address] = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        return self._channels[address]

    @property
    def lines(self) -> list[str]:
        """What its containers have said so far, those that are gone included, in the order of their logs' names."""
        said: list[str] = []
        for log in sorted((self.cluster.folder / "log" / "pods").glob(f"{self.namespace}_{self.name}-*/*/*.log")):
            half = ""
            for record in log.read_text().splitlines():
                _, _, whole, text = record.split(" ", 3)
                half += text
                if whole == "F":
                    said.append(half)
                    half = ""
        return said

    @property
    def events(self) -> list[dict[str, Any]]:
        """The lines that are about files."""
        records = [json.loads(line) for line in self.lines if line.startswith("{")]
        return [record for record in records if "event" in record]

    def watch(self, pod: Object, *paths: str, containers: tuple[str, ...] = (), **fields: Any) -> None:
        """Have paths of a pod watched, in these of its containers or in all; ``fields`` are those of the subject."""
        subject = argus_pb2.ArgusWatcherSubject(path=paths, **{"event": ["create", "modify"], **fields})
        request = argus_pb2.ArgusdConfig(subject=[subject], **named(pod, containers))
        handle = argus_pb2_grpc.ArgusdStub(self.channel).CreateWatch(request, timeout=RPC_TIMEOUT_S)
        assert handle.nodeName == NODE

    def guard(self, pod: Object, *deny: str, containers: tuple[str, ...] = (), **fields: Any) -> None:
        """Have paths of a pod guarded."""
        subject = janus_pb2.JanusGuardSubject(deny=deny, **{"event": ["open"], **fields})
        request = janus_pb2.JanusdConfig(subject=[subject], **named(pod, containers))
        handle = janus_pb2_grpc.JanusdStub(self.channel).CreateGuard(request, timeout=RPC_TIMEOUT_S)
        assert handle.nodeName == NODE

    def wait_for(self, **wanted: str) -> dict[str, Any]:
        """The first event with these fields."""
        self.until(lambda: self.matching(**wanted), f"an event with {wanted}", EVENT_S)
        return self.matching(**wanted)[0]

    def matching(self, **wanted: str) -> list[dict[str, Any]]:
        """The events so far with these fields."""
        return [event for event in self.events if wanted.items() <= event.items()]


class Applied(Deployed):
    """As a context: a file of ``deploy/`` is applied as it is; afterwards all that it made is gone."""

    def __init__(self, cluster: Cluster, path: Path, *others: tuple[str, Object]) -> None:
        """The file's name begins with the daemon's, or the namespace's; ``others`` are what its reader must make."""
        namespace = re.split(r"d?[-.]", path.name)[0]
        super().__init__(cluster, namespace, {"metadata": {"name": f"{namespace}d"}}, *others)
        self._path = path

    def __enter__(self) -> Self:
        make_namespace(self.cluster, self.namespace)
        for plural, value in self._others:
            self.cluster.api.create(plural, self.namespace, value)
        self._stack.callback(self._delete)
        self.cluster.kubectl("apply", f"--filename={self._path}")
        return self

    def _delete(self) -> None:
        self.cluster.kubectl("delete", "--ignore-not-found", "--timeout=50s", f"--filename={self._path}")


def make_namespace(cluster: Cluster, name: str) -> None:
    """Make a namespace in which pods can be made: that takes the account that a controller makes."""
    cluster.api.create("namespaces", "", {"metadata": {"name": name}})
    until(lambda: cluster.api.get("serviceaccounts", name, "default"), f"the default account of {name}")


def named(pod: Object, containers: tuple[str, ...]) -> dict[str, Any]:
    """How a request names a pod."""
    ids = ids_of(pod)
    return {
        "name": "w1",
        "nodeName": NODE,
        "podName": pod["metadata"]["name"],
        "cid": [ids[container] for container in containers or ids],
    }


def ids_of(pod: Mapping[str, Any], *kinds: str) -> dict[str, str]:
    """The ids of a pod's running containers, by their names; only of these kinds when any is given."""
    lists = kinds or ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses")
    statuses = [status for kind in lists for status in pod["status"].get(kind, ())]
    return {status["name"]: status["containerID"] for status in statuses if "running" in status["state"]}


def is_ready(pod: Object) -> bool:
    """Whether a pod counts as one that does its work."""
    conditions = pod["status"].get("conditions", ())
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
