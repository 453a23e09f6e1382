"""The pods of a node, their controller, and what must be so at each moment."""

from __future__ import annotations

import functools
import itertools
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import ClassVar, Final

import pytest

from argusd.proto import argus_pb2, janus_pb2
from demo.container import ProcessContainer
from tests import waiting
from tests.containers import rootfs_template
from tests.daemon import Daemon
from tests.e2e.controller import GUARDS, WATCHES, Controller, Pod, Poll, Service, Subject

NODE: Final = "node-1"
POLL_S: Final = 0.25
RETRY_S: Final = 0.05
WAIT_S: Final = 30.0

until = functools.partial(waiting.until, timeout_s=WAIT_S)


class Truth:
    """Which pids are watched in each pod, by its uid; nothing is known of a pod while something is done to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: dict[str, str] = {}
        self._pids: dict[str, frozenset[int] | None] = {}
        self._versions: Counter[str] = Counter()
        self.errors: list[str] = []
        self.checked = 0

    def unsettle(self, uid: str, name: str) -> None:
        """Something is about to happen to a pod."""
        self._set(uid, name, None)

    def settle(self, uid: str, name: str, pids: frozenset[int]) -> None:
        """From now on a poll must bring exactly these; none at all for a pod that is not watched."""
        self._set(uid, name, pids)

    def _set(self, uid: str, name: str, pids: frozenset[int] | None) -> None:
        with self._lock:
            self._names[uid] = name
            self._pids[uid] = pids
            self._versions[uid] += 1

    def _now(self) -> dict[str, tuple[int, str, frozenset[int] | None]]:
        with self._lock:
            return {uid: (self._versions[uid], self._names[uid], pids) for uid, pids in self._pids.items()}

    def check(self, poll: Callable[[], Poll]) -> Poll:
        """Carry out a poll and compare it with what must be so before and after it."""
        before, found, after = self._now(), poll(), self._now()
        unsure = {name for uid, (version, name, pids) in after.items() if pids is None or before.get(uid) != after[uid]}
        expected = Counter((NODE, name, pids) for _, name, pids in after.values() if pids and name not in unsure)
        seen = Counter(handle for handle in found.handles if handle[1] not in unsure)
        self.checked += sum(expected.values())
        if seen != expected:
            self.errors.append(f"missing {list(expected - seen)}, too many {list(seen - expected)}")
        return found


class Node:
    """The pods of a node, and the API server's view of them."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self.pods: dict[str, Pod] = {}
        self.boxes: dict[str, list[ProcessContainer]] = {}
        self.watchers: dict[str, set[str]] = {}
        self._stack = ExitStack()
        self._numbers = itertools.count()

    def close(self) -> None:
        """End every container that is left."""
        self._stack.close()

    def box(self, uid: str, *, start: bool = True) -> ProcessContainer:
        """A container of a pod, in the cgroup that a kubelet gives it."""
        box = ProcessContainer(rootfs_template(), cgroup=f"/argusd-{uid}/kubepods/burstable/pod{uid}/{{id}}")
        return self._stack.enter_context(box) if start else box

    def start(self, box: ProcessContainer) -> None:
        """Start one that was only planned."""
        self._stack.enter_context(box)

    def make(self, number: int) -> Pod:
        """A pod; every fifth has two containers, and two have one name, in two namespaces."""
        uid = f"{next(self._numbers):04x}-{number}"
        labels = {"web" if number % 3 else "db"} | ({"both"} if number in {1, 2, 4} else set())
        self.boxes[uid] = [self.box(uid) for _ in range(2 if number % 5 == 0 else 1)]
        name = "twin-0" if number in {7, 8} else f"pod-{number}"
        pod = Pod(uid, name, NODE, frozenset(labels), self.cids(uid))
        self.pods[uid] = pod
        return pod

    def cids(self, uid: str) -> tuple[str, ...]:
        """The ids as a kubelet gives them."""
        return tuple(box.uri_as("containerd") for box in self.boxes[uid])

    def pids(self, uid: str) -> frozenset[int]:
        """The init processes of a pod."""
        return frozenset(box.pid for box in self.boxes[uid])

    def named(self, name: str) -> str:
        """The uid of a pod."""
        return next(uid for uid, pod in self.pods.items() if pod.name == name)


