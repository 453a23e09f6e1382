"""A stand-in for the Go controllers that the daemons serve: it calls as those do, with their oddities.

What it imitates, rule by rule (the numbers stand where the rule is followed), in the words of watches. For guards they
hold likewise, but that nothing is counted:

 1. CreateWatch has a deadline of 5 s.
 2. An empty nodeName in the answer counts as a failure, as any error does.
 3. A failure is tried again up to 10 times, after 1 s, 2 s, 4 s …, always with the container ids of the first try.
 4. Pods are sent once they are Ready, with their app containers only.
 5. DestroyWatch carries nodeName, podName and the pids of the last CreateWatch on that connection, whichever pod that
    was; no name and no container id.
 6. Nothing at all is sent when the ArgusWatcher object is deleted.
 7. GetWatchState is called without a deadline, about every 30 s. A pod counts as watched when any handle carries its
    name; one that does not is created again.
 8. RecordMetrics is opened once per connection, and never again after an error.
 9. Of two ArgusWatchers that select one pod only the first is created, but an edit of either calls CreateWatch for
    the pod.

Times are parameters: a test has no half minutes.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import grpc

from argusd.proto import argus_pb2, argus_pb2_grpc, janus_pb2, janus_pb2_grpc

CREATE_DEADLINE_S: Final = 5.0  # rule 1
DESTROY_DEADLINE_S: Final = 5.0
TRIES: Final = 1 + 10  # rule 3
CALLS_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class Service:
    """What the two controllers call: the same under other names."""

    stub: Callable[[grpc.Channel], Any]
    config: Callable[..., Any]
    create: str
    destroy: str
    state: str
    metrics: str = ""


WATCHES: Final = Service(
    argus_pb2_grpc.ArgusdStub,
    argus_pb2.ArgusdConfig,
    *("CreateWatch", "DestroyWatch", "GetWatchState", "RecordMetrics"),
)
GUARDS: Final = Service(
    janus_pb2_grpc.JanusdStub, janus_pb2.JanusdConfig, "CreateGuard", "DestroyGuard", "GetGuardState"
)
Subject: TypeAlias = argus_pb2.ArgusWatcherSubject | janus_pb2.JanusGuardSubject


@dataclass(frozen=True, slots=True)
class Resource:
    """The custom resource, an ArgusWatcher or a JanusGuard: what is to be done in the pods that carry a label."""

    name: str
    label: str
    subjects: tuple[Subject, ...]


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod as the API server has it. ``uid`` is unique, ``name`` is so in its namespace only."""

    uid: str
    name: str
    node: str
    labels: frozenset[str]
    cids: tuple[str, ...]
    ready: bool = True


@dataclass(frozen=True, slots=True)
class Poll:
    """What one GetWatchState brought: (node, pod, pids) of each handle."""

    handles: tuple[tuple[str, str, frozenset[int]], ...]

    @property
    def pods(self) -> frozenset[str]:
        """The names of the pods that count as watched (rule 7)."""
        return frozenset(pod for _, pod, _ in self.handles)


@dataclass(slots=True)
class Connection:
    """The calls to one daemon, for as long as it lives."""

    channel: grpc.Channel
    service: Service
    last_pids: tuple[int, ...] = ()
    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    _stub: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._stub = self.service.stub(self.channel)
        if self.service.metrics:
            stream = self._call(self.service.metrics)(argus_pb2.Empty())
            stream.initial_metadata()  # the daemon has the stream now
            threading.Thread(target=self._count, args=[stream], name="metrics", daemon=True).start()

    def _call(self, name: str) -> Any:
        return getattr(self._stub, name)

    def create(self, config: Any) -> tuple[int, ...]:
        """One try; the pids, or ConnectionError."""
        try:
            handle = self._call(self.service.create)(config, timeout=CREATE_DEADLINE_S)
        except (grpc.RpcError, ValueError) as error:  # ValueError: the channel was closed
            raise ConnectionError(str(error)) from error
        if not handle.nodeName:  # rule 2
            raise ConnectionError("the answer has no nodeName")
        self.last_pids = tuple(handle.pid)
        return self.last_pids

    def destroy(self, node: str, pod: str) -> None:
        """Rule 5: the pids are those of whatever was created last."""
        config = self.service.config(nodeName=node, podName=pod, pid=self.last_pids)
        self._call(self.service.destroy)(config, timeout=DESTROY_DEADLINE_S)

    def poll(self) -> Poll:
        """One GetWatchState; grpc.RpcError when the daemon is not there."""
        handles = self._call(self.service.state)(argus_pb2.Empty())
        return Poll(tuple((handle.nodeName, handle.podName, frozenset(handle.pid)) for handle in handles))

    def _count(self, stream: Iterator[argus_pb2.ArgusdMetricsHandle]) -> None:
        try:
            for message in stream:
                self.counts[message.argusWatcher, message.event, message.nodeName] += 1
        except grpc.RpcError:
            return  # rule 8


