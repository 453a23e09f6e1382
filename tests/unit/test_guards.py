"""Guards in the registry, with real processes and an engine that only takes notes: what differs from watches."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import threading
from collections.abc import Iterator
from typing import cast

import pytest

from argusd import arming, privileges
from argusd._fanotify import GuardError, Guards
from argusd.arming import Arming
from argusd.containers import open_pid
from argusd.kinds import GuardKind, PodKey, WatchKind
from argusd.metrics import Metrics
from argusd.refusals import (
    AccessDeniedError,
    CannotGuardError,
    LimitReachedError,
    OutOfTimeError,
    RequestRefusedError,
)
from argusd.registry import Handle, Registry
from argusd.subjects import GuardSubject, Request
from argusd.templates import DEFAULT_GUARD_TEMPLATE
from tests.unit.fake_engine import FakeEngine
from tests.unit.test_registry import LATER_S, WAIT_S, Pods, open_descriptors
from tests.unit.test_registry import request as watch_request
from tests.waiting import until_in_loop

EVERYTHING = -1


@pytest.fixture
def pods() -> Iterator[Pods]:
    with contextlib.closing(Pods()) as pods:
        yield pods


def subject(*deny: str, allow: tuple[str, ...] = (), only_dir: bool = False) -> GuardSubject:
    return GuardSubject(
        deny=deny, allow=allow, mask=0x10000, only_dir=only_dir, auto_allow_owner=False, audit=False, tags=()
    )


def request(*subjects: GuardSubject, name: str = "g", pod: str = "p") -> Request[GuardSubject]:
    return Request(name, "n", pod, (), (), subjects or (subject("/d"),), DEFAULT_GUARD_TEMPLATE, ())


class Setup:
    def __init__(self) -> None:
        self.engine = FakeEngine()
        kind = GuardKind(self.engine, cast("Guards", object()))  # the fake does not look at it
        self.arming = Arming(self.engine, kind)
        self.registry = Registry(self.arming)

    async def create(self, wanted: Request[GuardSubject], *pids: int, within_s: float = LATER_S) -> Handle:
        answer_by = asyncio.get_running_loop().time() + within_s
        return await self.registry.create(wanted, [open_pid(pid) for pid in pids], answer_by)

    async def refused(self, wanted: Request[GuardSubject], *pids: int, within_s: float = LATER_S) -> str:
        """The text of a refusal, after which everything must be as before."""
        state, on, descriptors = self.registry.state(), set(self.engine.on), open_descriptors()
        with pytest.raises(RequestRefusedError) as caught:
            await self.create(wanted, *pids, within_s=within_s)
        assert self.registry.state() == state
        assert self.engine.on == on
        assert set(self.engine.subjects) - self.engine.freed == on
        assert open_descriptors() == descriptors
        self.error = caught.value
        return str(caught.value)


def guard_error(step: str, code: int, path: str = "/d") -> GuardError:
    error = GuardError(code, os.strerror(code), path)
    error.step = step  # type: ignore[assignment]  # one of the words
    return error


@pytest.mark.asyncio
async def test_deny_and_allow_are_armed_in_each_container(pods: Pods, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "argusd")
    setup, first, second = Setup(), pods.start(), pods.start()
    handle = await setup.create(request(subject("/a", allow=("/b",))), first, second)
    assert handle == Handle("n", "p", (first, second))
    assert setup.engine.watched() == {(pid, (b"/a", b"/b")) for pid in (first, second)}
    assert setup.registry.state() == [handle]
    assert "Starting `fanotify` guard (p:n)" in caplog.text
    assert [record.__dict__["guard"] for record in caplog.records if "Starting" in record.message] == ["g"]
    await setup.registry.destroy(PodKey("n", "p", ""), [])
    assert "Stopping `fanotify` guard (p:n)" in caplog.text
    assert setup.engine.on == set()


@pytest.mark.asyncio
async def test_the_same_again_touches_nothing_and_a_change_is_one_switch(pods: Pods) -> None:
    setup, pid = Setup(), pods.start()
    await setup.create(request(subject("/stays"), subject("/goes")), pid)
    await setup.create(request(subject("/stays"), subject("/goes")), pid)
    assert len(setup.engine.switches) == 1
    await setup.create(request(subject("/stays"), subject("/goes", allow=("/x",))), pid)
    assert setup.engine.switches[1:] == [([3], [2])]


@pytest.mark.asyncio
async def test_what_is_not_guarded_in_time_is_an_error(pods: Pods) -> None:
    setup, pid, go_on = Setup(), pods.start(), threading.Event()
    setup.engine.walk = lambda _number: cast("None", go_on.wait(WAIT_S))
    try:
        assert "in time" in await setup.refused(request(), pid, within_s=0)
        assert isinstance(setup.error, OutOfTimeError)
    finally:
        go_on.set()


@pytest.mark.asyncio
async def test_containers_that_hang_keep_nobody_else_waiting(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arming, "_TURN_S", 0.01)
    setup, hanging, healthy, go_on = Setup(), pods.start(), pods.start(), threading.Event()

    def walk(number: int) -> None:
        if setup.engine.subjects[number][0] == hanging and not go_on.wait(WAIT_S):
            raise TimeoutError

    setup.engine.walk = walk
    try:
        for _ in range(arming._MOST_STUCK):
            assert "in time" in await setup.refused(request(), hanging, within_s=0)
        assert await setup.create(request(), healthy) == Handle("n", "p", (healthy,))
        text = await setup.refused(request(), hanging)  # at once, although it has all the time
        assert text == f"a file system in process {hanging} does not answer: '/d'"
    finally:
        go_on.set()
    await until_in_loop(lambda: not setup.arming._walks)
    assert await setup.create(request(), hanging) == Handle("n", "p", (hanging,))


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG])
@pytest.mark.asyncio
async def test_a_path_where_nothing_is_costs_a_line(pods: Pods, caplog: pytest.LogCaptureFixture, code: int) -> None:
    caplog.set_level(logging.INFO, "argusd")
    setup, pid = Setup(), pods.start()
    setup.engine.errors[b"/none"] = code
    await setup.create(request(subject("/none", allow=("/b",))), pid)
    lines = [record.message for record in caplog.records if "/none" in record.message]
    assert len(lines) == 1
    assert "guarded" in lines[0]


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("path", ["/deny", "/allow"])
@pytest.mark.asyncio
async def test_a_path_that_cannot_be_guarded_refuses_all(
    pods: Pods, monkeypatch: pytest.MonkeyPatch, code: int, path: str
) -> None:
    monkeypatch.setattr(privileges, "held", lambda: EVERYTHING)
    setup, pid = Setup(), pods.start()
    setup.engine.errors[path.encode()] = code
    text = await setup.refused(request(subject("/d"), subject("/deny", allow=("/allow",))), pid)
    assert text == f"cannot guard '{path}' in process {pid}: {os.strerror(code)}"
    assert isinstance(setup.error, CannotGuardError)


@pytest.mark.parametrize(
    ("step", "code", "kind", "words"),
    [
        ("init", errno.EPERM, AccessDeniedError, "the daemon lacks CAP_SYS_ADMIN"),
        ("audit", errno.EPERM, AccessDeniedError, "the daemon lacks CAP_AUDIT_WRITE"),
        ("init", errno.EMFILE, LimitReachedError, "fs.fanotify.max_user_groups is "),
        ("audit", errno.EMFILE, LimitReachedError, "fs.fanotify.max_user_groups is "),
        ("init", errno.ENOMEM, LimitReachedError, os.strerror(errno.ENOMEM)),
        ("init", errno.ENOSYS, CannotGuardError, "CONFIG_FANOTIFY_ACCESS_PERMISSIONS"),
        ("init", errno.EINVAL, CannotGuardError, "CONFIG_FANOTIFY_ACCESS_PERMISSIONS"),
        ("audit", errno.EINVAL, CannotGuardError, "CONFIG_AUDITSYSCALL"),
    ],
)
@pytest.mark.asyncio
async def test_no_group_no_guard(
    pods: Pods, monkeypatch: pytest.MonkeyPatch, step: str, code: int, kind: type[Exception], words: str
) -> None:
    monkeypatch.setattr(privileges, "held", lambda: 0)
    setup, pid = Setup(), pods.start()
    await setup.create(request(subject("/old")), pid)
    setup.engine.refuse = guard_error(step, code)
    text = await setup.refused(request(subject("/old"), subject("/new")), pid)
    assert isinstance(setup.error, kind)
    assert words in text
    assert f"process {pid}" in text
    assert ("`audit`" in text) == (step == "audit" and code != errno.EMFILE)


@pytest.mark.asyncio
async def test_with_the_capability_it_is_somebody_else_who_forbids(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privileges, "held", lambda: EVERYTHING)
    setup, pid = Setup(), pods.start()
    setup.engine.refuse = guard_error("init", errno.EPERM)
    assert "although the daemon has CAP_SYS_ADMIN; a security module" in await setup.refused(request(), pid)


@pytest.mark.parametrize(
    ("step", "code", "kind", "words"),
    [
        ("mark", errno.ENOSPC, LimitReachedError, "fs.fanotify.max_user_marks is "),
        ("mark", errno.ENOMEM, LimitReachedError, os.strerror(errno.ENOMEM)),
        ("mark", errno.EOPNOTSUPP, CannotGuardError, "it lies on a file system"),
        ("mark", errno.EXDEV, CannotGuardError, "its file system cannot be guarded"),
        ("check", errno.EIO, CannotGuardError, "was not asked about (Input/output error)"),
        ("check", errno.ETIMEDOUT, CannotGuardError, "does not come back"),
    ],
)
@pytest.mark.asyncio
async def test_no_mark_no_guard(pods: Pods, step: str, code: int, kind: type[Exception], words: str) -> None:
    setup, first, second = Setup(), pods.start(), pods.start()

    def walk(number: int) -> None:
        if setup.engine.subjects[number][0] == second:
            raise guard_error(step, code, "/fuse")

    setup.engine.walk = walk
    text = await setup.refused(request(), first, second)
    assert isinstance(setup.error, kind)
    assert text.startswith(f"cannot guard '/fuse' in process {second}: ")
    assert words in text


@pytest.mark.asyncio
async def test_other_limits_are_named_as_for_watches(pods: Pods) -> None:
    setup, pid = Setup(), pods.start()

    def walk(_number: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    setup.engine.walk = walk
    assert "fs.inotify.max_user_watches is" in await setup.refused(request(), pid)


@pytest.mark.asyncio
async def test_container_end_drops_the_guard(pods: Pods) -> None:
    setup, pid = Setup(), pods.start()
    await setup.create(request(), pid)
    pods.end(pid)
    assert setup.registry.state() == []
    await until_in_loop(lambda: not setup.engine.on)


@pytest.mark.asyncio
async def test_watches_and_guards_of_one_pod_know_nothing_of_each_other(pods: Pods) -> None:
    setup, pid = Setup(), pods.start()
    metrics = Metrics(setup.engine, ("access",))
    watches = Registry(Arming(setup.engine, WatchKind(setup.engine, metrics)))
    await setup.create(request(name="same"), pid)
    answer_by = asyncio.get_running_loop().time() + LATER_S
    await watches.create(watch_request(name="same"), [open_pid(pid)], answer_by)
    assert len(setup.engine.on) == 2
    await watches.destroy(PodKey("n", "p", ""), [])
    assert watches.state() == []
    assert setup.registry.state() == [Handle("n", "p", (pid,))]
    assert setup.engine.on == {1}
