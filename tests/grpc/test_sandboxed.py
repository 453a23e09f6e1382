"""Containers whose files the node's kernel does not see, as with gVisor: the root of their process is empty."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import Daemon

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to change a root")

SANDBOX = "import os, sys; os.chroot(sys.argv[1]); print('ready', flush=True); sys.stdin.read()"
WARNING = "A sandboxed runtime such as gVisor or Kata Containers"


@contextlib.contextmanager
def sandbox(root: Path) -> Iterator[int]:
    """A process whose root is a directory in which nothing is mounted."""
    command = [sys.executable, "-c", SANDBOX, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield process.pid
        finally:
            process.kill()


def warnings(daemon: Daemon) -> list[str]:
    return [line for line in daemon.lines if WARNING in line]


def test_a_root_in_which_nothing_can_be_seen_is_one_warning(tmp_path: Path) -> None:
    with sandbox(tmp_path) as pid, Daemon("-log=json") as daemon:
        daemon.create_watch(pid, "/data", "/etc")
        daemon.wait_for_text(WARNING)
        daemon.create_watch(pid, "/usr", name="w2")
        daemon.wait_for_text("'/usr' does not exist")
        assert len(warnings(daemon)) == 1


def test_missing_paths_in_the_root_of_a_process_of_the_node_are_no_warning(tmp_path: Path) -> None:
    with Daemon("-log=json") as daemon:
        daemon.create_watch(os.getpid(), str(tmp_path / "missing"))
        daemon.wait_for_text("does not exist")
        assert not warnings(daemon)


def test_a_path_that_is_there_is_no_warning(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with sandbox(tmp_path) as pid, Daemon("-log=json") as daemon:
        daemon.create_watch(pid, "/data", "/etc")
        daemon.wait_for_text("'/etc' does not exist")
        assert not warnings(daemon)
