"""The eyes of the stand-in for the Go controllers: it learns of pods and daemons from the API server."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

import grpc

from tests.e2e.controller import Controller, Pod, Poll, Resource, Service
from tests.e2e.kubernetes.api import ApiError, Object
from tests.e2e.kubernetes.deployed import NAMESPACE, Deployed, ids_of, is_ready

LOOK_S: Final = 0.2
POLL_S: Final = 1.0
RETRY_S: Final = 1.0  # as the Go controllers do, which double it


class Informer:
    """As a context: a controller with these resources, told of every change of the pods and of the daemon's address."""

    def __init__(self, daemon: Deployed, service: Service, *resources: Resource) -> None:
        self._daemon = daemon
        self._stop = threading.Event()
        self._seen: dict[str, Pod] = {}
        self._channels: list[grpc.Channel] = []
        self._address = ""
        self.controller: Final = Controller(service, poll_s=POLL_S, retry_s=RETRY_S, on_poll=self._keep)
        self.polled: Poll = Poll(())
        for resource in resources:
            self.controller.add_watcher(resource)
        self._thread = threading.Thread(target=self._run, name="informer", daemon=True)

    def __enter__(self) -> Controller:
        self._thread.start()
        return self.controller

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for channel in self._channels:
            channel.close()
        self.controller.close()

    def _keep(self, poll: Callable[[], Poll]) -> Poll:
        self.polled = poll()
        return self.polled

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            try:
                self._look_for_the_daemon()
                self._look_for_pods()
            except (ApiError, OSError):
                continue  # a server that is away: what is known stays

    def _look_for_the_daemon(self) -> None:
        address = next(iter(self._daemon.addresses), "")
        if address == self._address:
            return
        self._address = address
        channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) if address else None
        if channel is not None:
            self._channels.append(channel)
        try:
            self.controller.connect(channel)
        except grpc.RpcError:
            self._address = ""  # it was gone before it was asked: look again

    def _look_for_pods(self) -> None:
        pods = {pod["metadata"]["uid"]: as_seen(pod) for pod in self._daemon.cluster.api.list("pods", NAMESPACE)}
        for uid in self._seen.keys() - pods.keys():
            del self._seen[uid]
            try:
                self.controller.pod_deleted(uid)
            except grpc.RpcError:
                continue  # the daemon is away: the Go controllers do not try again either
        for uid, pod in pods.items():
            if self._seen.get(uid) != pod:
                self._seen[uid] = pod
                self.controller.pod_changed(pod)


def as_seen(pod: Object) -> Pod:
    """What a controller reads of a pod: its app containers only, and Ready only while it is to stay."""
    meta: dict[str, Any] = pod["metadata"]
    ready = is_ready(pod) and "deletionTimestamp" not in meta
    cids = tuple(ids_of(pod, "containerStatuses").values())
    labels = frozenset(meta.get("labels", {}).values())
    return Pod(meta["uid"], meta["name"], pod["spec"].get("nodeName", ""), labels, cids, ready)
