"""The engine as a whole: no GIL per event, batches, the kernel's limits, and nothing left behind."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from argusd._inotify import EVENTS, Engine, Notice
from argusd._output import Output
from tests import sysctls
from tests.kernel.watching import Watching
from tests.waiting import TIMEOUT_S, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to change sysctls and to mount")

# OPEN, MODIFY and CLOSE_WRITE for each file and round, made by another process.
PRODUCER = """
import os, sys
folder, files, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for round in range(rounds):
    for number in range(files):
        descriptor = os.open(f"{folder}/{number}", os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, b"x")
        os.close(descriptor)
"""


def produce(folder: Path, files: int, rounds: int) -> subprocess.Popen[bytes]:
    """Start a process that opens, writes and closes files in turn."""
    return subprocess.Popen([sys.executable, "-c", PRODUCER, folder, str(files), str(rounds)])


def names(path: str) -> set[str]:
    """What a folder of /proc lists."""
    return {entry.name for entry in Path(path).iterdir()}


def descriptors() -> list[str]:
    """What is open, by what it is, so that the listing itself makes no difference."""
    found = []
    for name in names("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(str(Path("/proc/self/fd", name).readlink()))
    return sorted(found)


def test_events_are_handled_while_python_is_busy(watching: Watching, folder: Path) -> None:
    watching.watch(folder, EVENTS["CLOSE_WRITE"])
    python = ctypes.PyDLL(None)  # its calls keep the GIL
    with produce(folder, files=50, rounds=100) as producer:
        lines, waited_us = 0, 0
        # From here on no other thread of this process runs Python until the C calls have returned.
        # Reading the size of the log is a C call as well; the interpreter gives the GIL away in none of them.
        interval_s = sys.getswitchinterval()
        sys.setswitchinterval(1000)
        try:
            while lines < 5000 and waited_us < TIMEOUT_S * 1e6:
                python.usleep(20_000)
                waited_us += 20_000
                lines = watching.log.read_bytes().count(b"\n")
        finally:
            sys.setswitchinterval(interval_s)
    assert producer.returncode == 0
    assert lines == 5000


def test_events_are_written_during_one_single_call_that_holds_the_gil(watching: Watching, folder: Path) -> None:
    watching.watch(folder, EVENTS["CLOSE_WRITE"])
    with produce(folder, files=50, rounds=100) as producer:
        # waitid(P_PID, pid, NULL, WEXITED | WNOWAIT) through PyDLL: the GIL is kept until the producer has ended.
        assert ctypes.PyDLL(None).waitid(1, producer.pid, None, 4 | 0x0100_0000) == 0
        written = watching.log.stat().st_size
    assert producer.returncode == 0
    watching.expect(5000)
    whole = watching.log.stat().st_size
    # What was in flight when the last file was closed may come later: far less than half of all.
    assert written > whole / 2


def test_events_come_in_batches(watching: Watching, folder: Path) -> None:
    watching.watch(folder)
    with produce(folder, files=100, rounds=200) as producer:
        pass
    assert producer.returncode == 0
    watching.expect(3 * 20_000 + 100)  # CREATE comes once a file
    statistics = watching.engine.statistics()
    assert statistics["reads"] * 10 < statistics["events"]
    assert statistics["lines"] == sum(watching.counts().values()) == 60_100
    assert watching.output.dropped() == 0


def test_the_eventfd_says_that_counts_wait(watching: Watching, folder: Path) -> None:
    watching.watch(folder, EVENTS["CREATE"])
    assert select.select([watching.engine], [], [], 0)[0] == []
    (folder / "x").touch()
    assert select.select([watching.engine], [], [], TIMEOUT_S)[0]
    watching.engine.acknowledge()
    assert watching.counts() == {"create": 1}
    assert select.select([watching.engine], [], [], 0)[0] == []

    watching.engine.want_counts(False)
    (folder / "y").touch()
    watching.expect(2)
    assert select.select([watching.engine], [], [], 0)[0] == []
    watching.engine.want_counts(True)
    assert select.select([watching.engine], [], [], TIMEOUT_S)[0]
    assert watching.counts() == {"create": 1}


@pytest.mark.changes_sysctls
def test_an_overflow_of_the_queue_is_told_once_and_counted(tmp_path: Path, folder: Path) -> None:
    with sysctls.inotify("max_queued_events", 64):  # read when the engine makes its inotify instance
        watching = Watching(tmp_path / "log")
    try:
        watching.watch(folder, EVENTS["CREATE"])
        made = overflow_once(watching, folder)
        (folder / "after").touch()
        until(lambda: b"/after'" in watching.log.read_bytes(), "the events after the overflow")
        counts = watching.counts()
        overflows = watching.engine.statistics()["overflows"]
        assert counts["q_overflow"] == overflows >= 1
        assert [notice.kind for notice in watching.engine.notices()] == ["overflow"] * overflows
        assert counts["create"] <= made + 1
        assert watching.engine.notices() == []
    finally:
        watching.close()


def overflow_once(watching: Watching, folder: Path) -> int:
    """Make files until the queue was too small for a batch; returns how many."""
    deadline = time.monotonic() + TIMEOUT_S
    number = 0
    while not watching.engine.statistics()["overflows"]:
        assert time.monotonic() < deadline, "the queue never overflowed"
        for _ in range(500):
            number += 1
            os.mknod(folder / str(number))
        watching.settle()
    return number


@pytest.mark.changes_sysctls
def test_no_more_watches_is_an_error_and_gives_all_back(watching: Watching, folder: Path) -> None:
    for number in range(200):
        (folder / f"{number}").mkdir()
    before = watching.engine.statistics()
    with sysctls.inotify("max_user_watches", used_watches() + 100):
        number = watching.subscribe(folder)
        with pytest.raises(OSError, match="No space left") as caught:
            watching.engine.arm(number)
        assert caught.value.errno == errno.ENOSPC
        watching.engine.switch([], [number])
        until(lambda: watching.engine.settled() and watches() == 0, "the watches are gone")
    after = watching.engine.statistics()
    assert [after[key] for key in ("watches", "nodes")] == [before[key] for key in ("watches", "nodes")]
    watching.watch(folder)
    assert watching.engine.statistics()["nodes"] == 201


@pytest.mark.changes_sysctls
def test_a_new_directory_beyond_the_limit_is_a_notice(watching: Watching, folder: Path) -> None:
    number = watching.watch(folder, EVENTS["CREATE"])
    with sysctls.inotify("max_user_watches", 0):  # whatever the rest of the machine gives back meanwhile
        (folder / "new").mkdir()
        notices = notices_of(watching.engine)
    assert [(notice.kind, notice.subscription, notice.errno, notice.path) for notice in notices] == [
        ("limit", number, errno.ENOSPC, str(folder / "new"))
    ]
    (folder / "x").touch()
    watching.expect(2)
    assert watching.counts() == {"create": 2}


def notices_of(engine: Engine) -> list[Notice]:
    """Wait for notices, and take them."""
    notices: list[Notice] = []
    deadline = time.monotonic() + TIMEOUT_S
    while not notices:
        assert time.monotonic() < deadline, "never: a notice"
        select.select([engine], [], [], 0.05)
        engine.acknowledge()
        notices = engine.notices()
    return notices


def watches() -> int:
    """The inotify watches of this process, the engines' own marks left out."""
    return sum(max(0, count - 1) for count in watch_counts(Path("/proc/self/fdinfo")))


