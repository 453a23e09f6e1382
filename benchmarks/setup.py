"""Watching a tree of 10,000 and of 100,000 directories, and letting go of it: time, CPU, memory; caches are warm.

Against ``inotifywait -r`` and against the least that a program can do, walker.c. They take turns, each time in a new
process. The time of the daemon is from sending CreateWatch until all is armed, that of the others from their start.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from argusd.proto import argus_pb2, argus_pb2_grpc
from benchmarks import processes
from benchmarks.daemon import TIMEOUT_S, MeasuredDaemon
from benchmarks.producer import compiled
from benchmarks.quiet import last_work_s
from benchmarks.table import NO_GOAL, Comparison
from benchmarks.trees import grown_tree, temporary_folder
from benchmarks.watches import kernel_watches, room_for

PART: Final = 10_000
PARTS: Final = 10
ROUNDS: Final = {PART: 3, PART * PARTS: 3}
GOAL: Final = 0.65
ALLOWED_BYTES: Final = 80
ALLOWED_BYTES_WITH_NAME: Final = 120
EVENTS: Final = ("create", "modify", "delete", "movedfrom", "movedto")
ANSWERED_LATE_S: Final = 3.5
"""A CreateWatch that takes longer may have been answered before the walk was over; then the log tells the end."""
QUIET_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Run:
    """One program has watched a tree."""

    armed_s: float
    armed_cpu_s: float
    user_bytes: int
    kernel_bytes: int
    gone_s: float = 0.0


def measure() -> list[Comparison]:
    """Measure; takes about a minute, half of it to make the tree and to remove it."""
    runs: dict[int, dict[str, list[Run]]] = {size: defaultdict(list) for size in ROUNDS}
    with temporary_folder() as folder, room_for(3 * PART * PARTS):
        walker = compiled("walker")
        root = folder / "tree"
        root.mkdir()
        names_size = sum(grown_tree(root / str(part), PART) for part in range(PARTS))
        programs: dict[str, Callable[[Path, int], Run]] = {
            "argusd": _run_daemon,
            "inotifywait -r": _run_inotifywait,
            "walker.c": lambda root, count: _run_walker(walker, root, count),
        }
        _run_walker(walker, root, PART * PARTS + 1)  # warms the caches
        for size, rounds in ROUNDS.items():
            place, count = (root, size + 1) if size > PART else (root / "0", size)
            for _ in range(rounds):
                for name, program in programs.items():
                    runs[size][name].append(program(place, count))
    name_bytes = names_size / (PART * PARTS)
    return [*(row for size in ROUNDS for row in _times(size, runs[size])), *_memory(runs[PART * PARTS], name_bytes)]


def _times(size: int, runs: dict[str, list[Run]]) -> Iterator[Comparison]:
    for reference, goal in (("inotifywait -r", GOAL if size == PART * PARTS else NO_GOAL), ("walker.c", NO_GOAL)):
        what = f"{size:,} directories until armed"
        yield _comparison(what, "ms", runs, reference, lambda run: run.armed_s * 1e3, goal)
        yield _comparison("  CPU", "ms", runs, reference, lambda run: run.armed_cpu_s * 1e3, NO_GOAL)
    what = f"{size:,} directories from DestroyWatch until gone"
    yield _comparison(what, "ms", runs, "walker.c", lambda run: run.gone_s * 1e3, NO_GOAL)


def _memory(runs: dict[str, list[Run]], name_bytes: float) -> Iterator[Comparison]:
    count = PART * PARTS
    used = [run.user_bytes / count for run in runs["argusd"]]
    without = [value - name_bytes for value in used]
    for what, values, allowed in (
        ("user memory per directory, without the block of its name", without, ALLOWED_BYTES),
        ("user memory per directory", used, ALLOWED_BYTES_WITH_NAME),
    ):
        yield Comparison(
            what=what,
            unit="bytes",
            measured="argusd",
            reference="allowed",
            values=values,
            reference_values=[allowed],
            goal=1.0,
        )
    what = "user memory per directory"
    yield _comparison(what, "bytes", runs, "inotifywait -r", lambda run: run.user_bytes / count, NO_GOAL)
    what = "kernel memory per watch"
    yield _comparison(what, "bytes", runs, "walker.c", lambda run: run.kernel_bytes / count, NO_GOAL)


def _comparison(
    what: str, unit: str, runs: dict[str, list[Run]], reference: str, value: Callable[[Run], float], goal: float
) -> Comparison:
    return Comparison(
        what=what,
        unit=unit,
        measured="argusd",
        reference=reference,
        values=[value(run) for run in runs["argusd"]],
        reference_values=[value(run) for run in runs[reference]],
        goal=goal,
    )


def _kernel_bytes() -> int:
    """What the kernel has allocated in small pieces and cannot give back: watches, not the inodes that they hold."""
    match = re.search(r"^SUnreclaim: *([0-9]+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def _run_daemon(root: Path, count: int) -> Run:
    with MeasuredDaemon() as daemon:
        stub = argus_pb2_grpc.ArgusdStub(daemon.channel)
        list(stub.GetWatchState(argus_pb2.Empty(), timeout=TIMEOUT_S))  # connects
        watches = len(kernel_watches(daemon.pid))
        kernel_bytes, user_bytes = _kernel_bytes(), daemon.memory().anonymous
        cpu_s, start_s = daemon.cpu_s(), time.perf_counter()
        daemon.watch(root, EVENTS)
        if time.perf_counter() - start_s > ANSWERED_LATE_S and not daemon.says(b"Walk of ", TIMEOUT_S):
            raise TimeoutError("the walk does not end")
        armed_s, armed_cpu_s = time.perf_counter() - start_s, daemon.cpu_s() - cpu_s
        kernel_bytes, user_bytes = _kernel_bytes() - kernel_bytes, daemon.memory().anonymous - user_bytes
        if len(kernel_watches(daemon.pid)) < watches + count:
            raise RuntimeError("the daemon does not watch every directory")
        start_s = time.perf_counter()
        stub.DestroyWatch(argus_pb2.ArgusdConfig(nodeName="node", podName="pod"), timeout=TIMEOUT_S)
        gone_s = last_work_s(daemon.pid, QUIET_S) - start_s
        if len(kernel_watches(daemon.pid)) > watches:
            raise RuntimeError("the daemon has kept watches")
    return Run(armed_s, armed_cpu_s, user_bytes, kernel_bytes, gone_s)


def _run_inotifywait(root: Path, _count: int) -> Run:
    events = "create,modify,delete,moved_from,moved_to"
    command = ["inotifywait", "--monitor", "--recursive", "--event", events, str(root)]
    with _measured(command, b"Watches established.") as (run, _):
        return run


def _run_walker(walker: Path, root: Path, count: int) -> Run:
    with _measured([str(walker), str(root)], f"armed {count}\n".encode()) as (run, process):
        start_s = time.perf_counter()
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("no pipes")
        process.stdin.write(b"\n")
        if process.stdout.read(5) != b"gone\n":
            raise RuntimeError("the walker has kept watches")
        return Run(run.armed_s, run.armed_cpu_s, run.user_bytes, run.kernel_bytes, time.perf_counter() - start_s)


@contextlib.contextmanager
def _measured(command: Sequence[str], ready: bytes) -> Iterator[tuple[Run, subprocess.Popen[bytes]]]:
    """Start a program and wait until it says that all is armed; it is ended with the block."""
    kernel_bytes, start_s = _kernel_bytes(), time.perf_counter()
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
    )
    try:
        said = b""
        while ready not in said:
            data = process.stdout.read(1 << 12) if process.stdout else b""
            if not data:
                raise RuntimeError(f"{command[0]} did not watch all of the tree: {said.decode()}")
            said += data
        armed_s, armed_cpu_s = time.perf_counter() - start_s, processes.cpu_s(process.pid)
        used = processes.memory(process.pid).anonymous
        yield Run(armed_s, armed_cpu_s, used, _kernel_bytes() - kernel_bytes), process
    finally:
        process.kill()
        process.communicate()
