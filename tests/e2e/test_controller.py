"""Thirty pods through their lives, watched or guarded, under a controller that calls as the Go controllers do."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import pytest

from demo.container import missing_for_runc
from tests.e2e.controller import Pod, Resource, edited
from tests.e2e.pods import NODE, GuardPlay, Play, WatchPlay, until

pytestmark = pytest.mark.skipif(bool(missing_for_runc()), reason=missing_for_runc() or "containers can run here")

PODS: Final = 30


@pytest.fixture(params=[WatchPlay, GuardPlay])
def play(request: pytest.FixtureRequest) -> Iterator[Play]:
    play = request.param()
    yield play
    play.close()


def test_thirty_pods_through_their_lives(play: Play) -> None:
    web, db, both = (Resource(name, name, (play.subject("/data"),)) for name in ("web", "db", "both"))
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
    play.controller.delete_watcher("db")  # nothing is sent: its pods stay as they are
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
    """One of two ends: the pod is left out until the new one is there, which is sent when the pod is Ready again."""
    for uid in [uid for uid, boxes in play.node.boxes.items() if len(boxes) == 2]:
        first, second = play.node.boxes[uid]
        pod = play.node.pods[uid]
        with play.changing(uid):
            first.kill()
            play.node.boxes[uid] = [second]
            play.truth.settle(uid, pod.name, frozenset())
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


def edit_watchers(play: Play, web: Resource, both: Resource) -> None:
    """An edit of the second watcher of a pod has it watched twice from then on."""
    shared = [uid for uid, pod in play.node.pods.items() if "both" in pod.labels]
    for uid in shared:
        play.node.watchers[uid] |= {"both"}
    # The pods do not change: all polls in between must bring them.
    for name in ("web", "both"):
        for uid in play.node.pods:
            play.controller.created.pop((uid, name), None)
    play.controller.edit_watcher(edited(web, play.subject("/data"), play.subject("/root")))
    play.controller.edit_watcher(edited(both, play.subject("/data", "/root")))
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
    """Another daemon knows of nothing. What the deleted resource meant is not taken up again."""
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
