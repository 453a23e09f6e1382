"""File systems that show the kernel's state are no part of a tree, unless a subject path leads into them."""

from __future__ import annotations

import contextlib
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

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")

# A process with mounts of its own: each argument is TYPE:PATH.
PROCESS = """
import ctypes, os, sys
from tests.soak.mounts import leave_namespace
assert leave_namespace()
libc = ctypes.CDLL(None, use_errno=True)
for argument in sys.argv[1:]:
    kind, _, path = argument.partition(":")
    if libc.mount(b"none", os.fsencode(path), kind.encode(), 0, None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
print("ready", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def container(*mounts: str) -> Iterator[int]:
    with subprocess.Popen(
        [sys.executable, "-c", PROCESS, *mounts], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield process.pid
        finally:
            process.kill()


def directories(watching: Watching, pid: int, path: Path) -> int:
    """How many are armed by a recursive watch."""
    encoder = Encoder(DEFAULT_WATCH_TEMPLATE.segments, "p", "n", "w", "c", [])
    pidfd = os.pidfd_open(pid)
    try:
        number = watching.engine.subscribe(
            encoder, watching.counter, pid, pidfd, [os.fsencode(path)], EVENTS["CREATE"], [], False, True, 0, False
        )
    finally:
        os.close(pidfd)
    armed = watching.engine.arm(number)
    assert armed.errors == (0,)
    watching.engine.switch([number], [])
    return armed.directories


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    for name in ("proc", "sys", "shm/below", "plain/below"):
        (tree / name).mkdir(parents=True)
    return tree


def test_pseudo_file_systems_below_a_path_are_left_out_and_others_are_followed(watching: Watching, tree: Path) -> None:
    with container(f"proc:{tree}/proc", f"sysfs:{tree}/sys", f"tmpfs:{tree}/shm") as pid:
        inside = Path(f"/proc/{pid}/root{tree}")
        (inside / "shm" / "one").mkdir()
        # The tree, plain, plain/below, shm and shm/one.
        assert directories(watching, pid, tree) == 5
        (inside / "shm" / "one" / "new").touch()
        (inside / "plain" / "below" / "new").touch()
        watching.expect(2)


def test_a_path_that_leads_into_a_pseudo_file_system_is_watched(watching: Watching, tree: Path) -> None:
    with container(f"proc:{tree}/proc") as pid:
        assert directories(watching, pid, tree / "proc" / "sys" / "fs") > 1
