"""Calls that wait for containers: who is looked for when, and who waits for whom."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from argusd import finding
from argusd.containers import AmbiguousId, Container
from argusd.finding import Finder
from argusd.proto import argus_pb2
from argusd.refusals import NoContainerError
from argusd.subjects import Request, Subject, parse_watch
from tests.waiting import until_in_loop


def request(*cids: str) -> Request[Subject]:
    subject = argus_pb2.ArgusWatcherSubject(path=["/x"], event=["create"])
    return parse_watch(argus_pb2.ArgusdConfig(name="w", nodeName="n", podName="p", cid=cids, subject=[subject]))


def new_id() -> str:
    return secrets.token_hex(32)


class Node:
    """Stands for the search in /proc; each container is this very process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.running: set[str] = set()
        self.ambiguous: set[str] = set()
        self.looks: list[int] = []
        monkeypatch.setattr(finding, "find", self.find)
        monkeypatch.setattr(Container, "set_up", lambda _: True)

    def find(self, ids: Sequence[str]) -> dict[str, Container]:
        """As containers.find()."""
        self.looks.append(len(ids))
        for one in ids:
            if one in self.ambiguous:
                raise AmbiguousId(one, ["a", "b"])
        return {one: Container(one, os.getpid(), 1, os.pidfd_open(os.getpid())) for one in ids if one in self.running}


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(monkeypatch)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def found(finder: Finder, *cids: str, within_s: float = 5.0) -> list[str]:
    """The ids of what a call finds."""
    loop = asyncio.get_running_loop()
    containers = await finder.containers_of(request(*cids), loop.time() + within_s)
    for container in containers:
        container.close()
    return [container.id for container in containers]


def test_calls_that_wait_share_a_look_and_hold_up_no_other(node: Node) -> None:
    good = [new_id() for _ in range(3)]
    node.running.update(good)

    async def many() -> float:
        finder = Finder()
        waiting = [asyncio.create_task(found(finder, new_id(), within_s=1.0)) for _ in range(1000)]
        await asyncio.sleep(0)
        begin = time.monotonic()
        assert [await found(finder, one) for one in good] == [[one] for one in good]
        took_s = time.monotonic() - begin
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(outcome, NoContainerError) for outcome in outcomes)
        return took_s

    before = open_descriptors()
    assert asyncio.run(many()) < 1
    assert len(node.looks) < 30
    assert open_descriptors() == before


def test_a_container_that_comes_while_a_call_waits_is_found(node: Node) -> None:
    late = new_id()

    async def wait() -> list[str]:
        call = asyncio.create_task(found(Finder(), late))
        await until_in_loop(lambda: bool(node.looks))
        node.running.add(late)
        return await call

    assert asyncio.run(wait()) == [late]


def test_what_is_wrong_with_one_call_is_not_told_to_another(node: Node) -> None:
    good, bad = new_id(), new_id()
    node.running.add(good)
    node.ambiguous.add(bad)

    async def both() -> tuple[list[str] | BaseException, list[str] | BaseException]:
        finder = Finder()
        return await asyncio.gather(found(finder, good), found(finder, bad), return_exceptions=True)

    assert asyncio.run(both())[0] == [good]
    assert isinstance(asyncio.run(both())[1], AmbiguousId)


def test_a_call_that_is_cancelled_leaves_nothing_behind(node: Node) -> None:
    async def cancel() -> None:
        finder = Finder()
        call = asyncio.create_task(found(finder, new_id()))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        good = new_id()
        node.running.add(good)
        assert await found(finder, good) == [good]

    asyncio.run(cancel())
