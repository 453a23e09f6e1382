"""What threads share lives for as long as one of them uses it: containers, counters, the engine itself."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from argusd._inotify import EVENTS
from argusd._records import Encoder
from argusd.templates import DEFAULT_WATCH_TEMPLATE
from tests.kernel.background import Background
from tests.kernel.watching import Watching
from tests.waiting import until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")

CONTAINERS = 100
ROUNDS = 20
MOUNTS = 20


def subscribe(watching: Watching, pid: int, pidfd: int, *paths: Path, counter: int = 0) -> int:
    """Register a watch of ``paths`` as process ``pid`` sees them."""
    return watching.engine.subscribe(
        Encoder(DEFAULT_WATCH_TEMPLATE.segments, "p", "n", "w", "c", []),
        counter or watching.counter, pid, pidfd, list(map(os.fsencode, paths)), EVENTS["CREATE"], [],
        False, False, 0, False,
    )  # fmt: skip


@contextlib.contextmanager
def processes(count: int) -> Iterator[list[tuple[int, int]]]:
    """Processes that live on, as numbers and pidfds."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            process = stack.enter_context(subprocess.Popen(["sleep", "infinity"]))
            stack.callback(process.kill)
            pidfd = os.pidfd_open(process.pid)
            stack.callback(os.close, pidfd)
            found.append((process.pid, pidfd))
        yield found


def test_containers_come_and_go_while_file_systems_end(watching: Watching, folder: Path) -> None:
    """The end of a file system has the reader go through all containers, which other threads add and remove."""
    libc = ctypes.CDLL(None, use_errno=True)
    points = [folder / str(number) for number in range(MOUNTS)]
    with processes(CONTAINERS) as containers, contextlib.ExitStack() as stack:
        own = os.pidfd_open(os.getpid())
        stack.callback(os.close, own)

        def churn() -> None:
            numbers = [subscribe(watching, pid, pidfd, Path("/")) for pid, pidfd in containers]
            watching.engine.switch([], numbers)

        with Background(churn) as churning:
            for point in points:
                point.mkdir()
            for _ in range(ROUNDS):
                for point in points:
                    assert libc.mount(b"argusd-test", os.fsencode(point), b"tmpfs", 0, b"size=1m") == 0
                number = subscribe(watching, os.getpid(), own, *points)
                assert watching.engine.arm(number).errors == (0,) * MOUNTS
                watching.engine.switch([], [number])
                for point in points:
                    assert libc.umount2(os.fsencode(point), 2) == 0  # MNT_DETACH
            assert churning.is_at_work
    until(
        lambda: not watching.engine.switch([], []) and watching.engine.settled()
        and watching.engine.statistics()["watches"] == 0,
        "everything is given back",
    )  # fmt: skip


def test_a_counter_that_is_given_back_too_early_is_freed_with_its_last_subscription(
    watching: Watching, folder: Path
) -> None:
    counter = watching.engine.new_counter()
    own = os.pidfd_open(os.getpid())
    try:
        number = subscribe(watching, os.getpid(), own, folder, counter=counter)
    finally:
        os.close(own)
    watching.engine.arm(number)
    watching.engine.switch([number], [])
    watching.engine.free_counter(counter)
    for name in range(100):
        (folder / str(name)).touch()
    watching.expect(100)
    assert watching.counts() == {}
    watching.engine.switch([], [number])
    with pytest.raises(KeyError):
        watching.engine.free_counter(counter)


def test_an_engine_closes_under_calls_of_other_threads(tmp_path: Path, folder: Path) -> None:
    for _ in range(20):
        watching = Watching(tmp_path / "log")
        begun = threading.Event()

        def arm(watching: Watching = watching, begun: threading.Event = begun) -> None:
            with contextlib.suppress(RuntimeError, KeyError):  # closed before, or in the middle
                while True:
                    number = watching.subscribe(folder)
                    begun.set()
                    watching.engine.arm(number)
                    watching.engine.switch([], [number])

        threads = [threading.Thread(target=arm) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert begun.wait()
        watching.close()
        for thread in threads:
            thread.join()
