"""Mounts in containers: one that has very many is told of, and does not keep us from looking at others."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from argusd._inotify import EVENTS
from argusd._records import Encoder
from argusd.templates import DEFAULT_WATCH_TEMPLATE
from tests.daemon import ROOT
from tests.kernel.watching import Watching
from tests.waiting import TIMEOUT_S, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")

# A process with mounts of its own: so many at the path given, and one more or less for each line that it reads.
PROCESS = """
import sys
from pathlib import Path
from tests.soak.mounts import leave_namespace, mount, unmount
assert leave_namespace()
path = Path(sys.argv[1])
for number in range(int(sys.argv[2])):
    mount(path)
print("ready", flush=True)
for line in sys.stdin:
    if line == "mount\\n":
        mount(path)
    else:
        unmount(path, float(sys.argv[3]))
    print("done", flush=True)
"""
MANY = 600  # mounts whose path has 2,000 spaces, each written as four bytes: more than 4 MiB of mountinfo


@contextlib.contextmanager
def container(path: Path, mounts: int) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", PROCESS, path, str(mounts), str(TIMEOUT_S)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def order(process: subprocess.Popen[str], what: str) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(what + "\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n"


def watch(watching: Watching, pid: int, path: Path, error: int = 0) -> int:
    encoder = Encoder(DEFAULT_WATCH_TEMPLATE.segments, "p", "n", "w", "c", [])
    pidfd = os.pidfd_open(pid)
    try:
        number = watching.engine.subscribe(
            encoder, watching.counter, pid, pidfd, [os.fsencode(path)], EVENTS["CREATE"], [], False, True, 0, False
        )
    finally:
        os.close(pidfd)
    assert watching.engine.arm(number).errors == (error,)
    watching.engine.switch([number], [])
    return number


def test_a_container_with_too_many_mounts_is_told_of_once(tmp_path: Path) -> None:
    long_path = tmp_path.joinpath(*[" " * 200] * 10)
    long_path.mkdir(parents=True)
    plain = tmp_path / "plain"
    plain.mkdir()
    watching = Watching(tmp_path / "log")
    try:
        with container(long_path, MANY) as many, container(plain, 0) as few:
            size = len(Path(f"/proc/{many.pid}/mountinfo").read_bytes())
            assert size > 4 << 20
            numbers = [watch(watching, many.pid, plain), watch(watching, many.pid, tmp_path)]
            watch(watching, few.pid, plain)
            notices = []

            def told() -> bool:
                notices.extend(watching.engine.notices())
                return bool(notices)

            until(told, "a notice")
            order(few, "mount")
            over = Path(f"/proc/{few.pid}/root{plain}")
            made = iter(range(1_000_000))

            def noticed() -> bool:
                (over / f"in-mount-{next(made)}").touch()
                return b"in-mount-" in watching.log.read_bytes()

            until(noticed, "the mount over what is watched")
            told()
        assert [(notice.kind, notice.number) for notice in notices] == [("mounts", 4 << 20)]
        assert notices[0].subscription in numbers
    finally:
        watching.close()


def test_a_file_system_in_the_place_of_another_is_noticed_though_it_looks_the_same(tmp_path: Path) -> None:
    watching = Watching(tmp_path / "log")
    place = tmp_path / "place"
    place.mkdir()
    try:
        with container(place, 1) as process:
            watch(watching, process.pid, place / "missing", errno.ENOENT)
            order(process, "umount")
            order(process, "mount")
            Path(f"/proc/{process.pid}/root{place}/missing").touch()
            until(lambda: b"missing" in watching.log.read_bytes(), "the file in the new file system")
    finally:
        watching.close()
