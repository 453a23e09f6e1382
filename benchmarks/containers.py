"""A hundred containers watched at once, ten paths each: what they take, and whether all that happens is reported.

Each is a process in namespaces and a cgroup of its own, found by its id. Root and a static busybox are needed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from argusd.proto import argus_pb2, argus_pb2_grpc
from benchmarks.daemon import TIMEOUT_S, MeasuredDaemon
from benchmarks.table import NO_GOAL, Comparison, Losses, Lost, Row
from benchmarks.told import told
from benchmarks.trees import temporary_folder
from benchmarks.watches import instances
from tests.load.cheap import FOLDERS, CheapContainer, leave_mount_namespace, writable_cgroups

CONTAINERS: Final = 100
PART: Final = 20
"""How many of the first and of the last calls are compared."""
FILES: Final = 3
GOAL_GROWTH: Final = 1.5
SETTLE_S: Final = 1.0
IDLE_S: Final = 5.0


@dataclass(slots=True)
class Seen:
    """What a run has measured, with one container and with all."""

    calls_ms: list[float] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    instances: list[int] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    watches: int = 0
    idle_ms: float = 0.0
    made: list[int] = field(default_factory=list)
    wrong: list[int] = field(default_factory=list)
    """Files that were reported never or twice."""


def measure() -> list[Row]:
    """Measure; takes about fifteen seconds."""
    with temporary_folder() as folder, _cgroups() as cgroups:
        (folder / "roots").mkdir()
        with ThreadPoolExecutor(1, "node", leave_mount_namespace) as node:
            seen = node.submit(_run, folder, cgroups).result()
    return list(_rows(seen))


@contextlib.contextmanager
def _cgroups() -> Iterator[Path]:
    if os.geteuid() != 0:
        raise RuntimeError("the benchmark 'containers' needs root: it makes namespaces and cgroups")
    path = writable_cgroups() / f"argusd-benchmark-{os.getpid()}"
    path.mkdir()
    try:
        yield path
    finally:
        path.rmdir()


def _run(folder: Path, cgroups: Path) -> Seen:
    seen = Seen()
    with contextlib.ExitStack() as stack:
        made = (CheapContainer(folder / "roots", cgroups) for _ in range(CONTAINERS))
        containers = [stack.enter_context(container) for container in made]
        daemon = stack.enter_context(MeasuredDaemon(folder))
        stub = argus_pb2_grpc.ArgusdStub(daemon.channel)
        for number, container in enumerate(containers):
            start_s = time.perf_counter()
            handle = stub.CreateWatch(_request(container), timeout=TIMEOUT_S)
            seen.calls_ms.append((time.perf_counter() - start_s) * 1e3)
            if list(handle.pid) != [container.pid]:
                raise RuntimeError(f"another process than {container.pid} is watched: {handle}")
            if number in {0, CONTAINERS - 1}:
                found = instances(daemon.pid)
                seen.threads.append(daemon.thread_count())
                seen.instances.append(len(found))
                seen.watches = sum(map(len, found))
                seen.bytes.append(daemon.memory().anonymous)
                _work(containers[: number + 1], daemon.log, seen)
        time.sleep(SETTLE_S)
        before_s = daemon.cpu_s()
        time.sleep(IDLE_S)
        seen.idle_ms = (daemon.cpu_s() - before_s) * 1e3
    return seen


def _request(container: CheapContainer) -> argus_pb2.ArgusdConfig:
    paths = [f"/data/{number}" for number in range(FOLDERS)]
    subject = argus_pb2.ArgusWatcherSubject(path=paths, event=["create"])
    return argus_pb2.ArgusdConfig(
        name="benchmark", nodeName="node", podName=container.id[:12], cid=[container.id], subject=[subject]
    )


def _work(containers: Sequence[CheapContainer], log: Path, seen: Seen) -> None:
    """Make new files in each watched directory, and compare with what is reported."""
    expected = []
    for container in containers:
        for number in range(FOLDERS):
            for file in range(FILES):
                path = f"/data/{number}/{len(seen.made)}-{file}"
                Path(f"/proc/{container.pid}/root{path}").touch()
                expected.append((container.id[:12], path))
    counts = told(log, "CREATE", sum(seen.made) + len(expected))
    seen.made.append(len(expected))
    seen.wrong.append(sum(counts[place] != 1 for place in expected))


def _rows(seen: Seen) -> Iterator[Row]:
    paths = CONTAINERS * FOLDERS
    first, last = f"the first {PART}", f"the last {PART}"
    yield Comparison("CreateWatch", "ms", last, first, seen.calls_ms[-PART:], seen.calls_ms[:PART], GOAL_GROWTH)
    one, all_of_them = "with 1", f"with {CONTAINERS}"
    for what, values in (("threads", seen.threads), ("inotify instances", seen.instances)):
        yield Comparison(what, "", all_of_them, one, values[1:], values[:1], 1.0)
    yield Comparison("kernel watches", "", all_of_them, "paths", [seen.watches], [paths], NO_GOAL)
    yield Comparison("private memory", "KiB", all_of_them, one, [seen.bytes[1] / 1024], [seen.bytes[0] / 1024], NO_GOAL)
    yield Comparison("CPU while idle", "ms", all_of_them, "time", [seen.idle_ms], [IDLE_S * 1e3], 0.0)
    yield Losses(
        what="files made in them and not reported, or again",
        measured=all_of_them,
        lost=Lost(seen.wrong[1], seen.made[1]),
        reference=one,
        reference_lost=Lost(seen.wrong[0], seen.made[0]),
        has_goal=True,
    )
