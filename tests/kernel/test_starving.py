"""Watches that run out: what could not be watched is tried again, and no container takes those of others."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from argusd._inotify import EVENTS, Engine, Notice
from argusd._output import TEXT, Output
from argusd._records import Encoder
from argusd.templates import DEFAULT_WATCH_TEMPLATE
from tests import sysctls
from tests.kernel.test_engine import used_watches
from tests.kernel.test_lifetimes import processes
from tests.kernel.watching import Watching
from tests.waiting import until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to change sysctls"),
    pytest.mark.changes_sysctls,
]

DIRECTORIES = 40


class Starving:
    """An engine, and what it has said."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.said: list[Notice] = []

    def heard(self, kind: str) -> list[Notice]:
        """The notices of one kind so far."""
        self.said += self._engine.notices()
        return [notice for notice in self.said if notice.kind == kind]

    @property
    def waiting(self) -> int:
        return self._engine.statistics()["waiting"]


def make(folder: Path, first: int, count: int) -> None:
    for number in range(first, first + count):
        (folder / str(number)).mkdir()


def test_directories_beyond_the_limit_are_watched_when_there_is_room(watching: Watching, folder: Path) -> None:
    number = watching.watch(folder, EVENTS["CREATE"])
    starving = Starving(watching.engine)
    with sysctls.inotify("max_user_watches", used_watches() + 5):
        make(folder, 0, DIRECTORIES)
        until(lambda: starving.waiting == DIRECTORIES - 5, "some directories wait")
        for name in range(DIRECTORIES):
            (folder / str(name) / "early").touch()
        assert [(notice.subscription, notice.errno) for notice in starving.heard("limit")] == [(number, errno.ENOSPC)]
    until(lambda: starving.heard("watched"), "all is watched again")
    assert starving.waiting == 0
    assert len(starving.heard("limit")) == 1
    for name in range(DIRECTORIES):
        (folder / str(name) / "late").touch()
    watching.expect(3 * DIRECTORIES)  # each directory, and its file from before the watch, and the one from after it
    assert watching.counts() == {"create": 3 * DIRECTORIES}


def test_directories_that_are_gone_before_there_is_room_are_forgotten(watching: Watching, folder: Path) -> None:
    watching.watch(folder, EVENTS["CREATE"])
    starving = Starving(watching.engine)
    with sysctls.inotify("max_user_watches", used_watches()):
        for _ in range(5000):
            (folder / "x").mkdir()
            (folder / "x").rmdir()
        until(lambda: watching.engine.statistics()["nodes"] == 1, "all is seen to be gone")
        assert starving.waiting <= 2048
    until(lambda: starving.waiting == 0, "nothing waits")
    assert watching.engine.statistics()["nodes"] == 1


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Watching]:
    """An engine that gives one container a tenth of the watches."""
    watching = Watching.__new__(Watching)
    watching.log = tmp_path / "log"
    watching.output = Output()
    watching.output.add_file(str(watching.log), 1 << 30, TEXT)
    with sysctls.inotify("max_user_watches", used_watches() + 400):
        watching.engine = Engine(watching.output, watch_share=10)
        watching.engine.start()
        watching.counter = watching.engine.new_counter()
        yield watching
        watching.close()


def watch_as(watching: Watching, pid: int, pidfd: int, folder: Path) -> int:
    """Watch a tree in the name of another process."""
    number = watching.engine.subscribe(
        Encoder(DEFAULT_WATCH_TEMPLATE.segments, "p", "n", "w", "c", []),
        watching.counter, pid, pidfd, [os.fsencode(folder)], EVENTS["CREATE"], [], False, True, 0, False,
    )  # fmt: skip
    assert watching.engine.arm(number).errors == (0,)
    watching.engine.switch([number], [])
    return number


def test_a_container_with_its_share_waits_and_its_neighbour_does_not(shared: Watching, tmp_path: Path) -> None:
    greedy, modest = tmp_path / "greedy", tmp_path / "modest"
    greedy.mkdir()
    modest.mkdir()
    share = (used_watches() + 400) // 10
    starving = Starving(shared.engine)
    with processes(2) as ((one, one_fd), (other, other_fd)):
        number = watch_as(shared, one, one_fd, greedy)
        watch_as(shared, other, other_fd, modest)
        make(greedy, 0, 3 * share)
        until(lambda: starving.waiting > 0, "the share is used up")
        make(modest, 0, 20)
        until(shared.engine.settled, "the neighbour's directories are seen")
        assert [notice.subscription for notice in starving.heard("share")] == [number]
        for name in range(20):
            (modest / str(name) / "x").touch()
        until(
            lambda: all(f"{modest}/{name}/x".encode() in shared.log.read_bytes() for name in range(20)),
            "the neighbour's files",
        )
        subprocess.run(["rm", "-r", *(greedy / str(name) for name in range(3 * share))], check=True)
        make(greedy, 0, 5)
        until(lambda: starving.heard("watched"), "there is room again")
        assert starving.waiting == 0