class Controller:
    """Knows resources and pods, and has the daemon watch or guard them. Close it before the daemons' channels."""

    def __init__(
        self, service: Service, *, poll_s: float, retry_s: float, on_poll: Callable[[Callable[[], Poll]], Poll]
    ) -> None:
        """``on_poll`` is given each poll to carry out, so that it can look before and after."""
        self._service = service
        self._poll_s = poll_s
        self._retry_s = retry_s
        self._on_poll = on_poll
        self._lock = threading.RLock()
        self._watchers: dict[str, Resource] = {}
        self._pods: dict[str, Pod] = {}
        self._busy: set[tuple[Pod, str]] = set()
        self._stop = threading.Event()
        self._pool = concurrent.futures.ThreadPoolExecutor(CALLS_AT_ONCE, thread_name_prefix="create")
        self._poller = threading.Thread(target=self._poll, name="poll", daemon=True)
        self.connection: Connection | None = None
        self.created: dict[tuple[str, str], tuple[int, ...]] = {}
        """The pids of the last CreateWatch that succeeded, by the pod's uid and the watcher's name."""
        self.failures: list[str] = []
        self.polls = 0
        self._poller.start()

    def close(self) -> None:
        """End all threads."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)
        self._poller.join()

    def connect(self, channel: grpc.Channel | None) -> None:
        """Turn to the daemon behind ``channel``; None: there is none."""
        connection = Connection(channel, self._service) if channel is not None else None
        with self._lock:
            self.connection = connection
            self.created.clear()

    def add_watcher(self, watcher: Resource) -> None:
        """A new ArgusWatcher: its pods are created at the next poll that misses them."""
        with self._lock:
            self._watchers[watcher.name] = watcher

    def edit_watcher(self, watcher: Resource) -> None:
        """Rule 9: every pod that it selects gets a CreateWatch, also when another ArgusWatcher has it."""
        with self._lock:
            self._watchers[watcher.name] = watcher
            pods = [pod for pod in self._pods.values() if pod.ready and watcher.label in pod.labels]
        for pod in pods:
            self._send(pod, watcher)

    def delete_watcher(self, name: str) -> None:
        """Rule 6."""
        with self._lock:
            del self._watchers[name]

    def pod_changed(self, pod: Pod) -> None:
        """A pod has come, or become Ready again; rule 4."""
        with self._lock:
            self._pods[pod.uid] = pod
            watcher = self._first(pod)
        if pod.ready and watcher is not None:
            self._send(pod, watcher)

    def pod_deleted(self, uid: str) -> None:
        """A pod goes."""
        with self._lock:
            pod = self._pods.pop(uid)
            connection = self.connection
        if connection is not None:
            connection.destroy(pod.node, pod.name)

    def _first(self, pod: Pod) -> Resource | None:
        """The watcher that a pod is created for: the first that selects it (rule 9)."""
        return next((watcher for watcher in self._watchers.values() if watcher.label in pod.labels), None)

    def _send(self, pod: Pod, watcher: Resource) -> None:
        with self._lock:
            if (pod, watcher.name) in self._busy:
                return
            self._busy.add((pod, watcher.name))
        self._pool.submit(self._create, pod, watcher)

    def _create(self, pod: Pod, watcher: Resource) -> None:
        """Rule 3. The pod's ids are those of the first try, whatever becomes of the pod."""
        config = self._service.config(
            name=watcher.name, nodeName=pod.node, podName=pod.name, cid=pod.cids, subject=watcher.subjects
        )
        wait_s = self._retry_s
        try:
            for _ in range(TRIES):
                connection = self.connection
                try:
                    if connection is None:
                        raise ConnectionError("no daemon")  # noqa: TRY301  (as good as one that does not answer)
                    pids = connection.create(config)
                except ConnectionError as error:
                    self.failures.append(f"{pod.name} ({watcher.name}): {error}")
                else:
                    with self._lock:
                        if connection is self.connection:
                            self.created[pod.uid, watcher.name] = pids
                    return
                if self._stop.wait(wait_s):
                    return
                wait_s *= 2
        finally:
            with self._lock:
                self._busy.discard((pod, watcher.name))

    def _poll(self) -> None:
        """Rule 7."""
        while not self._stop.wait(self._poll_s):
            with self._lock:
                connection = self.connection
            if connection is None:
                continue
            try:
                poll = self._on_poll(connection.poll)
            except (grpc.RpcError, ValueError):
                continue
            with self._lock:
                self.polls += 1
                missing = [pod for pod in self._pods.values() if pod.ready and pod.name not in poll.pods]
                wanted = [(pod, watcher) for pod in missing if (watcher := self._first(pod)) is not None]
            for pod, watcher in wanted:
                self._send(pod, watcher)


def edited(watcher: Resource, *subjects: Subject) -> Resource:
    """The same object with other subjects."""
    return replace(watcher, subjects=subjects)
