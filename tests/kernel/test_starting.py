"""A container that is just being started, by a real runtime, is its init in a root of its own, or nothing."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import NamedTuple, Self

import pytest

from argusd.containers import find
from tests.containers import RuncContainer, needs_runc
from tests.kernel.cgroups import until

STARTS = 10
AT_MOST = 50


class Seen(NamedTuple):
    """What stood for a container at some moment."""

    set_up: bool
    pid: int
    root: tuple[int, int] | None


class Looking:
    """A thread that looks for a container all the time."""

    def __init__(self, full: str) -> None:
        self.seen: list[Seen] = []
        self._full = full
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="looking")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.is_set():
            for container in find([self._full]).values():
                self.seen.append(Seen(container.set_up(), container.pid, root_of(container.pid)))
                container.close()


def root_of(pid: int) -> tuple[int, int] | None:
    """Device and inode of what a process has as its root."""
    try:
        root = Path(f"/proc/{pid}/root").stat()
    except FileNotFoundError:
        return None
    return root.st_dev, root.st_ino


@needs_runc
def test_a_runtime_at_work_is_not_taken_for_its_container() -> None:
    """It works its way through several processes, and has the init itself for a while in the node's root."""
    not_yet = 0
    for start in range(AT_MOST):
        box = RuncContainer()
        with Looking(box.id) as looking, box:
            until(lambda seen=looking.seen: any(one.set_up for one in seen), "it is found")  # type: ignore[misc]  # of any type
            pid = box.pid
        ready = [one for one in looking.seen if one.set_up]
        assert {one.pid for one in ready} == {pid}
        assert root_of(os.getpid()) not in {one.root for one in ready}
        not_yet += len(looking.seen) - len(ready)
        if not_yet and start + 1 >= STARTS:
            return
    pytest.fail("the runtime was never caught at work: this test shows nothing")
