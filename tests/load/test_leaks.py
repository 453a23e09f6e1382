"""Watches that come and go leave the daemon as it was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from argusd.proto import argus_pb2
from tests.load.watched import CALL_S, LoadedDaemon, config, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as the daemon does")

RSS_TOLERANCE_KIB = 2 * 1024


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[LoadedDaemon]:
    with LoadedDaemon(tmp_path / "log") as daemon:
        yield daemon


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "watched"
    for number in range(20):
        (folder / str(number) / "below").mkdir(parents=True)
    return folder


def watches(daemon: LoadedDaemon) -> int:
    """How many inotify watches the kernel keeps for the daemon."""
    infos = Path(f"/proc/{daemon.process.pid}/fdinfo").iterdir()
    return sum(info.read_text().count("inotify wd:") for info in infos)


def cycle(daemon: LoadedDaemon, folder: Path, number: int) -> None:
    """Create a watch, let it report something, update every fifth one, and destroy it."""
    request = config(folder, ["all"], podName=f"pod{number % 7}")
    daemon.stub.CreateWatch(request, timeout=CALL_S)
    new = folder / "new"
    new.mkdir()
    if number % 5 == 0:
        changed = config(folder, ["create", "modify"], podName=f"pod{number % 7}")
        changed.subject[0].tags["number"] = str(number)
        daemon.stub.CreateWatch(changed, timeout=CALL_S)
    new.rmdir()
    daemon.stub.DestroyWatch(
        argus_pb2.ArgusdConfig(nodeName="node1", podName=request.podName, pid=[os.getpid()]), timeout=CALL_S
    )


@pytest.mark.slow
def test_a_thousand_watches_leave_descriptors_threads_and_memory_alone(daemon: LoadedDaemon, folder: Path) -> None:
    for number in range(300):
        cycle(daemon, folder, number)
    until(lambda: watches(daemon) <= 1, "the watches of the warm-up are gone")
    before = daemon.descriptors(), daemon.threads(), watches(daemon)
    before_kib = daemon.resident_kib()
    for number in range(1000):
        cycle(daemon, folder, number)
    until(lambda: watches(daemon) == before[2], "the watches are gone")
    until(
        lambda: (daemon.descriptors(), daemon.threads(), watches(daemon)) == before,
        "all is given back",
        timeout_s=CALL_S,
    )
    assert daemon.resident_kib() - before_kib < RSS_TOLERANCE_KIB
    assert list(daemon.stub.GetWatchState(argus_pb2.Empty(), timeout=CALL_S)) == []