class Play(ABC):
    """The node, the controller and the daemon of one test."""

    service: ClassVar[Service]
    flags: ClassVar[tuple[str, ...]]
    noun: ClassVar[str]
    """The key of a resource's name in a line."""

    def __init__(self) -> None:
        self.daemon = self._start()
        self.truth = Truth()
        self.node = Node(self.truth)
        self.controller = Controller(self.service, poll_s=POLL_S, retry_s=RETRY_S, on_poll=self.truth.check)
        self.controller.connect(self.daemon.channel)
        self._probes = itertools.count()
        self._expected: Counter[tuple[str, str, str, str]] = Counter()

    def _start(self) -> Daemon:
        return Daemon("-log=json", *self.flags).__enter__()

    def close(self) -> None:
        """End all; the daemon first, which may refuse us what is in the containers."""
        self.daemon.close()
        self.controller.close()
        self.node.close()

    @staticmethod
    @abstractmethod
    def subject(*paths: str) -> Subject:
        """What to do with folders and the files in them."""

    @abstractmethod
    def use(self, file: Path, names: AbstractSet[str]) -> None:
        """Make one event for each of the resources of these names, of which each means the file's folder."""

    @staticmethod
    @abstractmethod
    def file(event: Mapping[str, str]) -> str:
        """The name of the file that a line is about."""

    @abstractmethod
    def settle_counts(self) -> None:
        """Wait until all that was told is counted, where something is."""

    @contextmanager
    def changing(self, *uids: str) -> Iterator[None]:
        """Nothing is said of these pods until the controller has been told of all their containers."""
        for uid in uids:
            self.truth.unsettle(uid, self.node.pods[uid].name)
        yield
        for uid in uids:
            self.settle(uid)

    def settle(self, uid: str) -> None:
        """Wait until each watcher of a pod was created with all its containers, or none is there any more."""
        pids = self.node.pids(uid) if self.node.watchers.get(uid) else frozenset()
        for name in self.node.watchers.get(uid, ()):
            wanted = (uid, name)
            until(lambda wanted=wanted: frozenset(self.controller.created.get(wanted, ())) == pids, f"{wanted} created")  # type: ignore[misc]  # of any type
        self.truth.settle(uid, self.node.pods[uid].name, pids)

    def another_poll(self) -> None:
        """Wait until a poll has begun and ended."""
        polls = self.controller.polls
        until(lambda: self.controller.polls > polls + 1, "another poll")

    def probe(self, folder: str = "data", watchers: AbstractSet[str] = frozenset({"web", "db", "both"})) -> None:
        """One file in every container: a line for each resource that means it, and no other.

        ``watchers`` are those that mean the folder.
        """
        number = next(self._probes)
        for uid, boxes in self.node.boxes.items():
            pod, names = self.node.pods[uid].name, self.node.watchers[uid] & watchers
            for box in boxes:
                file = f"probe-{number}-{box.id[:12]}"
                self.use(box.rootfs / folder / file, names)
                self._expected.update((pod, watcher, box.id, file) for watcher in names)
        until(lambda: sum(self.probed().values()) >= sum(self._expected.values()), "as many lines as there were probes")
        self.settle_counts()
        assert self.probed() == self._expected

    def probed(self) -> Counter[tuple[str, str, str, str]]:
        """The lines of all probes so far: one that should not be may come late."""
        events = [(event, self.file(event)) for event in self.daemon.events]
        return Counter(
            (event["pod"], event[self.noun], event["container"], file)
            for event, file in events
            if file.startswith("probe-")
        )

    def new_daemon(self) -> None:
        """Another daemon takes the place of the one that has ended."""
        self._expected.clear()
        self.daemon = self._start()
        self.controller.connect(self.daemon.channel)

    def check(self) -> None:
        """No poll so far was wrong."""
        self.another_poll()
        assert not self.truth.errors, "\n".join(self.truth.errors)


class WatchPlay(Play):
    """With argusd: files that are made are reported, and counted."""

    service = WATCHES
    flags = ("-services=argus",)
    noun = "watcher"

    @staticmethod
    def subject(*paths: str) -> Subject:
        return argus_pb2.ArgusWatcherSubject(path=paths, event=["create"], recursive=True)

    def use(self, file: Path, names: AbstractSet[str]) -> None:
        del names
        file.touch()

    @staticmethod
    def file(event: Mapping[str, str]) -> str:
        return event["file"]

    def settle_counts(self) -> None:
        connection = self.controller.connection
        assert connection
        until(lambda: connection.counts == self._counts(), "metrics as many as lines")

    def _counts(self) -> Counter[tuple[str, str, str]]:
        """What the metrics of this daemon must come to."""
        return Counter((event["watcher"], event["event"].lower(), event["node"]) for event in self.daemon.events)


class GuardPlay(Play):
    """With janusd: files that are guarded cannot be opened, the others can."""

    service = GUARDS
    flags = ("-services=janus",)
    noun = "guard"

    @staticmethod
    def subject(*paths: str) -> Subject:
        return janus_pb2.JanusGuardSubject(deny=paths, event=["open"])

    def use(self, file: Path, names: AbstractSet[str]) -> None:
        with pytest.raises(PermissionError) if names else nullcontext():
            file.touch()

    @staticmethod
    def file(event: Mapping[str, str]) -> str:
        return Path(event["path"]).name

    def settle_counts(self) -> None:
        pass  # there is no RecordMetrics
