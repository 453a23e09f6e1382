"""The first walk of a watch: when CreateWatch answers, the whole tree is watched, whatever happens on the way to it."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from argusd._inotify import EVENTS
from tests.kernel.background import Background
from tests.kernel.watching import Watching
from tests.waiting import until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as the other tests of the engine")

DIRECTORIES = 20 * 40
ROUNDS = 20
DEEP = 40
LEVELS = 22  # more than the directories that a walk keeps open
WIDE = 3000


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree of which the subject path leads through a link."""
    for number in range(DIRECTORIES):
        (tmp_path / "real" / str(number // 40) / str(number % 40)).mkdir(parents=True)
    (tmp_path / "way").symlink_to("real")
    return tmp_path / "way"


def point(link: Path, to: str) -> None:
    """Have a link lead somewhere else."""
    link.with_name("next").symlink_to(to)
    link.with_name("next").rename(link)


def touch_a_step(link: Path) -> None:
    """Let something happen to a name that the subject path goes through; it leads to the same directory as before."""
    point(link, "real")


def touch_beside(link: Path) -> None:
    """Let something happen in the tree itself."""
    (link / "0" / "f").touch()
    (link / "0" / "f").unlink()


@pytest.mark.parametrize("touch", [touch_a_step, touch_beside])
def test_all_is_watched_when_the_first_walk_is_over(
    watching: Watching, tree: Path, touch: Callable[[Path], None]
) -> None:
    armed = []
    with Background(functools.partial(touch, tree)):
        for _round in range(ROUNDS):
            number = watching.subscribe(tree, mask=EVENTS["CREATE"])
            assert watching.engine.arm(number).errors == (0,)
            armed.append(watching.engine.statistics()["watches"])
            watching.engine.switch([], [number])
            watching.settle()
    assert min(armed) > DIRECTORIES


def test_a_path_that_changed_during_the_first_walk_is_looked_up_afterwards(watching: Watching, tree: Path) -> None:
    """The walk of a tree does not notice that its path leads elsewhere by now; what comes after it does."""
    other = tree.with_name("other")
    other.mkdir()

    def repoint(before: int) -> None:
        until(lambda: watching.engine.statistics()["watches"] > before, "the walk begins")
        point(tree, "other")

    for _round in range(ROUNDS):
        number = watching.subscribe(tree, mask=EVENTS["CREATE"])
        repointer = threading.Thread(target=repoint, args=[watching.engine.statistics()["watches"]])
        repointer.start()
        watching.engine.arm(number)
        watching.engine.switch([number], [])
        repointer.join()
        watching.settle()
        assert watching.engine.statistics()["watches"] < DIRECTORIES // 2
        watching.engine.switch([], [number])
        watching.settle()
        touch_a_step(tree)


@pytest.mark.parametrize("comes_back", [False, True])
def test_what_a_first_walk_could_not_reach_is_not_tried_for_long(
    watching: Watching, tmp_path: Path, *, comes_back: bool
) -> None:
    """Nothing waits for directories that have gone, nor do those whose path leads to them again wait for a minute."""
    for number in range(DEEP):
        tmp_path.joinpath("real", "between", str(number), *map(str, range(LEVELS))).mkdir(parents=True)
    for number in range(WIDE):
        (tmp_path / "wide" / str(number)).mkdir(parents=True)
    (tmp_path / "other").mkdir()
    way = tmp_path / "way"
    way.symlink_to("real")

    def repoint(before: int) -> None:
        until(lambda: watching.engine.statistics()["watches"] > before, "the walk begins")
        point(way, "other")
        if comes_back:
            until(lambda: watching.engine.statistics()["watches"] > before + WIDE // 2, "the walk is elsewhere")
            point(way, "real")

    for _round in range(ROUNDS // 4):
        number = watching.subscribe(way, tmp_path / "wide", mask=EVENTS["CREATE"])
        repointer = threading.Thread(target=repoint, args=[watching.engine.statistics()["watches"]])
        repointer.start()
        watching.engine.arm(number)
        watching.engine.switch([number], [])
        repointer.join()
        watching.settle()
        assert (watching.engine.statistics()["watches"] > WIDE + DEEP * LEVELS) == comes_back
        watching.engine.switch([], [number])
        watching.settle()
        touch_a_step(way)
