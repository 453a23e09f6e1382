"""When the end of a container is told, with real processes."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Callable, Iterator

import pytest

from argusd.containers import Container, open_pid
from argusd.ends import Ends
from tests.waiting import until_in_loop

Start = Callable[[], int]


@pytest.fixture(params=["pidfd", "no pidfd"], autouse=True)
def handle(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What holds a process."""

    def refuse(_pid: int, _flags: int = 0) -> int:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if request.param != "pidfd":
        monkeypatch.setattr(os, "pidfd_open", refuse)


@pytest.fixture
def start() -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def start() -> int:
            process = subprocess.Popen(["sleep", "infinity"])
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process.pid

        yield start


class Recorder:
    """Adds containers and notes the ends that are told; the first one may remove all the others."""

    def __init__(self) -> None:
        self.ends = Ends()
        self.told: list[Container] = []
        self.added: list[Container] = []
        self.remove_all = False

    def add(self, pid: int) -> Container:
        """Wait for the end of a process."""
        container = open_pid(pid)
        self.added.append(container)
        self.ends.add(container, lambda: self._ended(container))
        return container

    def remove(self, container: Container) -> None:
        """Do not wait for it any more."""
        self.added.remove(container)
        self.ends.remove(container)
        container.close()

    def _ended(self, container: Container) -> None:
        self.told.append(container)
        for one in list(self.added) if self.remove_all else [container]:
            self.remove(one)


def kill(*pids: int) -> None:
    """Kill processes and wait until they are zombies."""
    for pid in pids:
        os.kill(pid, 9)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


@pytest.mark.asyncio
async def test_each_end_is_told_once(start: Start) -> None:
    recorder, pids = Recorder(), [start() for _ in range(3)]
    for pid in (*pids, pids[0]):  # one of them twice
        recorder.add(pid)
    kill(pids[0])
    await until_in_loop(lambda: len(recorder.told) == 2)
    kill(pids[2])
    await until_in_loop(lambda: len(recorder.told) == 3)
    assert [container.pid for container in recorder.told] == [pids[0], pids[0], pids[2]]
    assert [container.pid for container in recorder.added] == [pids[1]]
    recorder.remove(recorder.added[0])


@pytest.mark.asyncio
async def test_what_was_removed_is_not_told_of(start: Start) -> None:
    recorder, first, second = Recorder(), start(), start()
    recorder.remove(recorder.add(first))
    recorder.add(second)
    kill(first, second)
    await until_in_loop(lambda: bool(recorder.told))
    assert [container.pid for container in recorder.told] == [second]


@pytest.mark.asyncio
async def test_one_end_may_remove_another_that_is_due_as_well(start: Start) -> None:
    recorder, pids = Recorder(), [start(), start()]
    recorder.remove_all = True
    for pid in pids:
        recorder.add(pid)
    kill(*pids)
    await until_in_loop(lambda: bool(recorder.told))
    recorder.add(start())  # with a descriptor that was used before
    kill(recorder.added[0].pid)
    await until_in_loop(lambda: len(recorder.told) == 2)
    assert recorder.told[1].pid not in pids


@pytest.mark.asyncio
async def test_nobody_looks_when_there_is_nothing_to_look_at(start: Start) -> None:
    recorder = Recorder()
    container = recorder.add(start())
    assert (recorder.ends._timer is None) == container.tells
    recorder.remove(container)
    await until_in_loop(lambda: recorder.ends._timer is None)