def used_watches() -> int:
    """The inotify watches that count against root's limit now."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # A process that walks for a daemon has the daemon's instance, not one of its own.
            if process.stat().st_uid == 0 and (process / "comm").read_text() != "argusd-walk\n":
                total += sum(watch_counts(process / "fdinfo"))
    return total


def watch_counts(fdinfo: Path) -> Sequence[int]:
    """How many watches each inotify descriptor of a process holds."""
    counts = []
    for descriptor in fdinfo.iterdir():
        with contextlib.suppress(OSError):
            count = descriptor.read_text().count("inotify wd:")
            if count:
                counts.append(count)
    return counts


@pytest.mark.changes_sysctls
def test_an_engine_without_an_inotify_instance_says_which_limit_it_is() -> None:
    output = Output()
    with sysctls.inotify("max_user_instances", 0), pytest.raises(OSError, match="max_user_instances") as caught:
        Engine(output)
    assert caught.value.errno == errno.EMFILE
    assert output.close()


def test_nothing_is_left_after_watches_end(watching: Watching, folder: Path) -> None:
    (folder / "a/b/c").mkdir(parents=True)
    watching.engine.switch([], [watching.watch(folder)])
    watching.settle()  # the threads have begun by now
    before = descriptors(), len(names("/proc/self/task")), watches()
    for _ in range(100):
        number = watching.watch(folder)
        (folder / "a/b/c/new").mkdir()
        until(lambda: watching.engine.statistics()["nodes"] == 5, "the new directory is watched")
        watching.engine.switch([], [number])
        (folder / "a/b/c/new").rmdir()
    watching.settle()
    until(
        lambda: (
            not watching.engine.switch([], []) and (descriptors(), len(names("/proc/self/task")), watches()) == before
        ),
        "all is given back",
    )
    statistics = watching.engine.statistics()
    assert (statistics["watches"], statistics["nodes"]) == (0, 0)


def test_nothing_is_left_of_engines(tmp_path: Path, folder: Path) -> None:
    before = descriptors(), len(names("/proc/self/task"))
    for _ in range(20):
        watching = Watching(tmp_path / "log")
        watching.watch(folder)
        (folder / "x").touch()
        watching.close()
        watching.engine.close()
    assert (descriptors(), len(names("/proc/self/task"))) == before


def test_close_reports_what_is_queued(tmp_path: Path, folder: Path) -> None:
    watching = Watching(tmp_path / "log")
    watching.watch(folder, EVENTS["CREATE"])
    for number in range(3000):
        os.mknod(folder / str(number))
    watching.close()
    assert (tmp_path / "log").read_bytes().count(b"\n") == 3000


def test_a_closed_engine_refuses_work(tmp_path: Path, folder: Path) -> None:
    watching = Watching(tmp_path / "log")
    watching.close()
    with pytest.raises(RuntimeError):
        watching.subscribe(folder)
    with pytest.raises(RuntimeError):
        watching.engine.start()


def test_an_unknown_subscription_or_counter_is_an_error(watching: Watching, folder: Path) -> None:
    with pytest.raises(KeyError):
        watching.engine.arm(12345)
    watching.engine.switch([12345], [54321])
    watching.counter += 100
    with pytest.raises(KeyError):
        watching.subscribe(folder)


def test_nothing_inside_a_mount_is_kept_busy(watching: Watching, folder: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for _ in range(5):
        assert libc.mount(b"argusd-test", os.fsencode(folder), b"tmpfs", 0, b"size=1m") == 0
        try:
            (folder / "a/b").mkdir(parents=True)
            number = watching.watch(folder)
            (folder / "a/b/c/d").mkdir(parents=True)
            watching.settle()
        finally:
            unmounted = libc.umount2(os.fsencode(folder), 0), ctypes.get_errno()
            libc.umount2(os.fsencode(folder), 2)  # MNT_DETACH: leave nothing behind when it was busy
        assert unmounted[0] == 0, os.strerror(unmounted[1])
        until(lambda: watching.engine.statistics()["nodes"] == 1, "what was mounted over is watched")
        watching.engine.switch([], [number])
