"""Identity, difference and container end, with real processes and an engine that only takes notes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from argusd import arming, privileges
from argusd.arming import Arming
from argusd.containers import Container, open_pid
from argusd.kinds import PodKey, WatchKind
from argusd.metrics import Metrics
from argusd.refusals import AccessDeniedError, LimitReachedError, NoContainerError, OutOfTimeError
from argusd.registry import Entry, Handle, Member, Registry, container_sets, matching, to_destroy
from argusd.subjects import Request, Subject
from argusd.templates import compile_format
from tests.unit.fake_engine import FakeEngine
from tests.waiting import until_in_loop

WAIT_S = 10.0
LATER_S = 3600.0


class Pods:
    """Processes that stand for containers."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> int:
        self._processes.append(subprocess.Popen(["sleep", "infinity"]))
        return self._processes[-1].pid

    def end(self, pid: int) -> None:
        process = next(process for process in self._processes if process.pid == pid)
        process.kill()
        process.wait()

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture(autouse=True, params=["pidfd", "no pidfd"])
def handle(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What holds a process; without pidfds its end must be looked for."""

    def refuse(_pid: int, _flags: int = 0) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    if request.param != "pidfd":
        monkeypatch.setattr(os, "pidfd_open", refuse)


@pytest.fixture
def pods() -> Iterator[Pods]:
    with contextlib.closing(Pods()) as pods:
        yield pods


def subject(*paths: str, mask: int = 0x100) -> Subject:
    return Subject(
        paths=paths, mask=mask, ignore=(), only_dir=False, recursive=False, max_depth=0, follow_move=False, tags=()
    )


def request(*subjects: Subject, name: str = "w", pod: str = "p", node: str = "n") -> Request[Subject]:
    return Request(
        name=name,
        node_name=node,
        pod_name=pod,
        pids=(),
        cids=(),
        subjects=subjects or (subject("/d"),),
        template=compile_format(""),
        warnings=(),
    )


class Setup:
    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.metrics = Metrics(self.engine, ("access",))
        self.registry = Registry(Arming(self.engine, WatchKind(self.engine, self.metrics)))

    async def create(self, wanted: Request[Subject], *pids: int, within_s: float = LATER_S) -> Handle:
        answer_by = asyncio.get_running_loop().time() + within_s
        return await self.registry.create(wanted, [open_pid(pid) for pid in pids], answer_by)

    async def destroy(self, node: str, pod: str, name: str, *pids: int) -> None:
        await self.registry.destroy(PodKey(node, pod, name), pids)


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


# Pure choices.


def watch(name: str, *pids: int, pod: str = "p", node: str = "n") -> Entry[Subject]:
    members: dict[tuple[int, int], Member[Subject]] = {(pid, 1): Member(Container("", pid, 1, -1), ()) for pid in pids}
    return Entry(PodKey(node, pod, name), 1, members)


def test_same_key_and_a_common_container_is_the_same_watch() -> None:
    ours, other_pod, other_name = watch("w", 1, 2), watch("w", 3), watch("v", 1)
    watches = [ours, other_pod, other_name]
    assert matching(watches, PodKey("n", "p", "w"), [(2, 1), (9, 1)]) == [ours]
    assert matching(watches, PodKey("n", "p", "w"), [(9, 1)]) == []
    assert matching(watches, PodKey("m", "p", "w"), [(1, 1)]) == []


def test_a_reused_pid_is_another_container() -> None:
    assert matching([watch("w", 1)], PodKey("n", "p", "w"), [(1, 2)]) == []


def test_container_sets_join_through_common_containers() -> None:
    a, b, c, d = watch("a", 1), watch("b", 2), watch("c", 1, 2), watch("d", 3)
    assert container_sets([a, b, c, d]) == [[a, b, c], [d]]


def test_destroy_by_pod_ignores_pids_while_the_name_is_unique() -> None:
    a, b, other = watch("a", 1), watch("b", 1), watch("a", 5, pod="q")
    assert to_destroy([a, b, other], PodKey("n", "p", ""), [5, 99]) == ([a, b], False)
    assert to_destroy([a, b, other], PodKey("n", "p", "b"), []) == ([b], False)
    assert to_destroy([a, b, other], PodKey("m", "p", ""), [1]) == ([], False)


def test_destroy_of_a_pod_name_that_two_pods_have_goes_by_pid() -> None:
    one, also_one, two = watch("a", 1, 2), watch("b", 2), watch("a", 3)
    watches = [one, also_one, two]
    assert to_destroy(watches, PodKey("n", "p", ""), [1]) == ([one, also_one], False)
    assert to_destroy(watches, PodKey("n", "p", ""), [3]) == ([two], False)
    assert to_destroy(watches, PodKey("n", "p", ""), [9]) == ([], True)
    assert to_destroy(watches, PodKey("n", "p", ""), []) == ([], True)


def test_destroy_without_a_pod_goes_by_pid() -> None:
    a, b = watch("a", 1), watch("b", 2, pod="q")
    assert to_destroy([a, b], PodKey("n", "", ""), [2]) == ([b], False)
    assert to_destroy([a, b], PodKey("n", "", ""), []) == ([], False)


# On the loop.


@pytest.mark.asyncio
async def test_create_arms_each_subject_in_each_container(pods: Pods) -> None:
    setup, first, second = Setup(), pods.start(), pods.start()
    handle = await setup.create(request(subject("/a"), subject("/b", "/c")), first, second)
    assert handle == Handle("n", "p", (first, second))
    assert setup.engine.watched() == {(pid, paths) for pid in (first, second) for paths in ((b"/a",), (b"/b", b"/c"))}
    assert len(setup.engine.switches) == 1
    assert setup.registry.state() == [handle]


@pytest.mark.asyncio
async def test_same_config_again_touches_nothing(pods: Pods) -> None:
    setup, pid = Setup(), pods.start()
    await setup.create(request(), pid)
    before = open_descriptors()
    assert await setup.create(request(), pid) == Handle("n", "p", (pid,))
    assert len(setup.engine.subjects) == 1
    assert len(setup.engine.switches) == 1
    assert open_descriptors() == before


@pytest.mark.asyncio
async def test_update_is_one_switch_of_what_differs(pods: Pods) -> None:
    setup, pid = Setup(), pods.start()
    await setup.create(request(subject("/stays"), subject("/goes")), pid)
    await setup.create(request(subject("/comes"), subject("/stays")), pid)
    assert setup.engine.watched() == {(pid, (b"/stays",)), (pid, (b"/comes",))}
    assert setup.engine.switches[1:] == [([3], [2])]


@pytest.mark.asyncio
async def test_a_container_that_is_not_asked_for_any_more_goes(pods: Pods) -> None:
    setup, first, second = Setup(), pods.start(), pods.start()
    await setup.create(request(), first, second)
    await setup.create(request(), second)
    assert setup.engine.watched() == {(second, (b"/d",))}
    assert setup.registry.state() == [Handle("n", "p", (second,))]


@pytest.mark.asyncio
async def test_two_pods_of_one_name_are_two_watches(pods: Pods) -> None:
    setup, first, second = Setup(), pods.start(), pods.start()
    await setup.create(request(), first)
    await setup.create(request(), second)
    assert sorted(handle.pids for handle in setup.registry.state()) == sorted([(first,), (second,)])
    await setup.destroy("n", "p", "", second)
    assert setup.registry.state() == [Handle("n", "p", (first,))]


@pytest.mark.asyncio
async def test_two_watchers_on_one_pod_are_one_handle(pods: Pods) -> None:
    setup, pid = Setup(), pods.start()
    await setup.create(request(name="a"), pid)
    await setup.create(request(name="b"), pid)
    assert setup.registry.state() == [Handle("n", "p", (pid,))]
    await setup.destroy("n", "p", "a")
    assert setup.registry.state() == [Handle("n", "p", (pid,))]
    assert len(setup.engine.on) == 1


@pytest.mark.asyncio
async def test_limit_takes_back_what_was_armed_and_keeps_the_old_watch(pods: Pods) -> None:
    setup, pid = Setup(), pods.start()
    await setup.create(request(subject("/old")), pid)
    before = open_descriptors()

    def walk(number: int) -> None:
        if setup.engine.subjects[number][1] == (b"/too-much",):
            raise OSError(errno.ENOSPC, "no space")

    setup.engine.walk = walk
    with pytest.raises(LimitReachedError, match=r"fs\.inotify\.max_user_watches is \d+"):
        await setup.create(request(subject("/new"), subject("/too-much")), pid)
    assert setup.engine.watched() == {(pid, (b"/old",))}
    assert setup.engine.freed == {2, 3}
    assert open_descriptors() == before


@pytest.mark.asyncio
async def test_a_long_walk_goes_on_behind_the_answer(pods: Pods, caplog: pytest.LogCaptureFixture) -> None:
    setup, pid, go_on = Setup(), pods.start(), threading.Event()

    def walk(_number: int) -> None:
        go_on.wait(WAIT_S)

    setup.engine.walk = walk
    caplog.set_level("INFO", "argusd")
    await setup.create(request(), pid, within_s=0)
    assert setup.engine.watched() == {(pid, (b"/d",))}
    assert "is done" not in caplog.text
    go_on.set()
    await until_in_loop(lambda: "Walk of /d" in caplog.text)


@pytest.mark.asyncio
async def test_what_has_not_begun_is_an_error_and_others_do_not_wait(
    pods: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arming, "_TURN_S", 0.01)
    setup, silent, healthy, go_on = Setup(), pods.start(), pods.start(), threading.Event()
    silent_walks: list[int] = []

    def walk(number: int) -> None:
        if setup.engine.subjects[number][0] == silent:
            silent_walks.append(number)
            go_on.wait(WAIT_S)

    setup.engine.walk = walk
    many = request(*(subject(f"/silent/{number}") for number in range(70)))
    refused = asyncio.ensure_future(setup.create(many, silent, within_s=1))
    try:
        await until_in_loop(lambda: len(silent_walks) >= arming._MOST_STUCK)
        assert (await setup.create(request(name="v"), healthy)).pids == (healthy,)
        with pytest.raises(OutOfTimeError, match=rf"process {silent} does not answer: '/silent/\d'"):
            await refused
    finally:
        go_on.set()
    assert setup.engine.watched() == {(healthy, (b"/d",))}
    assert len(silent_walks) == arming._MOST_STUCK


@pytest.mark.asyncio
async def test_long_walks_that_make_progress_all_begin(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arming, "_TURN_S", 0.01)
    setup, pid, go_on = Setup(), pods.start(), threading.Event()
    steps = itertools.count(1)
    setup.engine.walk = lambda _number: cast("None", go_on.wait(WAIT_S))
    monkeypatch.setattr(setup.engine, "walked", lambda _number: (next(steps), 0))
    many = request(*(subject(f"/large/{number}") for number in range(12)))
    try:
        await setup.create(many, pid, within_s=1)
        assert len(setup.engine.watched()) == 12
    finally:
        go_on.set()


@pytest.mark.asyncio
async def test_a_walk_that_is_silent_for_long_is_reported_once(
    pods: Pods, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(arming, "_TURN_S", 0.01)
    monkeypatch.setattr(arming, "_LOOK_S", 0.01)
    monkeypatch.setattr(arming, "_SILENT_S", 0.05)
    setup, pid, go_on = Setup(), pods.start(), threading.Event()
    setup.engine.walk = lambda _number: cast("None", go_on.wait(WAIT_S))
    try:
        await setup.create(request(), pid, within_s=0)
        await until_in_loop(lambda: "does not answer" in caplog.text)
        (warning,) = [record.getMessage() for record in caplog.records if "does not answer" in record.getMessage()]
        assert warning.startswith(f"A file system in process {pid} does not answer: '/d' ('/' is ")
        assert warning.endswith(" is not watched until it does (p:n)")
    finally:
        go_on.set()


@pytest.mark.asyncio
async def test_container_end_drops_its_part_and_then_the_watch(pods: Pods) -> None:
    setup, first, second = Setup(), pods.start(), pods.start()
    before = open_descriptors()
    await setup.create(request(), first, second)
    pods.end(first)
    assert setup.registry.state() == []  # also before the loop has turned
    await until_in_loop(lambda: setup.engine.watched() == {(second, (b"/d",))})
    assert setup.registry.state() == []
    assert setup.registry.armed() == ["(p:n)"]
    pods.end(second)
    await until_in_loop(lambda: not setup.engine.on)
    assert setup.registry.state() == []
    await until_in_loop(lambda: not setup.metrics._counters)
    assert open_descriptors() == before


@pytest.mark.asyncio
async def test_container_that_ends_while_it_is_armed_is_not_watched(pods: Pods) -> None:
    setup, first, second = Setup(), pods.start(), pods.start()

    def walk(number: int) -> None:
        if setup.engine.subjects[number][0] == first:
            raise ProcessLookupError

    setup.engine.walk = walk
    assert (await setup.create(request(), first, second)).pids == (second,)
    with pytest.raises(NoContainerError):
        await setup.create(request(name="v"), first)
    assert setup.engine.watched() == {(second, (b"/d",))}


@pytest.mark.asyncio
async def test_old_watch_that_ends_during_its_update_leaves_nothing(pods: Pods) -> None:
    setup, first, second = Setup(), pods.start(), pods.start()
    before = open_descriptors()
    await setup.create(request(subject("/a")), first, second)
    arming, go_on = threading.Event(), threading.Event()

    def walk(_number: int) -> None:
        arming.set()
        go_on.wait(WAIT_S)

    setup.engine.walk = walk
    update = asyncio.ensure_future(setup.create(request(subject("/a"), subject("/b")), first, second))
    await until_in_loop(arming.is_set)
    pods.end(first)
    await until_in_loop(lambda: setup.registry.state() == [])
    go_on.set()
    await update
    assert setup.registry.state() == []
    assert (await setup.create(request(subject("/a"), subject("/b")), second)).pids == (second,)
    assert setup.registry.state() == [Handle("n", "p", (second,))]
    await until_in_loop(lambda: setup.engine.watched() == {(second, (b"/a",)), (second, (b"/b",))})
    await setup.destroy("n", "p", "")
    assert setup.engine.on == set()
    assert set(setup.engine.subjects) == setup.engine.freed
    assert open_descriptors() == before


@pytest.mark.asyncio
async def test_missing_path_is_one_line_and_not_an_error(pods: Pods, caplog: pytest.LogCaptureFixture) -> None:
    setup, pid = Setup(), pods.start()
    setup.engine.errors[b"/none"] = errno.ENOENT
    caplog.set_level("INFO", "argusd")
    await setup.create(request(subject("/none", "/d")), pid)
    assert caplog.text.count("does not exist") == 1


@pytest.mark.asyncio
async def test_a_path_that_is_closed_to_everybody_is_a_warning(
    pods: Pods, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system may deny what the daemon has every right to: FUSE, NFS."""
    monkeypatch.setattr(privileges, "held", lambda: -1)
    setup, pid = Setup(), pods.start()
    setup.engine.errors[b"/fuse"] = errno.EACCES
    await setup.create(request(subject("/fuse", "/d")), pid)
    assert caplog.text.count("cannot be watched (p:n): Permission denied") == 1
    assert setup.engine.watched() == {(pid, (b"/fuse", b"/d"))}


@pytest.mark.asyncio
async def test_a_path_that_is_closed_to_the_daemon_alone_refuses_all(
    pods: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(privileges, "held", lambda: 0)
    setup, pid = Setup(), pods.start()
    setup.engine.errors[b"/closed"] = errno.EACCES
    with pytest.raises(AccessDeniedError, match=r"'/closed' in process .* lacks CAP_DAC_READ_SEARCH"):
        await setup.create(request(subject("/d"), subject("/closed")), pid)
    assert setup.engine.on == set()
    assert set(setup.engine.subjects) == setup.engine.freed


@pytest.mark.asyncio
async def test_destroy_waits_for_a_create_of_the_same_pod(pods: Pods) -> None:
    setup, pid, arming, go_on = Setup(), pods.start(), threading.Event(), threading.Event()

    def walk(_number: int) -> None:
        arming.set()
        go_on.wait(WAIT_S)

    setup.engine.walk = walk
    create = asyncio.ensure_future(setup.create(request(), pid))
    await until_in_loop(arming.is_set)
    destroy = asyncio.ensure_future(setup.destroy("n", "p", ""))
    await asyncio.sleep(0)
    assert not destroy.done()
    go_on.set()
    await asyncio.gather(create, destroy)
    assert setup.registry.state() == []
    assert setup.engine.on == set()
