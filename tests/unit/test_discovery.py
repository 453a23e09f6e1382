"""Containers that come and go in the cgroup of a pod, here a plain directory; watched, and listed where that fails."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import pytest

from argusd import discovery
from argusd.discovery import Discovery, Pod, Seat
from tests.waiting import until_in_loop

OLD, NEW = "a" * 64, "b" * 64


class Notes:
    """A listener that takes notes."""

    def __init__(self) -> None:
        self.came: list[str] = []
        self.ended = False

    def appeared(self, _pod: Pod, full: str) -> None:
        self.came.append(full)

    def gone(self, _pod: Pod) -> None:
        self.ended = True


@pytest.fixture(autouse=True, params=["watched", "listed"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may have no inotify instance to spare."""

    def refuse() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    if request.param == "listed":
        monkeypatch.setattr(discovery, "Directories", refuse)
        monkeypatch.setattr(discovery, "_LIST_EVERY_S", 0.01)


@pytest.fixture
def pod(tmp_path: Path) -> Path:
    directory = tmp_path / "pod1"
    (directory / OLD).mkdir(parents=True)
    return directory


def seat(pod: Path) -> Seat:
    return Seat(OLD, "web", "1", (os.fsencode(pod),))


@pytest.mark.asyncio
async def test_containers_come_and_the_pod_goes(pod: Path) -> None:
    notes = Notes()
    with contextlib.closing(Discovery()) as found:
        followed = found.follow(seat(pod), notes)
        assert followed is not None
        assert followed.present == {OLD}
        (pod / "no-container").mkdir()
        (pod / f"cri-containerd-{NEW}.scope").mkdir()
        await until_in_loop(lambda: notes.came == [NEW])
        (pod / OLD).rmdir()
        await until_in_loop(lambda: followed.present == {NEW})
        for name in ("no-container", f"cri-containerd-{NEW}.scope", ""):
            (pod / name).rmdir()
        await until_in_loop(lambda: notes.ended)
        assert found.follow(seat(pod), notes) is None


@pytest.mark.asyncio
async def test_nothing_is_told_of_a_pod_that_was_left(pod: Path) -> None:
    left, stays = Notes(), Notes()
    with contextlib.closing(Discovery()) as found:
        followed = found.follow(seat(pod), left)
        assert followed is not None
        assert found.follow(seat(pod), stays) is followed
        found.leave(followed, left)
        (pod / NEW).mkdir()
        await until_in_loop(lambda: stays.came == [NEW])
        assert left.came == []
        found.leave(followed, stays)
        assert not found._pods
        assert not found._by_wd
