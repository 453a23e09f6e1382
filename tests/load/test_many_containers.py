"""Five hundred containers that come and go leave the daemon, and the node, as they were."""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
import pytest

from argusd.proto import argus_pb2
from demo.container import missing_for_runc
from tests.load.cheap import CheapContainer, Unmounts, leave_mount_namespace, writable_cgroups
from tests.load.watched import CALL_S, LoadedDaemon, until

pytestmark = [
    pytest.mark.skipif(bool(missing_for_runc()), reason=missing_for_runc() or "containers can run here"),
    pytest.mark.slow,
    pytest.mark.timeout(300),  # 20 s where nobody else is busy
]

CONTAINERS: Final = 500
BATCH: Final = 20
WALK: Final = 1000
RELEASE_LIMIT_S: Final = 0.3
HASTY: Final = 10
"""Every tenth container is killed while it is walked."""


@dataclass(slots=True)
class Seen:
    """What a run has measured."""

    release_s: list[float] = field(default_factory=list)
    """From a container's end to the end of its last watch."""
    calls: list[grpc.Future[argus_pb2.ArgusdHandle]] = field(default_factory=list)
    """CreateWatch for containers that were killed meanwhile."""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[LoadedDaemon]:
    with LoadedDaemon(tmp_path / "log") as daemon:
        yield daemon


@pytest.fixture
def cgroups() -> Iterator[Path]:
    path = writable_cgroups() / f"argusd-load-{os.getpid()}"
    path.mkdir()
    yield path
    path.rmdir()


def watched_devices(daemon: LoadedDaemon) -> list[int]:
    """The file systems of all inotify watches of the daemon, from the kernel's own list; one entry for each watch."""
    words: list[list[str]] = []
    for info in Path(f"/proc/{daemon.process.pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            words += (line.split() for line in info.read_text().splitlines() if line.startswith("inotify wd:"))
    # The kernel writes its own form of a device's number: twelve bits of major, twenty of minor.
    devices = [int(word.removeprefix("sdev:"), 16) for line in words for word in line if word.startswith("sdev:")]
    return [os.makedev(device >> 20, device & 0xFFFFF) for device in devices]


def request(container: CheapContainer) -> argus_pb2.ArgusdConfig:
    subject = argus_pb2.ArgusWatcherSubject(path=["/data"], event=["create", "modify", "delete"], recursive=True)
    name = container.id[:12]
    return argus_pb2.ArgusdConfig(
        name="w", nodeName="n", podName=name, cid=[f"containerd://{container.id}"], subject=[subject]
    )


def release(daemon: LoadedDaemon, container: CheapContainer, ended_s: float) -> float:
    """Wait until the daemon has no watch left in the container; how long that has taken from its end."""
    pause = threading.Event()
    while container.device in watched_devices(daemon):
        assert time.monotonic() - ended_s < CALL_S, "watches of a container that has ended"
        pause.wait(0.001)
    return time.monotonic() - ended_s


def live_and_die(daemon: LoadedDaemon, container: CheapContainer, number: int, unmounts: Unmounts, seen: Seen) -> None:
    watch = unmounts.add(container.root)
    if number % HASTY == 0:
        for name in range(WALK):
            (container.root / "data" / "0" / str(name)).mkdir()
        seen.calls.append(daemon.stub.CreateWatch.future(request(container), timeout=CALL_S))
        until(lambda: container.device in watched_devices(daemon), "a walk")
        container.kill()
        container.unmount()
    else:
        assert list(daemon.stub.CreateWatch(request(container), timeout=CALL_S).pid) == [container.pid]
        assert watched_devices(daemon).count(container.device) >= 1
        (container.root / "data" / "1" / "new").write_text("x")
        container.kill()
        ended_s = time.monotonic()
        # The kernel drops the watches of a file system that goes: of every other container they must go before.
        if number % 2:
            container.unmount()
            release(daemon, container, ended_s)
        else:
            seen.release_s.append(release(daemon, container, ended_s))
            container.unmount()
    unmounts.wait(watch)
    container.close()


def run(daemon: LoadedDaemon, folder: Path, cgroups: Path, count: int) -> Seen:
    """Start and stop containers, a batch of them alive at a time."""
    seen = Seen()
    alive: list[CheapContainer] = []
    with Unmounts() as unmounts, contextlib.ExitStack() as stack:
        for number in range(count):
            container = stack.enter_context(CheapContainer(folder, cgroups))
            alive.append(container)
            if len(alive) == BATCH:
                live_and_die(daemon, alive.pop(0), number, unmounts, seen)
        for number, container in enumerate(alive):
            live_and_die(daemon, container, number, unmounts, seen)
    return seen


def test_five_hundred_containers_leave_nothing_behind(
    daemon: LoadedDaemon, tmp_path: Path, cgroups: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "roots"
    folder.mkdir()
    with ThreadPoolExecutor(1, "node", leave_mount_namespace) as node:
        node.submit(run, daemon, folder, cgroups, 2 * BATCH).result()
        before = daemon.descriptors(), daemon.threads(), watched_devices(daemon)
        seen = node.submit(run, daemon, folder, cgroups, CONTAINERS).result()
    errors = [call.exception(CALL_S) for call in seen.calls if call.exception(CALL_S) is not None]
    until(lambda: (daemon.descriptors(), daemon.threads(), watched_devices(daemon)) == before, "all is given back")
    assert list(daemon.stub.GetWatchState(argus_pb2.Empty(), timeout=CALL_S)) == []
    times_ms = sorted(time_s * 1000 for time_s in seen.release_s)
    with capsys.disabled():
        print(
            f"\nwatches gone after a container's end: median {statistics.median(times_ms):.1f} ms,"
            f" longest {times_ms[-1]:.1f} ms of {len(times_ms)};"
            f" CreateWatch refused for {len(errors)} of {len(seen.calls)} that were killed meanwhile"
        )
    # Nine of ten, because a busy machine may stop any one process for longer than that.
    assert times_ms[len(times_ms) * 9 // 10] / 1000 <= RELEASE_LIMIT_S
