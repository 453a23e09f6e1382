"""Thirty pods through their lives, under a controller that calls as the Go controller does."""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Final

import pytest

from argusd.proto import argus_pb2
from demo.container import ProcessContainer, missing_for_runc
from tests import waiting
from tests.containers import rootfs_template
from tests.daemon import Daemon
from tests.e2e.controller import ArgusWatcher, Controller, Pod, Poll, edited

pytestmark = pytest.mark.skipif(bool(missing_for_runc()), reason=missing_for_runc() or "containers can run here")

PODS: Final = 30
NODE: Final = "node-1"
POLL_S: Final = 0.25
RETRY_S: Final = 0.05
WAIT_S: Final = 30.0

until = functools.partial(waiting.until, timeout_s=WAIT_S)


def subject(*paths: str) -> argus_pb2.ArgusWatcherSubject:
    return argus_pb2.ArgusWatcherSubject(path=paths, event=["create"], recursive=True)


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


class Play:
    """The node, the controller and the daemon of one test."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.truth = Truth()
        self.node = Node(self.truth)
        self.controller = Controller(poll_s=POLL_S, retry_s=RETRY_S, on_poll=self.truth.check)
        self.controller.connect(daemon.channel)
        self._probes = itertools.count()
        self._expected: Counter[tuple[str, str, str, str]] = Counter()

    def close(self) -> None:
        """End all but the daemon."""
        self.controller.close()
        self.node.close()

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

    def probe(self, folder: str = "data", watchers: frozenset[str] = frozenset({"web", "db", "both"})) -> None:
        """One file in every container: a line for each watch that must be there, and no other; then the metrics.

        ``watchers`` are those that watch the folder.
        """
        number = next(self._probes)
        for uid, boxes in self.node.boxes.items():
            pod, names = self.node.pods[uid].name, self.node.watchers[uid] & watchers
            for box in boxes:
                file = f"probe-{number}-{box.id[:12]}"
                (box.rootfs / folder / file).touch()
                self._expected.update((pod, watcher, box.id, file) for watcher in names)
        connection = self.controller.connection
        assert connection
        until(lambda: sum(self.probed().values()) >= sum(self._expected.values()), "as many lines as there were probes")
        until(lambda: connection.counts == self.lines(), "metrics as many as lines")
        assert self.probed() == self._expected

    def probed(self) -> Counter[tuple[str, str, str, str]]:
        """The lines of all probes so far: one that should not be may come late."""
        events = (event for event in self.daemon.events if event["file"].startswith("probe-"))
        return Counter((event["pod"], event["watcher"], event["container"], event["file"]) for event in events)

    def lines(self) -> Counter[tuple[str, str, str]]:
        """What the metrics of this daemon must come to."""
        return Counter((event["watcher"], event["event"].lower(), event["node"]) for event in self.daemon.events)

    def new_daemon(self) -> None:
        """Another daemon takes the place of the one that has ended."""
        self._expected.clear()
        self.daemon = Daemon("-log=json").__enter__()
        self.controller.connect(self.daemon.channel)

    def check(self) -> None:
        """No poll so far was wrong."""
        self.another_poll()
        assert self.truth.errors == []


@pytest.fixture
def play() -> Iterator[Play]:
    with ExitStack() as stack:
        daemon = stack.enter_context(Daemon("-log=json"))
        play = Play(daemon)
        stack.callback(play.close)
        stack.callback(lambda: play.daemon.close())  # noqa: PLW0108  (it may be another one by then)
        yield play


def test_thirty_pods_through_their_lives(play: Play) -> None:
    web, db = ArgusWatcher("web", "web", (subject("/data"),)), ArgusWatcher("db", "db", (subject("/data"),))
    both = ArgusWatcher("both", "both", (subject("/data"),))
    for watcher in (web, db, both):
        play.controller.add_watcher(watcher)
    create_pods(play)
    play.probe()
    play.check()
    restart_a_container(play)
    restart_pods(play)
    play.probe()
    edit_watchers(play, web, both)
    play.probe()
    play.probe("root", frozenset({"web", "both"}))
    play.check()
    start_late(play)
    delete_pods(play)
    play.controller.delete_watcher("db")  # nothing is sent: its pods stay watched
    play.probe()
    play.check()
    restart_the_daemon(play)
    play.probe()
    play.check()
    print(f"\n{play.controller.polls} polls, {play.truth.checked} handles compared, {len(play.truth.errors)} wrong; "
          f"{len(play.controller.failures)} tries failed")  # fmt: skip


def create_pods(play: Play) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        pods = list(pool.map(play.node.make, range(PODS)))
    for pod in pods:
        play.node.watchers[pod.uid] = {"web" if "web" in pod.labels else "db"}
    with play.changing(*(pod.uid for pod in pods)):
        for pod in pods:
            play.controller.pod_changed(pod)


def restart_a_container(play: Play) -> None:
    """One of two ends: the pod still counts as watched. The new one is sent when the pod is Ready again."""
    for uid in [uid for uid, boxes in play.node.boxes.items() if len(boxes) == 2]:
        first, second = play.node.boxes[uid]
        pod = play.node.pods[uid]
        with play.changing(uid):
            first.kill()
            play.node.boxes[uid] = [second]
            play.truth.settle(uid, pod.name, frozenset({second.pid}))
            play.controller.pod_changed(replace(pod, ready=False))
            play.another_poll()
            play.truth.unsettle(uid, pod.name)
            play.node.boxes[uid] = [second, play.node.box(uid)]
            play.node.pods[uid] = replace(pod, cids=play.node.cids(uid))
            play.controller.pod_changed(play.node.pods[uid])


def restart_pods(play: Play) -> None:
    """All containers end: the next poll misses the pod. It comes back with others."""
    uids = [play.node.named(f"pod-{number}") for number in (1, 3, 6, 10, 11, 12)]
    for uid in uids:
        pod = play.node.pods[uid]
        play.truth.unsettle(uid, pod.name)
        play.controller.pod_changed(replace(pod, ready=False))
        for box in play.node.boxes[uid]:
            box.kill()
        play.truth.settle(uid, pod.name, frozenset())
    play.another_poll()
    with play.changing(*uids):
        for uid in uids:
            play.node.boxes[uid] = [play.node.box(uid) for _ in play.node.boxes[uid]]
            play.node.pods[uid] = replace(play.node.pods[uid], cids=play.node.cids(uid))
            play.controller.pod_changed(play.node.pods[uid])


def edit_watchers(play: Play, web: ArgusWatcher, both: ArgusWatcher) -> None:
    """An edit of the second watcher of a pod has it watched twice from then on."""
    shared = [uid for uid, pod in play.node.pods.items() if "both" in pod.labels]
    for uid in shared:
        play.node.watchers[uid] |= {"both"}
    # The pods do not change: all polls in between must bring them.
    for name in ("web", "both"):
        for uid in play.node.pods:
            play.controller.created.pop((uid, name), None)
    play.controller.edit_watcher(edited(web, subject("/data"), subject("/root")))
    play.controller.edit_watcher(edited(both, subject("/data", "/root")))
    for uid, pod in play.node.pods.items():
        if "web" in pod.labels:
            play.settle(uid)


def delete_pods(play: Play) -> None:
    """The pids in DestroyWatch are those of the pod that was created last: of another one."""
    for number in (2, 3, 13, 15):
        uid = play.node.named(f"pod-{number}")
        play.truth.unsettle(uid, f"pod-{number}")
        play.controller.pod_deleted(uid)
        play.node.watchers[uid] = set()
        play.truth.settle(uid, f"pod-{number}", frozenset())  # though its containers still run
    play.probe()
    for number in (2, 3, 13, 15):
        uid = play.node.named(f"pod-{number}")
        for box in play.node.boxes.pop(uid):
            box.kill()
        del play.node.pods[uid]
    # Of two pods with one name none goes, for the pids are of neither, but of the pod that came last.
    uid = play.node.named("twin-0")
    play.controller.pod_deleted(uid)
    play.daemon.wait_for_text("Several pods are called")
    play.truth.unsettle(uid, "twin-0")
    for box in play.node.boxes.pop(uid):
        box.kill()
    play.truth.settle(uid, "twin-0", frozenset())
    del play.node.pods[uid]
    del play.node.watchers[uid]
    play.probe()


def start_late(play: Play) -> None:
    """A pod whose container is not there yet when it is sent."""
    uid = "late"
    box = play.node.box(uid, start=False)
    play.node.boxes[uid] = [box]
    play.node.watchers[uid] = {"web"}
    play.node.pods[uid] = Pod(uid, "pod-late", NODE, frozenset({"web"}), play.node.cids(uid))
    with play.changing(uid):
        play.controller.pod_changed(play.node.pods[uid])
        play.another_poll()
        play.node.start(box)


def restart_the_daemon(play: Play) -> None:
    """Another daemon knows of nothing. What the deleted ArgusWatcher had watched is not watched again."""
    for uid, pod in play.node.pods.items():
        play.truth.unsettle(uid, pod.name)
    play.daemon.close()
    away = play.node.named("pod-1")
    play.controller.pod_changed(play.node.pods[away])
    until(lambda: play.controller.failures, "a try that fails")
    play.new_daemon()
    for uid, pod in play.node.pods.items():
        play.node.watchers[uid] = {"web"} if "web" in pod.labels else set()
    for uid in play.node.pods:
        play.settle(uid)
