"""Directories that are made, moved and removed by the thousands at once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from argusd._inotify import EVENTS
from tests.kernel.watching import Watching

# Each directory is made, moved, and then made a level deeper, before anybody can have looked at it.
PRODUCER = """
import os, sys
os.chdir(sys.argv[1])
for number in range(int(sys.argv[2])):
    os.mkdir(f"new{number}")
    os.rename(f"new{number}", f"{number}")
    os.mkdir(f"{number}/below")
"""
DIRECTORIES = 1_000


def produce(folder: Path, directories: int) -> None:
    subprocess.run([sys.executable, "-c", PRODUCER, folder, str(directories)], check=True)


def test_each_of_many_new_directories_is_reported_once_and_watched(watching: Watching, folder: Path) -> None:
    watching.watch(folder, EVENTS["CREATE"])
    produce(folder, DIRECTORIES)
    watching.settle()
    statistics = watching.engine.statistics()
    assert statistics["nodes"] == 1 + 2 * DIRECTORIES
    for number in range(DIRECTORIES):
        os.mknod(folder / f"{number}/below/x")
    watching.expect(3 * DIRECTORIES)
    told = Counter(line.split(b"'")[1] for line in watching.log.read_bytes().splitlines())
    assert set(told.values()) == {1}
    assert {os.fsencode(folder / f"{number}/below/x") for number in range(DIRECTORIES)} <= told.keys()


def test_many_directories_that_leave_the_tree_at_once_go_quiet(
    watching: Watching, folder: Path, tmp_path: Path
) -> None:
    watching.watch(folder, EVENTS["CREATE"])
    produce(folder, DIRECTORIES)
    outside = tmp_path / "outside"
    outside.mkdir()
    for number in range(DIRECTORIES):
        (folder / str(number)).rename(outside / str(number))
    watching.settle()
    assert watching.engine.statistics()["nodes"] == 1
    before = watching.log.read_bytes().count(b"\n")
    for number in range(DIRECTORIES):
        os.mknod(outside / f"{number}/below/x")
    watching.expect(before)
