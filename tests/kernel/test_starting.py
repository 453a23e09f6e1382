"""A container that is just being started, by a real runtime, is its init in a root of its own, or nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import pytest

from argusd.containers import find
from tests.containers import RuncContainer, needs_runc
from tests.kernel.background import Background
from tests.waiting import until

STARTS = 10
AT_MOST = 50


class Seen(NamedTuple):
    """What stood for a container at some moment."""

    set_up: bool
    pid: int
    root: tuple[int, int] | None


def root_of(pid: int) -> tuple[int, int] | None:
    """Device and inode of what a process has as its root."""
    try:
        root = Path(f"/proc/{pid}/root").stat()
    except FileNotFoundError:
        return None
    return root.st_dev, root.st_ino


def start_and_look() -> tuple[int, list[Seen]]:
    """Start a container while a thread looks for it all the time; its init, and what was seen until it had ended."""
    box = RuncContainer()
    seen: list[Seen] = []

    def look() -> None:
        for container in find([box.id]).values():
            seen.append(Seen(container.set_up(), container.pid, root_of(container.pid)))
            container.close()

    with Background(look), box:
        until(lambda: any(one.set_up for one in seen), "it is found")
        return box.pid, seen


@needs_runc
def test_a_runtime_at_work_is_not_taken_for_its_container() -> None:
    """It works its way through several processes, and has the init itself for a while in the node's root."""
    not_yet = 0
    for start in range(AT_MOST):
        pid, seen = start_and_look()
        ready = [one for one in seen if one.set_up]
        assert {one.pid for one in ready} == {pid}
        assert root_of(os.getpid()) not in {one.root for one in ready}
        not_yet += len(seen) - len(ready)
        if not_yet and start + 1 >= STARTS:
            return
    pytest.fail("the runtime was never caught at work: this test shows nothing")
